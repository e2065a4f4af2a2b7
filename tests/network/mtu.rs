//! Paths narrower than their ends, and datagrams longer than a packet.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use beeline_tests::bed::{Bed, Connection, Fabric, Host, Rig, Shape, UdpEcho, echo, eventually, holds};

const PATIENCE: Duration = Duration::from_secs(20);

/// Time for one echo on an idle network, before it is tried anew.
const ECHO: Duration = Duration::from_millis(500);

/// 1 MB up and down between `from` on `host` and `vip`.
fn transfer(rig: &Rig, host: &Host, from: IpAddr, vip: IpAddr) -> Result<()> {
    let contents: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_be_bytes).collect();
    rig.servers.iter().try_for_each(|server| server.publish("down", &contents))?;
    let open = || host.within(|| Connection::open(from, SocketAddr::new(vip, 80), PATIENCE));
    let down = open()?.get("/files/down").with_context(|| format!("1 MB from {vip}"))?;
    assert!(down.status == 200 && down.body == contents, "what came down differs ({})", down.status);
    let up = open()?.request("PUT", "/files/up", &contents).with_context(|| format!("1 MB to {vip}"))?;
    // Created, or there from the other family's turn.
    assert!([201, 204].contains(&up.status), "{up:?}");
    Ok(())
}

#[test]
fn a_client_behind_a_narrow_link_is_served_both_ways() -> Result<()> {
    Bed::run("narrow-client", |bed| {
        let rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        let branch = rig.fabric.branch(bed, 1300)?;
        for (from, vip) in Fabric::BRANCH.into_iter().zip(Fabric::VIPS) {
            // The router's "too long" goes to the VIP, since that is where the node's packets come from: an edge must
            // bring it to the one node that has the connection.
            transfer(&rig, &branch, from, vip)?;
        }
        let errors = rig.agents.edges[0].packets_with_reason("icmp_error_forwarded")?;
        assert!(errors >= 2, "{errors} ICMP errors were forwarded: the link was not narrow?");
        Ok(())
    })
}

#[test]
fn a_narrow_hop_between_edge_and_node_is_found() -> Result<()> {
    Bed::run("narrow-hop", |bed| {
        let shape = Shape { nodes: 1, routed: true, ..Shape::default() };
        let rig = Rig::start(bed, shape, Fabric::web_services)?;
        rig.fabric.router.ip(&["link set node1 mtu 1400"])?;
        // The node's own device is as narrow, and lets its peers know nothing of it.
        rig.fabric.nodes[0].ip(&[
            "link set eth0 mtu 1400",
            "route replace default via 10.50.21.1 advmss 1460",
            "route replace default via fd50:21::1 advmss 1440",
        ])?;
        for vip in Fabric::VIPS {
            transfer(&rig, &rig.fabric.client, rig.fabric.client_for(vip), vip)?;
        }
        Ok(())
    })
}

/// The largest packet that `host` sends to `to`, as it has learned.
fn learned_mtu(host: &Host, to: IpAddr) -> Result<u32> {
    let route = host.run(&format!("ip route get {to}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    let mtu = words.next().with_context(|| format!("nothing learned: {route}"))?;
    mtu.parse().with_context(|| format!("not an MTU in {route}"))
}

#[test]
fn the_edge_tells_clients_what_fits_and_fragments_arrive() -> Result<()> {
    Bed::run("too-long", |bed| {
        let rig = Rig::start(bed, Shape::default(), |fabric| {
            fabric.web_services().into_iter().map(|service| service.port("UDP", 9000)).collect()
        })?;
        // 1,500 less two headers of the tunnel.
        for (vip, fits) in Fabric::VIPS.into_iter().zip([1460, 1420]) {
            let to = SocketAddr::new(vip, 9000);
            let servers = rig.fabric.nodes.iter().map(|node| UdpEcho::start(node, to));
            let _servers = servers.collect::<Result<Vec<_>>>()?;
            let from = SocketAddr::new(rig.fabric.client_for(vip), 0);
            let socket = rig.fabric.client.within(|| Ok(UdpSocket::bind(from)?))?;
            // A whole 1,500-byte packet: lost, and answered.
            let full = vec![1; 1500 - 8 - if vip.is_ipv4() { 20 } else { 40 }];
            eventually("word of what fits", PATIENCE, || {
                // Refused by the client's own kernel once it has learned.
                let _lost = socket.send_to(&full, to);
                let mtu = learned_mtu(&rig.fabric.client, vip)?;
                holds(mtu == fits, || format!("the client learned {mtu}, not {fits}"))
            })?;
            // 4 KB, which the client now cuts so that each piece fits. Several flows: each to its one node, whole.
            for flow in 0..8_u8 {
                let socket = rig.fabric.client.within(|| Ok(UdpSocket::bind(from)?))?;
                eventually("4 KB there and back", PATIENCE, || echo(&socket, to, &vec![flow; 4096], ECHO))?;
            }
            let forwarded = rig.agents.edges[0].packets_with_reason("fragment_forwarded")?;
            assert!(forwarded >= 8, "{vip}: {forwarded} later fragments were forwarded");
        }
        Ok(())
    })
}
