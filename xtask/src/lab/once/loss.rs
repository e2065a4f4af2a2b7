//! Agents that die, and an edge that is lost.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use beeline_tests::bed::{LongConnections, Outcome, Rig, Traffic};

use super::super::network;
use super::{AROUND, LONG, fared, summary};

/// What the fabric's routing needs to notice a dead link, as with BFD at its usual 3 × 50 ms.
const NOTICE: Duration = Duration::from_millis(150);

/// Kills an edge's agent and a node's, under traffic.
pub(super) fn agents(lab: &mut Rig, problems: &mut Vec<String>) -> Result<()> {
    let traffic = Traffic::start(&lab.fabric.client, &network::pairs(&lab.fabric))?;
    traffic.wait_for(AROUND)?;
    lab.agents.edges[0].process().kill()?;
    lab.agents.nodes[0].process().kill()?;
    traffic.wait_for(AROUND)?;
    let outcomes = traffic.finish();
    println!("The agents of edge1 and node1 killed (SIGKILL) under traffic: their programs go on.");
    summary(&outcomes, Outcome::wrong, problems);
    Ok(())
}

/// Takes an edge's link away, under traffic.
pub(super) fn edge(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let pairs = network::pairs(&lab.fabric);
    let mut long = LongConnections::open(&lab.fabric.client, &pairs, LONG)?;
    let opened = long.len();
    let traffic = Traffic::start(&lab.fabric.client, &pairs)?;
    traffic.wait_for(AROUND)?;
    lab.fabric.router.ip(&["link set edge1 down"])?;
    thread::sleep(NOTICE);
    lab.fabric.lead_vips_to(&["edge2"])?;
    traffic.wait_for(AROUND)?;
    println!("The link of edge1 cut under traffic; {} ms later the router leaves it out.", NOTICE.as_millis());
    summary(&traffic.finish(), Outcome::wrong, problems);
    let [all, _] = fared(&mut long, |_| true);
    println!("  {opened} long connections, opened over both edges: {} broken\n", all.broken);
    if all.broken > 0 {
        problems.push(format!("{} long connections did not survive the loss of an edge", all.broken));
    }
    Ok(())
}
