//! Packets' whole way: client, router, edge, tunnel, node, nginx, and straight back.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use beeline_tests::bed::{
    Bed, Beeline, Config, Connection, Fabric, Node, Rig, Service, Shape, UNDERLAY_V4, UNDERLAY_V6, UdpEcho, WebServer,
    echo, eventually, holds,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that show it when some are lost, doubled or swapped.
fn megabyte() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes()).collect()
}

/// Requests from several clients over several edges; 1 MB up and down.
fn serves_through(bed: &str, vip_v4: bool, tunnel_v4: bool) -> Result<()> {
    let vip = if vip_v4 { Fabric::VIP_V4 } else { Fabric::VIP_V6 };
    Bed::run(bed, |bed| {
        let shape = Shape { edges: 2, nodes: 2, clients: 3, ..Shape::default() };
        let rig = Rig::start(bed, shape, |fabric| vec![fabric.web_service(vip, tunnel_v4)])?;
        let pairs: Vec<_> = rig.fabric.pairs().into_iter().filter(|pair| pair.1 == vip).collect();
        let nodes = rig.fabric.request(&pairs, 16)?;
        assert_eq!(nodes.len(), 2, "48 flows all went to {nodes:?}");
        for edge in &rig.agents.edges {
            let packets: u64 = edge.packets_by_backend()?.values().sum();
            ensure!(packets > 0, "{} carried nothing of 48 flows", edge.host().name());
        }
        transfer(&rig, vip)?;
        eventually("the access logs", PATIENCE, || {
            let logged: usize = rig.servers.iter().map(|server| Ok(server.hits()?.len())).sum::<Result<usize>>()?;
            holds(logged == 48 + 2, || format!("{logged} of 50 requests logged"))
        })?;
        for hit in rig.servers.iter().map(WebServer::hits).collect::<Result<Vec<_>>>()?.concat() {
            assert!(rig.fabric.clients_for(vip).any(|client| client == hit.client), "{hit:?}");
            assert_eq!(hit.server, SocketAddr::new(vip, 80));
        }
        Ok(())
    })
}

/// 1 MB down and up, on one connection each.
fn transfer(rig: &Rig, vip: std::net::IpAddr) -> Result<()> {
    let contents = megabyte();
    rig.servers.iter().try_for_each(|server| server.publish("down", &contents))?;
    let client = rig.fabric.client_for(vip);
    let open = || rig.fabric.client.within(|| Connection::open(client, SocketAddr::new(vip, 80), PATIENCE));
    let down = open()?.get("/files/down")?;
    assert_eq!(down.status, 200);
    assert!(down.body == contents, "what came down differs");
    let up = open()?.request("PUT", "/files/up", &contents)?;
    assert_eq!(up.status, 201, "{up:?}");
    let node = up.header("x-node")?;
    let position = rig.fabric.nodes.iter().position(|host| host.name() == node);
    let server = &rig.servers[position.expect("a node of the fabric")];
    assert!(std::fs::read(server.file("up"))? == contents, "what came up differs");
    Ok(())
}

#[test]
fn ipv4_in_ipv4() -> Result<()> {
    serves_through("4in4", true, true)
}

#[test]
fn ipv6_in_ipv6() -> Result<()> {
    serves_through("6in6", false, false)
}

#[test]
fn ipv4_in_ipv6() -> Result<()> {
    serves_through("4in6", true, false)
}

#[test]
fn ipv6_in_ipv4() -> Result<()> {
    serves_through("6in4", false, true)
}

#[test]
fn nodes_behind_a_router_are_reached() -> Result<()> {
    Bed::run("routed", |bed| {
        let rig = Rig::start(bed, Shape { routed: true, ..Shape::default() }, Fabric::web_services)?;
        let nodes = rig.fabric.request(&rig.fabric.pairs(), 16)?;
        assert_eq!(nodes.len(), 2, "64 flows all went to {nodes:?}");
        Ok(())
    })
}

