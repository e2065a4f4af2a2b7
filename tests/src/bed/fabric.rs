//! The network of the lab and of most tests: clients behind a router, edges, nodes.
//!
//! ```text
//! client ── router ─ECMP─┬─ edge1, edge2 …
//!                        └─ node1, node2 …
//! ```
//!
//! Edges, and nodes too where they are not [`Shape::routed`], share one segment, a bridge in the router. The router
//! sends VIPs to the edges by the hash of addresses and ports; nodes hold VIPs on their loopback and answer clients
//! through the router, past the edges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};

use super::{Agent, Bed, Beeline, Config, Edge, Host, Node, Pod, PodServer, Service, WebServer};

/// The edges' segment, IPv4.
pub const UNDERLAY_V4: &str = "10.50.0.0/24";
/// The edges' segment, IPv6.
pub const UNDERLAY_V6: &str = "fd50::/64";

/// VIPs are taken from here, IPv4.
const VIPS_V4: &str = "198.51.100.0/24";
/// VIPs are taken from here, IPv6.
const VIPS_V6: &str = "2001:db8:10::/64";

/// What to build.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Number of edges, at most 9.
    pub edges: u8,
    /// Number of nodes, at most 9.
    pub nodes: u8,
    /// Number of addresses that the client has in each family.
    pub clients: u8,
    /// Each node on a segment of its own, so that the way from an edge to it leads through the router.
    pub routed: bool,
    /// MTU of the link before a router of each node's own; only where [`Shape::routed`]. 0 for no such router.
    pub hop_mtu: u32,
    /// Number of pods on each node. Where it is not 0, nodes forward for pods and hold no VIPs.
    pub pods: u8,
    /// The node (from 0) whose pods hang on a bridge; those of all others have a route each.
    pub bridge: Option<u8>,
}

impl Shape {
    /// One edge, two nodes, two addresses for the client.
    pub const PLAIN: Self = Self { edges: 1, nodes: 2, clients: 2, routed: false, hop_mtu: 0, pods: 0, bridge: None };

    /// As [`Shape::PLAIN`], with two pods on each node, those of the second on a bridge.
    pub const PODS: Self = Self { pods: 2, bridge: Some(1), ..Self::PLAIN };
}

impl Default for Shape {
    fn default() -> Self {
        Self::PLAIN
    }
}

/// The network, built. Devices: `eth0` on every host, at the router one named as the host behind it.
pub struct Fabric {
    pub(super) shape: Shape,
    /// Where requests come from.
    pub client: Host,
    /// Between clients, edges and nodes.
    pub router: Host,
    /// Own VIPs, forward.
    pub edges: Vec<Host>,
    /// Serve.
    pub nodes: Vec<Host>,
    /// The pods, those of the first node first.
    pub pods: Vec<Pod>,
    /// The routers of the nodes' own, where [`Shape::hop_mtu`] asks for them.
    pub hops: Vec<Host>,
}

