//! The lab put through its paces: `cargo xtask run --once`.

mod calm;
mod drain;
mod loss;
mod pods;

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use beeline_tests::bed::{Bed, Beeline, Fared, LongConnections, Outcome, Rig};

use super::network::{self, PICTURE};
use super::table::{Table, counted};

/// Requests of each client address to each VIP while nothing happens.
const CALM: usize = 8;
/// Requests that must go by before and after each event.
const AROUND: usize = 300;
/// Long connections of each client address to each VIP.
const LONG: usize = 8;
/// How long logs, counters and changes may take to show.
const PATIENCE: Duration = Duration::from_secs(10);

/// Builds, checks, takes down; fails if any answer was wrong.
pub(super) fn run(beeline: &Beeline) -> Result<()> {
    let started = Instant::now();
    let (problems, pids) = Bed::run("lab", |bed| {
        let mut lab = network::build(bed, beeline)?;
        println!("{PICTURE}\n  Up after {:.1} s.\n", started.elapsed().as_secs_f32());
        let mut problems = Vec::new();
        calm::requests(&lab, &mut problems)?;
        pods::logged(&lab, &mut problems)?;
        pods::datagrams(&lab, &mut problems)?;
        pods::bulk(&lab, &mut problems)?;
        drain::pods(&lab, &mut problems)?;
        loss::agents(&mut lab, &mut problems)?;
        loss::edge(&lab, &mut problems)?;
        // The last: a client may use the port of a broken connection at once for another VIP, and while the record of the
        // old flow closes (60 s) the pod cannot have both.
        drain::node(&lab, &mut problems)?;
        access_logs(&lab, &mut problems)?;
        reasons(&mut lab)?;
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

fn summary(outcomes: &[Outcome], judge: fn(&Outcome) -> Option<String>, problems: &mut Vec<String>) {
    let wrong: Vec<String> = outcomes.iter().filter_map(judge).collect();
    let servers =
        counted(outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).map(|served| &served.node));
    println!("  {} new connections, {} answered wrongly or not at all; {servers}", outcomes.len(), wrong.len());
    problems.extend(wrong);
}

/// How long connections fared: those that some servers had answered, and all others.
fn fared(long: &mut LongConnections, whose: impl Fn(&str) -> bool) -> [Fared; 2] {
    let mut sums = [Fared::default(); 2];
    for (server, fared) in long.ask_again() {
        let sum = &mut sums[usize::from(!whose(&server))];
        sum.alive += fared.alive;
        sum.broken += fared.broken;
    }
    sums
}

/// What the programs say of all that they saw. The agents that were killed are started anew, and adopt what is there.
fn reasons(lab: &mut Rig) -> Result<()> {
    lab.agents.edges[0].restart()?;
    lab.agents.nodes[0].restart()?;
    let mut table = Table::new(&["host", "packets by reason"]);
    for agent in lab.agents.all() {
        let status = agent.json("status")?;
        let reasons = status["reasons"].as_object().with_context(|| format!("no reasons in {status}"))?;
        let mut counted: Vec<_> =
            reasons.iter().filter_map(|(reason, count)| Some((count.as_u64()?, reason))).collect();
        counted.retain(|(count, _)| *count > 0);
        counted.sort_by(|a, b| b.cmp(a));
        let text: Vec<String> = counted.iter().map(|(count, reason)| format!("{reason} {count}")).collect();
        table.row(vec![agent.host().name().to_owned(), text.join("  ")]);
    }
    println!("The killed agents started anew, and what the programs saw all the while:\n{table}");
    Ok(())
}

/// nginx's own word: who its clients were.
fn access_logs(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let clients = lab.fabric.client_addresses();
    let mut table = Table::new(&["nginx of", "requests", "from clients", "from elsewhere"]);
    let mut seen: Vec<IpAddr> = Vec::new();
    for server in network::servers(lab) {
        let name = server.name();
        let hits = server.hits().with_context(|| format!("the access log of {name}"))?;
        let (known, strange): (Vec<_>, Vec<_>) = hits.iter().partition(|hit| clients.contains(&hit.client));
        problems.extend(strange.iter().map(|hit| format!("{name} logged a client {}", hit.client)));
        if known.is_empty() {
            problems.push(format!("{name} served nobody"));
        }
        seen.extend(known.iter().map(|hit| hit.client));
        table.row(vec![name.to_owned(), hits.len().to_string(), known.len().to_string(), strange.len().to_string()]);
    }
    println!("nginx's access logs:\n{table}");
    let absent = clients.iter().filter(|client| !seen.contains(client));
    problems.extend(absent.map(|client| format!("no access log has the client {client}")));
    Ok(())
}
