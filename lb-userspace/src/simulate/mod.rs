//! The real programs on packets from anywhere: each one through BPF_PROG_TEST_RUN (kernel 4.12), with maps of its own
//! made from a configuration. Looks at no interface and changes nothing on the host.

pub mod capture;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, TestRunResult};
use lb_common::maps::{NextHop, ServiceId, Trace};
use lb_common::verdict::{Action, Reason};

use crate::config::{Config, MapSizes};
use crate::datapath::kernel::KernelMaps;
use crate::datapath::object::{self, Program};
use crate::datapath::tables::Tables;
use crate::model::{self, Desired};
use crate::plan::{self, Host, HostRoles, PodDevice, Route, Wanted};

/// What stands in for the network around the host.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The roles of the interface.
    pub roles: HostRoles,
    /// Source MAC of packets that are sent.
    pub source_mac: [u8; 6],
    /// Destination MAC of packets that are sent.
    pub next_hop_mac: [u8; 6],
    /// MTU towards every backend and of the node's uplinks, in bytes.
    pub mtu: u32,
    /// This host's own addresses as a node; `None`: every backend's.
    pub node_addresses: Option<BTreeSet<IpAddr>>,
}

impl Surroundings {
    /// As documented for `simulate`.
    #[must_use]
    pub const fn new(roles: HostRoles) -> Self {
        Self {
            roles,
            source_mac: [2, 0, 0, 0, 0, 1],
            next_hop_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            node_addresses: None,
        }
    }

    /// What the maps should hold for a configuration in these surroundings.
    #[must_use]
    pub fn wanted(&self, desired: &Desired) -> Wanted {
        let backends = desired.backend_addresses();
        let own = match (&self.node_addresses, self.roles.node) {
            (Some(addresses), true) => addresses.clone(),
            (None, true) => backends.clone(),
            (_, false) => BTreeSet::new(),
        };
        let routes: BTreeMap<_, _> = backends.into_iter().map(|a| (a, self.route(a, &own))).collect();
        // Every pod of this host is there. Looking into its namespace would be looking at the host that runs this.
        let device = PodDevice { interface: LOOPBACK, namespace: None };
        let pods = desired.local_pods(&own).into_iter().map(|pod| (pod, device)).collect();
        let host = Host { roles: self.roles, routes: &routes, own: &own, pods: &pods, uplink_mtu: Some(self.mtu) };
        plan::wanted(desired, &host)
    }

    fn route(&self, backend: IpAddr, own: &BTreeSet<IpAddr>) -> Route {
        if own.contains(&backend) {
            return Route::Local;
        }
        let [a, b, c, d, e, f] = self.next_hop_mac;
        let [g, h, i, j, k, l] = self.source_mac;
        let macs = [a, b, c, d, e, f, g, h, i, j, k, l];
        let source = if backend.is_ipv4() { IpAddr::V4(EDGE_V4) } else { IpAddr::V6(EDGE_V6) };
        Route::Via { next_hop: NextHop { macs, interface: LOOPBACK, mtu: self.mtu, reserved: [0; 3] }, source }
    }
}

/// The edge's own IPv4 address, where `tunnelSource` gives none (RFC 5737 documentation range).
const EDGE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The edge's own IPv6 address, likewise (RFC 3849).
const EDGE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The interface that BPF_PROG_TEST_RUN says a frame came by when it is told none: the loopback device, always 1.
const LOOPBACK: u32 = 1;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `tx`, `pass`, `drop` or `redirect`.
    pub verdict: &'static str,
    /// Why.
    pub reason: Reason,
    /// `name/port`, where one was chosen.
    pub service: Option<String>,
    /// Where one was chosen.
    pub backend: Option<IpAddr>,
    /// Where one was chosen, by the node.
    pub pod: Option<IpAddr>,
    /// The resulting frame; for a drop, as it came.
    pub bytes: Vec<u8>,
}

/// Programs and maps of one host.
pub struct Simulator {
    object: Ebpf,
    program: Program,
    tables: Tables<KernelMaps>,
    labels: BTreeMap<ServiceId, String>,
    /// Whether the programs for replies are loaded: only where there are some.
    has_return: bool,
}

impl Simulator {
    /// Load the programs, and fill maps of their own from a configuration.
    ///
    /// # Errors
    /// No right to use BPF, or the configuration does not fit its maps.
    pub fn new(config: &Config, surroundings: &Surroundings) -> Result<Self> {
        let HostRoles { edge, node } = surroundings.roles;
        let program = Program::for_roles(edge, node).context("a role is needed: edge, node or both")?;
        let desired = model::from_file::desired(config);
        let mut object = object::load(&sizes(config, &desired), node, None, true)?;
        let mut tables = Tables::new(KernelMaps::new(&mut object)?);
        let wanted = surroundings.wanted(&desired);
        for step in plan::steps(&tables.actual(), &wanted) {
            tables.apply(&step, Instant::now())?;
        }
        tables.let_grace_pass();
        object::program(&mut object, program)?;
        object::link_stages(&mut object)?;
        let labels = tables.installed().iter().filter_map(|(key, there)| {
            let service = desired.services.get(key)?;
            Some((there.id, service.label(key)))
        });
        let labels = labels.collect();
        Ok(Self { object, program, tables, labels, has_return: false })
    }

