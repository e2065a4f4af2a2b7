//! Merges routes, links and neighbours into ways to destinations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::errno::Errno;

use super::entries::{Key, Want};
use super::routes::{Answer, Route};
use super::tables::Tables;
use super::{Path, Resolution, Unreachable, Via};

/// The neighbour whose MAC address packets to a destination need, if the answer and its device call for one.
pub(super) fn neighbour(destination: IpAddr, answer: &Answer, tables: &Tables) -> Option<Key> {
    let Answer::Unicast(route) = answer else { return None };
    let (_, link) = tables.links.get(&route.interface)?;
    link.mac.map(|_| (route.interface, route.gateway.unwrap_or(destination)))
}

/// The way to a destination.
pub(super) fn path(destination: IpAddr, answer: &Answer, tables: &Tables, wants: &BTreeMap<Key, Want>) -> Resolution {
    match answer {
        Answer::Local { source } => Ok(Path { via: Via::Local, source: *source }),
        Answer::Unreachable(reason) => Err(reason.clone()),
        Answer::Unicast(route) => by_device(destination, route, tables, wants),
    }
}

fn by_device(destination: IpAddr, route: &Route, tables: &Tables, wants: &BTreeMap<Key, Want>) -> Resolution {
    let index = route.interface;
    let Some((name, link)) = tables.links.get(&index) else {
        return Err(Unreachable::DeviceGone { destination, index });
    };
    let name = name.clone();
    if !link.up {
        return Err(Unreachable::DeviceDown { destination, name, enabled: link.enabled });
    }
    let Some(source_mac) = link.mac else {
        return Err(Unreachable::NotEthernet { destination, name, kind: link.kind.clone() });
    };
    let Some(source) = route.source else {
        return Err(Unreachable::NoSource { destination, device: name });
    };
    let neighbour = route.gateway.unwrap_or(destination);
    let key = (index, neighbour);
    let Some(destination_mac) = tables.neighbours.get(&key).and_then(|entry| entry.usable()) else {
        return Err(why_unresolved(neighbour, name, wants.get(&key)));
    };
    let mtu = route.mtu.unwrap_or(u32::MAX).min(link.mtu);
    let via = Via::Device { interface: index, name, source_mac, destination_mac, mtu, gateway: route.gateway };
    Ok(Path { via, source })
}

/// Why a neighbour has no MAC address yet.
pub(super) fn why_unresolved(neighbour: IpAddr, device: String, want: Option<&Want>) -> Unreachable {
    match want {
        Some(Want { refused: Some(errno), .. }) => {
            Unreachable::NeighbourRefused { neighbour, device, reason: reason(*errno) }
        }
        Some(Want { failing: true, .. }) => Unreachable::NeighbourFailed { neighbour, device },
        Some(_) | None => Unreachable::NeighbourPending { neighbour, device },
    }
}

