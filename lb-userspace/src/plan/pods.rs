//! What a node does for its pods: which of them own slots, how their replies are told from their own traffic, and what
//! is never rewritten.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::maps::ServiceKey;

use super::Host;
use crate::config::MssClamp;
use crate::model::{Delivery, Desired, Pod, PodKey, Prefix, Service, key_address};

/// Where a pod of this host is: what the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodDevice {
    /// Index of the live device that leads to it; [`LOOPBACK`] for a pod in this host's network.
    pub interface: u32,
    /// The id that this host's namespace has for the pod's (IFLA_LINK_NETNSID of this end of the veth, kernel 4.0);
    /// `None`: its sockets cannot be seen from here.
    pub namespace: Option<u32>,
}

/// Index of the loopback device, in every network namespace (LOOPBACK_IFINDEX, kernel 3.7).
pub const LOOPBACK: u32 = 1;

/// A pod of a service on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Orders it in every slot; stays while it drains.
    pub rank: u32,
    /// How much it may own; 0 while it drains and another one of this host does not.
    pub share: u32,
    /// Whether its flows are recorded, as its replies' [`ReplySpec::recorded`].
    pub record: bool,
    /// Where it is; `None`: it has no live device, and nothing may be sent to it.
    pub device: Option<PodDevice>,
}

/// Whose replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyKey {
    /// The pod's address.
    pub pod: IpAddr,
    /// The protocol number.
    pub protocol: u8,
    /// The port in the pod, in host order.
    pub port: u16,
}

/// What becomes of a pod's replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplySpec {
    /// The VIP that they get; if they are `recorded` the first of several.
    pub vip: IpAddr,
    /// The port that they get, in host order.
    pub port: u16,
    /// Whether a recorded flow has to say which VIP and port they get.
    pub recorded: bool,
    /// Whether one without a record may be traffic of the pod's own and stays as it is; else it is dropped.
    pub direct: bool,
}

/// What the maps should hold for the pods of this host, beside the services.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pub(super) internal: BTreeMap<Prefix, bool>,
    pub(super) replies: BTreeMap<ReplyKey, ReplySpec>,
    pub(super) mss: [u16; 2],
}

impl Pods {
    /// For a host that is a node. Nothing, where no service is delivered to pods: nothing is rewritten then.
    pub(super) fn new(desired: &Desired, host: &Host<'_>) -> Self {
        if desired.services.values().all(|service| service.delivery == Delivery::Host) {
            return Self::default();
        }
        Self { internal: internal(desired, host), replies: replies(desired, host), mss: mss(desired, host) }
    }

    /// The pods of a service on this host. The ready ones own slots; where none is ready, those that drain do. A pod
    /// without a live device owns none: it keeps its rank, and gets its slots back with its device.
    pub(super) fn specs(&self, key: &ServiceKey, service: &Service, host: &Host<'_>) -> BTreeMap<PodKey, PodSpec> {
        let lives = |pod: &PodKey| host.pods.contains_key(&pod.address);
        let any_ready = service.local_pods(host.own).any(|(key, pod)| !pod.draining && lives(key));
        let specs = service.local_pods(host.own).map(|(pod, &Pod { weight, draining, .. })| {
            let spec = PodSpec {
                rank: weight,
                share: if !lives(pod) || (draining && any_ready) { 0 } else { weight },
                record: self.replies.get(&reply_key(pod, key)).is_some_and(|reply| reply.recorded),
                device: host.pods.get(&pod.address).copied(),
            };
            (*pod, spec)
        });
        specs.collect()
    }
}

fn reply_key(pod: &PodKey, service: &ServiceKey) -> ReplyKey {
    ReplyKey { pod: pod.address, protocol: service.protocol(), port: pod.port }
}

/// What is never rewritten on the way out: the configuration's networks, all pods and nodes, and this host. A VIP that
/// this host has on a loopback is no internal address.
fn internal(desired: &Desired, host: &Host<'_>) -> BTreeMap<Prefix, bool> {
    let vips = desired.vips();
    let mut internal: BTreeMap<_, _> = desired.internal_networks.iter().map(|prefix| (*prefix, false)).collect();
    internal.extend(host.own.difference(&vips).map(|address| (Prefix::of(*address), false)));
    let services = || desired.services.values().filter(|service| service.delivery == Delivery::Pod);
    for (address, backend) in services().flat_map(|service| &service.backends) {
        internal.insert(Prefix::of(*address), false);
        internal.extend(backend.pods.keys().map(|pod| (Prefix::of(pod.address), false)));
    }
    internal.extend(desired.local_pods(host.own).into_iter().map(|pod| (Prefix::of(pod), true)));
    internal
}

/// What becomes of the replies of each pod, protocol and port of this host.
fn replies(desired: &Desired, host: &Host<'_>) -> BTreeMap<ReplyKey, ReplySpec> {
    let mut replies: BTreeMap<ReplyKey, ReplySpec> = BTreeMap::new();
    for (key, service) in desired.services.iter().filter(|(_, service)| service.delivery == Delivery::Pod) {
        for (pod, &Pod { record, .. }) in service.local_pods(host.own) {
            let recorded = record || desired.direct_pod_access || is_host_network(pod, host) || is_hidden(pod, host);
            let direct = desired.direct_pod_access || is_host_network(pod, host);
            let reply = ReplySpec { vip: key_address(key), port: key.port(), recorded, direct };
            replies
                .entry(reply_key(pod, key))
                // Where several VIPs and ports lead to one pod's port, the port alone does not tell which was asked.
                .and_modify(|first| first.recorded = true)
                .or_insert(reply);
        }
    }
    replies
}

/// Whether a pod has this host's network: its port's packets may be the host's own.
fn is_host_network(pod: &PodKey, host: &Host<'_>) -> bool {
    host.own.contains(&pod.address)
}

/// Whether a pod is there and its sockets cannot be seen, so that nothing but a record tells who knows a flow.
fn is_hidden(pod: &PodKey, host: &Host<'_>) -> bool {
    host.pods.get(&pod.address).is_some_and(|device| device.namespace.is_none() && device.interface != LOOPBACK)
}

/// Bytes of an IPv4 header (RFC 791) and of an IPv6 header (RFC 8200), without options; a TCP header (RFC 9293) has as
/// many as the first.
const HEADERS: [u32; 2] = [20, 40];
const TCP_HEADER: u32 = 20;

/// What SYN-ACKs' MSS is lowered to: with `auto`, what the uplink leaves between two tunnel headers (the edge always
/// reckons with two) and the headers of the packet inside.
fn mss(desired: &Desired, host: &Host<'_>) -> [u16; 2] {
    let mtu = match (desired.mss_clamp, host.uplink_mtu) {
        (MssClamp::Off, _) | (MssClamp::Auto, None) => return [0; 2],
        (MssClamp::Bytes(bytes), _) => return [bytes; 2],
        (MssClamp::Auto, Some(mtu)) => mtu,
    };
    let services = desired.services.values().filter(|service| service.delivery == Delivery::Pod);
    let mut local = services.flat_map(|service| service.backends.keys()).filter(|address| host.own.contains(*address));
    let tunnel = HEADERS[usize::from(local.any(IpAddr::is_ipv6))];
    HEADERS.map(|inner| {
        let left = mtu.saturating_sub(2 * tunnel + inner + TCP_HEADER);
        u16::try_from(left).unwrap_or(u16::MAX)
    })
}
