//! The agent: one loop that takes what the source says and what the kernel says, and brings the datapath there.
//!
//! `routes` and `devices` turn what the kernel knows into the plan's terms, `interfaces` keeps programs on interfaces, `report`
//! answers questions. Everything runs in one task; nothing is shared.

mod devices;
mod interfaces;
mod report;
mod routes;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use lb_common::maps::ServiceKey;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{self, Config};
use crate::datapath::{self, Datapath};
use crate::model::{self, Desired};
use crate::nat_exemption::NatExemption;
use crate::neighbours::{Neighbours, Snapshot};
use crate::plan::{self, Host, HostRoles, Step};
use crate::server::{Question, Server};
use crate::source::file::Watch;
use crate::status::socket_path;

use devices::Devices;
use interfaces::Interfaces;
use routes::Routes;

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether the programs log every packet.
    pub debug_packets: bool,
}

/// How long to wait for the first word of the kernel on every backend, before going on without.
const FIRST_ROUTES: Duration = Duration::from_secs(3);
/// How often what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often to see whether the programs are still where they were put.
const LOOK: Duration = Duration::from_secs(2);

/// Run an agent until it is told to stop. What it pinned goes on.
///
/// # Errors
/// It cannot start: the configuration is wrong, there is no right to use BPF, or another agent has these pins.
pub async fn run(options: Options) -> Result<()> {
    let config = config::load(&options.config)?;
    if !config.has_role() {
        bail!("{}: neither edge nor node is there: an agent would have nothing to do", options.config.display());
    }
    if let Some(role) = role_without_interface(&config) {
        bail!("{}: {role}.interfaces: name at least one interface for an agent", options.config.display());
    }
    for advice in config.advice() {
        tracing::warn!("{advice}");
    }
    datapath::check_rights()?;
    let server = Server::bind(config.metrics_listen, &socket_path(&config.pin_path))?;
    let datapath = Datapath::open(&config.maps, config.node.is_some(), &config.pin_path, options.debug_packets)?;
    let (queries, asked) = mpsc::channel(16);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = server.serve(queries, async {
        let _ = stopped.await;
    })?;
    let mut agent = Agent::new(options.config, config, datapath)?;
    let result = agent.run(asked).await;
    drop(stop);
    let _ = serving.await;
    result
}

struct Agent {
    file: PathBuf,
    /// The configuration in force.
    config: Config,
    /// The bytes that were read last, good or bad.
    read: Vec<u8>,
    desired: Desired,
    datapath: Datapath,
    interfaces: Interfaces,
    nat_exemption: NatExemption,
    routes: Routes,
    destinations: watch::Sender<BTreeSet<IpAddr>>,
    /// Pods of this host, whose devices are looked for.
    pods: watch::Sender<BTreeSet<IpAddr>>,
    devices: Devices,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    started: SystemTime,
    generation: u64,
    applied: Option<SystemTime>,
    config_errors: u64,
    config_error: Option<String>,
    /// What could not be applied, by service; tried again.
    failed: BTreeMap<ServiceKey, String>,
    /// What else could not be applied.
    problems: Vec<String>,
    /// When what failed is tried again.
    retry: Option<Instant>,
    retired: report::Retired,
}

impl Agent {
    fn new(file: PathBuf, config: Config, datapath: Datapath) -> Result<Self> {
        let desired = model::from_file::desired(&config);
        let (destinations, wanted) = watch::channel(destinations(&config, &desired));
        let (pods, watched_pods) = watch::channel(BTreeSet::new());
        let (snapshots, _task) = Neighbours::spawn(wanted, watched_pods)?;
        let read = std::fs::read(&file).unwrap_or_default();
        Ok(Self {
            interfaces: Interfaces::new(&config),
            nat_exemption: NatExemption::new(&config.pin_path),
            file,
            config,
            read,
            desired,
            datapath,
            routes: Routes::default(),
            destinations,
            pods,
            devices: Devices::default(),
            snapshots,
            started: SystemTime::now(),
            generation: 0,
            applied: None,
            config_errors: 0,
            config_error: None,
            failed: BTreeMap::new(),
            problems: Vec::new(),
            retry: None,
            retired: report::Retired::default(),
        })
    }

