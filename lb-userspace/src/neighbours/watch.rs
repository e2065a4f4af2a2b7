//! The loop: messages and timers in, snapshots out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::stream::{self, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::egress::Uplinks;
use super::entries::{Entry, Key, Support, Want};
use super::kernel::{Error, Event, Sockets};
use super::path_mtu::PathMtu;
use super::pods::{Pods, View};
use super::routes::Answer;
use super::tables::{Change, Tables};
use super::{Addresses, Snapshot, resolve};

/// From the first message of a burst until it is acted upon.
const SETTLE: Duration = Duration::from_millis(8);

/// From one reading of everything to the next. Some changes send no message: learned path MTUs and redirects, routes
/// that vanish with a next-hop object, the step from no entry to an incomplete one.
const REFRESH: Duration = Duration::from_secs(30);

/// How long no message may come before a queue that overflowed is taken for empty.
const QUIET: Duration = Duration::from_millis(50);

/// Pause before everything is read again after an attempt that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Requests on their way at once: as many answers as the smallest receive buffer holds.
const AT_ONCE: usize = 32;

/// What has to be looked at again.
#[derive(Default)]
struct Dirty {
    /// All tables and routes.
    everything: bool,
    /// All routes.
    routes: bool,
    /// The routes to these.
    destinations: BTreeSet<IpAddr>,
}

/// The state of the task.
pub(super) struct Watch {
    sockets: Sockets,
    path_mtu: PathMtu,
    wanted: Addresses,
    pods: Pods,
    uplinks: Uplinks,
    publisher: watch::Sender<Arc<Snapshot>>,
    tables: Tables,
    answers: BTreeMap<IpAddr, Answer>,
    wants: BTreeMap<Key, Want>,
    support: Support,
    dirty: Dirty,
    /// When to read everything once more after messages were lost. The kernel reports the loss before the messages that
    /// it had queued, and until those are read it drops all others without a further word (`NETLINK_S_CONGESTED`).
    reread_at: Option<Instant>,
}

impl Watch {
    pub(super) fn new(
        sockets: Sockets,
        path_mtu: PathMtu,
        wanted: Addresses,
        pods: Addresses,
        publisher: watch::Sender<Arc<Snapshot>>,
    ) -> Self {
        Self {
            sockets,
            path_mtu,
            wanted,
            pods: Pods::new(pods),
            uplinks: Uplinks::default(),
            publisher,
            tables: Tables::default(),
            answers: BTreeMap::new(),
            wants: BTreeMap::new(),
            support: Support::Managed,
            dirty: Dirty::default(),
            reread_at: None,
        }
    }

