//! What is refused of services and of how they fit together.

use std::fmt::Write as _;

use super::{HEAD, assert_refused, messages};

/// That a service with these fields beside its name gives exactly this message; it stands in line 4.
fn assert_service_refused(cases: &[(&str, &str)]) {
    for (fields, message) in cases {
        let text = format!("{HEAD}services: [{{name: web, {fields}}}]");
        let lines = messages(&text);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let (place, rest) = lines[0].split_once(": ").expect("file and place first");
        assert!(place.starts_with("lb.yaml:4:"), "{place}");
        assert_eq!(rest, *message, "{fields}");
    }
}

/// A service with these further fields.
fn with(fields: &str) -> String {
    format!("address: 198.51.100.10, ports: [{{port: 80}}], backends: [{{address: 10.0.0.1}}], {fields}")
}

fn with_backend(backend: &str) -> String {
    format!("address: 198.51.100.10, ports: [{{port: 80}}], backends: [{backend}]")
}

fn with_port(port: &str) -> String {
    format!("address: 198.51.100.10, ports: [{port}], backends: [{{address: 10.0.0.1}}]")
}

#[test]
fn required_fields() {
    assert_refused(&[("services: {}", "lb.yaml:4:11: services: a mapping is not a list; write it as [...]")]);
    assert_eq!(
        messages(&format!("{HEAD}services:\n- {{}}\n")),
        [
            "lb.yaml:5:3: services[0].name: is missing: what metrics and commands call the service",
            "lb.yaml:5:3: services[0].address: is missing: the VIP",
            "lb.yaml:5:3: services[0].ports: is missing: at least one, such as [{port: 80}]",
            "lb.yaml:5:3: services[0].backends: is missing: where packets go; [] for none yet",
        ]
    );
    assert_service_refused(&[
        (
            "address: 198.51.100.10, ports: [], backends: []",
            "services[0].ports: is empty; a service has at least one port, such as {port: 80}; port 0 is all ports",
        ),
        (
            &with_port("{name: a}"),
            "services[0].ports[0].port: is missing: a number from 1 to 65535, or 0 for all ports",
        ),
        (&with_backend("{}"), "services[0].backends[0].address: is missing: where the backend's packets are sent"),
        (
            "address: 198.51.100.10, ports: [{port: 80}], backends: ",
            "services[0].backends: is empty; write [] for an empty list",
        ),
    ]);
}

#[test]
fn names() {
    for (name, shown) in [("\"\"", "\"\""), ("a b", "\"a b\""), ("größe", "\"größe\"")] {
        let text =
            format!("{HEAD}services: [{{name: {name}, address: 198.51.100.10, ports: [{{port: 1}}], backends: []}}]");
        let message = format!("{shown} is not a name: 1 to 253 of the characters A-Z a-z 0-9 . _ / -");
        assert_eq!(messages(&text), [format!("lb.yaml:4:19: services[0].name: {message}")]);
    }
    assert_service_refused(&[
        (
            &with_port("{port: 80, name: a/b}"),
            "services[0].ports[0].name: \"a/b\" is not a port's name: 1 to 63 of the characters A-Z a-z 0-9 . _ -",
        ),
        (&with_port("{port: 80, name: 80}"), "services[0].ports[0].name: 80 is not text; write it in quotes: \"80\""),
        (
            &with_port("{port: 80, name: a}, {port: 81, name: a}"),
            "services[0].ports[1].name: \"a\" is the name of services[0].ports[0] too; every port has its own",
        ),
    ]);
}

#[test]
fn addresses() {
    let needs = "a VIP, a backend or a pod needs a unicast address that is routed";
    for (address, why) in [
        ("10.0.0", "is not an IP address".to_owned()),
        ("10.0.0.01", "is not an IP address".to_owned()),
        ("example.com", "is not an IP address".to_owned()),
        ("10.0.0.1/32", "is a prefix, not an IP address; write it as 10.0.0.1".to_owned()),
        ("::ffff:10.0.0.1", "is an IPv4-mapped IPv6 address; write it as 10.0.0.1".to_owned()),
        ("0.0.0.0", format!("is the unspecified address; {needs}")),
        ("::", format!("is the unspecified address; {needs}")),
        ("224.0.0.1", format!("is a multicast address; {needs}")),
        ("ff02::1", format!("is a multicast address; {needs}")),
        ("127.0.0.1", format!("is a loopback address; {needs}")),
        ("::1", format!("is a loopback address; {needs}")),
        ("255.255.255.255", format!("is the broadcast address; {needs}")),
        ("169.254.0.1", format!("is a link-local address; {needs}")),
        ("fe80::1", format!("is a link-local address; {needs}")),
    ] {
        let backend = with_backend(&format!("{{address: \"{address}\"}}"));
        assert_service_refused(&[
            (
                &format!("address: \"{address}\", ports: [{{port: 80}}], backends: []"),
                &format!("services[0].address: \"{address}\" {why}"),
            ),
            (&backend, &format!("services[0].backends[0].address: \"{address}\" {why}")),
        ]);
    }
    let number = "address: 10, ports: [{port: 80}], backends: []";
    assert_service_refused(&[
        (number, "services[0].address: \"10\" is not an IP address"),
        ("address: [], ports: [{port: 80}], backends: []", "services[0].address: a list is not text"),
    ]);
}

