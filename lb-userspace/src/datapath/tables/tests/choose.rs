//! Which pod a packet goes to where the slot alone does not say it, and what is answered where there is none.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use lb_common::address::Family;
use lb_common::checksum;
use lb_common::maps::{RECORD_SHORT_NS, RECORD_TCP_NS, RECORD_UDP_NS, ServiceKey};
use lb_common::packet::{Connection, Socket};
use lb_common::stage::Roles;
use lb_common::verdict::Reason;

use super::scene::{BACKENDS, ROOMY, Scene, frame, ip, keys, pod_address};
use crate::datapath::host::{HostFrame, HostMaps};
use crate::datapath::tables::Tables;
use crate::plan::{self, Route};

const ROLES: Roles = Roles { edge: true, node: true };
/// Flags of a TCP header.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Where the transport header begins in a frame of IPv4.
const L4: usize = 34;
const SECOND_NS: u64 = 1_000_000_000;

/// The first service with these pods of this host: the last byte of each address, and whether it drains.
fn scene(pods: &[(u8, bool)]) -> Scene {
    let mut scene = Scene::node();
    let pods: Vec<_> = pods.iter().map(|&(last, draining)| (last, 8080, draining)).collect();
    scene.put_pods(0, &pods, 128);
    // The edge is this host, too: what comes for a VIP goes to a pod in the same pass.
    scene.routes.insert(ip(BACKENDS[0]), Route::Local);
    scene
}

/// The same, and port 81 of the VIP leads to the same port of the same pods; their flows are recorded.
fn two_ports(pods: &[(u8, bool)]) -> Scene {
    let mut scene = scene(pods);
    let service = scene.desired.services[&keys()[0]].clone();
    scene.desired.services.insert(port_81(), service);
    scene
}

fn port_81() -> ServiceKey {
    ServiceKey::new(ip("198.51.100.1").into(), Family::V4, 6, 81)
}

fn turn(tables: &mut Tables<HostMaps>, scene: &Scene) {
    for step in plan::steps(&tables.actual(), &scene.wanted()) {
        tables.apply(&step, Instant::now()).expect("room");
    }
}

/// A segment of a client's flow, to the service of this key.
fn segment(key: &ServiceKey, flow: u16, flags: u8) -> HostFrame {
    let mut bytes = frame(key, key.port(), flow);
    bytes[L4 + 13] = flags;
    HostFrame::new(&bytes, 1)
}

/// The reason, and the pod that was chosen.
fn ask(tables: &Tables<HostMaps>, mut frame: HostFrame) -> (Reason, Option<IpAddr>) {
    let (reason, trail) = tables.store.run(ROLES, &mut frame);
    let first = |there: &crate::datapath::tables::Installed| {
        let place = (trail.pod as u32).checked_sub(1)?.checked_sub(there.first_pod()?)?;
        there.pods.keys().nth(place as usize).map(|pod| pod.address)
    };
    let pod = tables.installed().values().find(|there| u64::from(there.id) + 1 == trail.service).and_then(first);
    (reason, pod)
}

/// The connection of a flow as the pod's sockets would know it.
fn connection(flow: u16, pod: u8) -> Connection {
    let client = IpAddr::from([203, 0, 113, flow as u8]);
    let ports = u32::from(1024 + flow * 7) << 16 | 8080;
    Connection { client: client.into(), pod: pod_address(pod).into(), ports, family: Family::V4 }
}

/// An ICMP error by a router about what the VIP had sent to the client of a flow.
fn error_about(flow: u16) -> HostFrame {
    let mut bytes = frame(&keys()[0], 80, flow)[..L4].to_vec();
    bytes[26..30].copy_from_slice(&[192, 0, 2, 9]);
    bytes[16..18].copy_from_slice(&56u16.to_be_bytes());
    bytes[23] = 1;
    bytes[24..26].fill(0);
    let header: [u8; 20] = bytes[14..].try_into().expect("a header");
    bytes[24..26].copy_from_slice(&checksum::finish(checksum::sum(&header)).to_ne_bytes());
    bytes.extend([3, 4, 0, 0, 0, 0, 5, 0]);
    let (vip, client) = ([198, 51, 100, 1], [203, 0, 113, flow as u8]);
    bytes.extend([0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 60, 6, 0, 0]);
    bytes.extend([vip, client].concat());
    bytes.extend([[0, 80], (1024 + flow * 7).to_be_bytes(), [0, 0], [0, 1]].concat());
    HostFrame::new(&bytes, 1)
}

/// The flows of whose slot this pod is the owner.
fn flows_of(tables: &Tables<HostMaps>, key: &ServiceKey, pod: u8) -> Vec<u16> {
    let chosen = |flow: &u16| ask(tables, segment(key, *flow, ACK)) == (Reason::DeliveredToPod, Some(pod_address(pod)));
    (0..64).filter(chosen).collect()
}

