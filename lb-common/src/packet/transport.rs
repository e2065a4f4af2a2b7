//! TCP (RFC 9293) and UDP (RFC 768): the ports, and whether the header holds together.

use super::Packet;
use crate::flow::FlowKey;
use crate::verdict::Reason;

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of IPv4 in IP (RFC 2003).
pub const IPV4_IN_IP: u8 = 4;
/// Protocol number of IPv6 in IP (RFC 2473, RFC 4213).
pub const IPV6_IN_IP: u8 = 41;
/// Bytes of a transport header that a first fragment must have (RFC 791 §3.2 gives every fragment eight).
pub const MIN_IN_FRAGMENT: u32 = 8;

/// The ports of a whole packet, joined as [`FlowKey`] holds them. `length` is that of the IP payload.
///
/// # Errors
/// The header is cut off or contradicts `length`.
#[inline(always)]
pub fn ports<P: Packet>(packet: &P, l4: u32, protocol: u8, length: u32) -> Result<u32, Reason> {
    if protocol == TCP {
        let Some(h) = packet.load::<20>(l4) else { return Err(Reason::MalformedTcp) };
        let header_len = u32::from(h[12] >> 4) * 4;
        if header_len < 20 || header_len > length {
            return Err(Reason::MalformedTcp);
        }
        Ok(join([h[0], h[1], h[2], h[3]]))
    } else {
        let Some(h) = packet.load::<8>(l4) else { return Err(Reason::MalformedUdp) };
        let datagram = u32::from(u16::from_be_bytes([h[4], h[5]]));
        if datagram < 8 || datagram > length {
            return Err(Reason::MalformedUdp);
        }
        Ok(join([h[0], h[1], h[2], h[3]]))
    }
}

/// The first four bytes of either header as ports.
#[inline(always)]
#[must_use]
pub const fn join(bytes: [u8; 4]) -> u32 {
    FlowKey::join(u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]]))
}
