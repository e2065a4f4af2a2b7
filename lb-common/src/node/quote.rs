//! The packet that an ICMP error quotes: one of the VIP's to the client, the flow seen from behind.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::visit::Visit;
use crate::address::{Address, Family};
use crate::packet::icmp::{self, Kind};
use crate::packet::ipv6::Chain;
use crate::packet::transport::{self, TCP, UDP};
use crate::packet::{Header, Packet, ipv4 as v4, ipv6 as v6};
use crate::piece::OFFSET_MASK;
use crate::verdict::Reason;

/// The flow that an ICMP error quotes becomes the visit's.
#[inline(never)]
pub(super) fn read_ipv4<P: Packet>(packet: &P, visit: &mut Visit) -> Reason {
    let refused = check_type(packet, visit, Family::V4);
    if refused != Reason::Forwarded {
        return refused;
    }
    let at = visit.quote as u32 & OFFSET_MASK;
    let Some(quoted) = Ipv4Hdr::read(packet, at) else { return Reason::MalformedQuote };
    // The quote is cut, so that its total length says nothing of the frame.
    let header_len = u32::from(quoted.vihl & 0x0f) * 4;
    if quoted.vihl >> 4 != 4 || header_len < v4::LEN || v4::fragment_offset(&quoted) != 0 {
        return Reason::MalformedQuote;
    }
    if Address::from_v4(quoted.src_addr) != visit.vip {
        return Reason::ForeignQuote;
    }
    visit.client = Address::from_v4(quoted.dst_addr);
    take_ports(packet, visit, at + header_len, quoted.proto)
}

/// As [`read_ipv4`].
#[inline(never)]
pub(super) fn read_ipv6<P: Packet>(packet: &P, visit: &mut Visit) -> Reason {
    let refused = check_type(packet, visit, Family::V6);
    if refused != Reason::Forwarded {
        return refused;
    }
    let at = visit.quote as u32 & OFFSET_MASK;
    let Some(quoted) = Ipv6Hdr::read(packet, at) else { return Reason::MalformedQuote };
    if quoted.vcf[0] >> 4 != 6 {
        return Reason::MalformedQuote;
    }
    if Address::from_v6(quoted.src_addr) != visit.vip {
        return Reason::ForeignQuote;
    }
    visit.client = Address::from_v6(quoted.dst_addr);
    let mut chain = Chain::default();
    // The quote is cut, so that its length says nothing of the frame.
    let followed = v6::follow(packet, at + v6::LEN, u32::MAX, quoted.next_hdr, &mut chain);
    if followed != Reason::Forwarded || chain.fragment_offset != 0 {
        return Reason::MalformedQuote;
    }
    take_ports(packet, visit, chain.offset, chain.protocol)
}

/// An edge sends on errors alone: echo requests it answers itself.
#[inline(always)]
fn check_type<P: Packet>(packet: &P, visit: &Visit, family: Family) -> Reason {
    let Some([message_type, ..]) = packet.load::<8>(visit.l4()) else { return Reason::MalformedInner };
    match icmp::kind(family, message_type) {
        Kind::Error => Reason::Forwarded,
        Kind::Echo | Kind::NeighbourDiscovery | Kind::Other => Reason::UnsupportedIcmp,
    }
}

/// Eight bytes of the quoted transport header are enough (RFC 792): they hold the ports.
#[inline(always)]
fn take_ports<P: Packet>(packet: &P, visit: &mut Visit, l4: u32, protocol: u8) -> Reason {
    if protocol != TCP && protocol != UDP {
        return Reason::UnsupportedIcmp;
    }
    let Some([a, b, c, d, ..]) = packet.load::<8>(l4) else { return Reason::MalformedQuote };
    // The VIP sent the quoted packet: its port is the source's.
    visit.ports = u64::from(transport::join([c, d, a, b]));
    visit.protocol = u64::from(protocol);
    visit.quote_l4 = u64::from(l4);
    Reason::Forwarded
}