#[test]
fn outer_sources_come_from_the_tunnel_prefix() -> Result<()> {
    Bed::run("tunnel-source", |bed| {
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, Shape::default())?);
        let _servers = fabric.serve(bed)?;
        beeline.pass_program(&fabric.router, &["edge1", "node1", "node2"])?;
        let services = fabric.web_services();
        let (v4, v6) = ("10.200.0.0/16", "fd00:bee::/64");
        let start = |host: &_, config: Config| beeline.agent(bed, host, &config);
        // Nodes trust the prefixes alone: what they serve came from there.
        let trusted_sources = vec![v4.to_owned(), v6.to_owned()];
        let node = Node { interfaces: vec!["eth0".to_owned()], trusted_sources, ..Node::default() };
        let nodes = fabric
            .nodes
            .iter()
            .map(|host| start(host, Config { node: Some(node.clone()), ..fabric.node_config(host, &services) }));
        let _nodes = nodes.collect::<Result<Vec<_>>>()?;
        let mut config = fabric.edge_config(&fabric.edges[0], &services);
        let edge = config.edge.as_mut().expect("an edge's configuration");
        (edge.tunnel_source_v4, edge.tunnel_source_v6) = (Some(v4.to_owned()), Some(v6.to_owned()));
        let _edge = start(&fabric.edges[0], config)?;
        fabric.request(&fabric.pairs(), 8)?;
        Ok(())
    })
}

#[test]
fn udp_is_echoed() -> Result<()> {
    Bed::run("udp", |bed| {
        let rig = Rig::start(bed, Shape::default(), |fabric| {
            fabric.web_services().into_iter().map(|service| service.port("UDP", 9000)).collect()
        })?;
        for vip in Fabric::VIPS {
            let to = SocketAddr::new(vip, 9000);
            let servers = rig.fabric.nodes.iter().map(|node| UdpEcho::start(node, to));
            let servers = servers.collect::<Result<Vec<_>>>()?;
            for round in 0..32_u8 {
                // A socket of its own: another port, another flow.
                let from = SocketAddr::new(rig.fabric.client_for(vip), 0);
                let socket = rig.fabric.client.within(|| Ok(UdpSocket::bind(from)?))?;
                echo(&socket, to, &vec![round; 1 + 40 * usize::from(round)], PATIENCE)?;
            }
            let echoed: Vec<usize> = servers.iter().map(UdpEcho::echoed).collect();
            assert_eq!(echoed.iter().sum::<usize>(), 32, "{vip}: {echoed:?}");
            assert!(!echoed.contains(&0), "{vip}: 32 flows, {echoed:?}");
        }
        Ok(())
    })
}

#[test]
fn edge_and_node_share_a_device() -> Result<()> {
    Bed::run("shared-device", |bed| {
        let (beeline, shape) = (Beeline::find()?, Shape { edges: 2, nodes: 0, clients: 3, ..Shape::default() });
        let fabric = Fabric::build(bed, shape)?;
        beeline.pass_program(&fabric.router, &["edge1", "edge2"])?;
        let web = |name, vip, v4| Service::new(name, vip, "TCP", 80, &fabric.edge_addresses(v4));
        let services = [web("web", Fabric::VIP_V4, true), web("web6", Fabric::VIP_V6, false)];
        let trusted_sources = vec![UNDERLAY_V4.to_owned(), UNDERLAY_V6.to_owned()];
        let node = Node { interfaces: vec!["eth0".to_owned()], trusted_sources, ..Node::default() };
        let mut running = Vec::new();
        for host in &fabric.edges {
            Fabric::hold_vips(host, &Fabric::VIPS)?;
            let config = Config { node: Some(node.clone()), ..fabric.edge_config(host, &services) };
            running.push((WebServer::start(bed, host)?, beeline.agent(bed, host, &config)?));
        }
        // Each flow enters by one of the two and is served by one of the two: all four ways are taken.
        let nodes = fabric.request(&fabric.pairs(), 32)?;
        assert_eq!(nodes.len(), 2, "192 flows all went to {nodes:?}");
        for (_, agent) in &running {
            let (here, there) =
                (agent.packets_with_reason("delivered_locally")?, agent.packets_with_reason("forwarded")?);
            assert!(here > 0 && there > 0, "{}: {here} here, {there} there", agent.host().name());
        }
        Ok(())
    })
}
