//! The kernel's tables as far as they are known here, changed message by message.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::entries::{self, Entry};
use super::links::Link;
use super::{addresses, forwarding, links, routes};

/// Links, addresses, neighbours and what bridges have learned.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    /// Interfaces with their names, by index: names move between them.
    pub(super) links: BTreeMap<u32, (String, Link)>,
    /// Addresses.
    pub(super) addresses: BTreeMap<addresses::Key, addresses::Flags>,
    /// Neighbours, of all interfaces and both families.
    pub(super) neighbours: BTreeMap<entries::Key, Entry>,
    /// The bridges' forwarding databases: the port of each MAC address.
    pub(super) forwarding: BTreeMap<forwarding::Key, u32>,
}

/// What a message changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that counts.
    Nothing,
    /// A neighbour.
    Neighbour(entries::Key),
    /// An interface or an address of it, and so perhaps the routes of all destinations: those by this interface, and
    /// those that had none.
    Device(u32),
    /// The port of a MAC address on a bridge.
    Forwarding(forwarding::Key),
    /// Perhaps the routes of these destinations.
    Routes(RangeInclusive<IpAddr>),
    /// Perhaps the routes of all destinations.
    AllRoutes,
}

impl Tables {
    /// Takes a message in, from a dump or a multicast group.
    pub(super) fn apply(&mut self, message: &RouteNetlinkMessage) -> Change {
        use RouteNetlinkMessage as M;
        match message {
            // The kernel drops a device's IPv4 routes without a word when it goes down, so a link counts for all.
            M::NewLink(message) => match links::parse(message) {
                Some((index, name, link)) => device_if(index, insert(&mut self.links, index, (name, link))),
                None => Change::Nothing,
            },
            M::DelLink(message) => match links::parse(message) {
                Some((index, ..)) => device_if(index, self.links.remove(&index).is_some()),
                None => Change::Nothing,
            },
            // An address decides over sources, by its flags as well.
            M::NewAddress(message) => match addresses::parse(message) {
                Some((key, flags)) => device_if(key.0, insert(&mut self.addresses, key, flags)),
                None => Change::Nothing,
            },
            M::DelAddress(message) => match addresses::parse(message) {
                Some((key, _)) => device_if(key.0, self.addresses.remove(&key).is_some()),
                None => Change::Nothing,
            },
            M::NewNeighbour(message) if message.header.family == AddressFamily::Bridge => {
                match forwarding::parse(message) {
                    Some((key, port)) if insert(&mut self.forwarding, key, port) => Change::Forwarding(key),
                    _ => Change::Nothing,
                }
            }
            M::DelNeighbour(message) if message.header.family == AddressFamily::Bridge => {
                match forwarding::parse(message) {
                    Some((key, _)) if self.forwarding.remove(&key).is_some() => Change::Forwarding(key),
                    _ => Change::Nothing,
                }
            }
            M::NewNeighbour(message) => match entries::parse(message) {
                Some((key, entry)) if insert(&mut self.neighbours, key, entry) => Change::Neighbour(key),
                _ => Change::Nothing,
            },
            M::DelNeighbour(message) => match entries::parse(message) {
                Some((key, _)) if self.neighbours.remove(&key).is_some() => Change::Neighbour(key),
                _ => Change::Nothing,
            },
            M::NewRoute(message) | M::DelRoute(message) => {
                routes::affected(message).map_or(Change::AllRoutes, Change::Routes)
            }
            M::NewRule(_) | M::DelRule(_) => Change::AllRoutes,
            _ => Change::Nothing,
        }
    }

    /// Takes in what a question for one neighbour was answered.
    pub(super) fn set_neighbour(&mut self, key: entries::Key, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.neighbours.insert(key, entry),
            None => self.neighbours.remove(&key),
        };
    }

    /// The port behind which a bridge has last seen a MAC address, in whichever of its VLANs.
    pub(super) fn port(&self, bridge: u32, mac: [u8; 6]) -> Option<u32> {
        self.forwarding.range((bridge, mac, 0)..=(bridge, mac, u16::MAX)).next().map(|(_, port)| *port)
    }

    /// The interfaces by name.
    pub(super) fn links_by_name(&self) -> BTreeMap<String, Link> {
        self.links.values().cloned().collect()
    }

    /// Whether an address is one of this host.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.keys().any(|(_, own, _)| *own == address)
    }

    /// All addresses of this host.
    pub(super) fn host_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.keys().map(|(_, address, _)| *address).collect()
    }
}

