//! What Beeline says of flows to pods is what really happens to them: `trace`, `flows`, `status --maps` and the counters.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{
    Agent, Agents, Bed, Beeline, Connection, Fabric, POD_HTTP, PodServer, Shape, eventually, get, holds,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster with agents that have brought every service to its pods.
struct Scene {
    fabric: Fabric,
    agents: Agents,
    beeline: Beeline,
    _servers: Vec<PodServer>,
}

impl Scene {
    fn build(bed: &Bed) -> Result<Self> {
        let fabric = Fabric::build(bed, Shape::PODS)?;
        let servers = fabric.serve_pods(bed)?;
        let beeline = Beeline::find()?;
        let agents = fabric.start_agents(bed, &beeline, &fabric.pod_services())?;
        eventually("every pod to have its device", PATIENCE, || {
            let dead: Vec<Value> = agents.nodes.iter().map(dead_pods).collect::<Result<Vec<_>>>()?.concat();
            holds(dead.is_empty(), || format!("{dead:?}"))
        })?;
        Ok(Self { fabric, agents, beeline, _servers: servers })
    }

    /// `beeline ARGS -o json` for an agent.
    fn ask(&self, agent: &Agent, args: &[&str]) -> Result<Value> {
        let file = agent.file().to_str().context("the name of a file")?;
        let args = [args, &["-o", "json", "--config", file]].concat();
        let text = self.beeline.run(agent.host(), &args)?;
        serde_json::from_str(&text).with_context(|| format!("beeline {args:?} printed {text:?}"))
    }

    fn trace(&self, agent: &Agent, client: SocketAddr, vip: SocketAddr) -> Result<Value> {
        self.ask(agent, &["trace", &client.to_string(), &vip.to_string()])
    }

    /// The node, from 0, and the address of the pod of this name.
    fn pod(&self, name: &str, family: IpAddr) -> Result<(usize, IpAddr)> {
        let pod = self.fabric.pods.iter().find(|pod| pod.name() == name).with_context(|| format!("no pod {name}"))?;
        Ok((pod.node, pod.address_for(family)))
    }

    /// Asks a VIP on a connection of its own that stays open; where from, and which pod answered.
    fn open(&self, vip: SocketAddr) -> Result<(Connection, SocketAddr, String)> {
        let from = self.fabric.client_for(vip.ip());
        let mut connection = self.fabric.client.within(|| Connection::open(from, vip, PATIENCE))?;
        let answer = connection.get("/")?;
        ensure!(answer.status == 200, "status {} from {vip}", answer.status);
        let (client, pod) = (connection.local_addr()?, answer.header("x-node")?.to_owned());
        Ok((connection, client, pod))
    }
}

fn dead_pods(agent: &Agent) -> Result<Vec<Value>> {
    let pods = agent.json("pods")?;
    let pods = pods.as_array().with_context(|| format!("no list of pods: {pods}"))?;
    ensure!(!pods.is_empty(), "{} says that it has no pods", agent.host().name());
    Ok(pods.iter().filter(|pod| pod["live"] != true).cloned().collect())
}

fn services() -> [SocketAddr; 4] {
    [Fabric::VIP_V4, Fabric::VIP_V6, Fabric::SECOND_VIPS[0], Fabric::SECOND_VIPS[1]].map(|vip| SocketAddr::new(vip, 80))
}

#[test]
fn a_trace_names_the_node_and_the_pod_that_answer() -> Result<()> {
    Bed::run("trace", |bed| {
        let scene = Scene::build(bed)?;
        let mut pods = BTreeSet::new();
        for vip in services() {
            for _ in 0..12 {
                let from = scene.fabric.client_for(vip.ip());
                // What is traced before the flow begins, by a port that is then taken.
                let port = free_port(&scene, from)?;
                let client = SocketAddr::new(from, port);
                let edge = scene.trace(&scene.agents.edges[0], client, vip)?;
                let owner: IpAddr = text(&edge["edge"]["owner"]["address"])?.parse()?;
                let nodes = scene.fabric.node_addresses(vip.is_ipv4());
                let node = nodes.iter().position(|node| *node == owner).with_context(|| format!("no node {owner}"))?;
                let before = scene.trace(&scene.agents.nodes[node], client, vip)?;

                let mut connection = scene.fabric.client.within(|| Connection::open_from(client, vip, PATIENCE))?;
                let answered = connection.get("/")?.header("x-node")?.to_owned();
                let (real_node, address) = scene.pod(&answered, vip.ip())?;
                pods.insert(answered.clone());
                ensure!(real_node == node, "{answered} answered {client} -> {vip}, the edge's trace: {edge}");
                let pod = SocketAddr::new(address, POD_HTTP).to_string();
                ensure!(before["node"]["pod"] == pod, "{answered} ({pod}) answered, the node's trace before: {before}");
                let after = scene.trace(&scene.agents.nodes[node], client, vip)?;
                ensure!(after["node"]["pod"] == pod, "{answered} ({pod}) answered, the node's trace after: {after}");
                ensure!(after["node"]["outcome"]["reason"] == "delivered_to_pod", "{after}");
                let reply = &after["node"]["reply"];
                ensure!(reply["leaves_as"] == vip.to_string(), "{after}");
                recorded_as_configured(&after, answered.ends_with("-1"))?;
                ensure!(edge["edge"]["alternates"].as_array().map(Vec::len) == Some(1), "{edge}");
            }
        }
        ensure!(pods.len() == 4, "48 flows went to {pods:?} alone");
        Ok(())
    })
}

