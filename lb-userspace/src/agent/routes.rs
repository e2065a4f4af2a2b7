//! What the kernel knows, in the plan's terms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::maps::NextHop;

use crate::model::Desired;
use crate::neighbours::{Snapshot, Unreachable, Via};
use crate::plan::{Actual, Route};

/// The way to each backend, with a memory of the last one.
#[derive(Debug, Default)]
pub(super) struct Routes {
    sources: BTreeMap<IpAddr, IpAddr>,
}

impl Routes {
    /// The way to each backend. One that the kernel has not looked up yet, or whose neighbour is being asked, keeps the
    /// next hop that is in the maps.
    pub(super) fn resolve(
        &mut self,
        desired: &Desired,
        snapshot: &Snapshot,
        actual: &Actual,
        edges: &BTreeSet<u32>,
    ) -> BTreeMap<IpAddr, Route> {
        let addresses = desired.backend_addresses();
        self.sources.retain(|address, _| addresses.contains(address));
        addresses.into_iter().map(|address| (address, self.route(address, snapshot, actual, edges))).collect()
    }

    fn route(&mut self, address: IpAddr, snapshot: &Snapshot, actual: &Actual, edges: &BTreeSet<u32>) -> Route {
        let pending = match snapshot.paths.get(&address) {
            Some(Ok(path)) => {
                self.sources.insert(address, path.source);
                if cannot_send(&path.via, snapshot, edges).is_some() {
                    return Route::Unreachable { source: Some(path.source) };
                }
                return match &path.via {
                    Via::Local => Route::Local,
                    Via::Device { interface, source_mac, destination_mac, mtu, .. } => {
                        let next_hop = next_hop(*interface, *source_mac, *destination_mac, *mtu);
                        Route::Via { next_hop, source: path.source }
                    }
                };
            }
            None | Some(Err(Unreachable::NeighbourPending { .. })) => true,
            Some(Err(_)) => false,
        };
        let source = self.sources.get(&address).copied();
        match (pending, actual.next_hops.get(&address), source) {
            (true, Some(hop), Some(source)) => Route::Via { next_hop: *hop, source },
            _ => Route::Unreachable { source },
        }
    }
}

/// Kinds of devices that XDP cannot redirect to: their drivers have no `ndo_xdp_xmit` (kernel 6.18).
const WITHOUT_XDP_TRANSMIT: [&str; 11] =
    ["bridge", "dummy", "geneve", "ifb", "ipvlan", "macvlan", "macvtap", "team", "vlan", "vrf", "vxlan"];

/// Why packets cannot be sent this way, though the kernel could. By a device that packets come in by they always can.
pub(super) fn cannot_send(via: &Via, snapshot: &Snapshot, edges: &BTreeSet<u32>) -> Option<String> {
    let Via::Device { interface, name, .. } = via else { return None };
    let kind = &snapshot.links.get(name)?.kind;
    if edges.contains(interface) || !WITHOUT_XDP_TRANSMIT.contains(&kind.as_str()) {
        return None;
    }
    Some(format!(
        "is reached by {name}, a {kind} device, which XDP cannot send by: give it a route by the device below, or by one \
         of edge.interfaces"
    ))
}

fn next_hop(interface: u32, source: [u8; 6], destination: [u8; 6], mtu: u32) -> NextHop {
    let [a, b, c, d, e, f] = destination;
    let [g, h, i, j, k, l] = source;
    NextHop { macs: [a, b, c, d, e, f, g, h, i, j, k, l], interface, mtu, reserved: [0; 3] }
}

/// The host's addresses that tunnels may end at: those that other hosts can send to.
pub(super) fn own_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let reachable = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    };
    snapshot.addresses.iter().filter(reachable).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::neighbours::Link;

    #[test]
    fn a_device_that_xdp_cannot_send_by_is_no_way() {
        let link = Link {
            index: 7,
            mac: Some([2; 6]),
            mtu: 1500,
            enabled: true,
            carrier: true,
            up: true,
            kind: "vlan".into(),
            namespace: None,
            master: None,
        };
        let links = BTreeMap::from([("eth0.5".to_owned(), link)]);
        let snapshot = Snapshot { links, ..Snapshot::default() };
        let via = Via::Device {
            interface: 7,
            name: "eth0.5".into(),
            source_mac: [2; 6],
            destination_mac: [2; 6],
            mtu: 1500,
            gateway: None,
        };
        let why = cannot_send(&via, &snapshot, &BTreeSet::new()).unwrap();
        assert!(why.starts_with("is reached by eth0.5, a vlan device"), "{why}");
        // Back out of the device that it came in by.
        assert_eq!(cannot_send(&via, &snapshot, &BTreeSet::from([7])), None);
        assert_eq!(cannot_send(&Via::Local, &snapshot, &BTreeSet::new()), None);
    }
}
