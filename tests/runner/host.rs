//! The decisions of lb-common over plain collections, filled by the agent's own model and plan.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Error};
use beeline_tests::packet::fixture::{FixtureFile, NextHop as FixtureNextHop, Outcome};
use lb_common::maps::{NextHop, ServiceId};
use lb_common::stage::Roles;
use lb_common::verdict::Action;
use lb_userspace::datapath::host::{HostFrame, HostMaps};
use lb_userspace::datapath::store::Capacity;
use lb_userspace::datapath::tables::Tables;
use lb_userspace::plan::{self, HostRoles, Route};
use lb_userspace::{config, model::from_file};

/// The interface that packets come by and leave by.
const INTERFACE: u32 = 1;
/// Room for the services of any fixture file.
const CAPACITY: Capacity = Capacity { services: 64, log2_backends: 10, log2_slots: 18, next_hops: 64, counters: 1024 };

/// A host with the maps of one fixture file.
pub(crate) struct Host {
    maps: HostMaps,
    roles: Roles,
    services: BTreeMap<ServiceId, String>,
    backends: BTreeMap<u32, IpAddr>,
}

impl Host {
    /// Makes the maps.
    pub(crate) fn new(file: &FixtureFile) -> Result<Self, Error> {
        let config = config::parse(&file.config, "config").context("config")?;
        let desired = from_file::desired(&config);
        let roles = super::roles(file);
        let own = super::own_addresses(file, desired.backend_addresses());
        let route = |address: IpAddr| match own.contains(&address) {
            true => Route::Local,
            false => Route::Via { next_hop: next_hop(&file.next_hop), source: edge_address(address) },
        };
        let routes = desired.backend_addresses().into_iter().map(|address| (address, route(address))).collect();
        let host_roles = HostRoles { edge: roles.edge, node: roles.node };
        let wanted = plan::wanted(&desired, host_roles, &routes, &own);

        let mut tables = Tables::new(HostMaps::new(CAPACITY));
        for step in plan::steps(&tables.actual(), &wanted) {
            tables.apply(&step, Instant::now())?;
        }
        let (mut services, mut backends) = (BTreeMap::new(), BTreeMap::new());
        for (key, installed) in tables.installed() {
            services.insert(installed.id, desired.services[key].label(key));
            if let Some(first) = installed.first_backend() {
                backends.extend((first..).zip(installed.backends.keys().copied()));
            }
        }
        Ok(Self { maps: tables.store().clone(), roles, services, backends })
    }

    /// Runs one packet.
    pub(crate) fn run(&mut self, bytes: &[u8]) -> Outcome {
        let mut frame = HostFrame::new(bytes, INTERFACE);
        let (reason, trail) = self.maps.run(self.roles, &mut frame);
        let chosen = |number: u64| u32::try_from(number).ok()?.checked_sub(1);
        Outcome {
            verdict: match reason.action() {
                Action::Pass => "pass",
                Action::Drop => "drop",
                Action::Send | Action::Answer => "tx",
            }
            .into(),
            reason: reason.name().into(),
            service: chosen(trail.service).map(|id| self.services[&id].clone()),
            backend: chosen(trail.backend).map(|index| self.backends[&index]),
            bytes: if reason.action() == Action::Drop { bytes.to_vec() } else { frame.bytes().to_vec() },
        }
    }
}

fn next_hop(hop: &FixtureNextHop) -> NextHop {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&hop.destination_mac.0);
    macs[6..].copy_from_slice(&hop.source_mac.0);
    NextHop { macs, interface: INTERFACE, mtu: hop.mtu, ..NextHop::default() }
}

/// The edge's own address towards a backend, as `beeline simulate` makes it up.
fn edge_address(backend: IpAddr) -> IpAddr {
    match backend {
        IpAddr::V4(_) => IpAddr::from([192, 0, 2, 1]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    }
}
