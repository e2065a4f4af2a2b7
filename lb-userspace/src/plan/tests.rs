mod pods;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::model::{Backend, Service};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').expect("a prefix");
    Prefix { address: ip(address), length: length.parse().expect("a length") }
}

fn key(vip: &str) -> ServiceKey {
    ServiceKey::new(ip(vip).into(), family_of(&ip(vip)), 6, 80)
}

fn hop(number: u8) -> NextHop {
    NextHop { macs: [number; 12], interface: 3, mtu: 1500, reserved: [0; 3] }
}

const V4: &str = "10.0.0.1";
const V6: &str = "fd00::1";
const EDGE: HostRoles = HostRoles { edge: true, node: false };
const NODE: HostRoles = HostRoles { edge: false, node: true };
const BOTH: HostRoles = HostRoles { edge: true, node: true };

/// One service with an IPv4 and an IPv6 backend.
fn desired() -> Desired {
    let backend = Backend { rank: 70, share: 50, draining: false, agent: true, pods: BTreeMap::new() };
    let service = Service {
        name: "web".to_owned(),
        port_name: None,
        algorithm: Algorithm::Rendezvous,
        slots: 128,
        source_affinity: true,
        delivery: Delivery::Host,
        backends: [(ip(V4), backend.clone()), (ip(V6), Backend { agent: false, ..backend })].into(),
    };
    Desired {
        hash_seed: 5,
        services: [(key("198.51.100.1"), service)].into(),
        trusted_sources: [prefix("10.200.0.0/16")].into(),
        ..Desired::default()
    }
}

fn routes() -> BTreeMap<IpAddr, Route> {
    let v4 = Route::Via { next_hop: hop(1), source: ip("192.0.2.1") };
    let v6 = Route::Via { next_hop: hop(2), source: ip("2001:db8:ffff::1") };
    [(ip(V4), v4), (ip(V6), v6)].into()
}

fn own() -> BTreeSet<IpAddr> {
    [ip("192.0.2.1"), ip("198.51.100.1"), ip("2001:db8:ffff::1")].into()
}

/// What is wanted of a host that has no pods.
fn resolved(desired: &Desired, roles: HostRoles, routes: &BTreeMap<IpAddr, Route>, own: &BTreeSet<IpAddr>) -> Wanted {
    wanted(desired, &Host { roles, routes, own, pods: &BTreeMap::new(), uplink_mtu: Some(1500) })
}

/// How both backends are reached.
fn backends(desired: &Desired, routes: &BTreeMap<IpAddr, Route>) -> [BackendSpec; 2] {
    let wanted = resolved(desired, EDGE, routes, &own());
    let backends = &wanted.services[&key("198.51.100.1")].backends;
    [backends[&ip(V4)], backends[&ip(V6)]]
}

/// As `Tables::actual` says once everything is applied.
fn actual(wanted: &Wanted) -> Actual<'_> {
    Actual {
        hash_seed: Some(wanted.hash_seed),
        services: wanted.services.iter().map(|(key, spec)| (*key, Some(spec))).collect(),
        next_hops: &wanted.next_hops,
        tunnel_addresses: &wanted.tunnel_addresses,
        trusted: &wanted.trusted,
        internal: &wanted.internal,
        replies: &wanted.replies,
        mss: Some(wanted.mss),
    }
}

