//! The places of a node's programs: others have them, take them, empty them; agents die and come back. Pods serve on.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use beeline_tests::bed::{
    Agent, Agents, BPF_FILESYSTEM, Bed, Beeline, Bulk, Fabric, Host, LongConnections, Outcome, PodServer, Rig,
    SERVICE_UDP, Shape, Traffic, ask_name, eventually, holds,
};
use lb_userspace::config::MapSizes;
use lb_userspace::datapath::object::{self, Program};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Requests that must go by before and after an event.
const AROUND: usize = 100;

/// What is sent up and down, bytes.
const MUCH: usize = 12 << 20;

/// Fails if any answer is missing or wrong, or took a second connection.
fn all_right(outcomes: &[Outcome]) -> Result<()> {
    let wrong: Vec<String> = outcomes.iter().filter_map(Outcome::wrong).collect();
    ensure!(wrong.is_empty(), "{} of {} requests went wrong: {:#?}", wrong.len(), outcomes.len(), &wrong[..1]);
    Ok(())
}

/// HTTP, UDP of 8 KB, much up and much down, at each first VIP.
fn everything(fabric: &Fabric, servers: &[PodServer]) -> Result<()> {
    fabric.request(&fabric.pairs(), 8)?;
    let bulk = Bulk::new(MUCH);
    for server in servers {
        // From an earlier turn, or not.
        fs::remove_file(server.web.file("bulk")).ok();
    }
    bulk.publish(servers.iter().map(|server| &server.web))?;
    for vip in Fabric::VIPS {
        let (from, to) = (fabric.client_for(vip), SocketAddr::new(vip, 80));
        // Two flows each: with four pods, more than one of them.
        for _ in 0..2 {
            bulk.download(&fabric.client, from, to).with_context(|| format!("down from {vip}"))?;
            let webs = servers.iter().map(|server| &server.web);
            bulk.upload(&fabric.client, from, to, webs).with_context(|| format!("up to {vip}"))?;
        }
        let socket = fabric.client.within(|| Ok(std::net::UdpSocket::bind((from, 0))?))?;
        eventually("8 KB there and back", PATIENCE, || {
            ask_name(&socket, SocketAddr::new(vip, SERVICE_UDP), &[7; 8192], Duration::from_millis(500))
        })?;
    }
    Ok(())
}

/// Packets that have gone out by `device` of `host`, as it counts them: a large one is one.
fn sent(host: &Host, device: &str) -> Result<u64> {
    let text = host.run(&format!("ip -s -j link show dev {device}"))?;
    let link: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    link[0]["stats64"]["tx"]["packets"].as_u64().with_context(|| format!("no count in {link}"))
}

/// Much up to each first VIP, by IPv4 and IPv6; packets that all the pods' devices were handed for a packet's worth of
/// contents, in percent.
fn handed_to_pods(fabric: &Fabric, servers: &[PodServer]) -> Result<u64> {
    let count = || fabric.pods.iter().map(|pod| sent(&fabric.nodes[pod.node], pod.name())).sum::<Result<u64>>();
    let (bulk, before) = (Bulk::new(MUCH), count()?);
    for vip in Fabric::VIPS {
        let webs = servers.iter().map(|server| &server.web);
        bulk.upload(&fabric.client, fabric.client_for(vip), SocketAddr::new(vip, 80), webs)?;
    }
    // 1,380 bytes of contents in a packet: see `mssClamp: auto`.
    Ok(100 * (count()? - before) / (2 * MUCH as u64 / 1380))
}

/// Lets `eth0` keep received packets for 0.2 ms, to join those that follow (kernel 5.10: `napi_defer_hard_irqs`).
fn wait_for_more(host: &Host) -> Result<()> {
    let lines = "mount -t sysfs none /sys && cd /sys/class/net/eth0 && \
                 echo 200000 > gro_flush_timeout && echo 10 > napi_defer_hard_irqs";
    host.run_args(&["unshare", "--mount", "sh", "-c", lines]).map(drop)
}

/// What status says of `eth0` under `field`.
fn of_eth0(agent: &Agent, field: &str) -> Result<Value> {
    let status = agent.json("status")?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    let eth0 = interfaces.iter().find(|interface| interface["name"] == "eth0").context("no eth0")?;
    Ok(eth0[field].clone())
}

