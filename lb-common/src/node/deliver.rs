//! The last step: the packet leaves its tunnel, and gets the pod's address and port.

use super::visit::Visit;
use super::{Outer, open};
use crate::maps::{Maps, Pod, PodWord};
use crate::nat::{self, Change, End, Place, Quote};
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
    let l4 = visit.l4();
    let l4 = if l4 == 0 { None } else { Some(l4) };
    let place = Place { family: visit.family(), l3: visit.inner(), l4, protocol: visit.protocol as u8 };
    if !nat::rewrite(packet, &place, &change(visit, pod, End::Destination)) {
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
#[inline(always)]
fn translate<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &Visit) -> Reason {
    if !translate_outside(packet, maps, visit) || !translate_quote(packet, maps, visit) {
        return Reason::InconsistentMaps;
    }
    Reason::IcmpErrorDelivered
}

#[inline(never)]
fn translate_outside<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &Visit) -> bool {
    let Some(pod) = maps.pod((visit.pod as u32).wrapping_sub(1)) else { return false };
    let protocol = if visit.ipv6 == 0 { ICMP } else { ICMPV6 };
    let place = Place { family: visit.family(), l3: visit.inner(), l4: Some(visit.l4()), protocol };
    maps.count_pod(pod.counter, visit.length as u32);
    nat::rewrite(packet, &place, &change(visit, pod, End::Destination))
}

#[inline(never)]
fn translate_quote<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &Visit) -> bool {
    let Some(pod) = maps.pod((visit.pod as u32).wrapping_sub(1)) else { return false };
    let quote =
        Quote { l3: visit.quote as u32, l4: visit.quote_l4 as u32, protocol: visit.protocol as u8, ..Quote::default() };
    let end = visit.inner() + visit.length as u32;
    nat::rewrite_quote(packet, visit.family(), visit.l4(), end, &quote, &change(visit, pod, End::Source))
}

/// The VIP becomes the pod, at one end.
#[inline(always)]
const fn change(visit: &Visit, pod: &Pod, end: End) -> Change {
    Change { end, from: visit.vip, to: pod.address, port_from: visit.ports as u16, port_to: pod.port }
}
