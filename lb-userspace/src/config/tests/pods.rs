//! Delivery to pods: what is accepted and what is refused.

use std::fmt::Write as _;

use super::super::{BackendState, parse};
use super::{HEAD, accepted, assert_refused, messages};
use crate::model::Delivery;

/// A service with these backends; its port 80 leads to 8080.
fn web(backends: &str) -> String {
    format!(
        "{{name: web, address: 198.51.100.10, delivery: pod, ports: [{{port: 80, targetPort: 8080}}], backends: [{backends}]}}"
    )
}

/// A file with this service alone.
fn alone(service: &str) -> String {
    format!("services:\n- {service}\n")
}

/// That a file with these backends, in line 5, gives exactly this message.
fn assert_backends_refused(cases: &[(&str, &str)]) {
    for (backends, message) in cases {
        let lines = messages(&format!("{HEAD}{}", alone(&web(backends))));
        assert_eq!(lines.len(), 1, "{lines:?}");
        let (place, rest) = lines[0].split_once(": ").expect("file and place first");
        assert!(place.starts_with("lb.yaml:5:"), "{place}");
        assert_eq!(rest, *message, "{backends}");
    }
}

#[test]
fn pods_have_defaults() {
    let config = accepted(&alone(&web("{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}, {address: 10.0.0.2}")));
    let [service] = &config.services[..] else { panic!("one service") };
    assert_eq!(service.delivery, Delivery::Pod);
    let [node, empty] = &service.backends[..] else { panic!("two backends") };
    assert_eq!((node.state, node.agent, node.pods.len()), (BackendState::Ready, true, 1));
    let pod = node.pods[0];
    assert_eq!((pod.port, pod.weight, pod.state, pod.record_flows), (None, 100, BackendState::Ready, false));
    assert!(empty.pods.is_empty() && empty.agent);
}

#[test]
fn what_pods_may_share() {
    // A pod in the node's network; one pod with two ports; one behind two VIPs and on the same node twice; another port
    // of a pod that names none.
    let nodes = "{address: 10.0.0.1, pods: [{address: 10.0.0.1, port: 9000}, {address: 10.244.1.2, port: 81}, \
                 {address: 10.244.1.2, port: 82}, {address: 10.244.1.2}]}";
    let config = accepted(&format!(
        "services:\n- {}\n- {{name: dns, address: 198.51.100.11, delivery: pod, ports: [{{port: 53, protocol: UDP}}, {{port: 53}}], \
         backends: [{nodes}]}}\n\
         - {{name: six, address: \"2001:db8::1\", delivery: pod, ports: [{{port: 80}}], \
         backends: [{{address: 10.0.0.1, pods: [{{address: \"fd00:244::2\"}}]}}]}}\n\
         - {{name: host, address: 198.51.100.12, ports: [{{port: 22}}], backends: [{{address: 10.0.0.1, pods: []}}]}}\n",
        web(nodes)
    ));
    assert_eq!(config.services.len(), 4);
}

#[test]
fn a_node_is_weighed_by_its_pods_and_runs_the_agent() {
    assert_backends_refused(&[
        (
            "{address: 10.0.0.1, weight: 50, pods: [{address: 10.244.1.2}]}",
            "services[0].backends[0].weight: 50 has no meaning: with delivery pod its pods' weights count; leave it out",
        ),
        (
            "{address: 10.0.0.1, weight: 0}",
            "services[0].backends[0].weight: 0 has no meaning: with delivery pod its pods' weights count; leave it out",
        ),
        (
            "{address: 10.0.0.1, agent: false}",
            "services[0].backends[0].agent: false: a node without the agent cannot deliver to pods; leave it out, or write \
             delivery: host",
        ),
    ]);
    let agent = accepted(&alone(&web("{address: 10.0.0.1, agent: true}")));
    assert!(agent.services[0].backends[0].agent);
}

