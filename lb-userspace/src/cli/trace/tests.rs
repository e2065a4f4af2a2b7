//! A flow's way as people read it.

use lb_common::verdict::Reason;

use super::*;
use crate::flows::Flow;
use crate::status::{PodStatus, sample};

fn asked() -> FlowAsked {
    let address = |text: &str| text.parse().expect("an address");
    FlowAsked::new("tcp", address("203.0.113.7:40000"), address("198.51.100.10:80")).expect("a flow")
}

fn traced() -> Trace {
    Trace {
        service: Some(ServiceTrace {
            label: "web/http".to_owned(),
            port: 80,
            delivery: "pod".to_owned(),
            source_affinity: false,
            problem: None,
        }),
        hash: Some("00c0ffee00c0ffee".to_owned()),
        ..Trace::new(&asked())
    }
}

fn pods() -> Vec<PodStatus> {
    sample().services.swap_remove(0).pods
}

fn candidate(role: &str, pod: PodStatus) -> PodTrace {
    PodTrace { role: role.to_owned(), pod, recorded_because: Vec::new(), record: None }
}

fn node() -> NodeTrace {
    let [first, second, third] = pods().try_into().expect("three pods");
    let record = Flow {
        protocol: "TCP".to_owned(),
        client: asked().client.ip(),
        client_port: 40_000,
        vip: asked().vip.ip(),
        vip_port: 80,
        pod: first.address,
        pod_port: first.port,
        state: "established".to_owned(),
        age_seconds: 90,
        idle_seconds: 2,
        expired: false,
    };
    let owner = PodTrace {
        recorded_because: vec!["2 VIPs or ports lead to 10.244.1.11:8080".to_owned()],
        record: Some(record),
        ..candidate("owner", first)
    };
    NodeTrace {
        slot: 17,
        slots: 1024,
        candidates: vec![candidate("former", third), owner, candidate("next", second)],
        pod: Some("10.244.1.11:8080".parse().expect("an address")),
        without_pods_ms: None,
        reply: Some(ReplyTrace {
            leaves_as: Some(asked().vip),
            because: "the record says so".to_owned(),
            outcome: Reason::ReplyRewritten.into(),
        }),
        outcome: Reason::DeliveredToPod.into(),
    }
}

#[test]
fn a_way_through_edge_and_node() {
    let backends = sample().services.swap_remove(0).backends;
    let edge = EdgeTrace {
        slot: 3054,
        slots: 4096,
        owner: Some(backends[0].clone()),
        alternates: backends[1..].to_vec(),
        outcome: Reason::Forwarded.into(),
    };
    let text = render(&Trace { edge: Some(edge), node: Some(node()), ..traced() });
    assert_eq!(
        text,
        "\
203.0.113.7:40000 -> 198.51.100.10:80, TCP
  service   web/http, delivery pod
  hash      00c0ffee00c0ffee, of both ends
as an edge: slot 3054 of 4096
  owner     10.0.0.11, ready, by eth0 02:00:00:00:00:02 mtu 1500
  alternate 10.0.0.12, ready, UNREACHABLE: 10.0.0.12 does not answer on eth0 (ARP): is that host up, and on this network?; owns the slot if those above leave
  alternate 10.0.0.13, draining, by eth0 02:00:00:00:00:02 mtu 1500; owns the slot if those above leave
  packet    send, forwarded: Encapsulated and sent to a backend.
as a node: slot 17 of 1024
  former    10.244.1.13:8080, draining, by veth13; asked first by what is no SYN, whether its sockets know the flow
  owner     10.244.1.11:8080, ready, by veth11
            its flows are recorded: 2 VIPs or ports lead to 10.244.1.11:8080
            record of this flow: established, 1m 30s old, idle for 2s
  next      10.244.1.12:8080, ready, NO DEVICE: no route leads to 10.244.1.12: the pod is not on this host (any more), or its network is not set up; asked if those above cannot have the flow
  pod       10.244.1.11:8080: the record says so
  replies   leave as 198.51.100.10:80: the record says so
  packet    pass, delivered_to_pod: Handed to a pod of this node, with the pod's address and port.
"
    );
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
    assert!(page.contains(&text), "docs/operations.md lacks this:\n{text}");
}

#[test]
fn a_drop_says_what_to_do() {
    let text = render(&Trace { outcome: Some(Reason::InnerNotService.into()), ..Trace::new(&asked()) });
    assert!(text.contains("  service   none: no service"), "{text}");
    assert!(text.contains("  packet    DROP, inner_not_service: "), "{text}");
    assert!(text.contains("  do        Edge and node have different configurations"), "{text}");
}

#[test]
fn another_flows_record_is_told() {
    let mut node = node();
    if let Some(record) = &mut node.candidates[1].record {
        record.vip = "198.51.100.11".parse().expect("an address");
    }
    (node.pod, node.reply, node.outcome) = (None, None, Reason::FlowCollision.into());
    let text = render(&Trace { node: Some(node), ..traced() });
    assert!(text.contains("record of ANOTHER flow, to 198.51.100.11:80: established"), "{text}");
    assert!(text.contains("  packet    DROP, flow_collision: "), "{text}");
}

#[test]
fn a_node_without_pods_says_for_how_long() {
    let empty = NodeTrace {
        slots: 0,
        candidates: Vec::new(),
        pod: None,
        without_pods_ms: Some(61_500),
        reply: None,
        outcome: Reason::ResetSent.into(),
        ..node()
    };
    let text = render(&Trace { node: Some(empty), ..traced() });
    assert!(text.contains("as a node\n  pods      none here for 1m 1s\n  packet    answer, reset_sent: "), "{text}");
}

#[test]
fn a_trace_comes_back_as_it_went() {
    let trace = Trace { node: Some(node()), ..traced() };
    let text = serde_json::to_string(&trace).expect("JSON");
    assert_eq!(serde_json::from_str::<Trace>(&text).expect("a trace"), trace);
    assert!(text.contains("\"client\":\"203.0.113.7:40000\""), "{text}");
}
