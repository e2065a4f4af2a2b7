//! Another address and port in a packet, inbound and outbound alike: in its own headers, and in what an ICMP error
//! quotes.
//!
//! Checksums are brought up to date, never made anew (RFC 1624): a pod's reply may be many segments in one buffer, whose
//! checksum the device completes. Such a checksum is the kernel's to change, and [`Packet::amend_transport`] asks it to.
//! One inside a quote is mere data, which the message's checksum covers.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::{Address, Family};
use crate::checksum::{amend, difference, halves};
use crate::packet::icmp::ICMPV6;
use crate::packet::ipv6::Chain;
use crate::packet::transport::{self, TCP, UDP};
use crate::packet::{Header, OFFSET_MASK, Packet, ipv4 as v4, ipv6 as v6};
use crate::verdict::Reason;

/// The end of a packet that gets another address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Whence it comes.
    Source,
    /// Where it goes.
    Destination,
}

/// What one end becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which end.
    pub end: End,
    /// The address that stands there.
    pub from: Address,
    /// The address that shall.
    pub to: Address,
    /// The port that stands there, in host order.
    pub port_from: u16,
    /// The port that shall, in host order.
    pub port_to: u16,
}

/// A packet, as far as a [`Change`] must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The family of its header, and of both addresses of the change.
    pub family: Family,
    /// Where the IP header begins in the frame.
    pub l3: u32,
    /// Where the transport header or the ICMP message begins; none in a later fragment.
    pub l4: Option<u32>,
    /// The transport's protocol.
    pub protocol: u8,
}

/// Give one end of a packet another address and port. `false`: the frame is not that long.
///
/// Of TCP and UDP the ports change and the checksum, of ICMPv6 the checksum alone (it covers the addresses: RFC 4443
/// §2.3), of ICMP nothing.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: &mut P, place: &Place, change: &Change) -> bool {
    let pseudo = difference(address_sum(change.from), address_sum(change.to));
    let addressed = match (place.family, change.end) {
        (Family::V4, End::Source) => packet.store(place.l3 + 12, &change.to.v4()),
        (Family::V4, End::Destination) => packet.store(place.l3 + 16, &change.to.v4()),
        (Family::V6, End::Source) => packet.store_address(place.l3 + 8, &change.to.v6()),
        (Family::V6, End::Destination) => packet.store_address(place.l3 + 24, &change.to.v6()),
    };
    if !addressed || (place.family == Family::V4 && !packet.amend_header(place.l3 + 10, pseudo)) {
        return false;
    }
    let Some(l4) = place.l4 else { return true };
    let l4 = l4 & OFFSET_MASK;
    if place.protocol == ICMPV6 && place.family == Family::V6 {
        return packet.amend_transport(l4 + 2, pseudo, 0, false);
    }
    let Some(check) = checksum_at(place.protocol) else { return true };
    let plain = difference(port_sum(change.port_from), port_sum(change.port_to));
    packet.store(port_at(l4, change.end), &change.port_to.to_be_bytes())
        && packet.amend_transport(l4 + check, pseudo, plain, place.protocol == UDP)
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// Its source.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
    /// Where its IP header begins in the frame.
    pub l3: u32,
    /// Where its transport header begins.
    pub l4: u32,
    /// Its ports as they stand there, joined as [`crate::flow::FlowKey`] holds them.
    pub ports: u32,
    /// Its protocol, TCP or UDP.
    pub protocol: u8,
}

