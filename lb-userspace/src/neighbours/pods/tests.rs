use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourState};
use nix::errno::Errno;
use tokio::time::Instant;

use super::super::entries::{question, tests::entry};
use super::super::forwarding::tests::message as learned;
use super::super::links::tests::message as link;
use super::*;

const POD: &str = "10.244.0.5";
const VETH: u32 = 5;
const BRIDGE: u32 = 20;
const WIRE: u32 = 7;
/// The MAC address of [`entry`].
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What the kernel has said, and what was asked of it.
struct Host {
    tables: Tables,
    wants: BTreeMap<Key, Want>,
    uplinks: BTreeSet<u32>,
    seat: Option<Seat>,
}

impl Host {
    /// A veth with its other end in namespace 3, a bridge, and a wire `eth0`; all up.
    fn new() -> Self {
        let mut host = Self { tables: Tables::default(), wants: BTreeMap::new(), uplinks: BTreeSet::new(), seat: None };
        host.link(LOOPBACK, "lo", None, up(), vec![]);
        host.link(VETH, "veth5", Some(InfoKind::Veth), up(), vec![LinkAttribute::LinkNetNsId(3)]);
        host.link(BRIDGE, "cni0", Some(InfoKind::Bridge), up(), vec![]);
        host.link(WIRE, "eth0", None, up(), vec![]);
        host
    }

    fn link(&mut self, index: u32, name: &str, kind: Option<InfoKind>, flags: LinkFlags, more: Vec<LinkAttribute>) {
        let layer = if index == LOOPBACK { LinkLayerType::Loopback } else { LinkLayerType::Ether };
        let mut message = link(index, name, layer, flags);
        message.attributes.extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])));
        message.attributes.extend(more);
        self.tables.apply(&RouteNetlinkMessage::NewLink(message));
    }

    /// The veth as a port of the bridge.
    fn port(&mut self, flags: LinkFlags) {
        let more = vec![LinkAttribute::LinkNetNsId(3), LinkAttribute::Controller(BRIDGE)];
        self.link(VETH, "veth5", Some(InfoKind::Veth), flags, more);
    }

    fn neighbour(&mut self, state: NeighbourState) {
        let mut message = question((BRIDGE, pod()));
        message.header.state = state;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
        self.tables.apply(&RouteNetlinkMessage::NewNeighbour(message));
    }

    /// The pod's place, first as it is remembered.
    fn find(&mut self, route: &PodRoute) -> Result<PodPath, PodUnreachable> {
        let view = View { tables: &self.tables, wants: &self.wants, uplinks: &self.uplinks };
        self.seat = seat(pod(), route, self.seat.as_ref(), view);
        path(pod(), route, self.seat.as_ref(), view)
    }
}

fn pod() -> IpAddr {
    POD.parse().unwrap()
}

fn up() -> LinkFlags {
    LinkFlags::Up | LinkFlags::LowerUp
}

fn by(interface: u32, length: u8) -> PodRoute {
    let route = Route { interface, gateway: None, source: None, mtu: None };
    PodRoute { answer: Answer::Unicast(route), length }
}

fn by_gateway(interface: u32, gateway: &str, length: u8) -> PodRoute {
    let route = Route { interface, gateway: gateway.parse().ok(), source: None, mtu: None };
    PodRoute { answer: Answer::Unicast(route), length }
}

fn found(interface: u32, name: &str, namespace: Option<u32>) -> Result<PodPath, PodUnreachable> {
    Ok(PodPath { interface, name: name.into(), namespace })
}

fn down(name: &str, enabled: bool) -> Result<PodPath, PodUnreachable> {
    Err(Unreachable::DeviceDown { destination: pod(), name: name.into(), enabled }.into())
}

