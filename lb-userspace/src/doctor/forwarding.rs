//! Forwarding: packets for pods are routed from the uplink to the pods' devices.

use super::{Facts, Finding, Level, node_interfaces, pod_families, sysctl};
use crate::config::Config;

const CHECK: &str = "forwarding";

/// Both families that services with pods have.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let [v4, v6] = pod_families(config);
    let mut findings = Vec::new();
    for name in node_interfaces(config).iter().filter(|name| facts.device(name).is_some()) {
        if v4 {
            findings.push(v4_on(name, facts));
        }
        if v6 {
            findings.push(v6_on(name, facts));
        }
    }
    findings
}

/// That of the interface that a packet comes in by counts (`ip_route_input_slow`, Linux 6.18).
fn v4_on(name: &str, facts: &Facts) -> Finding {
    let all = facts.number("net/ipv4/ip_forward");
    match facts.number(&format!("net/ipv4/conf/{name}/forwarding")) {
        None => Finding::new(Level::Unseen, CHECK, format!("{name}: IPv4: the setting cannot be read"), ""),
        Some(0) => {
            // Writing ip_forward sets every interface, and nothing where it is 1 already (`devinet_sysctl_forward`).
            let setting = if all == Some(1) {
                &["net", "ipv4", "conf", name, "forwarding"][..]
            } else {
                &["net", "ipv4", "ip_forward"]
            };
            Finding::new(
                Level::Problem,
                CHECK,
                format!("{name}: IPv4 off: no packet reaches a pod"),
                sysctl(setting, 1),
            )
        }
        Some(_) => Finding::ok(CHECK, format!("{name}: IPv4 on")),
    }
}

/// `all` counts, or since Linux 6.17 `force_forwarding` of the interface that a packet comes in by (`ip6_forward`).
fn v6_on(name: &str, facts: &Facts) -> Finding {
    let forced = facts.number(&format!("net/ipv6/conf/{name}/force_forwarding"));
    match facts.number("net/ipv6/conf/all/forwarding") {
        None => Finding::new(Level::Unseen, CHECK, format!("{name}: IPv6: the setting cannot be read"), ""),
        Some(0) if forced != Some(1) => {
            let way_out = sysctl(&["net", "ipv6", "conf", "all", "forwarding"], 1);
            Finding::new(Level::Problem, CHECK, format!("{name}: IPv6 off: no packet reaches a pod"), way_out)
        }
        Some(_) => Finding::ok(CHECK, format!("{name}: IPv6 on")),
    }
}
