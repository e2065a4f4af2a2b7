//! What the edge answers itself, as the VIP: echo replies, and "too long" (RFC 1191, RFC 8201).

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::Family;
use crate::checksum::{finish, fold, halves, replace, sum};
use crate::encap::HOP_LIMIT;
use crate::packet::icmp::{self, FRAG_NEEDED, ICMP, ICMPV6, PACKET_TOO_BIG};
use crate::packet::{Header, Packet, QUOTE, ethernet, ipv4, ipv6};
use crate::verdict::Reason;

/// Turn an echo request to a VIP into its reply. Everything but addresses, hop limit and type stays.
#[inline(always)]
pub fn echo<P: Packet>(packet: &mut P, l3: u32, l4: u32, family: Family) -> Reason {
    let Some(macs) = packet.load::<12>(0) else { return Reason::MalformedIcmp };
    let Some([message_type, code, c0, c1]) = packet.load::<4>(l4) else { return Reason::MalformedIcmp };
    let reply = icmp::echo_reply(family);
    let before = u16::from_ne_bytes([message_type, code]);
    let after = u16::from_ne_bytes([reply, code]);
    // A message of nothing but zeros sums to zero, which an incremental update takes for minus zero (RFC 1624 §3).
    let check = match replace(u16::from_ne_bytes([c0, c1]), before, after) {
        0 => 0xffff,
        check => check,
    };
    let [c0, c1] = check.to_ne_bytes();
    let written = match family {
        Family::V4 => echo_v4(packet, l3),
        Family::V6 => echo_v6(packet, l3),
    };
    if written && packet.store(l4, &[reply, code, c0, c1]) && packet.store(0, &ethernet::swapped(macs)) {
        Reason::EchoReply
    } else {
        Reason::InconsistentMaps
    }
}

#[inline(always)]
fn echo_v4<P: Packet>(packet: &mut P, l3: u32) -> bool {
    let Some(mut header) = Ipv4Hdr::read(packet, l3) else { return false };
    // The sum does not change when source and destination change places.
    let before = u16::from_ne_bytes([header.ttl, header.proto]);
    let after = u16::from_ne_bytes([HOP_LIMIT, header.proto]);
    header.check = replace(u16::from_ne_bytes(header.check), before, after).to_ne_bytes();
    header.ttl = HOP_LIMIT;
    core::mem::swap(&mut header.src_addr, &mut header.dst_addr);
    packet.store(l3, &ipv4::to_bytes(&header))
}

#[inline(always)]
fn echo_v6<P: Packet>(packet: &mut P, l3: u32) -> bool {
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return false };
    // The pseudo-header's sum does not change either.
    packet.store(l3 + 6, &[header.next_hdr, HOP_LIMIT])
        && packet.store(l3 + 8, &header.dst_addr)
        && packet.store(l3 + 24, &header.src_addr)
}

/// Answer an IPv4 packet that is too long with frag-needed; `mtu` is the longest that would fit. `reason` is what the
/// packet would have been counted as.
#[inline(never)]
pub fn frag_needed<P: Packet>(packet: &mut P, l3: u32, mtu: u32, reason: Reason) -> Reason {
    if reason == Reason::IcmpErrorForwarded {
        return Reason::IcmpErrorTooLong;
    }
    let Some(header) = Ipv4Hdr::read(packet, l3) else { return Reason::InconsistentMaps };
    // No error about a later fragment (RFC 1122 §3.2.2).
    if ipv4::fragment_offset(&header) != 0 {
        return Reason::FragmentTooLong;
    }
    let [m0, m1] = (mtu as u16).to_be_bytes();
    let [t, code] = FRAG_NEEDED;
    let mut message = [t, code, 0, 0, 0, 0, m0, m1];
    let Some(quoted) = packet.quote_sum(l3) else { return Reason::InconsistentMaps };
    let check = finish(u32::from(fold(quoted)) + sum(&message)).to_ne_bytes();
    message[2] = check[0];
    message[3] = check[1];
    let length = (ipv4::LEN + icmp::LEN) as u16 + QUOTE as u16;
    let answer = ipv4::answer(header.dst_addr, header.src_addr, ICMP, length);
    let without_df = u16::from_be_bytes(header.frags) & ipv4::DF == 0;
    let sent = cut_to_quote::<P, { (ipv4::LEN + icmp::LEN) as usize }>(packet, l3, Family::V4)
        && packet.store(l3, &ipv4::to_bytes(&answer))
        && packet.store(l3 + ipv4::LEN, &message);
    match (sent, without_df) {
        (false, _) => Reason::NoHeadroom,
        (true, true) => Reason::FragNeededWithoutDf,
        (true, false) => Reason::FragNeeded,
    }
}

/// Answer an IPv6 packet that is too long with packet-too-big; as [`frag_needed`].
#[inline(never)]
pub fn packet_too_big<P: Packet>(packet: &mut P, l3: u32, mtu: u32, reason: Reason) -> Reason {
    if reason == Reason::IcmpErrorForwarded {
        return Reason::IcmpErrorTooLong;
    }
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::InconsistentMaps };
    let [m0, m1, m2, m3] = mtu.to_be_bytes();
    let [t, code] = PACKET_TOO_BIG;
    let mut message = [t, code, 0, 0, m0, m1, m2, m3];
    let Some(quoted) = packet.quote_sum(l3) else { return Reason::InconsistentMaps };
    let length = icmp::LEN as u16 + QUOTE as u16;
    // The pseudo-header of RFC 8200 §8.1: addresses, length, next header.
    let pseudo = sum(&header.src_addr) + sum(&header.dst_addr) + u32::from(length.to_be());
    let pseudo = pseudo + u32::from(u16::from_ne_bytes([0, ICMPV6]));
    let check = finish(u32::from(fold(quoted)) + sum(&message) + halves(pseudo)).to_ne_bytes();
    message[2] = check[0];
    message[3] = check[1];
    let first = ipv6::first_bytes(0, 0, length, ICMPV6, HOP_LIMIT);
    let sent = cut_to_quote::<P, { (ipv6::LEN + icmp::LEN) as usize }>(packet, l3, Family::V6)
        && packet.store(l3, &first)
        && packet.store(l3 + 8, &header.dst_addr)
        && packet.store(l3 + 24, &header.src_addr)
        && packet.store(l3 + ipv6::LEN, &message);
    if sent { Reason::PacketTooBig } else { Reason::NoHeadroom }
}

/// Cut the frame behind the quote and make room for `N` bytes of headers before it, the link header turned round.
#[inline(always)]
fn cut_to_quote<P: Packet, const N: usize>(packet: &mut P, l3: u32, family: Family) -> bool {
    let Some(excess) = packet.excess(l3 + QUOTE as u32) else { return false };
    let (Some(macs), Some(tags)) = (packet.load::<12>(0), ethernet::tags(packet, l3)) else { return false };
    (excess == 0 || packet.trim(excess))
        && packet.grow::<N>()
        && ethernet::write(packet, l3, &ethernet::swapped(macs), &tags, family)
}
