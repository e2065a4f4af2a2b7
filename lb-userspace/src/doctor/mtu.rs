//! Room for tunnel headers. Clients are taken to send packets of up to 1,500 bytes.

use super::{Facts, Finding, Level, edge_interfaces, interfaces, node_interfaces};
use crate::config::{Config, MssClamp};

const CHECK: &str = "mtu";
/// The largest packet of a client, in bytes.
const CLIENT: u32 = 1500;
/// Two outer IPv6 headers (RFC 8200), in bytes; two of IPv4 take half.
const HEADERS: u32 = 80;

/// Each interface by itself, then an uplink of a node against the devices of pods.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in interfaces(config) {
        let Some(device) = facts.device(name) else { continue };
        findings.push(one(config, name, device.mtu));
    }
    if super::delivers_to_pods(config)
        && let Some(uplink) =
            node_interfaces(config).iter().filter_map(|name| facts.device(name)).min_by_key(|device| device.mtu)
        && let Some(pod) =
            facts.devices.iter().filter(|device| facts.leads_to_pod(config, device)).min_by_key(|device| device.mtu)
        && pod.mtu < uplink.mtu.min(CLIENT)
    {
        // TCP of a pod offers an MSS for its own device; UDP is fragmented, or answered by ICMP.
        let what =
            format!("{}: {} bytes, {} has {}: longer UDP is fragmented", pod.name, pod.mtu, uplink.name, uplink.mtu);
        let way_out = format!("the MTU of {} and of the pod's end: {}", pod.name, uplink.mtu);
        findings.push(Finding::new(Level::Remark, CHECK, what, way_out));
    }
    findings
}

fn one(config: &Config, name: &str, mtu: u32) -> Finding {
    if mtu >= CLIENT + HEADERS {
        let jumbo = if mtu >= 9000 { ", jumbo frames" } else { "" };
        return Finding::ok(CHECK, format!("{name}: {mtu} bytes{jumbo}: {CLIENT} of a client fit with two headers"));
    }
    let clamp = config.node.as_ref().map(|node| node.mss_clamp);
    let edge = edge_interfaces(config).iter().any(|edge| edge == name);
    if super::delivers_to_pods(config) && !edge && matches!(clamp, Some(MssClamp::Auto | MssClamp::Bytes(_))) {
        return Finding::ok(CHECK, format!("{name}: {mtu} bytes: mssClamp keeps TCP to what fits"));
    }
    if edge {
        let what = format!("{name}: {mtu} bytes: clients learn by ICMP what fits with a header");
        return Finding::ok(CHECK, what);
    }
    if !super::delivers_to_pods(config) {
        return Finding::ok(CHECK, format!("{name}: {mtu} bytes: clients learn from the edge what fits"));
    }
    Finding::new(
        Level::Warning,
        CHECK,
        format!("{name}: {mtu} bytes, and mssClamp is off: TCP hangs where ICMP errors get lost"),
        format!("node.mssClamp: auto, or an MTU of {} between edges and nodes", CLIENT + HEADERS),
    )
}
