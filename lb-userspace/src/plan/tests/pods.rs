//! What a node does for its pods.

mod steps;

use super::*;
use crate::config::MssClamp;
use crate::model::Pod;

const NODE_V4: &str = "10.50.0.11";
const NODE_V6: &str = "fd00:50::11";
const OTHER_NODE: &str = "10.50.0.12";
const POD: &str = "10.244.1.2";
const SECOND_POD: &str = "10.244.1.3";
const FAR_POD: &str = "10.244.2.2";

const READY: Pod = Pod { weight: 100, draining: false, record: false };
const DRAINING: Pod = Pod { draining: true, ..READY };
/// Behind a veth whose other end is in a namespace that this one has an id for.
const VETH: PodDevice = PodDevice { interface: 7, namespace: Some(3) };

fn pod(address: &str, port: u16) -> PodKey {
    PodKey { address: ip(address), port }
}

fn vip(address: &str, protocol: u8, port: u16) -> ServiceKey {
    ServiceKey::new(ip(address).into(), family_of(&ip(address)), protocol, port)
}

fn web() -> ServiceKey {
    vip("198.51.100.10", 6, 80)
}

fn reply_key(address: &str, protocol: u8) -> ReplyKey {
    ReplyKey { pod: ip(address), protocol, port: 8080 }
}

/// A service delivered to these pods of these nodes.
fn service(nodes: &[(&str, &[(PodKey, Pod)])]) -> Service {
    let backends = nodes.iter().map(|(address, pods)| {
        let pods = pods.iter().copied().collect();
        (ip(address), Backend { rank: 100, share: 100, draining: false, agent: true, pods })
    });
    Service {
        name: "web".to_owned(),
        port_name: None,
        algorithm: Algorithm::Rendezvous,
        slots: 64,
        source_affinity: false,
        delivery: Delivery::Pod,
        backends: backends.collect(),
    }
}

/// A world with one node of ours, and all that may differ in it.
struct World {
    desired: Desired,
    roles: HostRoles,
    own: BTreeSet<IpAddr>,
    devices: BTreeMap<IpAddr, PodDevice>,
    mtu: Option<u32>,
}

impl World {
    /// The VIP's port 80 leads to port 8080 of a pod here and of one on another node.
    fn new() -> Self {
        let nodes: [(&str, &[_]); 2] =
            [(NODE_V4, &[(pod(POD, 8080), READY)]), (OTHER_NODE, &[(pod(FAR_POD, 8080), READY)])];
        Self {
            desired: Desired { hash_seed: 5, services: [(web(), service(&nodes))].into(), ..Desired::default() },
            roles: NODE,
            own: [ip(NODE_V4)].into(),
            devices: [(ip(POD), VETH), (ip(SECOND_POD), PodDevice { interface: 8, namespace: Some(4) })].into(),
            mtu: Some(1500),
        }
    }

    /// With these pods of this node for a service, and no other's.
    fn with(mut self, key: ServiceKey, pods: &[(PodKey, Pod)]) -> Self {
        self.desired.services.insert(key, service(&[(NODE_V4, pods)]));
        self
    }

    fn wanted(&self) -> Wanted {
        let routes = BTreeMap::from([(ip(NODE_V4), Route::Local)]);
        let Self { desired, roles, own, devices, mtu } = self;
        wanted(desired, &Host { roles: *roles, routes: &routes, own, pods: devices, uplink_mtu: *mtu })
    }

    fn pods(&self, key: ServiceKey) -> BTreeMap<PodKey, PodSpec> {
        self.wanted().services[&key].pods.clone().expect("delivery to pods")
    }

    /// What becomes of the TCP replies of a pod's port 8080.
    fn reply(&self, address: &str) -> ReplySpec {
        self.wanted().replies[&reply_key(address, 6)]
    }
}

#[test]
fn a_node_has_its_own_pods_and_their_replies() {
    let wanted = World::new().wanted();
    let here = PodSpec { rank: 100, share: 100, record: false, device: Some(VETH) };
    let spec = &wanted.services[&web()];
    assert_eq!(spec.pods, Some([(pod(POD, 8080), here)].into()));
    assert!(spec.backends.is_empty(), "a node sends to nobody");
    let reply = ReplySpec { vip: ip("198.51.100.10"), port: 80, recorded: false, direct: false };
    assert_eq!(wanted.replies, [(reply_key(POD, 6), reply)].into());

    let elsewhere = World { own: [ip("10.50.0.99")].into(), ..World::new() }.wanted();
    assert_eq!(elsewhere.services[&web()].pods, Some(BTreeMap::new()), "a node without pods of this service");
    assert!(elsewhere.replies.is_empty());
}

