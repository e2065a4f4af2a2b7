//! What an incremental update makes is what a checksum over the new bytes would be.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::packet::bytes::Bytes;
use crate::packet::icmp::ICMP;

/// The checksum of RFC 1071 over any bytes, in network order.
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An end of a packet, as bytes.
#[derive(Clone, Debug)]
struct Party {
    address: Vec<u8>,
    port: u16,
}

impl Party {
    fn words(&self) -> Address {
        match <[u8; 4]>::try_from(self.address.as_slice()) {
            Ok(four) => Address::from_v4(four),
            Err(_) => Address::from_v6(self.address.as_slice().try_into().unwrap()),
        }
    }
}

fn pseudo(source: &Party, destination: &Party, protocol: u8, length: usize) -> Vec<u8> {
    let length = (length as u32).to_be_bytes();
    [&source.address[..], &destination.address, &length, &[0, 0, 0, protocol]].concat()
}

fn is_v4(party: &Party) -> bool {
    party.address.len() == 4
}

/// A packet of these ends, whole and with good checksums.
fn ip(source: &Party, destination: &Party, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if is_v4(source) {
        let length = (20 + payload.len() as u16).to_be_bytes();
        let mut header = std::vec![0x45, 0, length[0], length[1], 1, 2, 0, 0, 64, protocol, 0, 0];
        header.extend([&source.address[..], &destination.address].concat());
        let check = checksum(&[&header]).to_be_bytes();
        header[10..12].copy_from_slice(&check);
        [&header[..], payload].concat()
    } else {
        let length = (payload.len() as u16).to_be_bytes();
        let header = [0x60, 0, 0, 0, length[0], length[1], protocol, 64];
        [&header[..], &source.address, &destination.address, payload].concat()
    }
}

fn l4(source: &Party, destination: &Party, protocol: u8, data: &[u8], no_checksum: bool) -> Vec<u8> {
    let ports = [source.port.to_be_bytes(), destination.port.to_be_bytes()].concat();
    let (mut bytes, at) = if protocol == TCP {
        ([&ports[..], &[1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 1, 1, 0, 0, 0, 0], data].concat(), 16)
    } else {
        let length = (8 + data.len() as u16).to_be_bytes();
        ([&ports[..], &length, &[0, 0], data].concat(), 6)
    };
    if !no_checksum {
        let mut check = checksum(&[&pseudo(source, destination, protocol, bytes.len()), &bytes]);
        if protocol == UDP && check == 0 {
            check = 0xffff;
        }
        bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }
    bytes
}

fn icmp(source: &Party, destination: &Party, quote: &[u8]) -> (u8, Vec<u8>) {
    let v4 = is_v4(source);
    let mut bytes = [&[if v4 { 3 } else { 1 }, 1, 0, 0, 0, 0, 0, 0], quote].concat();
    let protocol = if v4 { ICMP } else { ICMPV6 };
    let pseudo = if v4 { Vec::new() } else { pseudo(source, destination, protocol, bytes.len()) };
    let check = checksum(&[&pseudo, &bytes]).to_be_bytes();
    bytes[2..4].copy_from_slice(&check);
    (protocol, bytes)
}

const L3: u32 = 14;

fn framed(packet: Vec<u8>) -> Bytes {
    Bytes([&[0; L3 as usize][..], &packet].concat())
}

fn party(length: usize) -> impl Strategy<Value = Party> {
    (prop::collection::vec(1u8.., length), 1u16..).prop_map(|(address, port)| Party { address, port })
}

fn parties() -> impl Strategy<Value = [Party; 3]> {
    prop_oneof![Just(4usize), Just(16)].prop_flat_map(|length| [party(length), party(length), party(length)])
}

fn family(party: &Party) -> (Family, u32) {
    if is_v4(party) { (Family::V4, 20) } else { (Family::V6, 40) }
}

fn change(end: End, from: &Party, to: &Party) -> Change {
    Change { end, from: from.words(), to: to.words(), port_from: from.port, port_to: to.port }
}