#[test]
fn fields_of_pods() {
    let pod = |fields: &str| format!("{{address: 10.0.0.1, pods: [{{{fields}}}]}}");
    let path = "services[0].backends[0].pods[0]";
    for (fields, message) in [
        ("port: 80", ".address: is missing: the pod's own"),
        ("address: 10.244", ".address: \"10.244\" is not an IP address"),
        (
            "address: 127.0.0.1",
            ".address: \"127.0.0.1\" is a loopback address; a VIP, a backend or a pod needs a unicast address that is routed",
        ),
        ("address: 10.244.1.2, port: 0", ".port: 0 is not a whole number from 1 to 65535"),
        ("address: 10.244.1.2, port: 65536", ".port: 65536 is not a whole number from 1 to 65535"),
        (
            "address: 10.244.1.2, weight: 0",
            ".weight: 0 is not a weight from 1 to 1000; write state: draining to give it no new flows",
        ),
        ("address: 10.244.1.2, weight: 1001", ".weight: 1001 is not a whole number from 1 to 1000"),
        ("address: 10.244.1.2, state: terminating", ".state: \"terminating\" is not one of ready, draining"),
        ("address: 10.244.1.2, recordFlows: 1", ".recordFlows: 1 is neither true nor false"),
        (
            "address: 10.244.1.2, name: a",
            ".name: unknown field; the fields here are address, port, weight, state, recordFlows",
        ),
    ] {
        assert_backends_refused(&[(&pod(fields), &format!("{path}{message}"))]);
    }
    assert_backends_refused(&[
        ("{address: 10.0.0.1, pods: }", "services[0].backends[0].pods: is empty; write [] for an empty list"),
        (
            "{address: 10.0.0.1, pods: {address: 10.244.1.2}}",
            "services[0].backends[0].pods: a mapping is not a list; write it as [...]",
        ),
    ]);
}

#[test]
fn delivery_host_has_no_pods() {
    assert_refused(&[(
        "services: [{name: web, address: 198.51.100.10, ports: [{port: 80}], \
         backends: [{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}]}]",
        "lb.yaml:4:106: services[0].backends[0].pods: delivery host hands packets to no pod; write delivery: pod, or leave \
         the pods out",
    )]);
}

#[test]
fn ports_are_named() {
    let with = |port: &str| {
        format!(
            "services: [{{name: web, address: 198.51.100.10, delivery: pod, ports: [{port}], \
             backends: [{{address: 10.0.0.1}}]}}]"
        )
    };
    assert_refused(&[
        (
            &with("{port: 0}"),
            "lb.yaml:4:78: services[0].ports[0].port: 0 is all ports, and with delivery pod a reply could not be told from the \
             pod's own traffic; name the ports",
        ),
        (
            &with("{port: 80, targetPort: 0}"),
            "lb.yaml:4:94: services[0].ports[0].targetPort: 0 is no port; write 1 to 65535, or leave it out",
        ),
    ]);
}

#[test]
fn a_pod_has_an_address_of_its_own_and_of_its_vips_family() {
    assert_backends_refused(&[
        (
            "{address: 10.0.0.1, pods: [{address: \"fd00::2\"}]}",
            "services[0].backends[0].pods[0].address: fd00::2 is an IPv6 address, and the VIP 198.51.100.10 is IPv4: only the \
             tunnel to the node may be of the other family; write the pod's IPv4 address",
        ),
        (
            "{address: 10.0.0.1, pods: [{address: 198.51.100.10}]}",
            "services[0].backends[0].pods[0].address: 198.51.100.10 is the VIP of services[0]; a pod has an address of its own",
        ),
        (
            "{address: 10.0.0.1, pods: [{address: 10.0.0.2}]}, {address: 10.0.0.2}",
            "services[0].backends[0].pods[0].address: 10.0.0.2 is the address of services[0].backends[1]; a pod has an address \
             of its own, or that of the backend that it is on",
        ),
        (
            "{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}, {address: 10.0.0.2, pods: [{address: 10.244.1.2, port: 81}]}",
            "services[0].backends[1].pods[0].address: 10.244.1.2 is a pod of 10.0.0.1 in services[0].backends[0].pods[0]; a \
             pod is on one node",
        ),
    ]);
    let twice = |first: &str, second: &str| {
        messages(&format!(
            "{HEAD}services:\n- {}\n- {{name: b, address: \"2001:db8::1\", ports: [{{port: 22}}], backends: [{second}]}}\n",
            web(first)
        ))
    };
    assert_eq!(
        twice("{address: 10.0.0.1, pods: [{address: 10.0.0.9}]}", "{address: 10.0.0.9}"),
        [
            "lb.yaml:5:141: services[0].backends[0].pods[0].address: 10.0.0.9 is the address of services[1].backends[0]; a pod \
          has an address of its own, or that of the backend that it is on"
        ]
    );
}

#[test]
fn the_same_pod_stands_on_one_node_in_the_whole_file() {
    let lines = messages(&format!(
        "{HEAD}services:\n- {}\n- {{name: b, address: 198.51.100.11, delivery: pod, ports: [{{port: 80}}], \
         backends: [{{address: 10.0.0.2, pods: [{{address: 10.244.1.2}}]}}]}}\n\
         - {{name: c, address: 10.244.1.2, ports: [{{port: 80}}], backends: []}}\n",
        web("{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}")
    ));
    let rest: Vec<_> = lines.iter().map(|line| line.split_once(": ").expect("a place").1).collect();
    assert_eq!(
        rest,
        [
            "services[0].backends[0].pods[0].address: 10.244.1.2 is the VIP of services[2]; a pod has an address of its own",
            "services[1].backends[0].pods[0].address: 10.244.1.2 is the VIP of services[2]; a pod has an address of its own",
            "services[1].backends[0].pods[0].address: 10.244.1.2 is a pod of 10.0.0.1 in services[0].backends[0].pods[0]; a \
             pod is on one node",
        ]
    );
}

