//! The packet that an ICMP error quotes: one of the VIP's to the client, the flow seen from behind.

use super::visit::Visit;
use super::{is_martian, is_own};
use crate::address::Family;
use crate::maps::Maps;
use crate::nat::{self, Quote};
use crate::packet::icmp::{self, Kind};
use crate::packet::{OFFSET_MASK, Packet};
use crate::verdict::Reason;

/// The flow that an ICMP error quotes becomes the visit's.
#[inline(always)]
pub(super) fn read<P: Packet, M: Maps>(packet: &P, maps: &M, visit: &mut Visit) -> Reason {
    // The error's own source is any router's; the flow's client is in the quote.
    let family = visit.family();
    if is_martian(visit.client, family) {
        return Reason::MartianSource;
    }
    if is_own(maps, visit.client, family) {
        return Reason::Hairpin;
    }
    // An edge sends on errors alone: echo requests it answers itself.
    let Some([message_type, ..]) = packet.load::<8>(visit.l4()) else { return Reason::MalformedInner };
    match icmp::kind(family, message_type) {
        Kind::Error => {}
        Kind::Echo | Kind::NeighbourDiscovery | Kind::Other => return Reason::UnsupportedIcmp,
    }
    if visit.ipv6 == 0 { read_ipv4(packet, visit) } else { read_ipv6(packet, visit) }
}

#[inline(never)]
fn read_ipv4<P: Packet>(packet: &P, visit: &mut Visit) -> Reason {
    read_family(packet, visit, Family::V4)
}

#[inline(never)]
fn read_ipv6<P: Packet>(packet: &P, visit: &mut Visit) -> Reason {
    read_family(packet, visit, Family::V6)
}

#[inline(always)]
fn read_family<P: Packet>(packet: &P, visit: &mut Visit, family: Family) -> Reason {
    let mut quote = Quote::default();
    let read = nat::read_quote(packet, visit.quote as u32 & OFFSET_MASK, family, &mut quote);
    if read != Reason::Forwarded {
        return read;
    }
    if quote.source != visit.vip {
        return Reason::ForeignQuote;
    }
    visit.client = quote.destination;
    // The VIP sent the quoted packet: its port is the source's.
    visit.ports = u64::from(quote.ports.rotate_left(16));
    visit.protocol = u64::from(quote.protocol);
    visit.quote_l4 = u64::from(quote.l4);
    Reason::Forwarded
}