#[test]
fn a_former_pod_keeps_the_flows_that_its_sockets_know() {
    let mut tables = scene(&[(1, false), (2, false), (3, false)]).fresh(ROOMY);
    let flows = flows_of(&tables, &keys()[0], 1);
    assert!(flows.len() > 8, "{flows:?}");
    turn(&mut tables, &scene(&[(1, true), (2, false), (3, false)]));
    for flow in flows {
        let known = |flags| segment(&keys()[0], flow, flags).with_socket(1, connection(flow, 1), Socket::Connected);
        let elsewhere = ask(&tables, segment(&keys()[0], flow, ACK));
        assert_eq!(elsewhere.0, Reason::DeliveredToPod);
        assert_ne!(elsewhere.1, Some(pod_address(1)), "flow {flow}: nobody knows it, and it goes to a pod that drains");
        for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
            let found = ask(&tables, known(flags));
            assert_eq!(found, (Reason::DeliveredToFormerPod, Some(pod_address(1))), "flow {flow}, flags {flags}");
        }
        assert_eq!(ask(&tables, known(SYN)), elsewhere, "flow {flow}: a new connection from the same port");
        let listens = segment(&keys()[0], flow, ACK).with_socket(1, connection(flow, 1), Socket::Listens);
        assert_eq!(ask(&tables, listens), elsewhere, "flow {flow}: a listener knows nothing of it");
        let other = segment(&keys()[0], flow, ACK).with_socket(2, connection(flow, 1), Socket::Connected);
        assert_eq!(ask(&tables, other), elsewhere, "flow {flow}: another namespace's socket");
        // News for the socket that has the flow, and for the owner's if none does.
        let error = error_about(flow).with_socket(1, connection(flow, 1), Socket::Connected);
        assert_eq!(ask(&tables, error), (Reason::IcmpErrorDelivered, Some(pod_address(1))), "flow {flow}");
        assert_eq!(ask(&tables, error_about(flow)), (Reason::IcmpErrorDelivered, elsewhere.1), "flow {flow}");
    }
}

#[test]
fn the_last_of_two_former_pods_is_asked_first() {
    let mut tables = scene(&[(1, false), (2, false), (3, false)]).fresh(ROOMY);
    let first = flows_of(&tables, &keys()[0], 1);
    turn(&mut tables, &scene(&[(1, true), (2, false), (3, false)]));
    let both: Vec<_> = flows_of(&tables, &keys()[0], 2).into_iter().filter(|flow| first.contains(flow)).collect();
    assert!(both.len() > 2, "{both:?}");
    turn(&mut tables, &scene(&[(1, true), (2, true), (3, false)]));
    for flow in both {
        let segment = || segment(&keys()[0], flow, ACK);
        let first = segment().with_socket(1, connection(flow, 1), Socket::Connected);
        let second = first.clone().with_socket(2, connection(flow, 2), Socket::Connected);
        assert_eq!(ask(&tables, first), (Reason::DeliveredToFormerPod, Some(pod_address(1))));
        assert_eq!(ask(&tables, second.clone()), (Reason::DeliveredToFormerPod, Some(pod_address(2))));
        assert_eq!(ask(&tables, segment()), (Reason::DeliveredToPod, Some(pod_address(3))));
        // A former pod without a device is not asked, whatever its sockets know.
        let mut without = scene(&[(1, true), (2, true), (3, false)]).fresh(ROOMY);
        std::mem::swap(&mut without, &mut tables);
        let interface = |pod: u8| 10 + u32::from(pod);
        without.store.remove_interface(interface(2));
        assert_eq!(ask(&without, second), (Reason::DeliveredToFormerPod, Some(pod_address(1))));
        without.restore_devices();
        tables = without;
    }
}

#[test]
fn a_pod_that_lost_its_device_is_a_miss_until_it_is_there_again() {
    let mut tables = scene(&[(1, false), (2, false)]).fresh(ROOMY);
    let flows = flows_of(&tables, &keys()[0], 1);
    let outcomes = |tables: &Tables<HostMaps>| -> Vec<_> {
        flows.iter().map(|flow| ask(tables, segment(&keys()[0], *flow, SYN))).collect()
    };
    let before = outcomes(&tables);
    assert!(!tables.lost_a_device());
    tables.store.remove_interface(11);
    assert!(tables.lost_a_device());
    let found: BTreeSet<_> = outcomes(&tables).into_iter().collect();
    // The slots that follow belong to the other, or to none that can be reached.
    let expected = [(Reason::DeliveredToPod, Some(pod_address(2))), (Reason::PodGone, None)];
    assert!(found.is_subset(&BTreeSet::from(expected)) && found.contains(&expected[0]), "{found:?}");
    tables.store.remove_interface(12);
    assert!(outcomes(&tables).iter().all(|outcome| *outcome == (Reason::PodGone, None)));
    tables.restore_devices();
    assert!(!tables.lost_a_device());
    assert_eq!(outcomes(&tables), before);
}

