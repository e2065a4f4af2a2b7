//! What is accepted, and what it then says.

use std::fmt::Write as _;
use std::time::Duration;

use super::super::{
    Affinity, BackendConfig, BackendState, Config, EdgeConfig, Forwarding, MapSizes, MssClamp, NodeConfig, PodConfig,
    PortConfig, Protocol, ServiceConfig, parse,
};
use super::{HEAD, accepted};
use crate::model::{Algorithm, Delivery, Prefix, TunnelSource};

fn prefix(address: &str, length: u8) -> Prefix {
    Prefix { address: address.parse().unwrap(), length }
}

/// Every field of the schema, with values of its own.
pub(super) const WHOLE: &str = r#"
apiVersion: beeline.dev/v1
kind: Config
hashSeed: 18446744073709551615
edge:
  interfaces: [eth0, eth1]
  tunnelSource: {ipv4: 10.200.0.0/16, ipv6: "fd00:bee::/64"}
node:
  interfaces: [eth2]
  trustedSources: [10.200.0.0/16, "fd00:bee::/64", 192.0.2.1]
  internalNetworks: [10.244.0.0/16, 10.50.0.0/24]
  directPodAccess: true
  mssClamp: off
  natExemption: true
transition: {max: 1d2h3m4s}
maps: {services: 2, backends: 7, slots: 32768, flows: 3}
pinPath: /run/beeline-lab/edge1/pins
metrics: {listen: "[::1]:9000"}
services:
- name: default/web
  address: 198.51.100.10
  ports: [{name: http, protocol: UDP, port: 80, targetPort: 80}]
  forwarding: ipip
  algorithm: rendezvous
  slots: 8192
  delivery: host
  affinity: source
  allow: []
  backends:
  - {address: 10.0.0.11, weight: 1}
  - {address: "2001:db8::12", weight: 1000, state: draining, agent: true}
- name: default/pods
  address: 198.51.100.11
  ports: [{port: 80, targetPort: 8080}]
  delivery: pod
  backends:
  - {address: 10.0.0.11, state: draining, agent: true, pods: [{address: 10.244.1.2}, {address: 10.0.0.11, port: 9000}]}
  - {address: 10.0.0.12, pods: [{address: 10.244.2.2, port: 1, weight: 1000, state: draining, recordFlows: true}]}
"#;

fn host(address: &str, weight: u32, state: BackendState, agent: bool) -> BackendConfig {
    BackendConfig { address: address.parse().unwrap(), weight, state, agent, pods: Vec::new() }
}

fn node(address: &str, state: BackendState, pods: &[PodConfig]) -> BackendConfig {
    BackendConfig { pods: pods.to_vec(), ..host(address, 100, state, true) }
}

fn pod(address: &str, port: Option<u16>) -> PodConfig {
    let address = address.parse().unwrap();
    PodConfig { address, port, weight: 100, state: BackendState::Ready, record_flows: false }
}

/// The services of [`WHOLE`].
fn services() -> Vec<ServiceConfig> {
    let special =
        PodConfig { weight: 1000, state: BackendState::Draining, record_flows: true, ..pod("10.244.2.2", Some(1)) };
    let hosts = ServiceConfig {
        name: "default/web".into(),
        address: "198.51.100.10".parse().unwrap(),
        ports: vec![PortConfig { name: Some("http".into()), protocol: Protocol::Udp, port: 80, target_port: 80 }],
        forwarding: Forwarding::Ipip,
        algorithm: Algorithm::Rendezvous,
        slots: 8192,
        delivery: Delivery::Host,
        affinity: Affinity::Source,
        allow: Vec::new(),
        backends: vec![
            host("10.0.0.11", 1, BackendState::Ready, false),
            host("2001:db8::12", 1000, BackendState::Draining, true),
        ],
    };
    let pods = ServiceConfig {
        name: "default/pods".into(),
        address: "198.51.100.11".parse().unwrap(),
        ports: vec![PortConfig { name: None, protocol: Protocol::Tcp, port: 80, target_port: 8080 }],
        slots: 4096,
        delivery: Delivery::Pod,
        affinity: Affinity::None,
        backends: vec![
            node("10.0.0.11", BackendState::Draining, &[pod("10.244.1.2", None), pod("10.0.0.11", Some(9000))]),
            node("10.0.0.12", BackendState::Ready, &[special]),
        ],
        ..hosts.clone()
    };
    vec![hosts, pods]
}

