//! Packet filters that drop or rewrite packets of ours, and the table of connection tracking.

use std::collections::BTreeSet;

use serde_json::Value;

use super::read::capability;
use super::{Facts, Finding, Level, delivers_to_pods, node_interfaces, sysctl};
use crate::config::{Config, Protocol};
use crate::model::Delivery;

const CHECK: &str = "packet filter";
/// Whether conntrack lets TCP segments outside of a connection's window pass.
const LIBERAL: [&str; 3] = ["net", "netfilter", "nf_conntrack_tcp_be_liberal"];

/// What a rule does that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trap {
    /// Drops what connection tracking calls invalid.
    Invalid,
    /// Drops what would be answered by another interface.
    ReversePath,
    /// Rewrites sources.
    Masquerade,
}

/// Every rule that matters, in words, and how full the table is.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    if config.node.is_none() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if facts.rules.is_empty() && facts.may(capability::NET_ADMIN) {
        let what = "neither nft nor iptables-save is installed: what rules there are cannot be seen";
        findings.push(Finding::new(
            Level::Unseen,
            CHECK,
            what,
            "install nftables here, or run beeline doctor where it is",
        ));
    }
    for rules in &facts.rules {
        let traps = match &rules.text {
            Ok(text) if rules.tool == "nft" => nft(text, node_interfaces(config)),
            Ok(text) => Ok(iptables(text, node_interfaces(config))),
            Err(error) => Err(error.clone()),
        };
        match traps {
            Ok(traps) => {
                let found = traps.into_iter().filter_map(|(trap, place)| said(trap, &place, rules.tool, config, facts));
                let mut found: Vec<_> = found.collect();
                // Plugins repeat a rule for each pod.
                let mut said = BTreeSet::new();
                found.retain(|finding: &Finding| said.insert(finding.what.clone()));
                if found.is_empty() {
                    findings.push(Finding::ok(CHECK, format!("{}: no rule in the way", rules.tool)));
                }
                findings.extend(found);
            }
            Err(error) => findings.push(Finding::new(Level::Unseen, CHECK, format!("{} {error}", rules.tool), "")),
        }
    }
    findings.extend(fill(facts));
    findings
}

fn said(trap: Trap, place: &str, tool: &str, config: &Config, facts: &Facts) -> Option<Finding> {
    let udp = |service: &crate::config::ServiceConfig| {
        service.delivery == Delivery::Pod && service.ports.iter().any(|port| port.protocol == Protocol::Udp)
    };
    match trap {
        // With be_liberal only a RST outside the window is invalid (nf_conntrack-sysctl.rst).
        Trap::Invalid if facts.number(&LIBERAL.join("/")) == Some(1) => Some(Finding::ok(
            CHECK,
            format!(
                "{tool}: {place}: `ct state invalid` is dropped, but with nf_conntrack_tcp_be_liberal little is invalid"
            ),
        )),
        Trap::Invalid => Some(Finding::new(
            Level::Warning,
            CHECK,
            format!("{tool}: {place}: `ct state invalid` is dropped: connections that came from another node break"),
            format!("{}, or take tunnelled clients out of the rule", sysctl(&LIBERAL, 1)),
        )),
        Trap::ReversePath => Some(Finding::new(
            Level::Warning,
            CHECK,
            format!("{tool}: {place}: clients that are answered by another interface are dropped"),
            "leave the node's uplinks out of the rule, or let it look at the address alone (`fib saddr oif`, `--loose`)",
        )),
        Trap::Masquerade if delivers_to_pods(config) && config.services.iter().any(udp) => {
            let exempt = config.node.as_ref().is_some_and(|node| node.nat_exemption);
            (!exempt).then(|| {
                let what = format!(
                    "{tool}: {place}: masquerading: a UDP reply after conntrack's timeout gets the node's address"
                );
                Finding::new(Level::Remark, CHECK, what, "node.natExemption: true")
            })
        }
        Trap::Masquerade => None,
    }
}

