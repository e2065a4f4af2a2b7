//! What pods see of a request, datagrams to them, and much data both ways.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{Bulk, Connection, Fabric, Hit, Rig, SERVICE_UDP, WebServer, ask_name, eventually};

use super::super::network;
use super::super::table::{Table, counted};
use super::{CALM, PATIENCE};

/// Bytes of a large transfer.
const BULK: usize = 10_000_000;
/// How long an answer to a datagram may take, and how long a question on a connection.
const ANSWER: Duration = Duration::from_secs(2);

/// One request to each VIP, and what the nginx that answered wrote into its access log.
pub(super) fn logged(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let mut table = Table::new(&["client", "asked", "answered by", "its log: client", "server", "request"]);
    for (index, vip) in network::vips().enumerate() {
        let to = SocketAddr::new(vip, 80);
        let path = format!("/seen-{index}");
        match ask(lab, to, &path) {
            Ok((from, server, hit)) => {
                let logged = SocketAddr::new(hit.client, hit.client_port);
                if logged != from {
                    problems.push(format!("{from} asked {to}: {} logged {logged}", server.name()));
                }
                if let Some(wrong) = wrong_server(lab, server, &hit) {
                    problems.push(wrong);
                }
                let line = [from.to_string(), to.to_string(), server.name().to_owned(), logged.to_string()];
                table.row(line.into_iter().chain([hit.server.to_string(), hit.request]).collect());
            }
            Err(error) => problems.push(format!("{to}{path}: {error:#}")),
        }
    }
    println!("One request to each VIP, as the access log has it of the nginx that answered:\n{table}");
    Ok(())
}

/// Asks for `path`, and looks for it in the access log of the server that answered.
fn ask<'a>(lab: &'a Rig, to: SocketAddr, path: &str) -> Result<(SocketAddr, &'a WebServer, Hit)> {
    let client = &lab.fabric.client;
    let mut connection = client.within(|| Connection::open(lab.fabric.client_for(to.ip()), to, ANSWER))?;
    let from = connection.local_addr()?;
    let answer = connection.get(path)?;
    let name = answer.header("x-node")?;
    let server = network::servers(lab).find(|server| server.name() == name);
    let server = server.with_context(|| format!("{name} is none of the servers"))?;
    let hit = eventually("the request in the access log", PATIENCE, || {
        let hits = server.hits()?;
        hits.into_iter().find(|hit| hit.request.contains(path)).with_context(|| format!("{name} did not log {path}"))
    })?;
    Ok((from, server, hit))
}

/// A pod is asked at its own address, which it alone has; a node at the VIP.
fn wrong_server(lab: &Rig, server: &WebServer, hit: &Hit) -> Option<String> {
    let own =
        lab.fabric.pods.iter().find(|pod| pod.name() == server.name()).map(|pod| pod.address_for(hit.server.ip()));
    let right = own.map_or_else(|| network::vips().any(|vip| vip == hit.server.ip()), |own| own == hit.server.ip());
    (!right).then(|| format!("{} was asked at {}", server.name(), hit.server))
}

/// Datagrams, each from another port. An answer counts only if it comes from the VIP.
pub(super) fn datagrams(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let mut table = Table::new(&["client", "VIP", "answered", "served by", "server saw"]);
    for (client, vip) in lab.fabric.pairs() {
        let to = SocketAddr::new(vip, SERVICE_UDP);
        let (mut pods, mut saw) = (Vec::new(), Vec::new());
        for _ in 0..CALM {
            match ask_by_datagram(lab, client, to) {
                Ok((pod, seen)) => {
                    pods.push(pod);
                    saw.push(seen);
                }
                Err(error) => problems.push(format!("{client} asked {to} by UDP: {error:#}")),
            }
        }
        let answered = format!("{} of {CALM}", pods.len());
        table.row(vec![client.to_string(), to.to_string(), answered, counted(pods), counted(saw)]);
    }
    println!("Datagrams, each from a port of its own:\n{table}");
    Ok(())
}

fn ask_by_datagram(lab: &Rig, client: IpAddr, to: SocketAddr) -> Result<(String, IpAddr)> {
    let socket = lab.fabric.client.within(|| Ok(UdpSocket::bind((client, 0))?))?;
    let said = ask_name(&socket, to, b"who are you, and who am I?", ANSWER)?;
    let own = socket.local_addr()?;
    ensure!(said.saw == own, "{} saw {} for {own}", said.name, said.saw);
    Ok((said.name, said.saw.ip()))
}

/// Much data down and up, each way on a connection of its own.
pub(super) fn bulk(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let bulk = Bulk::new(BULK);
    bulk.publish(lab.pods.iter().map(|pod| &pod.web))?;
    println!("{} MB down and up, compared byte by byte:", BULK / 1_000_000);
    for vip in Fabric::VIPS {
        let (client, to) = (lab.fabric.client_for(vip), SocketAddr::new(vip, 80));
        let started = Instant::now();
        let down = bulk.download(&lab.fabric.client, client, to);
        let middle = Instant::now();
        let up = bulk.upload(&lab.fabric.client, client, to, lab.pods.iter().map(|pod| &pod.web));
        let mut told = |way: &str, served: Result<String>, took: Duration| match served {
            Ok(pod) => format!("{way} {pod} in {} ms", took.as_millis()),
            Err(error) => {
                problems.push(format!("{way} a pod of {vip}: {error:#}"));
                format!("{way} a pod: broken")
            }
        };
        let (down, up) = (told("from", down, middle - started), told("to", up, middle.elapsed()));
        println!("  {vip}: {down}, {up}");
    }
    println!();
    Ok(())
}
