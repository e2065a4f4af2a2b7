//! ICMP errors about clients' packets to a pod, from the pod or from this node: they leave as the VIP's, and quote what
//! the client sent.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{Origin, Reply, Shows, origin};
use crate::address::{Address, Family};
use crate::maps::Maps;
use crate::nat::{self, Change, End, Place, Quote};
use crate::packet::icmp::{self, ICMP, ICMPV6, Kind};
use crate::packet::{Header, OFFSET_MASK, Packet};
use crate::verdict::Reason;

/// A whole ICMP message that begins at `message`.
#[inline(never)]
pub fn ipv4<P: Packet, M: Maps>(packet: &mut P, maps: &M, l3: u32, message: u32) -> Reason {
    let Some(header) = Ipv4Hdr::read(packet, l3) else { return Reason::NotOurs };
    let ends = [Address::from_v4(header.src_addr), Address::from_v4(header.dst_addr)];
    error(packet, maps, Family::V4, [l3, message & OFFSET_MASK], ends)
}

/// A whole ICMPv6 message that begins at `message`.
#[inline(never)]
pub fn ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, l3: u32, message: u32) -> Reason {
    let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
    let ends = [Address::from_v6(header.src_addr), Address::from_v6(header.dst_addr)];
    error(packet, maps, Family::V6, [l3, message & OFFSET_MASK], ends)
}

/// What the quote says. A function of its own in the program, for the stack's sake.
#[inline(never)]
fn read<P: Packet>(packet: &P, message: u32, family: Family, quote: &mut Quote) -> bool {
    let Some([message_type, ..]) = packet.load::<8>(message) else { return false };
    icmp::kind(family, message_type) == Kind::Error
        && nat::read_quote(packet, (message & OFFSET_MASK) + icmp::LEN, family, quote) == Reason::Forwarded
}

/// As [`nat::rewrite_quote`], with a stack of its own.
#[inline(never)]
fn translate<P: Packet>(packet: &mut P, family: Family, message: u32, quote: &Quote, change: &Change) -> bool {
    let Some(end) = packet.excess(0) else { return false };
    nat::rewrite_quote(packet, family, message, end, quote, change)
}

#[inline(always)]
fn error<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    family: Family,
    [l3, message]: [u32; 2],
    [source, destination]: [Address; 2],
) -> Reason {
    let mut quote = Quote::default();
    if !read(packet, message, family, &mut quote) || quote.source != destination {
        return Reason::NotOurs;
    }
    // From the pod that was asked, or from the host on the way to it: no pod speaks for another.
    if source != quote.destination && !maps.is_tunnel_address(&source, family) {
        return Reason::NotOurs;
    }
    let quoted = Place { family, l3, l4: None, protocol: quote.protocol };
    // The quoted packet is the client's.
    let (pod, client, ports) = (quote.destination, quote.source, quote.ports.rotate_left(16));
    let mut from = Origin::default();
    let found = origin(maps, &quoted, &Reply { pod, client, ports, shows: Shows::Nothing }, &mut from);
    if found != Reason::ReplyRewritten {
        return found;
    }
    let bytes = packet.excess(l3).unwrap_or(0);
    let port_from = (ports >> 16) as u16;
    let mut change = Change { end: End::Destination, from: pod, to: from.vip, port_from, port_to: from.port };
    if !translate(packet, family, message, &quote, &change) {
        return Reason::InconsistentMaps;
    }
    change.end = End::Source;
    change.from = source;
    let protocol = match family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    };
    let place = Place { family, l3, l4: Some(message), protocol };
    if !nat::rewrite(packet, &place, &change) {
        return Reason::InconsistentMaps;
    }
    maps.count_reply(from.id, bytes);
    Reason::ReplyIcmpRewritten
}
