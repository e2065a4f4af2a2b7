//! The changes between what is there and what is wanted, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::maps::{Dispatch, NextHop, ServiceKey};

use super::{ReplyKey, ReplySpec, ServiceSpec, Wanted};
use crate::model::Prefix;

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
    /// The internal networks.
    pub internal: &'a BTreeMap<Prefix, bool>,
    /// What becomes of pods' replies.
    pub replies: &'a BTreeMap<ReplyKey, ReplySpec>,
    /// What the MSS of SYN-ACKs is lowered to; `None` before it was written or when another agent wrote it.
    pub mss: Option<[u16; 2]>,
}

/// One change of the maps. Each leaves them whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keys of the flow hash.
    SetSeed(u64),
    /// What the MSS of SYN-ACKs is lowered to, over IPv4 and over IPv6, in bytes; 0: it is not.
    SetMss([u16; 2]),
    /// Backends' next hops; `None` for a backend that has lost its own.
    SetNextHops(BTreeMap<IpAddr, Option<NextHop>>),
    /// Accept tunnels at an address of this host.
    AddTunnelAddress(IpAddr),
    /// Accept an outer source.
    Trust(Prefix),
    /// A new internal network, or another word on whether it is a pod of this host.
    AddInternal(Prefix, bool),
    /// What becomes of a pod's replies, for the first time or anew.
    PutReply(ReplyKey, ReplySpec),
    /// A new service, or new backends, slots or settings of one.
    PutService(ServiceKey, ServiceSpec),
    /// Forget a service.
    RemoveService(ServiceKey),
    /// Leave a pod's packets as they are.
    RemoveReply(ReplyKey),
    /// Forget an internal network.
    RemoveInternal(Prefix),
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
    if actual.mss != Some(wanted.mss) {
        steps.push(Step::SetMss(wanted.mss));
    }
    let (next_hops, gone) = changed_next_hops(actual, wanted);
    if !next_hops.is_empty() {
        steps.push(Step::SetNextHops(next_hops));
    }
    steps.extend(wanted.tunnel_addresses.difference(actual.tunnel_addresses).map(|a| Step::AddTunnelAddress(*a)));
    steps.extend(wanted.trusted.difference(actual.trusted).map(|p| Step::Trust(*p)));
    steps.extend(changed(actual.internal, &wanted.internal).map(|(prefix, pod)| Step::AddInternal(*prefix, *pod)));
    steps.extend(changed(actual.replies, &wanted.replies).map(|(key, spec)| Step::PutReply(*key, *spec)));
    for (key, spec) in &wanted.services {
        let unchanged = actual.services.get(key).is_some_and(|there| *there == Some(spec));
        if reseeded || !unchanged {
            steps.push(Step::PutService(*key, spec.clone()));
        }
    }
    steps.extend(actual.services.keys().filter(|k| !wanted.services.contains_key(k)).map(|k| Step::RemoveService(*k)));
    steps.extend(actual.replies.keys().filter(|k| !wanted.replies.contains_key(k)).map(|k| Step::RemoveReply(*k)));
    steps.extend(actual.internal.keys().filter(|p| !wanted.internal.contains_key(p)).map(|p| Step::RemoveInternal(*p)));
    if !gone.is_empty() {
        steps.push(Step::ForgetNextHops(gone));
    }
    steps.extend(actual.trusted.difference(&wanted.trusted).map(|p| Step::Distrust(*p)));
    steps.extend(actual.tunnel_addresses.difference(&wanted.tunnel_addresses).map(|a| Step::RemoveTunnelAddress(*a)));
    steps
}

/// What is wanted and not there, or there in another way.
fn changed<'a, K: Ord, V: PartialEq>(
    actual: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted.iter().filter(|(key, value)| actual.get(key) != Some(value))
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
