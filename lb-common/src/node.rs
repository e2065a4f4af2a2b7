//! The node: tunnel packets to this host from a trusted source lose their outer header.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::{Address, Family};
use crate::checksum::replace;
use crate::maps::{Maps, prefilter};
use crate::packet::icmp::{ICMP, ICMPV6};
use crate::packet::transport::{self, IPV4_IN_IP, TCP, UDP};
use crate::packet::{Header, Packet, ipv4 as v4, ipv6 as v6};
use crate::stage::{Trail, refuse, service};
use crate::verdict::Reason;

/// The outer header, as far as the inner packet's fate depends on it.
struct Outer {
    /// Where the inner packet begins in the frame.
    inner: u32,
    /// Where the outer one ends.
    end: u32,
    /// Length of the outer header.
    header_len: u32,
    /// ECN field.
    ecn: u8,
    /// Protocol number: which family is inside.
    protocol: u8,
}

/// A packet of protocol 4 or 41 that passed the prefilter. [`Reason::NotOurs`] if no tunnel of ours ends here.
#[inline(always)]
pub fn ipv4<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, header: &Ipv4Hdr) -> Reason {
    if !maps.is_tunnel_address(&Address::from_v4(header.dst_addr), Family::V4) {
        return Reason::NotOurs;
    }
    if !maps.is_trusted(&Address::from_v4(header.src_addr), Family::V4) {
        return Reason::UntrustedSource;
    }
    let Some(header_len) = v4::header_len(header) else { return Reason::MalformedTunnel };
    let end = l3 + v4::total_len(header);
    if packet.excess(end).is_none() || !v4::is_checksum_right(packet, l3, header_len) {
        return Reason::MalformedTunnel;
    }
    if v4::is_fragment(header) {
        return Reason::FragmentedTunnel;
    }
    let outer = Outer { inner: l3 + header_len, end, header_len, ecn: header.tos & 3, protocol: header.proto };
    decapsulate(packet, maps, trail, l3, &outer)
}

/// As [`ipv4`], with an IPv6 outer header that no extension header follows.
#[inline(always)]
pub fn ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, header: &Ipv6Hdr) -> Reason {
    if !maps.is_tunnel_address(&Address::from_v6(header.dst_addr), Family::V6) {
        return Reason::NotOurs;
    }
    if !maps.is_trusted(&Address::from_v6(header.src_addr), Family::V6) {
        return Reason::UntrustedSource;
    }
    let end = l3 + v6::total_len(header);
    if header.vcf[0] >> 4 != 6 || packet.excess(end).is_none() {
        return Reason::MalformedTunnel;
    }
    let ecn = v6::traffic_class(header) & 3;
    let outer = Outer { inner: l3 + v6::LEN, end, header_len: v6::LEN, ecn, protocol: header.next_hdr };
    decapsulate(packet, maps, trail, l3, &outer)
}

/// Check what is inside, then take the outer header off.
#[inline(always)]
fn decapsulate<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, outer: &Outer) -> Reason {
    let (family, length) = if outer.protocol == IPV4_IN_IP {
        match inner_ipv4(packet, maps, trail, outer) {
            Ok(length) => (Family::V4, length),
            Err(reason) => return reason,
        }
    } else {
        match inner_ipv6(packet, maps, trail, outer) {
            Ok(length) => (Family::V6, length),
            Err(reason) => return reason,
        }
    };
    let Some(padding) = packet.excess(outer.inner + length) else { return Reason::MalformedInner };
    if padding != 0 && !packet.trim(padding) {
        return Reason::InconsistentMaps;
    }
    if packet.strip(l3, outer.header_len, family) { Reason::Decapsulated } else { Reason::InconsistentMaps }
}

/// The length of a good inner IPv4 packet, its ECN field brought up to date.
#[inline(always)]
fn inner_ipv4<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, outer: &Outer) -> Result<u32, Reason> {
    let at = outer.inner;
    let Some(header) = Ipv4Hdr::read(packet, at) else { return Err(Reason::MalformedInner) };
    let Some(header_len) = v4::header_len(&header) else { return Err(Reason::MalformedInner) };
    let length = v4::total_len(&header);
    if at + length > outer.end {
        return Err(Reason::MalformedInner);
    }
    let (source, destination) = (Address::from_v4(header.src_addr), Address::from_v4(header.dst_addr));
    let whole = !v4::is_fragment(&header);
    let l4 = L4 { at: at + header_len, length: length - header_len, protocol: header.proto, whole };
    check_service(packet, maps, trail, destination, Family::V4, &l4)?;
    if v4::is_martian(header.src_addr) || header.src_addr == header.dst_addr {
        return Err(Reason::MartianSource);
    }
    check_source(maps, source, Family::V4)?;
    let ecn = merge_ecn(outer.ecn, header.tos & 3)?;
    if ecn != header.tos & 3 {
        let tos = header.tos & !3 | ecn;
        let (before, after) = (u16::from_ne_bytes([header.vihl, header.tos]), u16::from_ne_bytes([header.vihl, tos]));
        let check = replace(u16::from_ne_bytes(header.check), before, after).to_ne_bytes();
        if !(packet.store(at, &[header.vihl, tos]) && packet.store(at + 10, &check)) {
            return Err(Reason::MalformedInner);
        }
    }
    Ok(length)
}

