//! Pods of the bed without Beeline: the cluster that other tests take for granted.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::policies::{self, ReversePath};
use beeline_tests::bed::{
    BULK, Bed, Bulk, Config, Connection, Fabric, Host, POD_HTTP, POD_UDP, Pod, PodEntry, Said, Shape, WebServer,
    ask_name, eventually, get, holds,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Time for an answer on an idle network, before it is tried anew.
const ANSWER: Duration = Duration::from_millis(500);

/// Time after which no answer is taken for none to come.
const SILENCE: Duration = Duration::from_millis(1500);

/// Who answers at `to`, and whom it takes for the client.
fn who(host: &Host, from: IpAddr, to: SocketAddr) -> Result<(String, String)> {
    let answer = host.within(|| get(from, to, "/", PATIENCE))?;
    ensure!(answer.status == 200, "status {} from {to}", answer.status);
    Ok((answer.header("x-node")?.to_owned(), answer.header("x-client")?.to_owned()))
}

/// `pod` answers at `to`, and sees `seen`.
fn answers(host: &Host, from: IpAddr, to: SocketAddr, pod: &str, seen: IpAddr) -> Result<()> {
    let answer = who(host, from, to).with_context(|| format!("{} asked {to}", host.name()))?;
    let wanted = (pod.to_owned(), seen.to_string());
    ensure!(answer == wanted, "{} asked {to} from {from}: {answer:?} and not {wanted:?}", host.name());
    Ok(())
}

/// One of the client's addresses in each family, with the addresses of `pod`.
fn ways(fabric: &Fabric, pod: &Pod) -> [(IpAddr, IpAddr); 2] {
    pod.addresses().map(|address| (fabric.client_for(address), address))
}

fn bind(host: &Host, address: IpAddr) -> Result<UdpSocket> {
    host.within(|| Ok(UdpSocket::bind((address, 0))?))
}

#[test]
fn pods_reach_each_other_and_the_outside_as_in_a_cluster() -> Result<()> {
    Bed::run("pods", |bed| {
        let fabric = Fabric::build(bed, Shape::PODS)?;
        let servers = fabric.serve_pods(bed)?;
        let _outside = WebServer::start(bed, &fabric.client)?;
        let names: Vec<&str> = fabric.pods.iter().map(Pod::name).collect();
        assert_eq!(names, ["pod1-1", "pod1-2", "pod2-1", "pod2-2"]);
        let bridged = |node: usize| fabric.nodes[node].run("ip -br link show master cni0");
        assert_eq!(bridged(1)?.lines().count(), 2, "the second node's pods are not on its bridge");
        assert!(bridged(0).is_err(), "the first node has a bridge");
        for pod in &fabric.pods {
            for (client, address) in ways(&fabric, pod) {
                let to = SocketAddr::new(address, POD_HTTP);
                answers(&fabric.client, client, to, pod.name(), client)?;
                for other in &fabric.pods {
                    let from = other.address_for(address);
                    answers(&other.host, from, to, pod.name(), from)?;
                }
                let node = fabric.node_addresses(client.is_ipv4())[pod.node];
                answers(&pod.host, address, SocketAddr::new(client, 80), "client", node)?;
            }
        }
        let (client, pod) = (fabric.client_for(Fabric::VIP_V6), &fabric.pods[3]);
        let to = SocketAddr::new(pod.address_for(client), POD_HTTP);
        let mut connection = fabric.client.within(|| Connection::open(client, to, PATIENCE))?;
        let (port, answer) = (connection.local_addr()?.port(), connection.get("/")?);
        assert_eq!(answer.header("x-client-port")?, port.to_string());
        eventually("the client's own address and port in the pod's log", PATIENCE, || {
            let hits = servers[3].web.hits()?;
            holds(hits.iter().any(|hit| (hit.client, hit.client_port) == (client, port)), || format!("{hits:?}"))
        })?;
        fabric.nodes.iter().try_for_each(policies::no_masquerade)?;
        for pod in &fabric.pods {
            for (client, address) in ways(&fabric, pod) {
                answers(&pod.host, address, SocketAddr::new(client, 80), "client", address)?;
            }
        }
        Ok(())
    })
}

#[test]
fn services_lead_to_pods_of_other_nodes() -> Result<()> {
    Bed::run("kube-proxy", |bed| {
        let fabric = Fabric::build(bed, Shape::PODS)?;
        let _servers = fabric.serve_pods(bed)?;
        let (asking, serving) = (&fabric.pods[0], &fabric.pods[2]);
        for ((client, address), service) in ways(&fabric, serving).into_iter().zip(policies::cluster_ips(7)) {
            let (pod, v4) = (SocketAddr::new(address, POD_HTTP), address.is_ipv4());
            policies::cluster_ip(&fabric.nodes[0], "tcp", SocketAddr::new(service, 80), pod)?;
            let from = asking.address_for(address);
            answers(&asking.host, from, SocketAddr::new(service, 80), serving.name(), from)?;
            let node = fabric.node_addresses(v4)[0];
            answers(&fabric.nodes[0], node, SocketAddr::new(service, 80), serving.name(), node)?;
            // The pod sees the node, which is why its reply finds back.
            policies::node_port(&fabric.nodes[0], "tcp", 30080, pod)?;
            answers(&fabric.client, client, SocketAddr::new(node, 30080), serving.name(), node)?;
            policies::cluster_ip(
                &fabric.nodes[0],
                "udp",
                SocketAddr::new(service, 53),
                SocketAddr::new(address, POD_UDP),
            )?;
            let socket = bind(&asking.host, from)?;
            let said = eventually("an answer of the Service", PATIENCE, || {
                ask_name(&socket, SocketAddr::new(service, 53), b"who", ANSWER)
            })?;
            assert_eq!(said, Said { name: serving.name().to_owned(), saw: socket.local_addr()? });
        }
        Ok(())
    })
}

/// Packets that came in by `device` of `host` and that went out, as the device counts them: a large one is one.
fn packets(host: &Host, device: &str) -> Result<(u64, u64)> {
    let text = host.run(&format!("ip -s -j link show dev {device}"))?;
    let link: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let count = |way: &str| link[0]["stats64"][way]["packets"].as_u64().with_context(|| format!("no count in {link}"));
    Ok((count("rx")?, count("tx")?))
}

#[test]
fn a_hundred_megabytes_go_up_and_down_in_large_packets_on_the_pods_side() -> Result<()> {
    Bed::run("bulk", |bed| {
        let fabric = Fabric::build(bed, Shape { clients: 1, ..Shape::PODS })?;
        let servers = fabric.serve_pods(bed)?;
        let bulk = Bulk::new(BULK);
        bulk.publish(servers.iter().map(|server| &server.web))?;
        // Without a bridge, and with one.
        for pod in [&fabric.pods[0], &fabric.pods[2]] {
            let node = &fabric.nodes[pod.node];
            let features = pod.host.run("ethtool -k eth0")?;
            for feature in ["tx-checksumming: on", "tcp-segmentation-offload: on", "generic-segmentation-offload: on"] {
                assert!(features.contains(feature), "{}: not {feature}:\n{features}", pod.name());
            }
            for (client, address) in ways(&fabric, pod) {
                let to = SocketAddr::new(address, POD_HTTP);
                let (pod_before, wire_before) = (packets(node, pod.name())?, packets(node, "eth0")?);
                assert_eq!(bulk.download(&fabric.client, client, to)?, pod.name());
                let (pod_after, wire_after) = (packets(node, pod.name())?, packets(node, "eth0")?);
                let (large, cut) = (pod_after.0 - pod_before.0, wire_after.1 - wire_before.1);
                // 1,500 bytes hold 1,460 of the contents at most.
                let least = BULK as u64 / 1460;
                assert!(large < least / 2, "{address}: the pod sent {large} packets: not in large ones");
                assert!(cut >= least, "{address}: the node sent {cut} packets, fewer than the wire's MTU allows");
                let webs = servers.iter().map(|server| &server.web);
                assert_eq!(bulk.upload(&fabric.client, client, to, webs)?, pod.name());
            }
        }
        Ok(())
    })
}

#[test]
fn datagrams_of_8_kb_come_back_with_the_clients_address() -> Result<()> {
    Bed::run("pod-udp", |bed| {
        let fabric = Fabric::build(bed, Shape::PODS)?;
        let servers = fabric.serve_pods(bed)?;
        let datagram: Vec<u8> = (0..8192_u32).map(|byte| (byte % 251) as u8).collect();
        for (pod, server) in fabric.pods.iter().zip(&servers) {
            for (client, address) in ways(&fabric, pod) {
                let (socket, to) = (bind(&fabric.client, client)?, SocketAddr::new(address, POD_UDP));
                let said = eventually("8 KB there and back", PATIENCE, || ask_name(&socket, to, &datagram, ANSWER))?;
                assert_eq!(said, Said { name: pod.name().to_owned(), saw: socket.local_addr()? });
            }
            assert!(server.udp.iter().all(|udp| udp.echoed() >= 1));
        }
        Ok(())
    })
}

/// A pod on a node, for what the node does to its packets.
const LONE_POD: Shape = Shape { nodes: 1, pods: 1, ..Shape::PLAIN };

#[test]
fn a_udp_reply_that_conntrack_has_forgotten_leaves_as_the_node() -> Result<()> {
    Bed::run("forgotten", |bed| {
        let fabric = Fabric::build(bed, LONE_POD)?;
        let (node, pod) = (&fabric.nodes[0], &fabric.pods[0]);
        for (client, address) in ways(&fabric, pod) {
            let (outside, inside) = (bind(&fabric.client, client)?, bind(&pod.host, address)?);
            outside.set_read_timeout(Some(PATIENCE))?;
            inside.set_read_timeout(Some(PATIENCE))?;
            let mut datagram = [0; 16];
            for (forget, seen) in [(false, address), (true, fabric.node_addresses(client.is_ipv4())[0])] {
                outside.send_to(b"question", inside.local_addr()?)?;
                let (_, asked) = inside.recv_from(&mut datagram)?;
                assert_eq!(asked, outside.local_addr()?);
                if forget {
                    policies::forget_flows(node)?;
                }
                inside.send_to(b"answer", asked)?;
                assert_eq!(outside.recv_from(&mut datagram)?.1.ip(), seen, "forgotten: {forget}");
            }
        }
        Ok(())
    })
}

#[test]
fn segments_of_unknown_flows_are_invalid_where_conntrack_may_not_pick_them_up() -> Result<()> {
    Bed::run("invalid", |bed| {
        let fabric = Fabric::build(bed, LONE_POD)?;
        let _servers = fabric.serve_pods(bed)?;
        let node = &fabric.nodes[0];
        node.sysctl(&[("net.netfilter.nf_conntrack_tcp_loose", "0")])?;
        for (client, address) in ways(&fabric, &fabric.pods[0]) {
            policies::drop_invalid(node)?;
            let to = SocketAddr::new(address, POD_HTTP);
            let mut connection = fabric.client.within(|| Connection::open(client, to, SILENCE))?;
            connection.get("/")?;
            assert_eq!(policies::dropped_as_invalid(node)?, 0);
            policies::forget_flows(node)?;
            assert!(connection.get("/").is_err(), "{address}: an invalid segment was forwarded");
            assert!(policies::dropped_as_invalid(node)? > 0, "{address}: nothing was dropped as invalid");
        }
        Ok(())
    })
}

#[test]
fn without_conntrack_nothing_is_masqueraded() -> Result<()> {
    Bed::run("no-conntrack", |bed| {
        let fabric = Fabric::build(bed, LONE_POD)?;
        let _outside = WebServer::start(bed, &fabric.client)?;
        let (node, pod) = (&fabric.nodes[0], &fabric.pods[0]);
        for (client, address) in ways(&fabric, pod) {
            let to = SocketAddr::new(client, 80);
            policies::conntrack_off(node)?;
            answers(&pod.host, address, to, "client", address)?;
            policies::conntrack_on(node)?;
            answers(&pod.host, address, to, "client", fabric.node_addresses(client.is_ipv4())[0])?;
        }
        Ok(())
    })
}

#[test]
fn a_strict_reverse_path_lets_pods_through_and_nobody_else() -> Result<()> {
    Bed::run("reverse-path", |bed| {
        let fabric = Fabric::build(bed, LONE_POD)?;
        let _servers = fabric.serve_pods(bed)?;
        let (node, pod) = (&fabric.nodes[0], &fabric.pods[0]);
        policies::no_masquerade(node)?;
        for (client, address) in ways(&fabric, pod) {
            policies::reverse_path(node, ReversePath::Strict)?;
            answers(&fabric.client, client, SocketAddr::new(address, POD_HTTP), pod.name(), client)?;
            // An address whose way leads out by the node's uplink.
            let elsewhere = Fabric::BRANCH[usize::from(address.is_ipv6())];
            pod.host
                .ip(&[format!("addr add {elsewhere}/{} dev lo nodad", if address.is_ipv4() { 32 } else { 128 })])?;
            let (outside, spoof) = (bind(&fabric.client, client)?, bind(&pod.host, elsewhere)?);
            outside.set_read_timeout(Some(SILENCE))?;
            for (check, passes) in [(ReversePath::Strict, false), (ReversePath::Loose, true), (ReversePath::Off, true)]
            {
                policies::reverse_path(node, check)?;
                spoof.send_to(b"as another", outside.local_addr()?)?;
                let came = outside.recv_from(&mut [0; 16]).map(|(_, from)| from.ip()).ok();
                assert_eq!(came, passes.then_some(elsewhere), "{check:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_narrow_hop_before_the_nodes_is_found_by_both_ends() -> Result<()> {
    Bed::run("pod-hop", |bed| {
        let shape = Shape { nodes: 1, routed: true, hop_mtu: 1400, pods: 1, ..Shape::PLAIN };
        let fabric = Fabric::build(bed, shape)?;
        let servers = fabric.serve_pods(bed)?;
        let bulk = Bulk::new(1 << 20);
        bulk.publish(servers.iter().map(|server| &server.web))?;
        let pod = &fabric.pods[0];
        for (client, address) in ways(&fabric, pod) {
            let to = SocketAddr::new(address, POD_HTTP);
            // What an end has learned is in the MSS that it offers: forgotten, so that the other learns by itself.
            let learned = |host: &Host, to| -> Result<bool> {
                let learned = host.run(&format!("ip route get {to}"))?.contains("mtu 1400");
                host.run("ip -4 route flush cache")?;
                host.run("ip -6 route flush cache")?;
                Ok(learned)
            };
            bulk.upload(&fabric.client, client, to, servers.iter().map(|server| &server.web))?;
            assert!(learned(&fabric.client, address)?, "the client learned nothing of the hop to {address}");
            bulk.download(&fabric.client, client, to)?;
            assert!(learned(&pod.host, client)?, "{address} learned nothing of the hop");
        }
        Ok(())
    })
}

#[test]
fn one_port_of_a_client_serves_for_several_connections() -> Result<()> {
    Bed::run("same-port", |bed| {
        let fabric = Fabric::build(bed, Shape { pods: 2, ..LONE_POD })?;
        let _servers = fabric.serve_pods(bed)?;
        for vip in Fabric::VIPS {
            let from = SocketAddr::new(fabric.client_for(vip), 40_000);
            let open = |pod: &Pod| {
                let to = SocketAddr::new(pod.address_for(vip), POD_HTTP);
                fabric.client.within(|| Connection::open_from(from, to, PATIENCE))
            };
            let mut connections = [open(&fabric.pods[0])?, open(&fabric.pods[1])?];
            for (connection, pod) in connections.iter_mut().zip(&fabric.pods) {
                let answer = connection.get("/")?;
                assert_eq!((answer.header("x-node")?, answer.header("x-client-port")?), (pod.name(), "40000"));
            }
        }
        Ok(())
    })
}

#[test]
fn a_redirection_in_the_pod_leads_to_another_port() -> Result<()> {
    Bed::run("sidecar", |bed| {
        let fabric = Fabric::build(bed, LONE_POD)?;
        let _servers = fabric.serve_pods(bed)?;
        let pod = &fabric.pods[0];
        for (client, address) in ways(&fabric, pod) {
            let to = SocketAddr::new(address, 8000);
            assert!(fabric.client.within(|| get(client, to, "/", SILENCE)).is_err(), "something listens at {to}");
            policies::redirect(&pod.host, to.port(), POD_HTTP)?;
            answers(&fabric.client, client, to, pod.name(), client)?;
            policies::no_redirect(&pod.host, to.port())?;
        }
        Ok(())
    })
}

#[test]
fn pods_come_and_go() -> Result<()> {
    Bed::run("rollout", |bed| {
        let mut fabric = Fabric::build(bed, Shape::PODS)?;
        for node in [0, 1] {
            let pod = fabric.add_pod(bed, node)?;
            assert_eq!(pod.name(), format!("pod{}-3", node + 1));
            let _server = pod.serve(bed)?;
            for (client, address) in ways(&fabric, &pod) {
                let to = SocketAddr::new(address, POD_HTTP);
                answers(&fabric.client, client, to, pod.name(), client)?;
            }
            let plugged =
                || fabric.nodes[node].run("ip -o link show").map(|links| links.contains(&format!("{}@", pod.name())));
            assert!(plugged()?);
            fabric.unplug_pod(&pod)?;
            assert!(!plugged()?);
            for (client, address) in ways(&fabric, &pod) {
                let gone = fabric.client.within(|| get(client, (address, POD_HTTP).into(), "/", SILENCE));
                assert!(gone.is_err(), "{address} still answers");
            }
        }
        Ok(())
    })
}

#[test]
fn nothing_of_pods_is_left() -> Result<()> {
    let pids = Bed::run("pods-gone", |bed| {
        let fabric = Fabric::build(bed, Shape::PODS)?;
        let mut servers = fabric.serve_pods(bed)?;
        fs::metadata("/run/netns/pod2-2").context("the name of a pod's namespace")?;
        Ok(servers.iter_mut().map(|server| server.web.process().pid()).collect::<Vec<_>>())
    })?;
    assert_eq!(pids.len(), 4);
    let mounts = fs::read_to_string("/proc/mounts")?;
    assert!(!mounts.contains("/run/netns/pod"), "{mounts}");
    assert!(!fs::exists("/run/netns/pod2-2")?, "a pod's namespace still has its name");
    let left: Vec<u32> = pids.into_iter().filter(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(true)).collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

#[test]
fn configurations_name_pods() -> Result<()> {
    Bed::run("pod-config", |bed| {
        let fabric = Fabric::build(bed, Shape::PODS)?;
        let mut config = fabric.node_config(&fabric.nodes[0], &fabric.pod_services());
        let [first, second] = [&fabric.pods[0], &fabric.pods[1]].map(|pod| pod.addresses()[0]);
        config.drain_pod(first, true)?;
        config.remove_pod(second)?;
        let node = fabric.node_addresses(true)[1];
        let entry = PodEntry { port: Some(81), record_flows: true, weight: 7, ..PodEntry::new([10, 9, 9, 9].into()) };
        config.service("shop")?.add_pod(node, entry)?;
        assert!(config.remove_pod(second).is_err() && config.service("shop")?.drain_pod(second, true).is_err());
        let read = read(&config)?;
        let internal = read["node"]["internalNetworks"].as_array().context("internal networks")?;
        assert!(internal.contains(&"10.244.0.0/16".into()) && internal.contains(&"fd44::/16".into()), "{internal:?}");
        let pods = |service: usize, node: usize| &read["services"][service]["backends"][node]["pods"];
        let json = |text| serde_json::from_str::<Value>(text);
        let drained = json(r#"[{"address": "10.244.1.11", "weight": 100, "state": "draining"}]"#)?;
        assert_eq!((pods(0, 0), pods(2, 0)), (&drained, &drained));
        let added = json(r#"{"address": "10.9.9.9", "port": 81, "weight": 7, "recordFlows": true}"#)?;
        assert_eq!(pods(2, 1)[1], added);
        assert_eq!(pods(1, 1)[1]["address"], "fd44:2::c");
        let web = &read["services"][0];
        assert_eq!((&web["delivery"], &web["ports"][0]["targetPort"]), (&"pod".into(), &8080.into()));
        assert_eq!((&web["ports"][1]["port"], &web["ports"][1]["targetPort"]), (&53.into(), &9000.into()));
        Ok(())
    })
}

/// A configuration as a reader of YAML sees it.
fn read(config: &Config) -> Result<Value> {
    let text = config.to_string();
    serde_saphyr::from_str(&text).with_context(|| text)
}
