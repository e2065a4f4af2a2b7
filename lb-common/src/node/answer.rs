//! What a node answers for a service without a pod here, as the VIP: a reset (RFC 9293 §3.10.7.1) or "port unreachable"
//! (RFC 792, RFC 4443 §3.1). Neither needs any state.
//!
//! Never to a reset, to an ICMP error, to a later fragment (RFC 1122 §3.2.2), or to a source that is not one host's; those
//! sources were dropped before. Not before the grace is over, and rationed.

use super::NO_POD_GRACE_NS;
use super::visit::{ACK, FIN, RST, SYN, Visit};
use crate::address::Family;
use crate::checksum::{finish, fold_words, halves, sum};
use crate::encap::HOP_LIMIT;
use crate::maps::{Maps, PodWord};
use crate::packet::icmp::{self, ICMP, ICMPV6};
use crate::packet::transport::{TCP, UDP};
use crate::packet::{Packet, ethernet, ipv4 as v4, ipv6 as v6};
use crate::verdict::Reason;

/// Length of a TCP header without options.
const TCP_LEN: u32 = 20;
/// How much of the transport header a quote of ours has: all of UDP's (RFC 792).
const QUOTED: u32 = 8;

/// Longest packet that an ICMPv6 error of at most 1,280 bytes quotes whole.
const MAX_QUOTE: u64 = 1280 - (v6::LEN + icmp::LEN) as u64;

/// Answer, or say why not.
#[inline(always)]
pub(super) fn answer<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &Visit) -> Reason {
    let waited = maps.now().saturating_sub(PodWord(visit.word).since());
    if !P::CAN_ANSWER || waited < NO_POD_GRACE_NS || visit.quote != 0 || visit.l4 == 0 {
        return Reason::NoPod;
    }
    let is_tcp = visit.protocol == u64::from(TCP);
    let is_udp = visit.protocol == u64::from(UDP);
    // A first fragment does not show how long its segment is, nor has it all of what is quoted.
    if visit.is_fragment != 0 || !(is_tcp || is_udp) || (is_tcp && visit.tcp_flags & RST != 0) {
        return Reason::NoPod;
    }
    if is_udp && visit.l4() != visit.inner() + visit.family().header_len() {
        return Reason::NoPod;
    }
    if !maps.may_answer() {
        return Reason::AnswerLimited;
    }
    if is_tcp { reset(packet, visit) } else { unreachable(packet, visit) }
}

/// A reset in the place of the packet.
#[inline(never)]
fn reset<P: Packet>(packet: &mut P, visit: &Visit) -> Reason {
    let family = visit.family();
    let (l3, l4) = (visit.l3 as u32 & 0x1f, visit.l4());
    let Some(segment) = packet.load::<{ TCP_LEN as usize }>(l4) else { return Reason::NoPod };
    let header = tcp_reset(visit, &segment, l4);
    let Some(length) = l4.checked_sub(l3 + family.header_len()) else { return Reason::NoPod };
    let Some(excess) = packet.excess(l4 + TCP_LEN) else { return Reason::NoPod };
    let cut = (excess == 0 || packet.trim(excess))
        && (length == 0 || packet.strip(l3, length, family))
        && turn_round(packet, l3, visit, TCP, TCP_LEN)
        && packet.store(l3 + family.header_len(), &header);
    if cut { Reason::ResetSent } else { Reason::InconsistentMaps }
}

/// The header of a reset to a segment: with its acknowledgment as sequence number if it has one, and else with an
/// acknowledgment of all of it.
#[inline(always)]
fn tcp_reset(visit: &Visit, segment: &[u8; TCP_LEN as usize], l4: u32) -> [u8; TCP_LEN as usize] {
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, ..] = *segment;
    let data = (visit.inner() + visit.length as u32).saturating_sub(l4 + u32::from(offset >> 4) * 4);
    let octets = data + u32::from(visit.tcp_flags & SYN != 0) + u32::from(visit.tcp_flags & FIN != 0);
    let (sequence, acknowledgment, flags) = if visit.tcp_flags & ACK != 0 {
        ([a0, a1, a2, a3], [0; 4], RST)
    } else {
        ([0; 4], u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(octets).to_be_bytes(), RST | ACK)
    };
    let [q0, q1, q2, q3] = sequence;
    let [a0, a1, a2, a3] = acknowledgment;
    let mut header = [d0, d1, s0, s1, q0, q1, q2, q3, a0, a1, a2, a3, 0x50, flags as u8, 0, 0, 0, 0, 0, 0];
    let check = finish(halves(pseudo(visit, TCP, TCP_LEN)) + sum(&header)).to_ne_bytes();
    header[16] = check[0];
    header[17] = check[1];
    header
}

