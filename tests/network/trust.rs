//! Who may send a node tunnel packets.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use beeline_tests::bed::{Bed, Fabric, Host, Rig, Shape, eventually, holds};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};

const PATIENCE: Duration = Duration::from_secs(10);
const ROUNDS: usize = 10;
const PORT: u16 = 9000;

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let once = (sum & 0xffff) + (sum >> 16);
    (!((once & 0xffff) + (once >> 16)) as u16).to_be_bytes()
}

/// A packet of either family, of even header sums.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(payload.len())?;
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x45, 0]);
            bytes.extend((length + 20).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            let sum = checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => bail!("{source} and {destination} are of two families"),
    }
    bytes.extend(payload);
    Ok(bytes)
}

/// A UDP datagram with its checksum.
fn datagram(source: IpAddr, destination: IpAddr, text: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(text.len() + 8)?.to_be_bytes();
    let ports = [4000_u16.to_be_bytes(), PORT.to_be_bytes()].concat();
    let octets = |address| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address).to_vec(),
        IpAddr::V6(address) => Ipv6Addr::octets(&address).to_vec(),
    };
    let pseudo = [octets(source), octets(destination), vec![0, 17], length.to_vec()].concat();
    let sum = checksum(&[&pseudo, &ports, &length, text]);
    packet(source, destination, 17, &[&ports, &length[..], &sum, text].concat())
}

/// Sends a whole IP packet from `host`, whatever its source address says.
fn send_raw(host: &Host, destination: IpAddr, bytes: &[u8]) -> Result<()> {
    host.within(|| {
        let family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let to = SockaddrStorage::from(SocketAddr::new(destination, 0));
        let sent = sendto(raw.as_raw_fd(), bytes, &to, MsgFlags::empty())
            .with_context(|| format!("sending {} bytes to {destination}", bytes.len()))?;
        holds(sent == bytes.len(), || format!("{sent} of {} bytes were sent", bytes.len()))
    })
}

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
        let protocol = if vip.is_ipv4() { 4 } else { 41 };
        let tunnelled = |source: IpAddr, text: &str| -> Result<()> {
            let outer = packet(source, node, protocol, &datagram(client, vip, text.as_bytes())?)?;
            send_raw(&rig.fabric.client, node, &outer)
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
