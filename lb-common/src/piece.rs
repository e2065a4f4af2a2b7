//! What follows the IP headers of a packet or a fragment: its ports.

use crate::address::Family;
use crate::maps::{FRAGMENT_LIFETIME_NS, FragmentKey, FragmentPorts, Maps};
use crate::packet::transport::{self, MIN_IN_FRAGMENT};
use crate::packet::{Packet, ipv6 as v6};
use crate::verdict::Reason;

/// Where it begins in the frame, how long it is, whether it is a fragment, where that lies in the whole packet and
/// whether more follow, and its protocol if it shows it.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) l4: u32,
    pub(crate) length: u32,
    pub(crate) is_fragment: bool,
    pub(crate) offset: u32,
    pub(crate) more: bool,
    pub(crate) protocol: u8,
}

/// Ports and protocol of a piece: the first fragment leaves its ports for the others. `whole` is the length of the IP
/// packet that the piece came in.
#[inline(always)]
pub(crate) fn ports<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    key: &FragmentKey,
    piece: &Piece,
    whole: u32,
    family: Family,
) -> Result<(u32, u8), Reason> {
    if !piece.is_fragment {
        return Ok((transport::ports(packet, piece.l4, piece.protocol, piece.length)?, piece.protocol));
    }
    if piece.offset + whole > LARGEST + headers_beside(family) || (piece.more && !piece.length.is_multiple_of(8)) {
        return Err(Reason::MalformedFragment);
    }
    if piece.offset == 0 {
        let Some([a, b, c, d, ..]) = packet.load::<{ MIN_IN_FRAGMENT as usize }>(piece.l4) else {
            return Err(Reason::MalformedFragment);
        };
        let ports = transport::join([a, b, c, d]);
        let first = FragmentPorts { seen: maps.now(), ports, protocol: u32::from(piece.protocol) };
        maps.remember_fragment(key, first);
        return Ok((ports, piece.protocol));
    }
    match maps.fragment(key) {
        Some(first) if maps.now().wrapping_sub(first.seen) < FRAGMENT_LIFETIME_NS => {
            Ok((first.ports, first.protocol as u8))
        }
        _ => Err(Reason::UnknownFragment),
    }
}

/// Most that the length field of a whole packet says.
const LARGEST: u32 = 0xffff;

/// How much of a fragment is not counted by the length field of its whole packet: in IPv6 the fixed header and the
/// fragment header.
const fn headers_beside(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => v6::LEN + 8,
    }
}
