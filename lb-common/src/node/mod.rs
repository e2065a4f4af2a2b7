//! The node: tunnel packets to this host from a trusted source lose their outer header, and go to a pod of this host or
//! up to the host itself.
//!
//! This file is the way of nearly all packets: whole, TCP or UDP, no options and nothing between IP and transport, for the
//! host or for the pod that owns the slot and always has. What needs a longer look is in [`visit`].

mod answer;
mod choose;
mod deliver;
mod quote;
pub mod visit;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::{Address, Family};
use crate::checksum::replace;
use crate::flow::FlowKey;
use crate::maps::{Maps, POD_RECORD, Pod, PodWord, prefilter};
use crate::nat::{self, Change, End, Place};
use crate::packet::transport::{self, IPV4_IN_IP, TCP, UDP};
use crate::packet::{Header, Packet, ipv4 as v4, ipv6 as v6};
use crate::stage::{Trail, service};
use crate::verdict::Reason;

/// How long a service may be without a pod here before packets for it are answered, in nanoseconds: an edge may know of a
/// pod before its node does, and until then the client's own retry is the better answer.
pub const NO_POD_GRACE_NS: u64 = 2_000_000_000;

/// A tunnel packet whose outer header is good.
#[derive(Clone, Copy)]
struct Outer {
    /// Where the outer header begins in the frame.
    l3: u32,
    /// Length of the outer header.
    header_len: u32,
    /// Where the outer packet ends.
    end: u32,
    /// ECN field.
    ecn: u8,
    /// Protocol number: which family is inside.
    protocol: u8,
}

impl Outer {
    /// Where the inner packet begins in the frame.
    #[inline(always)]
    const fn inner(&self) -> u32 {
        self.l3 + self.header_len
    }
}

/// A packet of protocol 4 or 41 that passed the prefilter. [`Reason::NotOurs`] if no tunnel of ours ends here. `None`: it
/// takes the longer way.
#[inline(always)]
pub fn ipv4<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    l3: u32,
    header: &Ipv4Hdr,
) -> Option<Reason> {
    match outer_ipv4(packet, maps, l3, header) {
        Ok(outer) => decapsulate(packet, maps, trail, &outer),
        Err(reason) => Some(reason),
    }
}

/// As [`ipv4`], with an IPv6 outer header that no extension header follows.
#[inline(always)]
pub fn ipv6<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    l3: u32,
    header: &Ipv6Hdr,
) -> Option<Reason> {
    match outer_ipv6(packet, maps, l3, header) {
        Ok(outer) => decapsulate(packet, maps, trail, &outer),
        Err(reason) => Some(reason),
    }
}

#[inline(always)]
fn outer_ipv4<P: Packet, M: Maps>(packet: &P, maps: &M, l3: u32, header: &Ipv4Hdr) -> Result<Outer, Reason> {
    if !maps.is_tunnel_address(&Address::from_v4(header.dst_addr), Family::V4) {
        return Err(Reason::NotOurs);
    }
    if !maps.is_trusted(&Address::from_v4(header.src_addr), Family::V4) {
        return Err(Reason::UntrustedSource);
    }
    let Some(header_len) = v4::header_len(header) else { return Err(Reason::MalformedTunnel) };
    let end = l3 + v4::total_len(header);
    if packet.excess(end).is_none() || !v4::is_checksum_right(packet, l3, header_len) {
        return Err(Reason::MalformedTunnel);
    }
    if v4::is_fragment(header) {
        return Err(Reason::FragmentedTunnel);
    }
    Ok(Outer { l3, header_len, end, ecn: header.tos & 3, protocol: header.proto })
}

#[inline(always)]
fn outer_ipv6<P: Packet, M: Maps>(packet: &P, maps: &M, l3: u32, header: &Ipv6Hdr) -> Result<Outer, Reason> {
    if !maps.is_tunnel_address(&Address::from_v6(header.dst_addr), Family::V6) {
        return Err(Reason::NotOurs);
    }
    if !maps.is_trusted(&Address::from_v6(header.src_addr), Family::V6) {
        return Err(Reason::UntrustedSource);
    }
    let end = l3 + v6::total_len(header);
    if header.vcf[0] >> 4 != 6 || packet.excess(end).is_none() {
        return Err(Reason::MalformedTunnel);
    }
    Ok(Outer { l3, header_len: v6::LEN, end, ecn: v6::traffic_class(header) & 3, protocol: header.next_hdr })
}