impl Fabric {
    /// The first VIP, IPv4.
    pub const VIP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
    /// The first VIP, IPv6.
    pub const VIP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0x10));
    /// The first VIP of both families.
    pub const VIPS: [IpAddr; 2] = [Self::VIP_V4, Self::VIP_V6];

    /// Addresses of the host that [`Fabric::branch`] adds.
    pub const BRANCH: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(10, 61, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd61, 0, 0, 0, 0, 0, 0, 2))];

    /// Builds hosts, links and routes; VIPs lead to all edges. Every node holds [`Fabric::VIPS`], or has pods. Nothing
    /// runs on them yet.
    ///
    /// # Errors
    /// The kernel refuses, or the shape contradicts itself.
    pub fn build(bed: &Bed, shape: Shape) -> Result<Self> {
        let hosts = |name: &str, count: u8| -> Result<Vec<Host>> {
            (1..=count).map(|index| bed.host(&format!("{name}{index}"))).collect()
        };
        let (edges, nodes) = (hosts("edge", shape.edges)?, hosts("node", shape.nodes)?);
        let (client, router) = (bed.host("client")?, bed.host("router")?);
        let mut fabric = Self { shape, client, router, edges, nodes, pods: Vec::new(), hops: Vec::new() };
        fabric.build_router()?;
        fabric.build_client()?;
        for (index, edge) in (1..).zip(&fabric.edges) {
            fabric.join_segment(edge, &[format!("10.50.0.1{index}/24"), format!("fd50::1{index}/64")])?;
        }
        for (index, node) in (1..).zip(fabric.nodes.clone()) {
            match (shape.routed, shape.hop_mtu) {
                (true, 0) => fabric.join_routed(&node, index)?,
                (true, mtu) => fabric.join_behind_hop(bed, &node, index, mtu)?,
                (false, 0) => {
                    fabric.join_segment(&node, &[format!("10.50.0.2{index}/24"), format!("fd50::2{index}/64")])?;
                }
                (false, _) => bail!("a hop before each node, but the nodes are not routed"),
            }
            if shape.pods == 0 {
                Self::hold_vips(&node, &Self::VIPS)?;
            }
        }
        if shape.pods > 0 {
            fabric.build_pods(bed)?;
        }
        fabric.lead_vips_to(&fabric.edges.iter().map(Host::name).collect::<Vec<_>>())?;
        Ok(fabric)
    }

    fn build_router(&self) -> Result<()> {
        self.router.forward()?;
        self.router.sysctl(&[
            ("net.ipv4.fib_multipath_hash_policy", "1"),
            ("net.ipv6.fib_multipath_hash_policy", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
        ])?;
        self.router.ip(&["link add br0 type bridge mcast_snooping 0", "link set br0 up"])?;
        self.router.addresses("br0", &["10.50.0.1/24", "fd50::1/64"])
    }

    fn build_client(&self) -> Result<()> {
        self.router.cable("client", &self.client, "eth0")?;
        self.router.addresses("client", &["10.60.0.1/24", "fd60::1/64"])?;
        let addresses = self.client_addresses();
        let lines: Vec<String> =
            addresses.iter().map(|address| format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })).collect();
        self.client.addresses("eth0", &lines)?;
        self.client.ip(&["route add default via 10.60.0.1", "route add default via fd60::1"])
    }

    /// Plugs `host` into the edges' segment, with its default routes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join_segment(&self, host: &Host, addresses: &[String]) -> Result<()> {
        self.router.cable(host.name(), host, "eth0")?;
        self.router.ip(&[format!("link set {} master br0", host.name())])?;
        host.addresses("eth0", addresses)?;
        host.ip(&["route add default via 10.50.0.1", "route add default via fd50::1"])
    }

    fn join_routed(&self, host: &Host, index: u8) -> Result<()> {
        self.router.cable(host.name(), host, "eth0")?;
        Self::address_routed(&self.router, host, index)
    }

    /// Addresses of the link between `router` and a node on a segment of its own, whose default route it is.
    pub(super) fn address_routed(router: &Host, host: &Host, index: u8) -> Result<()> {
        let (v4, v6) = (format!("10.50.2{index}"), format!("fd50:2{index}:"));
        router.addresses(host.name(), &[format!("{v4}.1/24"), format!("{v6}:1/64")])?;
        host.addresses("eth0", &[format!("{v4}.2/24"), format!("{v6}:2/64")])?;
        host.ip(&[format!("route add default via {v4}.1"), format!("route add default via {v6}:1")])
    }

    /// Puts `vips` on the loopback of `host`, never as the source of what the host itself begins.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn hold_vips(host: &Host, vips: &[IpAddr]) -> Result<()> {
        let line = |vip: &IpAddr| match vip {
            IpAddr::V4(vip) => format!("addr add {vip}/32 dev lo"),
            IpAddr::V6(vip) => format!("addr add {vip}/128 dev lo nodad preferred_lft 0"),
        };
        host.ip(&vips.iter().map(line).collect::<Vec<_>>())
    }

    /// Makes the router send all VIPs to these hosts of the edges' segment, spread by addresses and ports, as the
    /// routing daemon of a fabric would; to nobody where there are none.
    ///
    /// # Errors
    /// A host has no address there, or the kernel refuses.
    pub fn lead_vips_to(&self, hosts: &[&str]) -> Result<()> {
        let mut lines = vec![];
        for prefix in [VIPS_V4, VIPS_V6] {
            if hosts.is_empty() {
                lines.push(format!("route replace blackhole {prefix}"));
                continue;
            }
            let mut line = format!("route replace {prefix}");
            for host in hosts {
                let (v4, v6) = self.on_segment(host)?;
                let via = if prefix == VIPS_V4 { v4 } else { v6 };
                line.push_str(&format!(" nexthop via {via} dev br0"));
            }
            lines.push(line);
        }
        self.router.ip(&lines)
    }

    /// The addresses of `name` on the edges' segment.
    fn on_segment(&self, name: &str) -> Result<(IpAddr, IpAddr)> {
        let index = |hosts: &[Host]| hosts.iter().position(|host| host.name() == name);
        let of = |index: usize, v4: Vec<IpAddr>, v6: Vec<IpAddr>| (v4[index], v6[index]);
        match (index(&self.edges), index(&self.nodes)) {
            (Some(index), _) => Ok(of(index, self.edge_addresses(true), self.edge_addresses(false))),
            (None, Some(index)) if !self.shape.routed => {
                Ok(of(index, self.node_addresses(true), self.node_addresses(false)))
            }
            _ => bail!("{name} is not on the edges' segment"),
        }
    }

    /// The client's addresses: all of IPv4, then all of IPv6.
    pub fn client_addresses(&self) -> Vec<IpAddr> {
        let range = 2..2 + self.shape.clients;
        let v4 = range.clone().map(|last| IpAddr::from([10, 60, 0, last]));
        let v6 = range.map(|last| IpAddr::from([0xfd60, 0, 0, 0, 0, 0, 0, u16::from(last)]));
        v4.chain(v6).collect()
    }

    /// One of the client's addresses in the family of `vip`.
    pub fn client_for(&self, vip: IpAddr) -> IpAddr {
        self.clients_for(vip).next().unwrap_or(vip)
    }

    /// The client's addresses in the family of `vip`.
    pub fn clients_for(&self, vip: IpAddr) -> impl Iterator<Item = IpAddr> + use<> {
        self.client_addresses().into_iter().filter(move |address| address.is_ipv4() == vip.is_ipv4())
    }

    /// Every address of the client with the VIP of its family.
    pub fn pairs(&self) -> Vec<(IpAddr, IpAddr)> {
        let pairs = |vip| self.clients_for(vip).map(move |client| (client, vip));
        Self::VIPS.into_iter().flat_map(pairs).collect()
    }

    /// The nodes' addresses of one family.
    pub fn node_addresses(&self, v4: bool) -> Vec<IpAddr> {
        let address = |index: u8| match (self.shape.routed, v4) {
            (false, true) => IpAddr::from([10, 50, 0, 20 + index]),
            (false, false) => IpAddr::from([0xfd50, 0, 0, 0, 0, 0, 0, 0x20 + u16::from(index)]),
            (true, true) => IpAddr::from([10, 50, 20 + index, 2]),
            (true, false) => IpAddr::from([0xfd50, 0x20 + u16::from(index), 0, 0, 0, 0, 0, 2]),
        };
        (1..=self.shape.nodes).map(address).collect()
    }

    /// The edges' addresses of one family.
    pub fn edge_addresses(&self, v4: bool) -> Vec<IpAddr> {
        let address = |index: u8| match v4 {
            true => IpAddr::from([10, 50, 0, 10 + index]),
            false => IpAddr::from([0xfd50, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(index)]),
        };
        (1..=self.shape.edges).map(address).collect()
    }

    /// Starts nginx on every node.
    ///
    /// # Errors
    /// As [`WebServer::start`].
    pub fn serve(&self, bed: &Bed) -> Result<Vec<WebServer>> {
        self.nodes.iter().map(|node| WebServer::start(bed, node)).collect()
    }

    /// Starts nginx and UDP in every pod.
    ///
    /// # Errors
    /// As [`PodServer::start`].
    pub fn serve_pods(&self, bed: &Bed) -> Result<Vec<PodServer>> {
        self.pods.iter().map(|pod| pod.serve(bed)).collect()
    }

    /// HTTP on both VIPs, tunnelled in the family of the VIP.
    pub fn web_services(&self) -> Vec<Service> {
        vec![
            Service::new("web", Self::VIP_V4, "TCP", 80, &self.node_addresses(true)),
            Service::new("web6", Self::VIP_V6, "TCP", 80, &self.node_addresses(false)),
        ]
    }

    /// HTTP on one VIP, tunnelled in IPv4 or IPv6.
    pub fn web_service(&self, vip: IpAddr, tunnel_v4: bool) -> Service {
        Service::new("web", vip, "TCP", 80, &self.node_addresses(tunnel_v4))
    }

    /// The configuration of an edge.
    pub fn edge_config(&self, host: &Host, services: &[Service]) -> Config {
        let edge = Edge { interfaces: vec!["eth0".to_owned()], ..Edge::default() };
        Config { edge: Some(edge), services: services.to_vec(), ..Config::new(host.name()) }
    }

    /// The configuration of a node, which trusts the edges' segment, and where there are pods knows what is internal.
    pub fn node_config(&self, host: &Host, services: &[Service]) -> Config {
        let trusted_sources = vec![UNDERLAY_V4.to_owned(), UNDERLAY_V6.to_owned()];
        let (interfaces, internal_networks) = (vec!["eth0".to_owned()], self.internal_networks());
        let node = Node { interfaces, trusted_sources, internal_networks, ..Node::default() };
        Config { node: Some(node), services: services.to_vec(), ..Config::new(host.name()) }
    }

    /// Starts an agent on every node and edge, and lets the edges transmit.
    ///
    /// # Errors
    /// As [`Beeline::agent`] and [`Beeline::pass_program`].
    pub fn start_agents(&self, bed: &Bed, beeline: &Beeline, services: &[Service]) -> Result<Agents> {
        self.start_agents_tuned(bed, beeline, services, |_| ())
    }

    /// As [`Fabric::start_agents`], with configurations that `tune` changes before they are used.
    ///
    /// # Errors
    /// As [`Fabric::start_agents`].
    pub fn start_agents_tuned(
        &self,
        bed: &Bed,
        beeline: &Beeline,
        services: &[Service],
        tune: impl Fn(&mut Config),
    ) -> Result<Agents> {
        let ports: Vec<&str> = self.edges.iter().chain(&self.nodes).map(Host::name).collect();
        beeline.pass_program(&self.router, &ports)?;
        for (hop, node) in self.hops.iter().zip(&self.nodes) {
            beeline.pass_program(hop, &[node.name()])?;
        }
        let start = |host: &Host, mut config: Config| {
            tune(&mut config);
            beeline.start(bed, host, &config)
        };
        let nodes = self.nodes.iter().map(|host| start(host, self.node_config(host, services)));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let edges = self.edges.iter().map(|host| start(host, self.edge_config(host, services)));
        let mut agents = Agents { edges: edges.collect::<Result<Vec<_>>>()?, nodes };
        agents.all().try_for_each(Agent::wait_ready)?;
        Ok(agents)
    }

    /// Starts an agent on every node.
    ///
    /// # Errors
    /// As [`Beeline::agent`].
    pub fn start_nodes(&self, bed: &Bed, beeline: &Beeline, services: &[Service]) -> Result<Vec<Agent>> {
        let nodes = self.nodes.iter().map(|host| beeline.start(bed, host, &self.node_config(host, services)));
        let mut nodes = nodes.collect::<Result<Vec<_>>>()?;
        nodes.iter_mut().try_for_each(Agent::wait_ready)?;
        Ok(nodes)
    }
}

/// The agents of a fabric.
pub struct Agents {
    /// Those of the edges, in order.
    pub edges: Vec<Agent>,
    /// Those of the nodes, in order.
    pub nodes: Vec<Agent>,
}

impl Agents {
    /// All of them, nodes first.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.nodes.iter_mut().chain(&mut self.edges)
    }
}
