//! Much and large, into pods and back: 100 MB, datagrams in fragments, and who gets how much of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{
    BULK, Bed, Bulk, Fabric, Host, POD_HTTP, Rig, SERVICE_UDP, Service, Shape, ask_name, eventually,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Time for an answer on an idle network, before it is tried anew.
const ANSWER: Duration = Duration::from_millis(500);

/// HTTP at the first VIPs to the first pod of the first node, and at the second ones to that of the second node.
fn a_vip_for_each_node(fabric: &Fabric) -> Vec<Service> {
    let service = |(name, vip, pod): (&str, IpAddr, usize)| {
        fabric.pod_service(name, vip, vip.is_ipv4(), [&fabric.pods[pod]]).port_to("TCP", 80, POD_HTTP)
    };
    let [first, first6] = Fabric::VIPS;
    let [second, second6] = Fabric::SECOND_VIPS;
    [("routed", first, 0), ("routed6", first6, 0), ("bridged", second, 2), ("bridged6", second6, 2)]
        .into_iter()
        .map(service)
        .collect()
}

/// Packets that came in by `device` of `host`, as the device counts them: a large one is one.
fn packets_in(host: &Host, device: &str) -> Result<u64> {
    let text = host.run(&format!("ip -s -j link show dev {device}"))?;
    let link: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    link[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| format!("no count in {link}"))
}

#[test]
fn a_hundred_megabytes_go_up_and_down_through_the_vip() -> Result<()> {
    Bed::run("pod_bulk", |bed| {
        let rig = Rig::start(bed, Shape { clients: 1, ..Shape::PODS }, a_vip_for_each_node)?;
        let (fabric, webs) = (&rig.fabric, || rig.pods.iter().map(|server| &server.web));
        let bulk = Bulk::new(BULK);
        bulk.publish(webs())?;
        for (pod, vips) in [(&fabric.pods[0], Fabric::VIPS), (&fabric.pods[2], Fabric::SECOND_VIPS)] {
            let node = &fabric.nodes[pod.node];
            for vip in vips {
                let (client, to) = (fabric.client_for(vip), SocketAddr::new(vip, 80));
                let before = packets_in(node, pod.name())?;
                let served = bulk.download(&fabric.client, client, to)?;
                let came = packets_in(node, pod.name())? - before;
                // 1,500 bytes hold 1,460 of the contents at most: what is rewritten are the large packets.
                ensure!(came < BULK as u64 / 1460 / 2, "{vip}: the pod sent {came} packets: not in large ones");
                ensure!(served == pod.name(), "{vip}: {served} served what came down");
                let served = bulk.upload(&fabric.client, client, to, webs())?;
                ensure!(served == pod.name(), "{vip}: {served} served what went up");
            }
        }
        Ok(())
    })
}

fn bind(rig: &Rig, from: SocketAddr) -> Result<UdpSocket> {
    rig.fabric.client.within(|| UdpSocket::bind(from).with_context(|| format!("binding {from}")))
}

#[test]
fn datagrams_of_8_kb_go_there_and_back() -> Result<()> {
    Bed::run("pod_fragments", |bed| {
        let rig = Rig::start(bed, Shape::PODS, Fabric::web_pod_services)?;
        let datagram: Vec<u8> = (0..8192_u32).map(|byte| (byte % 251) as u8).collect();
        let mut pods = BTreeSet::new();
        for (vip, port) in Fabric::VIPS.into_iter().flat_map(|vip| (31_000..31_008).map(move |port| (vip, port))) {
            let socket = bind(&rig, SocketAddr::new(rig.fabric.client_for(vip), port))?;
            // The first ones are too long for the tunnel, until the client has learned what fits.
            let said = eventually("8 KB there and back", PATIENCE, || {
                ask_name(&socket, SocketAddr::new(vip, SERVICE_UDP), &datagram, ANSWER)
            })?;
            ensure!(said.saw == socket.local_addr()?, "the pod saw {}", said.saw);
            pods.insert((vip, said.name));
        }
        ensure!(pods.len() > 4, "16 flows all went to {pods:?}");
        let edge = &rig.agents.edges[0];
        // 8 KB are 6 packets of 1,420 bytes and more.
        ensure!(edge.packets_with_reason("fragment_forwarded")? >= 16 * 5, "the client sent no fragments");
        for node in &rig.agents.nodes {
            for reason in ["fragment_delivered_to_pod", "reply_fragment_rewritten"] {
                let packets = node.packets_with_reason(reason)?;
                ensure!(packets >= 5, "{}: {packets} with {reason}", node.host().name());
            }
        }
        Ok(())
    })
}

/// Flows that are sent to find out who gets how many. Their ports are fixed, and with them who gets them.
const FLOWS: u16 = 1000;

#[test]
fn nodes_and_pods_get_flows_by_the_weights_of_pods() -> Result<()> {
    // Of 1,000 in all: 800 for the first node's pods.
    const WEIGHTS: [u32; 4] = [600, 200, 50, 150];
    Bed::run("pod_weights", |bed| {
        let weighed = |fabric: &Fabric| -> Vec<Service> {
            let mut services = fabric.web_pod_services();
            for service in &mut services {
                let pods = service.backends.iter_mut().flat_map(|backend| &mut backend.pods);
                pods.zip(WEIGHTS).for_each(|(pod, weight)| pod.weight = weight);
            }
            services
        };
        let rig = Rig::start(bed, Shape::PODS, weighed)?;
        for vip in Fabric::VIPS {
            let mut flows: BTreeMap<String, u32> = BTreeMap::new();
            for port in 20_000..20_000 + FLOWS {
                let socket = bind(&rig, SocketAddr::new(rig.fabric.client_for(vip), port))?;
                let said = ask_name(&socket, SocketAddr::new(vip, SERVICE_UDP), b"whose", PATIENCE)?;
                *flows.entry(said.name).or_default() += 1;
            }
            for (pod, weight) in rig.fabric.pods.iter().zip(WEIGHTS) {
                let got = flows.get(pod.name()).copied().unwrap_or(0);
                // 1,000 draws of 1 in 20 lie between 29 and 71 (three deviations).
                let least = weight * 3 / 4 - 10;
                let most = weight * 5 / 4 + 10;
                ensure!((least..=most).contains(&got), "{vip}: {} of weight {weight}: {flows:?}", pod.name());
            }
            // Before the node chooses, the edge has.
            let packets = rig.agents.edges[0].packets_by_backend()?;
            let first = packets.get(&rig.fabric.node_addresses(vip.is_ipv4())[0]).copied().unwrap_or(0);
            ensure!((740..=860).contains(&first), "{vip}: the first node, of weight 800: {packets:?}");
        }
        Ok(())
    })
}

#[test]
fn one_client_stays_with_one_pod() -> Result<()> {
    Bed::run("pod_affinity", |bed| {
        let faithful = |fabric: &Fabric| -> Vec<Service> {
            let services = fabric.web_pod_services().into_iter();
            services.map(|service| Service { source_affinity: true, ..service }).collect()
        };
        let rig = Rig::start(bed, Shape { clients: 12, ..Shape::PODS }, faithful)?;
        for vip in Fabric::VIPS {
            let mut all = BTreeSet::new();
            for client in rig.fabric.clients_for(vip) {
                let pods = rig.fabric.request(&[(client, vip)], 6)?;
                ensure!(pods.len() == 1, "6 flows of {client} went to {pods:?}");
                all.extend(pods);
            }
            ensure!(all.len() == 4, "{vip}: 12 clients are all with {all:?}");
        }
        Ok(())
    })
}
