//! How commands ask the agent: one question over its unix socket.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::time::timeout;

use super::which::Which;
use crate::model::protocol_name;
use crate::status::{Status, socket_path};
use crate::trace::{FlowAsked, Trace};

/// How long an agent may take to answer, from the first byte to the last.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// With HTTP/1.0 the answer is its headers, then its body to the end: no chunks, no connection to keep.
fn question(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.0\r\nHost: beeline\r\n\r\n").into_bytes()
}

/// Which agent is asked, and how its answer is printed.
#[derive(Args, Debug)]
pub struct Asked {
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    which: Which,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Output {
    /// Tables for people.
    Text,
    /// One JSON document.
    Json,
}

impl Asked {
    /// The pins of the agent that is asked.
    ///
    /// # Errors
    /// The configuration file is not valid.
    pub(super) fn pin_path(&self) -> Result<PathBuf> {
        self.which.pin_path()
    }

    /// What the agent says of a flow.
    ///
    /// # Errors
    /// As [`Asked::fetch`].
    pub(super) fn trace(&self, flow: &FlowAsked) -> Result<Trace> {
        let FlowAsked { protocol, client, vip } = flow;
        let protocol = protocol_name(*protocol).to_ascii_lowercase();
        let (from, to) = ((client.ip(), client.port()), (vip.ip(), vip.port()));
        let path = format!("/trace/{protocol}/{}/{}/{}/{}", from.0, from.1, to.0, to.1);
        let pin_path = self.which.pin_path()?;
        fetch_page(&path, &socket_path(&pin_path), &pin_path, TIMEOUT)
    }

    /// What the agent says.
    ///
    /// # Errors
    /// The configuration file is not valid, no agent answers, or not in time, or it is of another make.
    pub(super) fn fetch(&self) -> Result<Status> {
        let pin_path = self.which.pin_path()?;
        fetch(&socket_path(&pin_path), &pin_path, TIMEOUT)
    }

    /// Prints `text`, or `json` as one document.
    ///
    /// # Errors
    /// Standard output cannot be written; one that is closed has read enough.
    pub(super) fn print(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        self.output.print(json, text)
    }
}

impl Output {
    /// Prints `text`, or `json` as one document.
    ///
    /// # Errors
    /// Standard output cannot be written; one that is closed has read enough.
    pub(super) fn print(self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let mut page = match self {
            Output::Text => text(),
            Output::Json => serde_json::to_string_pretty(json)? + "\n",
        };
        if !page.ends_with('\n') {
            page.push('\n');
        }
        match io::stdout().write_all(page.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("standard output"),
            _ => Ok(()),
        }
    }
}

/// What the agent at `socket` says.
///
/// # Errors
/// As [`Asked::fetch`].
pub(super) fn fetch(socket: &Path, pin_path: &Path, limit: Duration) -> Result<Status> {
    fetch_page("/status", socket, pin_path, limit)
}

/// A page of the agent at `socket`.
fn fetch_page<T: DeserializeOwned>(path: &str, socket: &Path, pin_path: &Path, limit: Duration) -> Result<T> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { timeout(limit, ask(path, socket)).await });
    let shown = socket.display();
    match answer {
        Ok(Ok(answer)) => read(&answer).with_context(|| format!("the agent at {shown}")),
        Ok(Err(error)) => Err(match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!("no agent answers at {shown}; is it running? {}", left(pin_path))
            }
            ErrorKind::PermissionDenied => anyhow!("{shown} is not for this user; ask as root, with sudo"),
            _ => anyhow!("the agent at {shown}: {error}"),
        }),
        Err(_) => bail!(
            "the agent at {shown} is there and has not answered within {limit:?}; its log may say why; {}",
            left(pin_path)
        ),
    }
}

