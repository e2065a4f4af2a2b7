//! What programs of others list, in limited time.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How long a tool may take: rules by the ten thousand are listed in less.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// The packet filters as a tool lists them.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The tool's name.
    pub tool: &'static str,
    /// What it wrote, or why it did not.
    pub text: Result<String, String>,
}

/// The rules of every tool that is installed.
pub(super) fn rules() -> Vec<Rules> {
    let tools: [(&str, &[&str]); 3] =
        [("nft", &["-j", "list", "ruleset"]), ("iptables-save", &[]), ("ip6tables-save", &[])];
    let listed = |(tool, arguments): (&'static str, &[&str])| {
        listed(tool, arguments, LIMIT).transpose().map(|text| Rules { tool, text })
    };
    tools.into_iter().filter_map(listed).collect()
}

/// What a tool writes; `None` where there is no such tool. One that takes longer is ended.
fn listed(tool: &str, arguments: &[&str], limit: Duration) -> Result<Option<String>, String> {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be run: {error}")),
    };
    let (text, errors) = (all_of(child.stdout.take()), all_of(child.stderr.take()));
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(PAUSE),
            Ok(None) => {
                // Fails only where it has just ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("does not answer within {limit:?}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let rest = |receiver: Receiver<Vec<u8>>| {
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        receiver.recv_timeout(left).map_err(|_| format!("does not answer within {limit:?}"))
    };
    let (text, errors) = (rest(text)?, rest(errors)?);
    if status.success() {
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    } else {
        let errors = String::from_utf8_lossy(&errors);
        Err(format!("cannot list its rules: {}", errors.lines().next().unwrap_or("it does not say why")))
    }
}

/// Reads on a thread of its own: a pipe that is full would stop the tool.
fn all_of(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error still counts.
            let _ = pipe.read_to_end(&mut bytes);
        }
        // Nobody waits for it any more where the time is up.
        let _ = sender.send(bytes);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_answers_fails_hangs_or_is_missing() {
        let ask = |script: &str, limit| listed("sh", &["-c", script], limit);
        assert_eq!(ask("echo rules", LIMIT), Ok(Some("rules\n".to_owned())));
        let long = ask("head -c 1000000 /dev/zero", LIMIT).expect("an answer").expect("a tool");
        assert_eq!(long.len(), 1_000_000, "more than a pipe holds");
        let error = ask("echo no right >&2; exit 1", LIMIT).expect_err("it failed");
        assert_eq!(error, "cannot list its rules: no right");
        let start = Instant::now();
        let error = ask("exec sleep 60", Duration::from_millis(50)).expect_err("it hangs");
        assert!(error.contains("within 50ms"), "{error}");
        let error = ask("sleep 5 & echo half", Duration::from_millis(200)).expect_err("its child holds the pipe");
        assert!(error.contains("within 200ms"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(4));
        assert_eq!(listed("no-such-tool-of-anybody", &[], LIMIT), Ok(None));
    }
}