#[test]
fn a_veth_that_is_up_leads_to_its_pod() {
    let mut host = Host::new();
    let route = by(VETH, 32);
    assert_eq!(host.find(&route), found(VETH, "veth5", Some(3)));
    host.link(VETH, "veth5", Some(InfoKind::Veth), LinkFlags::Up, vec![]);
    assert_eq!(host.find(&route), down("veth5", true));
    host.link(VETH, "veth5", Some(InfoKind::Veth), LinkFlags::empty(), vec![]);
    assert_eq!(host.find(&route), down("veth5", false));
    host.link(VETH, "veth5", Some(InfoKind::Veth), up(), vec![]);
    assert_eq!(host.find(&route), found(VETH, "veth5", None), "the other end is in this namespace");
    host.tables.links.remove(&VETH);
    let gone = Unreachable::DeviceGone { destination: pod(), index: VETH };
    assert_eq!(host.find(&route), Err(gone.into()));
}

#[test]
fn a_namespace_id_counts_on_a_pair_alone() {
    let mut host = Host::new();
    for (kind, namespace) in [
        (InfoKind::Veth, Some(3)),
        (InfoKind::Netkit, Some(3)),
        (InfoKind::MacVlan, None),
        (InfoKind::IpVlan, None),
        (InfoKind::Tun, None),
    ] {
        host.link(8, "other", Some(kind), up(), vec![LinkAttribute::LinkNetNsId(3)]);
        assert_eq!(host.find(&by(8, 32)), found(8, "other", namespace));
    }
}

#[test]
fn an_address_of_this_host_is_behind_the_loopback_device() {
    let mut host = Host::new();
    let route = PodRoute { answer: Answer::Local { source: pod() }, length: 0 };
    let path = host.find(&route).unwrap();
    assert!(path.is_host_network());
    assert_eq!((path.interface, path.name.as_str(), path.namespace), (1, "lo", None));
    assert!(!host.find(&by(VETH, 32)).unwrap().is_host_network());
}

#[test]
fn a_route_that_is_not_the_pods_own_is_refused() {
    let mut host = Host::new();
    host.uplinks = [WIRE].into();
    let (pod, device) = (pod(), "eth0".to_owned());
    let gateway = "192.0.2.254".parse().unwrap();
    let default = Err(PodUnreachable::DefaultRoute { pod, device: device.clone() });
    assert_eq!(host.find(&by_gateway(WIRE, "192.0.2.254", 0)), default);
    assert_eq!(host.find(&by(WIRE, 0)), default);
    let far = Err(PodUnreachable::Gateway { pod, gateway, device: device.clone() });
    assert_eq!(host.find(&by_gateway(WIRE, "192.0.2.254", 24)), far);
    let network = Err(PodUnreachable::UplinkNetwork { pod, device });
    assert_eq!(host.find(&by(WIRE, 24)), network);
    assert_eq!(host.find(&by(WIRE, 32)), found(WIRE, "eth0", None), "a route for it alone was made on purpose");
    let none = PodRoute { answer: Answer::Unreachable(Unreachable::NoRoute { destination: pod }), length: 0 };
    assert_eq!(host.find(&none), Err(PodUnreachable::NoRoute { pod }));
}

#[test]
fn a_gateway_that_is_the_pod_or_this_host_is_none() {
    let mut host = Host::new();
    assert_eq!(host.find(&by_gateway(VETH, POD, 32)), found(VETH, "veth5", Some(3)));
    host.tables.addresses.insert((VETH, "10.244.0.1".parse().unwrap(), 32), 0);
    assert_eq!(host.find(&by_gateway(VETH, "10.244.0.1", 24)), found(VETH, "veth5", Some(3)));
}

#[test]
fn tunnels_and_the_loopback_device_lead_to_no_pod() {
    let mut host = Host::new();
    host.link(8, "wg0", Some(InfoKind::Wireguard), up(), vec![]);
    let none = |device: &str, kind: &str| {
        Err(PodUnreachable::NoPodBehind { pod: pod(), device: device.into(), kind: kind.into() })
    };
    assert_eq!(host.find(&by(8, 24)), none("wg0", "wireguard"));
    assert_eq!(host.find(&by(LOOPBACK, 24)), none("lo", "loopback"));
}

