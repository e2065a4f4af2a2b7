//! Machines that a fixture file's packets run through: the decisions on the host, and the programs in the kernel.

pub(crate) mod host;

use std::collections::BTreeSet;
use std::net::IpAddr;

use beeline_tests::packet::fixture::{FixtureFile, Role};
use lb_common::stage::Roles;

/// The roles of a file's packets.
pub(crate) fn roles(file: &FixtureFile) -> Roles {
    match file.role {
        Role::Edge => Roles { edge: true, node: false },
        Role::Node => Roles { edge: false, node: true },
        Role::EdgeAndNode => Roles { edge: true, node: true },
    }
}

/// The host's own addresses as a node.
pub(crate) fn own_addresses(file: &FixtureFile, backends: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    match (file.role, file.node_addresses.is_empty()) {
        (Role::Edge, _) => BTreeSet::new(),
        (Role::Node | Role::EdgeAndNode, true) => backends,
        (Role::Node | Role::EdgeAndNode, false) => file.node_addresses.iter().copied().collect(),
    }
}