#[test]
fn every_field_arrives() {
    let expected = Config {
        hash_seed: u64::MAX,
        edge: Some(EdgeConfig {
            interfaces: vec!["eth0".into(), "eth1".into()],
            tunnel_source: TunnelSource { ipv4: Some(prefix("10.200.0.0", 16)), ipv6: Some(prefix("fd00:bee::", 64)) },
        }),
        node: Some(NodeConfig {
            interfaces: vec!["eth2".into()],
            trusted_sources: vec![prefix("10.200.0.0", 16), prefix("fd00:bee::", 64), prefix("192.0.2.1", 32)],
            internal_networks: vec![prefix("10.244.0.0", 16), prefix("10.50.0.0", 24)],
            direct_pod_access: true,
            mss_clamp: MssClamp::Off,
            nat_exemption: true,
        }),
        transition_max: Duration::from_secs(86_400 + 2 * 3_600 + 3 * 60 + 4),
        maps: MapSizes { services: 2, backends: 7, slots: 32_768, flows: 3 },
        pin_path: "/run/beeline-lab/edge1/pins".into(),
        metrics_listen: "[::1]:9000".parse().unwrap(),
        services: services(),
    };
    assert_eq!(parse(WHOLE, "lb.yaml").unwrap_or_else(|errors| panic!("{errors}")), expected);
}

#[test]
fn what_is_left_out_has_a_default() {
    let config = accepted(
        "services: [{name: all, address: 198.51.100.10, ports: [{port: 0}, {port: 53, protocol: UDP}], \
         backends: [{address: 10.0.0.1}]}]",
    );
    assert_eq!((&config.edge, &config.node, config.has_role()), (&None, &None, false));
    assert_eq!(config.transition_max, Duration::from_secs(86_400));
    assert_eq!(config.maps, MapSizes { services: 10_000, backends: 100_000, slots: 8_388_608, flows: 1_000_000 });
    assert_eq!(config.pin_path.to_str(), Some("/sys/fs/bpf/beeline"));
    assert_eq!(config.metrics_listen.to_string(), "127.0.0.1:9469");
    let [service] = &config.services[..] else { panic!("one service") };
    let ports: Vec<_> = service.ports.iter().map(|port| (port.protocol, port.port, port.target_port)).collect();
    assert_eq!(ports, [(Protocol::Tcp, 0, 0), (Protocol::Udp, 53, 53)]);
    assert_eq!((service.slots, service.affinity), (4096, Affinity::None));
    let backend = &service.backends[0];
    assert_eq!((backend.weight, backend.state, backend.agent), (100, BackendState::Ready, false));
    assert!(accepted("edge: {}").has_role());
    assert!(accepted("node: {trustedSources: [10.0.0.1]}").has_role());
}

#[test]
fn values_at_their_bounds() {
    let node = |fields: &str| accepted(&format!("node: {{trustedSources: [10.0.0.1], {fields}}}")).node.unwrap();
    assert_eq!(node("mssClamp: 536").mss_clamp, MssClamp::Bytes(536));
    assert_eq!(node("mssClamp: 65495").mss_clamp, MssClamp::Bytes(65_495));
    assert_eq!(node("mssClamp: auto").mss_clamp, MssClamp::Auto);
    assert_eq!(accepted("transition: {max: 30d}").transition_max, Duration::from_secs(30 * 86_400));
    assert_eq!(accepted("transition: {max: 1s}").transition_max, Duration::from_secs(1));
    assert_eq!(accepted("edge: {interfaces: [fifteen_bytes_a]}").edge.unwrap().interfaces, ["fifteen_bytes_a"]);
    for slots in [64, 4_194_304] {
        let service = format!("{{name: a, address: 198.51.100.1, slots: {slots}, ports: [{{port: 1}}], backends: []}}");
        assert_eq!(accepted(&format!("services: [{service}]")).services[0].slots, slots);
    }
}

