//! The edge's longer way: fragments, extension headers, and whatever is neither TCP nor UDP.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{check_ipv4, check_ipv6, steer};
use crate::address::{Address, Family};
use crate::encap::Inner;
use crate::flow::FlowKey;
use crate::maps::{FragmentKey, Maps};
use crate::packet::icmp::{ICMP, ICMPV6};
use crate::packet::ipv6::Chain;
use crate::packet::transport::{TCP, UDP};
use crate::packet::{Header, OFFSET_MASK, Packet, ipv4 as v4, ipv6 as v6};
use crate::piece::{self, Piece};
use crate::stage::{Trail, refuse};
use crate::verdict::{Action, Reason};

/// An IPv4 packet that has options, is a fragment, neither TCP nor UDP, or too long. Where a whole ICMP message begins is left in
/// [`Trail::message`].
#[inline(never)]
pub fn ipv4<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32) -> Reason {
    let Some(header) = Ipv4Hdr::read(packet, l3) else { return Reason::NotOurs };
    let destination = Address::from_v4(header.dst_addr);
    match ipv4_to_vip(packet, maps, trail, l3, &header) {
        // Whether it is a VIP at all is asked last, and only to refuse.
        reason if reason.action() == Action::Drop => refuse(maps, destination, Family::V4, reason),
        reason => reason,
    }
}

#[inline(always)]
fn ipv4_to_vip<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, header: &Ipv4Hdr) -> Reason {
    let (mut inner, header_len) = match check_ipv4(packet, l3, header) {
        Ok(checked) => checked,
        Err(reason) => return reason,
    };
    let trimmed = trim(packet, maps, &mut inner, Address::from_v4(header.dst_addr));
    if trimmed != Reason::Forwarded {
        return trimmed;
    }
    let is_fragment = v4::is_fragment(header);
    if header.proto == ICMP {
        if !is_fragment {
            trail.message = u64::from(l3 + header_len);
        }
        return Reason::UnsupportedIcmp;
    }
    if header.proto != TCP && header.proto != UDP {
        return Reason::UnsupportedProtocol;
    }
    let (source, destination) = (Address::from_v4(header.src_addr), Address::from_v4(header.dst_addr));
    let key = FragmentKey::v4(source, destination, u16::from_ne_bytes(header.id), header.proto);
    let offset = v4::fragment_offset(header);
    let more = v4::more_fragments(header);
    let length = inner.length - header_len;
    let piece = Piece { l4: l3 + header_len, length, is_fragment, offset, more, protocol: header.proto };
    piece_to_vip(packet, maps, trail, &inner, &key, &piece)
}

/// Follow an IPv6 packet's extension headers. A function of its own in the program, for the stack's sake.
#[inline(never)]
pub fn follow<P: Packet>(packet: &P, l3: u32, chain: &mut Chain) -> Reason {
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
    // Padding behind the packet may look like headers.
    v6::follow(packet, l3 + v6::LEN, l3 + v6::total_len(&header), header.next_hdr, chain)
}

/// Drop an IPv6 packet whose extension headers cannot be followed, if it is for a VIP.
#[inline(never)]
pub fn refuse_ipv6<P: Packet, M: Maps>(packet: &P, maps: &M, l3: u32, reason: Reason) -> Reason {
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
    let reason = match check_ipv6(packet, l3, &header) {
        Ok(_) => reason,
        // The outer fault explains the inner one.
        Err(reason) => reason,
    };
    refuse(maps, Address::from_v6(header.dst_addr), Family::V6, reason)
}

/// An IPv6 packet that has extension headers, is neither TCP nor UDP, or is too long; as [`ipv4`]. `chain` says what
/// is behind the extension headers.
#[inline(never)]
pub fn ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, chain: &Chain) -> Reason {
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
    let destination = Address::from_v6(header.dst_addr);
    match ipv6_to_vip(packet, maps, trail, l3, &header, *chain) {
        reason if reason.action() == Action::Drop => refuse(maps, destination, Family::V6, reason),
        reason => reason,
    }
}

#[inline(always)]
fn ipv6_to_vip<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    l3: u32,
    header: &Ipv6Hdr,
    chain: Chain,
) -> Reason {
    let mut inner = match check_ipv6(packet, l3, header) {
        Ok(inner) => inner,
        Err(reason) => return reason,
    };
    let trimmed = trim(packet, maps, &mut inner, Address::from_v6(header.dst_addr));
    if trimmed != Reason::Forwarded {
        return trimmed;
    }
    if chain.protocol == ICMPV6 {
        if !chain.is_fragment {
            trail.message = u64::from(chain.offset);
        }
        return Reason::UnsupportedIcmp;
    }
    let later = chain.is_fragment && chain.fragment_offset != 0;
    if !later && chain.protocol != TCP && chain.protocol != UDP {
        return Reason::UnsupportedProtocol;
    }
    let (source, destination) = (Address::from_v6(header.src_addr), Address::from_v6(header.dst_addr));
    let key = FragmentKey::v6(source, destination, chain.identification);
    let Chain { offset: l4, is_fragment, fragment_offset: offset, more_fragments: more, protocol, .. } = chain;
    let l4 = l4 & OFFSET_MASK;
    let length = (inner.l3 + inner.length).saturating_sub(l4);
    let piece = Piece { l4, length, is_fragment, offset, more, protocol };
    piece_to_vip(packet, maps, trail, &inner, &key, &piece)
}

/// Take the padding off a VIP's packet now, so that the end of the frame is the end of the packet. What is not a VIP's
/// stays as it came. [`Reason::Forwarded`] to go on.
#[inline(always)]
fn trim<P: Packet, M: Maps>(packet: &mut P, maps: &M, inner: &mut Inner, destination: Address) -> Reason {
    if inner.padding == 0 {
        return Reason::Forwarded;
    }
    let reason = refuse(maps, destination, inner.family, Reason::Forwarded);
    if reason == Reason::Forwarded {
        if !packet.trim(inner.padding) {
            return Reason::InconsistentMaps;
        }
        inner.padding = 0;
    }
    reason
}

/// A fragment goes where its flow's whole packets go.
#[inline(always)]
fn piece_to_vip<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    inner: &Inner,
    key: &FragmentKey,
    piece: &Piece,
) -> Reason {
    let (ports, protocol) = match piece::ports(packet, maps, key, piece, inner.length, inner.family) {
        Ok(known) => known,
        Err(reason) => return reason,
    };
    let reason = if piece.is_fragment { Reason::FragmentForwarded } else { Reason::Forwarded };
    let family = inner.family;
    let flow = FlowKey { source: key.source(), destination: key.destination(), ports, protocol, family };
    steer(packet, maps, trail, inner, &flow, reason)
}