#[test]
fn only_a_node_has_pods_and_only_where_they_are_delivered_to() {
    let edge = World { roles: EDGE, ..World::new() }.wanted();
    let spec = &edge.services[&web()];
    assert_eq!((&spec.pods, spec.backends.len()), (&None, 2));
    assert!(edge.internal.is_empty() && edge.replies.is_empty());
    assert_eq!(edge.mss, [0, 0]);

    let both = World { roles: BOTH, ..World::new() }.wanted();
    let spec = &both.services[&web()];
    assert_eq!(spec.backends[&ip(NODE_V4)].dispatch, Dispatch::Local);
    assert_eq!(spec.pods.as_ref().map(BTreeMap::len), Some(1));

    let mut hosts = desired();
    hosts.internal_networks = [prefix("10.244.0.0/16")].into();
    let hosts = resolved(&hosts, BOTH, &routes(), &own());
    assert!(hosts.services.values().all(|spec| spec.pods.is_none()));
    assert!(hosts.internal.is_empty() && hosts.replies.is_empty(), "with delivery to hosts nothing is rewritten");
    assert_eq!(hosts.mss, [0, 0]);
}

#[test]
fn ready_pods_own_and_draining_ones_where_none_is_ready() {
    let shares = |pods: &[(PodKey, Pod)]| -> Vec<_> {
        World::new().with(web(), pods).pods(web()).values().map(|spec| (spec.rank, spec.share)).collect()
    };
    let (one, two) = (pod(POD, 8080), pod(SECOND_POD, 8080));
    let small = Pod { weight: 30, ..DRAINING };
    assert_eq!(shares(&[(one, READY), (two, small)]), [(100, 100), (30, 0)]);
    assert_eq!(shares(&[(one, DRAINING), (two, small)]), [(100, 100), (30, 30)]);
}

/// What edges still send here is for the pods of this node: a ready pod elsewhere plays no part.
#[test]
fn a_node_whose_pods_all_drain_goes_on() {
    let mut world = World::new();
    let nodes: [(&str, &[_]); 2] =
        [(NODE_V4, &[(pod(POD, 8080), DRAINING)]), (OTHER_NODE, &[(pod(FAR_POD, 8080), READY)])];
    world.desired.services.insert(web(), service(&nodes));
    assert_eq!(world.pods(web())[&pod(POD, 8080)].share, 100);
    let nodes: [(&str, &[_]); 2] =
        [(NODE_V4, &[(pod(POD, 8080), READY)]), (OTHER_NODE, &[(pod(FAR_POD, 8080), DRAINING)])];
    world.desired.services.insert(web(), service(&nodes));
    assert_eq!(world.pods(web()).values().map(|spec| spec.share).collect::<Vec<_>>(), [100]);
}

#[test]
fn a_pod_without_a_device_keeps_its_rank_and_owns_nothing() {
    let mut world = World::new();
    world.devices.clear();
    let spec = world.pods(web())[&pod(POD, 8080)];
    assert_eq!((spec.rank, spec.share, spec.device), (100, 0, None));
    assert!(!spec.record, "it is not known that its sockets cannot be seen");
    assert!(world.wanted().replies.contains_key(&reply_key(POD, 6)));
}

#[test]
fn several_vips_on_one_pod_need_records() {
    let second = vip("198.51.100.11", 6, 443);
    let world = World::new().with(second, &[(pod(POD, 8080), READY), (pod(SECOND_POD, 8080), READY)]);
    let reply = world.reply(POD);
    assert_eq!((reply.vip, reply.port, reply.recorded, reply.direct), (ip("198.51.100.10"), 80, true, false));
    let reply = world.reply(SECOND_POD);
    assert_eq!((reply.vip, reply.port, reply.recorded), (ip("198.51.100.11"), 443, false), "the second has one VIP");
    assert!(world.pods(web())[&pod(POD, 8080)].record);
    assert!(world.pods(second)[&pod(POD, 8080)].record);
    assert!(!world.pods(second)[&pod(SECOND_POD, 8080)].record);
}

#[test]
fn two_ports_to_one_are_ambiguous_and_two_protocols_or_two_target_ports_are_not() {
    let same = World::new().with(vip("198.51.100.10", 6, 443), &[(pod(POD, 8080), READY)]);
    assert!(same.reply(POD).recorded);
    let udp = World::new().with(vip("198.51.100.10", 17, 80), &[(pod(POD, 8080), READY)]);
    assert!(!udp.reply(POD).recorded);
    assert!(!udp.wanted().replies[&reply_key(POD, 17)].recorded);
    let other = World::new().with(vip("198.51.100.10", 6, 443), &[(pod(POD, 8443), READY)]);
    assert!(!other.reply(POD).recorded);
    assert_eq!(other.wanted().replies.len(), 2);
}

#[test]
fn direct_access_needs_records_and_leaves_the_rest_alone() {
    let mut world = World::new();
    world.desired.direct_pod_access = true;
    let reply = world.reply(POD);
    assert_eq!((reply.recorded, reply.direct), (true, true));
    assert!(world.pods(web())[&pod(POD, 8080)].record);
}

