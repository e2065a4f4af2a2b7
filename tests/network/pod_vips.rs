//! One pod behind several VIPs and ports: each reply leaves as what was asked.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{
    Bed, Beeline, Capture, Connection, Fabric, LongConnections, POD_HTTP, POD_UDP, Rig, SERVICE_UDP, Said, Service,
    Shape, ask_name, eventually, get, holds,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Time after which no answer is taken for none to come.
const SILENCE: Duration = Duration::from_millis(700);

/// The second port of the first VIPs.
const OTHER_PORT: u16 = 8081;

/// A node with some pods.
const fn one_node(pods: u8) -> Shape {
    Shape { nodes: 1, pods, bridge: None, ..Shape::PODS }
}

/// All pods at both VIPs of each family: HTTP at two ports of the first and one of the second, UDP at one of each.
fn services(fabric: &Fabric) -> Vec<Service> {
    let service = |(name, vip): (&str, IpAddr)| {
        let service = fabric.pod_service(name, vip, vip.is_ipv4(), &fabric.pods).port_to("TCP", 80, POD_HTTP);
        service.port_to("UDP", SERVICE_UDP, POD_UDP)
    };
    let first = ["web", "web6"].into_iter().zip(Fabric::VIPS).map(service);
    let first = first.map(|service| service.port_to("TCP", OTHER_PORT, POD_HTTP));
    first.chain(["shop", "shop6"].into_iter().zip(Fabric::SECOND_VIPS).map(service)).collect()
}

/// Where HTTP is asked for in each family.
fn ways() -> [[SocketAddr; 3]; 2] {
    [0, 1].map(|family| {
        let [first, second] = [Fabric::VIPS[family], Fabric::SECOND_VIPS[family]];
        [SocketAddr::new(first, 80), SocketAddr::new(first, OTHER_PORT), SocketAddr::new(second, 80)]
    })
}

#[test]
fn replies_leave_as_the_vip_and_port_that_were_asked() -> Result<()> {
    Bed::run("pod_vips", |bed| {
        let rig = Rig::start(bed, one_node(1), services)?;
        let (fabric, pod) = (&rig.fabric, &rig.fabric.pods[0]);
        let filter = format!("src host {} or src host {}", pod.addresses()[0], pod.addresses()[1]);
        let as_pod = Capture::start(&fabric.client, "pod", "eth0", &filter)?;
        for ways in ways() {
            let client = fabric.client_for(ways[0].ip());
            let open = |to| fabric.client.within(|| Connection::open(client, to, PATIENCE));
            let mut connections = ways.iter().copied().map(open).collect::<Result<Vec<_>>>()?;
            // In turn, so that the pod has all of them at the same time.
            for _ in 0..10 {
                for connection in &mut connections {
                    let port = connection.local_addr()?.port();
                    let answer = connection.get("/")?;
                    ensure!(answer.header("x-client")? == client.to_string(), "{answer:?}");
                    ensure!(answer.header("x-client-port")? == port.to_string(), "{answer:?}");
                }
            }
            for to in ways.iter().cycle().take(30) {
                ensure!(fabric.client.within(|| get(client, *to, "/", PATIENCE))?.status == 200);
            }
            // Nobody else's ports: one socket asks both VIPs in turn would collide.
            for vip in [ways[0].ip(), ways[2].ip()] {
                let socket = fabric.client.within(|| Ok(UdpSocket::bind((client, 0))?))?;
                let said = ask_name(&socket, SocketAddr::new(vip, SERVICE_UDP), b"hello", PATIENCE)?;
                ensure!(said == Said { name: pod.name().to_owned(), saw: socket.local_addr()? }, "{said:?}");
            }
        }
        let node = &rig.agents.nodes[0];
        for reason in ["flow_collision", "reply_without_record", "flow_not_recorded"] {
            ensure!(node.packets_with_reason(reason)? == 0, "packets with {reason}");
        }
        ensure!(as_pod.packets()?.is_empty(), "the client got packets from the pod: {:?}", as_pod.packets()?);
        Ok(())
    })
}

