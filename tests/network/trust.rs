//! Who may send a node tunnel packets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use beeline_tests::bed::raw::{datagram, in_ip, packet, send_raw};
use beeline_tests::bed::{Bed, Fabric, Rig, Shape, eventually, holds};

const PATIENCE: Duration = Duration::from_secs(10);
const ROUNDS: usize = 10;
const PORT: u16 = 9000;

/// Texts that `socket` has received.
fn received(socket: &UdpSocket) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    loop {
        let mut text = [0; 64];
        match socket.recv_from(&mut text) {
            Ok((length, _)) => texts.push(String::from_utf8_lossy(&text[..length]).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(texts),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The node gets the same tunnel packet from the client's own address and in the name of an edge.
fn only_trusted_sources(bed: &str, vip: IpAddr, tunnel_v4: bool) -> Result<()> {
    Bed::run(bed, |bed| {
        let shape = Shape { edges: 1, nodes: 1, ..Shape::default() };
        let rig = Rig::start(bed, shape, |fabric| vec![fabric.web_service(vip, tunnel_v4).port("UDP", PORT)])?;
        let (node, edge) = (rig.fabric.node_addresses(tunnel_v4)[0], rig.fabric.edge_addresses(tunnel_v4)[0]);
        let stranger = rig.fabric.client_for(node);
        let client = rig.fabric.client_for(vip);
        let socket = rig.fabric.nodes[0].within(|| Ok(UdpSocket::bind(SocketAddr::new(vip, PORT))?))?;
        socket.set_nonblocking(true)?;
        let (from, to) = (SocketAddr::new(client, 4000), SocketAddr::new(vip, PORT));
        let tunnelled = |source: IpAddr, text: &str| -> Result<()> {
            let outer = packet(source, node, in_ip(vip), &datagram(from, to, text.as_bytes())?)?;
            send_raw(&rig.fabric.client, node, [&outer])
        };
        for _ in 0..ROUNDS {
            tunnelled(stranger, "stranger")?;
            tunnelled(edge, "edge")?;
        }
        let mut texts = Vec::new();
        let agent = &rig.agents.nodes[0];
        eventually("all packets to be delivered or refused", PATIENCE, || {
            texts.extend(received(&socket)?);
            let refused = agent.packets_with_reason("untrusted_source")?;
            holds(texts.len() >= ROUNDS && refused >= ROUNDS as u64, || format!("{texts:?}, {refused} refused"))
        })?;
        assert_eq!(texts, vec!["edge"; ROUNDS]);
        Ok(())
    })
}

#[test]
fn ipv4_tunnels_are_accepted_from_edges_alone() -> Result<()> {
    only_trusted_sources("trust-4in4", Fabric::VIP_V4, true)?;
    only_trusted_sources("trust-6in4", Fabric::VIP_V6, true)
}

#[test]
fn ipv6_tunnels_are_accepted_from_edges_alone() -> Result<()> {
    only_trusted_sources("trust-6in6", Fabric::VIP_V6, false)?;
    only_trusted_sources("trust-4in6", Fabric::VIP_V4, false)
}
