//! Who may send a node packets for its pods, and in whose name.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use beeline_tests::bed::raw::{datagram, in_ip, packet, send_raw};
use beeline_tests::bed::{Agent, Bed, Fabric, POD_UDP, Rig, SERVICE_UDP, Shape, eventually, holds};

const PATIENCE: Duration = Duration::from_secs(10);

/// Packets of each kind.
const ROUNDS: u64 = 5;

/// A tunnel packet: who sends it, what is in it, and what becomes of it.
struct Case {
    outer: IpAddr,
    source: IpAddr,
    destination: SocketAddr,
    reason: &'static str,
}

/// Every kind of packet to `vip`, in tunnels of one family.
fn cases(fabric: &Fabric, vip: IpAddr, tunnel_v4: bool) -> Vec<Case> {
    let (edge, node) = (fabric.edge_addresses(tunnel_v4)[0], fabric.node_addresses(vip.is_ipv4())[0]);
    let (client, pod) = (fabric.client_for(vip), fabric.pods[0].address_for(vip));
    let service = SocketAddr::new(vip, SERVICE_UDP);
    let case = |source, destination, reason| Case { outer: edge, source, destination, reason };
    vec![
        case(client, service, "delivered_to_pod"),
        Case { outer: fabric.client_for(edge), ..case(client, service, "untrusted_source") },
        case(node, service, "hairpin"),
        case(pod, service, "hairpin"),
        case(vip, service, "martian_source"),
        case(client, SocketAddr::new(vip, SERVICE_UDP + 1), "inner_not_service"),
        // Nobody gets at pods by way of the tunnel.
        case(client, SocketAddr::new(pod, POD_UDP), "inner_not_service"),
        case(client, SocketAddr::new(node, POD_UDP), "inner_not_service"),
    ]
}

/// Packets that a node counted under any of these reasons.
fn counted(node: &Agent, cases: &[Case]) -> Result<Vec<u64>> {
    cases.iter().map(|case| node.packets_with_reason(case.reason)).collect()
}

#[test]
fn pods_get_what_edges_send_of_clients_alone() -> Result<()> {
    Bed::run("pod-trust", |bed| {
        let rig = Rig::start(bed, Shape { nodes: 1, pods: 1, ..Shape::PLAIN }, Fabric::web_pod_services)?;
        let (node, mut delivered) = (&rig.agents.nodes[0], 0);
        for (vip, tunnel_v4) in Fabric::VIPS.into_iter().flat_map(|vip| [(vip, true), (vip, false)]) {
            let to = rig.fabric.node_addresses(tunnel_v4)[0];
            let cases = cases(&rig.fabric, vip, tunnel_v4);
            let before = counted(node, &cases)?;
            for Case { outer, source, destination, .. } in &cases {
                let inner = datagram(SocketAddr::new(*source, 4000), *destination, b"whoever")?;
                let tunnelled = vec![packet(*outer, to, in_ip(vip), &inner)?; ROUNDS as usize];
                send_raw(&rig.fabric.client, to, &tunnelled)?;
            }
            let same = |reason: &str| cases.iter().filter(|case| case.reason == reason).count() as u64;
            eventually("every packet to be counted", PATIENCE, || {
                for ((case, before), after) in cases.iter().zip(&before).zip(counted(node, &cases)?) {
                    let (reason, want) = (case.reason, same(case.reason) * ROUNDS);
                    holds(after - before == want, || format!("{vip}: {} {reason}, not {want}", after - before))?;
                }
                Ok(())
            })?;
            delivered += ROUNDS as usize;
            let served = || rig.pods[0].udp.iter().map(beeline_tests::bed::UdpEcho::echoed).sum::<usize>();
            eventually("the pod to be asked", PATIENCE, || holds(served() == delivered, || served().to_string()))?;
        }
        ensure!(node.packets_with_reason("reply_rewritten")? > 0, "the pod's answers went out as its own");
        Ok(())
    })
}