fn device_if(index: u32, changed: bool) -> Change {
    if changed { Change::Device(index) } else { Change::Nothing }
}

/// Puts a value in and says whether anything differs for it.
fn insert<K: Ord, V: PartialEq + Clone>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    let changed = map.get(&key) != Some(&value);
    map.insert(key, value);
    changed
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkFlags, LinkLayerType};
    use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourState};

    use super::*;
    use crate::neighbours::links::tests::message as link;

    #[test]
    fn an_interface_comes_back_under_its_name_with_another_index() {
        let flags = LinkFlags::Up | LinkFlags::LowerUp;
        let mut tables = Tables::default();
        let first = link(4, "eth0", LinkLayerType::Ether, flags);
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewLink(first.clone())), Change::Device(4));
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewLink(first.clone())), Change::Nothing);
        assert_eq!(tables.apply(&RouteNetlinkMessage::DelLink(first)), Change::Device(4));
        assert!(tables.links_by_name().is_empty());
        let second = link(9, "eth0", LinkLayerType::Ether, flags);
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewLink(second)), Change::Device(9));
        assert_eq!(tables.links_by_name()["eth0"].index, 9);
    }

    #[test]
    fn a_neighbour_message_counts_when_it_says_something_new() {
        let key = (4, "192.0.2.1".parse().unwrap());
        let mut message = entries::question(key);
        message.header.state = NeighbourState::Reachable;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]));
        let mut tables = Tables::default();
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewNeighbour(message.clone())), Change::Neighbour(key));
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewNeighbour(message.clone())), Change::Nothing);
        message.attributes[1] = NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 2]);
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewNeighbour(message.clone())), Change::Neighbour(key));
        assert_eq!(tables.apply(&RouteNetlinkMessage::DelNeighbour(message.clone())), Change::Neighbour(key));
        assert_eq!(tables.apply(&RouteNetlinkMessage::DelNeighbour(message)), Change::Nothing);
    }

    #[test]
    fn a_bridge_tells_the_port_of_a_mac() {
        let learned = |port| RouteNetlinkMessage::NewNeighbour(forwarding::tests::message(port, [2, 0, 0, 0, 0, 1]));
        let mut tables = Tables::default();
        let key = (20, [2, 0, 0, 0, 0, 1], 0);
        assert_eq!(tables.apply(&learned(5)), Change::Forwarding(key));
        assert_eq!(tables.apply(&learned(5)), Change::Nothing);
        assert_eq!(tables.port(20, [2, 0, 0, 0, 0, 1]), Some(5));
        assert_eq!(tables.apply(&learned(6)), Change::Forwarding(key), "it moved");
        assert_eq!(tables.port(20, [2, 0, 0, 0, 0, 1]), Some(6));
        assert_eq!((tables.port(20, [2, 0, 0, 0, 0, 2]), tables.port(21, [2, 0, 0, 0, 0, 1])), (None, None));
        let aged = RouteNetlinkMessage::DelNeighbour(forwarding::tests::message(6, [2, 0, 0, 0, 0, 1]));
        assert_eq!(tables.apply(&aged), Change::Forwarding(key));
        assert_eq!(tables.apply(&aged), Change::Nothing);
        assert!(tables.neighbours.is_empty());
    }

    #[test]
    fn a_route_counts_for_its_prefix_a_rule_for_all() {
        let mut tables = Tables::default();
        let route = routes::question("192.0.2.1".parse().unwrap());
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(tables.apply(&RouteNetlinkMessage::DelRoute(route)), Change::Routes(here..=here));
        assert_eq!(tables.apply(&RouteNetlinkMessage::NewRule(Default::default())), Change::AllRoutes);
    }
}