/// The length of a good inner IPv6 packet, its ECN field brought up to date.
#[inline(always)]
fn inner_ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, outer: &Outer) -> Result<u32, Reason> {
    let at = outer.inner;
    let Some(header) = Ipv6Hdr::read(packet, at) else { return Err(Reason::MalformedInner) };
    let length = v6::total_len(&header);
    if header.vcf[0] >> 4 != 6 || at + length > outer.end {
        return Err(Reason::MalformedInner);
    }
    let (source, destination) = (Address::from_v6(header.src_addr), Address::from_v6(header.dst_addr));
    let l4 = L4 { at: at + v6::LEN, length: length - v6::LEN, protocol: header.next_hdr, whole: true };
    check_service(packet, maps, trail, destination, Family::V6, &l4)?;
    if v6::is_martian(header.src_addr) || header.src_addr == header.dst_addr {
        return Err(Reason::MartianSource);
    }
    check_source(maps, source, Family::V6)?;
    let ecn = v6::traffic_class(&header) & 3;
    let merged = merge_ecn(outer.ecn, ecn)?;
    if merged != ecn && !packet.store(at, &[header.vcf[0], header.vcf[1] & !0x30 | merged << 4]) {
        return Err(Reason::MalformedInner);
    }
    Ok(length)
}

/// What follows the inner IP header.
struct L4 {
    at: u32,
    length: u32,
    protocol: u8,
    whole: bool,
}

/// The inner destination must be a VIP, with its port where the packet shows one at once: fragments, ICMP and what
/// stands behind extension headers are the host's to sort out.
#[inline(always)]
fn check_service<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    trail: &mut Trail,
    address: Address,
    family: Family,
    l4: &L4,
) -> Result<(), Reason> {
    if l4.whole && (l4.protocol == TCP || l4.protocol == UDP) {
        let Ok(ports) = transport::ports(packet, l4.at, l4.protocol, l4.length) else {
            return Err(Reason::MalformedInner);
        };
        return match service(maps, address, family, l4.protocol, ports as u16) {
            Ok(id) => {
                trail.service = u64::from(id) + 1;
                Ok(())
            }
            Err(_) => Err(Reason::InnerNotService),
        };
    }
    // Another tunnel or protocol to the VIP is not what an edge sends, and would reach the host past its services.
    if !may_be_for_a_service(family, l4.protocol) {
        return Err(Reason::InnerNotService);
    }
    match refuse(maps, address, family, Reason::Decapsulated) {
        Reason::Decapsulated => Ok(()),
        _ => Err(Reason::InnerNotService),
    }
}

/// Whether a packet of this protocol, or with this header behind the IPv6 header, may belong to a service's flow.
#[inline(always)]
const fn may_be_for_a_service(family: Family, protocol: u8) -> bool {
    match (family, protocol) {
        (_, TCP | UDP) | (Family::V4, ICMP) | (Family::V6, ICMPV6) => true,
        (Family::V6, _) => v6::is_extension(protocol),
        (Family::V4, _) => false,
    }
}

/// The inner source must not be this host's own address. The prefilter has all of those.
#[inline(always)]
fn check_source<M: Maps>(maps: &M, source: Address, family: Family) -> Result<(), Reason> {
    let (word, bit) = prefilter(source, family);
    if maps.prefilter(word) & bit != 0 && maps.is_tunnel_address(&source, family) {
        return Err(Reason::Hairpin);
    }
    Ok(())
}

/// The ECN field of the packet that comes out, from the outer and the inner one (RFC 6040 §4.2, figure 4).
///
/// # Errors
/// Congestion was marked outside, and the packet inside cannot carry the mark.
#[inline(always)]
pub fn merge_ecn(outer: u8, inner: u8) -> Result<u8, Reason> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (outer, inner) {
        (CE, NOT_ECT) => Err(Reason::EcnNotCapable),
        (CE, _) => Ok(CE),
        (ECT_1, ECT_0) => Ok(ECT_1),
        _ => Ok(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 figure 4, row by row of the inner field: Not-ECT, ECT(0), ECT(1), CE; columns the same outside.
    #[test]
    fn ecn_table() {
        let (not, ect0, ect1, ce) = (0, 2, 1, 3);
        let rows = [
            (not, [Some(not), Some(not), Some(not), None]),
            (ect0, [Some(ect0), Some(ect0), Some(ect1), Some(ce)]),
            (ect1, [Some(ect1), Some(ect1), Some(ect1), Some(ce)]),
            (ce, [Some(ce); 4]),
        ];
        for (inner, row) in rows {
            for (outer, want) in [not, ect0, ect1, ce].into_iter().zip(row) {
                assert_eq!(merge_ecn(outer, inner).ok(), want, "outer {outer} inner {inner}");
            }
        }
    }
}
