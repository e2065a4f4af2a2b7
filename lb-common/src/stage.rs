//! The order of the stages: whose packet it is, and which role it is for.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::{Address, Family};
use crate::maps::{Maps, NODE_STAGE, SLOW_STAGE, ServiceId, ServiceKey, VIP_MARK, prefilter_v4, prefilter_v6};
use crate::node::visit::Visit;
use crate::packet::ipv6::Chain;
use crate::packet::transport::{IPV4_IN_IP, IPV6_IN_IP};
use crate::packet::{Header, Packet, ethernet};
use crate::verdict::Reason;
use crate::{edge, node, return_path};

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
    pub service: u64,
    /// The backend's index plus one; 0 for none.
    pub backend: u64,
    /// The slot within the service's table.
    pub slot: u64,
    /// The index of the interface that a packet to be sent leaves by.
    pub interface: u64,
    /// Where an ICMP message to a VIP begins in the frame; 0 for none.
    pub message: u64,
    /// The longest packet that would have fitted into the tunnel, for one that does not; 0 else.
    pub mtu: u64,
    /// The pod's index plus one; 0 for none.
    pub pod: u64,
    /// Which longer way a packet takes that has to: an index in the array of stages.
    pub stage: u64,
}

/// One packet, from the frame to the verdict. `None`: it takes a longer way and is as it came. Which one stands in
/// [`Trail::stage`]: [`run_slow`], or [`run_node`].
///
/// They are programs of their own in the kernel, joined by tail calls, because the stack is 512 bytes.
#[inline(always)]
pub fn run<P: Packet, M: Maps>(roles: Roles, packet: &mut P, maps: &M, trail: &mut Trail) -> Option<Reason> {
    let Some((family, l3)) = ethernet::parse(packet) else { return Some(Reason::NotOurs) };
    match family {
        Family::V4 => {
            let Some(header) = Ipv4Hdr::read(packet, l3) else { return Some(Reason::NotOurs) };
            let (word, bit) = prefilter_v4(Address::from_v4(header.dst_addr));
            if maps.prefilter(word) & bit == 0 {
                return Some(Reason::NotOurs);
            }
            if roles.node && (header.proto == IPV4_IN_IP || header.proto == IPV6_IN_IP) {
                match node::ipv4(packet, maps, trail, l3, &header) {
                    Some(Reason::NotOurs) => {}
                    reason => return of_node(trail, reason),
                }
            }
            if !roles.edge {
                return Some(Reason::NotOurs);
            }
            edge::ipv4(packet, maps, trail, l3, &header)
        }
        Family::V6 => {
            let Some(header) = Ipv6Hdr::read(packet, l3) else { return Some(Reason::NotOurs) };
            let (word, bit) = prefilter_v6(Address::from_v6(header.dst_addr));
            if maps.prefilter(word) & bit == 0 {
                return Some(Reason::NotOurs);
            }
            if roles.node && (header.next_hdr == IPV4_IN_IP || header.next_hdr == IPV6_IN_IP) {
                match node::ipv6(packet, maps, trail, l3, &header) {
                    Some(Reason::NotOurs) => {}
                    reason => return of_node(trail, reason),
                }
            }
            if !roles.edge {
                return Some(Reason::NotOurs);
            }
            edge::ipv6(packet, maps, trail, l3, &header)
        }
    }
}

/// A packet that the node needs a longer look at goes on there.
#[inline(always)]
const fn of_node(trail: &mut Trail, reason: Option<Reason>) -> Option<Reason> {
    if reason.is_none() {
        trail.stage = NODE_STAGE as u64;
    }
    reason
}

/// The node's longer way, for a tunnel packet, or for one to a VIP whose backend is this host. Each step is a function of
/// its own in the program; what they tell each other stands in `visit`, which is zero at first and lies beside the stack.
#[inline(always)]
pub fn run_node<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail, visit: &mut Visit) -> Reason {
    let reason = node::visit::run(packet, maps, visit);
    trail.service = visit.service;
    trail.slot = visit.slot;
    trail.pod = visit.pod;
    reason
}

/// The edge's longer way: fragments, extension headers, ICMP, and what is too long for the tunnel. Where [`Trail::stage`] is set after it,
/// the packet goes on in [`run_node`]. Each step is a
/// function of its own in the program, called from here, so that their stacks do not add up.
#[inline(always)]
pub fn run_slow<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail) -> Reason {
    let Some((family, l3)) = ethernet::parse(packet) else { return Reason::NotOurs };
    let mut reason = match family {
        Family::V4 => edge::slow::ipv4(packet, maps, trail, l3),
        Family::V6 => {
            let mut chain = Chain::default();
            match edge::slow::follow(packet, l3, &mut chain) {
                Reason::Forwarded => edge::slow::ipv6(packet, maps, trail, l3, &chain),
                reason => edge::slow::refuse_ipv6(packet, maps, l3, reason),
            }
        }
    };
    if trail.stage != 0 {
        return reason;
    }
    if trail.message != 0 {
        reason = match family {
            Family::V4 => edge::message::ipv4(packet, maps, trail, l3),
            Family::V6 => edge::message::ipv6(packet, maps, trail, l3),
        };
    }
    if trail.mtu != 0 {
        reason = match family {
            Family::V4 => edge::answer::frag_needed(packet, l3, trail.mtu as u32, reason),
            Family::V6 => edge::answer::packet_too_big(packet, l3, trail.mtu as u32, reason),
        };
    }
    reason
}

/// One packet that leaves this host. `None`: it takes the longer way, [`run_return_slow`], and is as it came.
#[inline(always)]
pub fn run_return<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail) -> Option<Reason> {
    let Some((family, l3)) = ethernet::parse(packet) else { return Some(Reason::NotOurs) };
    trail.stage = u64::from(SLOW_STAGE);
    match family {
        Family::V4 => {
            let Some(header) = Ipv4Hdr::read(packet, l3) else { return Some(Reason::NotOurs) };
            return_path::ipv4(packet, maps, l3, &header)
        }
        Family::V6 => {
            let Some(header) = Ipv6Hdr::read(packet, l3) else { return Some(Reason::NotOurs) };
            return_path::ipv6(packet, maps, l3, &header)
        }
    }
}

/// The longer way out: SYN-ACKs, fragments, options, extension headers, and ICMP errors.
#[inline(always)]
pub fn run_return_slow<P: Packet, M: Maps>(packet: &mut P, maps: &M, trail: &mut Trail) -> Reason {
    let Some((family, l3)) = ethernet::parse(packet) else { return Reason::NotOurs };
    let reason = match family {
        Family::V4 => return_path::slow::ipv4(packet, maps, trail, l3),
        Family::V6 => {
            let mut chain = Chain::default();
            if !return_path::slow::follow(packet, l3, &mut chain) {
                return Reason::NotOurs;
            }
            return_path::slow::ipv6(packet, maps, trail, l3, &chain)
        }
    };
    match (trail.message as u32, family) {
        (0, _) => reason,
        (message, Family::V4) => return_path::message::ipv4(packet, maps, l3, message),
        (message, Family::V6) => return_path::message::ipv6(packet, maps, l3, message),
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
    key.widen_to_all_ports();
    if let Some(id) = maps.service(&key) {
        return Ok(id);
    }
    key.widen_to_vip();
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