/// Read the packet that begins at `at` in an error. [`Reason::Forwarded`] when `quote` says what it is.
///
/// The quote is cut, so that its lengths say nothing of the frame. Eight bytes of the transport header are enough (RFC
/// 792): they hold the ports.
#[inline(always)]
pub fn read_quote<P: Packet>(packet: &P, at: u32, family: Family, quote: &mut Quote) -> Reason {
    quote.l3 = at;
    match family {
        Family::V4 => {
            let Some(header) = Ipv4Hdr::read(packet, at) else { return Reason::MalformedQuote };
            let header_len = u32::from(header.vihl & 0x0f) * 4;
            if header.vihl >> 4 != 4 || header_len < v4::LEN || v4::fragment_offset(&header) != 0 {
                return Reason::MalformedQuote;
            }
            quote.source = Address::from_v4(header.src_addr);
            quote.destination = Address::from_v4(header.dst_addr);
            quote.protocol = header.proto;
            quote.l4 = at + header_len;
        }
        Family::V6 => {
            let Some(header) = Ipv6Hdr::read(packet, at) else { return Reason::MalformedQuote };
            if header.vcf[0] >> 4 != 6 {
                return Reason::MalformedQuote;
            }
            quote.source = Address::from_v6(header.src_addr);
            quote.destination = Address::from_v6(header.dst_addr);
            let mut chain = Chain::default();
            let followed = v6::follow(packet, at + v6::LEN, u32::MAX, header.next_hdr, &mut chain);
            if followed != Reason::Forwarded || chain.fragment_offset != 0 {
                return Reason::MalformedQuote;
            }
            quote.protocol = chain.protocol;
            quote.l4 = chain.offset & OFFSET_MASK;
        }
    }
    if quote.protocol != TCP && quote.protocol != UDP {
        return Reason::UnsupportedIcmp;
    }
    let Some([a, b, c, d, ..]) = packet.load::<8>(quote.l4) else { return Reason::MalformedQuote };
    quote.ports = transport::join([a, b, c, d]);
    Reason::Forwarded
}

/// Give one end of the packet that the ICMP error at `message` quotes another address and port, with its checksums and
/// the message's. `end` is where the whole packet ends: a TCP checksum beyond it is not in the quote. `false`: the frame
/// is not that long.
#[inline(always)]
pub fn rewrite_quote<P: Packet>(
    packet: &mut P,
    family: Family,
    message: u32,
    end: u32,
    quote: &Quote,
    change: &Change,
) -> bool {
    let (l3, l4) = (quote.l3 & OFFSET_MASK, quote.l4 & OFFSET_MASK);
    let pseudo = difference(address_sum(change.from), address_sum(change.to));
    let plain = difference(port_sum(change.port_from), port_sum(change.port_to));
    // What the message's own checksum has to follow: every word that becomes another.
    let mut old = halves(address_sum(change.from)) + port_sum(change.port_from);
    let mut new = halves(address_sum(change.to)) + port_sum(change.port_to);
    if family == Family::V4 {
        let Some(check) = packet.load::<2>(l3 + 10) else { return false };
        let before = u16::from_ne_bytes(check);
        let after = amend(before, pseudo);
        if !packet.store(l3 + 10, &after.to_ne_bytes()) {
            return false;
        }
        old += u32::from(before);
        new += u32::from(after);
    }
    let at = l4 + if quote.protocol == TCP { 16 } else { 6 };
    if at + 2 <= end
        && let Some(check) = packet.load::<2>(at)
    {
        let before = u16::from_ne_bytes(check);
        let is_udp = quote.protocol == UDP;
        if !(is_udp && before == 0) {
            let after = match amend(before, halves(pseudo) + halves(plain)) {
                0 if is_udp => 0xffff,
                after => after,
            };
            if !packet.store(at, &after.to_ne_bytes()) {
                return false;
            }
            old += u32::from(before);
            new += u32::from(after);
        }
    }
    let addressed = match (family, change.end) {
        (Family::V4, End::Source) => packet.store(l3 + 12, &change.to.v4()),
        (Family::V4, End::Destination) => packet.store(l3 + 16, &change.to.v4()),
        (Family::V6, End::Source) => packet.store(l3 + 8, &change.to.v6()),
        (Family::V6, End::Destination) => packet.store(l3 + 24, &change.to.v6()),
    };
    addressed
        && packet.store(port_at(l4, change.end), &change.port_to.to_be_bytes())
        && packet.amend_transport((message & OFFSET_MASK) + 2, 0, difference(old, new), false)
}

/// The sum of an address's words; an IPv4 address's other words are zero.
#[inline(always)]
const fn address_sum(address: Address) -> u32 {
    let [a, b, c, d] = address.words();
    halves(a) + halves(b) + halves(c) + halves(d)
}

/// A port as a word of a sum.
#[inline(always)]
const fn port_sum(port: u16) -> u32 {
    port.to_be() as u32
}

#[inline(always)]
const fn port_at(l4: u32, end: End) -> u32 {
    match end {
        End::Source => l4,
        End::Destination => l4 + 2,
    }
}

/// Where a transport header with ports has its checksum.
#[inline(always)]
const fn checksum_at(protocol: u8) -> Option<u32> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