async fn ask(path: &str, socket: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&question(path)).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    let cut = || anyhow!("its answer is cut off after {} bytes; ask again", answer.len());
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(cut)?;
    let (head, body) = (str::from_utf8(&answer[..end])?, &answer[end + 4..]);
    let mut lines = head.split("\r\n");
    let code = lines.next().and_then(|line| line.split(' ').nth(1)).context("it does not speak HTTP")?;
    let length =
        lines.filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case("content-length"));
    if length.is_some_and(|(_, length)| length.trim().parse() != Ok(body.len())) {
        return Err(cut());
    }
    if code != "200" {
        bail!("{} (HTTP status {code})", String::from_utf8_lossy(body).trim_end());
    }
    serde_json::from_slice(body).context("its answer is not what this version reads; use the agent's own binary")
}

/// What is still there without the agent, in words.
fn left(pin_path: &Path) -> String {
    let shown = pin_path.display();
    let entries = match fs::read_dir(pin_path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return format!("nothing is pinned under {shown}"),
        Err(error) => return format!("what is pinned under {shown} keeps forwarding, and cannot be listed: {error}"),
    };
    let mut versions: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok()))
        .collect();
    if versions.is_empty() {
        return format!("nothing is pinned under {shown}");
    }
    versions.sort();
    format!("what is pinned under {shown} ({}) keeps forwarding", versions.join(", "))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::status::sample;

    /// What asking an agent gives that answers with these bytes.
    fn answered(answer: Vec<u8>) -> Result<Status> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("a.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a question");
            let mut asked = vec![0; question("/status").len()];
            stream.read_exact(&mut asked).expect("the question");
            stream.write_all(&answer).expect("an answer");
            asked
        });
        let status = fetch(&socket, folder.path(), TIMEOUT);
        assert_eq!(agent.join().expect("the agent ends"), question("/status"));
        status
    }

    fn http(code: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.0 {code}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn an_answer() {
        let body = serde_json::to_string(&sample()).expect("JSON");
        assert_eq!(answered(http("200 OK", &body)).expect("a status"), sample());
    }

    #[test]
    fn an_answer_that_is_cut_off() {
        let mut answer = http("200 OK", &serde_json::to_string(&sample()).expect("JSON"));
        answer.truncate(answer.len() - 1);
        let error = format!("{:#}", answered(answer).expect_err("cut off"));
        assert!(error.contains("cut off after"), "{error}");
        let error = format!("{:#}", answered(b"HTTP/1.0 200 OK\r\n".to_vec()).expect_err("cut off"));
        assert!(error.contains("cut off after"), "{error}");
    }

    #[test]
    fn an_agent_that_cannot_answer_says_why() {
        let error = format!("{:#}", answered(http("503 X", "the agent is ending\n")).expect_err("503"));
        assert!(error.ends_with("a.sock: the agent is ending (HTTP status 503)"), "{error}");
    }

    #[test]
    fn an_agent_of_another_make() {
        let error = format!("{:#}", answered(http("200 OK", "{}")).expect_err("another make"));
        assert!(error.contains("use the agent's own binary: missing field"), "{error}");
    }

    #[test]
    fn no_agent() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (socket, pins) = (folder.path().join("a.sock"), folder.path().join("beeline"));
        let say = || fetch(&socket, &pins, TIMEOUT).expect_err("no agent").to_string();
        let asked = format!("no agent answers at {}; is it running?", socket.display());
        assert_eq!(say(), format!("{asked} nothing is pinned under {}", pins.display()));
        for name in ["v1", "v2", "vain", "1"] {
            fs::create_dir_all(pins.join(name)).expect("a folder");
        }
        assert_eq!(say(), format!("{asked} what is pinned under {} (v1, v2) keeps forwarding", pins.display()));
        // A socket whose agent died.
        drop(UnixListener::bind(&socket).expect("a socket"));
        assert!(say().starts_with(&asked), "{}", say());
    }

    #[test]
    fn an_agent_that_never_answers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("a.sock");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let error = fetch(&socket, folder.path(), Duration::from_millis(50)).expect_err("silence").to_string();
        assert!(error.contains("is there and has not answered within 50ms"), "{error}");
    }
}