/// The kernel's error, with what helps where that is known.
fn reason(errno: Errno) -> String {
    match errno {
        Errno::EPERM => "operation not permitted (CAP_NET_ADMIN is needed)".into(),
        Errno::ENOBUFS => "the table is full (raise net.ipv4.neigh.default.gc_thresh3 or its IPv6 twin)".into(),
        other => other.desc().into(),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{LinkFlags, LinkLayerType};
    use netlink_packet_route::neighbour::NeighbourState;
    use tokio::time::Instant;

    use super::*;
    use crate::neighbours::entries::tests::entry;
    use crate::neighbours::links::tests::message as link;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn tables(flags: LinkFlags) -> Tables {
        let mut tables = Tables::default();
        tables.apply(&RouteNetlinkMessage::NewLink(link(4, "eth0", LinkLayerType::Ether, flags)));
        tables.apply(&RouteNetlinkMessage::NewLink(link(5, "tun0", LinkLayerType::None, flags)));
        tables
    }

    fn up() -> LinkFlags {
        LinkFlags::Up | LinkFlags::LowerUp
    }

    fn route(interface: u32) -> Route {
        Route { interface, gateway: Some(ip("192.0.2.1")), source: Some(ip("192.0.2.2")), mtu: None }
    }

    fn resolve(route: Route, tables: &Tables, want: Option<Want>) -> Resolution {
        let wants = want.map(|want| ((route.interface, ip("192.0.2.1")), want)).into_iter().collect();
        path(ip("198.51.100.9"), &Answer::Unicast(route), tables, &wants)
    }

    #[test]
    fn a_known_neighbour_makes_a_path() {
        let mut tables = tables(up());
        tables.neighbours.insert((4, ip("192.0.2.1")), entry(NeighbourState::Stale));
        let way = resolve(Route { mtu: Some(1400), ..route(4) }, &tables, None).unwrap();
        assert_eq!(way.source, ip("192.0.2.2"));
        let expected = Via::Device {
            interface: 4,
            name: "eth0".into(),
            source_mac: [2, 0, 0, 0, 0, 4],
            destination_mac: [2, 0, 0, 0, 0, 9],
            mtu: 1400,
            gateway: Some(ip("192.0.2.1")),
        };
        assert_eq!(way.via, expected);
        let wide = resolve(Route { mtu: Some(9000), ..route(4) }, &tables, None).unwrap();
        assert!(matches!(wide.via, Via::Device { mtu: 1500, .. }), "the device's MTU bounds the route's");
    }

    #[tokio::test]
    async fn an_unknown_neighbour_has_a_reason() {
        let tables = tables(up());
        let (neighbour, device) = (ip("192.0.2.1"), "eth0".to_owned());
        let mut want = Want::new(Instant::now());
        let pending = Unreachable::NeighbourPending { neighbour, device: device.clone() };
        assert_eq!(resolve(route(4), &tables, Some(want)), Err(pending));
        want.observe(&entry(NeighbourState::Failed));
        let failed = Unreachable::NeighbourFailed { neighbour, device: device.clone() };
        assert_eq!(resolve(route(4), &tables, Some(want)), Err(failed));
        want.asked(Instant::now(), Some(Errno::EPERM));
        let reason = "operation not permitted (CAP_NET_ADMIN is needed)".into();
        let refused = Unreachable::NeighbourRefused { neighbour, device, reason };
        assert_eq!(resolve(route(4), &tables, Some(want)), Err(refused));
    }

    #[test]
    fn a_device_that_cannot_send_has_a_reason() {
        let (destination, name) = (ip("198.51.100.9"), "eth0".to_owned());
        let down = Unreachable::DeviceDown { destination, name: name.clone(), enabled: true };
        assert_eq!(resolve(route(4), &tables(LinkFlags::Up), None), Err(down));
        let kind = "point-to-point".into();
        let tunnel = Unreachable::NotEthernet { destination, name: "tun0".into(), kind };
        assert_eq!(resolve(route(5), &tables(up()), None), Err(tunnel));
        let gone = Unreachable::DeviceGone { destination, index: 6 };
        assert_eq!(resolve(route(6), &tables(up()), None), Err(gone));
        let sourceless = Unreachable::NoSource { destination, device: name };
        assert_eq!(resolve(Route { source: None, ..route(4) }, &tables(up()), None), Err(sourceless));
    }

    #[test]
    fn a_neighbour_is_wanted_on_ethernet_alone() {
        let tables = tables(up());
        let destination = ip("198.51.100.9");
        let wanted = |route| neighbour(destination, &Answer::Unicast(route), &tables);
        assert_eq!(wanted(route(4)), Some((4, ip("192.0.2.1"))));
        assert_eq!(wanted(Route { gateway: None, ..route(4) }), Some((4, destination)));
        assert_eq!(wanted(route(5)), None);
        assert_eq!(neighbour(destination, &Answer::Local { source: destination }, &tables), None);
    }
}
