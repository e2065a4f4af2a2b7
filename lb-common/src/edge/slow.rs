//! The edge's longer ways: fragments, extension headers, ICMP. Each is a function of its own in the program, with a
//! stack of its own, so that the common way stays small.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{answer, check_ipv4, check_ipv6, steer};
use crate::address::{Address, Family};
use crate::encap::Inner;
use crate::flow::FlowKey;
use crate::maps::{FRAGMENT_LIFETIME_NS, FragmentKey, FragmentPorts, Maps};
use crate::packet::icmp::{self, ICMP, ICMPV6, Kind};
use crate::packet::ipv6::Chain;
use crate::packet::transport::{self, MIN_IN_FRAGMENT, TCP, UDP};
use crate::packet::{Header, Packet, ipv4 as v4, ipv6 as v6};
use crate::stage::{Trail, refuse};
use crate::verdict::{Action, Reason};

/// An IPv4 packet that is a fragment, or neither TCP nor UDP.
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
    if !trim(packet, &mut inner) {
        return Reason::InconsistentMaps;
    }
    let fragment = v4::is_fragment(header);
    if header.proto == ICMP {
        if fragment {
            return Reason::UnsupportedIcmp;
        }
        return icmp(packet, maps, trail, l3, l3 + header_len);
    }
    if header.proto != TCP && header.proto != UDP {
        return Reason::UnsupportedProtocol;
    }
    let key = FragmentKey {
        source: Address::from_v4(header.src_addr),
        destination: Address::from_v4(header.dst_addr),
        identification: u32::from(u16::from_ne_bytes(header.id)),
        protocol: header.proto,
        family: Family::V4 as u8,
        reserved: [0; 2],
    };
    let offset = v4::fragment_offset(header);
    fragment_to_vip(packet, maps, trail, &inner, &key, Piece { l4: l3 + header_len, offset, protocol: header.proto })
}

/// An IPv6 packet with extension headers, or neither TCP nor UDP.
#[inline(never)]
pub fn ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32) -> Reason {
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
    let destination = Address::from_v6(header.dst_addr);
    match ipv6_to_vip(packet, maps, trail, l3, &header) {
        reason if reason.action() == Action::Drop => refuse(maps, destination, Family::V6, reason),
        reason => reason,
    }
}

#[inline(always)]
fn ipv6_to_vip<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, header: &Ipv6Hdr) -> Reason {
    let mut inner = match check_ipv6(packet, l3, header) {
        Ok(inner) => inner,
        Err(reason) => return reason,
    };
    if !trim(packet, &mut inner) {
        return Reason::InconsistentMaps;
    }
    let mut chain = Chain::default();
    let reason = v6::follow(packet, l3 + v6::LEN, header.next_hdr, &mut chain);
    if reason != Reason::Forwarded {
        return reason;
    }
    if chain.protocol == ICMPV6 {
        if chain.is_fragment {
            return Reason::UnsupportedIcmp;
        }
        return icmp(packet, maps, trail, l3, chain.offset);
    }
    let later = chain.is_fragment && chain.fragment_offset != 0;
    if !later && chain.protocol != TCP && chain.protocol != UDP {
        return Reason::UnsupportedProtocol;
    }
    let source = Address::from_v6(header.src_addr);
    let destination = Address::from_v6(header.dst_addr);
    let end = l3 + inner.length;
    if chain.offset > end {
        return Reason::MalformedExtensionHeader;
    }
    if !chain.is_fragment {
        let ports = match transport::ports(packet, chain.offset, chain.protocol, end - chain.offset) {
            Ok(ports) => ports,
            Err(reason) => return reason,
        };
        let flow = FlowKey { source, destination, ports, protocol: chain.protocol, family: Family::V6 };
        return steer(packet, maps, trail, &inner, &flow, Reason::Forwarded);
    }
    let key = FragmentKey {
        source,
        destination,
        identification: chain.identification,
        protocol: 0,
        family: Family::V6 as u8,
        reserved: [0; 2],
    };
    let piece = Piece { l4: chain.offset, offset: chain.fragment_offset, protocol: chain.protocol };
    fragment_to_vip(packet, maps, trail, &inner, &key, piece)
}

/// Take the padding off now, so that the end of the frame is the end of the packet.
#[inline(always)]
fn trim<P: Packet>(packet: &mut P, inner: &mut Inner) -> bool {
    let padding = inner.padding;
    inner.padding = 0;
    padding == 0 || packet.trim(padding)
}

