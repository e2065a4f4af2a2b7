//! Who knows a flow: what a node finds out about connections to pods whose slots have moved, and where it is blind.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{
    Bed, Connection, Fabric, Fared, Host, LongConnections, POD_HTTP, Pod, PodEntry, Rig, Service, Shape, WebServer,
    policies,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Connections of each pair of client and VIP.
const EACH: usize = 8;

/// One node with two pods.
const NODE: Shape = Shape { nodes: 1, bridge: None, ..Shape::PODS };

/// Ports of the pods that a sidecar takes over: of pods whose flows are not recorded, and of those that are.
const UNSEEN: u16 = 8000;
const RECORDED: u16 = 8001;

/// HTTP at the first VIPs, to a port behind a sidecar; at the second ones to another, with records. Of all pods, with
/// `draining` draining.
fn behind_sidecars(fabric: &Fabric, draining: Option<&Pod>) -> Result<Vec<Service>> {
    let mut services = Vec::new();
    for (index, vip) in Fabric::VIPS.into_iter().chain(Fabric::SECOND_VIPS).enumerate() {
        let record = Fabric::SECOND_VIPS.contains(&vip);
        let service = fabric.pod_service(&format!("web{index}"), vip, vip.is_ipv4(), &fabric.pods);
        let mut service = service.port_to("TCP", 80, if record { RECORDED } else { UNSEEN });
        for pod in &fabric.pods {
            let entry = service.pod(pod.address_for(vip))?;
            entry.record_flows = record;
            entry.draining = draining.is_some_and(|draining| draining.name() == pod.name());
        }
        services.push(service);
    }
    Ok(services)
}

/// Each client's address with each of `vips` of its family.
fn pairs(fabric: &Fabric, vips: [IpAddr; 2]) -> Vec<(IpAddr, IpAddr)> {
    vips.into_iter().flat_map(|vip| fabric.clients_for(vip).map(move |client| (client, vip))).collect()
}

fn fared(fared: &BTreeMap<String, Fared>, pod: &str) -> Fared {
    fared.get(pod).copied().unwrap_or_default()
}

/// A socket behind a REDIRECT listens on another port than the packets name.
#[test]
fn flows_behind_a_redirection_are_kept_by_records_alone() -> Result<()> {
    Bed::run("redirected", |bed| {
        let rig = Rig::start(bed, NODE, |fabric| behind_sidecars(fabric, None).expect("pods of every service"))?;
        let (fabric, first) = (&rig.fabric, rig.fabric.pods[0].name().to_owned());
        for pod in &fabric.pods {
            policies::redirect(&pod.host, UNSEEN, POD_HTTP)?;
            policies::redirect(&pod.host, RECORDED, POD_HTTP)?;
        }
        let open = |vips| LongConnections::open(&fabric.client, &pairs(fabric, vips), EACH);
        let (mut unseen, mut recorded) = (open(Fabric::VIPS)?, open(Fabric::SECOND_VIPS)?);
        rig.reconfigure(&behind_sidecars(fabric, Some(&fabric.pods[0]))?)?;
        let kept = recorded.ask_again();
        ensure!(kept.values().all(|fared| fared.broken == 0) && fared(&kept, &first).alive > 0, "recorded: {kept:?}");
        let formers = rig.agents.nodes[0].packets_with_reason("delivered_to_former_pod")?;
        ensure!(formers >= 2 * fared(&kept, &first).alive as u64, "{formers} packets to the former pod: {kept:?}");
        let lost = unseen.ask_again();
        for (pod, Fared { alive, broken }) in &lost {
            // Their packets went to the other pod, which knows none of them.
            ensure!((if *pod == first { *alive } else { *broken }) == 0, "not recorded: {lost:?}");
        }
        ensure!(fared(&lost, &first).broken > 0, "no connection of the pod that drains: {lost:?}");
        let after = rig.agents.nodes[0].packets_with_reason("delivered_to_former_pod")?;
        ensure!(after == formers, "{} packets without a record went to the former pod", after - formers);
        Ok(())
    })
}

/// Connections that a pod's kernel took by a SYN cookie.
fn cookies(pod: &Host) -> Result<u64> {
    pod.within(|| {
        let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
        let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "SyncookiesRecv");
        Ok(found.context("no SyncookiesRecv")?.1.parse()?)
    })
}

