//! A node without a ready pod, and one without any: who answers then.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use beeline_tests::bed::raw::{datagram, host_unreachable, segment, send_raw};
use beeline_tests::bed::{Agent, Bed, Fabric, Rig, SERVICE_UDP, Service, Shape, connect, eventually, holds};
use nix::errno::Errno;

const PATIENCE: Duration = Duration::from_secs(20);

/// Time for an answer on an idle network.
const ANSWER: Duration = Duration::from_millis(500);

/// Packets of each kind that nobody answers.
const ROUNDS: u64 = 5;

/// SYNs of a flood.
const FLOOD: usize = 20_000;

/// Resets and errors that a CPU of a node may send in a second.
const ANSWERS_PER_SECOND: u64 = 1000;

/// Flags of a TCP header (RFC 9293 §3.1).
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// One node with two pods, which all draining own and none is left of then.
const NODE: Shape = Shape { nodes: 1, bridge: None, ..Shape::PODS };

fn change(fabric: &Fabric, change: impl Fn(&mut Service, IpAddr) -> Result<()>) -> Result<Vec<Service>> {
    let mut services = fabric.web_pod_services();
    for service in &mut services {
        let vip = service.address;
        fabric.pods.iter().try_for_each(|pod| change(service, pod.address_for(vip)))?;
    }
    Ok(services)
}

/// Counts under a few reasons.
fn counts<const N: usize>(node: &Agent, reasons: [&str; N]) -> Result<[u64; N]> {
    let counts = reasons.iter().map(|reason| node.packets_with_reason(reason)).collect::<Result<Vec<_>>>()?;
    counts.try_into().map_err(|counts| anyhow!("{counts:?}"))
}

/// Waits until `no_pod` has grown by as many packets, and nothing was answered meanwhile.
fn silence(node: &Agent, before: [u64; 3], dropped: u64, what: &str) -> Result<()> {
    eventually(what, PATIENCE, || {
        let [no_pod, resets, unreachable] = counts(node, SILENT)?;
        ensure!([resets, unreachable] == before[1..], "{what}: {resets} resets, {unreachable} errors: {before:?}");
        holds(no_pod - before[0] >= dropped, || format!("{what}: {} of {dropped} were dropped", no_pod - before[0]))
    })
}

const SILENT: [&str; 3] = ["no_pod", "reset_sent", "unreachable_sent"];

/// A connection is refused, by whom it was sent to.
fn refused(fabric: &Fabric, vip: IpAddr) -> Result<()> {
    let to = SocketAddr::new(vip, 80);
    let outcome = fabric.client.within(|| Ok(connect(fabric.client_for(vip), to, ANSWER)))?;
    let error = outcome.err().context("somebody took the connection")?;
    holds(error.downcast_ref() == Some(&Errno::ECONNREFUSED), || format!("{error:#}"))
}

/// A datagram to the service comes back as "port unreachable", which the client's socket takes for its own.
fn unreachable(fabric: &Fabric, vip: IpAddr) -> Result<()> {
    let socket = fabric.client.within(|| Ok(UdpSocket::bind((fabric.client_for(vip), 0))?))?;
    socket.connect((vip, SERVICE_UDP))?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(b"anybody?")?;
    let error = socket.recv(&mut [0; 16]).err().context("somebody answered")?;
    holds(error.kind() == ErrorKind::ConnectionRefused, || error.to_string())
}

