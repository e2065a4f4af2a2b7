//! From what is wanted and what is there to the changes between them, in an order in which nothing ever points at
//! nothing. Pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::address::{Address, Family, family_of};
use lb_common::maps::{Dispatch, NextHop, ServiceKey};

use crate::model::{Algorithm, Desired, Prefix, TunnelSource};

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

/// Resolve the desired state for this host. `own` are its addresses.
#[must_use]
pub fn wanted(desired: &Desired, roles: HostRoles, routes: &BTreeMap<IpAddr, Route>, own: &BTreeSet<IpAddr>) -> Wanted {
    let vips = desired.vips();
    let services = desired.services.iter().map(|(key, service)| {
        let backends = service.backends.iter().map(|(address, backend)| {
            let (dispatch, source, entropy) = tunnel(address, routes.get(address), &desired.tunnel_source);
            let spec = BackendSpec {
                rank: backend.rank,
                share: backend.share,
                agent: backend.agent,
                dispatch,
                source,
                entropy,
            };
            (*address, spec)
        });
        let spec = ServiceSpec {
            algorithm: service.algorithm,
            slots: service.slots,
            source_affinity: service.source_affinity,
            // A host that is no edge needs to know the VIPs and ports alone.
            backends: if roles.edge { backends.collect() } else { BTreeMap::new() },
        };
        (*key, spec)
    });
    let next_hops = routes.iter().filter_map(|(address, route)| match route {
        Route::Via { next_hop, .. } => Some((*address, *next_hop)),
        Route::Local | Route::Unreachable { .. } => None,
    });
    Wanted {
        hash_seed: desired.hash_seed,
        services: services.collect(),
        next_hops: if roles.edge { next_hops.collect() } else { BTreeMap::new() },
        tunnel_addresses: if roles.node { own.difference(&vips).copied().collect() } else { BTreeSet::new() },
        trusted: if roles.node { desired.trusted_sources.clone() } else { BTreeSet::new() },
    }
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

/// What the maps hold, as far as it is known: a view, because it is looked at for every change and may be large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actual<'a> {
    /// Seed of hash and tables; `None` before the first one was written or when another agent wrote it.
    pub hash_seed: Option<u64>,
    /// The services; `None` for one that another agent left, or another seed, and nobody has compared yet.
    pub services: BTreeMap<ServiceKey, Option<&'a ServiceSpec>>,
    /// Next hops in use.
    pub next_hops: &'a BTreeMap<IpAddr, NextHop>,
    /// Addresses that tunnels may end at.
    pub tunnel_addresses: &'a BTreeSet<IpAddr>,
    /// Outer sources that are accepted.
    pub trusted: &'a BTreeSet<Prefix>,
}

/// One change of the maps. Each leaves them whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keys of the flow hash.
    SetSeed(u64),
    /// Backends' next hops; `None` for a backend that has lost its own.
    SetNextHops(BTreeMap<IpAddr, Option<NextHop>>),
    /// Accept tunnels at an address of this host.
    AddTunnelAddress(IpAddr),
    /// Accept an outer source.
    Trust(Prefix),
    /// A new service, or new backends, slots or settings of one.
    PutService(ServiceKey, ServiceSpec),
    /// Forget a service.
    RemoveService(ServiceKey),
    /// Next hops of backends that nothing is sent to any more.
    ForgetNextHops(BTreeSet<IpAddr>),
    /// Refuse an outer source.
    Distrust(Prefix),
    /// No longer accept tunnels at an address.
    RemoveTunnelAddress(IpAddr),
}

/// The steps from what is there to what is wanted: first what is pointed at, then what points at it, removal in reverse.
#[must_use]
pub fn steps(actual: &Actual<'_>, wanted: &Wanted) -> Vec<Step> {
    let mut steps = Vec::new();
    let reseeded = actual.hash_seed != Some(wanted.hash_seed);
    if reseeded {
        steps.push(Step::SetSeed(wanted.hash_seed));
    }
    let (next_hops, gone) = changed_next_hops(actual, wanted);
    if !next_hops.is_empty() {
        steps.push(Step::SetNextHops(next_hops));
    }
    steps.extend(wanted.tunnel_addresses.difference(actual.tunnel_addresses).map(|a| Step::AddTunnelAddress(*a)));
    steps.extend(wanted.trusted.difference(actual.trusted).map(|p| Step::Trust(*p)));
    for (key, spec) in &wanted.services {
        let unchanged = actual.services.get(key).is_some_and(|there| *there == Some(spec));
        if reseeded || !unchanged {
            steps.push(Step::PutService(*key, spec.clone()));
        }
    }
    steps.extend(actual.services.keys().filter(|k| !wanted.services.contains_key(k)).map(|k| Step::RemoveService(*k)));
    if !gone.is_empty() {
        steps.push(Step::ForgetNextHops(gone));
    }
    steps.extend(actual.trusted.difference(&wanted.trusted).map(|p| Step::Distrust(*p)));
    steps.extend(actual.tunnel_addresses.difference(&wanted.tunnel_addresses).map(|a| Step::RemoveTunnelAddress(*a)));
    steps
}

/// Next hops that change before the services do, and those that go after them: a backend that was reached until now
/// must be until no service sends to it.
fn changed_next_hops(actual: &Actual<'_>, wanted: &Wanted) -> (BTreeMap<IpAddr, Option<NextHop>>, BTreeSet<IpAddr>) {
    let lost: BTreeSet<_> = actual.next_hops.keys().filter(|a| !wanted.next_hops.contains_key(a)).copied().collect();
    let backends = wanted.services.values().flat_map(|service| &service.backends);
    // Those that packets should take and cannot. The others are no backends any more, or this host.
    let unreachable: BTreeSet<_> = backends
        .filter(|(address, backend)| backend.dispatch != Dispatch::Local && lost.contains(address))
        .map(|(address, _)| *address)
        .collect();
    let new = wanted.next_hops.iter().filter(|(a, hop)| actual.next_hops.get(a) != Some(hop));
    let new = new.map(|(a, hop)| (*a, Some(*hop)));
    let changed = unreachable.iter().map(|a| (*a, None)).chain(new).collect();
    (changed, lost.difference(&unreachable).copied().collect())
}

#[cfg(test)]
mod tests;
