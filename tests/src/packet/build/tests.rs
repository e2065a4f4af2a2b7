//! The builder against frames that another tool (scapy 2.8) made from the same description.

use super::*;
use crate::packet::layer::Hex;

fn layers(text: &str) -> Vec<Layer> {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn frame(text: &str) -> Frame {
    build(&layers(text), Link::Incoming).unwrap_or_else(|e| panic!("{text}: {e:#}"))
}

#[track_caller]
fn same(text: &str, hex: &str) {
    let (built, wanted) = (frame(text), hex.parse::<Hex>().unwrap());
    if let Some(difference) = crate::packet::describe::difference(&built, &wanted.0) {
        panic!("{text}\n{difference}");
    }
}

#[test]
fn a_syn_with_options_in_a_vlan() {
    same(
        "[vlan: {id: 10, pcp: 5}, ipv4: {options: '94040000'}, tcp: {flags: S, options: '020405b4 01 01 0402'}]",
        "02000000000e 02000000000a 8100 a00a 0800 46000034123440003906 3446 cb007107 c633640a 94040000
         9c400050 000003e8 00000000 7002faf0 8170 0000 020405b401010402",
    );
}

#[test]
fn two_vlan_tags() {
    same(
        "[vlan: {id: 100, type: 0x88a8}, vlan: {id: 20}, ipv4: {}, tcp: {}]",
        "02000000000e 02000000000a 88a8 0064 8100 0014 0800 45000028123440003906 c956 cb007107 c633640a
         9c400050 000003e8 000007d0 5010faf0 a655 0000",
    );
}

#[test]
fn ipv4_in_ipv4() {
    same(
        "[tunnel4: {dscp: 46, ecn: ect0}, ipv4: {dscp: 46, ecn: ect0}, udp: {}, payload: {text: hello}]",
        "02000000000e 02000000000a 0800 45ba0035000040004004 6dff c0000201 0a00000b
         45ba0021123440003911 c898 cb007107 c633640a 9c400035 000d b946 68656c6c6f",
    );
}

#[test]
fn ipv6_in_ipv6() {
    same(
        "[tunnel6: {ecn: ce, flowLabel: 0xabcde}, ipv6: {ecn: ce}, tcp: {flags: PA}, payload: 11]",
        "02000000000e 02000000000a 86dd 603abcde 0047 29 40 20010db8000000000000000000000001
         fd000000000000000000000000000011 60312345 001f 06 39 20010db8006000000000000000000007
         20010db8001000000000000000000010 9c400050 000003e8 000007d0 5018faf0 9276 0000 000102030405060708090a",
    );
}

#[test]
fn extension_headers() {
    same(
        "[ipv6: {}, hopByHop: {options: '010400000000'}, destinationOptions: {options: '010c', size: 16},
          fragment: {more: true, id: 0xdeadbeef}, udp: {}, payload: 16]",
        "02000000000e 02000000000a 86dd 60012345 0038 00 39 20010db8006000000000000000000007
         20010db8001000000000000000000010 3c00010400000000 2c01010c000000000000000000000000 11000001deadbeef
         9c400035 0018 cf0f 000102030405060708090a0b0c0d0e0f",
    );
}

#[test]
fn an_authentication_header() {
    same(
        "[ipv4: {}, auth: {spi: 7, seq: 1}, tcp: {checksum: 0}]",
        "02000000000e 02000000000a 0800 45000040123440003933 c911 cb007107 c633640a
         06040000 00000007 00000001 000000000000000000000000 9c400050 000003e8 000007d0 5010faf0 0000 0000",
    );
}

#[test]
fn a_frag_needed_that_quotes_eight_bytes_of_tcp() {
    same(
        "[ipv4: {src: 192.0.2.77}, icmp: {type: 3, code: 4, mtu: 1400, quoteBytes: 28,
          quote: [ipv4: {src: 198.51.100.10, dst: 203.0.113.7}, tcp: {src: 80, dst: 40000}, payload: 40]}]",
        "02000000000e 02000000000a 0800 45000038123440003901 4306 c000024d c633640a 0304 570b 00000578
         45000050123440003906 c92e c633640a cb007107 00509c40 000003e8",
    );
}

