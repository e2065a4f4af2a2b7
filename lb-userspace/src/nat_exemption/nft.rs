//! The program nft, which knows how to speak to every kernel's nftables.

use std::io::{ErrorKind, Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

/// How long nft may take. 10,000 pods take it some 0.1 s here.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(1);

/// Load rules, all or none.
///
/// # Errors
/// nft is missing, or refuses them: with its own words.
pub(super) fn load(rules: &str) -> Result<()> {
    run(&["-f", "-"], rules).map(drop)
}

/// How nft lists a table of the family `inet`. Elements are sorted, so that equal tables look equal.
///
/// # Errors
/// There is no such table, or nft is missing.
pub(super) fn list(table: &str) -> Result<String> {
    run(&["list", "table", "inet", table], "")
}

/// Runs nft, with `input` as its standard input.
fn run(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("the program nft is not there: install it (package nftables), or take node.natExemption out")
        }
        _ => anyhow!(error).context("cannot run nft"),
    })?;
    let pipes = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
    let ((mut stdin, stdout), stderr) = pipes.context("nft without pipes")?;
    thread::scope(|scope| {
        // It may end before it has read all, having said why.
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        let (output, errors) = (scope.spawn(|| read(stdout)), scope.spawn(|| read(stderr)));
        let status = wait(&mut child);
        // A thread that reads does not panic.
        let (output, errors) = (output.join().unwrap_or_default(), errors.join().unwrap_or_default());
        if !status?.success() {
            bail!("nft {}: {}", arguments.join(" "), errors.trim());
        }
        Ok(output)
    })
}

/// Waits for the end of `child`, which is killed when it takes too long.
fn wait(child: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().context("waiting for nft")? {
            return Ok(status);
        }
        thread::sleep(PAUSE);
    }
    child.kill().and_then(|()| child.wait()).context("ending nft")?;
    bail!("nft did not end within {PATIENCE:?}");
}

fn read(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What could be read is all that there is to say.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
