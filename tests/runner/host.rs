//! The decisions of lb-common over plain collections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Error};
use beeline_tests::packet::fixture::{FixtureFile, Outcome, Role};
use lb_common::maps::ServiceId;
use lb_common::stage::Roles;
use lb_common::verdict::Action;
use lb_userspace::datapath::host::{HostFrame, HostMaps};
use lb_userspace::datapath::store::Capacity;
use lb_userspace::datapath::tables::Tables;
use lb_userspace::model::from_file;
use lb_userspace::plan;

use super::{Machine, config, surroundings};

/// The interface that packets come by and leave by: the one that BPF_PROG_TEST_RUN says.
const INTERFACE: u32 = 1;
/// Room for the services of any fixture file.
const CAPACITY: Capacity = Capacity {
    services: 64,
    log2_backends: 10,
    log2_slots: 18,
    next_hops: 64,
    counters: 1024,
    log2_pods: 10,
    log2_pod_cells: 14,
    pod_counters: 1024,
    pod_devices: 64,
    replies: 64,
};

/// What the clock of a host shows: longer than any time of grace.
const UPTIME_NS: u64 = 3_600_000_000_000;

/// The maps of one host, and the names of what is in them.
pub(crate) struct Host {
    maps: HostMaps,
    roles: Roles,
    services: BTreeMap<ServiceId, String>,
    backends: BTreeMap<u32, IpAddr>,
    pods: BTreeMap<u32, IpAddr>,
}

impl Machine for Host {
    fn new(file: &FixtureFile) -> Result<Self, Error> {
        let desired = from_file::desired(&config(file)?);
        let surroundings = surroundings(file);
        let mut tables = Tables::new(HostMaps::new(CAPACITY));
        for step in plan::steps(&tables.actual(), &surroundings.wanted(&desired)) {
            tables.apply(&step, Instant::now())?;
        }
        tables.let_grace_pass();
        let (mut services, mut backends, mut pods) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (key, installed) in tables.installed() {
            let service = desired.services.get(key).context("a service that the configuration has not")?;
            services.insert(installed.id, service.label(key));
            if let Some(first) = installed.first_backend() {
                backends.extend((first..).zip(installed.backends.keys().copied()));
            }
            if let Some(first) = installed.first_pod() {
                pods.extend((first..).zip(installed.pods.keys().map(|pod| pod.address)));
            }
        }
        let roles = Roles { edge: surroundings.roles.edge, node: surroundings.roles.node };
        let mut maps = tables.store().clone();
        maps.advance(UPTIME_NS);
        Ok(Self { maps, roles, services, backends, pods })
    }

    fn run(&mut self, role: Role, bytes: &[u8]) -> Result<Outcome, Error> {
        let mut frame = HostFrame::new(bytes, INTERFACE);
        let (reason, trail) = match role {
            Role::Return => self.maps.run_return(&mut frame),
            Role::Edge | Role::Node | Role::EdgeAndNode => self.maps.run(self.roles, &mut frame),
        };
        let chosen = |number: u64| u32::try_from(number).ok()?.checked_sub(1);
        // As `simulate` says it: what is dropped is shown as it came.
        let as_it_came = reason.action() == Action::Drop;
        Ok(Outcome {
            verdict: match reason.action() {
                Action::Pass => "pass",
                Action::Drop => "drop",
                Action::Send | Action::Answer => "tx",
            }
            .into(),
            reason: reason.name().into(),
            service: chosen(trail.service).and_then(|id| self.services.get(&id).cloned()),
            backend: chosen(trail.backend).and_then(|index| self.backends.get(&index).copied()),
            pod: chosen(trail.pod).and_then(|index| self.pods.get(&index).copied()),
            bytes: if as_it_came { bytes.to_vec() } else { frame.bytes().to_vec() },
        })
    }
}