#[test]
fn a_packet_too_big() {
    same(
        "[ipv6: {src: '2001:db8:99::1'}, icmpv6: {type: 2, mtu: 1400,
          quote: [ipv6: {src: '2001:db8:10::10', dst: '2001:db8:60::7'}, tcp: {src: 80, dst: 40000}, payload: 40]}]",
        "02000000000e 02000000000a 86dd 60012345 006c 3a 39 20010db8009900000000000000000001
         20010db8001000000000000000000010 0200 123c 00000578 60012345003c0639 20010db8001000000000000000000010
         20010db8006000000000000000000007 00509c40 000003e8 000007d0 5010faf0 32e9 0000
         000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324252627",
    );
}

#[test]
fn echo_requests() {
    same(
        "[ipv4: {}, icmp: {type: 8, id: 0x77, seq: 3}, payload: 5]",
        "02000000000e 02000000000a 0800 45000021123440003901 c962 cb007107 c633640a 0800 f181 0077 0003 0001020304",
    );
    same(
        "[ipv6: {}, icmpv6: {type: 128, id: 0x77, seq: 3}, payload: 5]",
        "02000000000e 02000000000a 86dd 60012345 000d 3a 39 20010db8006000000000000000000007
         20010db8001000000000000000000010 8000 1d41 0077 0003 0001020304",
    );
}

#[test]
fn arp_for_the_vip() {
    same(
        "[arp: {}]",
        "02000000000e 02000000000a 0806 0001 0800 06 04 0001 02000000000a cb007107 000000000000 c633640a",
    );
}

#[test]
fn a_later_fragment() {
    same(
        "[ipv4: {offset: 1480, protocol: 17}, payload: 9]",
        "02000000000e 02000000000a 0800 4500001d123400b93911 089e cb007107 c633640a 000102030405060708",
    );
}

#[test]
fn fields_that_are_set_are_not_computed() {
    let frame = frame("[ipv4: {ihl: 4, totalLength: 2000, checksum: 0xdead}, tcp: {dataOffset: 3}, pad: 60]");
    assert_eq!(frame.bytes[14..26], [0x44, 0, 0x07, 0xd0, 0x12, 0x34, 0x40, 0, 57, 6, 0xde, 0xad]);
    assert_eq!(frame.bytes[34 + 12], 0x30);
    assert_eq!((frame.bytes.len(), frame.end), (60, 54));
    assert_eq!(frame.packet().len(), 40);
}

#[test]
fn a_frame_is_cut_before_it_is_filled() {
    let frame = frame("[ipv4: {}, tcp: {}, payload: 100, truncate: 40, pad: 60]");
    assert_eq!((frame.bytes.len(), frame.end, frame.network), (60, 40, 14));
    assert_eq!(frame.bytes[40..], [0; 20]);
}

/// What comes out is written with what came in.
#[test]
fn the_link_layer_of_what_comes_out_follows_what_came_in() {
    let received = frame("[vlan: {id: 10}, ipv4: {}, tcp: {}, pad: 64]");
    let out = layers("[tunnel4: {}, received: {}]");
    let next_hop = Link::NextHop { received: &received, source: Mac([1; 6]), destination: Mac([2; 6]) };
    let sent = build(&out, next_hop).unwrap();
    let mut wanted = [&[2u8; 6][..], &[1; 6], &received.bytes[12..18]].concat();
    wanted.extend([0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 4, 0x6e, 0xb2, 192, 0, 2, 1, 10, 0, 0, 11]);
    wanted.extend(&received.bytes[18..58]);
    assert_eq!(sent.bytes, wanted);

    let answer = build(&layers("[received: {}]"), Link::Swapped(&received)).unwrap();
    assert_eq!(answer.bytes[..6], received.bytes[6..12]);
    assert_eq!(answer.bytes[6..12], received.bytes[..6]);
    assert_eq!(answer.bytes[12..], received.bytes[12..58]);
}

