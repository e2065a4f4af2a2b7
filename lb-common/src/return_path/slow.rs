//! The longer way out: SYN-ACKs, fragments, options and extension headers.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{Origin, Reply, Shown, Shows, leave, limit, mss, origin};
use crate::address::{Address, Family};
use crate::maps::{FRAGMENT_LIFETIME_NS, FragmentKey, FragmentPorts, Maps};
use crate::nat::Place;
use crate::packet::icmp::{ICMP, ICMPV6};
use crate::packet::ipv6::Chain;
use crate::packet::transport::{self, MIN_IN_FRAGMENT, TCP, UDP};
use crate::packet::{Header, OFFSET_MASK, Packet, ipv4 as v4, ipv6 as v6};
use crate::stage::Trail;
use crate::verdict::Reason;

/// An IPv4 packet that is a SYN-ACK, a fragment, ICMP, or has options. Where a whole ICMP message begins is left in
/// [`Trail::message`].
#[inline(never)]
pub fn ipv4<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32) -> Reason {
    let Some(header) = Ipv4Hdr::read(packet, l3) else { return Reason::NotOurs };
    let header_len = u32::from(header.vihl & 0x0f) * 4;
    if header.vihl >> 4 != 4 || header_len < v4::LEN {
        return Reason::NotOurs;
    }
    let l4 = l3 + header_len;
    let is_fragment = v4::is_fragment(&header);
    if header.proto == ICMP && !is_fragment {
        trail.message = u64::from(l4);
    }
    let (source, destination) = (Address::from_v4(header.src_addr), Address::from_v4(header.dst_addr));
    let key = FragmentKey::v4(source, destination, u16::from_ne_bytes(header.id), header.proto);
    let later = v4::fragment_offset(&header) != 0;
    let place = Place { family: Family::V4, l3, l4: Some(l4), protocol: header.proto };
    piece(packet, maps, &key, place, l4, Piece { is_fragment, later })
}

/// Follow an IPv6 packet's extension headers. A function of its own in the program, for the stack's sake.
#[inline(never)]
pub fn follow<P: Packet>(packet: &P, l3: u32, chain: &mut Chain) -> bool {
    let (Some(header), Some(length)) = (Ipv6Hdr::read(packet, l3), packet.excess(l3)) else { return false };
    // The frame's own end: a buffer of many segments may say 0 in its header (RFC 2675, as Linux uses it since 5.19).
    v6::follow(packet, l3 + v6::LEN, l3 + length, header.next_hdr, chain) == Reason::Forwarded
}

/// An IPv6 packet that is a SYN-ACK, ICMP, or has extension headers; as [`ipv4`]. `chain` says what is behind those.
#[inline(never)]
pub fn ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, chain: &Chain) -> Reason {
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
    let l4 = chain.offset & OFFSET_MASK;
    if chain.protocol == ICMPV6 && !chain.is_fragment {
        trail.message = u64::from(l4);
    }
    let (source, destination) = (Address::from_v6(header.src_addr), Address::from_v6(header.dst_addr));
    let key = FragmentKey::v6(source, destination, chain.identification);
    let place = Place { family: Family::V6, l3, l4: Some(l4), protocol: chain.protocol };
    let piece_of = Piece { is_fragment: chain.is_fragment, later: chain.fragment_offset != 0 };
    piece(packet, maps, &key, place, l4, piece_of)
}

/// Whether a packet is a fragment, and one that shows no ports.
struct Piece {
    is_fragment: bool,
    later: bool,
}

/// A packet or a fragment of one. The first fragment leaves its ports for the others.
#[inline(always)]
fn piece<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    key: &FragmentKey,
    mut place: Place,
    l4: u32,
    piece: Piece,
) -> Reason {
    let (ports, shows) = if piece.is_fragment && piece.later {
        match maps.fragment(key) {
            Some(first) if maps.now().wrapping_sub(first.seen) < FRAGMENT_LIFETIME_NS => {
                place.l4 = None;
                place.protocol = first.protocol as u8;
                (first.ports, Shows::Nothing)
            }
            _ => return Reason::NotOurs,
        }
    } else if place.protocol != TCP && place.protocol != UDP {
        return Reason::NotOurs;
    } else if piece.is_fragment {
        let Some([a, b, c, d, ..]) = packet.load::<{ MIN_IN_FRAGMENT as usize }>(l4) else { return Reason::NotOurs };
        (transport::join([a, b, c, d]), Shows::Nothing)
    } else {
        match Shown::read(packet, l4, place.protocol) {
            Some(shown) => (shown.ports, shown.shows),
            None => return Reason::NotOurs,
        }
    };
    let reply = Reply { pod: key.source(), client: key.destination(), ports, shows };
    let mut from = Origin::default();
    let found = origin(maps, &place, &reply, &mut from);
    if piece.is_fragment && !piece.later && found != Reason::NotOurs {
        // What is not ours leaves nothing, so that the others of it are not ours either.
        let first = FragmentPorts { seen: maps.now(), ports, protocol: u32::from(place.protocol) };
        maps.remember_fragment(key, first);
    }
    if found != Reason::ReplyRewritten {
        return found;
    }
    let limit = limit(maps, place.family);
    if shows == Shows::SynAck && limit != 0 && !mss::clamp(packet, l4, limit) {
        return Reason::InconsistentMaps;
    }
    let reason = if piece.is_fragment { Reason::ReplyFragmentRewritten } else { Reason::ReplyRewritten };
    leave(packet, maps, &place, &reply, &from, reason)
}
