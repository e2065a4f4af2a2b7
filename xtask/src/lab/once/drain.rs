//! Changes of the configuration under traffic.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::Result;
use beeline_tests::bed::{Config, LongConnections, Outcome, Pod, Rig, Traffic, ask, eventually, holds};

use super::super::network;
use super::{AROUND, LONG, PATIENCE, fared, summary};

/// Requests in a row that a drained server must not answer before the change counts as done. One that owns half would be
/// missed by chance once in 10^14.
const QUIET: usize = 48;

/// Drains a pod of each node, in all files. Pods of a node own its flows among themselves, and each node has as much
/// weight left as the other, so that no slot of the edges moves: nothing may break, on either table.
pub(super) fn pods(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let pods = network::second_pods(&lab.fabric);
    let drained = Drained::new(pods.iter().map(Pod::name));
    println!("Two pods drain, under traffic: {}.", drained.names.join(" and "));
    let (all, pairs) = (network::pairs(&lab.fabric), lab.fabric.pairs());
    let mut long = LongConnections::open(&lab.fabric.client, &all, LONG)?;
    let traffic = Traffic::start(&lab.fabric.client, &all)?;
    traffic.wait_for(AROUND)?;
    let changed = Instant::now();
    let drain = |config: &mut Config| {
        pods.iter().flat_map(Pod::addresses).try_for_each(|address| config.drain_pod(address, true))
    };
    network::change_edges(lab, drain)?;
    network::change_nodes(lab, drain)?;
    drained.wait(lab, &pairs)?;
    let settled = Instant::now();
    traffic.wait_for(AROUND)?;
    let outcomes = traffic.finish();
    summary(&outcomes, Outcome::wrong, problems);
    drained.last(&outcomes, changed, settled, problems);
    let opened = long.len();
    let [on_them, others] = fared(&mut long, |pod| drained.has(pod));
    println!(
        "  {opened} long connections: {} with them: {} broken; {} with others: {} broken\n",
        on_them.alive + on_them.broken,
        on_them.broken,
        others.alive + others.broken,
        others.broken
    );
    let broken = on_them.broken + others.broken;
    if broken > 0 {
        problems.push(format!("{broken} long connections did not survive the draining of pods"));
    }
    if on_them.alive == 0 {
        problems.push("no long connection was with a pod that drained".to_owned());
    }
    Ok(())
}

/// Drains a node in the edges' files. What moves from node to node breaks: there is no second chance between nodes yet.
pub(super) fn node(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let node = &lab.fabric.nodes[1];
    let drained = Drained::new(lab.fabric.pods_of(1).map(Pod::name).chain([node.name()]));
    println!("A node drains, under traffic: {}, with its pods.", node.name());
    let pairs = network::pairs(&lab.fabric);
    let addresses = [lab.fabric.node_addresses(true)[1], lab.fabric.node_addresses(false)[1]];
    let mut long = LongConnections::open(&lab.fabric.client, &pairs, LONG)?;
    let traffic = Traffic::start(&lab.fabric.client, &pairs)?;
    traffic.wait_for(AROUND)?;
    let changed = Instant::now();
    network::change_edges(lab, |config| {
        addresses.iter().for_each(|address| config.drain(*address, true));
        Ok(())
    })?;
    drained.wait(lab, &pairs)?;
    let settled = Instant::now();
    traffic.wait_for(AROUND)?;
    let outcomes = traffic.finish();
    summary(&outcomes, Outcome::wrong_in_the_end, problems);
    let cut = outcomes.iter().filter(|outcome| outcome.cut.is_some()).count();
    println!("  {cut} connections were open while their slot moved, broke, and were made anew with success");
    if cut > pairs.len() {
        problems.push(format!("{cut} connections broke, yet only {} were open at a time", pairs.len()));
    }
    drained.last(&outcomes, changed, settled, problems);
    let opened = long.len();
    let [moved, others] = fared(&mut long, |server| drained.has(server));
    println!(
        "  {opened} long connections: {} with it, on slots that moved: {} of them broken; {} with others: {} broken\n",
        moved.alive + moved.broken,
        moved.broken,
        others.alive + others.broken,
        others.broken,
    );
    if others.broken > 0 {
        problems.push(format!("{} long connections with the node that stayed broke", others.broken));
    }
    Ok(())
}

/// Servers that are to get no new connections.
struct Drained {
    names: Vec<String>,
}

impl Drained {
    fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self { names: names.map(ToOwned::to_owned).collect() }
    }

    fn has(&self, server: &str) -> bool {
        self.names.iter().any(|name| name == server)
    }

    fn answered(&self, outcome: &Outcome) -> bool {
        outcome.result.as_ref().is_ok_and(|served| self.has(&served.node))
    }

    /// Waits until they get no new connection of `pairs`.
    fn wait(&self, lab: &Rig, pairs: &[(IpAddr, IpAddr)]) -> Result<()> {
        eventually("drained servers to get no new connection", PATIENCE, || {
            let count = lab.fabric.client.within(|| {
                let some = pairs.iter().cycle().take(QUIET).map(|(client, vip)| ask(*client, *vip));
                Ok(some.filter(|outcome| self.answered(outcome)).count())
            })?;
            holds(count == 0, || format!("{count} of {QUIET} new connections went to {}", self.names.join(" or ")))
        })
    }

    /// Says when they got their last new connection, which may not be after the change has `settled`.
    fn last(&self, outcomes: &[Outcome], changed: Instant, settled: Instant, problems: &mut Vec<String>) {
        let theirs = || outcomes.iter().filter(|outcome| self.answered(outcome));
        let last = theirs().map(|outcome| outcome.began).max().unwrap_or(changed);
        println!(
            "  the last new connection there began {} ms after the files were replaced",
            last.saturating_duration_since(changed).as_millis()
        );
        let late = theirs().filter(|outcome| outcome.began > settled).count();
        if late > 0 {
            problems.push(format!("{late} new connections went to {} after they drained", self.names.join(" or ")));
        }
    }
}
