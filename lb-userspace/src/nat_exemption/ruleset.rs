//! The text of the table. Pure functions.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::net::IpAddr;
use std::path::Path;

use crate::model::Prefix;
use crate::plan::{ReplyKey, ReplySpec};

/// A name for the table of the agent with these pins: `/sys/fs/bpf/beeline` gives `beeline-sys-fs-bpf-beeline`. No two
/// paths have the same: what nftables does not take in a name, and what separates here, is written as `_` and its code.
pub(super) fn table_name(pin_path: &Path) -> String {
    let mut name = "beeline".to_owned();
    for part in pin_path.components().skip(1) {
        name.push('-');
        for byte in part.as_os_str().as_encoded_bytes() {
            let plain = byte.is_ascii_alphanumeric().then_some(char::from(*byte));
            name.push_str(&plain.map_or_else(|| format!("_{byte:02x}"), String::from));
        }
    }
    name
}

/// What makes the table, in place of one that is there, all at once or not at all. `None` where nothing needs it.
///
/// However many pods there are, a family has one rule: pods are elements of a map, which is hashed.
pub(super) fn rules(
    table: &str,
    replies: &BTreeMap<ReplyKey, ReplySpec>,
    internal: &BTreeMap<Prefix, bool>,
) -> Option<String> {
    let families = ["ip", "ip6"].map(|family| family_rules(family, replies, internal));
    let [sets, rules] = [0, 1].map(|part| -> String {
        families.iter().flatten().map(|family: &[String; 2]| family[part].as_str()).collect()
    });
    (!rules.is_empty()).then(|| {
        format!(
            "{}table inet {table} {{\n{sets}\tchain postrouting {{\n\
             \t\ttype nat hook postrouting priority srcnat - 10; policy accept;\n{rules}\t}}\n}}\n",
            removal(table)
        )
    })
}

