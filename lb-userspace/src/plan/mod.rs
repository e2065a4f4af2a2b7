//! From what is wanted and what is there to the changes between them, in an order in which nothing ever points at
//! nothing. Pure functions.

mod pods;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::address::{Address, Family, family_of};
use lb_common::maps::{Dispatch, NextHop, ServiceKey};

pub use pods::{LOOPBACK, PodDevice, PodSpec, ReplyKey, ReplySpec};
pub use steps::{Actual, Step, steps};

use crate::model::{Algorithm, Backend, Delivery, Desired, PodKey, Prefix, TunnelSource};
use pods::Pods;

/// How this host gets to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The backend is this host.
    Local,
    /// By a next hop; `source` is the address that the kernel would send from.
    Via {
        /// MACs, interface and MTU.
        next_hop: NextHop,
        /// The outer source.
        source: IpAddr,
    },
    /// Not at all, now; `source` is the outer source that was used last.
    Unreachable {
        /// The last outer source.
        source: Option<IpAddr>,
    },
}

/// The roles of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostRoles {
    /// It forwards VIPs' packets.
    pub edge: bool,
    /// It decapsulates.
    pub node: bool,
}

/// What the maps should hold, resolved for this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Seed of hash and tables.
    pub hash_seed: u64,
    /// The services.
    pub services: BTreeMap<ServiceKey, ServiceSpec>,
    /// Next hops of backends that have one.
    pub next_hops: BTreeMap<IpAddr, NextHop>,
    /// Addresses of this host that tunnels may end at.
    pub tunnel_addresses: BTreeSet<IpAddr>,
    /// Outer sources that are accepted.
    pub trusted: BTreeSet<Prefix>,
    /// The internal networks: pods' replies to them are not rewritten. True for a pod of this host, whose packets may
    /// not come back in a tunnel.
    pub internal: BTreeMap<Prefix, bool>,
    /// What becomes of the replies of this host's pods.
    pub replies: BTreeMap<ReplyKey, ReplySpec>,
    /// What the MSS of a SYN-ACK is lowered to over IPv4 and over IPv6, in bytes; 0: it is not.
    pub mss: [u16; 2],
}

/// This host, as far as the plan depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// Its roles.
    pub roles: HostRoles,
    /// How it gets to the backends.
    pub routes: &'a BTreeMap<IpAddr, Route>,
    /// Its own addresses.
    pub own: &'a BTreeSet<IpAddr>,
    /// Where its pods are, by their addresses; a pod that is not here has no live device.
    pub pods: &'a BTreeMap<IpAddr, PodDevice>,
    /// The smallest MTU of the node's uplinks, in bytes; `None` while it is not known.
    pub uplink_mtu: Option<u32>,
}

/// A service as the maps hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// How the table is built.
    pub algorithm: Algorithm,
    /// Number of slots.
    pub slots: u32,
    /// Whether the source alone is hashed.
    pub source_affinity: bool,
    /// The backends, by address; a backend's place is its rank in this order.
    pub backends: BTreeMap<IpAddr, BackendSpec>,
    /// The pods of this host; a pod's place is its rank in this order. `None`: delivery to the host, or this host is no
    /// node.
    pub pods: Option<BTreeMap<PodKey, PodSpec>>,
}

/// A backend as the maps hold it, but for its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Orders it in every slot.
    pub rank: u32,
    /// How much it may own.
    pub share: u32,
    /// Whether it runs our node program.
    pub agent: bool,
    /// How packets get there.
    pub dispatch: Dispatch,
    /// Outer source, with the bits of `entropy` clear.
    pub source: Address,
    /// Bits of the last 32 of the outer source that the flow hash fills, in network order.
    pub entropy: u32,
}

/// Resolve the desired state for this host.
#[must_use]
pub fn wanted(desired: &Desired, host: &Host<'_>) -> Wanted {
    let Host { roles, routes, own, .. } = *host;
    let vips = desired.vips();
    let pods = if roles.node { Pods::new(desired, host) } else { Pods::default() };
    let services = desired.services.iter().map(|(key, service)| {
        let backends = service.backends.iter().map(|(address, backend)| {
            (*address, backend_spec(address, backend, routes.get(address), &desired.tunnel_source))
        });
        let spec = ServiceSpec {
            algorithm: service.algorithm,
            slots: service.slots,
            source_affinity: service.source_affinity,
            // A host that is no edge needs to know the VIPs, the ports and its own pods alone.
            backends: if roles.edge { backends.collect() } else { BTreeMap::new() },
            pods: (roles.node && service.delivery == Delivery::Pod).then(|| pods.specs(key, service, host)),
        };
        (*key, spec)
    });
    let services = services.collect();
    let next_hops = routes.iter().filter_map(|(address, route)| match route {
        Route::Via { next_hop, .. } => Some((*address, *next_hop)),
        Route::Local | Route::Unreachable { .. } => None,
    });
    Wanted {
        hash_seed: desired.hash_seed,
        services,
        next_hops: if roles.edge { next_hops.collect() } else { BTreeMap::new() },
        tunnel_addresses: if roles.node { own.difference(&vips).copied().collect() } else { BTreeSet::new() },
        trusted: if roles.node { desired.trusted_sources.clone() } else { BTreeSet::new() },
        internal: pods.internal,
        replies: pods.replies,
        mss: pods.mss,
    }
}

fn backend_spec(address: &IpAddr, backend: &Backend, route: Option<&Route>, sources: &TunnelSource) -> BackendSpec {
    let (dispatch, source, entropy) = tunnel(address, route, sources);
    BackendSpec { rank: backend.rank, share: backend.share, agent: backend.agent, dispatch, source, entropy }
}

/// Dispatch, outer source and entropy mask towards a backend.
fn tunnel(address: &IpAddr, route: Option<&Route>, sources: &TunnelSource) -> (Dispatch, Address, u32) {
    let family = family_of(address);
    let dispatch = match (route, family) {
        (Some(Route::Local), _) => return (Dispatch::Local, Address::default(), 0),
        (_, Family::V4) => Dispatch::Ipv4,
        (_, Family::V6) => Dispatch::Ipv6,
    };
    let prefix = match family {
        Family::V4 => sources.ipv4,
        Family::V6 => sources.ipv6,
    };
    if let Some(Prefix { address, length }) = prefix {
        let host_bits = 8 * family.address_len() as u32 - u32::from(length);
        let mask = u32::MAX.checked_shr(32 - host_bits.min(32)).unwrap_or(0);
        return (dispatch, address.into(), mask.to_be());
    }
    let source = match route {
        Some(Route::Via { source, .. } | Route::Unreachable { source: Some(source) }) => Address::from(*source),
        _ => Address::default(),
    };
    (dispatch, source, 0)
}

#[cfg(test)]
mod tests;
