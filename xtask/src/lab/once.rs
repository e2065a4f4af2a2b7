//! The lab put through its paces: `cargo xtask run --once`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use beeline_tests::bed::{Agent, Bed, Beeline, Fared, LongConnections, Outcome, Rig, Traffic, ask, eventually, holds};

use super::network::{self, PICTURE};
use super::table::{Table, counted};

/// Requests of each client address while nothing happens.
const CALM: usize = 8;
/// Requests that must go by before and after each event.
const AROUND: usize = 300;
/// Long connections of each client address.
const LONG: usize = 12;
/// Requests in a row that a drained node must not answer before the change counts as done. A node that owns a third
/// would be missed by chance once in 10^8.
const QUIET: usize = 48;
/// What the fabric's routing needs to notice a dead link, as with BFD at its usual 3 × 50 ms.
const NOTICE: Duration = Duration::from_millis(150);
/// How long logs, counters and changes may take to show.
const PATIENCE: Duration = Duration::from_secs(10);

/// Builds, checks, takes down; fails if any answer was wrong.
pub(super) fn run(beeline: &Beeline) -> Result<()> {
    let started = Instant::now();
    let (problems, pids) = Bed::run("lab", |bed| {
        let mut lab = network::build(bed, beeline)?;
        println!("{PICTURE}\n  Up after {:.1} s.\n", started.elapsed().as_secs_f32());
        let mut problems = Vec::new();
        calm(&lab, &mut problems)?;
        drain(&mut lab, &mut problems)?;
        lose_edge(&mut lab, &mut problems)?;
        access_logs(&lab, &mut problems)?;
        Ok((problems, lab.pids()))
    })?;
    let left: Vec<u32> = pids.into_iter().filter(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(true)).collect();
    if !left.is_empty() {
        bail!("processes are left behind: {left:?}");
    }
    println!("Taken down, nothing left. {:.1} s in all.", started.elapsed().as_secs_f32());
    if problems.is_empty() {
        println!("Every answer was right.");
        return Ok(());
    }
    problems.iter().take(20).for_each(|problem| eprintln!("wrong: {problem}"));
    bail!("{} things were wrong", problems.len())
}

/// Requests one by one, each with the edge that carried it.
fn calm(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let mut table = Table::new(&["client", "VIP", "answered", "served by", "nginx saw", "carried by"]);
    let mut edges_used = BTreeMap::new();
    let mut nodes_used = BTreeMap::new();
    for (client, vip) in lab.fabric.pairs() {
        let mut outcomes = Vec::new();
        let mut carriers = Vec::new();
        for _ in 0..CALM {
            let before = edge_packets(lab)?;
            let outcome = lab.fabric.client.within(|| Ok(ask(client, vip)))?;
            let carrier = carrier(&before, &edge_packets(lab)?);
            if carrier.is_none() {
                problems.push(format!("no edge counted the request of {client} to {vip}"));
            }
            *edges_used.entry(carrier.clone()).or_insert(0) += 1;
            carriers.push(carrier.unwrap_or_else(|| "nobody".to_owned()));
            problems.extend(outcome.wrong());
            outcomes.push(outcome);
        }
        let served: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).collect();
        for answer in &served {
            *nodes_used.entry(answer.node.clone()).or_insert(0) += 1;
        }
        table.row(vec![
            client.to_string(),
            vip.to_string(),
            format!("{} of {CALM}", served.len()),
            counted(served.iter().map(|answer| &answer.node)),
            counted(served.iter().map(|answer| &answer.saw)),
            counted(carriers),
        ]);
    }
    println!("Requests, one connection each:\n{table}");
    for (what, used, wanted) in
        [("edges", edges_used.len(), lab.fabric.edges.len()), ("nodes", nodes_used.len(), lab.fabric.nodes.len())]
    {
        if used != wanted {
            problems.push(format!("{used} of {wanted} {what} were used by {} flows", CALM * lab.fabric.pairs().len()));
        }
    }
    Ok(())
}

/// Packets that each edge has forwarded so far.
fn edge_packets(lab: &Rig) -> Result<BTreeMap<String, u64>> {
    let count = |agent: &Agent| -> Result<_> {
        Ok((agent.host().name().to_owned(), agent.packets_by_backend()?.values().sum()))
    };
    lab.agents.edges.iter().map(count).collect()
}

