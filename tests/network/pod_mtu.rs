//! What fits between edge, node and pod: the MSS that clients are told, a narrow hop, a wide underlay.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{
    Agents, Bed, Beeline, Bulk, Fabric, Host, Node, POD_HTTP, PodServer, Service, Shape, connect, eventually, holds,
};
use nix::sys::signal::Signal;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;

const PATIENCE: Duration = Duration::from_secs(20);

/// What is sent up and down, bytes.
const MUCH: usize = 12 << 20;

/// One node, whose two pods have a route each.
const ONE_NODE: Shape = Shape { nodes: 1, bridge: None, ..Shape::PODS };

struct Scene {
    agents: Agents,
    servers: Vec<PodServer>,
    fabric: Fabric,
}

impl Scene {
    /// Everything on `shape`, after `prepare` has changed what it likes.
    fn start(bed: &Bed, shape: Shape, prepare: impl FnOnce(&Fabric) -> Result<()>) -> Result<Self> {
        let fabric = Fabric::build(bed, shape)?;
        prepare(&fabric)?;
        // The MSS that the kernel tells is then the one that the peer has asked for.
        fabric.client.sysctl(&[("net.ipv4.tcp_timestamps", "0")])?;
        let servers = fabric.serve_pods(bed)?;
        let agents = fabric.start_agents(bed, &Beeline::find()?, &tunnels(&fabric))?;
        Ok(Self { agents, servers, fabric })
    }

    /// Gives the node another `mssClamp`, and all agents the services.
    fn reconfigure(&mut self, clamp: Option<&str>, services: &[Service]) -> Result<()> {
        let clamp = clamp.map(ToOwned::to_owned);
        for agent in self.agents.all() {
            let mut config = if agent.host().name().starts_with("edge") {
                self.fabric.edge_config(agent.host(), services)
            } else {
                self.fabric.node_config(agent.host(), services)
            };
            config.node = config.node.map(|node| Node { mss_clamp: clamp.clone(), ..node });
            config.write(agent.file())?;
            agent.process().signal(Signal::SIGHUP)?;
        }
        Ok(())
    }

    /// Sends much to `vip`.
    fn upload(&self, vip: IpAddr) -> Result<()> {
        let (client, from, to) = (&self.fabric.client, self.fabric.client_for(vip), SocketAddr::new(vip, 80));
        let webs = self.servers.iter().map(|server| &server.web);
        Bulk::new(MUCH).upload(client, from, to, webs).with_context(|| format!("up to {vip}")).map(drop)
    }

    /// Fetches much from each of `vips`.
    fn download(&self, vips: &[IpAddr]) -> Result<()> {
        let bulk = Bulk::new(MUCH);
        bulk.publish(self.servers.iter().map(|server| &server.web))?;
        for vip in vips {
            let (from, to) = (self.fabric.client_for(*vip), SocketAddr::new(*vip, 80));
            bulk.download(&self.fabric.client, from, to).with_context(|| format!("down from {vip}"))?;
        }
        Ok(())
    }
}

/// HTTP at the first VIPs, tunnelled in the family of the VIP, to one pod; at the second ones, tunnelled in the other
/// family, to the other pod: each address of a pod is behind one address of its node.
fn tunnels(fabric: &Fabric) -> Vec<Service> {
    let service = |name: &str, vip: IpAddr, tunnel_v4: bool, pod: usize| {
        fabric.pod_service(name, vip, tunnel_v4, [&fabric.pods[pod]]).port_to("TCP", 80, POD_HTTP)
    };
    let [v4, v6] = Fabric::VIPS;
    let [other_v4, other_v6] = Fabric::SECOND_VIPS;
    vec![
        service("web", v4, true, 0),
        service("web6", v6, false, 0),
        service("shop", other_v4, false, 1),
        service("shop6", other_v6, true, 1),
    ]
}

/// The MSS that `vip` asks the client for.
fn asked_mss(client: &Host, from: IpAddr, vip: IpAddr) -> Result<u32> {
    let stream = client.within(|| connect(from, SocketAddr::new(vip, 80), PATIENCE))?;
    Ok(getsockopt(&stream.as_fd(), TcpMaxSeg)?)
}

