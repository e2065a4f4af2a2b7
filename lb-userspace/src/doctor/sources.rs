//! Outer sources of the edge: what they are taken from has to be this host's in the eyes of the network.

use super::{Facts, Finding, Level};
use crate::config::Config;

const CHECK: &str = "tunnelSource";

/// Whether some route of this host covers or is in the prefix. What other hosts think cannot be seen from here.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let Some(edge) = &config.edge else { return Vec::new() };
    let prefixes = [edge.tunnel_source.ipv4, edge.tunnel_source.ipv6];
    let known = |prefix: &crate::model::Prefix| {
        facts.routes.iter().any(|route| {
            route.prefix.length > 0
                && (route.prefix.contains(&prefix.address) || prefix.contains(&route.prefix.address))
        })
    };
    prefixes
        .into_iter()
        .flatten()
        .map(|prefix| {
            let shown = format!("{}/{}", prefix.address, prefix.length);
            if known(&prefix) {
                return Finding::ok(
                    CHECK,
                    format!("{shown}: a route is about it; what routers think of it (uRPF) cannot be seen"),
                );
            }
            Finding::new(
                Level::Warning,
                CHECK,
                format!("{shown}: no route here is about it: ICMP errors go astray, and routers may drop it (uRPF)"),
                format!("ip route add blackhole {shown}, and announce it to the routers from here"),
            )
        })
        .collect()
}