#[test]
fn no_pod_serves_a_port_twice() {
    let pods = |pods: &str| format!("{{address: 10.0.0.1, pods: [{pods}]}}");
    let message =
        |what: &str| format!("services[0].backends[0].pods[1]: {what} stands twice in this backend; keep one");
    for (list, what) in [
        ("{address: 10.244.1.2}, {address: 10.244.1.2, weight: 5}", "10.244.1.2"),
        ("{address: 10.244.1.2, port: 81}, {address: 10.244.1.2, port: 81}", "10.244.1.2 with port 81"),
        ("{address: 10.244.1.2}, {address: 10.244.1.2, port: 8080}", "10.244.1.2 with port 8080"),
        ("{address: 10.244.1.2, port: 8080}, {address: 10.244.1.2}", "10.244.1.2 with port 8080"),
    ] {
        assert_backends_refused(&[(&pods(list), &message(what))]);
    }
}

#[test]
fn weights_of_a_backend_fit_a_table() {
    let pods = |count: usize, weight: u32| {
        let mut text = String::from("{address: 10.0.0.1, pods: [");
        for index in 0..count {
            write!(text, "{{address: 10.244.{}.{}, weight: {weight}}},", index >> 8, index & 255).unwrap();
        }
        text + "]}"
    };
    assert_eq!(accepted(&alone(&web(&pods(1024, 256)))).services[0].backends[0].pods.len(), 1024);
    assert_backends_refused(&[(
        &pods(1024, 257),
        "services[0].backends[0].pods: their weights are 263168 together, and 262144 at most fit; write smaller ones",
    )]);
    assert_backends_refused(&[(
        &pods(65536, 1),
        "services[0].backends[0].pods: 65536 pods are too many: a backend has up to 65535",
    )]);
}

#[test]
fn internal_networks_hold_no_vip() {
    let services = alone(&web(""));
    assert_refused(&[
        (
            &format!(
                "node: {{trustedSources: [10.0.0.1], internalNetworks: [10.0.0.0/8, 198.51.100.0/24]}}\n{services}"
            ),
            "lb.yaml:4:67: node.internalNetworks[1]: 198.51.100.0/24 contains 198.51.100.10, the VIP of services[0]; name \
             networks of pods, nodes and Services, without VIPs",
        ),
        (
            &format!("node: {{trustedSources: [10.0.0.1], internalNetworks: [\"::/0\", 0.0.0.0/0]}}\n{services}"),
            "lb.yaml:4:63: node.internalNetworks[1]: 0.0.0.0/0 contains 198.51.100.10, the VIP of services[0]; name networks of \
             pods, nodes and Services, without VIPs",
        ),
        (
            "node: {trustedSources: [10.0.0.1], internalNetworks: [\"2001:db8::1/128\"]}\n\
             services: [{name: a, address: \"2001:db8::1\", ports: [{port: 80}], backends: []}, \
             {name: b, address: \"2001:db8::1\", ports: [{port: 81}], backends: []}]\n",
            "lb.yaml:4:55: node.internalNetworks[0]: 2001:db8::1/128 contains 2001:db8::1, the VIP of services[0]; name \
             networks of pods, nodes and Services, without VIPs",
        ),
    ]);
    let both = format!("node: {{trustedSources: [10.0.0.1], internalNetworks: [0.0.0.0/0, 0.0.0.0/0]}}\n{services}");
    assert_eq!(messages(&format!("{HEAD}{both}")).len(), 2, "each place is named");
}

#[test]
fn a_tunnel_source_holds_no_pod() {
    assert_refused(&[(
        &format!(
            "edge: {{tunnelSource: {{ipv4: 10.244.0.0/16}}}}\n{}",
            alone(&web("{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}"))
        ),
        "lb.yaml:4:29: edge.tunnelSource.ipv4: 10.244.0.0/16 contains 10.244.1.2, the address of \
         services[0].backends[0].pods[0]; take a prefix that is routed to this edge and used for nothing else",
    )]);
}