proptest! {
    #[test]
    fn a_rewritten_packet_is_one_made_anew(
        [other, from, to] in parties(),
        tcp: bool,
        outbound: bool,
        no_checksum: bool,
        data in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let protocol = if tcp { TCP } else { UDP };
        let no_checksum = no_checksum && !tcp;
        let end = if outbound { End::Source } else { End::Destination };
        let make = |party: &Party| {
            let (source, destination) = if outbound { (party, &other) } else { (&other, party) };
            framed(ip(source, destination, protocol, &l4(source, destination, protocol, &data, no_checksum)))
        };
        let (family, header) = family(&from);
        let place = Place { family, l3: L3, l4: Some(L3 + header), protocol };
        let mut packet = make(&from);
        prop_assert!(rewrite(&mut packet, &place, &change(end, &from, &to)));
        prop_assert_eq!(packet, make(&to));
    }

    #[test]
    fn a_later_fragment_keeps_its_payload([other, from, to] in parties(), data in prop::collection::vec(any::<u8>(), 0..40)) {
        let (family, _) = family(&from);
        let place = Place { family, l3: L3, l4: None, protocol: UDP };
        let mut packet = framed(ip(&from, &other, UDP, &data));
        prop_assert!(rewrite(&mut packet, &place, &change(End::Source, &from, &to)));
        prop_assert_eq!(packet, framed(ip(&to, &other, UDP, &data)));
    }

    /// Outside and inside, in both directions; the quote is cut anywhere behind the ports.
    #[test]
    fn a_translated_error_is_one_made_anew(
        [client, from, to] in parties(),
        tcp: bool,
        outbound: bool,
        no_checksum: bool,
        cut in 8usize..60,
        padding in 0usize..6,
    ) {
        let protocol = if tcp { TCP } else { UDP };
        let no_checksum = no_checksum && !tcp;
        let (family, header) = family(&from);
        let data = [7; 30];
        // Half a checksum is nobody's to change.
        prop_assume!(!(tcp && cut == 17));
        // The checksum of a quoted packet whose header is cut before it is beyond the end: both are made without it.
        let make = |party: &Party| {
            let (source, destination) = if outbound { (&client, party) } else { (party, &client) };
            let mut quoted = ip(source, destination, protocol, &l4(source, destination, protocol, &data, no_checksum));
            quoted.truncate(header as usize + cut);
            let (source, destination) = if outbound { (party, &client) } else { (&client, party) };
            let (protocol, message) = icmp(source, destination, &quoted);
            let mut frame = framed(ip(source, destination, protocol, &message));
            frame.0.extend(std::iter::repeat_n(0, padding));
            frame
        };
        let mut packet = make(&from);
        let end = packet.0.len() as u32 - padding as u32;
        let message = L3 + header;
        let mut quote = Quote::default();
        prop_assert_eq!(read_quote(&packet, message + 8, family, &mut quote), Reason::Forwarded);
        let pod_of_quote = if outbound { quote.destination } else { quote.source };
        prop_assert_eq!(pod_of_quote, from.words());
        let (inside, outside) = if outbound { (End::Destination, End::Source) } else { (End::Source, End::Destination) };
        prop_assert!(rewrite_quote(&mut packet, family, message, end, &quote, &change(inside, &from, &to)));
        let protocol = if family == Family::V4 { ICMP } else { ICMPV6 };
        let place = Place { family, l3: L3, l4: Some(message), protocol };
        prop_assert!(rewrite(&mut packet, &place, &change(outside, &from, &to)));
        prop_assert_eq!(packet, make(&to));
    }
}

#[test]
fn a_quote_that_does_not_hold_together_is_refused() {
    let (client, pod) =
        (Party { address: std::vec![10, 0, 0, 1], port: 4 }, Party { address: std::vec![10, 0, 0, 2], port: 5 });
    let good = framed(ip(&client, &pod, TCP, &l4(&client, &pod, TCP, &[], false)));
    let read = |packet: &Bytes| read_quote(packet, L3, Family::V4, &mut Quote::default());
    assert_eq!(read(&good), Reason::Forwarded);
    for (at, value, reason) in [
        (0, 0x65, Reason::MalformedQuote),
        (0, 0x44, Reason::MalformedQuote),
        (7, 1, Reason::MalformedQuote),
        (9, 47, Reason::UnsupportedIcmp),
    ] {
        let mut bad = good.clone();
        bad.0[L3 as usize + at] = value;
        assert_eq!(read(&bad), reason, "byte {at}");
    }
    let mut cut = good;
    cut.0.truncate(L3 as usize + 27);
    assert_eq!(read(&cut), Reason::MalformedQuote);
}
