//! The agent, and what delivery to the host needs around it.

use super::{Facts, Finding, Level};
use crate::config::Config;
use crate::model::Delivery;

const CHECK: &str = "agent";

/// What the agent says, and where VIPs are.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = match &facts.agent {
        Err(error) => vec![Finding::new(
            Level::Warning,
            CHECK,
            error.clone(),
            "beeline agent --config FILE: nothing follows changes until it runs",
        )],
        Ok(status) if status.problems.is_empty() => vec![Finding::ok(CHECK, format!("pid {}", status.pid))],
        Ok(status) => status
            .problems
            .iter()
            .map(|problem| Finding::new(Level::Problem, CHECK, problem.clone(), "beeline status says more"))
            .collect(),
    };
    if config.node.is_some() {
        findings.extend(vips(config, facts));
    }
    findings
}

fn vips(config: &Config, facts: &Facts) -> Vec<Finding> {
    let here = |service: &&crate::config::ServiceConfig| {
        service.delivery == Delivery::Host
            && service.backends.iter().any(|backend| facts.addresses.contains(&backend.address))
    };
    let mut findings = Vec::new();
    for service in config.services.iter().filter(here) {
        let vip = service.address;
        if !facts.addresses.contains(&vip) {
            let bits = if vip.is_ipv4() { 32 } else { 128 };
            let what =
                format!("{}: the VIP {vip} is no address of this host: its packets are not delivered", service.name);
            findings.push(Finding::new(Level::Problem, CHECK, what, format!("ip address add {vip}/{bits} dev lo")));
        } else if vip.is_ipv4() {
            let of = |name: &str| facts.number(&format!("net/ipv4/conf/all/{name}"));
            if of("arp_ignore") == Some(0) || of("arp_announce") == Some(0) {
                let what = format!(
                    "{}: this host answers ARP for {vip}; it matters if the VIP is of its own network",
                    service.name
                );
                let way_out = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2";
                findings.push(Finding::new(Level::Ok, CHECK, what, way_out));
            }
        }
    }
    findings
}
