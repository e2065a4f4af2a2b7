//! Where the agent can be asked: metrics and health over TCP, and the whole picture over a unix socket.
//!
//! Every answer is made by the agent's own task at the moment of the question, so an answer is also a sign of life.

mod socket;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use self::socket::Socket;
use crate::metrics;
use crate::status::Status;
use crate::trace::{FlowAsked, Trace};

/// What the agent's task is asked; it answers with what is so at that moment.
#[derive(Debug)]
pub enum Question {
    /// How it is.
    Status(oneshot::Sender<Status>),
    /// Where a flow goes.
    Trace(FlowAsked, oneshot::Sender<Trace>),
}

/// How the agent's task is asked.
pub type Query = mpsc::Sender<Question>;

/// How long the agent's task may take to answer before it counts as stuck.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How long questions that have begun may take once the agent ends.
const GRACE: Duration = Duration::from_millis(500);

/// The server, before it has anything.
#[derive(Debug)]
pub struct Server;

/// The server once it has its places, before it answers.
#[derive(Debug)]
pub struct Bound {
    tcp: TcpListener,
    socket: Socket,
    answer_within: Duration,
}

impl Server {
    /// Takes the address for metrics and health (`metrics.listen`) and the unix socket
    /// ([`crate::status::socket_path`]). A socket that a dead agent left is replaced.
    ///
    /// # Errors
    /// The address is taken or not this host's; another agent answers at the socket; the socket's folder cannot be
    /// made or written.
    pub fn bind(listen: SocketAddr, socket: &FilePath) -> Result<Bound> {
        // The socket first: "another agent" says more than "the address is in use" when it is both.
        let socket = Socket::bind(socket)?;
        let tcp = TcpListener::bind(listen).map_err(|error| refused(listen, &error))?;
        tcp.set_nonblocking(true).with_context(|| format!("metrics.listen: {listen}"))?;
        Ok(Bound { tcp, socket, answer_within: ANSWER_WITHIN })
    }

    /// Removes the socket that a dead agent left, if there is one.
    ///
    /// # Errors
    /// A live agent answers there, something that is no socket is there, or it cannot be removed.
    pub fn forget(socket: &FilePath) -> Result<()> {
        socket::remove_stale(socket)
    }
}

fn refused(listen: SocketAddr, error: &io::Error) -> anyhow::Error {
    let way_out = match error.kind() {
        io::ErrorKind::AddrInUse => "is in use; give this agent an address or port of its own".to_owned(),
        io::ErrorKind::AddrNotAvailable => "is not an address of this host; name one that is, or 0.0.0.0".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be taken; ports below 1024 need CAP_NET_BIND_SERVICE".to_owned(),
        _ => format!("cannot be listened on: {error}"),
    };
    anyhow!("metrics.listen: {listen} {way_out}")
}

impl Bound {
    /// Where metrics and health are served: the port that the kernel chose where 0 was asked for.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn listening(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The same with another limit than [`ANSWER_WITHIN`].
    #[must_use]
    pub fn answer_within(self, limit: Duration) -> Self {
        Self { answer_within: limit, ..self }
    }

    /// Answers until `shutdown`, then removes the socket. The task ends within a second of it, whatever clients do.
    /// Call it inside a runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the sockets.
    pub fn serve(
        self,
        query: Query,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let Self { tcp, socket, answer_within } = self;
        let agent = Arc::new(Agent { query, answer_within });
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let (unix, file) = socket.listen()?;
        let ended = shutdown.shared();
        let metrics = axum::serve(tcp, public(Arc::clone(&agent))).with_graceful_shutdown(ended.clone());
        let local = public(Arc::clone(&agent)).merge(private(agent));
        let local = axum::serve(unix, local).with_graceful_shutdown(ended.clone());
        Ok(tokio::spawn(async move {
            // Removed when the task ends, or is aborted.
            let _file = file;
            let both = async { tokio::join!(metrics, local) };
            let late = async {
                ended.await;
                tokio::time::sleep(GRACE).await;
            };
            tokio::select! {
                results = both => for result in [results.0, results.1] {
                    if let Err(error) = result {
                        warn!(%error, "the status server has stopped");
                    }
                },
                () = late => {}
            }
        }))
    }
}

/// What anybody may know who reaches the address.
fn public(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(agent)
}

/// What only those may know who can open the socket.
fn private(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/trace/{protocol}/{client}/{client_port}/{vip}/{vip_port}", get(trace))
        .with_state(agent)
}

struct Agent {
    query: Query,
    answer_within: Duration,
}

/// Why there is no answer from the agent's task.
enum Silence {
    Late(Duration),
    Gone,
}

impl Agent {
    async fn ask(&self) -> Result<Status, Silence> {
        self.ask_for(Question::Status).await
    }

    async fn ask_for<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Silence> {
        let asked = async {
            let (sender, receiver) = oneshot::channel();
            self.query.send(question(sender)).await.map_err(|_| Silence::Gone)?;
            receiver.await.map_err(|_| Silence::Gone)
        };
        timeout(self.answer_within, asked).await.unwrap_or(Err(Silence::Late(self.answer_within)))
    }
}

impl IntoResponse for Silence {
    fn into_response(self) -> Response {
        let text = match self {
            Self::Late(limit) => format!("the agent's task has not answered within {limit:?}\n"),
            Self::Gone => "the agent is ending\n".to_owned(),
        };
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn healthz(State(agent): State<Arc<Agent>>) -> Result<&'static str, Silence> {
    agent.ask().await.map(|_| "ok\n")
}

async fn readyz(State(agent): State<Arc<Agent>>) -> Result<Response, Silence> {
    let status = agent.ask().await?;
    if status.ready {
        return Ok("ready\n".into_response());
    }
    let mut text = "not ready\n".to_owned();
    for problem in status.first_problems() {
        text.push_str(&problem);
        text.push('\n');
    }
    Ok((StatusCode::SERVICE_UNAVAILABLE, text).into_response())
}

async fn metrics_page(State(agent): State<Arc<Agent>>) -> Result<Response, Silence> {
    let status = agent.ask().await?;
    Ok(written(metrics::CONTENT_TYPE, move || Ok(metrics::render(&status)?)).await)
}

async fn status(State(agent): State<Arc<Agent>>) -> Result<Response, Silence> {
    let status = agent.ask().await?;
    Ok(written("application/json", move || Ok(serde_json::to_string(&status)?)).await)
}

/// A flow is named by its path: there is nothing else to say, and nothing of it needs an escape.
async fn trace(
    State(agent): State<Arc<Agent>>,
    Path((protocol, client, client_port, vip, vip_port)): Path<(String, IpAddr, u16, IpAddr, u16)>,
) -> Result<Response, Response> {
    let (client, vip) = (SocketAddr::new(client, client_port), SocketAddr::new(vip, vip_port));
    let flow = FlowAsked::new(&protocol, client, vip)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response())?;
    let trace = agent.ask_for(|sender| Question::Trace(flow, sender)).await.map_err(Silence::into_response)?;
    Ok(written("application/json", move || Ok(serde_json::to_string(&trace)?)).await)
}

/// A page that may be tens of megabytes: written where it keeps nothing else waiting.
async fn written(content_type: &'static str, write: impl FnOnce() -> Result<String> + Send + 'static) -> Response {
    let written = tokio::task::spawn_blocking(write).await;
    match written.map_err(anyhow::Error::from).and_then(|page| page) {
        Ok(page) => ([(header::CONTENT_TYPE, content_type)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}
