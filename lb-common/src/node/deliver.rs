//! The last step: the packet leaves its tunnel, and gets the pod's address and port.

use super::visit::Visit;
use super::{Outer, open};
use crate::address::Family;
use crate::maps::{Maps, PodWord};
use crate::nat::{self, End, Quote, Rewrite};
use crate::packet::Packet;
use crate::packet::icmp::{ICMP, ICMPV6};
use crate::verdict::Reason;

/// Open the tunnel and hand the packet to its pod, or to the host.
#[inline(always)]
pub(super) fn deliver<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &mut Visit) -> Reason {
    let opened = open_tunnel(packet, visit);
    if opened != Reason::Forwarded {
        return opened;
    }
    if PodWord(visit.word).is_host() {
        return Reason::Decapsulated;
    }
    if visit.quote != 0 { translate(packet, maps, visit) } else { redirect(packet, maps, visit) }
}

/// Take the outer header off, if there is one; offsets count from the frame that is left.
#[inline(never)]
fn open_tunnel<P: Packet>(packet: &mut P, visit: &mut Visit) -> Reason {
    let strip = visit.strip as u32 & 0xff;
    if strip != 0 {
        let (l3, end, ecn) = (visit.l3 as u32 & 0x1f, visit.end as u32, visit.ecn as u8);
        let outer = Outer { l3, header_len: strip, end, ecn, protocol: 0 };
        let reason = open(packet, &outer, visit.length as u32, visit.family());
        if reason != Reason::Forwarded {
            return reason;
        }
    }
    visit.strip = 0;
    for offset in [&mut visit.l4, &mut visit.quote, &mut visit.quote_l4] {
        *offset = offset.saturating_sub(u64::from(strip));
    }
    Reason::Forwarded
}

/// From the VIP and its port to the pod and its own. A later fragment shows no port.
#[inline(never)]
fn redirect<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &Visit) -> Reason {
    let Some(pod) = maps.pod((visit.pod as u32).wrapping_sub(1)) else { return Reason::InconsistentMaps };
    let rewrite = Rewrite {
        family: visit.family(),
        l3: visit.inner(),
        l4: visit.l4(),
        protocol: visit.protocol as u8,
        end: End::Destination,
        address: visit.vip,
        new_address: pod.address,
        port: visit.ports as u16,
        new_port: pod.port,
    };
    if !nat::rewrite(packet, &rewrite) {
        return Reason::InconsistentMaps;
    }
    maps.count_pod(pod.counter, visit.length as u32);
    if visit.is_former != 0 {
        Reason::DeliveredToFormerPod
    } else if visit.is_fragment != 0 {
        Reason::FragmentDeliveredToPod
    } else {
        Reason::DeliveredToPod
    }
}

/// An ICMP error becomes one about the pod's own packet, so that the pod's own socket acts on it.
#[inline(never)]
fn translate<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &Visit) -> Reason {
    let Some(pod) = maps.pod((visit.pod as u32).wrapping_sub(1)) else { return Reason::InconsistentMaps };
    let family = visit.family();
    let outer = Rewrite {
        family,
        l3: visit.inner(),
        l4: visit.l4(),
        protocol: if family == Family::V4 { ICMP } else { ICMPV6 },
        end: End::Destination,
        address: visit.vip,
        new_address: pod.address,
        port: 0,
        new_port: 0,
    };
    let quote = Quote {
        family,
        message: visit.l4(),
        l3: visit.quote as u32 & crate::piece::OFFSET_MASK,
        l4: visit.quote_l4 as u32 & crate::piece::OFFSET_MASK,
        protocol: visit.protocol as u8,
        end: End::Source,
        address: visit.vip,
        new_address: pod.address,
        port: visit.ports as u16,
        new_port: pod.port,
    };
    if nat::rewrite(packet, &outer) && nat::rewrite_quote(packet, &quote) {
        maps.count_pod(pod.counter, visit.length as u32);
        Reason::IcmpErrorDelivered
    } else {
        Reason::InconsistentMaps
    }
}