/// Where a fragment's payload begins, where that lies in the whole packet, and its protocol if it shows it.
struct Piece {
    l4: u32,
    offset: u32,
    protocol: u8,
}

/// A fragment goes where its flow's whole packets go: the first one leaves its ports for the others.
#[inline(always)]
fn fragment_to_vip<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    trail: &mut Trail,
    inner: &Inner,
    key: &FragmentKey,
    piece: Piece,
) -> Reason {
    let length = (inner.l3 + inner.length).saturating_sub(piece.l4);
    if piece.offset + length > 0xffff {
        return Reason::MalformedFragment;
    }
    let (ports, protocol) = if piece.offset == 0 {
        let Some(bytes) = packet.load::<{ MIN_IN_FRAGMENT as usize }>(piece.l4) else {
            return Reason::MalformedFragment;
        };
        let ports = transport::join([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let first = FragmentPorts { seen: maps.now(), ports, protocol: u32::from(piece.protocol) };
        maps.remember_fragment(key, first);
        (ports, piece.protocol)
    } else {
        match maps.fragment(key) {
            Some(first) if maps.now().wrapping_sub(first.seen) < FRAGMENT_LIFETIME_NS => {
                (first.ports, first.protocol as u8)
            }
            _ => return Reason::UnknownFragment,
        }
    };
    let family = inner.family;
    let flow = FlowKey { source: key.source, destination: key.destination, ports, protocol, family };
    steer(packet, maps, trail, inner, &flow, Reason::FragmentForwarded)
}

/// A whole ICMP message to a VIP; `l4` is where it begins. A function of its own: it is called for both families.
#[inline(never)]
fn icmp<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, l4: u32) -> Reason {
    // The callers have checked the header; version and family come from it once more.
    let Some([first]) = packet.load::<1>(l3) else { return Reason::MalformedIcmp };
    let Some([message_type, _code, ..]) = packet.load::<8>(l4) else { return Reason::MalformedIcmp };
    let family = if first >> 4 == 4 { Family::V4 } else { Family::V6 };
    match icmp::kind(family, message_type) {
        // Whose address it is must be known before it is answered.
        Kind::Echo => match vip(packet, maps, l3, family) {
            Reason::EchoReply => answer::echo(packet, l3, l4, family),
            reason => reason,
        },
        Kind::Error => match family {
            Family::V4 => error_v4(packet, maps, trail, l3, l4),
            Family::V6 => error_v6(packet, maps, trail, l3, l4),
        },
        Kind::NeighbourDiscovery => Reason::NeighbourDiscovery,
        Kind::Other => Reason::UnsupportedIcmp,
    }
}

/// [`Reason::EchoReply`] if the packet's destination is a VIP.
#[inline(always)]
fn vip<P: Packet, M: Maps>(packet: &P, maps: &M, l3: u32, family: Family) -> Reason {
    let address = match family {
        Family::V4 => packet.load::<4>(l3 + 16).map(Address::from_v4),
        Family::V6 => packet.load::<16>(l3 + 24).map(Address::from_v6),
    };
    match address {
        Some(address) => refuse(maps, address, family, Reason::EchoReply),
        None => Reason::MalformedIcmp,
    }
}

/// An ICMP error goes to the backend of the flow that it quotes, which is the client's seen from behind.
#[inline(always)]
fn error_v4<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, l4: u32) -> Reason {
    let Some(outer) = Ipv4Hdr::read(packet, l3) else { return Reason::MalformedIcmp };
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
    let inner = Inner { family: Family::V4, l3, length: v4::total_len(&outer), padding: 0, tos: outer.tos };
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
fn error_v6<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, l3: u32, l4: u32) -> Reason {
    let Some(outer) = Ipv6Hdr::read(packet, l3) else { return Reason::MalformedIcmp };
    let at = l4 + icmp::LEN;
    let Some(quoted) = Ipv6Hdr::read(packet, at) else { return Reason::MalformedQuote };
    if quoted.vcf[0] >> 4 != 6 {
        return Reason::MalformedQuote;
    }
    if quoted.src_addr != outer.dst_addr {
        return Reason::ForeignQuote;
    }
    let mut chain = Chain::default();
    if v6::follow(packet, at + v6::LEN, quoted.next_hdr, &mut chain) != Reason::Forwarded || chain.fragment_offset != 0
    {
        return Reason::MalformedQuote;
    }
    let inner =
        Inner { family: Family::V6, l3, length: v6::total_len(&outer), padding: 0, tos: v6::traffic_class(&outer) };
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
