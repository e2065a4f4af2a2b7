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
                    format!(
                        "{shown} is known here; whether routers drop it as a source (uRPF) cannot be seen from here"
                    ),
                );
            }
            Finding::new(
                Level::Warning,
                CHECK,
                format!(
                    "{shown}: no route of this host is about it: ICMP errors for it go astray, and uRPF may drop it"
                ),
                format!("announce {shown} to the routers from here, with `ip route add blackhole {shown}`"),
            )
        })
        .collect()
}
