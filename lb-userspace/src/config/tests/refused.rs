//! What is refused outside of services.

use std::io::Write as _;

use super::super::{LoadError, MAX_FILE_BYTES, load};
use super::{HEAD, assert_refused, messages};

#[test]
fn syntax_errors_name_the_place() {
    let cases = [
        ("", "lb.yaml:1:1: the file is empty; it needs apiVersion, kind and hashSeed"),
        ("kind: Config\nkind: Config\n", "lb.yaml:2:1: kind: the key stands here twice; keep one"),
        ("kind: [Config\nhashSeed: 1\n", "lb.yaml:2:9: illegal placement of ':' indicator"),
        ("kind: Config\n\thashSeed: 1\n", "lb.yaml:1:7: while scanning a plain scalar, found a tab"),
        ("kind: *seed\n", "lb.yaml:1:7: reference to unknown value"),
        ("kind: !secret Config\n", "lb.yaml:1:15: unsupported tag `!secret`"),
        (
            "- kind\n",
            "lb.yaml:1:1: a list is not a mapping; its fields are apiVersion, kind, hashSeed, edge, node, transition, \
             maps, pinPath, metrics, services",
        ),
        (
            "kind: Config\n---\nkind: Config\n",
            "lb.yaml:3:1: a second document (---) begins here; a configuration is one",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(messages(text), [message], "{text}");
    }
}

#[test]
fn unknown_fields_are_refused_with_their_path() {
    assert_refused(&[
        (
            "edg: {}\n",
            "lb.yaml:4:1: edg: unknown field; the fields here are apiVersion, kind, hashSeed, edge, node, transition, \
             maps, pinPath, metrics, services",
        ),
        (
            "edge: {interfaces: [eth0], tunnelsource: {}}\n",
            "lb.yaml:4:28: edge.tunnelsource: unknown field; the fields here are interfaces, tunnelSource",
        ),
        (
            "maps: {\"two words\": 1}\n",
            "lb.yaml:4:8: maps[\"two words\"]: unknown field; the fields here are services, backends, slots, flows",
        ),
    ]);
}

#[test]
fn the_head_is_required_and_exact() {
    assert_eq!(
        messages("edge: {}\n"),
        [
            "lb.yaml:1:1: apiVersion: is missing: write apiVersion: beeline.dev/v1",
            "lb.yaml:1:1: kind: is missing: write kind: Config",
            "lb.yaml:1:1: hashSeed: is missing: a number, the same on every edge and node and known to nobody else",
        ]
    );
    assert_eq!(
        messages("apiVersion: beeline.dev/v2\nkind: 1\nhashSeed: 1\n"),
        [
            "lb.yaml:1:13: apiVersion: \"beeline.dev/v2\" is not beeline.dev/v1, the only one that this release reads",
            "lb.yaml:2:7: kind: 1 is not Config, the only one that this release reads",
        ]
    );
}

#[test]
fn the_seed_is_a_whole_number_of_64_bits() {
    let range = "is not a whole number from 0 to 18446744073709551615";
    for (seed, message) in [
        ("-1", format!("-1 {range}")),
        ("1.5", format!("1.5 {range}")),
        ("18446744073709551616", format!("18446744073709551616 {range}")),
        ("secret", format!("\"secret\" {range}")),
        ("\"42\"", format!("\"42\" {range}; write it without quotes")),
        ("", format!("an empty value {range}")),
    ] {
        let text = format!("apiVersion: beeline.dev/v1\nkind: Config\nhashSeed: {seed}\n");
        let [line] = &messages(&text)[..] else { panic!("one message for {seed}") };
        assert!(line.ends_with(&format!("hashSeed: {message}")), "{line}");
    }
}

#[test]
fn interfaces_are_names_that_the_kernel_takes() {
    assert_refused(&[
        ("edge: {interfaces: []}", "lb.yaml:4:20: edge.interfaces: is empty; name the interfaces, such as [eth0]"),
        ("edge: {interfaces: eth0}", "lb.yaml:4:20: edge.interfaces: \"eth0\" is not a list; write it as [...]"),
        ("edge: {interfaces: [a, b, a]}", "lb.yaml:4:27: edge.interfaces[2]: \"a\" stands here twice; keep one"),
        ("edge: {interfaces: [0]}", "lb.yaml:4:21: edge.interfaces[0]: 0 is not text; write it in quotes: \"0\""),
        (
            "edge: {interfaces: [sixteen_bytes_ab]}",
            "lb.yaml:4:21: edge.interfaces[0]: \"sixteen_bytes_ab\" is not an interface's name: 1 to 15 bytes without \
             space, slash or colon",
        ),
        (
            "edge: {interfaces: [eth/0]}",
            "lb.yaml:4:21: edge.interfaces[0]: \"eth/0\" is not an interface's name: 1 to 15 bytes without space, \
             slash or colon",
        ),
        (
            "edge:\nnode:\n  trustedSources: [10.0.0.1]\n",
            "lb.yaml:4:1: edge: is empty; leave it out, or give it fields",
        ),
    ]);
}

#[test]
fn tunnel_sources_are_prefixes_of_their_family() {
    assert_refused(&[
        (
            "edge: {tunnelSource: {ipv4: \"fd00::/64\"}}",
            "lb.yaml:4:29: edge.tunnelSource.ipv4: \"fd00::/64\" is of the wrong family: write an IPv6 prefix under ipv6",
        ),
        (
            "edge: {tunnelSource: {ipv6: 10.0.0.0/8}}",
            "lb.yaml:4:29: edge.tunnelSource.ipv6: \"10.0.0.0/8\" is of the wrong family: write an IPv4 prefix under ipv4",
        ),
        (
            "edge: {tunnelSource: {ipv4: 10.200.1.0/16}}",
            "lb.yaml:4:29: edge.tunnelSource.ipv4: \"10.200.1.0/16\" has bits set after its first 16; write it as \
             10.200.0.0/16",
        ),
        (
            "edge: {tunnelSource: {ipv4: 224.0.0.0/8}}",
            "lb.yaml:4:29: edge.tunnelSource.ipv4: \"224.0.0.0/8\" begins with a multicast address; packets need a \
             source that answers can be routed to",
        ),
    ]);
}

#[test]
fn prefixes_are_exact() {
    assert_refused(&[
        (
            "node: {trustedSources: [10.0.0.0/33]}",
            "lb.yaml:4:25: node.trustedSources[0]: \"10.0.0.0/33\" is not a prefix: its length must be a number from 0 to 32",
        ),
        (
            "node: {trustedSources: [10.0.0.0/+8]}",
            "lb.yaml:4:25: node.trustedSources[0]: \"10.0.0.0/+8\" is not a prefix: its length must be a number from 0 to 32",
        ),
        (
            "node: {trustedSources: [edges]}",
            "lb.yaml:4:25: node.trustedSources[0]: \"edges\" is not a prefix; write it as 10.0.0.0/16 or fd00::/64",
        ),
        (
            "node: {trustedSources: [\"fd00::1/64\"]}",
            "lb.yaml:4:25: node.trustedSources[0]: \"fd00::1/64\" has bits set after its first 64; write it as fd00::/64",
        ),
        (
            "node: {trustedSources: [\"::ffff:10.0.0.0/104\"]}",
            "lb.yaml:4:25: node.trustedSources[0]: \"::ffff:10.0.0.0/104\" is an IPv4-mapped IPv6 prefix; write it as \
             10.0.0.0/8",
        ),
    ]);
}

#[test]
fn a_node_trusts_somebody() {
    assert_refused(&[
        (
            "node: {interfaces: [eth0]}",
            "lb.yaml:4:7: node.trustedSources: is missing: the outer sources of the edges; all others are dropped",
        ),
        (
            "node: {trustedSources: []}",
            "lb.yaml:4:24: node.trustedSources: is empty: every tunnel packet would be dropped; name the edges' outer \
             sources",
        ),
        (
            "node: {trustedSources: [10.0.0.1], directPodAccess: yes}",
            "lb.yaml:4:53: node.directPodAccess: \"yes\" is neither true nor false",
        ),
        (
            "node: {trustedSources: [10.0.0.1], mssClamp: 100}",
            "lb.yaml:4:46: node.mssClamp: \"100\" is not auto, off or a number of bytes from 536 to 65495",
        ),
    ]);
}

#[test]
fn times_sizes_and_places() {
    assert_refused(&[
        (
            "transition: {max: 24}",
            "lb.yaml:4:19: transition.max: \"24\" is not a time; write it as 24h, 90m, 1h30m or 30s",
        ),
        (
            "transition: {max: 30m1h}",
            "lb.yaml:4:19: transition.max: \"30m1h\" is not a time; write it as 24h, 90m, 1h30m or 30s",
        ),
        ("transition: {max: 31d}", "lb.yaml:4:19: transition.max: \"31d\" is not a time from 1s to 30d"),
        (
            "transition: {max: 99999999999999999999d}",
            "lb.yaml:4:19: transition.max: \"99999999999999999999d\" is not a time; write it as 24h, 90m, 1h30m or 30s",
        ),
        ("maps: {services: 0}", "lb.yaml:4:18: maps.services: 0 is not a whole number from 1 to 1000000"),
        ("maps: {slots: 100}", "lb.yaml:4:15: maps.slots: 100 is not a multiple of 64; the nearest are 64 and 128"),
        (
            "pinPath: run/beeline",
            "lb.yaml:4:10: pinPath: \"run/beeline\" is not an absolute path; write it as /sys/fs/bpf/beeline",
        ),
        (
            "pinPath: /sys/fs/bpf",
            "lb.yaml:4:10: pinPath: \"/sys/fs/bpf\" is not under a folder named beeline*; write it as \
             /sys/fs/bpf/beeline, or another name that begins so",
        ),
        (
            "pinPath: /sys/fs/bpf/beeline/../other",
            "lb.yaml:4:10: pinPath: \"/sys/fs/bpf/beeline/../other\" has .. in it; write the path without",
        ),
        (
            "metrics: {listen: 9469}",
            "lb.yaml:4:19: metrics.listen: \"9469\" is not an address with a port; write it as \"127.0.0.1:9469\" or \
             \"[::1]:9469\"",
        ),
    ]);
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_the_file() {
    let text = format!(
        "{HEAD}maps: {{slots: 65}}\nservices:\n- {{name: a, address: 10.0.0, ports: [{{port: x}}], backends: [{{}}]}}\n\
         - {{name: a, address: 198.51.100.1, slots: 3, ports: [{{port: 1}}], backends: []}}\n"
    );
    let paths: Vec<_> = messages(&text).iter().map(|line| line.split(": ").nth(1).map(str::to_owned)).collect();
    let expected = [
        "maps.slots",
        "services[0].address",
        "services[0].ports[0].port",
        "services[0].backends[0].address",
        "services[1].name",
        "services[1].slots",
    ];
    assert_eq!(paths, expected.map(|path| Some(path.to_owned())));
}

#[test]
fn a_long_value_is_cut() {
    let [line] = &messages(&format!("{HEAD}transition: {{max: {}}}", "ä".repeat(1000)))[..] else {
        panic!("one message")
    };
    assert!(line.contains(&format!("\"{}\"… is not a time", "ä".repeat(80))), "{line}");
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lb.yaml");
    let name = path.display().to_string();

    let error = load(&path).expect_err("no such file");
    assert_eq!(error.to_string(), format!("{name}: cannot be read: No such file or directory (os error 2)"));

    std::fs::write(&path, b"kind: \xff").unwrap();
    let error = load(&path).expect_err("not text");
    assert_eq!(error.to_string(), format!("{name}: is not UTF-8 text: byte 6 is wrong; save it as UTF-8"));

    std::fs::write(&path, "kind: Config\nkind: Config\n").unwrap();
    let error = load(&path).expect_err("invalid");
    assert_eq!(error.to_string(), format!("{name}:2:1: kind: the key stands here twice; keep one"));

    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"# large\n").unwrap();
    file.set_len(MAX_FILE_BYTES + 1).unwrap();
    assert!(matches!(load(&path), Err(LoadError::TooLarge { .. })));
}