/// The edge whose count rose most: a request has at least four packets, the end of the one before two at most.
fn carrier(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Option<String> {
    let rise =
        |(edge, count): (&String, &u64)| (count.saturating_sub(before.get(edge).copied().unwrap_or(0)), edge.clone());
    after.iter().map(rise).max().filter(|(rise, _)| *rise > 2).map(|(_, edge)| edge)
}

/// Drains a node by a change of the configuration, under traffic.
fn drain(lab: &mut Rig, problems: &mut Vec<String>) -> Result<()> {
    let pairs = lab.fabric.pairs();
    let drained = "node2";
    let addresses = [lab.fabric.node_addresses(true)[1], lab.fabric.node_addresses(false)[1]];
    let mut long = LongConnections::open(&lab.fabric.client, &pairs, LONG)?;
    let traffic = Traffic::start(&lab.fabric.client, &pairs)?;
    traffic.wait_for(AROUND)?;

    let services = lab.fabric.web_services();
    let changed = Instant::now();
    for agent in &lab.agents.edges {
        let mut config = lab.fabric.edge_config(agent.host(), &services);
        addresses.iter().for_each(|address| config.drain(*address, true));
        config.write(agent.file())?;
    }
    eventually("the drained node to get no new connection", PATIENCE, || {
        let mut nodes = lab.fabric.client.within(|| {
            Ok(pairs.iter().cycle().take(QUIET).map(|(client, vip)| ask(*client, *vip).result).collect::<Vec<_>>())
        })?;
        nodes.retain(|result| result.as_ref().is_ok_and(|served| served.node == drained));
        holds(nodes.is_empty(), || format!("{} of {QUIET} new connections went to {drained}", nodes.len()))
    })?;
    let settled = Instant::now();
    traffic.wait_for(AROUND)?;
    let outcomes = traffic.finish();

    let on_drained = |outcome: &&Outcome| outcome.result.as_ref().is_ok_and(|served| served.node == drained);
    let last = outcomes.iter().filter(on_drained).map(|outcome| outcome.began).max().unwrap_or(changed);
    let late = outcomes.iter().filter(|outcome| outcome.began > settled).filter(on_drained).count();
    println!("A change of configuration under traffic: {drained} drains.");
    summary(&outcomes, Outcome::wrong_in_the_end, problems);
    let cut = outcomes.iter().filter(|outcome| outcome.cut.is_some()).count();
    println!("  {cut} connections were open while their slot moved, broke, and were made anew with success");
    if cut > pairs.len() {
        problems.push(format!("{cut} connections broke, yet only {} were open at a time", pairs.len()));
    }
    println!(
        "  {drained} got its last new connection {} ms after the files were replaced",
        last.saturating_duration_since(changed).as_millis()
    );
    if late > 0 {
        problems.push(format!("{late} new connections went to {drained} after it was drained"));
    }
    long_connections(&mut long, drained);
    Ok(())
}

/// Kills an edge's agent, then takes the edge's link away, under traffic.
fn lose_edge(lab: &mut Rig, problems: &mut Vec<String>) -> Result<()> {
    let pairs = lab.fabric.pairs();
    let mut long = LongConnections::open(&lab.fabric.client, &pairs, LONG)?;
    let opened = long.len();
    let traffic = Traffic::start(&lab.fabric.client, &pairs)?;
    traffic.wait_for(AROUND)?;
    lab.agents.edges[0].process().kill()?;
    traffic.wait_for(AROUND)?;
    let killed = traffic.finish();
    println!("The agent of edge1 killed (SIGKILL) under traffic: its programs go on.");
    summary(&killed, Outcome::wrong, problems);

    let traffic = Traffic::start(&lab.fabric.client, &pairs)?;
    traffic.wait_for(AROUND)?;
    lab.fabric.router.ip(&["link set edge1 down"])?;
    thread::sleep(NOTICE);
    lab.fabric.lead_vips_to(&["edge2"])?;
    traffic.wait_for(AROUND)?;
    println!("The link of edge1 cut under traffic; {} ms later the router leaves it out.", NOTICE.as_millis());
    summary(&traffic.finish(), Outcome::wrong, problems);
    let broken: usize = long.ask_again().values().map(|fared| fared.broken).sum();
    println!("  {opened} long connections, opened over both edges: {broken} broken\n");
    if broken > 0 {
        problems.push(format!("{broken} long connections did not survive the loss of an edge"));
    }
    Ok(())
}

fn summary(outcomes: &[Outcome], judge: fn(&Outcome) -> Option<String>, problems: &mut Vec<String>) {
    let wrong: Vec<String> = outcomes.iter().filter_map(judge).collect();
    let nodes = counted(outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).map(|served| &served.node));
    println!("  {} new connections, {} answered wrongly or not at all; {nodes}", outcomes.len(), wrong.len());
    problems.extend(wrong);
}

/// Long connections after a change of tables. Their flows' slots have moved where they were with the drained node,
/// and where the bounded share moved a few more.
fn long_connections(long: &mut LongConnections, drained: &str) {
    let opened = long.len();
    let fared = long.ask_again();
    let moved = fared.get(drained).copied().unwrap_or_default();
    let others = fared.iter().filter(|(node, _)| *node != drained).fold(Fared::default(), |sum, (_, fared)| Fared {
        alive: sum.alive + fared.alive,
        broken: sum.broken + fared.broken,
    });
    println!(
        "  {opened} long connections: {} with {drained}, on slots that moved: {} of them broken; {} with others: {} broken\n",
        moved.alive + moved.broken,
        moved.broken,
        others.alive + others.broken,
        others.broken,
    );
}

/// nginx's own word: who its clients were.
fn access_logs(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let clients = lab.fabric.client_addresses();
    let mut table = Table::new(&["nginx of", "requests", "from clients", "from elsewhere"]);
    let mut seen: Vec<IpAddr> = Vec::new();
    for (node, server) in lab.fabric.nodes.iter().zip(&lab.servers) {
        let hits = server.hits().with_context(|| format!("the access log of {}", node.name()))?;
        let (known, strange): (Vec<_>, Vec<_>) = hits.iter().partition(|hit| clients.contains(&hit.client));
        problems.extend(strange.iter().map(|hit| format!("{} logged a client {}", node.name(), hit.client)));
        seen.extend(known.iter().map(|hit| hit.client));
        table.row(vec![
            node.name().to_owned(),
            hits.len().to_string(),
            known.len().to_string(),
            strange.len().to_string(),
        ]);
    }
    println!("nginx's access logs:\n{table}");
    let absent = clients.iter().filter(|client| !seen.contains(client));
    problems.extend(absent.map(|client| format!("no access log has the client {client}")));
    Ok(())
}
