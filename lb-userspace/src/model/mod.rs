//! The desired state: what every source is turned into, and all that the plan knows of it.

pub mod from_file;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lb_common::maps::ServiceKey;

use crate::config::MssClamp;

/// Everything that the datapath should do. Pure data: two equal values mean the same maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Seed of the flow hash and of the tables; the same on every edge and node.
    pub hash_seed: u64,
    /// The services, by VIP, protocol and port.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Outer source of tunnel packets, per family; without one, the address that the kernel would use towards the backend.
    pub tunnel_source: TunnelSource,
    /// Outer sources that a node accepts tunnel packets from.
    pub trusted_sources: BTreeSet<Prefix>,
    /// Addresses of pods, nodes and Services that no source lists one by one: replies to them are not rewritten.
    pub internal_networks: BTreeSet<Prefix>,
    /// Whether clients outside reach pods by the pods' own addresses too.
    pub direct_pod_access: bool,
    /// What the MSS of a SYN-ACK is lowered to.
    pub mss_clamp: MssClamp,
    /// Whether pods' replies are kept out of the node's NAT by a table of our own.
    pub nat_exemption: bool,
    /// How long a moved slot still asks who owned it before.
    pub transition_max: Duration,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The first address; bits beyond `length` are zero.
    pub address: IpAddr,
    /// How many leading bits count.
    pub length: u8,
}

impl Prefix {
    /// The range of one address alone.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether an address is in the range.
    #[must_use]
    pub fn contains(&self, address: &IpAddr) -> bool {
        let length = u32::from(self.length);
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0,
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0,
            _ => false,
        }
    }
}

/// Prefixes that outer source addresses are taken from, their last bits filled from the flow hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSource {
    /// For IPv4 outer headers.
    pub ipv4: Option<Prefix>,
    /// For IPv6 outer headers.
    pub ipv6: Option<Prefix>,
}

/// One VIP, protocol and port with its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name of the service in its source.
    pub name: String,
    /// Name of the port, where it has one.
    pub port_name: Option<String>,
    /// How the table is built.
    pub algorithm: Algorithm,
    /// Number of slots: a power of two.
    pub slots: u32,
    /// Whether all flows of a client go to the same backend, and there to the same pod.
    pub source_affinity: bool,
    /// What a backend does with a packet.
    pub delivery: Delivery,
    /// The backends, by address.
    pub backends: BTreeMap<IpAddr, Backend>,
}

/// How a table is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Weighted rendezvous hashing with a bounded share.
    #[default]
    Rendezvous,
}

/// What a backend does with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// It has the VIP on a loopback and takes the packet as it is.
    #[default]
    Host,
    /// It is a node: it rewrites VIP and port to those of a pod of its own, and the pod's replies back.
    Pod,
}

/// A backend's two weights, what it runs and, if it is a node, its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Orders it in every slot; stays while it drains. 1 to [`lb_common::table::MAX_WEIGHT`]; of a node the sum of its
    /// pods' weights.
    pub rank: u32,
    /// How much it may own; 0 while it drains. Of a node the sum of its ready pods' weights.
    pub share: u32,
    /// Whether it drains: no new flows, unless all of its service do.
    pub draining: bool,
    /// Whether it runs our node program.
    pub agent: bool,
    /// Its pods that serve this port; none with delivery to the host.
    pub pods: BTreeMap<PodKey, Pod>,
}

/// Where a pod listens for a service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// The pod's address; of the VIP's family.
    pub address: IpAddr,
    /// The port in the pod, in host order.
    pub port: u16,
}

/// A pod of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// How much it may own of its node's part. 1 to 1,000.
    pub weight: u32,
    /// Whether it drains, by itself or because its node does: it terminates and still serves.
    pub draining: bool,
    /// Whether its flows are to be recorded because the node cannot see its sockets.
    pub record: bool,
}

impl Desired {
    /// The addresses of all backends: where next hops are needed.
    #[must_use]
    pub fn backend_addresses(&self) -> BTreeSet<IpAddr> {
        self.services.values().flat_map(|service| service.backends.keys().copied()).collect()
    }

    /// The addresses of the pods of this host, whose own addresses are `own`: where the way to a pod's device is needed.
    #[must_use]
    pub fn local_pods(&self, own: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let local = self.services.values().flat_map(|service| service.local_pods(own));
        local.map(|(pod, _)| pod.address).collect()
    }

    /// Whether any service is delivered to pods.
    #[must_use]
    pub fn has_pods(&self) -> bool {
        self.services.values().any(|service| service.delivery == Delivery::Pod)
    }

    /// The VIPs.
    #[must_use]
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        self.services.keys().map(key_address).collect()
    }
}

/// The VIP of a key.
#[must_use]
pub fn key_address(key: &ServiceKey) -> IpAddr {
    key.address().ip(key.family())
}

impl Service {
    /// The pods of the backends that are this host, whose own addresses are `own`.
    pub fn local_pods<'a>(&'a self, own: &'a BTreeSet<IpAddr>) -> impl Iterator<Item = (&'a PodKey, &'a Pod)> + 'a {
        let local = self.backends.iter().filter(|(address, _)| own.contains(*address));
        local.flat_map(|(_, backend)| &backend.pods)
    }

    /// What people and metrics call it: `web/http`, or `web/TCP/80` where the port has no name.
    #[must_use]
    pub fn label(&self, key: &ServiceKey) -> String {
        match &self.port_name {
            Some(port) => format!("{}/{port}", self.name),
            None => format!("{}/{}/{}", self.name, protocol_name(key.protocol()), key.port()),
        }
    }
}

/// The name of a protocol that services may have.
#[must_use]
pub fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        6 => "TCP",
        17 => "UDP",
        _ => "unknown",
    }
}
