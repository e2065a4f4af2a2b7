//! The desired state: what every source is turned into, and all that the plan knows of it.

pub mod from_file;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::maps::ServiceKey;

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
    /// Whether all flows of a client go to the same backend.
    pub source_affinity: bool,
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

/// A backend's two weights and what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Orders it in every slot; stays while it drains. 1 to 1,000.
    pub rank: u32,
    /// How much it may own; 0 while it drains.
    pub share: u32,
    /// Whether it drains: no new flows, unless all of its service do.
    pub draining: bool,
    /// Whether it runs our node program.
    pub agent: bool,
}

impl Desired {
    /// The addresses of all backends: where next hops are needed.
    #[must_use]
    pub fn backend_addresses(&self) -> BTreeSet<IpAddr> {
        self.services.values().flat_map(|service| service.backends.keys().copied()).collect()
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