#[test]
fn an_edge_sends_and_a_node_accepts() {
    let both = resolved(&desired(), BOTH, &routes(), &own());
    assert_eq!(both.next_hops, [(ip(V4), hop(1)), (ip(V6), hop(2))].into());
    assert_eq!(both.tunnel_addresses, [ip("192.0.2.1"), ip("2001:db8:ffff::1")].into(), "a VIP is no tunnel's end");
    assert_eq!(both.trusted, [prefix("10.200.0.0/16")].into());
    let spec = &both.services[&key("198.51.100.1")];
    assert_eq!((spec.slots, spec.source_affinity, spec.backends.len()), (128, true, 2));

    let edge = resolved(&desired(), EDGE, &routes(), &own());
    assert_eq!((edge.tunnel_addresses, edge.trusted), Default::default());
    assert_eq!((edge.services, edge.next_hops), (both.services.clone(), both.next_hops));

    let node = resolved(&desired(), NODE, &routes(), &own());
    assert_eq!((node.tunnel_addresses, node.trusted), (both.tunnel_addresses, both.trusted));
    assert!(node.next_hops.is_empty());
    assert!(node.services.keys().eq(both.services.keys()), "a node knows the VIPs and ports");
    assert!(node.services.values().all(|spec| spec.backends.is_empty()));
}

#[test]
fn the_outer_source_is_the_routes_where_no_prefix_is_given() {
    let [v4, v6] = backends(&desired(), &routes());
    assert_eq!((v4.dispatch, v4.source, v4.entropy), (Dispatch::Ipv4, ip("192.0.2.1").into(), 0));
    assert_eq!((v6.dispatch, v6.source, v6.entropy), (Dispatch::Ipv6, ip("2001:db8:ffff::1").into(), 0));
    assert_eq!((v4.rank, v4.share, v4.agent, v6.agent), (70, 50, true, false));
}

#[test]
fn the_outer_source_is_the_prefix_with_the_flow_in_its_last_bits() {
    // Prefixes, and the bits of the last 32 that the flow fills, as a number.
    let cases = [
        ("10.200.0.0/16", "fd00:bee::/64", 0xffff, u32::MAX),
        ("10.200.7.9/32", "fd00:bee::/96", 0, u32::MAX),
        ("0.0.0.0/0", "fd00:bee::1/128", u32::MAX, 0),
        ("128.0.0.0/1", "fd00:bee::/97", u32::MAX >> 1, u32::MAX >> 1),
        ("10.200.7.8/31", "fd00:bee::/127", 1, 1),
        ("10.200.7.0/24", "::/0", 0xff, u32::MAX),
    ];
    for (ipv4, ipv6, entropy_v4, entropy_v6) in cases {
        let mut desired = desired();
        desired.tunnel_source = TunnelSource { ipv4: Some(prefix(ipv4)), ipv6: Some(prefix(ipv6)) };
        let [v4, v6] = backends(&desired, &routes());
        assert_eq!((v4.source, v4.entropy), (prefix(ipv4).address.into(), u32::to_be(entropy_v4)), "{ipv4}");
        assert_eq!((v6.source, v6.entropy), (prefix(ipv6).address.into(), u32::to_be(entropy_v6)), "{ipv6}");
        assert_eq!(v4.source.numbers()[0] & entropy_v4, 0, "{ipv4}: the flow's bits are clear");
        assert_eq!(v6.source.numbers()[3] & entropy_v6, 0, "{ipv6}: the flow's bits are clear");
    }
}

#[test]
fn a_prefix_of_one_family_leaves_the_other_alone() {
    let mut desired = desired();
    desired.tunnel_source.ipv4 = Some(prefix("10.200.0.0/16"));
    let [v4, v6] = backends(&desired, &routes());
    assert_eq!((v4.source, v6.source), (ip("10.200.0.0").into(), ip("2001:db8:ffff::1").into()));
}

#[test]
fn a_backend_on_this_host_needs_no_tunnel() {
    let mut desired = desired();
    desired.tunnel_source.ipv4 = Some(prefix("10.200.0.0/16"));
    let routes = [(ip(V4), Route::Local), (ip(V6), Route::Local)].into();
    for backend in backends(&desired, &routes) {
        assert_eq!((backend.dispatch, backend.source, backend.entropy), (Dispatch::Local, Address::default(), 0));
    }
    assert!(resolved(&desired, EDGE, &routes, &own()).next_hops.is_empty());
}

