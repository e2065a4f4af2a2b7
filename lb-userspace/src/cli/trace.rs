//! `beeline trace CLIENT:PORT VIP:PORT`: where a flow goes on this host, and why.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Result;
use clap::Args;

use super::age::duration;
use super::client;
use super::pods::device;
use crate::status::BackendStatus;
use crate::trace::{EdgeTrace, FlowAsked, NodeTrace, Outcome, PodTrace, ReplyTrace, ServiceTrace, Trace};

/// Arguments of `trace`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The client's address and port: `203.0.113.7:40000`, `[2001:db8:1::7]:40000`.
    #[arg(value_name = "CLIENT:PORT")]
    client: SocketAddr,
    /// The VIP and the port that it asked.
    #[arg(value_name = "VIP:PORT")]
    vip: SocketAddr,
    /// `tcp` or `udp`.
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    protocol: String,
    #[command(flatten)]
    asked: client::Asked,
}

/// Asks the agent and prints the flow's way.
///
/// # Errors
/// The flow is none, no agent answers, or standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let flow = FlowAsked::new(&arguments.protocol, arguments.client, arguments.vip)?;
    let trace = arguments.asked.trace(&flow)?;
    arguments.asked.print(&trace, || render(&trace))
}

/// Lines with what they are about before them.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn head(&mut self, words: &str) {
        self.write(&format!("{words}\n"));
    }

    fn line(&mut self, about: &str, words: &str) {
        self.write(&format!("  {about:<9} {words}\n"));
    }

    fn write(&mut self, text: &str) {
        self.0.write_str(text).expect("a String takes all that is written to it");
    }
}

fn render(trace: &Trace) -> String {
    let mut lines = Lines::default();
    let Trace { protocol, client, vip, warnings, service, outcome: ends, hash, edge, node } = trace;
    lines.head(&format!("{client} -> {vip}, {protocol}"));
    for warning in warnings {
        lines.line("WARNING", warning);
    }
    match service {
        Some(service) => about_service(&mut lines, service, hash.as_deref()),
        None => lines.line("service", "none: no service in the maps of this host has this address, protocol and port"),
    }
    if let Some(ends) = ends {
        outcome(&mut lines, ends);
    }
    if let Some(edge) = edge {
        about_edge(&mut lines, edge);
    }
    if let Some(node) = node {
        about_node(&mut lines, trace, node);
    }
    lines.0
}

fn about_service(lines: &mut Lines, service: &ServiceTrace, hash: Option<&str>) {
    let ServiceTrace { label, port, delivery, source_affinity, problem } = service;
    let ports = if *port == 0 { ", found by all ports" } else { "" };
    lines.line("service", &format!("{label}, delivery {delivery}{ports}"));
    if let Some(problem) = problem {
        lines.line("PROBLEM", &format!("not in the maps as configured: {problem}"));
    }
    if let Some(hash) = hash {
        let of = if *source_affinity { "of the client's address alone (affinity: source)" } else { "of both ends" };
        lines.line("hash", &format!("{hash}, {of}"));
    }
}

fn about_edge(lines: &mut Lines, edge: &EdgeTrace) {
    lines.head(&format!("as an edge: slot {} of {}", edge.slot, edge.slots));
    match &edge.owner {
        Some(owner) => lines.line("owner", &backend(owner)),
        None => lines.line("owner", "none: no backend of the service may own a slot"),
    }
    for next in &edge.alternates {
        lines.line("alternate", &format!("{}; owns the slot if those above leave", backend(next)));
    }
    outcome(lines, &edge.outcome);
}

fn backend(backend: &BackendStatus) -> String {
    let way = match (&backend.via, &backend.problem) {
        (Some(via), None) => format!("by {via}"),
        (Some(via), Some(problem)) => format!("by {via}; {problem}"),
        (None, Some(problem)) => format!("UNREACHABLE: {problem}"),
        (None, None) => "the kernel has not said yet how it is reached".to_owned(),
    };
    format!("{}, {}, {way}", backend.address, backend.state)
}

fn about_node(lines: &mut Lines, trace: &Trace, node: &NodeTrace) {
    let NodeTrace { slot, slots, candidates, pod, without_pods_ms, reply, outcome: ends } = node;
    match slots {
        0 => lines.head("as a node"),
        _ => lines.head(&format!("as a node: slot {slot} of {slots}")),
    }
    if let Some(waited) = without_pods_ms {
        lines.line("pods", &format!("none here for {}", duration(waited / 1000)));
    }
    for candidate in candidates {
        about_pod(lines, trace, candidate);
    }
    if let Some(pod) = pod {
        lines.line("pod", &format!("{pod}: {}", why_chosen(candidates, *pod)));
    }
    if let Some(ReplyTrace { leaves_as, because, outcome }) = reply {
        match leaves_as {
            Some(vip) => lines.line("replies", &format!("leave as {vip}: {because}")),
            None => lines.line("replies", &format!("{} ({}): {because}", outcome.verdict, outcome.reason)),
        }
    }
    outcome(lines, ends);
}

fn about_pod(lines: &mut Lines, trace: &Trace, candidate: &PodTrace) {
    let PodTrace { role, pod, recorded_because, record } = candidate;
    let at = SocketAddr::new(pod.address, pod.port);
    let asked = match role.as_str() {
        "former" if recorded_because.is_empty() => "; asked first by what is no SYN, whether its sockets know the flow",
        "former" => "; asked first, whether the flow is recorded for it",
        "next" => "; asked if those above cannot have the flow",
        _ => "",
    };
    let way = if pod.live { format!("by {}", device(pod)) } else { device(pod) };
    lines.line(role, &format!("{at}, {}, {way}{asked}", pod.state));
    if !recorded_because.is_empty() {
        lines.line("", &format!("its flows are recorded: {}", recorded_because.join("; ")));
    }
    if let Some(record) = record {
        let of = SocketAddr::new(record.vip, record.vip_port);
        let whose = if of == trace.vip { "of this flow".to_owned() } else { format!("of ANOTHER flow, to {of}") };
        let expired = if record.expired { ", expired" } else { "" };
        let (age, idle) = (duration(record.age_seconds), duration(record.idle_seconds));
        lines.line("", &format!("record {whose}: {}, {age} old, idle for {idle}{expired}", record.state));
    }
}

/// Why this pod gets the flow.
fn why_chosen(candidates: &[PodTrace], chosen: SocketAddr) -> String {
    let is = |candidate: &&PodTrace| SocketAddr::new(candidate.pod.address, candidate.pod.port) == chosen;
    let Some(candidate) = candidates.iter().find(is) else { return "the maps say so".to_owned() };
    match (candidate.role.as_str(), &candidate.record) {
        (_, Some(record)) if !record.expired => "the record says so".to_owned(),
        ("owner", _) => "it owns the slot".to_owned(),
        ("former", _) => "it owned the slot before, and knows the flow".to_owned(),
        _ => "those before it have no live device, or another flow of this client".to_owned(),
    }
}

fn outcome(lines: &mut Lines, outcome: &Outcome) {
    let Outcome { reason, verdict, meaning, way_out } = outcome;
    let verdict = if verdict == "drop" { "DROP" } else { verdict };
    lines.line("packet", &format!("{verdict}, {reason}: {meaning}"));
    if let Some(way_out) = way_out {
        lines.line("do", way_out);
    }
}

#[cfg(test)]
mod tests;
