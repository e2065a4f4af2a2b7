//! The order of the stages: whose packet it is, and which role it is for.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::{Address, Family};
use crate::maps::{Maps, ServiceId, ServiceKey, VIP_MARK, prefilter_v4, prefilter_v6};
use crate::packet::transport::{IPV4_IN_IP, IPV6_IN_IP};
use crate::packet::{Header, Packet, ethernet};
use crate::verdict::Reason;
use crate::{edge, node};

/// The roles that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// VIPs' packets are forwarded.
    pub edge: bool,
    /// Tunnel packets to this host are decapsulated.
    pub node: bool,
}

/// What was chosen for a packet on its way; for the transmit step, for traces and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// The service's id plus one; 0 for none.
    pub service: u32,
    /// The backend's index plus one; 0 for none.
    pub backend: u32,
    /// The slot within the service's table.
    pub slot: u32,
    /// The interface that a packet to be sent leaves by.
    pub interface: u32,
}

/// One packet, from the frame to the verdict.
#[inline(always)]
pub fn run<P: Packet, M: Maps>(roles: Roles, packet: &mut P, maps: &M, trail: &mut Trail) -> Reason {
    let Some((family, l3)) = ethernet::parse(packet) else { return Reason::NotOurs };
    match family {
        Family::V4 => {
            let Some(header) = Ipv4Hdr::read(packet, l3) else { return Reason::NotOurs };
            let (word, bit) = prefilter_v4(Address::from_v4(header.dst_addr));
            if maps.prefilter(word) & bit == 0 {
                return Reason::NotOurs;
            }
            if roles.node && (header.proto == IPV4_IN_IP || header.proto == IPV6_IN_IP) {
                let reason = node::ipv4(packet, maps, trail, l3, &header);
                if reason != Reason::NotOurs {
                    return reason;
                }
            }
            if roles.edge { edge::ipv4(packet, maps, trail, l3, &header) } else { Reason::NotOurs }
        }
        Family::V6 => {
            let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
            let (word, bit) = prefilter_v6(Address::from_v6(header.dst_addr));
            if maps.prefilter(word) & bit == 0 {
                return Reason::NotOurs;
            }
            if roles.node && (header.next_hdr == IPV4_IN_IP || header.next_hdr == IPV6_IN_IP) {
                let reason = node::ipv6(packet, maps, trail, l3, &header);
                if reason != Reason::NotOurs {
                    return reason;
                }
            }
            if roles.edge { edge::ipv6(packet, maps, trail, l3, &header) } else { Reason::NotOurs }
        }
    }
}

/// The service of a VIP, protocol and port; else [`Reason::UnknownPort`] for a VIP and [`Reason::NotOurs`] for none.
#[inline(always)]
pub(crate) fn service<M: Maps>(
    maps: &M,
    address: Address,
    family: Family,
    protocol: u8,
    port: u16,
) -> Result<ServiceId, Reason> {
    let mut key = ServiceKey::new(address, family, protocol, port);
    match maps.service(&key) {
        Some(VIP_MARK) => return Err(Reason::InconsistentMaps),
        Some(id) => return Ok(id),
        None => {}
    }
    key.port = 0;
    if let Some(id) = maps.service(&key) {
        return Ok(id);
    }
    key.protocol = 0;
    match maps.service(&key) {
        Some(_) => Err(Reason::UnknownPort),
        None => Err(Reason::NotOurs),
    }
}

/// Refuse a packet that its destination is to be blamed for only if it is a VIP: the prefilter errs on one side.
#[inline(always)]
pub(crate) fn refuse<M: Maps>(maps: &M, address: Address, family: Family, reason: Reason) -> Reason {
    match maps.service(&ServiceKey::vip(address, family)) {
        Some(_) => reason,
        None => Reason::NotOurs,
    }
}
