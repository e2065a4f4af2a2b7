//! Packet filters that drop or rewrite packets of ours, and the table of connection tracking.

use serde_json::Value;

use super::{Facts, Finding, Level, delivers_to_pods};
use crate::config::{Config, Protocol};
use crate::model::Delivery;

const CHECK: &str = "packet filter";

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
    for rules in &facts.rules {
        let traps = match &rules.text {
            Ok(text) if rules.tool == "nft" => nft(text),
            Ok(text) => Ok(iptables(text)),
            Err(error) => Err(error.clone()),
        };
        match traps {
            Ok(traps) => {
                let found = traps.into_iter().filter_map(|(trap, place)| said(trap, &place, rules.tool, config, facts));
                let found: Vec<_> = found.collect();
                if found.is_empty() {
                    findings.push(Finding::ok(CHECK, format!("{}: no rule in the way", rules.tool)));
                }
                findings.extend(found);
            }
            Err(error) => findings.push(Finding::new(Level::Unseen, CHECK, format!("{}: {error}", rules.tool), "")),
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
        Trap::Invalid if facts.number("net/netfilter/nf_conntrack_tcp_be_liberal") == Some(1) => Some(Finding::ok(
            CHECK,
            format!("{tool}: {place} drops invalid packets, and nf_conntrack_tcp_be_liberal is 1"),
        )),
        Trap::Invalid => Some(Finding::new(
            Level::Warning,
            CHECK,
            format!(
                "{tool}: {place} drops packets that conntrack calls invalid: those of a connection that it has \
                 forgotten, that came from another node, or whose replies take another way"
            ),
            "sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1, or take tunnelled clients out of the rule",
        )),
        Trap::ReversePath => Some(Finding::new(
            Level::Warning,
            CHECK,
            format!("{tool}: {place} drops packets of clients that are answered by another interface"),
            "leave the node's uplinks out of the rule, or let it look at the address alone (fib saddr oif, --loose)",
        )),
        Trap::Masquerade if delivers_to_pods(config) && config.services.iter().any(udp) => {
            let exempt = config.node.as_ref().is_some_and(|node| node.nat_exemption);
            (!exempt).then(|| {
                let what = format!(
                    "{tool}: {place} masquerades: a UDP reply of a pod that conntrack has forgotten leaves with the \
                     node's address"
                );
                Finding::new(Level::Ok, CHECK, what, "node.natExemption: true")
            })
        }
        Trap::Masquerade => None,
    }
}

/// Rules of `nft -j list ruleset` (libnftables-json(5)), each with its table and chain.
fn nft(text: &str) -> Result<Vec<(Trap, String)>, String> {
    let document: Value = serde_json::from_str(text).map_err(|error| format!("its JSON cannot be read: {error}"))?;
    let list = document["nftables"].as_array().ok_or("its JSON has no list of rules")?;
    let mut traps = Vec::new();
    for rule in list.iter().filter_map(|entry| entry.get("rule")) {
        let Some(expressions) = rule["expr"].as_array() else { continue };
        let word = |key: &str| rule[key].as_str().unwrap_or("?").to_owned();
        let place = format!("table {} {} chain {}", word("family"), word("table"), word("chain"));
        let ends = expressions.iter().any(|one| one.get("drop").is_some() || one.get("reject").is_some());
        let matches = || expressions.iter().filter_map(|one| one.get("match"));
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

fn is_reverse_path(expression: &Value) -> bool {
    let fib = &expression["left"]["fib"];
    let has = |flag: &str| fib["flags"].as_array().is_some_and(|flags| flags.iter().any(|one| one == flag));
    has("saddr") && has("iif")
}

/// Rules of `iptables-save`, each with its chain.
fn iptables(text: &str) -> Vec<(Trap, String)> {
    let mut traps = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("-A ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        let place = format!("chain {}", words.get(1).unwrap_or(&"?"));
        let after = |option: &str| words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1));
        let ends = after("-j").is_some_and(|target| matches!(*target, "DROP" | "REJECT"));
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
        let way_out = format!("sysctl -w net.netfilter.nf_conntrack_max={}", max * 2);
        Finding::new(Level::Warning, CHECK, format!("{what}: when it is full, new connections are dropped"), way_out)
    } else {
        Finding::ok(CHECK, what)
    })
}
