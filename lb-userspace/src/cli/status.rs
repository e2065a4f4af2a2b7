//! `beeline status`: what is wrong first, then what is there, on one screen.

mod memory;

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use lb_common::verdict::{Action, Reason};

use super::age::duration;
use super::client;
use super::table::{Side, Table};
use crate::metrics::verdict;
use crate::status::{InterfaceStatus, MapStatus, Status};

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The pinned maps: how full they are, and the memory that they take. Root only; no agent is needed.
    #[arg(long)]
    maps: bool,
    #[command(flatten)]
    asked: client::Asked,
}

/// Asks the agent and prints what it says.
///
/// # Errors
/// No agent answers, or standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.maps {
        return memory::run(&arguments.asked);
    }
    let status = arguments.asked.fetch()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    arguments.asked.print(&status, || render(&status, now))
}

fn render(status: &Status, now: u64) -> String {
    let parts = [
        head(status, now),
        config(status, now),
        interfaces(&status.interfaces),
        totals(status),
        reasons(status),
        maps(&status.maps),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn head(status: &Status, now: u64) -> String {
    let ready = if status.ready { "ready" } else { "NOT READY" };
    let (version, pid, up) = (&status.version, status.pid, age(status.started, now));
    let mut text = format!("beeline {version}, pid {pid}, up {up}: {ready}\n");
    let pins = status.pin_path.display();
    line(&mut text, &format!("maps of version {}, pinned under {pins}", status.abi));
    if !status.problems.is_empty() {
        text.push_str("\nPROBLEMS\n");
        for problem in status.first_problems() {
            line(&mut text, &format!("- {}", indented(&problem, "  ")));
        }
    }
    text
}

fn config(status: &Status, now: u64) -> String {
    let config = &status.config;
    let mut text = format!("configuration {}: ", config.file.display());
    if config.generation == 0 {
        line(&mut text, "nothing has been applied yet");
    } else {
        let (generation, age) = (config.generation, age(config.applied, now));
        line(&mut text, &format!("generation {generation} in force, applied {age} ago, {} refused", config.errors));
    }
    if let Some(error) = &config.error {
        if status.problems.contains(error) {
            line(&mut text, "its newest version is REFUSED, see above");
            return text;
        }
        line(&mut text, "its newest version is REFUSED:");
        line(&mut text, &format!("  {}", indented(error, "  ")));
    }
    text
}

fn interfaces(interfaces: &[InterfaceStatus]) -> String {
    if interfaces.is_empty() {
        return "no interfaces\n".to_owned();
    }
    let mut table = Table::new([
        ("INTERFACE", Side::Left),
        ("INDEX", Side::Right),
        ("ROLES", Side::Left),
        ("PROGRAM", Side::Left),
        ("PROBLEM", Side::Left),
    ]);
    for interface in interfaces {
        let roles = match (interface.edge, interface.node) {
            (true, true) => "edge, node",
            (true, false) => "edge",
            (false, true) => "node",
            (false, false) => "-",
        };
        table.row([
            interface.name.clone(),
            interface.index.map_or("-".to_owned(), |index| index.to_string()),
            roles.to_owned(),
            if interface.attached { "attached" } else { "MISSING" }.to_owned(),
            interface.problem.clone().unwrap_or_default(),
        ]);
    }
    table.render()
}

fn totals(status: &Status) -> String {
    let services = &status.services;
    let backends = || services.iter().flat_map(|service| &service.backends);
    let absent = services.iter().filter(|service| !service.installed).count();
    let unreachable = backends().filter(|backend| backend.unreachable()).count();
    let draining = backends().filter(|backend| backend.draining()).count();
    let (packets, bytes) = services.iter().fold((0u64, 0u64), |(packets, bytes), service| {
        (packets.saturating_add(service.packets), bytes.saturating_add(service.bytes))
    });
    let mut text = String::new();
    line(&mut text, &format!("services   {}, {absent} not installed", services.len()));
    line(&mut text, &format!("backends   {}, {unreachable} unreachable, {draining} draining", backends().count()));
    let pods = || services.iter().flat_map(|service| &service.pods);
    if pods().next().is_some() {
        let gone = pods().filter(|pod| !pod.live).count();
        let draining = pods().filter(|pod| pod.draining()).count();
        line(&mut text, &format!("pods here  {}, {gone} without a device, {draining} draining", pods().count()));
    }
    line(&mut text, &format!("tables     {} built since the start", status.tables_built));
    line(&mut text, &format!("forwarded  {packets} packets, {bytes} bytes"));
    if pods().next().is_some() {
        let (packets, bytes) = services.iter().fold((0u64, 0u64), |(packets, bytes), service| {
            (packets.saturating_add(service.pod_packets), bytes.saturating_add(service.pod_bytes))
        });
        line(&mut text, &format!("to pods    {packets} packets, {bytes} bytes"));
        let (packets, bytes) = status.replies.iter().fold((0u64, 0u64), |(packets, bytes), reply| {
            (packets.saturating_add(reply.packets), bytes.saturating_add(reply.bytes))
        });
        line(&mut text, &format!("replies    {packets} packets, {bytes} bytes"));
    }
    text
}

/// The reasons that packets got, drops first, the most frequent first.
fn reasons(status: &Status) -> String {
    let mut counts: Vec<_> = status.reasons.iter().filter(|(_, count)| **count > 0).collect();
    let known = |name: &str| Reason::ALL.iter().copied().find(|reason| reason.name() == name);
    let drops = |name: &str| known(name).is_some_and(|reason| reason.action() == Action::Drop);
    counts.sort_by_key(|(name, count)| (!drops(name), u64::MAX - **count));
    if counts.is_empty() {
        return "no packets yet\n".to_owned();
    }
    let mut table = Table::new([
        ("VERDICT", Side::Left),
        ("PACKETS", Side::Right),
        ("REASON", Side::Left),
        ("MEANING", Side::Left),
    ]);
    for (name, count) in counts {
        // An agent newer than this command may have reasons that are not known here.
        let (verdict, meaning) =
            known(name).map_or(("-", ""), |reason| (verdict(reason.action()), reason.description().trim()));
        table.row([verdict.to_owned(), count.to_string(), name.clone(), meaning.to_owned()]);
    }
    table.render()
}

fn maps(maps: &[MapStatus]) -> String {
    if maps.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new([("MAP", Side::Left), ("USED", Side::Right), ("CAPACITY", Side::Right), ("FILL", Side::Right)]);
    for map in maps {
        let used = map.used.map_or_else(unknown, |used| used.to_string());
        table.row([map.name.clone(), used, map.capacity.to_string(), fill(map.used, map.capacity)]);
    }
    table.render()
}

fn unknown() -> String {
    "-".to_owned()
}

/// How full something is in percent.
fn fill(used: Option<u64>, capacity: u64) -> String {
    let fill = used.and_then(|used| (u128::from(used) * 100).checked_div(u128::from(capacity)));
    fill.map_or_else(unknown, |fill| format!("{fill}%"))
}

fn line(text: &mut String, words: &str) {
    writeln!(text, "{words}").expect("a String takes all that is written to it");
}

/// Text of several lines, each but the first with the indent before it.
fn indented(text: &str, indent: &str) -> String {
    text.trim_end().lines().collect::<Vec<_>>().join(&format!("\n{indent}"))
}

/// The time from `then` to `now`, both in seconds since 1970.
fn age(then: u64, now: u64) -> String {
    duration(now.saturating_sub(then))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn one_screen() {
        assert_eq!(
            render(&sample(), 1_700_090_061),
            "\
beeline 0.1.0, pid 4242, up 1d 1h: NOT READY
maps of version 1, pinned under /sys/fs/bpf/beeline

PROBLEMS
- /etc/beeline/lb.yaml:12:10: services[1].slots: 5000 is not a power of two; the nearest are 4096 and 8192
  /etc/beeline/lb.yaml:14:24: services[1].backends[0].address: \"10.0.0\" is not an IP address
- there is no interface eth1; waiting for it
- web/http: 10.0.0.12 does not answer on eth0 (ARP): is that host up, and on this network?
- dns/UDP/53: no room for more slots: the map holds 4096; raise maps.slots and restart after `beeline detach`
- pod 10.244.1.12: no route leads to 10.244.1.12: the pod is not on this host (any more), or its network is not set up

configuration /etc/beeline/lb.yaml: generation 3 in force, applied 1m 1s ago, 2 refused
its newest version is REFUSED, see above

INTERFACE  INDEX  ROLES       PROGRAM   PROBLEM
eth0           2  edge, node  attached
eth1           -  edge        MISSING   there is no interface eth1; waiting for it

services   2, 1 not installed
backends   3, 1 unreachable, 1 draining
pods here  3, 1 without a device, 1 draining
tables     5 built since the start
forwarded  1500 packets, 600000 bytes
to pods    700 packets, 280000 bytes
replies    800 packets, 180000 bytes

VERDICT  PACKETS  REASON                MEANING
drop          12  unknown_port          Port of a VIP that no service has.
send        1490  forwarded             Encapsulated and sent to a backend.
send          10  icmp_error_forwarded  An ICMP error sent to the backend of the flow that it quotes.

MAP       USED  CAPACITY  FILL
services     2     10000    0%
slots     4096      4096  100%
"
        );
    }

    #[test]
    fn the_documentation_shows_it() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
        assert!(page.contains(&render(&sample(), 1_700_090_061)));
    }

    #[test]
    fn a_refusal_that_is_no_problem_is_shown_in_its_place() {
        let mut status = sample();
        status.problems.clear();
        let text = config(&status, status.config.applied);
        let said = "REFUSED:\n  /etc/beeline/lb.yaml:12:10: services[1].slots: 5000 is";
        assert!(text.contains(said) && text.contains("\n  /etc/beeline/lb.yaml:14:24: "), "{text}");
    }

    #[test]
    fn an_agent_that_has_just_started() {
        let status = Status { version: "0.1.0".to_owned(), pid: 7, started: 100, ..Status::default() };
        let text = render(&status, 99);
        assert!(text.starts_with("beeline 0.1.0, pid 7, up 0s: NOT READY\n"), "{text}");
        assert!(text.contains("nothing has been applied yet\n"), "{text}");
        assert!(text.contains("no interfaces\n") && text.contains("no packets yet\n"), "{text}");
    }

    #[test]
    fn a_reason_of_a_newer_agent_is_shown() {
        let reasons = [("of_the_future".to_owned(), 3)].into();
        let text = super::reasons(&Status { reasons, ..Status::default() });
        assert_eq!(text, "VERDICT  PACKETS  REASON         MEANING\n-              3  of_the_future\n");
    }
}
