//! Running other programs: shown in one line each, with an error that names what failed.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// How much of a failed program's output an error quotes, in lines from its end.
const QUOTED_LINES: usize = 12;

/// A command that runs as root: by sudo where the caller is not.
pub(crate) fn as_root(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if workspace::is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

/// Shows the command, runs it with the caller's output, and wants success.
///
/// # Errors
/// When it cannot be started or does not end with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    finished(command, status)
}

/// Shows a command on standard error, as a person would type it.
pub(crate) fn show(command: &Command) {
    eprintln!("$ {}", line(command));
}

/// Runs a command for what it prints; its errors are quoted only when it fails.
///
/// # Errors
/// When it cannot be started or does not end with 0.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}):\n{}", line(command), output.status, last_lines(&stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Shows and runs a command that must not take longer than `limit`; it is killed when it does. Its output goes to
/// standard error.
///
/// # Errors
/// When it cannot be started, does not end with 0, or takes too long.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    show(command);
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let mut child = command.spawn().with_context(|| cannot_start(command))?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().with_context(|| cannot_start(command))? {
            return finished(command, status);
        }
        if Instant::now() >= end {
            // It may have ended by itself just now; waiting tells.
            child.kill().ok();
            child.wait().with_context(|| cannot_start(command))?;
            bail!("`{}` was ended after {} s", line(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn finished(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

fn cannot_start(command: &Command) -> String {
    let program = command.get_program().display();
    format!("`{program}` cannot be started: is it installed and on PATH?")
}

/// One line for a command: the program by its name, paths inside the workspace relative to it.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()];
    let root = format!("{}/", workspace::root().display());
    for argument in command.get_args() {
        let argument = argument.to_string_lossy().replace(&root, "");
        words.push(if argument.contains('\n') {
            "'…'".to_owned()
        } else if argument.is_empty() || argument.contains(char::is_whitespace) {
            format!("'{argument}'")
        } else {
            argument
        });
    }
    words.join(" ")
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_short_and_can_be_pasted() {
        let mut command = Command::new("/usr/bin/cargo");
        command.arg("build").arg(workspace::root().join("target/x")).args(["a b", "", "one\ntwo"]);
        assert_eq!(line(&command), "cargo build target/x 'a b' '' '…'");
    }

    #[test]
    fn errors_quote_the_end_of_what_was_said() {
        let error = output(Command::new("sh").args(["-c", "seq 20 >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("\n19\n20"), "{error}");
        assert!(!error.contains("\n8\n"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let begin = Instant::now();
        let error = run_within(Command::new("sleep").arg("60"), Duration::from_millis(100)).unwrap_err().to_string();
        assert!(error.contains("was ended"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/program"), "{error}");
    }
}
