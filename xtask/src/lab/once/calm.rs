//! Requests while nothing happens.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use beeline_tests::bed::{Agent, Rig, ask};

use super::super::network;
use super::super::table::{Table, counted};
use super::CALM;

/// Requests one by one, each with the edge that carried it.
pub(super) fn requests(lab: &Rig, problems: &mut Vec<String>) -> Result<()> {
    let mut table = Table::new(&["client", "VIP", "answered", "served by", "nginx saw", "carried by"]);
    let mut edges_used = BTreeSet::new();
    for (client, vip) in network::pairs(&lab.fabric) {
        let mut outcomes = Vec::new();
        let mut carriers = Vec::new();
        for _ in 0..CALM {
            let before = edge_packets(lab)?;
            let outcome = lab.fabric.client.within(|| Ok(ask(client, vip)))?;
            let carrier = carrier(&before, &edge_packets(lab)?);
            if carrier.is_none() {
                problems.push(format!("no edge counted the request of {client} to {vip}"));
            }
            edges_used.extend(carrier.clone());
            carriers.push(carrier.unwrap_or_else(|| "nobody".to_owned()));
            problems.extend(outcome.wrong());
            outcomes.push(outcome);
        }
        let served: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).collect();
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
    let (used, edges) = (edges_used.len(), lab.fabric.edges.len());
    if used != edges {
        problems
            .push(format!("{used} of {edges} edges were used by {} flows", CALM * network::pairs(&lab.fabric).len()));
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