/// The ids of the programs on a way of `eth0`, in their order.
fn programs(host: &Host, way: TcAttachType) -> Result<Vec<u32>> {
    host.within(|| {
        let (_, programs) = SchedClassifier::query_tcx("eth0", way)?;
        Ok(programs.iter().map(aya::programs::ProgramInfo::id).collect())
    })
}

/// Whether an XDP program is on `eth0`.
fn has_xdp(host: &Host) -> Result<bool> {
    Ok(host.run("ip link show dev eth0")?.contains("prog/xdp"))
}

/// The pin of an agent's link whose name ends so.
fn pin(agent: &Agent, end: &str) -> Result<PathBuf> {
    let mut folders = vec![PathBuf::from(format!("{BPF_FILESYSTEM}/beeline-{}", agent.host().name()))];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                return Ok(path);
            }
        }
    }
    bail!("{} has no pin {end}", agent.host().name())
}

#[test]
fn another_xdp_program_stays_and_tunnels_end_on_tc() -> Result<()> {
    Bed::run("foreign-xdp", |bed| {
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, Shape::PODS)?);
        for node in &fabric.nodes {
            beeline.pass_program(node, &["eth0"])?;
            let features = node.run("ethtool -k eth0")?;
            ensure!(features.contains("generic-receive-offload: on"), "{features}");
        }
        let foreign = fabric.nodes[0].run("ip link show dev eth0")?;
        let servers = fabric.serve_pods(bed)?;
        let mut agents = fabric.start_agents(bed, &beeline, &fabric.web_pod_services())?;
        for node in &agents.nodes {
            let remark = of_eth0(node, "remark")?;
            ensure!(remark.as_str().is_some_and(|text| text.contains("another XDP program")), "{remark}");
            ensure!(
                of_eth0(node, "attached")? == true && of_eth0(node, "problem")?.is_null(),
                "{:?}",
                node.json("status")
            );
            ensure!(programs(node.host(), TcAttachType::Ingress)?.len() == 1, "not on TC ingress");
        }
        everything(&fabric, &servers)?;
        // What the kernel has joined on the uplink, tunnel and all, goes to the pods in one piece; and in many where
        // their devices want it so.
        // It waits a moment for more, or it would depend on the machine's load whether there is anything to join.
        fabric.nodes.iter().try_for_each(wait_for_more)?;
        eventually("the uplink to join packets", PATIENCE, || {
            let joined = handed_to_pods(&fabric, &servers)?;
            holds(joined < 80, || format!("{joined} packets to the pods for 100 on the way"))
        })?;
        for pod in &fabric.pods {
            let node = &fabric.nodes[pod.node];
            node.run(&format!("ethtool -K {} tx off tso off gso off", pod.name()))?;
        }
        let cut = handed_to_pods(&fabric, &servers)?;
        ensure!(cut >= 95, "{cut} packets to the pods for 100 on the way");
        ensure!(fabric.nodes[0].run("ip link show dev eth0")? == foreign, "another program than {foreign}");

        // The other program goes. The next agent has the better place, and leaves the other one.
        for node in &mut agents.nodes {
            fs::remove_dir_all(format!("{BPF_FILESYSTEM}/beeline-pass-{}", node.host().name()))?;
            let host = node.host().clone();
            eventually("the other program's end", PATIENCE, || holds(!has_xdp(&host)?, || "still there".to_owned()))?;
            node.process().kill()?;
            node.restart()?;
            ensure!(of_eth0(node, "remark")?.is_null(), "{}", of_eth0(node, "remark")?);
            ensure!(has_xdp(&host)?, "no program on XDP");
            eventually("the end of the program on TC ingress", PATIENCE, || {
                let left = programs(&host, TcAttachType::Ingress)?;
                holds(left.is_empty(), || format!("{left:?}"))
            })?;
        }
        fabric.request(&fabric.pairs(), 8).map(drop)
    })
}