#[test]
fn ports() {
    assert_service_refused(&[
        (&with_port("{port: 65536}"), "services[0].ports[0].port: 65536 is not a whole number from 0 to 65535"),
        (
            &with_port("{port: \"80\"}"),
            "services[0].ports[0].port: \"80\" is not a whole number from 0 to 65535; write it without quotes",
        ),
        (
            &with_port("{port: 80, targetPort: 8080}"),
            "services[0].ports[0].targetPort: 8080 is not the port, 80: delivery host hands packets on unchanged; use the \
             same port, or delivery: pod",
        ),
        (
            &with_port("{port: 0, targetPort: 8080}"),
            "services[0].ports[0].targetPort: 8080 cannot serve all ports; write 0, or leave it out",
        ),
        (
            &with_port("{port: 80, protocol: tcp}"),
            "services[0].ports[0].protocol: \"tcp\" is not one of TCP, UDP; write TCP",
        ),
        (&with_port("{port: 80, protocol: ICMP}"), "services[0].ports[0].protocol: \"ICMP\" is not one of TCP, UDP"),
    ]);
}

#[test]
fn what_this_release_does_not_do() {
    assert_service_refused(&[
        (
            &with_port("{port: 80, protocol: SCTP}"),
            "services[0].ports[0].protocol: \"SCTP\" is not supported by this release; write TCP or UDP",
        ),
        (&with("forwarding: l2"), "services[0].forwarding: \"l2\" is not supported by this release; write ipip"),
        (
            &with("algorithm: maglev"),
            "services[0].algorithm: \"maglev\" is not supported by this release; write rendezvous",
        ),
        (
            &with("allow: [192.0.2.0/24]"),
            "services[0].allow: [192.0.2.0/24] is not supported by this release; write [], or filter before the edge",
        ),
    ]);
}

#[test]
fn slots_and_weights() {
    assert_service_refused(&[
        (&with("slots: 5000"), "services[0].slots: 5000 is not a power of two; the nearest are 4096 and 8192"),
        (&with("slots: 32"), "services[0].slots: 32 is not a whole number from 64 to 4194304"),
        (&with("affinity: client"), "services[0].affinity: \"client\" is not one of none, source"),
        (
            &with_backend("{address: 10.0.0.1, weight: 1001}"),
            "services[0].backends[0].weight: 1001 is not a whole number from 1 to 1000",
        ),
        (
            &with_backend("{address: 10.0.0.1, weight: 0}"),
            "services[0].backends[0].weight: 0 is not a weight from 1 to 1000; write state: draining to give it no new \
             flows",
        ),
        (
            &with_backend("{address: 10.0.0.1, state: down}"),
            "services[0].backends[0].state: \"down\" is not one of ready, draining",
        ),
        (&with_backend("{address: 10.0.0.1, agent: 1}"), "services[0].backends[0].agent: 1 is neither true nor false"),
    ]);
}

