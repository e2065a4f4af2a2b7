//! ICMP to a VIP: echo requests are answered, errors follow the flow that they quote.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{answer, steer};
use crate::address::{Address, Family};
use crate::encap::Inner;
use crate::flow::FlowKey;
use crate::maps::Maps;
use crate::packet::icmp::{self, Kind};
use crate::packet::ipv6::Chain;
use crate::packet::transport::{self, TCP, UDP};
use crate::packet::{Header, OFFSET_MASK, Packet, ipv4 as v4, ipv6 as v6};
use crate::stage::{Trail, refuse};
use crate::verdict::{Action, Reason};

/// A whole ICMP message, at [`Trail::message`].
#[inline(never)]
pub fn ipv4<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32) -> Reason {
    let l4 = trail.message as u32 & OFFSET_MASK;
    let Some(header) = Ipv4Hdr::read(packet, l3) else { return Reason::MalformedIcmp };
    let Some([message_type, ..]) = packet.load::<8>(l4) else { return Reason::MalformedIcmp };
    let destination = Address::from_v4(header.dst_addr);
    let reason = match icmp::kind(Family::V4, message_type) {
        Kind::Echo => refuse(maps, destination, Family::V4, Reason::EchoReply),
        Kind::Error => error_v4(packet, maps, trail, l3, l4, &header),
        Kind::NeighbourDiscovery | Kind::Other => Reason::UnsupportedIcmp,
    };
    conclude(packet, maps, reason, l3, l4, destination, Family::V4)
}

/// A whole ICMPv6 message, at [`Trail::message`].
#[inline(never)]
pub fn ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32) -> Reason {
    let l4 = trail.message as u32 & OFFSET_MASK;
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::MalformedIcmp };
    let Some([message_type, ..]) = packet.load::<8>(l4) else { return Reason::MalformedIcmp };
    let destination = Address::from_v6(header.dst_addr);
    let reason = match icmp::kind(Family::V6, message_type) {
        Kind::Echo => refuse(maps, destination, Family::V6, Reason::EchoReply),
        Kind::Error => error_v6(packet, maps, trail, l3, l4, &header),
        Kind::NeighbourDiscovery => refuse(maps, destination, Family::V6, Reason::NeighbourDiscovery),
        Kind::Other => Reason::UnsupportedIcmp,
    };
    conclude(packet, maps, reason, l3, l4, destination, Family::V6)
}

/// Answer what is to be answered, and drop only what is for a VIP.
#[inline(always)]
fn conclude<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    reason: Reason,
    l3: u32,
    l4: u32,
    destination: Address,
    family: Family,
) -> Reason {
    match reason {
        Reason::EchoReply => answer::echo(packet, l3, l4, family),
        reason if reason.action() == Action::Drop => refuse(maps, destination, family, reason),
        reason => reason,
    }
}

/// An ICMP error goes to the backend of the flow that it quotes, which is the client's seen from behind.
#[inline(always)]
fn error_v4<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    l3: u32,
    l4: u32,
    outer: &Ipv4Hdr,
) -> Reason {
    let at = l4 + icmp::LEN;
    let Some(quoted) = Ipv4Hdr::read(packet, at) else { return Reason::MalformedQuote };
    // The quote is cut, so that its total length says nothing of the frame.
    let header_len = u32::from(quoted.vihl & 0x0f) * 4;
    if quoted.vihl >> 4 != 4 || header_len < v4::LEN || v4::fragment_offset(&quoted) != 0 {
        return Reason::MalformedQuote;
    }
    if quoted.src_addr != outer.dst_addr {
        return Reason::ForeignQuote;
    }
    let inner = Inner { family: Family::V4, l3, length: v4::total_len(outer), padding: 0, tos: outer.tos };
    let flow = FlowKey {
        source: Address::from_v4(quoted.dst_addr),
        destination: Address::from_v4(quoted.src_addr),
        ports: 0,
        protocol: quoted.proto,
        family: Family::V4,
    };
    error_to_backend(packet, maps, trail, &inner, flow, at + header_len)
}

#[inline(always)]
fn error_v6<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    l3: u32,
    l4: u32,
    outer: &Ipv6Hdr,
) -> Reason {
    let at = l4 + icmp::LEN;
    let Some(quoted) = Ipv6Hdr::read(packet, at) else { return Reason::MalformedQuote };
    if quoted.vcf[0] >> 4 != 6 {
        return Reason::MalformedQuote;
    }
    if quoted.src_addr != outer.dst_addr {
        return Reason::ForeignQuote;
    }
    let mut chain = Chain::default();
    // The quote is cut, so that its length says nothing of the frame.
    let followed = v6::follow(packet, at + v6::LEN, u32::MAX, quoted.next_hdr, &mut chain);
    if followed != Reason::Forwarded || chain.fragment_offset != 0 {
        return Reason::MalformedQuote;
    }
    let inner =
        Inner { family: Family::V6, l3, length: v6::total_len(outer), padding: 0, tos: v6::traffic_class(outer) };
    let flow = FlowKey {
        source: Address::from_v6(quoted.dst_addr),
        destination: Address::from_v6(quoted.src_addr),
        ports: 0,
        protocol: chain.protocol,
        family: Family::V6,
    };
    error_to_backend(packet, maps, trail, &inner, flow, chain.offset)
}

/// Eight bytes of the quoted transport header are enough (RFC 792): they hold the ports.
#[inline(always)]
fn error_to_backend<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    inner: &Inner,
    mut flow: FlowKey,
    l4: u32,
) -> Reason {
    if flow.protocol != TCP && flow.protocol != UDP {
        return Reason::UnsupportedIcmp;
    }
    let Some([a, b, c, d, ..]) = packet.load::<8>(l4) else { return Reason::MalformedQuote };
    // The VIP sent the quoted packet: its port is the source's.
    flow.ports = transport::join([c, d, a, b]);
    steer(packet, maps, trail, inner, &flow, Reason::IcmpErrorForwarded)
}
