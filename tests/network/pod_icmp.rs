//! ICMP errors about flows to pods, both ways: they reach the very socket that they are about, whose peer is the VIP's
//! client, or the VIP.

use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use beeline_tests::bed::{Bed, Bulk, Fabric, Host, Pod, Rig, Service, Shape, eventually, holds};
use nix::cmsg_space;
use nix::libc::{sock_extended_err, sockaddr_in6};
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv4Ttl, Ipv6RecvErr, Ipv6Ttl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, setsockopt};

const PATIENCE: Duration = Duration::from_secs(20);

/// A port of the pods that the tests serve themselves.
const SERVED: u16 = 9100;
/// A port of the pods that nobody serves.
const CLOSED: u16 = 9200;

/// Every VIP: the first ones of all pods, the second ones of the first pod of each node, which therefore has its flows
/// recorded.
fn vips() -> impl Iterator<Item = IpAddr> {
    Fabric::VIPS.into_iter().chain(Fabric::SECOND_VIPS)
}

/// [`Fabric::pod_services`], each with UDP port 100 to [`SERVED`] and 200 to [`CLOSED`].
fn services(fabric: &Fabric) -> Vec<Service> {
    let services = fabric.pod_services().into_iter();
    services.map(|service| service.port_to("UDP", 100, SERVED).port_to("UDP", 200, CLOSED)).collect()
}

