//! Pods whose device goes away while the file still names them: nothing is sent after them, and they may come back.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{Agent, Bed, Fabric, Host, Pod, Process, Rig, SERVICE_UDP, Shape, eventually, holds};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

/// Time for all answers, before they are asked for anew.
const ANSWERS: Duration = Duration::from_secs(4);

/// Datagrams of each family, each a flow of its own.
const FLOWS: usize = 64;

/// One node with two pods.
const NODE: Shape = Shape { nodes: 1, ..Shape::PODS };

/// What leaves `node` for these pods by its uplink.
fn watch_uplink(node: &Host, pods: &[Pod]) -> Result<Process> {
    let mut argv: Vec<String> = ["tcpdump", "-i", "eth0", "-n", "-l", "-Q", "out"].map(ToOwned::to_owned).to_vec();
    let hosts: Vec<String> = pods.iter().flat_map(Pod::addresses).map(|pod| format!("dst host {pod}")).collect();
    argv.push(hosts.join(" or "));
    let process = node.spawn("tcpdump", &argv)?;
    eventually("tcpdump to listen", PATIENCE, || {
        holds(process.log()?.contains("listening on"), || "silence".to_owned())
    })?;
    Ok(process)
}

/// The packets that it has seen.
fn seen(uplink: &Process) -> Result<Vec<String>> {
    Ok(uplink.log()?.lines().filter(|line| line.contains(" > ")).map(ToOwned::to_owned).collect())
}

/// Packets that found no pod: its device had just gone, or the service has none here (any more), and that was answered or
/// not.
fn without_a_pod(node: &Agent) -> Result<u64> {
    ["pod_gone", "no_pod", "unreachable_sent"].into_iter().map(|reason| node.packets_with_reason(reason)).sum()
}

/// Asks both services on many flows at once; returns the pods that answered. Those of which no answer comes are counted
/// as having no pod.
fn ask_all(fabric: &Fabric, node: &Agent) -> Result<BTreeSet<String>> {
    let before = without_a_pod(node)?;
    let mut sockets = Vec::new();
    for vip in Fabric::VIPS {
        for _ in 0..FLOWS {
            let socket = fabric.client.within(|| Ok(UdpSocket::bind((fabric.client_for(vip), 0))?))?;
            socket.set_nonblocking(true)?;
            socket.send_to(b"who?", SocketAddr::new(vip, SERVICE_UDP))?;
            sockets.push(socket);
        }
    }
    let (mut names, mut answers) = (BTreeSet::new(), 0);
    eventually("each datagram to be answered or counted", ANSWERS, || {
        let mut text = [0; 64];
        for socket in &sockets {
            while let Ok(length) = socket.recv(&mut text) {
                let said = String::from_utf8_lossy(&text[..length]).into_owned();
                names.insert(said.split(' ').next().unwrap_or_default().to_owned());
                answers += 1;
            }
        }
        let gone = without_a_pod(node)? - before;
        holds(answers + gone as usize == sockets.len(), || format!("{answers} answers, {gone} without a pod"))
    })?;
    Ok(names)
}

fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.name().to_owned()).collect()
}

/// Waits until all pods answer.
fn all_serve(rig: &Rig, when: &str) -> Result<()> {
    eventually(when, PATIENCE, || {
        let found = ask_all(&rig.fabric, &rig.agents.nodes[0])?;
        holds(found == names(&rig.fabric.pods), || format!("{when}: {found:?} serve"))
    })
}

/// The index of the node's end of a pod's veth.
fn index(node: &Host, pod: &Pod) -> Result<u32> {
    let link = node.run(&format!("ip -o link show dev {}", pod.name()))?;
    let index = link.split(':').next().with_context(|| format!("no index: {link}"))?;
    Ok(index.trim().parse()?)
}

fn gone_and_back(name: &str, bridge: Option<u8>) -> Result<()> {
    Bed::run(name, |bed| {
        let mut rig = Rig::start(bed, Shape { bridge, ..NODE }, Fabric::web_pod_services)?;
        let node = rig.fabric.nodes[0].clone();
        let pods = rig.fabric.pods.clone();
        let uplink = watch_uplink(&node, &pods)?;
        all_serve(&rig, "both serve")?;
        rig.fabric.unplug_pod(&pods[0])?;
        // At once: nobody has to be told.
        assert_eq!(ask_all(&rig.fabric, &rig.agents.nodes[0])?, names(&pods[1..]));
        rig.fabric.unplug_pod(&pods[1])?;
        assert_eq!(ask_all(&rig.fabric, &rig.agents.nodes[0])?, BTreeSet::new());
        ensure!(without_a_pod(&rig.agents.nodes[0])? >= 2 * FLOWS as u64, "no pod, and nobody says so");
        for pod in &pods {
            rig.fabric.plug_pod(pod, None)?;
        }
        all_serve(&rig, "both are back")?;
        // Gone and back as the same interface, while the agent looks at nothing.
        let old = index(&node, &pods[0])?;
        rig.agents.nodes[0].process().signal(Signal::SIGSTOP)?;
        rig.fabric.unplug_pod(&pods[0])?;
        rig.fabric.plug_pod(&pods[0], Some(old))?;
        rig.agents.nodes[0].process().signal(Signal::SIGCONT)?;
        all_serve(&rig, "the same interface again")?;
        let leaked = seen(&uplink)?;
        ensure!(leaked.is_empty(), "went back to the router: {leaked:#?}");
        // That there would have been something to see.
        rig.fabric.unplug_pod(&pods[0])?;
        if bridge.is_none() {
            let began = Instant::now();
            eventually("tcpdump to see a packet", PATIENCE, || {
                node.within(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.send_to(b"lost", (pods[0].addresses()[0], 9))?;
                    Ok(())
                })?;
                holds(!seen(&uplink)?.is_empty(), || format!("nothing for {:?}", began.elapsed()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_without_a_device_gets_nothing_until_it_is_back() -> Result<()> {
    gone_and_back("pod-unplugged", None)
}

#[test]
fn a_pod_without_a_port_of_its_bridge_gets_nothing_until_it_is_back() -> Result<()> {
    gone_and_back("pod-unbridged", Some(0))
}
