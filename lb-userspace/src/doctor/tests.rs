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

fn ours(name: &str) -> read::Program {
    read::Program { name: name.to_owned(), ours: true }
}

fn theirs(name: &str) -> read::Program {
    read::Program { ours: false, ..ours(name) }
}

fn facts() -> Facts {
    let eth0 = Device {
        index: 2,
        name: "eth0".into(),
        mtu: 1600,
        kind: String::new(),
        vlan_of: None,
        peer: None,
        offloads: Some(OFFLOADS),
        xdp: Some(read::Xdp { program: ours("beeline_both"), generic: false }),
        ingress: Ok(Vec::new()),
        egress: Ok(vec![ours("beeline_return")]),
    };
    let settings = [
        ("net/core/bpf_jit_enable", 1),
        ("net/ipv4/ip_forward", 1),
        ("net/ipv4/conf/all/arp_ignore", 0),
        ("net/ipv4/conf/all/rp_filter", 0),
        ("net/ipv4/conf/eth0/rp_filter", 0),
        ("net/ipv4/conf/eth0/forwarding", 1),
        ("net/netfilter/nf_conntrack_count", 10),
        ("net/netfilter/nf_conntrack_max", 100),
    ];
    let route = |address, length, interface| Route {
        prefix: prefix(address, length),
        interface,
        unicast: interface.is_some(),
        on_link: false,
    };
    Facts {
        release: "6.18.0".into(),
        capabilities: u64::MAX,
        btf: true,
        bpf_filesystem: read::BpfFilesystem::There,
        devices: vec![eth0],
        routes: vec![route("0.0.0.0", 0, Some(2)), route("10.200.0.0", 16, None)],
        uplinks: [BTreeSet::from([2]), BTreeSet::new()],
        addresses: BTreeSet::new(),
        pins: Ok(()),
        settings: settings.map(|(path, value)| (path.to_owned(), value)).into(),
        rules: vec![Rules { tool: "nft", text: Ok(r#"{"nftables": []}"#.into()) }],
        agent: Ok(crate::status::Status { ready: true, ..crate::status::Status::default() }),
    }
}

const OFFLOADS: read::Offloads = read::Offloads { vlan: false, lro: false, checksums: true };

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
    let mut well = facts();
    set(rp_filter, 1)(&mut well);
    let well = examine(&config("", "host"), &well);
    assert!(well.iter().any(|one| one.check == "rp_filter" && one.level == Level::Ok), "{well:?}");
    let strict = |uplinks: &[u32]| {
        let uplinks = uplinks.iter().copied().collect();
        move |facts: &mut Facts| {
            set(rp_filter, 1)(facts);
            facts.uplinks[0] = uplinks;
        }
    };
    expect(&found("host", strict(&[3])), Level::Problem, "conf.eth0.rp_filter=2");
    expect(&found("host", strict(&[2, 3])), Level::Warning, "conf.eth0.rp_filter=2");
    expect(&found("host", strict(&[])), Level::Warning, "conf.eth0.rp_filter=2");
    expect(&found("pod", set("net/ipv4/conf/eth0/forwarding", 0)), Level::Problem, "conf.eth0.forwarding=1");
    let all = |facts: &mut Facts| {
        facts.settings.extend(["ip_forward", "conf/eth0/forwarding"].map(|name| (format!("net/ipv4/{name}"), 0)))
    };
    expect(&found("pod", all), Level::Problem, "net.ipv4.ip_forward=1");
    expect(&found("host", set("net/core/bpf_jit_enable", 0)), Level::Warning, "bpf_jit_enable=1");
    expect(&found("host", set("net/netfilter/nf_conntrack_count", 95)), Level::Warning, "nf_conntrack_max=200");
    assert_eq!(
        sysctl(&["net", "ipv4", "conf", "eth0.5", "rp_filter"], 2),
        "sysctl -w net/ipv4/conf/eth0.5/rp_filter=2"
    );
}

#[test]
fn programs() {
    let xdp = |program| move |facts: &mut Facts| facts.devices[0].xdp = Some(read::Xdp { program, generic: false });
    let gone = |facts: &mut Facts| {
        facts.devices[0].xdp = None;
        facts.agent = Err(Silence { why: "no agent answers".into(), forbidden: true });
    };
    let findings = examine(&config("", "host"), &{
        let mut facts = facts();
        gone(&mut facts);
        facts
    });
    assert!(findings.iter().any(|one| one.way_out.as_deref().is_some_and(|out| out.starts_with("start the agent"))));
    expect(&found("host", |facts| facts.devices[0].xdp = None), Level::Problem, "beeline status");
    expect(&found("host", xdp(theirs("other (id 5)"))), Level::Problem, "xdp off");
    expect(&found("host", xdp(theirs("beeline_edge (id 5)"))), Level::Problem, "--pin-path");
    expect(&found("pod", |facts| facts.devices[0].egress = Ok(Vec::new())), Level::Problem, "beeline status");
    expect(&found("pod", |facts| facts.devices[0].egress = Ok(vec![theirs("beeline_return")])), Level::Problem, "");
    let second = |facts: &mut Facts| facts.devices[0].egress = Ok(vec![theirs("cil"), ours("beeline_return")]);
    expect(&found("pod", second), Level::Warning, "restart");
    let other = |facts: &mut Facts| {
        facts.devices.push(Device { index: 3, name: "wg0".into(), ..facts.devices[0].clone() });
        facts.uplinks[0].insert(3);
    };
    expect(&found("pod", other), Level::Warning, "add wg0");
    let of_another_family = |facts: &mut Facts| {
        other(facts);
        facts.uplinks = [BTreeSet::from([2]), BTreeSet::from([3])];
    };
    let mut facts = facts();
    of_another_family(&mut facts);
    let findings = examine(&config("", "pod"), &facts);
    assert!(findings.iter().all(|one| one.level == Level::Ok), "{findings:?}");
}

#[test]
fn a_node_whose_program_is_on_tc_ingress() {
    let text = "{apiVersion: beeline.dev/v1, kind: Config, hashSeed: 7, node: {interfaces: [eth0], trustedSources: \
                [10.200.0.0/16]}, services: []}";
    let config = parse(text, "lb.yaml").expect("a valid file");
    let mut facts = facts();
    let device = &mut facts.devices[0];
    device.xdp = Some(read::Xdp { program: theirs("other"), generic: false });
    device.ingress = Ok(vec![ours("beeline_node_tc")]);
    let levels = |facts: &Facts| count(&examine(&config, facts)).into_keys().collect::<Vec<_>>();
    assert_eq!(levels(&facts), [Level::Ok, Level::Remark]);
    facts.devices[0].ingress = Ok(vec![theirs("cil"), ours("beeline_node_tc")]);
    assert_eq!(levels(&facts), [Level::Ok, Level::Warning]);
    facts.devices[0].ingress = Ok(vec![theirs("cil")]);
    assert_eq!(levels(&facts), [Level::Ok, Level::Problem]);
}

#[test]
fn what_may_not_be_seen_is_no_problem() {
    for capabilities in [0, 1 << 12, 1 << 39] {
        let finding = found("pod", |facts| {
            facts.capabilities = capabilities;
            facts.rules.clear();
            facts.devices[0].xdp = Some(read::Xdp { program: theirs("program 5"), generic: false });
            facts.devices[0].egress = Err("not permitted".into());
            if capabilities == 1 << 12 {
                facts.rules = self::facts().rules;
            }
        });
        expect(&finding, Level::Unseen, "sudo");
    }
    // CAP_SYS_ADMIN stands for those that came with Linux 5.8.
    let findings = examine(&config("", "pod"), &Facts { capabilities: 1 << 12 | 1 << 21, ..facts() });
    assert!(findings.iter().all(|one| one.level == Level::Ok), "{findings:?}");
    let forbidden = |facts: &mut Facts| facts.agent = Err(Silence { why: "not for this user".into(), forbidden: true });
    expect(&found("host", forbidden), Level::Unseen, "");
}

#[test]
fn devices() {
    let lro = |facts: &mut Facts| facts.devices[0].offloads = Some(read::Offloads { lro: true, ..OFFLOADS });
    expect(&found("host", lro), Level::Problem, "lro off");
    let vlan = |facts: &mut Facts| {
        facts.devices[0].offloads = Some(read::Offloads { vlan: true, ..OFFLOADS });
        let tagged = Device { index: 9, name: "eth0.5".into(), vlan_of: Some(2), ..facts.devices[0].clone() };
        facts.devices.push(tagged);
    };
    expect(&found("host", vlan), Level::Problem, "rxvlan off");
    let veth = |checksums| {
        move |facts: &mut Facts| {
            let far = Device {
                index: 9,
                name: "far".into(),
                offloads: Some(read::Offloads { checksums, ..OFFLOADS }),
                ..facts.devices[0].clone()
            };
            facts.devices[0].kind = "veth".into();
            facts.devices[0].peer = Some(9);
            facts.devices.push(far);
        }
    };
    expect(&found("host", veth(true)), Level::Warning, "ethtool -K far tx off");
    let mut finished = facts();
    veth(false)(&mut finished);
    let findings = examine(&config("", "host"), &finished);
    assert!(findings.iter().all(|one| one.level == Level::Ok), "{findings:?}");
    finished.devices.pop();
    assert_eq!(
        count(&examine(&config("", "host"), &finished)).get(&Level::Remark),
        Some(&1),
        "not to be seen from here"
    );
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
    let wg0 = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "wg0"}}, "#;
    let elsewhere = [
        ("nft", rule(&format!("{wg0}{invalid}"))),
        ("iptables-save", "-A F -i wg0 -m state --state INVALID -j DROP\n".into()),
    ];
    for (tool, text) in elsewhere {
        let mut facts = facts();
        rules(tool, &text)(&mut facts);
        let findings = examine(&config("", "host"), &facts);
        assert!(findings.iter().all(|one| one.level == Level::Ok), "{findings:?}");
    }
    let fib = r#"{"match": {"op": "==", "left": {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, "right": false}}, {"drop": null}"#;
    expect(&found("host", rules("nft", &rule(fib))), Level::Warning, "uplinks");
    let line = "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n";
    expect(&found("host", rules("iptables-save", line)), Level::Warning, "be_liberal=1");
    let mut facts = facts();
    rules("iptables-save", "-A POSTROUTING -j MASQUERADE\n")(&mut facts);
    let says = |node| examine(&config(node, "pod"), &facts).iter().any(|one| one.what.contains("masquerading"));
    assert!(says("") && !says(", natExemption: true"));
}