/// Rules of `nft -j list ruleset` (libnftables-json(5)), each with its table and chain.
fn nft(text: &str, uplinks: &[String]) -> Result<Vec<(Trap, String)>, String> {
    let document: Value = serde_json::from_str(text).map_err(|error| format!("wrote what is no JSON: {error}"))?;
    let list = document["nftables"].as_array().ok_or("wrote JSON without a list of rules")?;
    let mut traps = Vec::new();
    for rule in list.iter().filter_map(|entry| entry.get("rule")) {
        let Some(expressions) = rule["expr"].as_array() else { continue };
        let word = |key: &str| rule[key].as_str().unwrap_or("?").to_owned();
        let place = format!("table {} {} chain {}", word("family"), word("table"), word("chain"));
        let drops = expressions.iter().any(|one| one.get("drop").is_some() || one.get("reject").is_some());
        let matches = || expressions.iter().filter_map(|one| one.get("match"));
        let ends = drops && !matches().any(|one| is_elsewhere(one, uplinks));
        if ends && matches().any(is_invalid) {
            traps.push((Trap::Invalid, place.clone()));
        }
        if ends && matches().any(is_reverse_path) {
            traps.push((Trap::ReversePath, place.clone()));
        }
        if expressions.iter().any(|one| one.get("masquerade").is_some()) {
            traps.push((Trap::Masquerade, place));
        }
    }
    Ok(traps)
}

fn is_invalid(expression: &Value) -> bool {
    let right = &expression["right"];
    let named = |value: &Value| value.as_str() == Some("invalid");
    let listed = |value: &Value| value.as_array().is_some_and(|list| list.iter().any(named));
    expression["left"]["ct"]["key"] == "state"
        && expression["op"] != "!="
        && (named(right) || listed(right) || listed(&right["set"]))
}

/// Whether it matches one interface alone that packets come in by, and that is none of these.
fn is_elsewhere(expression: &Value, uplinks: &[String]) -> bool {
    let key = &expression["left"]["meta"]["key"];
    let interface = expression["right"].as_str();
    (key == "iifname" || key == "iif")
        && expression["op"] == "=="
        && interface.is_some_and(|name| !name.contains('*') && !uplinks.iter().any(|uplink| uplink == name))
}

fn is_reverse_path(expression: &Value) -> bool {
    let fib = &expression["left"]["fib"];
    let has = |flag: &str| fib["flags"].as_array().is_some_and(|flags| flags.iter().any(|one| one == flag));
    has("saddr") && has("iif")
}

/// Rules of `iptables-save`, each with its chain.
fn iptables(text: &str, uplinks: &[String]) -> Vec<(Trap, String)> {
    let mut traps = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("-A ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        let place = format!("chain {}", words.get(1).unwrap_or(&"?"));
        let after = |option: &str| words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1));
        let elsewhere = !line.contains("! -i ")
            && after("-i").is_some_and(|name| !name.ends_with('+') && !uplinks.iter().any(|uplink| uplink == name));
        let ends = !elsewhere && after("-j").is_some_and(|target| matches!(*target, "DROP" | "REJECT"));
        let negated = line.contains("! --ctstate") || line.contains("! --state");
        let state = after("--ctstate").or_else(|| after("--state"));
        if ends && !negated && state.is_some_and(|states| states.split(',').any(|state| state == "INVALID")) {
            traps.push((Trap::Invalid, place.clone()));
        }
        if ends && after("-m").is_some() && words.contains(&"rpfilter") && !words.contains(&"--loose") {
            traps.push((Trap::ReversePath, place.clone()));
        }
        if after("-j") == Some(&"MASQUERADE") {
            traps.push((Trap::Masquerade, place));
        }
    }
    traps
}

fn fill(facts: &Facts) -> Option<Finding> {
    let of = |name: &str| facts.number(&format!("net/netfilter/nf_conntrack_{name}"));
    let (count, max) = (of("count")?, of("max")?);
    let what = format!("conntrack: {count} of {max} entries");
    Some(if max > 0 && count * 10 >= max * 9 {
        let way_out = sysctl(&["net", "netfilter", "nf_conntrack_max"], max * 2);
        Finding::new(Level::Warning, CHECK, format!("{what}: when it is full, new connections are dropped"), way_out)
    } else {
        Finding::ok(CHECK, what)
    })
}