    /// Run one frame that comes in through the program of the roles.
    ///
    /// # Errors
    /// The kernel does not take the frame.
    pub fn run(&mut self, frame: &[u8]) -> Result<Outcome> {
        self.let_answer()?;
        let program = object::program(&mut self.object, self.program)?;
        let (action, out) = test_run(frame, |options| program.test_run(options))?;
        let reason = self.reason()?;
        let verdict = match (action, reason.action()) {
            (XDP_PASS, Action::Pass) => "pass",
            (XDP_DROP, Action::Drop) => "drop",
            (XDP_TX, Action::Send | Action::Answer) => "tx",
            (XDP_REDIRECT, Action::Send) => "redirect",
            (action, _) => bail!("the program says {} and answers with action {action}", reason.name()),
        };
        self.outcome(verdict, reason, frame, out)
    }

    /// Run one frame that leaves this host through the program for pods' replies. Needs the role of a node.
    ///
    /// # Errors
    /// The kernel does not take the frame: TC's test takes no more than a page less what it puts around a frame (3,520
    /// bytes on x86-64, kernel 6.18).
    pub fn run_return(&mut self, frame: &[u8]) -> Result<Outcome> {
        if !self.has_return {
            object::link_tc_stages(&mut self.object)?;
            self.has_return = true;
        }
        let program = object::classifier(&mut self.object, Program::Return)?;
        let (action, out) = test_run(frame, |options| program.test_run(options))?;
        let reason = self.reason()?;
        let verdict = match (action, reason.action()) {
            (TC_ACT_UNSPEC, Action::Pass) => "pass",
            (TC_ACT_SHOT, Action::Drop) => "drop",
            (action, _) => bail!("the program says {} and answers with action {action}", reason.name()),
        };
        self.outcome(verdict, reason, frame, out)
    }

    /// Answers are rationed by time, and a capture's packets run faster than they came.
    fn let_answer(&mut self) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::Error::new(error).context(path))?;
        let map = self.object.map_mut("ANSWERS").context("no map ANSWERS")?;
        let mut answers: PerCpuArray<_, [u64; 2]> = map.try_into().context("ANSWERS")?;
        answers.set(0, PerCpuValues::try_from(vec![[0; 2]; cpus])?, 0).context("resetting the ration of answers")
    }

    fn reason(&self) -> Result<Reason> {
        let index = u32::try_from(self.tables.store().trace()?.reason).ok();
        index.and_then(Reason::from_index).context("an unknown reason")
    }

    fn outcome(&self, verdict: &'static str, reason: Reason, frame: &[u8], out: Vec<u8>) -> Result<Outcome> {
        let trace = self.tables.store().trace()?;
        Ok(Outcome {
            verdict,
            reason,
            service: self.service(&trace),
            backend: self.backend(&trace),
            pod: self.pod(&trace),
            bytes: if reason.action() == Action::Drop { frame.to_vec() } else { out },
        })
    }

    fn service(&self, trace: &Trace) -> Option<String> {
        let id = u32::try_from(trace.service.checked_sub(1)?).ok()?;
        self.labels.get(&id).cloned()
    }

    fn backend(&self, trace: &Trace) -> Option<IpAddr> {
        let id = u32::try_from(trace.service.checked_sub(1)?).ok()?;
        let index = u32::try_from(trace.backend.checked_sub(1)?).ok()?;
        let there = self.tables.installed().values().find(|there| there.id == id)?;
        let place = index.checked_sub(there.first_backend()?)?;
        there.backends.keys().nth(place as usize).copied()
    }

    fn pod(&self, trace: &Trace) -> Option<IpAddr> {
        let id = u32::try_from(trace.service.checked_sub(1)?).ok()?;
        let index = u32::try_from(trace.pod.checked_sub(1)?).ok()?;
        let there = self.tables.installed().values().find(|there| there.id == id)?;
        let place = index.checked_sub(there.first_pod()?)?;
        there.pods.keys().nth(place as usize).map(|pod| pod.address)
    }
}

/// Run a frame; the program's action and the frame that comes out.
fn test_run(
    frame: &[u8],
    run: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, ProgramError>,
) -> Result<(u32, Vec<u8>)> {
    if frame.len() < ETHERNET_HEADER {
        bail!("{} bytes are shorter than an Ethernet header", frame.len());
    }
    let mut out = vec![0; frame.len() + ROOM];
    let result = run(TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() });
    let result = result.with_context(|| format!("the kernel does not take a frame of {} bytes", frame.len()))?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// Bytes of an Ethernet header, which BPF_PROG_TEST_RUN wants at least.
const ETHERNET_HEADER: usize = 14;
/// How much longer a frame may get: an outer IPv6 header, with room to spare.
const ROOM: usize = 128;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
/// The next program is asked: -1.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;

/// Maps just large enough: a configuration for a large host is not to cost a large host's memory here.
fn sizes(config: &Config, desired: &Desired) -> MapSizes {
    let services = desired.services.len() as u32;
    let of = |service: &model::Service| service.backends.values().map(|backend| backend.pods.len()).sum::<usize>();
    let pods: usize = desired.services.values().map(of).sum();
    let entries = |service: &model::Service| service.backends.len().max(of(service)).next_power_of_two();
    let backends: usize = desired.services.values().map(entries).sum();
    let slots: u64 = desired.services.values().map(|service| u64::from(service.slots)).sum();
    MapSizes {
        // Each pod may have replies of its own.
        services: services.max(pods as u32).max(1),
        backends: (backends as u32).max(1),
        // A node's tables are in a map of half as many.
        slots: u32::try_from(2 * slots.next_power_of_two()).unwrap_or(config.maps.slots).max(64),
        flows: config.maps.flows.min(4096),
    }
}