#[test]
fn a_pod_in_the_hosts_network_needs_records() {
    let lo = PodDevice { interface: LOOPBACK, namespace: None };
    let mut world = World::new().with(web(), &[(pod(NODE_V4, 8080), READY), (pod(POD, 8080), READY)]);
    world.devices.insert(ip(NODE_V4), lo);
    let reply = world.reply(NODE_V4);
    assert_eq!((reply.recorded, reply.direct), (true, true));
    let spec = world.pods(web())[&pod(NODE_V4, 8080)];
    assert_eq!((spec.record, spec.device), (true, Some(lo)));
    assert_eq!((world.reply(POD).recorded, world.reply(POD).direct), (false, false));
    assert_eq!(world.wanted().internal.get(&Prefix::of(ip(NODE_V4))), Some(&true));
}

#[test]
fn pods_whose_sockets_cannot_be_seen_need_records() {
    let mut world = World::new();
    world.devices.insert(ip(POD), PodDevice { interface: 9, namespace: None });
    let reply = world.reply(POD);
    assert_eq!((reply.recorded, reply.direct), (true, false));
    // The loopback leads to this host's own sockets, which can be seen without an id.
    world.devices.insert(ip(POD), PodDevice { interface: LOOPBACK, namespace: None });
    assert!(!world.reply(POD).recorded);

    let said = World::new().with(web(), &[(pod(POD, 8080), Pod { record: true, ..READY })]);
    assert_eq!((said.reply(POD).recorded, said.reply(POD).direct), (true, false));
    assert!(said.pods(web())[&pod(POD, 8080)].record);
}

#[test]
fn a_record_is_asked_for_by_protocol() {
    let asks = [(pod(POD, 8080), Pod { record: true, ..READY })];
    let world = World::new().with(vip("198.51.100.11", 17, 80), &asks);
    assert!(!world.reply(POD).recorded, "another protocol is another port");
    assert!(world.wanted().replies[&reply_key(POD, 17)].recorded);
}

#[test]
fn internal_networks_are_the_files_and_every_pod_node_and_address_of_this_host() {
    let mut world = World::new();
    world.desired.internal_networks = [prefix("10.96.0.0/12"), prefix("10.244.1.2/32")].into();
    world.own = [ip(NODE_V4), ip(NODE_V6), ip("198.51.100.10")].into();
    let host = Service { delivery: Delivery::Host, ..service(&[("10.0.0.9", &[])]) };
    world.desired.services.insert(vip("198.51.100.12", 6, 22), host);
    let expected = [
        ("10.96.0.0/12", false),
        ("10.244.1.2/32", true),
        ("10.244.2.2/32", false),
        ("10.50.0.11/32", false),
        ("10.50.0.12/32", false),
        ("fd00:50::11/128", false),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(text, pod)| (prefix(text), pod)).into();
    assert_eq!(world.wanted().internal, expected, "neither a VIP on the loopback nor a plain backend is internal");
}

#[test]
fn the_mss_leaves_room_for_two_tunnel_headers() {
    let mut world = World::new();
    assert_eq!(world.wanted().mss, [1500 - 40 - 20 - 20, 1500 - 40 - 40 - 20]);
    world.mtu = Some(9000);
    assert_eq!(world.wanted().mss, [8920, 8900]);
    world.mtu = Some(u32::MAX);
    assert_eq!(world.wanted().mss, [u16::MAX, u16::MAX]);
    world.mtu = Some(100);
    assert_eq!(world.wanted().mss, [20, 0]);
    world.mtu = None;
    assert_eq!(world.wanted().mss, [0, 0], "nothing is known of the uplinks");
    world.desired.mss_clamp = MssClamp::Bytes(1300);
    assert_eq!(world.wanted().mss, [1300, 1300]);
    world.mtu = Some(1500);
    world.desired.mss_clamp = MssClamp::Off;
    assert_eq!(world.wanted().mss, [0, 0]);
}

#[test]
fn the_mss_reckons_with_ipv6_tunnels_where_this_host_is_an_ipv6_backend() {
    let mut world = World::new();
    world.own.insert(ip(NODE_V6));
    let others = service(&[("fd00:50::99", &[])]);
    world.desired.services.insert(vip("198.51.100.11", 6, 80), others);
    assert_eq!(world.wanted().mss, [1420, 1400], "another host's tunnels are its own");
    let host = Service { delivery: Delivery::Host, ..service(&[(NODE_V6, &[])]) };
    world.desired.services.insert(vip("198.51.100.12", 6, 80), host);
    assert_eq!(world.wanted().mss, [1420, 1400], "replies of host delivery are not seen");
    world.desired.services.insert(vip("198.51.100.13", 6, 80), service(&[(NODE_V6, &[])]));
    assert_eq!(world.wanted().mss, [1500 - 80 - 20 - 20, 1500 - 80 - 40 - 20]);
}

#[test]
fn local_pods_are_those_whose_way_is_asked_for() {
    let pods = [(pod(POD, 80), READY), (pod(SECOND_POD, 80), DRAINING)];
    let world = World::new().with(vip("198.51.100.11", 6, 80), &pods);
    assert_eq!(world.desired.local_pods(&world.own), [ip(POD), ip(SECOND_POD)].into());
    assert_eq!(world.desired.local_pods(&[ip(OTHER_NODE)].into()), [ip(FAR_POD)].into());
    assert!(world.desired.local_pods(&BTreeSet::new()).is_empty());
}
