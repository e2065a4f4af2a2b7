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
    // Without a VLAN on it, a tagged frame is for nobody here.
    if offloads.vlan
        && let Some(vlan) = facts.devices.iter().find(|other| other.vlan_of == Some(device.index))
    {
        let what =
            format!("{name}: VLAN offload hides tags from XDP: packets of {} look like those of {name}", vlan.name);
        findings.push(Finding::new(Level::Problem, CHECK, what, format!("ethtool -K {name} rxvlan off")));
    }
    if offloads.lro {
        let what = format!("{name}: LRO joins packets before XDP sees them");
        findings.push(Finding::new(Level::Problem, CHECK, what, format!("ethtool -K {name} lro off")));
    }
    findings.extend(unfinished(device, facts));
    findings
}

/// A veth hands over what its other end sent, with checksums that are still to be finished (tried on 6.18).
fn unfinished(device: &Device, facts: &Facts) -> Option<Finding> {
    if device.kind != "veth" {
        return None;
    }
    let name = &device.name;
    let peer = facts.devices.iter().find(|other| Some(other.index) == device.peer);
    let peer = peer.and_then(|peer| Some((peer, peer.offloads?)));
    Some(match peer {
        Some((_, offloads)) if !offloads.checksums => return None,
        Some((peer, _)) => {
            let what = format!("{name}: a veth, whose other end {} does not finish checksums", peer.name);
            Finding::new(Level::Warning, CHECK, what, format!("ethtool -K {} tx off", peer.name))
        }
        None => {
            let what = format!("{name}: a veth, whose other end must finish checksums and cannot be seen from here");
            Finding::new(Level::Remark, CHECK, what, "at its other end: ethtool -K DEVICE tx off")
        }
    })
}
