//! What a network card does before XDP sees a packet.

use super::{Device, Facts, Finding, Level, interfaces};
use crate::config::Config;

const CHECK: &str = "offloads";

/// Each interface that has or shall have a program.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    interfaces(config)
        .into_iter()
        .filter_map(|name| facts.device(name))
        .flat_map(|device| {
            let found = one(device, facts);
            if found.is_empty() { vec![Finding::ok(CHECK, device.name.clone())] } else { found }
        })
        .collect()
}

fn one(device: &Device, facts: &Facts) -> Vec<Finding> {
    let name = &device.name;
    let Some(offloads) = device.offloads else {
        return vec![Finding::new(Level::Unseen, CHECK, format!("{name}: the driver does not tell its offloads"), "")];
    };
    let mut findings = Vec::new();
    let vlans: Vec<_> = facts.devices.iter().filter(|other| other.vlan_of == Some(device.index)).collect();
    if offloads.vlan {
        let off = format!("ethtool -K {name} rxvlan off");
        findings.push(if let Some(vlan) = vlans.first() {
            let what =
                format!("{name}: VLAN offload hides tags from XDP: packets of {} look like those of {name}", vlan.name);
            Finding::new(Level::Problem, CHECK, what, off)
        } else {
            let what = format!("{name}: VLAN offload is on; it matters once there are VLANs on {name}");
            Finding::new(Level::Ok, CHECK, what, off)
        });
    }
    if offloads.lro {
        let what = format!("{name}: LRO joins packets before XDP sees them");
        findings.push(Finding::new(Level::Problem, CHECK, what, format!("ethtool -K {name} lro off")));
    }
    if device.kind == "veth" {
        // A veth hands over what its other end sent: checksums that are still to be finished (tried on 6.18).
        let what =
            format!("{name}: a veth as uplink: XDP sees unfinished checksums unless the other end finishes them");
        findings.push(Finding::new(Level::Warning, CHECK, what, "at its other end: ethtool -K DEVICE tx off"));
    }
    findings
}