#[test]
fn a_bridge_leads_by_the_port_of_the_pods_mac() {
    let mut host = Host::new();
    host.port(up());
    let route = by(BRIDGE, 24);
    let view = View { tables: &host.tables, wants: &host.wants, uplinks: &host.uplinks };
    assert_eq!(neighbour(pod(), &route, view), Some((BRIDGE, pod())));
    assert_eq!(neighbour(pod(), &by(VETH, 32), view), None);
    assert!(host.find(&route).unwrap_err().is_pending());
    host.neighbour(NeighbourState::Reachable);
    assert_eq!(host.find(&route), found(BRIDGE, "cni0", None), "it answers, the port is not known");
    host.tables.apply(&RouteNetlinkMessage::NewNeighbour(learned(VETH, MAC)));
    assert_eq!(host.find(&route), found(VETH, "veth5", Some(3)));
    host.uplinks = [BRIDGE].into();
    assert_eq!(host.find(&route), found(VETH, "veth5", Some(3)), "a bridge may be the uplink as well");
    host.port(LinkFlags::Up);
    assert_eq!(host.find(&route), down("veth5", true));
}

#[test]
fn a_pod_that_its_bridge_forgot_stays_until_its_port_is_gone() {
    let mut host = Host::new();
    host.port(up());
    host.neighbour(NeighbourState::Reachable);
    host.tables.apply(&RouteNetlinkMessage::NewNeighbour(learned(VETH, MAC)));
    let (route, here) = (by(BRIDGE, 24), found(VETH, "veth5", Some(3)));
    assert_eq!(host.find(&route), here);
    host.tables.apply(&RouteNetlinkMessage::DelNeighbour(learned(VETH, MAC)));
    assert_eq!(host.find(&route), here);
    host.link(VETH, "veth5", Some(InfoKind::Veth), up(), vec![]);
    let gone = Err(PodUnreachable::PortGone { pod: pod(), bridge: "cni0".into() });
    assert_eq!(host.find(&route), gone, "it is no port any more");
    host.tables.links.remove(&VETH);
    assert_eq!(host.find(&route), gone);
    // It comes back by another port.
    host.link(9, "veth9", Some(InfoKind::Veth), up(), vec![LinkAttribute::Controller(BRIDGE)]);
    host.tables.apply(&RouteNetlinkMessage::NewNeighbour(learned(9, MAC)));
    assert_eq!(host.find(&route), found(9, "veth9", None));
}

#[tokio::test]
async fn a_pod_that_is_asked_again_stays_until_it_fails() {
    let mut host = Host::new();
    host.port(up());
    host.neighbour(NeighbourState::Reachable);
    host.tables.apply(&RouteNetlinkMessage::NewNeighbour(learned(VETH, MAC)));
    let (route, here) = (by(BRIDGE, 24), found(VETH, "veth5", Some(3)));
    assert_eq!(host.find(&route), here);
    host.tables.neighbours.clear();
    let mut want = Want::new(Instant::now());
    host.wants.insert((BRIDGE, pod()), want);
    assert_eq!(host.find(&route), here);
    want.observe(&entry(NeighbourState::Failed));
    host.wants.insert((BRIDGE, pod()), want);
    let (neighbour, device) = (pod(), "cni0".to_owned());
    assert_eq!(host.find(&route), Err(Unreachable::NeighbourFailed { neighbour, device }.into()));
    let mut want = Want::new(Instant::now());
    want.asked(Instant::now(), Some(Errno::ENOBUFS));
    host.wants.insert((BRIDGE, pod()), want);
    let refused = host.find(&route).unwrap_err();
    assert!(matches!(refused, PodUnreachable::Unreachable(Unreachable::NeighbourRefused { .. })), "{refused}");
}

#[test]
fn a_bridges_wire_leads_to_another_host() {
    let mut host = Host::new();
    host.neighbour(NeighbourState::Reachable);
    for (kind, name) in [(None, "ethernet"), (Some(InfoKind::Vxlan), "vxlan"), (Some(InfoKind::Bond), "bond")] {
        host.link(WIRE, "eth0", kind, up(), vec![LinkAttribute::Controller(BRIDGE)]);
        host.tables.apply(&RouteNetlinkMessage::NewNeighbour(learned(WIRE, MAC)));
        let wire = PodUnreachable::NoPodBehind { pod: pod(), device: "eth0".into(), kind: name.into() };
        assert_eq!(host.find(&by(BRIDGE, 24)), Err(wire));
    }
}
