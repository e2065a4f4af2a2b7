//! Machines that a fixture file's packets run through: the decisions on the host, and the programs in the kernel. Both
//! have their maps from the agent's own reader, model and plan.

mod host;
mod kernel;

use anyhow::{Context, Error};
use beeline_tests::packet::fixture::{FixtureFile, Outcome, Role};
use lb_userspace::config::{self, Config};
use lb_userspace::plan::HostRoles;
use lb_userspace::simulate::Surroundings;

pub(crate) use host::Host;
pub(crate) use kernel::Kernel;

/// Something that packets run through, one after the other.
pub(crate) trait Machine: Sized {
    /// A machine with the maps of a fixture file.
    fn new(file: &FixtureFile) -> Result<Self, Error>;
    /// What becomes of a frame. The roles of packets that come in are the file's; replies go out by the same maps.
    fn run(&mut self, role: Role, frame: &[u8]) -> Result<Outcome, Error>;
}

fn config(file: &FixtureFile) -> Result<Config, Error> {
    config::parse(&file.config, "config").context("config")
}

fn surroundings(file: &FixtureFile) -> Surroundings {
    let roles = match file.role {
        Role::Edge => HostRoles { edge: true, node: false },
        Role::Node | Role::Return => HostRoles { edge: false, node: true },
        Role::EdgeAndNode => HostRoles { edge: true, node: true },
    };
    let addresses = &file.node_addresses;
    Surroundings {
        source_mac: file.next_hop.source_mac.0,
        next_hop_mac: file.next_hop.destination_mac.0,
        mtu: file.next_hop.mtu,
        node_addresses: (!addresses.is_empty()).then(|| addresses.iter().copied().collect()),
        ..Surroundings::new(roles)
    }
}
