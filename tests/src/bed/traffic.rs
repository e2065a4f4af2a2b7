//! Requests that go on while something happens, and connections that stay open through it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Connection, Host, Response, eventually, get, holds};

/// How long a request may take: several retries of a lost SYN (1 s, 3 s, 7 s after the first).
const REQUEST: Duration = Duration::from_secs(15);

/// Pause of a worker between two requests.
const PAUSE: Duration = Duration::from_millis(4);

/// How long a question on an open connection may take. A reset comes at once; silence is a broken connection too.
const QUESTION: Duration = Duration::from_secs(4);

/// Who answered a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The node whose nginx answered.
    pub node: String,
    /// The address that nginx took for the client's.
    pub saw: String,
}

/// What became of one request.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Where it came from.
    pub client: IpAddr,
    /// Where it was sent to.
    pub vip: IpAddr,
    /// When it began.
    pub began: Instant,
    /// Why it was asked anew: the first connection broke. A table that changes while a connection is open breaks it
    /// where its slot moves and the new owner does not know it.
    pub cut: Option<String>,
    /// Who answered, or why nobody did.
    pub result: Result<Served, String>,
}

impl Outcome {
    /// What is wrong; `None` where the first connection brought the answer, and nginx saw the client's own address.
    pub fn wrong(&self) -> Option<String> {
        let cut = self.cut.as_ref().map(|cut| format!("{} asked {}, first: {cut}", self.client, self.vip));
        self.wrong_in_the_end().or(cut)
    }

    /// As [`Outcome::wrong`], but content where a second connection brought the answer.
    pub fn wrong_in_the_end(&self) -> Option<String> {
        let Self { client, vip, result, .. } = self;
        match result {
            Ok(served) if served.saw == client.to_string() => None,
            Ok(served) => Some(format!("{client} asked {vip}: {} saw {} as the client", served.node, served.saw)),
            Err(error) => Some(format!("{client} asked {vip}: {error}")),
        }
    }
}

/// Sends one request on a new connection, in the namespace of the calling thread.
pub fn ask(client: IpAddr, vip: IpAddr) -> Outcome {
    let began = Instant::now();
    let result = get(client, SocketAddr::new(vip, 80), "/", REQUEST).and_then(|answer| served(&answer));
    Outcome { client, vip, began, cut: None, result: result.map_err(|error| format!("{error:#}")) }
}

/// As [`ask`], and asks once more where the first connection broke.
fn ask_twice(client: IpAddr, vip: IpAddr) -> Outcome {
    let first = ask(client, vip);
    match first.result {
        Ok(_) => first,
        Err(error) => Outcome { cut: Some(error), ..ask(client, vip) },
    }
}

fn served(answer: &Response) -> Result<Served> {
    holds(answer.status == 200, || format!("status {}", answer.status))?;
    Ok(Served { node: answer.header("x-node")?.to_owned(), saw: answer.header("x-client")?.to_owned() })
}

/// Workers, one for each pair of client address and VIP, that send requests one after the other until told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    workers: Vec<JoinHandle<Vec<Outcome>>>,
}

impl Traffic {
    /// Starts the workers on `host`.
    ///
    /// # Errors
    /// Threads cannot be started there.
    pub fn start(host: &Host, pairs: &[(IpAddr, IpAddr)]) -> Result<Self> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let work = |(client, vip): (IpAddr, IpAddr)| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            move || {
                let mut outcomes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    outcomes.push(ask_twice(client, vip));
                    done.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PAUSE);
                }
                outcomes
            }
        };
        let spawn = |pair: &(IpAddr, IpAddr)| thread::Builder::new().name("traffic".to_owned()).spawn(work(*pair));
        let workers = host.within(|| pairs.iter().map(spawn).collect::<Result<_, _>>().context("starting traffic"))?;
        Ok(Self { stop, done, workers })
    }

    /// Waits until `count` more requests have ended, one way or the other.
    ///
    /// # Errors
    /// They did not within a minute.
    pub fn wait_for(&self, count: usize) -> Result<()> {
        let target = self.done.load(Ordering::Relaxed) + count;
        eventually("requests to end", Duration::from_secs(60), || {
            let done = self.done.load(Ordering::Relaxed);
            holds(done >= target, || format!("{done} of {target}"))
        })
    }

    /// Lets the requests on the way end and returns the outcomes of all, in the order in which they began.
    pub fn finish(mut self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let mut outcomes = Vec::new();
        for worker in self.workers.drain(..) {
            outcomes.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcomes.sort_by_key(|outcome| outcome.began);
        outcomes
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // They hold the bed's namespaces. What they had to tell is of no interest any more.
        self.workers.drain(..).for_each(|worker| drop(worker.join()));
    }
}

/// Connections that are kept open, each with the node that answered first.
pub struct LongConnections {
    open: Vec<(Connection, String)>,
}

/// How connections of one node fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fared {
    /// The same node answered again.
    pub alive: usize,
    /// No answer, a reset, or another node.
    pub broken: usize,
}

impl LongConnections {
    /// Opens `each` connections for every pair and asks once on each.
    ///
    /// # Errors
    /// One of them is not answered.
    pub fn open(host: &Host, pairs: &[(IpAddr, IpAddr)], each: usize) -> Result<Self> {
        let mut open = Vec::new();
        host.within(|| {
            for (client, vip) in pairs.iter().flat_map(|pair| std::iter::repeat_n(pair, each)) {
                let mut connection = Connection::open(*client, SocketAddr::new(*vip, 80), QUESTION)?;
                let node = served(&connection.get("/")?)?.node;
                open.push((connection, node));
            }
            Ok(())
        })?;
        Ok(Self { open })
    }

    /// Number of open connections.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Asks again on every connection, all at once; those that are broken are given up. By the node that they were
    /// with.
    pub fn ask_again(&mut self) -> BTreeMap<String, Fared> {
        let mut fared: BTreeMap<String, Fared> = BTreeMap::new();
        let asked = thread::scope(|scope| {
            let question = |(mut connection, node): (Connection, String)| {
                let answer = connection.get("/").and_then(|answer| served(&answer));
                let same = answer.is_ok_and(|served| served.node == node);
                (connection, node, same)
            };
            let threads: Vec<_> = self.open.drain(..).map(|open| scope.spawn(move || question(open))).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        for answer in asked {
            let (connection, node, same) = answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let entry = fared.entry(node.clone()).or_default();
            if same {
                entry.alive += 1;
                self.open.push((connection, node));
            } else {
                entry.broken += 1;
            }
        }
        fared
    }
}
