//! The programs on interfaces: whether they are there, and whose they are.

use std::collections::BTreeSet;

use super::read::{Device, Program, capability};
use super::{Facts, Finding, Level, delivers_to_pods, edge_interfaces, interfaces, node_interfaces, pod_families};
use crate::config::Config;

const CHECK: &str = "programs";
/// How names of an agent's programs begin, and that of `beeline pass-program`, which belongs to none.
const BEELINE: &str = "beeline_";
const PASS: &str = "beeline_pass";

/// One on the way in of every interface; with delivery to pods, one on the way out wherever replies may leave.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Whose they are is told by pins.
    let seen = facts.may(capability::BPF) && facts.may(capability::NET_ADMIN);
    if seen && let Err(error) = &facts.pins {
        findings.push(Finding::new(Level::Unseen, CHECK, format!("whose they are: {error}"), ""));
    }
    for name in interfaces(config) {
        let Some(device) = facts.device(name) else {
            let way_out = "`ip link` lists the interfaces; correct `interfaces` in the configuration";
            findings.push(Finding::new(Level::Problem, CHECK, format!("there is no interface {name}"), way_out));
            continue;
        };
        if device.xdp.is_none() && device.ingress.as_ref().is_ok_and(Vec::is_empty) {
            let what = format!("{name}: no program of ours on the way in: nothing is taken from it");
            findings.push(Finding::new(Level::Problem, CHECK, what, missing(facts)));
        } else if seen && facts.pins.is_ok() {
            findings.push(way_in(config, device, facts));
        }
        if seen && facts.pins.is_ok() && delivers_to_pods(config) && node_interfaces(config).contains(&device.name) {
            findings.push(way_out(device, facts));
        }
    }
    if delivers_to_pods(config) {
        findings.extend(other_ways(config, facts));
    }
    findings
}

/// What to do where a program of ours is missing.
fn missing(facts: &Facts) -> &'static str {
    if facts.agent.is_ok() {
        "the agent runs and puts it back within 30 s; if not, `beeline status` says why"
    } else {
        "start the agent: beeline agent --config FILE"
    }
}

fn way_in(config: &Config, device: &Device, facts: &Facts) -> Finding {
    let name = &device.name;
    let on_tc = device.ingress.as_ref().is_ok_and(|programs| programs.iter().any(|program| program.ours));
    match &device.xdp {
        Some(xdp) if xdp.program.ours && xdp.generic => {
            let what =
                format!("{name}: {} in generic mode: slower, on packets that the kernel has copied", xdp.program.name);
            Finding::new(Level::Warning, CHECK, what, "a driver with XDP of its own")
        }
        Some(xdp) if xdp.program.ours => Finding::ok(CHECK, format!("{name}: {} on XDP", xdp.program.name)),
        // A node's program makes way for another's on XDP.
        _ if on_tc => on_ingress(device),
        Some(xdp) if xdp.program.name.starts_with(BEELINE) && !xdp.program.name.starts_with(PASS) => {
            let what = format!("{name}: {} is of another agent: no pin under our pinPath is of it", xdp.program.name);
            Finding::new(Level::Problem, CHECK, what, "beeline detach --pin-path ITS, or set pinPath to its")
        }
        Some(xdp) if edge_interfaces(config).contains(name) => {
            let what = format!("{name}: XDP is taken by {}, which is not ours", xdp.program.name);
            let way_out = format!("ip link set dev {name} xdp off, or leave {name} out of the configuration");
            Finding::new(Level::Problem, CHECK, what, way_out)
        }
        Some(xdp) => {
            let what = format!("{name}: XDP is taken by {}, and no program of ours is on TC ingress", xdp.program.name);
            Finding::new(Level::Problem, CHECK, what, missing(facts))
        }
        None => match &device.ingress {
            Err(error) => Finding::new(Level::Unseen, CHECK, format!("{name}: TC ingress: {error}"), ""),
            Ok(_) => {
                let what = format!("{name}: no program of ours on the way in: nothing is taken from it");
                Finding::new(Level::Problem, CHECK, what, missing(facts))
            }
        },
    }
}

fn on_ingress(device: &Device) -> Finding {
    let name = &device.name;
    let programs = device.ingress.as_deref().unwrap_or_default();
    let Some(first) = programs.first() else { return Finding::ok(CHECK, name.clone()) };
    if !first.ours {
        let what = format!("{name}: on TC ingress {} runs before ours and may keep tunnel packets from it", first.name);
        return Finding::new(Level::Warning, CHECK, what, "restart the agent: it takes the first place again");
    }
    match &device.xdp {
        Some(xdp) => {
            let what =
                format!("{name}: {} on TC ingress, which is slower: XDP is taken by {}", first.name, xdp.program.name);
            Finding::new(Level::Remark, CHECK, what, "")
        }
        None => {
            let what = format!("{name}: {} on TC ingress, which is slower, and XDP is free", first.name);
            Finding::new(Level::Remark, CHECK, what, "restart the agent: it takes XDP")
        }
    }
}

fn way_out(device: &Device, facts: &Facts) -> Finding {
    let name = &device.name;
    let ours = |program: &Program| program.ours;
    match &device.egress {
        Err(error) => Finding::new(Level::Unseen, CHECK, format!("{name}: TC egress: {error}"), ""),
        Ok(programs) if programs.first().is_some_and(ours) => {
            Finding::ok(CHECK, format!("{name}: {} first on TC egress", programs[0].name))
        }
        Ok(programs) if programs.iter().any(ours) => {
            let what =
                format!("{name}: on TC egress {} runs before ours and may keep replies from it", programs[0].name);
            Finding::new(Level::Warning, CHECK, what, "restart the agent: it takes the first place again")
        }
        Ok(_) => {
            let what = format!("{name}: no program of ours on TC egress: replies leave with the pods' addresses");
            Finding::new(Level::Problem, CHECK, what, missing(facts))
        }
    }
}

fn other_ways(config: &Config, facts: &Facts) -> Vec<Finding> {
    let families = facts.uplinks.iter().zip(pod_families(config)).filter(|(_, wanted)| *wanted);
    let ways: BTreeSet<_> = families.flat_map(|(uplinks, _)| uplinks).collect();
    let others = facts
        .devices
        .iter()
        .filter(|device| ways.contains(&device.index) && !node_interfaces(config).contains(&device.name));
    others
        .map(|device| {
            let what = format!("{}: a default route leaves by it, and replies are not rewritten there", device.name);
            Finding::new(Level::Warning, CHECK, what, format!("add {} to node.interfaces", device.name))
        })
        .collect()
}
