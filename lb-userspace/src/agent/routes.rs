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
    ) -> BTreeMap<IpAddr, Route> {
        let addresses = desired.backend_addresses();
        self.sources.retain(|address, _| addresses.contains(address));
        addresses.into_iter().map(|address| (address, self.route(address, snapshot, actual))).collect()
    }

    fn route(&mut self, address: IpAddr, snapshot: &Snapshot, actual: &Actual) -> Route {
        let pending = match snapshot.paths.get(&address) {
            Some(Ok(path)) => {
                self.sources.insert(address, path.source);
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