#[test]
fn nothing_stands_twice() {
    assert_refused(&[
        (
            "services:\n- {name: a, address: 198.51.100.1, ports: [{port: 80}], backends: []}\n\
             - {name: a, address: 198.51.100.2, ports: [{port: 80}], backends: []}\n",
            "lb.yaml:6:10: services[1].name: \"a\" is the name of services[0] too; every service has its own",
        ),
        (
            "services:\n- {name: a, address: 198.51.100.1, ports: [{port: 53}, {port: 53, protocol: UDP}], backends: []}\n\
             - {name: b, address: 198.51.100.1, ports: [{port: 54}, {port: 53, protocol: UDP}], backends: []}\n",
            "lb.yaml:6:63: services[1].ports[1].port: 198.51.100.1:53/UDP is taken by services[0].ports[1]; a VIP's port has \
             one service",
        ),
        (
            "services: [{name: a, address: \"2001:db8::1\", ports: [{port: 80}, {port: 80}], backends: []}]",
            "lb.yaml:4:73: services[0].ports[1].port: [2001:db8::1]:80/TCP is taken by services[0].ports[0]; a VIP's port has \
             one service",
        ),
        (
            "services:\n- {name: a, address: 198.51.100.1, ports: [{port: 80}], backends: [{address: 198.51.100.2}]}\n\
             - {name: b, address: 198.51.100.2, ports: [{port: 80}], backends: []}\n",
            "lb.yaml:5:78: services[0].backends[0].address: 198.51.100.2 is the VIP of services[1]; a backend has an address of \
             its own",
        ),
        (
            "services: [{name: a, address: \"2001:db8::1\", ports: [{port: 80}], \
             backends: [{address: 10.0.0.1}, {address: 10.0.0.1, weight: 5}]}]",
            "lb.yaml:4:109: services[0].backends[1].address: 10.0.0.1 stands twice in this service; keep one",
        ),
    ]);
}

#[test]
fn a_tunnel_source_is_used_for_nothing_else() {
    assert_refused(&[
        (
            "edge: {tunnelSource: {ipv4: 10.0.0.0/16}}\n\
             services: [{name: a, address: 198.51.100.1, ports: [{port: 80}], backends: [{address: 10.0.7.1}]}]\n",
            "lb.yaml:4:29: edge.tunnelSource.ipv4: 10.0.0.0/16 contains 10.0.7.1, the address of services[0].backends[0]; take \
             a prefix that is routed to this edge and used for nothing else",
        ),
        (
            "edge: {tunnelSource: {ipv6: \"2001:db8::/32\"}}\n\
             services: [{name: a, address: \"2001:db8::1\", ports: [{port: 80}], backends: []}]\n",
            "lb.yaml:4:29: edge.tunnelSource.ipv6: 2001:db8::/32 contains 2001:db8::1, the VIP of services[0]; take a prefix \
             that is routed to this edge and used for nothing else",
        ),
    ]);
}

#[test]
fn everything_fits_into_the_maps() {
    let services = "services: [{name: a, address: 198.51.100.1, slots: 1024, ports: [{port: 80}, {port: 81}], \
                    backends: [{address: 10.0.0.1}, {address: 10.0.0.2}]}]";
    assert_refused(&[
        (
            &format!("maps: {{services: 1}}\n{services}"),
            "lb.yaml:4:18: maps.services: 1 is too small: the services have 2 ports; write at least 2",
        ),
        (
            &format!("maps: {{backends: 3}}\n{services}"),
            "lb.yaml:4:18: maps.backends: 3 is too small: the services have 4 backends, counted for each port; write at least 4",
        ),
        (
            &format!("maps: {{slots: 2048}}\n{services}"),
            "lb.yaml:4:15: maps.slots: 2048 is too small: the tables have 2048 slots, and need as many again while they are \
             replaced; write at least 4096, or give services fewer slots",
        ),
        (
            "services: [{name: a, address: 198.51.100.1, slots: 4194304, ports: [{port: 80}, {port: 81}], backends: []}]",
            "lb.yaml: maps.slots: 8388608 is too small: the tables have 8388608 slots, and need as many again while they are \
             replaced; write at least 16777216, or give services fewer slots",
        ),
    ]);
    let mut ports = String::new();
    for port in 1..=129 {
        write!(ports, "{{port: {port}}}, ").unwrap();
    }
    let text =
        format!("{HEAD}services: [{{name: a, address: 198.51.100.1, slots: 4194304, ports: [{ports}], backends: []}}]");
    assert_eq!(
        messages(&text),
        [
            "lb.yaml: maps.slots: 8388608 is too small: the tables have 541065216 slots, and need as many again while they are \
          replaced; give services fewer slots: 536870912 at most fit in any map"
        ]
    );
}

#[test]
fn a_slot_can_name_all_backends() {
    let mut text =
        format!("{HEAD}services:\n- name: a\n  address: 198.51.100.1\n  ports: [{{port: 80}}]\n  backends:\n");
    for index in 0..=u16::MAX {
        writeln!(text, "  - {{address: 10.1.{}.{}}}", index >> 8, index & 255).unwrap();
    }
    assert_eq!(
        messages(&text),
        ["lb.yaml:9:5: services[0].backends: 65536 backends are too many: a service has up to 65535"]
    );
}
