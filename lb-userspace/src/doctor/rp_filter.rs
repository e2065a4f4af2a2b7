//! The reverse path filter of IPv4 (RFC 3704; Documentation/networking/ip-sysctl.rst): it drops packets whose source
//! would be answered by another interface, and sees decapsulated packets.

use super::{Facts, Finding, Level, node_interfaces, sysctl};
use crate::config::Config;

const CHECK: &str = "rp_filter";
/// Strict mode; 0 is off, 2 loose.
const STRICT: i64 = 1;

/// The larger of an interface's value and that of `all` counts.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    node_interfaces(config).iter().filter_map(|name| Some(one(name, facts.device(name)?.index, facts))).collect()
}

fn one(name: &str, index: u32, facts: &Facts) -> Finding {
    let of = |name: &str| facts.number(&format!("net/ipv4/conf/{name}/rp_filter"));
    let (Some(own), Some(all)) = (of(name), of("all")) else {
        return Finding::new(Level::Unseen, CHECK, format!("{name}: its setting cannot be read"), "");
    };
    if own.max(all) != STRICT {
        let mode = if own.max(all) == 0 { "off" } else { "loose" };
        return Finding::ok(CHECK, format!("{name}: {mode}"));
    }
    let ways = &facts.uplinks[0];
    let (level, why) = match (ways.contains(&index), ways.len()) {
        (true, 1) => {
            let what = format!("{name}: strict, and every client is answered by {name}");
            return Finding::ok(CHECK, what);
        }
        // Which of them a client is answered by depends on metrics, rules and other routes.
        (true, _) => (Level::Warning, format!("clients that are not answered by {name} are dropped")),
        (false, 0) => (Level::Warning, format!("clients that no route by {name} answers are dropped")),
        (false, _) => (Level::Problem, format!("clients are dropped, since no default route is by {name}")),
    };
    // Loose mode (2) wins over `all` = 1, since the larger of both counts; 0 does not.
    Finding::new(level, CHECK, format!("{name}: strict: {why}"), sysctl(&["net", "ipv4", "conf", name, "rp_filter"], 2))
}