/// Waits until the client is asked for an MSS of `wanted` at all `vips`, by family.
fn asked_for(fabric: &Fabric, vips: &[IpAddr], wanted: [u32; 2]) -> Result<()> {
    for vip in vips {
        let (from, wanted) = (fabric.client_for(*vip), wanted[usize::from(vip.is_ipv6())]);
        eventually("another MSS", PATIENCE, || {
            let asked = (0..8).map(|_| asked_mss(&fabric.client, from, *vip)).collect::<Result<BTreeSet<_>>>()?;
            holds(asked == BTreeSet::from([wanted]), || format!("{vip} asked for {asked:?}, not {wanted}"))
        })?;
    }
    Ok(())
}

#[test]
fn clients_are_asked_for_segments_that_fit() -> Result<()> {
    Bed::run("pod-mss", |bed| {
        let mut scene = Scene::start(bed, ONE_NODE, |_| Ok(()))?;
        let all = [Fabric::VIPS, Fabric::SECOND_VIPS].concat();
        // 1,500, less two outer headers of IPv6, less the packet's own.
        asked_for(&scene.fabric, &all, [1380, 1360])?;
        for (clamp, wanted) in [("off", [1460, 1440]), ("1200", [1200, 1200]), ("auto", [1380, 1360])] {
            let services = tunnels(&scene.fabric);
            scene.reconfigure(Some(clamp), &services)?;
            asked_for(&scene.fabric, &all, wanted).with_context(|| format!("mssClamp: {clamp}"))?;
        }
        // Outer headers of IPv4 alone.
        let in_v4 = Fabric::VIPS
            .into_iter()
            .map(|vip| scene.fabric.pod_service(&format!("web-{}", vip.is_ipv4()), vip, true, &scene.fabric.pods));
        let in_v4: Vec<Service> = in_v4.map(|service| service.port_to("TCP", 80, POD_HTTP)).collect();
        scene.reconfigure(None, &in_v4)?;
        asked_for(&scene.fabric, &Fabric::VIPS, [1420, 1400])
    })
}

#[test]
fn a_narrow_hop_between_edge_and_node_is_no_hole() -> Result<()> {
    Bed::run("pod-narrow-hop", |bed| {
        let shape = Shape { routed: true, hop_mtu: 1400, ..ONE_NODE };
        let mut scene = Scene::start(bed, shape, |_| Ok(()))?;
        let answered = |scene: &Scene| -> Result<u64> {
            let edge = &scene.agents.edges[0];
            Ok(edge.packets_with_reason("frag_needed")? + edge.packets_with_reason("packet_too_big")?)
        };
        let services = tunnels(&scene.fabric);
        let all = [Fabric::VIPS, Fabric::SECOND_VIPS].concat();
        // Segments that fit from the first one on, in spite of two headers of IPv6.
        scene.reconfigure(Some("1280"), &services)?;
        asked_for(&scene.fabric, &all, [1280, 1280])?;
        all.iter().try_for_each(|vip| scene.upload(*vip))?;
        ensure!(answered(&scene)? == 0, "{} segments were too large already", answered(&scene)?);
        // Segments that do not: the edge hears so from the hop and tells the client; and the pod hears it of its own.
        scene.reconfigure(Some("off"), &services)?;
        asked_for(&scene.fabric, &all, [1460, 1440])?;
        all.iter().try_for_each(|vip| scene.upload(*vip))?;
        scene.download(&all)?;
        ensure!(answered(&scene)? > 0, "the edge answered no segment that was too large");
        Ok(())
    })
}

#[test]
fn a_wide_underlay_leaves_the_mss_as_it_is() -> Result<()> {
    Bed::run("pod-jumbo", |bed| {
        let scene = Scene::start(bed, ONE_NODE, |fabric| {
            let wide = |devices: &[&str]| {
                devices.iter().map(|device| format!("link set {device} mtu 9000")).collect::<Vec<_>>()
            };
            fabric.router.ip(&wide(&["client", "edge1", "node1", "br0"]))?;
            [&fabric.client, &fabric.edges[0], &fabric.nodes[0]]
                .into_iter()
                .try_for_each(|host| host.ip(&wide(&["eth0"])))
        })?;
        // The pods' own.
        let all = [Fabric::VIPS, Fabric::SECOND_VIPS].concat();
        asked_for(&scene.fabric, &all, [1460, 1440])?;
        all.iter().try_for_each(|vip| scene.upload(*vip))?;
        scene.download(&all)
    })
}
