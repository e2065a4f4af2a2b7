//! ICMP (RFC 792) and ICMPv6 (RFC 4443).

use crate::address::Family;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Length of a header.
pub const LEN: u32 = 8;

/// ICMP "fragmentation needed": a code of "destination unreachable".
pub const FRAG_NEEDED: [u8; 2] = [3, 4];
/// ICMPv6 "packet too big".
pub const PACKET_TOO_BIG: [u8; 2] = [2, 0];

/// What a message to a VIP asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An echo request.
    Echo,
    /// An error, which quotes a packet.
    Error,
    /// IPv6 neighbour discovery (RFC 4861).
    NeighbourDiscovery,
    /// Anything else.
    Other,
}

/// Sort a message by its type.
#[inline(always)]
#[must_use]
pub const fn kind(family: Family, message_type: u8) -> Kind {
    match (family, message_type) {
        (Family::V4, 8) | (Family::V6, 128) => Kind::Echo,
        // Unreachable, time exceeded, parameter problem. Source quench (4) is obsolete (RFC 6633).
        (Family::V4, 3 | 11 | 12) | (Family::V6, 1..=4) => Kind::Error,
        (Family::V6, 133..=137) => Kind::NeighbourDiscovery,
        _ => Kind::Other,
    }
}

/// The type of an echo reply.
#[inline(always)]
#[must_use]
pub const fn echo_reply(family: Family) -> u8 {
    match family {
        Family::V4 => 0,
        Family::V6 => 129,
    }
}
