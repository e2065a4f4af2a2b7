//! ICMP to a VIP: echo, errors about flows, and the silence of ports that nobody serves.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use beeline_tests::bed::{Bed, Fabric, Host, Rig, Shape, connect, eventually, holds};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_vip_answers_echo() -> Result<()> {
    Bed::run("echo", |bed| {
        let rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        for vip in Fabric::VIPS {
            let printed = rig.fabric.client.run(&format!("ping -n -c 5 -i 0.05 -W 2 -s 1200 {vip}"))?;
            assert!(printed.contains("5 received"), "{printed}");
        }
        let answered = rig.agents.edges[0].packets_with_reason("echo_reply")?;
        assert!(answered >= 10, "the edge answered {answered} of 10");
        Ok(())
    })
}

#[test]
fn a_port_without_a_service_is_silent_and_counted() -> Result<()> {
    Bed::run("unknown-port", |bed| {
        let rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        for (index, vip) in (1..).zip(Fabric::VIPS) {
            let from = rig.fabric.client_for(vip);
            let refused = rig.fabric.client.within(|| {
                Ok(connect(from, SocketAddr::new(vip, 81), Duration::from_millis(500)).map(drop).unwrap_err())
            })?;
            // Silence: no RST, no unreachable.
            let errno = refused.root_cause().downcast_ref::<nix::errno::Errno>().copied();
            assert_eq!(errno, Some(nix::errno::Errno::EINPROGRESS), "{refused:#}");
            let dropped = rig.agents.edges[0].packets_with_reason("unknown_port")?;
            assert!(dropped >= index, "{dropped} packets were counted");
        }
        Ok(())
    })
}

/// The datagram that one of `sockets` has received: which one, and from where.
fn received(sockets: &[UdpSocket]) -> Result<(usize, SocketAddr)> {
    eventually("a datagram at a node", PATIENCE, || {
        for (index, socket) in sockets.iter().enumerate() {
            match socket.recv_from(&mut [0; 64]) {
                Ok((_, from)) => return Ok((index, from)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("none has come")
    })
}

#[test]
fn port_unreachable_reaches_the_node_of_the_flow() -> Result<()> {
    Bed::run("unreachable", |bed| {
        let rig = Rig::start(bed, Shape { nodes: 3, ..Shape::default() }, |fabric| {
            fabric.web_services().into_iter().map(|service| service.port("UDP", 9000)).collect()
        })?;
        for vip in Fabric::VIPS {
            let to = SocketAddr::new(vip, 9000);
            let serve = |node: &Host| -> Result<UdpSocket> {
                let socket = node.within(|| Ok(UdpSocket::bind(to)?))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            for _ in 0..12 {
                let servers = rig.fabric.nodes.iter().map(serve).collect::<Result<Vec<_>>>()?;
                let from = SocketAddr::new(rig.fabric.client_for(vip), 0);
                let client = rig.fabric.client.within(|| Ok(UdpSocket::bind(from)?))?;
                client.send_to(b"hello", to)?;
                let (node, from) = received(&servers)?;
                // Only a connected socket is told of errors.
                servers[node].connect(from)?;
                // Nobody listens any more: the client's kernel says so to the VIP, quoting the node's datagram.
                drop(client);
                eventually("word that nobody listens", PATIENCE, || {
                    let heard = servers[node].send(b"late").err().map(|error| error.kind());
                    holds(heard == Some(ErrorKind::ConnectionRefused), || format!("node {node} heard {heard:?}"))
                })
                .with_context(|| format!("{from} to {to}"))?;
            }
        }
        Ok(())
    })
}