#[test]
fn two_flows_that_would_be_one_at_the_pod_go_to_two_pods() {
    let (first, second) = (keys()[0], port_81());
    let tables = two_ports(&[(1, false), (2, false)]).fresh(ROOMY);
    let mut collisions = 0;
    for flow in 0..64 {
        let (there, here) = (ask(&tables, segment(&first, flow, SYN)), ask(&tables, segment(&second, flow, SYN)));
        assert_eq!(there.0, Reason::DeliveredToPod);
        match here.0 {
            Reason::DeliveredToPod => assert_ne!(here.1, there.1, "flow {flow}: one flow for the pod"),
            // All the slots that are asked are that pod's.
            reason => assert_eq!(reason, Reason::FlowCollision),
        }
        collisions += u32::from(here.0 == Reason::FlowCollision);
        assert_eq!(ask(&tables, segment(&first, flow, ACK)), there, "flow {flow}: the first goes on");
        let goes_on = if here.0 == Reason::DeliveredToPod { here } else { (Reason::FlowCollision, None) };
        assert_eq!(ask(&tables, segment(&second, flow, ACK)), goes_on, "flow {flow}: the second goes on");
    }
    assert!((1..32).contains(&collisions), "{collisions} of 64 had nowhere else to go");
}

/// One pod, and whether a flow to port 81 may have the place of one to port 80 that sent these, after so long.
fn may_take_over(flags: &[u8], nanoseconds: u64) -> bool {
    let mut tables = two_ports(&[(1, false)]).fresh(ROOMY);
    for flags in flags {
        assert_eq!(ask(&tables, segment(&keys()[0], 7, *flags)).0, Reason::DeliveredToPod);
    }
    tables.store.advance(nanoseconds);
    match ask(&tables, segment(&port_81(), 7, SYN)).0 {
        Reason::DeliveredToPod => {
            assert_eq!(ask(&tables, segment(&keys()[0], 7, ACK)).0, Reason::FlowCollision, "both have the place");
            true
        }
        Reason::FlowCollision => false,
        reason => panic!("{reason:?}"),
    }
}

#[test]
fn a_record_keeps_its_place_for_as_long_as_its_flow_may_live() {
    let cases: [(&[u8], u64); 4] = [
        (&[SYN], RECORD_SHORT_NS),
        (&[SYN, ACK], RECORD_TCP_NS),
        (&[SYN, ACK, FIN | ACK], RECORD_SHORT_NS),
        // Older than its record.
        (&[ACK], RECORD_TCP_NS),
    ];
    for (flags, limit) in cases {
        assert!(!may_take_over(flags, limit), "{flags:?}");
        assert!(may_take_over(flags, limit + 1), "{flags:?}");
    }
    // The client may use its port again at once.
    assert!(may_take_over(&[SYN, ACK, RST], 0));
    const { assert!(RECORD_SHORT_NS < RECORD_UDP_NS && RECORD_UDP_NS < RECORD_TCP_NS) };
}

#[test]
fn a_flow_without_room_for_its_record_is_refused() {
    let mut tables = two_ports(&[(1, false), (2, false)]).fresh(ROOMY);
    tables.store.limit_records(1);
    assert_eq!(ask(&tables, segment(&keys()[0], 1, SYN)).0, Reason::DeliveredToPod);
    assert_eq!(ask(&tables, segment(&keys()[0], 2, SYN)).0, Reason::FlowNotRecorded);
    assert_eq!(ask(&tables, segment(&keys()[0], 1, ACK)).0, Reason::DeliveredToPod, "it has its record");
}

#[test]
fn a_recorded_flow_stays_with_a_former_pod_without_its_sockets() {
    let mut tables = two_ports(&[(1, false), (2, false)]).fresh(ROOMY);
    let flows: Vec<u16> = (0..32).collect();
    let before: Vec<_> = flows.iter().map(|flow| ask(&tables, segment(&keys()[0], *flow, SYN)).1).collect();
    turn(&mut tables, &two_ports(&[(1, true), (2, false)]));
    for (flow, pod) in flows.iter().zip(before) {
        let (reason, now) = ask(&tables, segment(&keys()[0], *flow, ACK));
        assert_eq!(now, pod, "flow {flow}");
        assert!(pod != Some(pod_address(1)) || reason == Reason::DeliveredToFormerPod, "flow {flow}: {reason:?}");
    }
    let new = ask(&tables, segment(&keys()[0], 40, SYN));
    assert_eq!(new, (Reason::DeliveredToPod, Some(pod_address(2))));
}

#[test]
fn nobody_is_answered_before_the_grace_is_over() {
    let mut tables = scene(&[]).fresh(ROOMY);
    let syn = || segment(&keys()[0], 1, SYN);
    assert_eq!(ask(&tables, syn()), (Reason::NoPod, None));
    tables.store.advance(2 * SECOND_NS - 1);
    assert_eq!(ask(&tables, syn()), (Reason::NoPod, None));
    tables.store.advance(1);
    assert_eq!(ask(&tables, syn()), (Reason::ResetSent, None));
    assert_eq!(ask(&tables, segment(&keys()[0], 1, ACK)), (Reason::ResetSent, None));
    assert_eq!(ask(&tables, segment(&keys()[0], 1, RST)), (Reason::NoPod, None));
    assert_eq!(ask(&tables, segment(&keys()[0], 1, RST | ACK)), (Reason::NoPod, None));
    assert_eq!(ask(&tables, error_about(1)), (Reason::NoPod, None));
}
