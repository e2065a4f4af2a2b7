//! The tunnel header: IP in IP (RFC 2003, RFC 2473, RFC 4213), one header and nothing else.
//!
//! DSCP and ECN are copied outside (RFC 6040 §4.1, normal mode). DF is always set (RFC 2003 §3.1 allows it): XDP can
//! reassemble nothing. The IPv6 flow label comes from the flow hash (RFC 6438), so that routers spread flows.

use crate::address::Family;
use crate::checksum::{finish, halves};
use crate::maps::{Backend, Dispatch, Maps};
use crate::packet::transport::{IPV4_IN_IP, IPV6_IN_IP};
use crate::packet::{Packet, ethernet, ipv4, ipv6};
use crate::stage::Trail;
use crate::verdict::Reason;

/// TTL and hop limit of packets that are ours.
pub const HOP_LIMIT: u8 = 64;

/// The protocol number of a tunnel header before a packet of this family.
#[inline(always)]
#[must_use]
pub const fn protocol(inner: Family) -> u8 {
    match inner {
        Family::V4 => IPV4_IN_IP,
        Family::V6 => IPV6_IN_IP,
    }
}

/// The sum for [`Backend::checksum`]: version and header length, DF, hop limit, source and destination.
#[must_use]
pub fn constant_sum(source: [u8; 4], destination: [u8; 4]) -> u16 {
    let words = u32::from(u16::from_ne_bytes([0x45, 0]))
        + u32::from(ipv4::DF.to_be())
        + u32::from(u16::from_ne_bytes([HOP_LIMIT, 0]))
        + halves(u32::from_ne_bytes(source))
        + halves(u32::from_ne_bytes(destination));
    crate::checksum::fold(words)
}

/// What the tunnel needs to know of the packet that goes into it.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// Its family.
    pub family: Family,
    /// Where its IP header begins in the frame.
    pub l3: u32,
    /// Its length in bytes, IP header included.
    pub length: u32,
    /// Ethernet padding behind it, in bytes.
    pub padding: u32,
    /// DSCP and ECN.
    pub tos: u8,
}

/// An IPv4 tunnel header.
#[inline(always)]
#[must_use]
pub fn ipv4_header(backend: &Backend, inner: &Inner, hash: u64) -> [u8; 20] {
    let entropy = entropy(backend, hash);
    let [s0, s1, s2, s3] = (u32::from_ne_bytes(backend.source.v4()) | entropy).to_ne_bytes();
    let length = (inner.length + ipv4::LEN) as u16;
    let [len_high, len_low] = length.to_be_bytes();
    let protocol = protocol(inner.family);
    let sum = u32::from(backend.checksum)
        + u32::from(u16::from_ne_bytes([0, inner.tos]))
        + u32::from(length.to_be())
        + u32::from(u16::from_ne_bytes([0, protocol]))
        + halves(entropy);
    let [check_high, check_low] = finish(sum).to_ne_bytes();
    let [flags, fragment] = ipv4::DF.to_be_bytes();
    let [d0, d1, d2, d3] = backend.destination.v4();
    [
        0x45, inner.tos, len_high, len_low, 0, 0, flags, fragment, HOP_LIMIT, protocol, check_high, check_low, s0, s1,
        s2, s3, d0, d1, d2, d3,
    ]
}

/// The part of the hash that goes into the outer source.
#[inline(always)]
fn entropy(backend: &Backend, hash: u64) -> u32 {
    (hash >> 32) as u32 & backend.entropy
}

/// Send a packet to its backend, or say why not. `reason` is what a packet that is sent is counted as. One that is too
/// long stays as it is, and [`Trail::mtu`] is set.
#[inline(always)]
pub fn send<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    inner: &Inner,
    backend: &Backend,
    hash: u64,
    reason: Reason,
) -> Reason {
    let outer = if backend.dispatch == Dispatch::Ipv4 as u8 {
        Family::V4
    } else if backend.dispatch == Dispatch::Ipv6 as u8 {
        Family::V6
    } else {
        return Reason::InconsistentMaps;
    };
    if backend.next_hop == 0 {
        return Reason::BackendUnreachable;
    }
    let Some(next_hop) = maps.next_hop(backend.next_hop) else { return Reason::InconsistentMaps };
    if inner.length + 2 * outer.header_len() > next_hop.mtu {
        // The answer is made on the longer way; the packet is as it was.
        trail.mtu = u64::from(next_hop.mtu.saturating_sub(2 * outer.header_len()).max(1));
        return reason;
    }
    if inner.padding != 0 && !packet.trim(inner.padding) {
        return Reason::InconsistentMaps;
    }
    let Some(tags) = ethernet::tags(packet, inner.l3) else { return Reason::InconsistentMaps };
    let written = match outer {
        Family::V4 => {
            let header = ipv4_header(backend, inner, hash);
            packet.grow::<20>()
                && ethernet::write(packet, inner.l3, &next_hop.macs, &tags, outer)
                && packet.store(inner.l3, &header)
        }
        Family::V6 => {
            let label = (hash >> 32) as u32;
            let first = ipv6::first_bytes(inner.tos, label, inner.length as u16, protocol(inner.family), HOP_LIMIT);
            let mut source = backend.source;
            let [a, b, c, d] = entropy(backend, hash).to_ne_bytes();
            source.0[1] |= u64::from_ne_bytes([0, 0, 0, 0, a, b, c, d]);
            packet.grow::<40>()
                && ethernet::write(packet, inner.l3, &next_hop.macs, &tags, outer)
                && packet.store(inner.l3, &first)
                && packet.store(inner.l3 + 8, &source.v6())
                && packet.store(inner.l3 + 24, &backend.destination.v6())
        }
    };
    if !written {
        return Reason::NoHeadroom;
    }
    maps.count_backend(backend.counter, inner.length);
    trail.interface = u64::from(next_hop.interface);
    reason
}
