//! Each check, found and not found.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::parse;
use crate::model::Prefix;

fn config(node: &str, delivery: &str) -> Config {
    let pods = if delivery == "pod" { ", pods: [{address: 10.244.0.2}]" } else { "" };
    parse(
        &format!(
            "{{apiVersion: beeline.dev/v1, kind: Config, hashSeed: 7, edge: {{interfaces: [eth0], tunnelSource: \
             {{ipv4: 10.200.0.0/16}}}}, node: {{interfaces: [eth0], trustedSources: [10.200.0.0/16]{node}}}, services: \
             [{{name: dns, address: 198.51.100.10, ports: [{{port: 53, protocol: UDP}}], delivery: {delivery}, backends: \
             [{{address: 10.0.0.1{pods}}}]}}]}}"
        ),
        "lb.yaml",
    )
    .expect("a valid file")
}

fn prefix(address: &str, length: u8) -> Prefix {
    Prefix { address: address.parse().expect("an address"), length }
}

fn facts() -> Facts {
    let eth0 = Device {
        index: 2,
        name: "eth0".into(),
        mtu: 1600,
        kind: String::new(),
        vlan_of: None,
        offloads: Some(read::Offloads { vlan: false, lro: false }),
        xdp: Some(read::Xdp { id: 1, name: Ok("beeline_both".into()), generic: false }),
        egress: Ok(vec!["beeline_return".into()]),
    };
    let settings = [
        ("net/core/bpf_jit_enable", 1),
        ("net/ipv4/conf/all/rp_filter", 0),
        ("net/ipv4/conf/eth0/rp_filter", 0),
        ("net/ipv4/conf/eth0/forwarding", 1),
        ("net/netfilter/nf_conntrack_count", 10),
        ("net/netfilter/nf_conntrack_max", 100),
    ];
    Facts {
        release: "6.18.0".into(),
        root: true,
        btf: true,
        bpf_filesystem: true,
        devices: vec![eth0],
        routes: vec![
            Route { prefix: prefix("0.0.0.0", 0), interface: Some(2), unicast: true },
            Route { prefix: prefix("10.200.0.0", 16), interface: None, unicast: false },
        ],
        addresses: BTreeSet::new(),
        settings: settings.map(|(path, value)| (path.to_owned(), value)).into(),
        rules: vec![Rules { tool: "nft", text: Ok(r#"{"nftables": []}"#.into()) }],
        agent: Ok(crate::status::Status::default()),
    }
}

/// The one finding that a change makes.
fn found(delivery: &str, change: impl FnOnce(&mut Facts)) -> Finding {
    let mut facts = facts();
    change(&mut facts);
    let mut findings = examine(&config("", delivery), &facts);
    findings.retain(|finding| finding.level > Level::Ok);
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.remove(0)
}

#[track_caller]
fn expect(finding: &Finding, level: Level, way_out: &str) {
    assert_eq!(finding.level, level, "{finding:?}");
    assert!(finding.way_out.as_deref().unwrap_or_default().contains(way_out), "{finding:?}");
}

fn set(path: &'static str, value: i64) -> impl FnOnce(&mut Facts) {
    move |facts| facts.settings.extend([(path.to_owned(), value)])
}

#[test]
fn a_host_without_traps() {
    for delivery in ["host", "pod"] {
        let findings = examine(&config("", delivery), &facts());
        assert_eq!(count(&findings), BTreeMap::from([(Level::Ok, findings.len())]), "{findings:?}");
    }
}

#[test]
fn settings() {
    let rp_filter = "net/ipv4/conf/all/rp_filter";
    let fine = examine(&config("", "host"), &{
        let mut facts = facts();
        set(rp_filter, 1)(&mut facts);
        facts
    });
    assert!(fine.iter().any(|one| one.check == "rp_filter" && one.level == Level::Ok), "{fine:?}");
    let other = |facts: &mut Facts| {
        set(rp_filter, 1)(facts);
        facts.routes[0].interface = Some(3);
    };
    expect(&found("host", other), Level::Problem, "conf.eth0.rp_filter=2");
    expect(&found("pod", set("net/ipv4/conf/eth0/forwarding", 0)), Level::Problem, "ip_forward=1");
    expect(&found("host", set("net/core/bpf_jit_enable", 0)), Level::Warning, "bpf_jit_enable=1");
    expect(&found("host", set("net/netfilter/nf_conntrack_count", 95)), Level::Warning, "nf_conntrack_max=200");
}

#[test]
fn programs() {
    expect(&found("host", |facts| facts.devices[0].xdp = None), Level::Problem, "beeline agent");
    let foreign = |facts: &mut Facts| {
        facts.devices[0].xdp = Some(read::Xdp { id: 1, name: Ok("other".into()), generic: false });
    };
    expect(&found("host", foreign), Level::Problem, "xdp off");
    expect(&found("pod", |facts| facts.devices[0].egress = Ok(Vec::new())), Level::Problem, "beeline agent");
    let second = |facts: &mut Facts| facts.devices[0].egress = Ok(vec!["cil".into(), "beeline_return".into()]);
    expect(&found("pod", second), Level::Warning, "restart");
}

#[test]
fn devices() {
    let lro = |facts: &mut Facts| facts.devices[0].offloads = Some(read::Offloads { vlan: false, lro: true });
    expect(&found("host", lro), Level::Problem, "lro off");
    let vlan = |facts: &mut Facts| {
        facts.devices[0].offloads = Some(read::Offloads { vlan: true, lro: false });
        let tagged = Device { index: 9, name: "eth0.5".into(), vlan_of: Some(2), ..facts.devices[0].clone() };
        facts.devices.push(tagged);
    };
    expect(&found("host", vlan), Level::Problem, "rxvlan off");
    expect(&found("host", |facts| facts.devices[0].kind = "veth".into()), Level::Warning, "tx off");
}

#[test]
fn packet_filters() {
    let rules = |tool, text: &str| {
        let text = Ok(text.to_owned());
        move |facts: &mut Facts| facts.rules = vec![Rules { tool, text }]
    };
    let rule = |expressions: &str| {
        format!(
            r#"{{"nftables": [{{"rule": {{"family": "inet", "table": "t", "chain": "c", "expr": [{expressions}]}}}}]}}"#
        )
    };
    let invalid = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": null}"#;
    expect(&found("host", rules("nft", &rule(invalid))), Level::Warning, "be_liberal=1");
    let fib = r#"{"match": {"op": "==", "left": {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, "right": false}}, {"drop": null}"#;
    expect(&found("host", rules("nft", &rule(fib))), Level::Warning, "uplinks");
    let line = "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n";
    expect(&found("host", rules("iptables-save", line)), Level::Warning, "be_liberal=1");
    let mut facts = facts();
    rules("iptables-save", "-A POSTROUTING -j MASQUERADE\n")(&mut facts);
    let says = |node| examine(&config(node, "pod"), &facts).iter().any(|one| one.what.contains("masquerades"));
    assert!(says("") && !says(", natExemption: true"));
}

#[test]
fn the_rest() {
    expect(&found("host", |facts| facts.bpf_filesystem = false), Level::Problem, "mount -t bpf");
    expect(&found("host", |facts| facts.release = "5.15.1-x".into()), Level::Warning, "5.18");
    expect(&found("host", |facts| facts.agent = Err("no agent".into())), Level::Warning, "beeline agent");
    expect(&found("host", |facts| facts.routes.truncate(0)), Level::Warning, "blackhole 10.200.0.0/16");
    let held =
        |facts: &mut Facts| facts.addresses.extend(["10.0.0.1".parse::<std::net::IpAddr>().expect("an address")]);
    expect(&found("host", held), Level::Problem, "ip address add 198.51.100.10/32 dev lo");
}