/// The first pod of each node has two VIPs on one port.
fn recorded_as_configured(trace: &Value, recorded: bool) -> Result<()> {
    let candidates = trace["node"]["candidates"].as_array().with_context(|| format!("no pods in {trace}"))?;
    let pod = |candidate: &&Value| {
        let address = candidate["pod"]["address"].as_str()?.parse().ok()?;
        Some(SocketAddr::new(address, POD_HTTP).to_string())
    };
    let chosen = candidates.iter().find(|c| pod(c).as_deref() == trace["node"]["pod"].as_str());
    let chosen = chosen.with_context(|| format!("the pod is not among the candidates: {trace}"))?;
    let why = chosen["recorded_because"].as_array().with_context(|| format!("no reasons in {chosen}"))?;
    ensure!(why.is_empty() != recorded, "recorded: {recorded}, and the trace says {chosen}");
    if recorded {
        ensure!(text(&why[0])?.starts_with("2 VIPs or ports lead to "), "{chosen}");
        ensure!(chosen["record"]["vip"] == text(&trace["vip"])?.parse::<SocketAddr>()?.ip().to_string(), "{chosen}");
    }
    Ok(())
}

/// A port of the client's that was free a moment ago.
fn free_port(scene: &Scene, from: IpAddr) -> Result<u16> {
    scene.fabric.client.within(|| Ok(std::net::TcpListener::bind((from, 0))?.local_addr()?.port()))
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("no text: {value}"))
}

#[test]
fn flows_are_those_that_are_there() -> Result<()> {
    Bed::run("flows", |bed| {
        let mut scene = Scene::build(bed)?;
        let (mut open, mut wanted) = (Vec::new(), BTreeSet::new());
        for vip in services() {
            for _ in 0..8 {
                let (connection, client, pod) = scene.open(vip)?;
                let (node, address) = scene.pod(&pod, vip.ip())?;
                // The others have one VIP on their port.
                if pod.ends_with("-1") {
                    wanted.insert((node, client, vip, SocketAddr::new(address, POD_HTTP)));
                }
                open.push(connection);
            }
        }
        ensure!(wanted.len() >= 16, "the second VIPs lead to recorded pods alone: {wanted:?}");
        let mut found = BTreeSet::new();
        for (node, agent) in scene.agents.nodes.iter().enumerate() {
            let flows = scene.ask(agent, &["flows"])?;
            let list = flows["flows"].as_array().with_context(|| format!("no flows in {flows}"))?;
            ensure!(flows["recorded"] == list.len() && flows["shown"] == list.len(), "{flows}");
            for flow in list {
                ensure!(flow["state"] == "established" && flow["expired"] == false, "{flow}");
                ensure!(flow["age_seconds"].as_u64() <= Some(60), "{flow}");
                let end = |name: &str| -> Result<SocketAddr> {
                    let port = u16::try_from(flow[format!("{name}_port")].as_u64().context("no port")?)?;
                    Ok(SocketAddr::new(text(&flow[name])?.parse()?, port))
                };
                found.insert((node, end("client")?, end("vip")?, end("pod")?));
            }
        }
        ensure!(found == wanted, "found {found:?}\nwanted {wanted:?}");
        filters(&scene, &wanted)?;
        // Without an agent the kernel has them still.
        let node = scene.agents.nodes[0].host().clone();
        let count =
            |scene: &Scene| -> Result<Value> { Ok(scene.ask(&scene.agents.nodes[0], &["flows"])?["recorded"].clone()) };
        let before = count(&scene)?;
        scene.agents.nodes[0].process().kill()?;
        ensure!(count(&scene)? == before, "{}: flows without an agent", node.name());
        let maps = scene.ask(&scene.agents.nodes[0], &["status", "--maps"])?;
        ensure!(maps["flows"]["there"] == before, "{maps}");
        ensure!(text(&maps["no_agent"])?.contains("no agent answers"), "{maps}");
        Ok(())
    })
}

