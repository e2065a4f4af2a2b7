//! The server with an agent's task that answers, one that does not, and the commands that ask it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lb_userspace::metrics::CONTENT_TYPE;
use lb_userspace::server::{Bound, Query, Question, Server};
use lb_userspace::status::{ServiceStatus, Status, socket_path};
use lb_userspace::trace::Trace;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that runs.
struct Running {
    address: SocketAddr,
    socket: PathBuf,
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(bound: Bound, socket: &Path, query: Query) -> Self {
        let address = bound.listening().expect("an address");
        let (end, ended) = oneshot::channel::<()>();
        let task = bound.serve(query, async { drop(ended.await) }).expect("a runtime");
        Self { address, socket: socket.to_owned(), end, task }
    }

    async fn tcp(&self, path: &str) -> (u16, String) {
        get(TcpStream::connect(self.address).await.expect("the server listens"), path).await
    }

    async fn unix(&self, path: &str) -> (u16, String) {
        get(UnixStream::connect(&self.socket).await.expect("the server listens"), path).await
    }

    async fn stop(self) {
        self.end.send(()).expect("the server waits for it");
        timeout(PATIENCE, self.task).await.expect("the server ends").expect("without a panic");
    }
}

/// The status code of an answer, and all of the answer.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> (u16, String) {
    let question = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await.expect("the server reads");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
    (answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code"), answer)
}

/// An agent's task that always answers the same.
fn agent(status: Status) -> Query {
    let (query, mut questions) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            match question {
                Question::Status(sender) => drop(sender.send(status.clone())),
                Question::Trace(flow, sender) => drop(sender.send(Trace::new(&flow))),
            }
        }
    });
    query
}