#[test]
fn a_place_that_is_lost_is_taken_again() -> Result<()> {
    Bed::run("lost-places", |bed| {
        let mut rig = Rig::start(bed, Shape::PODS, Fabric::web_pod_services)?;
        let host = rig.fabric.nodes[0].clone();
        let traffic = Traffic::start(&rig.fabric.client, &rig.fabric.pairs())?;
        traffic.wait_for(AROUND)?;

        // Somebody goes before ours on the way out.
        let ours = programs(&host, TcAttachType::Egress)?;
        ensure!(ours.len() == 1, "{ours:?}");
        let sizes = MapSizes { services: 1, backends: 1, slots: 64, flows: 1 };
        let mut other = object::load(&sizes, true, None, false)?;
        host.within(|| {
            let program = object::classifier(&mut other, Program::NodeTc)?;
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            program.attach_with_options("eth0", TcAttachType::Egress, options)?;
            Ok(())
        })?;
        let other = programs(&host, TcAttachType::Egress)?.first().copied().context("no program")?;
        ensure!(!ours.contains(&other), "{other} is ours");
        eventually("our program at the head", Duration::from_secs(10), || {
            let now = programs(&host, TcAttachType::Egress)?;
            holds(now.len() == 2 && now[1] == other, || format!("{now:?}, the other one is {other}"))
        })?;
        traffic.wait_for(AROUND)?;
        all_right(&traffic.finish())?;

        // Somebody removes our pins, and so our programs.
        for (end, what) in [("%out", "replies"), ("eth0", "attached")] {
            fs::remove_file(pin(&rig.agents.nodes[0], end)?)?;
            eventually("our program to be back", Duration::from_secs(10), || {
                pin(&rig.agents.nodes[0], end)?;
                holds(has_xdp(&host)? && programs(&host, TcAttachType::Egress)?.len() == 2, || what.to_owned())
            })?;
            ensure!(of_eth0(&rig.agents.nodes[0], what)? == true, "{what} is false");
            rig.fabric.request(&rig.fabric.pairs(), 8)?;
        }
        detached(&mut rig.agents, &rig.beeline, other)
    })
}

/// Takes everything off all hosts; `other`, on the first node's way out, stays.
fn detached(agents: &mut Agents, beeline: &Beeline, other: u32) -> Result<()> {
    for agent in agents.all() {
        agent.process().stop(PATIENCE)?;
        let (host, file) = (agent.host().clone(), agent.file().display().to_string());
        beeline.run(&host, &["detach", "--config", &file])?;
        let left = if host.name() == "node1" { vec![other] } else { Vec::new() };
        eventually("the device to be free", PATIENCE, || {
            let out = programs(&host, TcAttachType::Egress)?;
            holds(!has_xdp(&host)? && out == left, || format!("{}: {out:?}", host.name()))
        })?;
        ensure!(programs(&host, TcAttachType::Ingress)?.is_empty());
        let shown = host.run("bpftool net show")?;
        ensure!(!shown.contains("eth0"), "{}: {shown}", host.name());
        let disciplines = host.run("tc qdisc show dev eth0")?;
        ensure!(!disciplines.contains("clsact"), "{}: {disciplines}", host.name());
        let pins = format!("{BPF_FILESYSTEM}/beeline-{}", host.name());
        ensure!(!Path::new(&pins).exists(), "{pins} is still there");
    }
    Ok(())
}

#[test]
fn killed_agents_lose_no_request_to_a_pod_and_are_followed_without_a_gap() -> Result<()> {
    Bed::run("pod-crash", |bed| {
        let mut rig = Rig::start(bed, Shape::PODS, Fabric::pod_services)?;
        let mut pairs = rig.fabric.pairs();
        // Flows to the second ones are recorded.
        pairs.extend(Fabric::SECOND_VIPS.map(|vip| (rig.fabric.client_for(vip), vip)));
        let mut long = LongConnections::open(&rig.fabric.client, &pairs, 8)?;
        let traffic = Traffic::start(&rig.fabric.client, &pairs)?;
        traffic.wait_for(AROUND)?;
        let programs_before = programs(&rig.fabric.nodes[0], TcAttachType::Egress)?;
        for agent in rig.agents.all() {
            agent.process().kill()?;
        }
        traffic.wait_for(AROUND)?;
        for agent in rig.agents.all() {
            agent.restart()?;
        }
        traffic.wait_for(AROUND)?;
        all_right(&traffic.finish())?;
        let programs_after = programs(&rig.fabric.nodes[0], TcAttachType::Egress)?;
        ensure!(
            programs_after.len() == 1 && programs_after != programs_before,
            "{programs_before:?} {programs_after:?}"
        );
        for (pod, fared) in long.ask_again() {
            ensure!(fared.broken == 0, "long connections with {pod}: {fared:?}");
        }
        Ok(())
    })
}
