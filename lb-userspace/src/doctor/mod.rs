//! The traps of a host, looked for: what is wrong, where, and the way out. Nothing on the host is changed.
//!
//! [`read`] collects [`Facts`]; each check is a pure function over them, one file a subject.

mod agent;
mod conntrack;
mod forwarding;
mod kernel;
mod mtu;
mod offloads;
mod programs;
pub mod read;
mod rp_filter;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

pub use self::read::{Device, Facts, Route, Rules, Silence};
use crate::config::Config;
use crate::model::Delivery;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// Nothing is wrong; it is good to know, and may be done better.
    Remark,
    /// It could not be looked at.
    Unseen,
    /// It breaks traffic in some cases.
    Warning,
    /// It breaks traffic.
    Problem,
}

/// What one check says of one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The check's name.
    pub check: &'static str,
    /// What was found, and where.
    pub what: String,
    /// What to do about it: a command or a setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_out: Option<String>,
}

impl Finding {
    fn new(level: Level, check: &'static str, what: impl Into<String>, way_out: impl Into<String>) -> Self {
        let way_out = way_out.into();
        Self { level, check, what: what.into(), way_out: (!way_out.is_empty()).then_some(way_out) }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, check, what, "")
    }
}

/// Runs every check, in an order that people read in.
#[must_use]
pub fn examine(config: &Config, facts: &Facts) -> Vec<Finding> {
    let checks = [
        kernel::check,
        programs::check,
        rp_filter::check,
        forwarding::check,
        mtu::check,
        offloads::check,
        conntrack::check,
        sources::check,
        agent::check,
    ];
    checks.iter().flat_map(|check| check(config, facts)).collect()
}

/// How many findings there are of each level.
#[must_use]
pub fn count(findings: &[Finding]) -> BTreeMap<Level, usize> {
    let mut counts = BTreeMap::new();
    for finding in findings {
        *counts.entry(finding.level).or_default() += 1;
    }
    counts
}

/// The interfaces of the edge role.
fn edge_interfaces(config: &Config) -> &[String] {
    config.edge.as_ref().map_or(&[], |edge| &edge.interfaces)
}

/// The interfaces of the node role.
fn node_interfaces(config: &Config) -> &[String] {
    config.node.as_ref().map_or(&[], |node| &node.interfaces)
}

/// The interfaces of both roles, each once.
fn interfaces(config: &Config) -> Vec<&str> {
    let mut names: Vec<_> = edge_interfaces(config).iter().chain(node_interfaces(config)).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether this host is a node and some service is delivered to pods.
fn delivers_to_pods(config: &Config) -> bool {
    pod_families(config).contains(&true)
}

/// Whether services are delivered to pods of this host, which then is a node: IPv4, IPv6.
fn pod_families(config: &Config) -> [bool; 2] {
    let of = |v4| {
        let mut services = config.services.iter().filter(|service| service.delivery == Delivery::Pod);
        config.node.is_some() && services.any(|service| service.address.is_ipv4() == v4)
    };
    [of(true), of(false)]
}

/// The command that writes a setting. A part with a dot in it, as in a VLAN's name, asks for slashes (sysctl(8)).
fn sysctl(parts: &[&str], value: i64) -> String {
    let between = if parts.iter().any(|part| part.contains('.')) { "/" } else { "." };
    format!("sysctl -w {}={value}", parts.join(between))
}
