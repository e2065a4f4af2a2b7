//! Hosts that are edge and node: what is for their own pods needs no tunnel.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use beeline_tests::bed::{
    Agent, Bed, Beeline, Capture, Config, Fabric, Host, PodServer, SERVICE_UDP, Shape, ask_name, eventually,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Time for an answer on an idle network, before it is tried anew.
const ANSWER: Duration = Duration::from_millis(500);

/// Packets in tunnels: IPv4 and IPv6 in either.
const TUNNELS: &str = "ip proto 4 or ip proto 41 or ip6 proto 4 or ip6 proto 41";

/// Nodes with pods that are edges too, each with one device, which VIPs are led to.
struct Both {
    agents: Vec<Agent>,
    _servers: Vec<PodServer>,
    fabric: Fabric,
}

impl Both {
    fn start(bed: &Bed, hosts: u8) -> Result<Self> {
        let shape = Shape { edges: 0, nodes: hosts, clients: 3, ..Shape::PODS };
        let shape = Shape { bridge: if hosts > 1 { Some(1) } else { None }, ..shape };
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, shape)?);
        let servers = fabric.serve_pods(bed)?;
        let names: Vec<&str> = fabric.nodes.iter().map(Host::name).collect();
        beeline.pass_program(&fabric.router, &names)?;
        let services = fabric.web_pod_services();
        let start = |host: &Host| {
            let node = fabric.node_config(host, &services).node;
            beeline.agent(bed, host, &Config { node, ..fabric.edge_config(host, &services) })
        };
        let agents = fabric.nodes.iter().map(start).collect::<Result<_>>()?;
        fabric.lead_vips_to(&names)?;
        Ok(Self { agents, _servers: servers, fabric })
    }

    /// HTTP from all addresses of the client, and 8 KB there and back in fragments.
    fn ask(&self) -> Result<()> {
        let pods = self.fabric.request(&self.fabric.pairs(), 16)?;
        ensure!(pods.len() == self.fabric.pods.len(), "96 flows all went to {pods:?}");
        for (client, vip) in self.fabric.pairs() {
            let socket = self.fabric.client.within(|| Ok(UdpSocket::bind((client, 0))?))?;
            let to = SocketAddr::new(vip, SERVICE_UDP);
            let said = eventually("8 KB there and back", PATIENCE, || ask_name(&socket, to, &[7; 8192], ANSWER))?;
            ensure!(said.saw == socket.local_addr()?, "the pod saw {}", said.saw);
        }
        Ok(())
    }
}

#[test]
fn own_pods_are_served_without_a_tunnel() -> Result<()> {
    Bed::run("pod_local", |bed| {
        let both = Both::start(bed, 1)?;
        let tunnels = Capture::start(&both.fabric.router, "tunnels", "node1", TUNNELS)?;
        both.ask()?;
        let agent = &both.agents[0];
        for (reason, least) in [("delivered_to_pod", 96 * 4), ("fragment_delivered_to_pod", 6 * 5)] {
            let packets = agent.packets_with_reason(reason)?;
            ensure!(packets >= least, "{packets} with {reason}");
        }
        ensure!(tunnels.packets()?.is_empty(), "tunnels on the wire: {:?}", tunnels.packets()?);
        // What the edge's way gave to the node's has the latter's reason alone, and none left.
        for reason in ["forwarded", "fragment_forwarded", "delivered_locally"] {
            let packets = agent.packets_with_reason(reason)?;
            ensure!(packets == 0, "{packets} with {reason}: {}", agent.json("status")?["reasons"]);
        }
        ensure!(tunnels.packets()?.is_empty(), "tunnels on the wire: {:?}", tunnels.packets()?);
        Ok(())
    })
}

#[test]
fn pods_elsewhere_are_reached_by_a_tunnel_and_own_ones_without() -> Result<()> {
    Bed::run("pod_local_and_far", |bed| {
        let both = Both::start(bed, 2)?;
        // Each host's tunnels, as they come out of its cable.
        let tunnels = ["node1", "node2"].map(|host| Capture::start(&both.fabric.router, host, host, TUNNELS));
        both.ask()?;
        for (agent, tunnels) in both.agents.iter().zip(tunnels) {
            let (name, count) = (agent.host().name(), |reason| agent.packets_with_reason(reason));
            let (forwarded, delivered) = (count("forwarded")?, count("delivered_to_pod")?);
            ensure!(forwarded > 0 && delivered > 0, "{name}: {forwarded} forwarded, {delivered} delivered");
            ensure!(!tunnels?.packets()?.is_empty(), "{name}: nothing was seen of {forwarded} tunnels");
        }
        Ok(())
    })
}
