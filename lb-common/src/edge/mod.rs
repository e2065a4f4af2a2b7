//! The edge: a packet for a VIP goes to a backend.
//!
//! This file is the way of nearly all packets: whole, TCP or UDP, no options and nothing between IP and transport. What needs a longer
//! look is in [`slow`], ICMP in [`message`], and what the VIP itself answers in [`answer`].

pub mod answer;
pub mod message;
pub mod slow;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::{Address, Family};
use crate::encap::{self, Inner};
use crate::flow::FlowKey;
use crate::maps::{Dispatch, Maps, NODE_STAGE};
use crate::packet::transport::{self, TCP, UDP};
use crate::packet::{Packet, ipv4 as v4, ipv6 as v6};
use crate::stage::{Trail, refuse, service};
use crate::verdict::Reason;

/// An IPv4 packet that passed the prefilter. `None`: it takes the longer way.
#[inline(always)]
pub fn ipv4<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    l3: u32,
    header: &Ipv4Hdr,
) -> Option<Reason> {
    let destination = Address::from_v4(header.dst_addr);
    if header.vihl != v4::PLAIN || v4::is_fragment(header) || (header.proto != TCP && header.proto != UDP) {
        return None;
    }
    let (inner, header_len) = match check_ipv4(packet, l3, header) {
        Ok(checked) => checked,
        Err(reason) => return Some(refuse(maps, destination, Family::V4, reason)),
    };
    let ports = match transport::ports(packet, l3 + header_len, header.proto, inner.length - header_len) {
        Ok(ports) => ports,
        Err(reason) => return Some(refuse(maps, destination, Family::V4, reason)),
    };
    let flow = FlowKey {
        source: Address::from_v4(header.src_addr),
        destination,
        ports,
        protocol: header.proto,
        family: Family::V4,
    };
    let reason = steer(packet, maps, trail, &inner, &flow, Reason::Forwarded);
    if trail.mtu == 0 && trail.stage == 0 { Some(reason) } else { None }
}

/// An IPv6 packet that passed the prefilter. `None`: it takes the longer way.
#[inline(always)]
pub fn ipv6<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    l3: u32,
    header: &Ipv6Hdr,
) -> Option<Reason> {
    let destination = Address::from_v6(header.dst_addr);
    if header.next_hdr != TCP && header.next_hdr != UDP {
        return None;
    }
    let inner = match check_ipv6(packet, l3, header) {
        Ok(inner) => inner,
        Err(reason) => return Some(refuse(maps, destination, Family::V6, reason)),
    };
    let ports = match transport::ports(packet, l3 + v6::LEN, header.next_hdr, inner.length - v6::LEN) {
        Ok(ports) => ports,
        Err(reason) => return Some(refuse(maps, destination, Family::V6, reason)),
    };
    let flow = FlowKey {
        source: Address::from_v6(header.src_addr),
        destination,
        ports,
        protocol: header.next_hdr,
        family: Family::V6,
    };
    let reason = steer(packet, maps, trail, &inner, &flow, Reason::Forwarded);
    if trail.mtu == 0 && trail.stage == 0 { Some(reason) } else { None }
}

/// Lengths, checksum and source of an IPv4 packet; its header's length besides.
#[inline(always)]
fn check_ipv4<P: Packet>(packet: &P, l3: u32, header: &Ipv4Hdr) -> Result<(Inner, u32), Reason> {
    let Some(header_len) = v4::header_len(header) else { return Err(Reason::MalformedIpv4) };
    let length = v4::total_len(header);
    let Some(padding) = packet.excess(l3 + length) else { return Err(Reason::MalformedIpv4) };
    if !v4::is_checksum_right(packet, l3, header_len) {
        return Err(Reason::MalformedIpv4);
    }
    if v4::is_martian(header.src_addr) || header.src_addr == header.dst_addr {
        return Err(Reason::MartianSource);
    }
    Ok((Inner { family: Family::V4, l3, length, padding, tos: header.tos }, header_len))
}

/// Lengths and source of an IPv6 packet.
#[inline(always)]
fn check_ipv6<P: Packet>(packet: &P, l3: u32, header: &Ipv6Hdr) -> Result<Inner, Reason> {
    let length = v6::total_len(header);
    let Some(padding) = packet.excess(l3 + length) else { return Err(Reason::MalformedIpv6) };
    if header.vcf[0] >> 4 != 6 {
        return Err(Reason::MalformedIpv6);
    }
    if v6::is_martian(header.src_addr) || header.src_addr == header.dst_addr {
        return Err(Reason::MartianSource);
    }
    Ok(Inner { family: Family::V6, l3, length, padding, tos: v6::traffic_class(header) })
}

/// Service → slot → backend → tunnel.
#[inline(always)]
fn steer<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    inner: &Inner,
    flow: &FlowKey,
    reason: Reason,
) -> Reason {
    let id = match service(maps, flow.destination, flow.family, flow.protocol, flow.service_port()) {
        Ok(id) => id,
        Err(reason) => return reason,
    };
    trail.service = u64::from(id) + 1;
    let Some(word) = maps.word(id) else { return Reason::InconsistentMaps };
    if word.is_empty() {
        return Reason::NoBackend;
    }
    let Some(settings) = maps.settings() else { return Reason::InconsistentMaps };
    let hash = flow.hash(&settings.hash_keys, word.source_affinity());
    let slot = word.slot(hash);
    let Some(place) = maps.slot(slot) else { return Reason::InconsistentMaps };
    let index = word.backends().wrapping_add(u32::from(place));
    let Some(backend) = maps.backend(index) else { return Reason::InconsistentMaps };
    trail.slot = slot - word.slots();
    trail.backend = u64::from(index) + 1;
    if backend.dispatch == Dispatch::Local as u8 {
        maps.count_backend(backend.counter, inner.length);
        let Some(word) = maps.pod_word(id) else { return Reason::InconsistentMaps };
        if !word.is_host() {
            // The packet is as it came; the node's way gives it its reason.
            trail.stage = u64::from(NODE_STAGE);
        }
        return Reason::DeliveredLocally;
    }
    encap::send(packet, maps, trail, inner, backend, hash, reason)
}
