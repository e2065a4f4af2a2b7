//! The agent, and what delivery to the host needs around it.

use std::net::IpAddr;

use super::{Facts, Finding, Level, sysctl};
use crate::config::Config;
use crate::model::Delivery;
use crate::status::Status;

const CHECK: &str = "agent";
/// What VIPs on hosts are called.
const VIPS: &str = "VIPs";

/// What the agent says, and where VIPs are.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = match &facts.agent {
        Err(silence) if silence.forbidden => vec![Finding::new(Level::Unseen, CHECK, silence.why.clone(), "")],
        Err(silence) => {
            let way_out = "beeline agent --config FILE: nothing follows changes until it runs";
            vec![Finding::new(Level::Warning, CHECK, silence.why.clone(), way_out)]
        }
        Ok(status) => says(status),
    };
    if config.node.is_some() {
        findings.extend(vips(config, facts));
    }
    findings
}

fn says(status: &Status) -> Vec<Finding> {
    let mut findings: Vec<_> = status
        .first_problems()
        .map(|problem| Finding::new(Level::Problem, CHECK, problem, "beeline status has the rest of the picture"))
        .collect();
    let remarks = status.interfaces.iter().filter_map(|interface| interface.remark.as_deref());
    findings.extend(remarks.map(|remark| Finding::new(Level::Remark, CHECK, remark, "")));
    if status.problems.is_empty() {
        let what = if status.ready { "runs" } else { "runs, and is not ready yet" };
        findings.push(Finding::ok(CHECK, format!("{what} (pid {}, {})", status.pid, status.config.file.display())));
    }
    findings
}

/// VIPs of services that this host itself serves.
fn vips(config: &Config, facts: &Facts) -> Vec<Finding> {
    let here = |service: &&crate::config::ServiceConfig| {
        service.delivery == Delivery::Host
            && service.backends.iter().any(|backend| facts.addresses.contains(&backend.address))
    };
    let mut findings = Vec::new();
    for service in config.services.iter().filter(here) {
        let vip = service.address;
        findings.push(if !facts.addresses.contains(&vip) {
            let bits = if vip.is_ipv4() { 32 } else { 128 };
            let what = format!("{}: {vip} is no address of this host: its packets are not delivered", service.name);
            Finding::new(Level::Problem, VIPS, what, format!("ip address add {vip}/{bits} dev lo"))
        } else if let Some(device) = answers_arp(vip, facts) {
            let what = format!("{}: {vip} is of {device}'s network, where this host answers ARP for it", service.name);
            let setting = |name| sysctl(&["net", "ipv4", "conf", "all", name], 1);
            let way_out = format!("{}; {}", setting("arp_ignore"), setting("arp_announce").replace("=1", "=2"));
            Finding::new(Level::Warning, VIPS, what, way_out)
        } else {
            Finding::ok(VIPS, format!("{vip} is here"))
        });
    }
    findings
}

/// The interface on whose own network a VIP is and where the kernel tells others so. The larger of an interface's
/// `arp_ignore` and that of `all` counts (ip-sysctl.rst).
fn answers_arp(vip: IpAddr, facts: &Facts) -> Option<&str> {
    let on_link = |index| {
        let mut routes =
            facts.routes.iter().filter(|route| route.unicast && route.on_link && route.interface == Some(index));
        routes.any(|route| route.prefix.length > 0 && route.prefix.contains(&vip))
    };
    let ignores = |name: &str| facts.number(&format!("net/ipv4/conf/{name}/arp_ignore")).is_some_and(|value| value > 0);
    let device = facts.devices.iter().find(|device| on_link(device.index))?;
    (vip.is_ipv4() && !ignores("all") && !ignores(&device.name)).then_some(device.name.as_str())
}
