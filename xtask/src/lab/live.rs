//! The lab for a visitor: built, explained, shown until Ctrl-C.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use beeline_tests::bed::{Agent, Bed, Beeline, Rig};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::exec;
use super::network::{self, PICTURE};

/// Time between two looks at logs and signals.
const LOOK: Duration = Duration::from_millis(200);

/// Time between two looks at counters.
const COUNTERS: Duration = Duration::from_secs(5);

const TRY: &str = r"
  Try, in another terminal:
    cargo xtask exec client -- curl -s http://198.51.100.10/
    cargo xtask exec client -- curl -s --interface fd60::3 'http://[2001:db8:10::11]/'
    cargo xtask exec client -- ping -c 3 198.51.100.10
    cargo xtask exec edge1  -- tcpdump -ni eth0 proto 4 or proto 41
    cargo xtask exec pod2-1 -- tcpdump -ni eth0 port 8080
    cargo xtask exec router -- ip route show 198.51.100.0/24";

/// What to ask on an edge.
const EDGE_COMMANDS: &[&str] = &["services", "trace 10.60.0.2:40000 198.51.100.10:80"];

/// What to ask on a node.
const NODE_COMMANDS: &[&str] = &["services", "flows", "trace 10.60.0.2:40000 198.51.100.10:80"];

/// Builds the lab and shows what goes on in it.
pub(super) fn run(beeline: &Beeline) -> Result<()> {
    // Blocked before the first thread starts, so that every thread leaves the signals to the one that reads them.
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().context("cannot block signals")?;
    let interrupts = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    Bed::run("lab", |bed| {
        println!("Building the lab …");
        let started = Instant::now();
        let mut lab = network::build(bed, beeline)?;
        let _announced = exec::announce()?;
        println!(
            "{PICTURE}\n  Up after {:.1} s, as process {}.{TRY}",
            started.elapsed().as_secs_f32(),
            std::process::id()
        );
        explain_files(&mut lab);
        println!("\n  Ctrl-C ends it. What the agents say:\n");
        watch(&mut lab, &interrupts)?;
        println!("Taking the lab down.");
        Ok(())
    })
}

/// What an agent says, and a change of its file: they take the agent's paths.
fn explain_files(lab: &mut Rig) {
    let binary = lab.beeline.path().display();
    for agent in lab.agents.edges.iter().chain(&lab.agents.nodes) {
        let (host, file) = (agent.host().name(), agent.file().display());
        println!("    cargo xtask exec {host}  -- {binary} status --config {file}");
    }
    if let (Some(edge), Some(node)) = (lab.agents.edges.first(), lab.agents.nodes.first()) {
        for (agent, commands) in [(edge, EDGE_COMMANDS), (node, NODE_COMMANDS)] {
            let (host, file) = (agent.host().name(), agent.file().display());
            for command in commands {
                println!("    cargo xtask exec {host}  -- {binary} {command} --config {file}");
            }
        }
        let (host, file) = (node.host().name(), node.file().display());
        println!("    cargo xtask exec {host}  -- sed -i 's/10.244.1.12\", weight: 100/&, state: draining/' {file}");
    }
}

/// Shows new lines of the agents' logs, and counters where they have changed, until a signal comes.
fn watch(lab: &mut Rig, interrupts: &SignalFd) -> Result<()> {
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    let mut counters: BTreeMap<String, String> = BTreeMap::new();
    let mut ended = BTreeSet::new();
    let mut next = Instant::now();
    while interrupts.read_signal()?.is_none() {
        for agent in lab.agents.all() {
            show_log(agent, &mut shown)?;
            show_end(agent, &mut ended)?;
        }
        if Instant::now() >= next {
            for agent in lab.agents.edges.iter().filter(|agent| !ended.contains(agent.host().name())) {
                show_counters(agent, &mut counters)?;
            }
            next = Instant::now() + COUNTERS;
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

fn show_log(agent: &mut Agent, shown: &mut BTreeMap<String, usize>) -> Result<()> {
    let name = agent.host().name().to_owned();
    let log = agent.process().log()?;
    let start = shown.entry(name.clone()).or_default();
    // A line is shown when it is whole.
    let end = log.rfind('\n').map_or(*start, |last| last + 1);
    if let Some(new) = log.get(*start..end) {
        new.lines().for_each(|line| println!("{name:>6} | {line}"));
        *start = end;
    }
    Ok(())
}

/// Says once that an agent has ended: the visitor may have killed it to see that its programs go on.
fn show_end(agent: &mut Agent, ended: &mut BTreeSet<String>) -> Result<()> {
    let name = agent.host().name().to_owned();
    if let Some(status) = agent.process().ended()?
        && ended.insert(name.clone())
    {
        println!("{name:>6} | the agent has ended ({status}); its programs go on");
    }
    Ok(())
}

fn show_counters(agent: &Agent, counters: &mut BTreeMap<String, String>) -> Result<()> {
    let packets = agent.packets_by_backend()?;
    let line = packets.iter().map(|(backend, count)| format!("{backend} {count}")).collect::<Vec<_>>().join("  ");
    let name = agent.host().name().to_owned();
    if counters.insert(name.clone(), line.clone()).is_none_or(|before| before != line) {
        println!("{name:>6} | packets so far: {line}");
    }
    Ok(())
}
