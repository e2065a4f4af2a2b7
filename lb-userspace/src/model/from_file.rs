//! The desired state that a configuration file asks for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::address::{Address, family_of};
use lb_common::maps::ServiceKey;

use super::{Backend, Delivery, Desired, Pod, PodKey, Prefix, Service};
use crate::config::{Affinity, BackendConfig, BackendState, Config, NodeConfig, PodConfig, PortConfig, ServiceConfig};

/// Turns a configuration into what the datapath should do: one service for each port.
#[must_use]
pub fn desired(config: &Config) -> Desired {
    let node = config.node.as_ref();
    let prefixes = |of: fn(&NodeConfig) -> &Vec<Prefix>| node.into_iter().flat_map(of).copied().collect();
    Desired {
        hash_seed: config.hash_seed,
        services: config.services.iter().flat_map(services).collect(),
        tunnel_source: config.edge.as_ref().map(|edge| edge.tunnel_source).unwrap_or_default(),
        trusted_sources: prefixes(|node| &node.trusted_sources),
        internal_networks: prefixes(|node| &node.internal_networks),
        direct_pod_access: node.is_some_and(|node| node.direct_pod_access),
        mss_clamp: node.map(|node| node.mss_clamp).unwrap_or_default(),
        nat_exemption: node.is_some_and(|node| node.nat_exemption),
        transition_max: config.transition_max,
    }
}

fn services(config: &ServiceConfig) -> impl Iterator<Item = (ServiceKey, Service)> + '_ {
    config.ports.iter().map(|port| (key(config.address, port), service(config, port)))
}

fn key(vip: IpAddr, port: &PortConfig) -> ServiceKey {
    ServiceKey::new(Address::from(vip), family_of(&vip), port.protocol.number(), port.port)
}

fn service(config: &ServiceConfig, port: &PortConfig) -> Service {
    Service {
        name: config.name.clone(),
        port_name: port.name.clone(),
        algorithm: config.algorithm,
        slots: config.slots,
        source_affinity: config.affinity == Affinity::Source,
        delivery: config.delivery,
        backends: match config.delivery {
            Delivery::Host => hosts(&config.backends),
            Delivery::Pod => nodes(&config.backends, port),
        },
    }
}

/// Ready backends own slots; where none is ready, those that drain do, as kube-proxy has it with endpoints that serve
/// and terminate.
fn hosts(configs: &[BackendConfig]) -> BTreeMap<IpAddr, Backend> {
    let any_ready = configs.iter().any(|backend| backend.state == BackendState::Ready);
    let backend = |config: &BackendConfig| {
        let owns = config.state == BackendState::Ready || !any_ready;
        Backend {
            rank: config.weight,
            share: if owns { config.weight } else { 0 },
            draining: config.state == BackendState::Draining,
            agent: config.agent,
            pods: BTreeMap::new(),
        }
    };
    configs.iter().map(|config| (config.address, backend(config))).collect()
}