/// The client's port of flows that collide.
const PORT: u16 = 40_000;

#[test]
fn a_collision_is_refused_and_no_reply_leaves_as_another_vip() -> Result<()> {
    Bed::run("pod_collision", |bed| {
        let rig = Rig::start(bed, one_node(1), services)?;
        let (fabric, node) = (&rig.fabric, &rig.agents.nodes[0]);
        for [asked, other_port, other_vip] in ways() {
            let from = SocketAddr::new(fabric.client_for(asked.ip()), PORT);
            let open = |to, wait| fabric.client.within(|| Connection::open_from(from, to, wait));
            let filter = format!("dst port {PORT} and not (src host {} and src port 80)", asked.ip());
            let wrong = Capture::start(&fabric.client, if from.is_ipv4() { "v4" } else { "v6" }, "eth0", &filter)?;
            let mut connection = open(asked, PATIENCE)?;
            connection.get("/")?;
            for to in [other_port, other_vip] {
                let before = node.packets_with_reason("flow_collision")?;
                ensure!(open(to, SILENCE).is_err(), "{to}: a second flow of {from} reached the only pod");
                let refused = node.packets_with_reason("flow_collision")? - before;
                ensure!(refused > 0, "{to}: no packet was counted as a collision");
                connection.get("/").with_context(|| format!("the flow that was there, after one to {to}"))?;
            }
            ensure!(wrong.packets()?.is_empty(), "replies of others to {from}: {:?}", wrong.packets()?);
            // Another port is another flow.
            for to in [other_port, other_vip] {
                fabric.client.within(|| get(from.ip(), to, "/", PATIENCE))?;
            }
            connection.get("/")?;
        }
        Ok(())
    })
}

#[test]
fn datagrams_collide_as_connections_do() -> Result<()> {
    Bed::run("pod_udp_collision", |bed| {
        let rig = Rig::start(bed, one_node(1), services)?;
        let (fabric, node) = (&rig.fabric, &rig.agents.nodes[0]);
        for (first, second) in Fabric::VIPS.into_iter().zip(Fabric::SECOND_VIPS) {
            let socket = fabric.client.within(|| Ok(UdpSocket::bind((fabric.client_for(first), PORT))?))?;
            let [first, second] = [first, second].map(|vip| SocketAddr::new(vip, SERVICE_UDP));
            ask_name(&socket, first, b"first", PATIENCE)?;
            let before = node.packets_with_reason("flow_collision")?;
            // An answer of the first VIP would be an error of another kind: `ask_name` looks who answers.
            let refused = ask_name(&socket, second, b"second", SILENCE).err().context("the second was answered")?;
            let kind = refused.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(kind == Some(std::io::ErrorKind::WouldBlock), "something came: {refused:#}");
            ensure!(node.packets_with_reason("flow_collision")? == before + 1, "not counted as a collision");
            ask_name(&socket, first, b"first again", PATIENCE)?;
        }
        Ok(())
    })
}