#[test]
fn any_flow_label_matches_and_any_other_bit_does_not() {
    let frame = frame("[tunnel6: {}, ipv6: {}, tcp: {}]");
    for byte in 0..frame.bytes.len() {
        for bit in 0..8 {
            let mut other = frame.bytes.clone();
            other[byte] ^= 1 << bit;
            let in_label = matches!((byte, bit), (15, 0..4) | (16 | 17, _));
            assert_eq!(frame.matches(&other), in_label, "byte {byte} bit {bit}");
        }
    }
    assert!(!frame.matches(&frame.bytes[..frame.bytes.len() - 1]));
}

#[test]
fn what_cannot_be_written_says_why() {
    let error = |text: &str| format!("{:#}", build(&layers(text), Link::Incoming).unwrap_err());
    assert!(error("[ipv4: {}, payload: 3]").contains("ipv4: no layer follows that has a protocol number"));
    assert!(error("[payload: 3]").contains("ethertype"));
    assert!(error("[ipv4: {offset: 3}, tcp: {}]").contains("multiple of 8"));
    assert!(error("[ipv4: {}, tcp: {flags: X}]").contains("'X' is none of"));
    assert!(error("[ipv4: {}, received: {}]").contains("nothing came in"));
    assert!(error("[ipv4: {}, pad: 60, tcp: {}]").contains("let no layer follow"));
    assert!(error("[tcp: {}]").contains("IP header before it"));
}

#[test]
fn unknown_fields_are_refused() {
    for text in ["[ipv4: {tll: 3}]", "[tcp: {source: 3}]", "[gre: {}]", "[payload: {hax: '00'}]"] {
        assert!(serde_saphyr::from_str::<Vec<Layer>>(text).is_err(), "{text}");
    }
}

/// RFC 1071 §3's example.
#[test]
fn checksum_of_the_rfc() {
    assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    assert_eq!(checksum(&[&[0x00, 0x01], &[0xf2]]), !0xf201);
}

/// Put together again, the fragments are the whole packet with its checksum.
#[test]
fn pieces_are_those_of_the_whole() {
    let whole = frame("[ipv4: {id: 7, df: false}, udp: {}, payload: 100]");
    let first = frame("[ipv4: {id: 7}, piece: {of: [udp: {}, payload: 100], to: 64}]");
    let last = frame("[ipv4: {id: 7}, piece: {of: [udp: {}, payload: 100], from: 64}]");
    assert_eq!([&first.bytes[34..], &last.bytes[34..]].concat(), whole.bytes[34..]);
    assert_eq!((&first.bytes[20..22], &last.bytes[20..22]), (&[0x20, 0][..], &[0, 8][..]));
    assert_eq!((first.bytes[23], last.bytes[23]), (17, 17));
    let six = frame("[ipv6: {}, fragment: {id: 7}, piece: {of: [tcp: {}, payload: 100], from: 64}]");
    assert_eq!(six.bytes[54..62], [6, 0, 0, 64, 0, 0, 0, 7]);
    assert_eq!(six.bytes[62..], frame("[ipv6: {}, tcp: {}, payload: 100]").bytes[54 + 64..]);
}

/// RFC 1624: an incremental update keeps the error of the sum.
#[test]
fn an_error_is_added_to_the_right_checksum() {
    let (right, wrong) = (frame("[ipv4: {}, tcp: {}]"), frame("[ipv4: {}, tcp: {checksumError: 0xffff}]"));
    assert!(right.matches(&wrong.bytes), "0xffff is minus zero");
    let wrong = frame("[ipv4: {}, tcp: {checksumError: 1}]");
    let field = |frame: &Frame| u16::from_be_bytes([frame.bytes[50], frame.bytes[51]]);
    assert_eq!(field(&wrong), field(&right) + 1);
}