#[test]
fn pods_count_for_the_maps() {
    let services = "services: [{name: a, address: 198.51.100.1, delivery: pod, ports: [{port: 80}, {port: 81}], \
                    backends: [{address: 10.0.0.1, pods: [{address: 10.244.1.2}, {address: 10.244.1.3}]}, \
                    {address: 10.0.0.2}]}]";
    assert_refused(&[(
        &format!("maps: {{backends: 7}}\n{services}"),
        "lb.yaml:4:18: maps.backends: 7 is too small: the services have 8 backends and pods, counted for each port; write at \
         least 8",
    )]);
    accepted(&format!("maps: {{backends: 8}}\n{services}"));
}

#[test]
fn exempting_from_nat_is_a_wish() {
    let node = |field: &str| accepted(&format!("node: {{trustedSources: [10.0.0.1]{field}}}")).node.unwrap();
    assert!(!node("").nat_exemption);
    assert!(node(", natExemption: true").nat_exemption);
    assert_refused(&[(
        "node: {trustedSources: [10.0.0.1], natExemption: on}",
        "lb.yaml:4:50: node.natExemption: \"on\" is neither true nor false",
    )]);
}

#[test]
fn advice_for_pods() {
    let node = "node: {trustedSources: [10.0.0.1], internalNetworks: [10.244.0.0/16]}\n";
    let service = |name: &str, vip: u8, backends: &str| {
        format!(
            "- {{name: {name}, address: 198.51.100.{vip}, delivery: pod, ports: [{{port: 80}}], backends: [{backends}]}}\n"
        )
    };
    let services = [
        service("good", 1, "{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}"),
        service("none", 2, "{address: 10.0.0.1}, {address: 10.0.0.2, pods: []}"),
        service(
            "drain",
            3,
            "{address: 10.0.0.1, state: draining, pods: [{address: 10.244.1.2}]}, \
             {address: 10.0.0.2, pods: [{address: 10.244.2.2, state: draining}]}",
        ),
        service("empty", 4, ""),
    ];
    let mut crowd = String::from("{address: 10.0.0.3, pods: [");
    for pod in 0..100 {
        write!(crowd, "{{address: 10.244.3.{pod}}},").unwrap();
    }
    let crowd = service("crowd", 5, &(crowd + "]}")).replace("delivery: pod", "slots: 1024, delivery: pod");
    let services = format!("services:\n{}{crowd}", services.concat());
    assert_eq!(
        accepted(&format!("{node}{services}")).advice(),
        [
            "services[1] (none): no backend has pods: packets to it are dropped and counted",
            "services[2] (drain): all pods are draining: they go on taking new flows until one is ready",
            "services[3] (empty): no backends: packets to it are dropped and counted",
            "services[4] (crowd): 1024 slots for 100 pods of a backend are few: shares become uneven; slots: 65536 fits",
        ]
    );
    let bare = accepted(&format!(
        "node: {{trustedSources: [10.0.0.1]}}\n{}",
        alone(&web("{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}"))
    ));
    assert_eq!(
        bare.advice(),
        [
            "node.internalNetworks: there are none, and replies to addresses inside the cluster must not be rewritten: this \
          file's pods and nodes are known, all others are not; write the networks of pods, nodes and Services, such as \
          [10.244.0.0/16, 10.50.0.0/24, 10.96.0.0/12]"
        ]
    );
    let edge = accepted(&format!("edge: {{}}\n{}", alone(&web("{address: 10.0.0.1, pods: [{address: 10.244.1.2}]}"))));
    assert_eq!(edge.advice(), [""; 0], "an edge rewrites no replies");
}

/// A check that compares all with all would not end: reading is one pass over any number of pods.
#[test]
fn a_hundred_thousand_pods_on_a_thousand_nodes() {
    let mut text = format!("{HEAD}maps: {{backends: 1000000}}\nservices:\n");
    for service in 0..100 {
        write!(
            text,
            "- {{name: s{service}, address: 198.18.0.{service}, slots: 64, delivery: pod, ports: [{{port: 80}}, {{port: 443}}], \
             backends: ["
        )
        .unwrap();
        for backend in 0..10 {
            let node = service * 10 + backend;
            write!(text, "{{address: 10.0.{}.{}, pods: [", node >> 8, node & 255).unwrap();
            for pod in 0..100 {
                let pod = node * 100 + pod;
                write!(text, "{{address: 10.{}.{}.{}}},", 100 + (pod >> 16), pod >> 8 & 255, pod & 255).unwrap();
            }
            text.push_str("]},");
        }
        text.push_str("]}\n");
    }
    let config = parse(&text, "lb.yaml").unwrap_or_else(|errors| panic!("{errors}"));
    let backends = config.services.iter().flat_map(|service| &service.backends);
    assert_eq!(backends.map(|backend| backend.pods.len()).sum::<usize>(), 100_000);
}