#[test]
fn services_share_a_vip_and_backends() {
    let config = accepted(
        "services:\n- {name: a, address: 198.51.100.1, ports: [{port: 80}], backends: [{address: 10.0.0.1}]}\n\
         - {name: b, address: 198.51.100.1, ports: [{port: 0}, {port: 80, protocol: UDP}], backends: [{address: 10.0.0.1}]}\n",
    );
    assert_eq!(config.services.len(), 2);
}

#[test]
fn anchors_and_merge_keys_save_writing() {
    let config = accepted(
        "services:\n- &web {name: a, address: 198.51.100.1, ports: [{port: 80}], backends: &backends [{address: 10.0.0.1}]}\n\
         - {<<: *web, name: b, address: 198.51.100.2}\n\
         - {name: c, address: 198.51.100.3, ports: [{port: 80}], backends: *backends}\n",
    );
    let names: Vec<_> = config.services.iter().map(|service| (service.name.as_str(), service.backends.len())).collect();
    assert_eq!(names, [("a", 1), ("b", 1), ("c", 1)]);
}

#[test]
fn ten_thousand_services_with_ten_backends_each() {
    let mut text = format!("{HEAD}services:\n");
    for service in 0..10_000 {
        let (high, low) = (service >> 8, service & 255);
        write!(
            text,
            "- {{name: s{service}, address: 198.18.{high}.{low}, slots: 256, ports: [{{port: 80}}], backends: ["
        )
        .unwrap();
        for backend in 0..10 {
            write!(text, "{{address: 10.{backend}.{high}.{low}}},").unwrap();
        }
        text.push_str("]}\n");
    }
    let config = parse(&text, "lb.yaml").unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.services.iter().map(|service| service.backends.len()).sum::<usize>(), 100_000);
}

#[test]
fn advice() {
    let config = accepted(
        "node: {trustedSources: [0.0.0.0/0, \"::/0\", 10.0.0.1]}\nservices:\n\
         - {name: few, address: 198.51.100.1, slots: 64, ports: [{port: 1}], backends: [{address: 10.0.0.1}, {address: 10.0.0.2}]}\n\
         - {name: many, address: 198.51.100.2, slots: 131072, ports: [{port: 1}], \
            backends: [{address: 10.0.0.1}, {address: 10.0.0.2}]}\n\
         - {name: none, address: 198.51.100.3, ports: [{port: 1}], backends: []}\n\
         - {name: drain, address: 198.51.100.4, ports: [{port: 1}], backends: [{address: 10.0.0.1, state: draining}]}\n\
         - {name: good, address: 198.51.100.5, ports: [{port: 1}], backends: [{address: 10.0.0.1}, {address: 10.0.0.2}]}\n",
    );
    let lets = "lets anybody who reaches this node send packets in any client's name; name the edges' outer sources";
    assert_eq!(
        config.advice(),
        [
            format!("node.trustedSources: 0.0.0.0/0 {lets}"),
            format!("node.trustedSources: ::/0 {lets}"),
            "services[0] (few): 64 slots for 2 backends are few: shares become uneven; slots: 1024 fits".into(),
            "services[1] (many): 131072 slots for 2 backends are more than they need; slots: 1024 fits".into(),
            "services[2] (none): no backends: packets to it are dropped and counted".into(),
            "services[3] (drain): all backends are draining: they go on taking new flows until one is ready".into(),
        ]
    );
    assert_eq!(
        accepted("").advice(),
        [
            "neither edge nor node is here: simulate works, an agent would have nothing to do",
            "services: there are none"
        ]
    );
}