fn udp(host: &Host, address: IpAddr, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::new(address, port);
    let socket = host.within(|| UdpSocket::bind(address).with_context(|| format!("{} at {address}", host.name())))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The path MTU that `host` has learned towards `to`.
fn learned_mtu(host: &Host, to: IpAddr) -> Result<u32> {
    let route = host.run(&format!("ip route get {to}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    let mtu = words.next().with_context(|| format!("{} has learned nothing: {route}", host.name()))?;
    mtu.parse().with_context(|| format!("not an MTU in {route}"))
}

#[test]
fn a_pod_learns_of_a_narrow_link_before_its_client() -> Result<()> {
    Bed::run("pod-narrow-client", |bed| {
        const MTU: u32 = 1280;
        let rig = Rig::start(bed, Shape::PODS, services)?;
        // The client's own device is wide: it asks for segments that its link does not carry.
        let branch = rig.fabric.branch(bed, MTU)?;
        let bulk = Bulk::new(1 << 20);
        bulk.publish(rig.pods.iter().map(|pod| &pod.web))?;
        // The second ones first: each pod learns from one flow, recorded or not.
        for vip in Fabric::SECOND_VIPS.into_iter().chain(Fabric::VIPS) {
            let from = Fabric::BRANCH[usize::from(vip.is_ipv6())];
            let to = SocketAddr::new(vip, 80);
            let second = Fabric::SECOND_VIPS.contains(&vip);
            let mut missing: Vec<&Pod> =
                rig.fabric.pods.iter().filter(|pod| !second || pod.name().ends_with("-1")).collect();
            for _ in 0..80 {
                let name = bulk.download(&branch, from, to)?;
                let pod = rig.fabric.pods.iter().find(|pod| pod.name() == name).context("a pod's name")?;
                let learned = learned_mtu(&pod.host, from)?;
                ensure!(learned == MTU, "{name} learned {learned} towards {from}, asked at {vip}");
                missing.retain(|pod| pod.name() != name);
                if missing.is_empty() {
                    break;
                }
            }
            ensure!(missing.is_empty(), "{vip}: 80 downloads, none by {}", missing[0].name());
        }
        let delivered = rig.agents.nodes.iter().map(|node| node.packets_with_reason("icmp_error_delivered"));
        let delivered = delivered.sum::<Result<u64>>()?;
        // Four pods, two families.
        ensure!(delivered >= 8, "{delivered} errors were translated for pods");
        Ok(())
    })
}

/// The datagram that one of `sockets` has received: which one, and from where.
fn received(sockets: &[UdpSocket]) -> Result<(usize, SocketAddr)> {
    eventually("a datagram at a pod", PATIENCE, || {
        for (index, socket) in sockets.iter().enumerate() {
            match socket.recv_from(&mut [0; 64]) {
                Ok((_, from)) => return Ok((index, from)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("none has come")
    })
}

#[test]
fn a_pod_hears_that_its_client_has_gone() -> Result<()> {
    Bed::run("pod-refused", |bed| {
        let rig = Rig::start(bed, Shape::PODS, services)?;
        for vip in vips() {
            let to = SocketAddr::new(vip, 100);
            for _ in 0..6 {
                let serve = |pod: &Pod| udp(&pod.host, pod.address_for(vip), SERVED);
                let servers = rig.fabric.pods.iter().map(serve).collect::<Result<Vec<_>>>()?;
                let client = udp(&rig.fabric.client, rig.fabric.client_for(vip), 0)?;
                client.send_to(b"hello", to)?;
                let (pod, from) = received(&servers)?;
                ensure!(from == client.local_addr()?, "the pod saw {from}");
                // Only a connected socket is told of errors.
                servers[pod].connect(from)?;
                // Nobody listens any more: the client's kernel says so to the VIP, quoting what came from there.
                drop(client);
                eventually("word that nobody listens", PATIENCE, || {
                    let heard = servers[pod].send(b"late").err().map(|error| error.kind());
                    holds(heard == Some(ErrorKind::ConnectionRefused), || format!("pod {pod} heard {heard:?}"))
                })
                .with_context(|| format!("{from} to {to}"))?;
            }
        }
        Ok(())
    })
}

/// An ICMP error that a socket was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    kind: u8,
    code: u8,
    /// The MTU, of errors that bring one.
    mtu: u32,
    /// Whose error it is: its outer source.
    by: IpAddr,
    /// Where the packet that it is about was sent to.
    about: SocketAddr,
}

/// Makes `socket` collect errors, one by one, with all that they say.
fn collect_errors(socket: &UdpSocket) -> Result<()> {
    match socket.local_addr()?.is_ipv4() {
        true => setsockopt(socket, Ipv4RecvErr, &true)?,
        false => setsockopt(socket, Ipv6RecvErr, &true)?,
    }
    Ok(())
}

/// The next error of those that [`collect_errors`] asked for.
fn told(socket: &UdpSocket) -> Result<Told> {
    let mut quoted = [0; 2048];
    let mut data = [IoSliceMut::new(&mut quoted)];
    let mut control = cmsg_space!([sock_extended_err; 1], sockaddr_in6);
    let fd = socket.as_raw_fd();
    let (errors, about) = if socket.local_addr()?.is_ipv4() {
        let message = recvmsg::<SockaddrIn>(fd, &mut data, Some(&mut control), MsgFlags::MSG_ERRQUEUE)?;
        let to = message.address.map(|to| SocketAddr::from((to.ip(), to.port())));
        (message.cmsgs()?.collect::<Vec<_>>(), to)
    } else {
        let message = recvmsg::<SockaddrIn6>(fd, &mut data, Some(&mut control), MsgFlags::MSG_ERRQUEUE)?;
        let to = message.address.map(|to| SocketAddr::from((to.ip(), to.port())));
        (message.cmsgs()?.collect::<Vec<_>>(), to)
    };
    let about = about.context("no destination")?;
    for error in errors {
        let (error, by) = match error {
            ControlMessageOwned::Ipv4RecvErr(error, Some(by)) => (error, SockaddrIn::from(by).ip().into()),
            ControlMessageOwned::Ipv6RecvErr(error, Some(by)) => (error, SockaddrIn6::from(by).ip().into()),
            _ => continue,
        };
        return Ok(Told { kind: error.ee_type, code: error.ee_code, mtu: error.ee_info, by, about });
    }
    bail!("a message without an error")
}

/// Sends `datagram` from `socket` until it is told of an error by ICMP.
fn told_of(socket: &UdpSocket, to: SocketAddr, datagram: &[u8]) -> Result<Told> {
    eventually("an error by ICMP", PATIENCE, || {
        // Refused by the own kernel once that has heard.
        let _heard = socket.send_to(datagram, to);
        std::thread::sleep(Duration::from_millis(5));
        told(socket)
    })
    .with_context(|| format!("to {to}"))
}

#[test]
fn a_client_hears_that_the_pods_port_is_closed() -> Result<()> {
    Bed::run("pod-closed", |bed| {
        let rig = Rig::start(bed, Shape::PODS, services)?;
        for vip in vips() {
            let to = SocketAddr::new(vip, 200);
            for _ in 0..6 {
                let client = udp(&rig.fabric.client, rig.fabric.client_for(vip), 0)?;
                client.connect(to)?;
                eventually("a refusal", PATIENCE, || {
                    let heard = client.send(b"anybody?").err().map(|error| error.kind());
                    holds(heard == Some(ErrorKind::ConnectionRefused), || format!("{to}: {heard:?}"))
                })?;
                let client = udp(&rig.fabric.client, rig.fabric.client_for(vip), 0)?;
                collect_errors(&client)?;
                let (kind, code) = if vip.is_ipv4() { (3, 3) } else { (1, 4) };
                let told = told_of(&client, to, b"anybody?")?;
                assert_eq!(told, Told { kind, code, mtu: 0, by: vip, about: to });
            }
        }
        Ok(())
    })
}

#[test]
fn errors_of_the_node_come_from_the_vip() -> Result<()> {
    Bed::run("node-errors", |bed| {
        const MTU: u32 = 1300;
        let rig = Rig::start(bed, Shape::PODS, services)?;
        for vip in vips() {
            let to = SocketAddr::new(vip, 100);
            for _ in 0..6 {
                let client = udp(&rig.fabric.client, rig.fabric.client_for(vip), 0)?;
                collect_errors(&client)?;
                // One hop is the router's; the node's is the next.
                let (kind, code) = if vip.is_ipv4() {
                    setsockopt(&client, Ipv4Ttl, &2)?;
                    (11, 0)
                } else {
                    setsockopt(&client, Ipv6Ttl, &2)?;
                    (3, 0)
                };
                let told = told_of(&client, to, b"not so far")?;
                assert_eq!(told, Told { kind, code, mtu: 0, by: vip, about: to });
            }
        }
        for pod in &rig.fabric.pods {
            rig.fabric.nodes[pod.node].ip(&[format!("link set {} mtu {MTU}", pod.name())])?;
        }
        for vip in vips() {
            let to = SocketAddr::new(vip, 100);
            let client = udp(&rig.fabric.client, rig.fabric.client_for(vip), 0)?;
            collect_errors(&client)?;
            let (kind, code) = if vip.is_ipv4() { (3, 4) } else { (2, 0) };
            let told = told_of(&client, to, &[1; 1350])?;
            assert_eq!(told, Told { kind, code, mtu: MTU, by: vip, about: to });
            assert_eq!(learned_mtu(&rig.fabric.client, vip)?, MTU);
        }
        Ok(())
    })
}
