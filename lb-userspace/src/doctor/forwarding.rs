//! Forwarding: packets for pods are routed from the uplink to the pods' devices.

use super::{Facts, Finding, Level, delivers_to_pods, node_interfaces};
use crate::config::Config;
use crate::model::Delivery;

const CHECK: &str = "forwarding";

/// Both families that services with pods have, on each uplink.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    if !delivers_to_pods(config) {
        return Vec::new();
    }
    let has = |v4| {
        config
            .services
            .iter()
            .filter(|service| service.delivery == Delivery::Pod)
            .any(|service| service.address.is_ipv4() == v4)
    };
    let families = [("ipv4", has(true)), ("ipv6", has(false))];
    let wanted = families.into_iter().filter(|(_, wanted)| *wanted).map(|(family, _)| family);
    wanted.flat_map(|family| node_interfaces(config).iter().map(move |name| one(family, name, facts))).collect()
}

fn one(family: &str, name: &str, facts: &Facts) -> Finding {
    match facts.number(&format!("net/{family}/conf/{name}/forwarding")) {
        None => Finding::new(
            Level::Unseen,
            CHECK,
            format!("{name}: net.{family}.conf.{name}.forwarding cannot be read; is there such an interface?"),
            "",
        ),
        Some(0) => {
            let all = if family == "ipv4" { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
            let what = format!("{name}: {family} forwarding is off: packets do not reach pods");
            Finding::new(Level::Problem, CHECK, what, format!("sysctl -w {all}=1"))
        }
        Some(_) => Finding::ok(CHECK, format!("{name}: {family} on")),
    }
}