/// Nodes with their pods. Ready pods give their node its share; where no pod of the service is ready, those that drain do.
fn nodes(configs: &[BackendConfig], port: &PortConfig) -> BTreeMap<IpAddr, Backend> {
    let drains = |config: &BackendConfig, pod: &PodConfig| {
        config.state == BackendState::Draining || pod.state == BackendState::Draining
    };
    let any_ready = configs.iter().any(|config| config.pods.iter().any(|pod| !drains(config, pod)));
    let backend = |config: &BackendConfig| {
        let pods = config.pods.iter().map(|pod| {
            let key = PodKey { address: pod.address, port: pod.port.unwrap_or(port.target_port) };
            (key, Pod { weight: pod.weight, draining: drains(config, pod), record: pod.record_flows })
        });
        let pods: BTreeMap<_, _> = pods.collect();
        let all: u32 = pods.values().map(|pod| pod.weight).sum();
        let ready: u32 = pods.values().filter(|pod| !pod.draining).map(|pod| pod.weight).sum();
        Backend {
            // A node without pods has a place in the order, and owns nothing.
            rank: all.max(1),
            share: if any_ready { ready } else { all },
            draining: config.state == BackendState::Draining || (ready == 0 && all > 0),
            agent: config.agent,
            pods,
        }
    };
    configs.iter().map(|config| (config.address, backend(config))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{MssClamp, parse};
    use crate::model::key_address;

    fn from(services: &str) -> Desired {
        let text = format!(
            "apiVersion: beeline.dev/v1\nkind: Config\nhashSeed: 7\n\
             edge: {{tunnelSource: {{ipv4: 10.200.0.0/16}}}}\n\
             node: {{trustedSources: [10.200.0.0/16, 10.9.0.1]}}\nservices:\n{services}"
        );
        desired(&parse(&text, "lb.yaml").unwrap_or_else(|errors| panic!("{errors}")))
    }

    fn weights(desired: &Desired) -> Vec<(u32, u32)> {
        let service = desired.services.values().next().expect("a service");
        service.backends.values().map(|backend| (backend.rank, backend.share)).collect()
    }

    #[test]
    fn each_port_is_a_service() {
        let desired = from(
            "- {name: web, address: 198.51.100.10, slots: 1024, affinity: source, \
             ports: [{name: http, port: 80}, {protocol: UDP, port: 443}], backends: [{address: 10.0.0.1, agent: true}]}\n\
             - {name: all, address: \"2001:db8::1\", ports: [{port: 0}], backends: []}\n",
        );
        assert_eq!(desired.hash_seed, 7);
        assert_eq!(desired.tunnel_source.ipv4.map(|prefix| prefix.length), Some(16));
        assert_eq!(desired.trusted_sources.len(), 2);
        let labels: Vec<_> = desired
            .services
            .iter()
            .map(|(key, service)| (key_address(key).to_string(), key.protocol(), key.port(), service.label(key)))
            .collect();
        assert_eq!(desired.services.len(), 3);
        for expected in [
            ("198.51.100.10".to_owned(), 6, 80, "web/http".to_owned()),
            ("198.51.100.10".to_owned(), 17, 443, "web/UDP/443".to_owned()),
            ("2001:db8::1".to_owned(), 6, 0, "all/TCP/0".to_owned()),
        ] {
            assert!(labels.contains(&expected), "{expected:?} is not in {labels:?}");
        }
        let web = desired.services.values().find(|service| service.port_name.is_some()).expect("web/http");
        assert_eq!((web.slots, web.source_affinity), (1024, true));
        assert_eq!(
            web.backends[&"10.0.0.1".parse().unwrap()],
            Backend { rank: 100, share: 100, draining: false, agent: true, pods: BTreeMap::new() }
        );
        assert!(desired.services.values().any(|service| service.backends.is_empty()));
    }

    #[test]
    fn a_draining_backend_keeps_its_rank_and_loses_its_share() {
        let desired = from(
            "- {name: web, address: 198.51.100.10, ports: [{port: 80}], backends: [{address: 10.0.0.1, weight: 50}, \
             {address: 10.0.0.2, weight: 70, state: draining}]}\n",
        );
        assert_eq!(weights(&desired), [(50, 50), (70, 0)]);
    }

    #[test]
    fn the_nodes_part_arrives() {
        let desired = |node: &str| {
            let text = format!(
                "{{apiVersion: beeline.dev/v1, kind: Config, hashSeed: 7, transition: {{max: 2h}}, \
                 node: {{trustedSources: [10.9.0.1]{node}}}}}"
            );
            desired(&parse(&text, "lb.yaml").unwrap_or_else(|errors| panic!("{errors}")))
        };
        let plain = desired("");
        assert_eq!(plain.transition_max, Duration::from_secs(7200));
        assert!(plain.internal_networks.is_empty() && !plain.direct_pod_access && !plain.nat_exemption);
        assert_eq!(plain.mss_clamp, MssClamp::Auto);
        let full = desired(
            ", internalNetworks: [10.244.0.0/16, 10.244.0.0/16], directPodAccess: true, mssClamp: 1300, natExemption: true",
        );
        assert_eq!(full.internal_networks.len(), 1);
        assert!(full.direct_pod_access && full.nat_exemption);
        assert_eq!(full.mss_clamp, MssClamp::Bytes(1300));
    }

    /// Two ports on these nodes: 80 leads to 8080, and 443 to itself.
    fn pods(backends: &str) -> Desired {
        from(&format!(
            "- {{name: web, address: 198.51.100.10, delivery: pod, \
             ports: [{{port: 80, targetPort: 8080}}, {{port: 443}}], backends: [{backends}]}}\n"
        ))
    }

    #[test]
    fn pods_listen_where_they_or_the_port_say() {
        let desired = pods(
            "{address: 10.0.0.1, pods: [{address: 10.244.1.2, weight: 7}, \
             {address: 10.244.1.3, port: 81, state: draining, recordFlows: true}]}",
        );
        let expected = [(80, 8080), (443, 443)];
        for (port, target) in expected {
            let (_, service) = desired.services.iter().find(|(key, _)| key.port() == port).expect("the port");
            assert_eq!(service.delivery, Delivery::Pod);
            let backend = &service.backends[&"10.0.0.1".parse().unwrap()];
            let pod = |address: &str, port| PodKey { address: address.parse().unwrap(), port };
            let expected = [
                (pod("10.244.1.2", target), Pod { weight: 7, draining: false, record: false }),
                (pod("10.244.1.3", 81), Pod { weight: 100, draining: true, record: true }),
            ];
            assert_eq!(backend.pods, expected.into());
            assert_eq!((backend.rank, backend.share, backend.draining, backend.agent), (107, 7, false, true));
        }
    }

    #[test]
    fn a_node_is_its_pods_together() {
        let pod = |number: u8, state: &str| format!("{{address: 10.244.1.{number}, weight: 30, state: {state}}}");
        let node = |number: u8, fields: String| format!("{{address: 10.0.0.{number}, {fields}}}");
        let (ready, draining) = (pod(1, "ready"), pod(2, "draining"));
        let both = node(1, format!("pods: [{ready}, {draining}]"));
        let empty = node(2, "pods: []".to_owned());
        let drains = node(3, format!("pods: [{}]", pod(3, "draining")));
        assert_eq!(weights(&pods(&[both, empty.clone(), drains.clone()].join(", "))), [(60, 30), (1, 0), (30, 0)]);
        // A node that drains has no ready pod, whatever its pods say.
        let drained = node(1, format!("state: draining, pods: [{ready}, {draining}]"));
        let desired = pods(&[drained.clone(), empty, drains].join(", "));
        assert_eq!(weights(&desired), [(60, 60), (1, 0), (30, 30)]);
        let backends = &desired.services.values().next().expect("a service").backends;
        assert!(backends[&"10.0.0.1".parse().unwrap()].pods.values().all(|pod| pod.draining));
        let drain: Vec<_> = backends.values().map(|backend| backend.draining).collect();
        assert_eq!(drain, [true, false, true]);
        let other = node(4, format!("pods: [{}]", pod(4, "ready")));
        assert_eq!(weights(&pods(&[drained, other].join(", "))), [(60, 0), (30, 30)]);
    }

    #[test]
    fn backends_that_all_drain_own_the_slots() {
        let desired = from(
            "- {name: web, address: 198.51.100.10, ports: [{port: 80}], backends: [\
             {address: 10.0.0.1, weight: 50, state: draining}, {address: 10.0.0.2, weight: 70, state: draining}]}\n",
        );
        assert_eq!(weights(&desired), [(50, 50), (70, 70)]);
    }
}