#[test]
fn the_rest() {
    expect(&found("host", |facts| facts.bpf_filesystem = read::BpfFilesystem::Missing), Level::Problem, "mount -t bpf");
    expect(&found("host", |facts| facts.release = "5.15.1-x".into()), Level::Warning, "5.18");
    let silent = |facts: &mut Facts| facts.agent = Err(Silence { why: "no agent".into(), forbidden: false });
    expect(&found("host", silent), Level::Warning, "beeline agent");
    let unhappy = |facts: &mut Facts| {
        facts.agent =
            Ok(crate::status::Status { problems: vec!["no room".into()], ..crate::status::Status::default() });
    };
    expect(&found("host", unhappy), Level::Problem, "beeline status");
    expect(&found("host", |facts| facts.routes.truncate(0)), Level::Warning, "blackhole 10.200.0.0/16");
    let held =
        |facts: &mut Facts| facts.addresses.extend(["10.0.0.1".parse::<std::net::IpAddr>().expect("an address")]);
    expect(&found("host", held), Level::Problem, "ip address add 198.51.100.10/32 dev lo");
    let near = |facts: &mut Facts| {
        held(facts);
        facts.addresses.insert("198.51.100.10".parse().expect("an address"));
        facts.routes.push(Route {
            prefix: prefix("198.51.100.0", 24),
            interface: Some(2),
            unicast: true,
            on_link: true,
        });
    };
    expect(&found("host", near), Level::Warning, "arp_ignore=1");
    let mut quiet = facts();
    near(&mut quiet);
    set("net/ipv4/conf/all/arp_ignore", 1)(&mut quiet);
    let findings = examine(&config("", "host"), &quiet);
    assert!(findings.iter().all(|one| one.level == Level::Ok), "{findings:?}");
}