/// What removes the table, whether or not it is there.
pub(super) fn removal(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// Sets and the rule of one family; `None` where it has no pod, or no destination that is not internal.
fn family_rules(
    family: &str,
    replies: &BTreeMap<ReplyKey, ReplySpec>,
    internal: &BTreeMap<Prefix, bool>,
) -> Option<[String; 2]> {
    let ours = |address: &IpAddr| address.is_ipv4() == (family == "ip");
    let element = |ReplyKey { pod, protocol, port }: &ReplyKey| format!("{pod} . {protocol} . {port} : {pod}");
    let replies = replies.keys().filter(|reply| ours(&reply.pod)).map(element);
    let replies = elements(replies)?;
    let internal = outermost(internal.keys().filter(|prefix| ours(&prefix.address)));
    if internal.iter().any(|prefix| prefix.length == 0) {
        return None;
    }
    let address = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
    let mut sets = format!(
        "\tmap {family}_replies {{\n\
         \t\ttype {address} . inet_proto . inet_service : {address}\n\t\telements = {{{replies}\n\t\t}}\n\t}}\n"
    );
    let mut outside = String::new();
    let prefix = |prefix: &Prefix| format!("{}/{}", prefix.address, prefix.length);
    if let Some(internal) = elements(internal.into_iter().map(prefix)) {
        // Writing to a string cannot fail.
        let _ = write!(
            sets,
            "\tset {family}_internal {{\n\
             \t\ttype {address}\n\t\tflags interval\n\t\telements = {{{internal}\n\t\t}}\n\t}}\n"
        );
        outside = format!("{family} daddr != @{family}_internal ");
    }
    let rule =
        format!("\t\t{outside}snat {family} to {family} saddr . meta l4proto . th sport map @{family}_replies\n");
    Some([sets, rule])
}

fn elements(elements: impl Iterator<Item = impl Display>) -> Option<String> {
    let lines: Vec<_> = elements.map(|element| format!("\n\t\t\t{element}")).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// The prefixes that no other one contains: nftables takes no intervals that overlap. They come in order, so that a
/// prefix comes right before those inside.
fn outermost<'a>(prefixes: impl Iterator<Item = &'a Prefix>) -> Vec<&'a Prefix> {
    let mut outer: Vec<&Prefix> = Vec::new();
    for prefix in prefixes {
        if !outer.last().is_some_and(|last| last.contains(&prefix.address)) {
            outer.push(prefix);
        }
    }
    outer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(pods: &[(&str, u8, u16)]) -> BTreeMap<ReplyKey, ReplySpec> {
        let reply = |(pod, protocol, port): &(&str, u8, u16)| {
            let pod: IpAddr = pod.parse().expect("an address");
            let vip = if pod.is_ipv4() { "198.51.100.10" } else { "2001:db8:10::10" };
            let vip = vip.parse().expect("an address");
            let spec = ReplySpec { vip, port: 80, recorded: false, direct: false };
            (ReplyKey { pod, protocol: *protocol, port: *port }, spec)
        };
        pods.iter().map(reply).collect()
    }

    fn internal(prefixes: &[(&str, u8)]) -> BTreeMap<Prefix, bool> {
        let prefix = |(address, length): &(&str, u8)| {
            (Prefix { address: address.parse().expect("an address"), length: *length }, false)
        };
        prefixes.iter().map(prefix).collect()
    }

    #[test]
    fn tables_are_named_after_the_pins() {
        let name = |path: &str| table_name(Path::new(path));
        assert_eq!(name("/sys/fs/bpf/beeline"), "beeline-sys-fs-bpf-beeline");
        assert_eq!(name("/sys/fs/bpf/beeline/"), "beeline-sys-fs-bpf-beeline");
        assert_eq!(name("/sys/fs/bpf/beeline-node1"), "beeline-sys-fs-bpf-beeline_2dnode1");
        assert_eq!(name("/a/b c;é_"), "beeline-a-b_20c_3b_c3_a9_5f");
        assert_ne!(name("/a/b-c"), name("/a-b/c"));
    }

    #[test]
    fn both_families_have_a_rule_over_their_pods() {
        let replies = replies(&[("10.244.1.11", 17, 9000), ("10.244.1.11", 6, 8080), ("fd44:1::b", 6, 8080)]);
        let internal = internal(&[("10.50.0.21", 32), ("10.244.0.0", 16), ("10.244.1.11", 32), ("fd44::", 16)]);
        let rules = rules("beeline-x", &replies, &internal).expect("rules");
        let wanted = "\
table inet beeline-x
delete table inet beeline-x
table inet beeline-x {
\tmap ip_replies {
\t\ttype ipv4_addr . inet_proto . inet_service : ipv4_addr
\t\telements = {
\t\t\t10.244.1.11 . 6 . 8080 : 10.244.1.11,
\t\t\t10.244.1.11 . 17 . 9000 : 10.244.1.11
\t\t}
\t}
\tset ip_internal {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = {
\t\t\t10.50.0.21/32,
\t\t\t10.244.0.0/16
\t\t}
\t}
\tmap ip6_replies {
\t\ttype ipv6_addr . inet_proto . inet_service : ipv6_addr
\t\telements = {
\t\t\tfd44:1::b . 6 . 8080 : fd44:1::b
\t\t}
\t}
\tset ip6_internal {
\t\ttype ipv6_addr
\t\tflags interval
\t\telements = {
\t\t\tfd44::/16
\t\t}
\t}
\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat - 10; policy accept;
\t\tip daddr != @ip_internal snat ip to ip saddr . meta l4proto . th sport map @ip_replies
\t\tip6 daddr != @ip6_internal snat ip6 to ip6 saddr . meta l4proto . th sport map @ip6_replies
\t}
}
";
        assert_eq!(rules, wanted);
    }

    #[test]
    fn a_family_without_pods_has_no_rule_and_one_without_internal_networks_no_condition() {
        let (replies, internal) = (replies(&[("fd44:1::b", 17, 9000)]), internal(&[("10.244.0.0", 16)]));
        let rules = rules("t", &replies, &internal).expect("rules");
        assert!(rules.contains("\t\tsnat ip6 to ip6 saddr . meta l4proto . th sport map @ip6_replies\n"), "{rules}");
        assert!(!rules.contains("ip_") && !rules.contains("internal"), "{rules}");
    }

    #[test]
    fn nothing_is_needed_without_pods_or_where_all_is_internal() {
        let inside = internal(&[("0.0.0.0", 0), ("10.244.0.0", 16)]);
        assert_eq!(rules("t", &replies(&[]), &internal(&[("10.244.0.0", 16)])), None);
        assert_eq!(rules("t", &replies(&[("10.244.1.11", 6, 80)]), &inside), None);
        let both = replies(&[("10.244.1.11", 6, 80), ("fd44:1::b", 6, 80)]);
        let rules = rules("t", &both, &inside).expect("rules of IPv6");
        assert!(!rules.contains("10.244") && rules.contains("snat ip6"), "{rules}");
    }

    #[test]
    fn prefixes_inside_others_are_left_out_and_neighbours_stay() {
        let all = internal(&[
            ("10.0.0.0", 8),
            ("10.0.0.0", 16),
            ("10.255.255.255", 32),
            ("11.0.0.0", 32),
            ("11.0.0.1", 32),
            ("fd00::", 8),
            ("fdff::1", 128),
        ]);
        let outer: Vec<_> = outermost(all.keys()).into_iter().map(|prefix| prefix.address.to_string()).collect();
        assert_eq!(outer, ["10.0.0.0", "11.0.0.0", "11.0.0.1", "fd00::"]);
    }
}