    /// Runs until nobody asks or nobody listens any more.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        self.dirty.everything = true;
        let mut act_at = Some(Instant::now());
        let mut refresh_at = Instant::now() + REFRESH;
        loop {
            let next = [act_at, self.reread_at].into_iter().flatten().fold(refresh_at, Instant::min);
            tokio::select! {
                event = self.sockets.events.next() => {
                    let Some(event) = event else { bail!("the netlink socket for route messages is closed") };
                    if self.take(event) {
                        let settled = Instant::now() + SETTLE;
                        act_at = Some(act_at.map_or(settled, |at| at.min(settled)));
                    }
                }
                ended = self.sockets.tasks.join_next() => bail!("a netlink socket failed: {ended:?}"),
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    act_at = Some(Instant::now());
                }
                () = self.pods.changed() => act_at = Some(Instant::now()),
                () = self.path_mtu.news() => {
                    // It says which path, but the kernel knows better what it made of it.
                    self.dirty.routes = true;
                    let settled = Instant::now() + SETTLE;
                    act_at = Some(act_at.map_or(settled, |at| at.min(settled)));
                }
                () = self.publisher.closed() => return Ok(()),
                () = sleep_until(next) => {
                    let now = Instant::now();
                    if now >= refresh_at {
                        self.dirty.everything = true;
                        refresh_at = now + REFRESH;
                    }
                    if self.reread_at.take_if(|at| now >= *at).is_some() {
                        self.dirty.everything = true;
                    }
                    act_at = self.act().await?;
                }
            }
        }
    }

    /// Takes an event in; whether there is something to do.
    fn take(&mut self, event: Event) -> bool {
        if matches!(event, Event::Lost) || self.reread_at.is_some() {
            self.reread_at = Some(Instant::now() + QUIET);
        }
        let Event::Message(message) = event else {
            tracing::info!("netlink messages were lost: reading all tables again");
            self.dirty.everything = true;
            return true;
        };
        let change = self.tables.apply(&message);
        let matters = self.pods.note(&change, &self.tables) | self.uplinks.note(&change);
        match change {
            Change::Nothing | Change::Forwarding(_) => return matters,
            Change::AllRoutes | Change::Device(_) => self.dirty.routes = true,
            Change::Neighbour(key) => match self.wants.get_mut(&key) {
                Some(want) => {
                    if let Some(entry) = self.tables.neighbours.get(&key) {
                        want.observe(entry);
                    }
                }
                None => return matters,
            },
            Change::Routes(range) => {
                let before = self.dirty.destinations.len();
                self.dirty.destinations.extend(self.wanted.borrow().range(range));
                return matters || self.dirty.destinations.len() > before;
            }
        }
        true
    }

    /// Looks again at what may have changed, asks for neighbours that are due, and publishes. Returns when to act again
    /// without waiting for a message.
    async fn act(&mut self) -> anyhow::Result<Option<Instant>> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.everything {
            self.pods.doubt_all();
            self.uplinks.doubt();
            match self.read_tables().await {
                Ok(()) => {}
                Err(error @ Error::Closed) => return Err(error).context("reading links, addresses and neighbours"),
                Err(error) => {
                    tracing::warn!(%error, "links, addresses and neighbours could not be read; trying again");
                    self.dirty.everything = true;
                    return Ok(Some(Instant::now() + RETRY));
                }
            }
        }
        self.look_up_routes(&dirty).await.context("looking up routes")?;
        self.pods.look_up(&self.sockets.kernel).await.context("looking up pods")?;
        self.uplinks.read(&self.sockets.kernel).await.context("reading default routes")?;
        self.revise_wants().await;
        self.ask_for_neighbours().await.context("asking for neighbours")?;
        self.publish();
        Ok(self.questions().map(|(_, at)| at).chain(self.uplinks.due(Instant::now())).min())
    }

    /// Reads all tables. Messages that are still queued repeat older news, and end with the newest.
    async fn read_tables(&mut self) -> Result<(), Error> {
        let kernel = &self.sockets.kernel;
        let mut messages = kernel.links().await?;
        messages.extend(kernel.addresses().await?);
        messages.extend(kernel.neighbours().await?.into_iter().map(RouteNetlinkMessage::NewNeighbour));
        messages.extend(kernel.forwarding().await?);
        self.tables = Tables::default();
        for message in &messages {
            self.tables.apply(message);
        }
        for (key, want) in &mut self.wants {
            if let Some(entry) = self.tables.neighbours.get(key) {
                want.observe(entry);
            }
        }
        Ok(())
    }

    /// Asks for the routes of what is new or may have changed.
    async fn look_up_routes(&mut self, dirty: &Dirty) -> Result<(), Error> {
        let wanted = self.wanted.borrow_and_update().clone();
        self.answers.retain(|destination, _| wanted.contains(destination));
        let all = dirty.everything || dirty.routes;
        let questions: Vec<IpAddr> = wanted
            .into_iter()
            .filter(|d| all || dirty.destinations.contains(d) || !self.answers.contains_key(d))
            .collect();
        let kernel = &self.sockets.kernel;
        let mut answers = stream::iter(questions)
            .map(|destination| async move { (destination, kernel.route(destination).await) })
            .buffer_unordered(AT_ONCE);
        while let Some((destination, answer)) = answers.next().await {
            self.answers.insert(destination, answer?);
        }
        Ok(())
    }

    /// Finds which neighbours are needed now, and lets go of the others.
    async fn revise_wants(&mut self) {
        let view = View { tables: &self.tables, wants: &self.wants, uplinks: &self.uplinks.devices };
        let keys: BTreeSet<Key> = self
            .answers
            .iter()
            .filter_map(|(destination, answer)| resolve::neighbour(*destination, answer, &self.tables))
            .chain(self.pods.neighbours(view))
            .collect();
        let unwanted: Vec<Key> = self.wants.keys().filter(|key| !keys.contains(key)).copied().collect();
        for key in unwanted {
            self.wants.remove(&key);
            if self.tables.neighbours.get(&key).is_some_and(Entry::is_kept_here)
                && let Err(error) = self.sockets.kernel.unmanage(key).await
            {
                tracing::warn!(neighbour = %key.1, interface = key.0, %error, "a neighbour stays managed");
            }
        }
        let now = Instant::now();
        for key in keys {
            let want = self.wants.entry(key).or_insert_with(|| Want::new(now));
            if let Some(entry) = self.tables.neighbours.get(&key) {
                want.observe(entry);
            }
            if !is_up(&self.tables, key) {
                // The kernel forgets its neighbours when a device goes down: start afresh when it is back.
                *want = Want::new(now);
            }
        }
    }

    /// Asks the kernel to resolve what is due.
    async fn ask_for_neighbours(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let managed = self.support == Support::Managed;
        let due: Vec<Key> = self.questions().filter(|(_, at)| *at <= now).map(|(key, _)| key).collect();
        let kernel = &self.sockets.kernel;
        let answers: Vec<(Key, Result<Option<Entry>, Error>)> = stream::iter(due)
            .map(|key| async move { (key, kernel.resolve(key, managed).await) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (key, answer) in answers {
            self.note_answer(key, answer, managed)?;
        }
        Ok(())
    }

    /// Takes note of how the kernel took a request to resolve a neighbour.
    fn note_answer(&mut self, key: Key, answer: Result<Option<Entry>, Error>, managed: bool) -> Result<(), Error> {
        let refused = match answer {
            Ok(entry) => {
                self.tables.set_neighbour(key, entry);
                if managed && entry.is_some_and(|entry| !entry.managed && !entry.foreign) {
                    self.fall_back();
                }
                None
            }
            Err(Error::Refused(Errno::EINVAL | Errno::EOPNOTSUPP)) if managed => {
                self.fall_back();
                // Ask again at once, without it.
                return Ok(());
            }
            // The device went away: its message is on the way.
            Err(Error::Refused(Errno::ENODEV | Errno::ENETDOWN)) | Err(Error::Silent) => None,
            Err(Error::Refused(errno)) => Some(errno),
            Err(error @ Error::Closed) => return Err(error),
        };
        if let Some(want) = self.wants.get_mut(&key) {
            if let Some(entry) = self.tables.neighbours.get(&key) {
                want.observe(entry);
            }
            if let Some(errno) = refused.filter(|_| want.refused != refused) {
                tracing::warn!(neighbour = %key.1, interface = key.0, error = errno.desc(), "not resolved");
            }
            want.asked(Instant::now(), refused);
        }
        Ok(())
    }

    fn fall_back(&mut self) {
        if self.support == Support::Managed {
            tracing::info!("this kernel knows no managed neighbours (Linux 5.16 does): probing them instead");
            self.support = Support::ProbesOnly;
        }
    }

    /// The neighbours to ask for, and when.
    fn questions(&self) -> impl Iterator<Item = (Key, Instant)> {
        self.wants
            .iter()
            .filter(|(key, _)| is_up(&self.tables, **key))
            .filter_map(|(key, want)| want.due(self.tables.neighbours.get(key), self.support).map(|at| (*key, at)))
    }

    /// Publishes what is known, if it differs from what was published last.
    fn publish(&mut self) {
        let view = View { tables: &self.tables, wants: &self.wants, uplinks: &self.uplinks.devices };
        self.pods.find_seats(view);
        let pods = self.pods.paths(view);
        let paths = self
            .answers
            .iter()
            .map(|(destination, answer)| (*destination, resolve::path(*destination, answer, &self.tables, &self.wants)))
            .collect();
        let links = self.tables.links_by_name();
        let uplinks = self.uplinks.devices.clone();
        let snapshot = Snapshot { paths, pods, uplinks, links, addresses: self.tables.host_addresses() };
        self.publisher.send_if_modified(|last| {
            let differs = **last != snapshot;
            if differs {
                *last = Arc::new(snapshot);
            }
            differs
        });
    }
}

/// Whether the device of a neighbour can send.
fn is_up(tables: &Tables, (interface, _): Key) -> bool {
    tables.links.get(&interface).is_some_and(|(_, link)| link.up)
}