#[test]
fn without_a_pod_clients_are_told_so() -> Result<()> {
    Bed::run("no-pod", |bed| {
        let rig = Rig::start(bed, NODE, Fabric::web_pod_services)?;
        let (fabric, agent) = (&rig.fabric, &rig.agents.nodes[0]);
        // So that a fragment still fits into a tunnel.
        fabric.client.ip(&["link set eth0 mtu 1400"])?;
        rig.reconfigure(&change(fabric, |service, pod| service.drain_pod(pod, true))?)?;
        assert_eq!(fabric.request(&fabric.pairs(), 8)?.len(), 2, "where all drain, all serve");
        // The edge is behind: it sends to a node that has no pod any more.
        let none = change(fabric, Service::remove_pod)?;
        agent.apply(&fabric.node_config(agent.host(), &none))?;
        let from = |vip| SocketAddr::new(fabric.client_for(vip), 4000);
        for vip in Fabric::VIPS {
            let syn = segment(from(vip), SocketAddr::new(vip, 80), SYN)?;
            let question = datagram(from(vip), SocketAddr::new(vip, SERVICE_UDP), b"anybody?")?;
            send_raw(&fabric.client, vip, [&syn, &question])?;
        }
        silence(agent, [0; 3], 4, "nobody to be answered at once")?;
        for vip in Fabric::VIPS {
            eventually("a reset", PATIENCE, || refused(fabric, vip))?;
            eventually("an error", PATIENCE, || unreachable(fabric, vip))?;
        }
        let [_, resets, errors] = counts(agent, SILENT)?;
        ensure!(resets >= 2 && errors >= 2, "{resets} resets and {errors} errors were counted");
        never_answered(fabric, agent)?;
        rationed(fabric, agent)?;
        unroutable(fabric, agent)
    })
}

/// A reset, an ICMP error and the fragments of a datagram are dropped, and nothing comes back.
fn never_answered(fabric: &Fabric, agent: &Agent) -> Result<()> {
    for vip in Fabric::VIPS {
        let (client, service) = (SocketAddr::new(fabric.client_for(vip), 4000), SocketAddr::new(vip, 80));
        let replied = segment(service, client, ACK)?;
        let packets = [
            ("resets", segment(client, service, RST)?),
            ("resets that acknowledge", segment(client, service, RST | ACK)?),
            ("ICMP errors", host_unreachable(client.ip(), vip, &replied)?),
        ];
        for (what, packet) in packets {
            let before = counts(agent, SILENT)?;
            send_raw(&fabric.client, vip, &vec![packet; ROUNDS as usize])?;
            silence(agent, before, ROUNDS, what)?;
        }
        let before = counts(agent, SILENT)?;
        let socket = fabric.client.within(|| Ok(UdpSocket::bind((client.ip(), 0))?))?;
        socket.send_to(&[0; 3000], (vip, SERVICE_UDP))?;
        silence(agent, before, 3, "fragments")?;
    }
    Ok(())
}

/// A flood is answered a thousand times a second by each CPU.
fn rationed(fabric: &Fabric, agent: &Agent) -> Result<()> {
    let vip = Fabric::VIP_V4;
    let syn = segment(SocketAddr::new(fabric.client_for(vip), 4000), SocketAddr::new(vip, 80), SYN)?;
    let (began, before) = (Instant::now(), counts(agent, ["reset_sent", "answer_limited"])?);
    send_raw(&fabric.client, vip, std::iter::repeat_n(&syn, FLOOD))?;
    let seconds = began.elapsed().as_secs() + 2;
    let [resets, limited] = eventually("the flood to be over", PATIENCE, || {
        let after = counts(agent, ["reset_sent", "answer_limited"])?;
        let more = [after[0] - before[0], after[1] - before[1]];
        // A flood may lose some on its way.
        holds(more[0] + more[1] >= FLOOD as u64 / 2, || format!("{more:?}")).map(|()| more)
    })?;
    let most = ANSWERS_PER_SECOND * available_parallelism()?.get() as u64 * seconds;
    ensure!(resets <= most && limited > 0, "{resets} resets in {seconds} s, {limited} refused");
    Ok(())
}

/// The way of an answer is the routing table's.
fn unroutable(fabric: &Fabric, agent: &Agent) -> Result<()> {
    let [before] = counts(agent, ["answer_unroutable"])?;
    agent.host().ip(&["route del default via 10.50.0.1", "route del default via fd50::1"])?;
    // After the second of the flood.
    eventually("answers without a way", PATIENCE, || {
        for vip in Fabric::VIPS {
            ensure!(refused(fabric, vip).is_err(), "an answer came, without a way");
        }
        let [after] = counts(agent, ["answer_unroutable"])?;
        holds(after - before >= 2, || format!("{} were counted", after - before))
    })
}