/// Check what is inside, then take the outer header off.
#[inline(always)]
fn decapsulate<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, outer: &Outer) -> Option<Reason> {
    let inner = if outer.protocol == IPV4_IN_IP { inner_ipv4(packet, outer) } else { inner_ipv6(packet, outer) };
    let (flow, length) = match inner? {
        Ok(inner) => inner,
        Err(reason) => return Some(reason),
    };
    let id = match service(maps, flow.destination, flow.family, flow.protocol, flow.service_port()) {
        Ok(id) => id,
        Err(_) => return Some(Reason::InnerNotService),
    };
    trail.service = u64::from(id) + 1;
    if is_martian(flow.source, flow.family) || flow.source == flow.destination {
        return Some(Reason::MartianSource);
    }
    if is_own(maps, flow.source, flow.family) {
        return Some(Reason::Hairpin);
    }
    let Some(word) = maps.pod_word(id) else { return Some(Reason::InconsistentMaps) };
    if word.is_host() {
        return Some(match open(packet, outer, length, flow.family) {
            Reason::Forwarded => Reason::Decapsulated,
            reason => reason,
        });
    }
    let pod = steady(maps, trail, word, &flow)?;
    let opened = open(packet, outer, length, flow.family);
    if opened != Reason::Forwarded {
        return Some(opened);
    }
    let l4 = outer.l3 + flow.family.header_len();
    let place = Place { family: flow.family, l3: outer.l3, l4: Some(l4), protocol: flow.protocol };
    let change = Change {
        end: End::Destination,
        from: flow.destination,
        to: pod.address,
        port_from: flow.service_port(),
        port_to: pod.port,
    };
    if !nat::rewrite(packet, &place, &change) {
        return Some(Reason::InconsistentMaps);
    }
    maps.count_pod(pod.counter, length);
    Some(Reason::DeliveredToPod)
}

/// The flow and the length of a plain inner IPv4 packet. `None`: it takes the longer way.
#[inline(always)]
fn inner_ipv4<P: Packet>(packet: &P, outer: &Outer) -> Option<Result<(FlowKey, u32), Reason>> {
    let at = outer.inner();
    let Some(header) = Ipv4Hdr::read(packet, at) else { return Some(Err(Reason::MalformedInner)) };
    if header.vihl != v4::PLAIN || v4::is_fragment(&header) || (header.proto != TCP && header.proto != UDP) {
        return None;
    }
    let length = v4::total_len(&header);
    if length < v4::LEN || at + length > outer.end {
        return Some(Err(Reason::MalformedInner));
    }
    let Ok(ports) = transport::ports(packet, at + v4::LEN, header.proto, length - v4::LEN) else {
        return Some(Err(Reason::MalformedInner));
    };
    let (source, destination) = (Address::from_v4(header.src_addr), Address::from_v4(header.dst_addr));
    Some(Ok((FlowKey { source, destination, ports, protocol: header.proto, family: Family::V4 }, length)))
}

/// As [`inner_ipv4`].
#[inline(always)]
fn inner_ipv6<P: Packet>(packet: &P, outer: &Outer) -> Option<Result<(FlowKey, u32), Reason>> {
    let at = outer.inner();
    let Some(header) = Ipv6Hdr::read(packet, at) else { return Some(Err(Reason::MalformedInner)) };
    if header.next_hdr != TCP && header.next_hdr != UDP {
        return None;
    }
    let length = v6::total_len(&header);
    if header.vcf[0] >> 4 != 6 || at + length > outer.end {
        return Some(Err(Reason::MalformedInner));
    }
    let Ok(ports) = transport::ports(packet, at + v6::LEN, header.next_hdr, length - v6::LEN) else {
        return Some(Err(Reason::MalformedInner));
    };
    let (source, destination) = (Address::from_v6(header.src_addr), Address::from_v6(header.dst_addr));
    Some(Ok((FlowKey { source, destination, ports, protocol: header.next_hdr, family: Family::V6 }, length)))
}