#[test]
fn an_unreachable_backend_keeps_the_source_that_it_had() {
    let routes = BTreeMap::from([
        (ip(V4), Route::Unreachable { source: Some(ip("192.0.2.9")) }),
        (ip(V6), Route::Unreachable { source: None }),
    ]);
    let [v4, v6] = backends(&desired(), &routes);
    assert_eq!((v4.dispatch, v4.source), (Dispatch::Ipv4, ip("192.0.2.9").into()));
    assert_eq!((v6.dispatch, v6.source), (Dispatch::Ipv6, Address::default()));
    assert!(resolved(&desired(), EDGE, &routes, &own()).next_hops.is_empty());
    let [v4, v6] = backends(&desired(), &BTreeMap::new());
    assert_eq!((v4.source, v6.source), Default::default(), "nothing is known of a way");
    let mut fixed = desired();
    fixed.tunnel_source.ipv6 = Some(prefix("fd00:bee::/64"));
    let [_, v6] = backends(&fixed, &routes);
    assert_eq!((v6.source, v6.entropy), (ip("fd00:bee::").into(), u32::MAX), "a prefix needs no route");
}

#[test]
fn what_is_pointed_at_comes_first_and_goes_last() {
    let before = resolved(&desired(), BOTH, &routes(), &own());
    let mut next = desired();
    next.hash_seed = 6;
    let old = key("198.51.100.1");
    let service = next.services.remove(&old).expect("the service");
    let backend = service.backends[&ip(V4)].clone();
    let new = key("198.51.100.2");
    next.services.insert(new, Service { backends: [(ip("10.0.0.9"), backend)].into(), ..service });
    next.trusted_sources = [prefix("10.201.0.0/16")].into();
    let way = Route::Via { next_hop: hop(9), source: ip("192.0.2.1") };
    let after = resolved(&next, BOTH, &[(ip("10.0.0.9"), way)].into(), &[ip("192.0.2.2")].into());
    let expected = [
        Step::SetSeed(6),
        Step::SetNextHops([(ip("10.0.0.9"), Some(hop(9)))].into()),
        Step::AddTunnelAddress(ip("192.0.2.2")),
        Step::Trust(prefix("10.201.0.0/16")),
        Step::PutService(new, after.services[&new].clone()),
        Step::RemoveService(old),
        Step::ForgetNextHops([ip(V4), ip(V6)].into()),
        Step::Distrust(prefix("10.200.0.0/16")),
        Step::RemoveTunnelAddress(ip("192.0.2.1")),
        Step::RemoveTunnelAddress(ip("2001:db8:ffff::1")),
    ];
    assert_eq!(steps(&actual(&before), &after), expected);
    assert_eq!(steps(&actual(&after), &after), []);
}

#[test]
fn a_next_hop_is_lost_at_once_or_forgotten_in_the_end() {
    let reached = resolved(&desired(), EDGE, &routes(), &own());
    let before = actual(&reached);
    let mut routes = routes();
    routes.insert(ip(V4), Route::Unreachable { source: Some(ip("192.0.2.1")) });
    routes.insert(ip(V6), Route::Local);
    let after = resolved(&desired(), EDGE, &routes, &own());
    let service = key("198.51.100.1");
    let expected = [
        Step::SetNextHops([(ip(V4), None)].into()),
        Step::PutService(service, after.services[&service].clone()),
        Step::ForgetNextHops([ip(V6)].into()),
    ];
    assert_eq!(steps(&before, &after), expected);
}

#[test]
fn another_seed_rebuilds_every_service_and_what_nobody_compared_is_put() {
    let wanted = resolved(&desired(), EDGE, &routes(), &own());
    let service = key("198.51.100.1");
    let put = Step::PutService(service, wanted.services[&service].clone());
    let reseeded = Actual { hash_seed: Some(4), ..actual(&wanted) };
    assert_eq!(steps(&reseeded, &wanted), [Step::SetSeed(5), put.clone()]);
    let adopted = Actual { services: [(service, None)].into(), ..actual(&wanted) };
    assert_eq!(steps(&adopted, &wanted), [put]);
}