/// Under SYN cookies the pod has no socket for a handshake before its last segment, which here comes when the slot has
/// moved: that the segment brings the pod's own cookie is all that there is to know.
#[test]
fn a_handshake_by_syn_cookies_is_finished_by_the_pod_that_began_it() -> Result<()> {
    Bed::run("cookies", |bed| {
        let rig = Rig::start(bed, NODE, Fabric::web_pod_services)?;
        let (fabric, first) = (&rig.fabric, &rig.fabric.pods[0]);
        for pod in &fabric.pods {
            pod.host.sysctl(&[("net.ipv4.tcp_syncookies", "2")])?;
        }
        // The client takes the SYN-ACK, and nothing of it gets out any more.
        policies::nft(
            &fabric.client,
            "table inet hold {\nchain out { type filter hook output priority filter;\n\
             tcp dport 80 tcp flags & (syn | ack) == ack drop\n}\n}\n",
        )?;
        let mut open = Vec::new();
        for (client, vip) in fabric.pairs().into_iter().flat_map(|pair| [pair; EACH]) {
            open.push(fabric.client.within(|| Connection::open(client, SocketAddr::new(vip, 80), PATIENCE))?);
        }
        let mut services = fabric.web_pod_services();
        for service in &mut services {
            service.drain_pod(first.address_for(service.address), true)?;
        }
        rig.reconfigure(&services)?;
        let before = cookies(&first.host)?;
        policies::nft(&fabric.client, "delete table inet hold\n")?;
        let mut served: BTreeMap<String, u64> = BTreeMap::new();
        for connection in &mut open {
            *served.entry(connection.get("/")?.header("x-node")?.to_owned()).or_default() += 1;
        }
        let (finished, at_first) = (cookies(&first.host)? - before, served.get(first.name()).copied());
        ensure!(at_first.is_some_and(|count| count == finished), "{finished} by their cookies: {served:?}");
        let formers = rig.agents.nodes[0].packets_with_reason("delivered_to_former_pod")?;
        ensure!(formers >= finished, "{formers} packets to the former pod, {served:?}");
        let later = fabric.request(&fabric.pairs(), 4)?;
        assert_eq!(later.into_iter().collect::<Vec<_>>(), [fabric.pods[1].name()]);
        Ok(())
    })
}

/// HTTP at the first VIPs, to the node itself and its first pod.
fn with_host_network(fabric: &Fabric, draining: bool) -> Result<Vec<Service>> {
    let mut services = Vec::new();
    for (name, vip) in ["web", "web6"].into_iter().zip(Fabric::VIPS) {
        let node = fabric.node_addresses(vip.is_ipv4())[0];
        let mut service = fabric.pod_service(name, vip, vip.is_ipv4(), &fabric.pods[..1]);
        service.add_pod(node, PodEntry { draining, ..PodEntry::new(node) })?;
        services.push(service.port_to("TCP", 80, POD_HTTP));
    }
    Ok(services)
}

/// A pod in the node's own network: its replies are told from the node's own traffic by records, which keep its flows
/// with it too.
#[test]
fn flows_of_a_pod_in_the_nodes_network_stay_with_it() -> Result<()> {
    Bed::run("host-network", |bed| {
        let rig = Rig::start(bed, Shape { pods: 1, ..NODE }, |fabric| {
            with_host_network(fabric, false).expect("a node of every service")
        })?;
        let (fabric, node) = (&rig.fabric, rig.fabric.nodes[0].name());
        let _server = WebServer::start_on(bed, &fabric.nodes[0], POD_HTTP)?;
        let mut long = LongConnections::open(&fabric.client, &fabric.pairs(), EACH)?;
        rig.reconfigure(&with_host_network(fabric, true)?)?;
        let kept = long.ask_again();
        ensure!(kept.values().all(|fared| fared.broken == 0) && fared(&kept, node).alive > 0, "{kept:?}");
        let formers = rig.agents.nodes[0].packets_with_reason("delivered_to_former_pod")?;
        ensure!(formers >= 2 * fared(&kept, node).alive as u64, "{formers} packets to the former pod: {kept:?}");
        let later = fabric.request(&fabric.pairs(), 4)?;
        assert_eq!(later.into_iter().collect::<Vec<_>>(), [fabric.pods[0].name()]);
        Ok(())
    })
}
