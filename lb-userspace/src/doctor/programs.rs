//! The programs on interfaces: whether they are there, and whose they are.

use super::{Facts, Finding, Level, delivers_to_pods, interfaces, node_interfaces};
use crate::config::Config;

const CHECK: &str = "programs";
/// How names of our programs begin.
const OURS: &str = "beeline_";

/// XDP on every interface; with delivery to pods, TC egress wherever replies may leave.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<_> = interfaces(config).into_iter().map(|name| xdp(name, facts)).collect();
    if delivers_to_pods(config) {
        findings.extend(node_interfaces(config).iter().filter_map(|name| egress(name, facts)));
        findings.extend(other_ways(config, facts));
    }
    findings
}

fn xdp(name: &str, facts: &Facts) -> Finding {
    let Some(device) = facts.device(name) else {
        let way_out = "`ip link` lists the interfaces; correct `interfaces` in the configuration";
        return Finding::new(Level::Problem, CHECK, format!("there is no interface {name}"), way_out);
    };
    match &device.xdp {
        None => {
            let way_out = "start the agent: beeline agent --config FILE";
            Finding::new(Level::Problem, CHECK, format!("{name}: no XDP program: nothing is forwarded"), way_out)
        }
        Some(xdp) => match &xdp.name {
            Err(error) => Finding::new(Level::Unseen, CHECK, format!("{name}: XDP program {}: {error}", xdp.id), ""),
            Ok(program) if !program.starts_with(OURS) => {
                let what = format!("{name}: the XDP program {program} (id {}) is not ours", xdp.id);
                let way_out = format!("ip link set dev {name} xdp off, or leave {name} out of the configuration");
                Finding::new(Level::Problem, CHECK, what, way_out)
            }
            Ok(program) if xdp.generic => {
                let what =
                    format!("{name}: {program} in generic mode: slower, after the kernel has made its own buffer");
                Finding::new(Level::Warning, CHECK, what, "a driver with XDP of its own")
            }
            Ok(program) => Finding::ok(CHECK, format!("{name}: {program} in driver mode")),
        },
    }
}

fn egress(name: &str, facts: &Facts) -> Option<Finding> {
    let device = facts.device(name)?;
    let ours = |program: &String| program.starts_with(OURS);
    Some(match &device.egress {
        Err(error) => {
            let what = format!("{name}: TCX programs cannot be listed: {error}");
            Finding::new(
                Level::Unseen,
                CHECK,
                what,
                "below Linux 6.6: `tc filter show dev DEVICE egress` lists clsact's",
            )
        }
        Ok(programs) if programs.first().is_some_and(ours) => {
            Finding::ok(CHECK, format!("{name}: {} is first on egress", programs[0]))
        }
        Ok(programs) if programs.iter().any(ours) => {
            let what = format!("{name}: {} runs before ours on egress and may keep replies from it", programs[0]);
            Finding::new(Level::Warning, CHECK, what, "restart the agent: it takes the first place again")
        }
        Ok(_) => {
            let what = format!("{name}: no program of ours on egress: replies leave with the pods' addresses");
            Finding::new(Level::Problem, CHECK, what, "start the agent: beeline agent --config FILE")
        }
    })
}

fn other_ways(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut ways: Vec<_> =
        [true, false].into_iter().flat_map(|v4| facts.default_routes(v4)).filter_map(|route| route.interface).collect();
    ways.sort_unstable();
    ways.dedup();
    let others = facts
        .devices
        .iter()
        .filter(|device| ways.contains(&device.index) && !node_interfaces(config).contains(&device.name));
    others
        .map(|device| {
            let what = format!("{}: a default route leaves by it: replies there are not rewritten", device.name);
            Finding::new(Level::Warning, CHECK, what, format!("add {} to node.interfaces", device.name))
        })
        .collect()
}