fn status() -> Status {
    let service = ServiceStatus { label: "web/http".to_owned(), packets: 42, ..ServiceStatus::default() };
    Status { version: "0.1.0".to_owned(), ready: true, services: vec![service], ..Status::default() }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[tokio::test]
async fn each_place_answers_what_belongs_there() {
    let folder = folder();
    let socket = folder.path().join("made/here/a.sock");
    let server = Running::start(Server::bind(ANYWHERE, &socket).expect("free"), &socket, agent(status()));

    let made = fs::metadata(folder.path().join("made/here")).expect("a folder");
    assert_eq!(made.permissions().mode() & 0o7777, 0o755);
    let file = fs::metadata(&socket).expect("a socket");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);

    for (code, page) in [server.tcp("/metrics").await, server.unix("/metrics").await] {
        assert_eq!(code, 200, "{page}");
        assert!(page.contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{page}");
        assert!(page.contains("beeline_service_packets_total{service=\"web/http\""), "{page}");
    }
    assert_eq!(server.tcp("/healthz").await.0, 200);
    assert_eq!(server.tcp("/readyz").await.0, 200);
    assert_eq!(server.tcp("/status").await.0, 404, "what the configuration says is root's to know");
    let (code, answer) = server.unix("/status").await;
    assert_eq!(code, 200);
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert_eq!(serde_json::from_str::<Status>(body).expect("a status"), status());

    server.stop().await;
    assert!(!socket.exists(), "the socket is still there");
}

#[tokio::test]
async fn a_flow_is_named_by_the_path() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    let server = Running::start(Server::bind(ANYWHERE, &socket).expect("free"), &socket, agent(status()));
    let (code, answer) = server.unix("/trace/udp/fd60::2/40000/2001:db8::10/53").await;
    assert_eq!(code, 200, "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let trace: Trace = serde_json::from_str(body).expect("a trace");
    assert_eq!(trace.client, "[fd60::2]:40000".parse().expect("an address"));
    assert_eq!((trace.vip, trace.protocol.as_str()), ("[2001:db8::10]:53".parse().expect("an address"), "UDP"));
    for wrong in ["sctp/10.0.0.1/1/10.0.0.2/2", "tcp/10.0.0.1/1/2001:db8::1/2", "tcp/10.0.0.1/70000/10.0.0.2/2"] {
        assert_eq!(server.unix(&format!("/trace/{wrong}")).await.0, 400, "{wrong}");
    }
    assert_eq!(server.tcp("/trace/tcp/10.0.0.1/1/10.0.0.2/2").await.0, 404, "what the maps hold is root's to know");
    server.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_not_ready_says_why() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    let problems = vec!["eth0: there is no such interface".to_owned()];
    let query = agent(Status { ready: false, problems, ..status() });
    let server = Running::start(Server::bind(ANYWHERE, &socket).expect("free"), &socket, query);
    assert_eq!(server.tcp("/healthz").await.0, 200);
    let (code, answer) = server.tcp("/readyz").await;
    assert_eq!(code, 503);
    assert!(answer.ends_with("\r\n\r\nnot ready\neth0: there is no such interface\n"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_stuck_agent_is_unhealthy() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    let bound = Server::bind(ANYWHERE, &socket).expect("free").answer_within(Duration::from_millis(50));
    // The questions pile up unread: the first waits for an answer, the second for its place in the queue.
    let (query, questions) = mpsc::channel(1);
    let server = Running::start(bound, &socket, query);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let (code, answer) = server.tcp(path).await;
        assert_eq!(code, 503, "{path}");
        assert!(answer.ends_with("the agent's task has not answered within 50ms\n"), "{answer}");
    }
    drop(questions);
    let (code, answer) = server.tcp("/healthz").await;
    assert_eq!(code, 503);
    assert!(answer.ends_with("the agent is ending\n"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_keep_the_agent() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    let server = Running::start(Server::bind(ANYWHERE, &socket).expect("free"), &socket, agent(status()));
    let mut silent = TcpStream::connect(server.address).await.expect("the server listens");
    silent.write_all(b"GET /metrics HTTP/1.1\r\n").await.expect("the server reads");
    assert_eq!(server.tcp("/healthz").await.0, 200);
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    drop(UnixListener::bind(&socket).expect("a socket"));
    let server = Running::start(Server::bind(ANYWHERE, &socket).expect("a dead agent's"), &socket, agent(status()));

    let error = format!("{:#}", Server::bind(ANYWHERE, &socket).expect_err("a live agent's"));
    let expected = format!(
        "another agent (pid {}) answers at {}; stop it, or give this one a pinPath of its own",
        std::process::id(),
        socket.display()
    );
    assert_eq!(error, expected);
    assert_eq!(server.unix("/status").await.0, 200, "the live agent still answers");
    server.stop().await;
}

#[test]
fn only_a_dead_agents_socket_is_forgotten() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    Server::forget(&socket).expect("nothing is there");
    let live = UnixListener::bind(&socket).expect("a socket");
    let error = Server::forget(&socket).expect_err("a live agent's").to_string();
    assert!(error.starts_with("another agent (pid ") && socket.exists(), "{error}");
    drop(live);
    Server::forget(&socket).expect("a dead agent's");
    assert!(!socket.exists(), "the socket is still there");
}

#[test]
fn what_is_no_socket_stays() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    fs::write(&socket, "somebody's").expect("a file");
    let error = Server::bind(ANYWHERE, &socket).expect_err("a file is there").to_string();
    assert!(error.contains("is not a socket") && error.contains("move it away"), "{error}");
    assert_eq!(fs::read_to_string(&socket).expect("the file"), "somebody's");
}

#[test]
fn a_server_that_never_served_leaves_nothing() {
    let folder = folder();
    let socket = folder.path().join("a.sock");
    let bound = Server::bind(ANYWHERE, &socket).expect("free");
    let taken = bound.listening().expect("an address");
    let other = folder.path().join("b.sock");
    let error = Server::bind(taken, &other).expect_err("taken").to_string();
    assert_eq!(error, format!("metrics.listen: {taken} is in use; give this agent an address or port of its own"));
    assert!(!other.exists(), "the socket of a server that could not start is still there");
    drop(bound);
    assert!(!socket.exists(), "the socket is still there");
}

#[test]
fn a_path_that_no_socket_can_have() {
    let folder = folder();
    let error = format!("{:#}", Server::bind(ANYWHERE, &folder.path().join("a".repeat(120))).expect_err("too long"));
    assert!(error.contains("take a shorter pinPath"), "{error}");
}

/// Runs the binary, away from the runtime's own threads.
async fn beeline(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().expect("the binary runs")).await.expect("it ends")
}

#[tokio::test]
async fn the_commands_ask_the_agent() {
    // The pinPath decides where the socket is: /run/beeline, which may be made here and is left as it was.
    let folder = tempfile::Builder::new().prefix("beeline-test").tempdir().expect("a temporary folder");
    let pins = folder.path().to_str().expect("text");
    let socket = socket_path(folder.path());
    let _run = RunFolder::look();
    let server = Running::start(
        Server::bind(ANYWHERE, &socket)
            .expect("/run/beeline is root's: run the tests as root, as cargo xtask test does"),
        &socket,
        agent(status()),
    );

    let output = beeline(&["services", "--pin-path", pins]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("web/http"), "{output:?}");
    let output = beeline(&["status", "-o", "json", "--pin-path", pins]).await;
    assert_eq!(serde_json::from_slice::<Status>(&output.stdout).expect("a status"), status());
    let config = folder.path().join("lb.yaml");
    let text = format!("{{apiVersion: beeline.dev/v1, kind: Config, hashSeed: 7, pinPath: {pins}}}");
    fs::write(&config, text).expect("a file");
    let output = beeline(&["backends", "--config", config.to_str().expect("text")]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no backends\n", "{output:?}");

    server.stop().await;
    let output = beeline(&["status", "--pin-path", pins]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = format!("beeline: no agent answers at {}; is it running? ", socket.display());
    assert!(said.starts_with(&expected), "{said}");
}

#[tokio::test]
async fn the_commands_take_one_way_to_name_an_agent() {
    let output = beeline(&["status", "--config", "lb.yaml", "--pin-path", "/sys/fs/bpf/beeline"]).await;
    assert_eq!(output.status.code(), Some(2));
    let output = beeline(&["status", "--pin-path", "beeline"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not an absolute path"), "{output:?}");
}

/// Removes /run/beeline at the end if this test made it and nothing else came to it.
struct RunFolder {
    made: bool,
}

impl RunFolder {
    fn look() -> Self {
        Self { made: !Path::new("/run/beeline").exists() }
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.made {
            // An agent that has started meanwhile keeps it.
            let _ = fs::remove_dir("/run/beeline");
        }
    }
}