    async fn run(&mut self, mut asked: mpsc::Receiver<Question>) -> Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        let mut watch = Watch::new(&self.file)?;
        tokio::select! {
            () = self.first_routes(&mut asked) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        self.converge();
        self.in_force();
        let mut look = tokio::time::interval(LOOK);
        loop {
            let wake = self.wake();
            tokio::select! {
                () = watch.changed() => self.reload(false),
                _ = hangup.recv() => self.reload(true),
                changed = self.snapshots.changed() => {
                    changed.context("watching the kernel's routes ended")?;
                    self.converge();
                }
                Some(question) = asked.recv() => self.answer(question),
                () = sleep_until(wake) => self.converge(),
                _ = look.tick() => if self.has_lost_something() {
                    self.converge();
                },
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tracing::info!(pins = %self.config.pin_path.display(), "stopping; the datapath goes on as it is");
        Ok(())
    }

    /// Wait until the kernel has said how every backend is reached, so that an adopted datapath loses no next hop.
    async fn first_routes(&mut self, asked: &mut mpsc::Receiver<Question>) {
        let wanted = destinations(&self.config, &self.desired);
        let patience = tokio::time::Instant::now() + FIRST_ROUTES;
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            let pods = self.watch_pods(&routes::own_addresses(&snapshot));
            if !snapshot.links.is_empty()
                && wanted.iter().all(|address| snapshot.paths.contains_key(address))
                && pods.iter().all(|pod| match snapshot.pods.get(pod) {
                    Some(Err(unreachable)) => !unreachable.is_pending(),
                    found => found.is_some(),
                })
            {
                return;
            }
            tokio::select! {
                changed = self.snapshots.changed() => {
                    // The loop that follows says what happened.
                    if changed.is_err() {
                        return;
                    }
                }
                Some(question) = asked.recv() => self.answer(question),
                () = tokio::time::sleep_until(patience) => {
                    tracing::warn!("the kernel has not said yet how every backend and pod is reached; going on without");
                    return;
                }
            }
        }
    }

    /// Whether the kernel or somebody else has taken away what nobody reports.
    fn has_lost_something(&mut self) -> bool {
        self.interfaces.lost_a_place(&self.datapath.pins)
            || self.datapath.tables.lost_a_device()
            || self.nat_exemption.lost()
    }

    /// When to look again without an event.
    fn wake(&self) -> Option<Instant> {
        [self.datapath.tables.due(), self.retry].into_iter().flatten().min()
    }

    /// Read the file again; `always` applies even what has not changed.
    fn reload(&mut self, always: bool) {
        let read = match std::fs::read(&self.file) {
            Ok(read) => read,
            Err(error) => {
                self.refuse(format!("{}: cannot be read: {error}", self.file.display()));
                return;
            }
        };
        if read == self.read && !always {
            // A file that was away and is back as it was is no error any more.
            if self.config_error.as_deref().is_some_and(|error| error.contains("cannot be read")) {
                self.config_error = None;
            }
            return;
        }
        self.read = read;
        match config::load(&self.file) {
            Ok(config) => self.accept(config),
            Err(error) => self.refuse(error.to_string()),
        }
    }

    fn refuse(&mut self, error: String) {
        if self.config_error.as_ref() == Some(&error) {
            return;
        }
        self.config_errors += 1;
        tracing::error!(generation = self.generation, "the last good configuration stays in force: {error}");
        self.config_error = Some(error);
    }

    fn accept(&mut self, config: Config) {
        for advice in config.advice() {
            tracing::warn!("{advice}");
        }
        if let Some(error) = needs_restart(&self.config, &config) {
            self.refuse(format!("{}: {error}", self.file.display()));
            return;
        }
        self.config_error = None;
        self.desired = model::from_file::desired(&config);
        self.interfaces.reconfigure(&config);
        self.config = config;
        self.destinations.send_if_modified(|there| {
            let wanted = destinations(&self.config, &self.desired);
            let modified = *there != wanted;
            *there = wanted;
            modified
        });
        self.converge();
        self.in_force();
    }

    /// Note that a configuration has come into force.
    fn in_force(&mut self) {
        self.generation += 1;
        self.applied = Some(SystemTime::now());
        let (generation, services) = (self.generation, self.desired.services.len());
        tracing::info!(generation, services, failed = self.failed.len(), "configuration applied");
    }

    fn roles(&self) -> HostRoles {
        HostRoles { edge: self.config.edge.is_some(), node: self.config.node.is_some() }
    }

    /// Bring the datapath to what is wanted, as far as it goes now.
    fn converge(&mut self) {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let now = Instant::now();
        self.datapath.tables.set_transition_max(self.desired.transition_max);
        self.datapath.tables.release(now);
        let actual = self.datapath.tables.actual();
        let routes = self.routes.resolve(&self.desired, &snapshot, &actual, &self.interfaces.edges(&snapshot));
        let own = routes::own_addresses(&snapshot);
        let pods = self.devices.resolve(&self.watch_pods(&own), &snapshot);
        let uplink_mtu = self.interfaces.uplink_mtu(&snapshot);
        let host = Host { roles: self.roles(), routes: &routes, own: &own, pods: &pods, uplink_mtu };
        let wanted = plan::wanted(&self.desired, &host);
        let failed = std::mem::take(&mut self.failed);
        let problems = std::mem::take(&mut self.problems);
        let steps = plan::steps(&actual, &wanted);
        if self.desired.has_pods() {
            self.interfaces.prepare_replies(&mut self.datapath, &snapshot);
        }
        for step in steps {
            self.carry_out(&step);
        }
        // What a node answers itself leaves the way that the routing table says.
        let ways = self.interfaces.nodes(&snapshot).into_iter().chain(snapshot.uplinks.iter().copied());
        self.datapath.tables.send_by(&ways.collect());
        self.datapath.tables.restore_devices();
        if let Err(error) = self.nat_exemption.apply(&wanted.replies, &wanted.internal, self.desired.nat_exemption) {
            self.problems.push(format!("{error:#}"));
        }
        // What is tried again and again is said once.
        for (key, error) in self.failed.iter().filter(|(key, error)| failed.get(key) != Some(error)) {
            let label = self.desired.services.get(key).map(|service| service.label(key));
            tracing::error!(service = label, "not applied: {error}");
        }
        for error in self.problems.iter().filter(|error| !problems.contains(error)) {
            tracing::error!("not applied: {error}");
        }
        self.interfaces.attach(&mut self.datapath, &snapshot, self.desired.has_pods());
        let failing = !self.failed.is_empty() || !self.problems.is_empty() || self.interfaces.has_problem();
        self.retry = failing.then(|| now + RETRY);
    }

    /// Let the devices of this host's pods be looked for; returns the pods.
    fn watch_pods(&self, own: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let pods = if self.config.node.is_some() { self.desired.local_pods(own) } else { BTreeSet::new() };
        self.pods.send_if_modified(|there| {
            let modified = *there != pods;
            if modified {
                there.clone_from(&pods);
            }
            modified
        });
        pods
    }

    fn carry_out(&mut self, step: &Step) {
        let leaving = report::leaving(step, &self.datapath);
        // The clock of each step by itself: what it retires waits its full time, however long the round takes.
        let Err(error) = self.datapath.tables.apply(step, Instant::now()) else {
            tracing::debug!(?step, "applied");
            self.retired.keep(step, leaving);
            return;
        };
        let error = format!("{error:#}");
        match step {
            Step::PutService(key, _) | Step::RemoveService(key) => {
                self.failed.insert(*key, error);
            }
            _ => self.problems.push(error),
        }
    }
}

/// What cannot be changed under a running agent.
fn needs_restart(before: &Config, after: &Config) -> Option<String> {
    let changed = |field: &str| Some(format!("{field} cannot change while the agent runs: restart it"));
    if before.pin_path != after.pin_path {
        return changed("pinPath");
    }
    if before.metrics_listen != after.metrics_listen {
        return changed("metrics.listen");
    }
    if before.maps != after.maps {
        return Some("maps cannot change while the agent runs: `beeline detach`, then start it again".to_owned());
    }
    if before.node.is_none() && after.node.is_some() {
        return Some("node cannot be added while the agent runs: `beeline detach`, then start it again".to_owned());
    }
    if let Some(role) = role_without_interface(after) {
        return Some(format!("{role}.interfaces: name at least one interface for an agent"));
    }
    (!after.has_role()).then(|| "neither edge nor node is there any more".to_owned())
}

/// A role that no interface has: `simulate` needs none, an agent does.
fn role_without_interface(config: &Config) -> Option<&'static str> {
    let edge = config.edge.as_ref().is_some_and(|edge| edge.interfaces.is_empty());
    let node = config.node.as_ref().is_some_and(|node| node.interfaces.is_empty());
    if edge { Some("edge") } else { node.then_some("node") }
}

/// Where next hops are needed: an edge sends to backends, a node to nobody.
fn destinations(config: &Config, desired: &Desired) -> BTreeSet<IpAddr> {
    if config.edge.is_some() { desired.backend_addresses() } else { BTreeSet::new() }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// Remove everything that an agent pinned: programs leave their interfaces, maps are freed, neighbours are released.
///
/// # Errors
/// An agent is running, or something cannot be removed.
pub async fn detach(pin_path: &Path) -> Result<String> {
    Server::forget(&socket_path(pin_path))?;
    let removed = datapath::pins::Pins::new(pin_path).remove()?;
    let neighbours = if removed.links > 0 { crate::neighbours::release().await? } else { 0 };
    let path = pin_path.display();
    let pins = match (removed.links, removed.maps) {
        (0, 0) => format!("nothing is pinned under {path}"),
        (links, maps) => {
            format!("{path}: {links} programs left their interfaces, {maps} maps and {neighbours} neighbours released")
        }
    };
    let mut exemption = NatExemption::new(pin_path);
    Ok(if exemption.remove()? { format!("{pins}; nftables' table {} removed", exemption.table()) } else { pins })
}