fn filters(scene: &Scene, wanted: &BTreeSet<(usize, SocketAddr, SocketAddr, SocketAddr)>) -> Result<()> {
    let shown = |args: &[&str]| -> Result<u64> {
        let flows = scene.ask(&scene.agents.nodes[0], &[&["flows"], args].concat())?;
        flows["shown"].as_u64().with_context(|| format!("no count in {flows}"))
    };
    let here = || wanted.iter().filter(|(node, ..)| *node == 0);
    let vip = services()[2];
    let of_vip = here().filter(|(_, _, to, _)| *to == vip).count() as u64;
    assert_eq!(shown(&["--vip", &vip.to_string()])?, of_vip);
    assert_eq!(shown(&["--vip", "203.0.113.1"])?, 0);
    let (_, client, _, pod) = here().next().context("no flow on the first node")?;
    let of_client = here().filter(|(_, from, ..)| from.ip() == client.ip()).count() as u64;
    assert_eq!(shown(&["--client", &client.ip().to_string()])?, of_client);
    let of_pod = here().filter(|(.., to)| to.ip() == pod.ip()).count() as u64;
    assert_eq!(shown(&["--pod", &pod.ip().to_string()])?, of_pod);
    assert_eq!(shown(&["--limit", "1"])?, 1);
    Ok(())
}

#[test]
fn maps_take_memory_and_pods_are_counted() -> Result<()> {
    Bed::run("maps", |bed| {
        let scene = Scene::build(bed)?;
        for agent in scene.agents.nodes.iter().chain(&scene.agents.edges) {
            let maps = scene.ask(agent, &["status", "--maps"])?;
            let list = maps["maps"].as_array().with_context(|| format!("no maps in {maps}"))?;
            ensure!(list.len() >= 29, "{maps}");
            for map in list {
                // A trie takes no memory before it has an entry (`trie_mem_usage`, kernel 6.18).
                let empty = map["kind"] == "lpm_trie" && map["used"].as_u64().unwrap_or(0) == 0;
                ensure!(empty || map["bytes"].as_u64() > Some(0), "{map}");
                ensure!(map["capacity"].as_u64() > Some(0), "{map}");
                let (used, capacity) = (map["used"].as_u64().unwrap_or(0), map["capacity"].as_u64().unwrap_or(0));
                ensure!(used <= capacity, "{map}");
            }
            ensure!(maps["no_agent"].is_null(), "{maps}");
        }
        for agent in &scene.agents.nodes {
            let maps = scene.ask(agent, &["status", "--maps"])?;
            let internal = maps["maps"].as_array().and_then(|maps| maps.iter().find(|map| map["name"] == "internal"));
            let internal = internal.with_context(|| format!("no internal networks in {maps}"))?;
            ensure!(internal["used"].as_u64() > Some(0) && internal["bytes"].as_u64() > Some(0), "{internal}");
        }
        let before = counted(&scene)?;
        let mut asked = 0;
        for vip in services() {
            for _ in 0..8 {
                let from = scene.fabric.client_for(vip.ip());
                let answer = scene.fabric.client.within(|| get(from, vip, "/", PATIENCE))?;
                ensure!(answer.status == 200, "status {} from {vip}", answer.status);
                asked += 1;
            }
        }
        let after = counted(&scene)?;
        // SYN, request and an acknowledgment in; SYN-ACK and the answer out.
        ensure!(after.0 >= before.0 + 3 * asked, "to pods: {} before, {} after {asked} requests", before.0, after.0);
        ensure!(after.1 >= before.1 + 2 * asked, "replies: {} before, {} after {asked} requests", before.1, after.1);
        ensure!(after.2 >= before.2 + 16, "flows recorded: {} before, {} after", before.2, after.2);
        Ok(())
    })
}

/// Packets to pods, replies and recorded flows of all nodes, by their metrics.
fn counted(scene: &Scene) -> Result<(u64, u64, u64)> {
    let mut sums = (0, 0, 0);
    for agent in &scene.agents.nodes {
        let page = agent.http("/metrics")?.text();
        let sum = |name: &str| -> u64 {
            let samples = page.lines().filter(|line| line.starts_with(name));
            samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
        };
        sums.0 += sum("beeline_pod_packets_total{");
        sums.1 += sum("beeline_reply_packets_total{");
        sums.2 += sum("beeline_flows_recorded_total ");
        ensure!(sum("beeline_service_pod_packets_total{") == sum("beeline_pod_packets_total{"), "{page}");
    }
    Ok(sums)
}