/// "Port unreachable" with the packet's headers in it.
#[inline(never)]
fn unreachable<P: Packet>(packet: &mut P, visit: &Visit) -> Reason {
    let (l3, strip) = (visit.l3 as u32 & 0x1f, visit.strip as u32 & 0xff);
    let family = visit.family();
    if strip != 0 && !packet.strip(l3, strip, family) {
        return Reason::InconsistentMaps;
    }
    // IPv6 wants as much as fits (RFC 4443 §2.4), IPv4 is content with the ports (RFC 792).
    let whole = family == Family::V6 && visit.length <= MAX_QUOTE;
    let quoted = if whole { visit.length as u32 } else { family.header_len() + QUOTED };
    let Some(excess) = packet.excess(l3 + quoted) else { return Reason::NoPod };
    if excess != 0 && !packet.trim(excess) {
        return Reason::NoPod;
    }
    let sent = match family {
        Family::V4 => {
            const LEN: u32 = v4::LEN + QUOTED;
            let Some(quoted) = sum_of::<P, { LEN / 4 }>(packet, l3) else { return Reason::NoPod };
            let mut message = [3, 3, 0, 0, 0, 0, 0, 0];
            let [c0, c1] = finish(sum(&message) + quoted).to_ne_bytes();
            message[2] = c0;
            message[3] = c1;
            make_room::<P, { (v4::LEN + icmp::LEN) as usize }>(packet, l3, family)
                && turn_round(packet, l3, visit, ICMP, icmp::LEN + LEN)
                && packet.store(l3 + v4::LEN, &message)
        }
        Family::V6 => {
            let length = if whole { visit.length as u32 } else { family.header_len() + QUOTED };
            let quoted = if whole {
                sum_of_ipv6_udp(packet, visit, l3)
            } else {
                sum_of::<P, { (v6::LEN + QUOTED) / 4 }>(packet, l3)
            };
            let Some(quoted) = quoted else { return Reason::NoPod };
            let mut message = [1, 4, 0, 0, 0, 0, 0, 0];
            let pseudo = halves(pseudo(visit, ICMPV6, icmp::LEN + length));
            let [c0, c1] = finish(pseudo + sum(&message) + quoted).to_ne_bytes();
            message[2] = c0;
            message[3] = c1;
            make_room::<P, { (v6::LEN + icmp::LEN) as usize }>(packet, l3, family)
                && turn_round(packet, l3, visit, ICMPV6, icmp::LEN + length)
                && packet.store(l3 + v6::LEN, &message)
        }
    };
    if sent { Reason::UnreachableSent } else { Reason::NoHeadroom }
}

/// The sum of so many words of 32 bits, folded.
#[inline(always)]
fn sum_of<P: Packet, const WORDS: u32>(packet: &P, at: u32) -> Option<u32> {
    let mut total = 0;
    for word in 0..WORDS {
        total += u64::from(u32::from_ne_bytes(packet.load::<4>(at + 4 * word)?));
    }
    Some(u32::from(fold_words(total)))
}

/// The sum of a whole IPv6 packet with UDP inside, whose own checksum says what the datagram sums to: to zero, with its
/// pseudo-header. The answer to a damaged datagram is as damaged.
#[inline(always)]
fn sum_of_ipv6_udp<P: Packet>(packet: &P, visit: &Visit, l3: u32) -> Option<u32> {
    let header = sum_of::<P, { v6::LEN / 4 }>(packet, l3)?;
    let datagram = finish(halves(pseudo(visit, UDP, visit.length as u32 - v6::LEN)));
    Some(header + u32::from(datagram))
}

/// Room for `N` bytes of headers between the link header and the packet.
#[inline(always)]
fn make_room<P: Packet, const N: usize>(packet: &mut P, l3: u32, family: Family) -> bool {
    let (Some(macs), Some(tags)) = (packet.load::<12>(0), ethernet::tags(packet, l3)) else { return false };
    packet.grow::<N>() && ethernet::write(packet, l3, &macs, &tags, family)
}

/// A header from the VIP to the client, with the link's addresses exchanged. `length` is that of what follows it.
#[inline(always)]
fn turn_round<P: Packet>(packet: &mut P, l3: u32, visit: &Visit, protocol: u8, length: u32) -> bool {
    let Some(macs) = packet.load::<12>(0) else { return false };
    if !packet.store(0, &ethernet::swapped(macs)) {
        return false;
    }
    match visit.family() {
        Family::V4 => {
            let header = v4::answer(visit.vip.v4(), visit.client.v4(), protocol, (v4::LEN + length) as u16);
            packet.store(l3, &v4::to_bytes(&header))
        }
        Family::V6 => {
            packet.store(l3, &v6::first_bytes(0, 0, length as u16, protocol, HOP_LIMIT))
                && packet.store(l3 + 8, &visit.vip.v6())
                && packet.store(l3 + 24, &visit.client.v6())
        }
    }
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1), not folded to the end.
#[inline(always)]
fn pseudo(visit: &Visit, protocol: u8, length: u32) -> u32 {
    let mut total = u32::from((length as u16).to_be()) + u32::from(u16::from_ne_bytes([0, protocol]));
    for word in visit.vip.words().into_iter().chain(visit.client.words()) {
        total += halves(word);
    }
    total
}
