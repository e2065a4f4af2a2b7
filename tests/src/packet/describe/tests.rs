use super::super::build::{Link, build};
use super::*;

fn frame(text: &str) -> Frame {
    build(&serde_saphyr::from_str::<Vec<_>>(text).unwrap(), Link::Incoming).unwrap()
}

#[test]
fn layers_are_shown_in_order() {
    let text = describe(
        &frame("[vlan: {id: 10}, tunnel4: {}, ipv4: {ecn: ce}, tcp: {flags: SA}, payload: 3, pad: 120]").bytes,
    );
    let starts: Vec<_> = text.lines().map(|line| line.trim_start().split(' ').next().unwrap()).collect();
    assert_eq!(starts, ["ethernet:", "vlan:", "ipv4:", "ipv4:", "tcp:", "payload:", "after"], "{text}");
    assert!(text.contains("203.0.113.7 > 198.51.100.10") && text.contains("ecn ce") && text.contains("flags SA"));
    assert!(!text.contains("WRONG"), "{text}");
}

#[test]
fn wrong_checksums_are_shown() {
    for packet in [
        "[ipv4: {checksum: 1}, tcp: {}]",
        "[ipv4: {}, tcp: {checksum: 1}]",
        "[ipv6: {}, hopByHop: {}, udp: {checksum: 1}]",
        "[ipv4: {}, icmp: {type: 8, checksum: 1}]",
        "[ipv6: {}, icmpv6: {type: 128, checksum: 1}]",
    ] {
        assert_eq!(describe(&frame(packet).bytes).matches("WRONG").count(), 1, "{packet}");
    }
    assert!(describe(&frame("[ipv4: {}, udp: {checksum: 0}]").bytes).contains("checksum none"));
}

#[test]
fn quotes_are_indented_below_their_message() {
    let text = describe(
        &frame("[ipv4: {}, icmp: {type: 3, code: 4, mtu: 1400, quoteBytes: 28, quote: [ipv4: {}, tcp: {}]}]").bytes,
    );
    assert!(text.contains("\n  quotes 28 bytes:\n    ipv4: "), "{text}");
    assert!(!text.contains("WRONG"), "{text}");
}

/// Whatever the bytes: every prefix of frames of all kinds, and each with one byte changed.
#[test]
fn nothing_makes_it_panic() {
    for packet in [
        "[vlan: {}, vlan: {}, ipv4: {options: '01'}, tcp: {options: '01'}, payload: 4]",
        "[ipv6: {}, hopByHop: {}, routing: {}, fragment: {}, auth: {}, destinationOptions: {}, udp: {}, payload: 4]",
        "[ipv4: {}, icmp: {type: 3, quote: [ipv4: {}, udp: {}]}]",
        "[ipv6: {}, icmpv6: {type: 1, quote: [ipv6: {}, tcp: {}]}]",
        "[tunnel6: {}, ipv4: {}, udp: {}]",
        "[arp: {}]",
    ] {
        let bytes = frame(packet).bytes;
        for length in 0..=bytes.len() {
            for at in 0..length {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut changed = bytes[..length].to_vec();
                    changed[at] = value;
                    assert!(!describe(&changed).is_empty());
                }
            }
        }
    }
}

#[test]
fn a_difference_names_the_first_byte_and_shows_both() {
    let wanted = frame("[ipv4: {}, tcp: {}]");
    assert_eq!(difference(&wanted, &wanted.bytes), None);
    let got = frame("[ipv4: {ttl: 56}, tcp: {}]");
    let text = difference(&wanted, &got.bytes).unwrap();
    assert!(text.starts_with("2 bytes differ, the first at 22 (wanted 54 bytes, got 54)"), "{text}");
    assert!(text.contains("ttl 57") && text.contains("ttl 56") && text.contains("[38]"), "{text}");
    let text = difference(&wanted, &wanted.bytes[..50]).unwrap();
    assert!(text.starts_with("4 bytes differ, the first at 50 (wanted 54 bytes, got 50)"), "{text}");
}