/// Whether a source is one that no packet from the network may have.
#[inline(always)]
fn is_martian(source: Address, family: Family) -> bool {
    match family {
        Family::V4 => v4::is_martian(source.v4()),
        Family::V6 => v6::is_martian(source.v6()),
    }
}

/// Whether a source is this host's own address. The prefilter has all of those.
#[inline(always)]
fn is_own<M: Maps>(maps: &M, source: Address, family: Family) -> bool {
    let (word, bit) = prefilter(source, family);
    maps.prefilter(word) & bit != 0 && maps.is_tunnel_address(&source, family)
}

/// The pod that owns a flow's slot, where that says it all: it is here, nobody owned the slot before, and no record is
/// needed.
#[inline(always)]
fn steady<'m, M: Maps>(maps: &'m M, trail: &mut Trail, word: PodWord, flow: &FlowKey) -> Option<&'m Pod> {
    let pods = word.pods()?;
    let settings = maps.settings()?;
    let hash = flow.hash(&settings.hash_keys, pods.source_affinity());
    let slot = pods.slot(pod_hash(hash));
    let cell = maps.pod_cell(slot)?;
    if !cell.is_steady() {
        return None;
    }
    let index = pods.backends().wrapping_add(u32::from(cell.owner()));
    let pod = maps.pod(index)?;
    if pod.flags & POD_RECORD != 0 || !maps.has_pod_device(pod.device) || maps.internal(&flow.source, flow.family) != 0
    {
        return None;
    }
    trail.slot = slot - pods.slots();
    trail.pod = u64::from(index) + 1;
    Some(pod)
}

/// The hash that picks a slot of the node's table, from the flow's: other bits than the edge's, which all flows that come
/// here have in common.
#[inline(always)]
#[must_use]
pub const fn pod_hash(hash: u64) -> u64 {
    hash.rotate_left(32)
}

/// Take the outer header off a packet of this length, its ECN field brought up to date. [`Reason::Forwarded`] to go on.
#[inline(always)]
fn open<P: Packet>(packet: &mut P, outer: &Outer, length: u32, family: Family) -> Reason {
    let at = outer.inner();
    let marked = match family {
        Family::V4 => mark_ipv4(packet, at, outer.ecn),
        Family::V6 => mark_ipv6(packet, at, outer.ecn),
    };
    if let Err(reason) = marked {
        return reason;
    }
    let Some(padding) = packet.excess(at + length) else { return Reason::MalformedInner };
    if padding != 0 && !packet.trim(padding) {
        return Reason::InconsistentMaps;
    }
    if packet.strip(outer.l3, outer.header_len, family) { Reason::Forwarded } else { Reason::InconsistentMaps }
}

/// Bring the ECN field of an inner IPv4 header up to date.
#[inline(always)]
fn mark_ipv4<P: Packet>(packet: &mut P, at: u32, outer: u8) -> Result<(), Reason> {
    let Some([vihl, tos]) = packet.load::<2>(at) else { return Err(Reason::MalformedInner) };
    let ecn = merge_ecn(outer, tos & 3)?;
    if ecn == tos & 3 {
        return Ok(());
    }
    let Some(check) = packet.load::<2>(at + 10) else { return Err(Reason::MalformedInner) };
    let new = tos & !3 | ecn;
    let (before, after) = (u16::from_ne_bytes([vihl, tos]), u16::from_ne_bytes([vihl, new]));
    let check = replace(u16::from_ne_bytes(check), before, after).to_ne_bytes();
    if packet.store(at, &[vihl, new]) && packet.store(at + 10, &check) { Ok(()) } else { Err(Reason::MalformedInner) }
}

/// As [`mark_ipv4`].
#[inline(always)]
fn mark_ipv6<P: Packet>(packet: &mut P, at: u32, outer: u8) -> Result<(), Reason> {
    let Some([first, second]) = packet.load::<2>(at) else { return Err(Reason::MalformedInner) };
    let ecn = second >> 4 & 3;
    let merged = merge_ecn(outer, ecn)?;
    if merged == ecn || packet.store(at, &[first, second & !0x30 | merged << 4]) {
        Ok(())
    } else {
        Err(Reason::MalformedInner)
    }
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
