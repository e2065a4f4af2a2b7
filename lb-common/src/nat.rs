//! One end of a packet gets another address and port, and every checksum over them is brought up to date (RFC 1624).

use crate::address::{Address, Family};
use crate::checksum::{difference, halves};
use crate::packet::Packet;
use crate::packet::icmp::{ICMP, ICMPV6};
use crate::packet::transport::{TCP, UDP};

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// What changes in a packet.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite {
    /// Its family.
    pub family: Family,
    /// Where its IP header begins in the frame.
    pub l3: u32,
    /// Where its transport header or ICMP message begins; 0 in a later fragment, which has none.
    pub l4: u32,
    /// Protocol number of that.
    pub protocol: u8,
    /// Which end changes.
    pub end: End,
    /// The address that stands there.
    pub address: Address,
    /// The one that is to.
    pub new_address: Address,
    /// The port that stands there; of no meaning for ICMP.
    pub port: u16,
    /// The one that is to.
    pub new_port: u16,
}

/// What changes in the packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// Its family.
    pub family: Family,
    /// Where the ICMP message begins in the frame.
    pub message: u32,
    /// Where the quoted IP header begins.
    pub l3: u32,
    /// Where the quoted transport header begins.
    pub l4: u32,
    /// Its protocol number: TCP or UDP.
    pub protocol: u8,
    /// Which end changes.
    pub end: End,
    /// The address that stands there.
    pub address: Address,
    /// The one that is to.
    pub new_address: Address,
    /// The port that stands there.
    pub port: u16,
    /// The one that is to.
    pub new_port: u16,
}

/// Where ICMP has its checksum, from its header's start.
const ICMP_CHECK: u32 = 2;

/// Where a protocol has its checksum, from its header's start.
#[inline(always)]
const fn check_at(protocol: u8) -> u32 {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => ICMP_CHECK,
    }
}

#[inline(always)]
fn address_difference(family: Family, old: Address, new: Address) -> u32 {
    match family {
        Family::V4 => difference(halves(old.words()[0]), halves(new.words()[0])),
        Family::V6 => difference(sum(old), sum(new)),
    }
}

#[inline(always)]
fn sum(address: Address) -> u32 {
    let [a, b, c, d] = address.words();
    halves(a) + halves(b) + halves(c) + halves(d)
}

#[inline(always)]
fn port_difference(old: u16, new: u16) -> u32 {
    difference(u32::from(old.to_be()), u32::from(new.to_be()))
}

/// Write an address at one end of an IP header.
#[inline(always)]
fn write_address<P: Packet>(packet: &mut P, family: Family, l3: u32, end: End, address: Address) -> bool {
    match (family, end) {
        (Family::V4, End::Source) => packet.store(l3 + 12, &address.v4()),
        (Family::V4, End::Destination) => packet.store(l3 + 16, &address.v4()),
        (Family::V6, End::Source) => packet.store(l3 + 8, &address.v6()),
        (Family::V6, End::Destination) => packet.store(l3 + 24, &address.v6()),
    }
}

#[inline(always)]
fn write_port<P: Packet>(packet: &mut P, l4: u32, end: End, port: u16) -> bool {
    match end {
        End::Source => packet.store(l4, &port.to_be_bytes()),
        End::Destination => packet.store(l4 + 2, &port.to_be_bytes()),
    }
}

/// Rewrite one end of a packet.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: &mut P, change: &Rewrite) -> bool {
    let Rewrite { family, l3, l4, protocol, end, address, new_address, port, new_port } = *change;
    let of_addresses = address_difference(family, address, new_address);
    if !write_address(packet, family, l3, end, new_address) {
        return false;
    }
    if family == Family::V4 && !packet.amend_header(l3 + 10, of_addresses) {
        return false;
    }
    if l4 == 0 || protocol == ICMP {
        // ICMP has no pseudo-header in IPv4 (RFC 792).
        return true;
    }
    if protocol == ICMPV6 {
        return packet.amend_transport(l4 + ICMP_CHECK, of_addresses, 0, false);
    }
    let of_ports = port_difference(port, new_port);
    let check = if protocol == TCP { check_at(TCP) } else { check_at(UDP) };
    packet.amend_transport(l4 + check, of_addresses, of_ports, protocol == UDP)
        && (port == new_port || write_port(packet, l4, end, new_port))
}

/// Rewrite one end of a quoted packet, and the checksum of the message that quotes it. The quote may be cut behind its
/// ports; checksums that it has are brought up to date.
#[inline(always)]
pub fn rewrite_quote<P: Packet>(packet: &mut P, change: &Quote) -> bool {
    let Quote { family, message, l3, l4, protocol, end, address, new_address, port, new_port } = *change;
    let of_addresses = address_difference(family, address, new_address);
    let of_ports = port_difference(port, new_port);
    let mut total = of_addresses + of_ports;
    if family == Family::V4 {
        let Some(before) = packet.load::<2>(l3 + 10) else { return false };
        let before = u16::from_ne_bytes(before);
        let after = crate::checksum::amend(before, of_addresses);
        total += difference(u32::from(before), u32::from(after));
        if !packet.store(l3 + 10, &after.to_ne_bytes()) {
            return false;
        }
    }
    let at = l4 + if protocol == TCP { check_at(TCP) } else { check_at(UDP) };
    // A quote of eight bytes has a checksum of UDP in it, and none of TCP.
    if let Some(before) = packet.load::<2>(at) {
        let before = u16::from_ne_bytes(before);
        if protocol == TCP || before != 0 {
            let mut after = crate::checksum::amend(before, halves(of_addresses) + halves(of_ports));
            if protocol == UDP && after == 0 {
                after = 0xffff;
            }
            total += difference(u32::from(before), u32::from(after));
            if !packet.store(at, &after.to_ne_bytes()) {
                return false;
            }
        }
    }
    write_address(packet, family, l3, end, new_address)
        && write_port(packet, l4, end, new_port)
        && packet.amend_transport(message + ICMP_CHECK, 0, halves(total), false)
}