#[test]
fn of_several_pods_another_takes_the_second_flow() -> Result<()> {
    const PAIRS: u16 = 16;
    Bed::run("pod_next", |bed| {
        let rig = Rig::start(bed, one_node(3), services)?;
        let (fabric, node) = (&rig.fabric, &rig.agents.nodes[0]);
        for [first, _, second] in ways() {
            let (mut held, mut refused) = (Vec::new(), 0);
            let before = node.packets_with_reason("flow_collision")?;
            for port in PORT..PORT + PAIRS {
                let from = SocketAddr::new(fabric.client_for(first.ip()), port);
                let open = |to, wait| fabric.client.within(|| Connection::open_from(from, to, wait));
                let (mut one, two) = (open(first, PATIENCE)?, open(second, SILENCE));
                let pod = one.get("/")?.header("x-node")?.to_owned();
                // Refused where the next three slots are the first one's pod's too: 1 in 81 of those that meet.
                let Ok(mut two) = two else {
                    refused += 1;
                    continue;
                };
                ensure!(two.get("/")?.header("x-node")? != pod, "{from} is with {pod} for {first} and {second}");
                held.push((one, two));
            }
            ensure!(refused <= 2, "{refused} of {PAIRS} were refused");
            let collisions = node.packets_with_reason("flow_collision")? - before;
            ensure!((refused > 0) == (collisions > 0), "{refused} refused, {collisions} packets counted");
            for (one, two) in &mut held {
                one.get("/")?;
                two.get("/")?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_full_flow_table_breaks_nobody_who_can_be_told_without_it() -> Result<()> {
    /// Flows that are recorded, and how many fit.
    const FLOWS: (u16, u32) = (400, 64);
    Bed::run("pod_full", |bed| {
        // HTTP at the first VIPs is the first pod's alone; UDP of the second pod has two VIPs.
        let services = |fabric: &Fabric| {
            let [first, second] = [&fabric.pods[0], &fabric.pods[1]];
            let web = |(name, vip): (&str, IpAddr)| {
                fabric.pod_service(name, vip, vip.is_ipv4(), [first]).port_to("TCP", 80, POD_HTTP)
            };
            let ask = |(name, vip, port): (&str, IpAddr, u16)| {
                fabric.pod_service(name, vip, vip.is_ipv4(), [second]).port_to("UDP", port, POD_UDP)
            };
            let [vip, vip6] = Fabric::SECOND_VIPS;
            let asked = [("a", vip, 53), ("a6", vip6, 53), ("b", vip, 54), ("b6", vip6, 54)].map(ask);
            ["web", "web6"].into_iter().zip(Fabric::VIPS).map(web).chain(asked).collect()
        };
        let rig = Rig::start_tuned(bed, &Beeline::find()?, one_node(2), services, |config| {
            config.flows = Some(FLOWS.1);
        })?;
        let (fabric, node) = (&rig.fabric, &rig.agents.nodes[0]);
        let mut open = LongConnections::open(&fabric.client, &fabric.pairs(), 8)?;
        for (vip, port) in Fabric::SECOND_VIPS.into_iter().flat_map(|vip| [53, 54].map(move |port| (vip, port))) {
            for source in 0..FLOWS.0 {
                // Each port of the client's is used once for each pod's port.
                let from = (fabric.client_for(vip), 20_000 + source + if port == 53 { 0 } else { FLOWS.0 });
                let socket = fabric.client.within(|| Ok(UdpSocket::bind(from)?))?;
                ask_name(&socket, SocketAddr::new(vip, port), b"one more", PATIENCE)?;
            }
        }
        let fared = open.ask_again();
        ensure!(fared.values().all(|fared| fared.broken == 0), "{fared:?}");
        fabric.request(&fabric.pairs(), 8)?;
        eventually("all replies to be counted", PATIENCE, || {
            let rewritten = node.packets_with_reason("reply_rewritten")?;
            holds(rewritten >= 4 * u64::from(FLOWS.0), || format!("{rewritten} replies were rewritten"))
        })?;
        // That records are lost is seen.
        let pins = format!("/sys/fs/bpf/beeline-{}", node.host().name());
        let asked = ["status", "--maps", "-o", "json", "--pin-path", &pins];
        let status: Value = serde_json::from_str(&rig.beeline.run(node.host(), &asked)?)?;
        let count = |name| status["flows"][name].as_u64().with_context(|| format!("no flows in {status}"));
        let (recorded, evicted) = (count("recorded")?, count("evicted")?);
        ensure!(recorded == 4 * u64::from(FLOWS.0), "{recorded} flows were recorded");
        ensure!(evicted >= recorded - u64::from(FLOWS.1), "{evicted} of {recorded} records were evicted");
        for reason in ["flow_not_recorded", "flow_collision"] {
            ensure!(node.packets_with_reason(reason)? == 0, "packets with {reason}");
        }
        Ok(())
    })
}
