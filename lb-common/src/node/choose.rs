//! Which pod a packet goes to, where the slot alone does not say it.
//!
//! Asked in this order: the pods that owned the slot before, if the packet may belong to a flow of theirs; the owner; the
//! owners of the slots that follow, for where the first cannot have the flow. Every packet of a flow asks in the same
//! order, so that no state is needed to find the same pod again.

use super::pod_hash;
use super::visit::{FIN, RST, Visit};
use crate::address::Address;
use crate::maps::{Maps, POD_RECORD, Pod, PodCell, PodWord, Record, RecordEvent, RecordKey, ServiceWord};
use crate::packet::transport::TCP;
use crate::packet::{Connection, Packet, Socket};
use crate::verdict::Reason;

/// How many slots are asked for a pod that can have the flow.
const PROBES: u64 = 4;

/// Choose. [`Reason::Forwarded`] with [`Visit::pod`] set, or why there is none.
#[inline(always)]
pub(super) fn choose<P: Packet, M: Maps>(packet: &P, maps: &M, visit: &mut Visit) -> Reason {
    if PodWord(visit.word).pods().is_none() {
        return Reason::NoPod;
    }
    let reason = former(packet, maps, visit);
    if reason != Reason::Forwarded || visit.pod != 0 {
        return reason;
    }
    owner(maps, visit)
}

/// The slot's cell, and with `next` that of one that follows.
#[inline(always)]
fn cell<M: Maps>(maps: &M, table: ServiceWord, slot: u64, next: u64) -> Option<PodCell> {
    let mask = (1 << table.log2_slots()) - 1;
    maps.pod_cell(table.slots() + (slot.wrapping_add(next) & mask))
}

/// A former pod of the slot that knows the flow: its sockets do, or a record says so.
#[inline(never)]
fn former<P: Packet, M: Maps>(packet: &P, maps: &M, visit: &mut Visit) -> Reason {
    let Some(table) = PodWord(visit.word).pods() else { return Reason::NoPod };
    let hash = pod_hash(visit.hash);
    visit.slot = table.slot(hash) - table.slots();
    let Some(cell) = cell(maps, table, visit.slot, 0) else { return Reason::InconsistentMaps };
    let begins = visit.may_begin();
    for place in cell.formers() {
        if place == PodCell::NONE {
            continue;
        }
        let index = table.backends().wrapping_add(u32::from(place));
        let Some(pod) = maps.pod(index) else { return Reason::InconsistentMaps };
        if !maps.has_pod_device(pod.device) {
            continue;
        }
        let knows = if is_recorded(maps, visit, pod) {
            seen_before(maps, visit, pod)
        } else {
            !begins && visit.protocol == u64::from(TCP) && is_connected(packet, visit, pod)
        };
        if knows {
            visit.pod = u64::from(index) + 1;
            visit.is_former = 1;
            break;
        }
    }
    Reason::Forwarded
}

/// Whether flows of this client to this pod are recorded: always, or because the client is inside.
#[inline(always)]
fn is_recorded<M: Maps>(maps: &M, visit: &Visit, pod: &Pod) -> bool {
    pod.flags & POD_RECORD != 0 || maps.internal(&visit.client, visit.family()) != 0
}

/// Whether a pod's sockets have the connection.
#[inline(never)]
fn is_connected<P: Packet>(packet: &P, visit: &Visit, pod: &Pod) -> bool {
    let ports = visit.ports as u32 & 0xffff_0000 | u32::from(pod.port);
    let connection = Connection { client: visit.client, pod: pod.address, ports, family: visit.family() };
    let l4 = if visit.quote == 0 { visit.l4() } else { 0 };
    packet.socket(pod.namespace, &connection, visit.inner(), l4) == Socket::Connected
}

/// Whether a flow is recorded for a pod, with the VIP that it was asked at; a packet of it is noted then.
#[inline(never)]
fn seen_before<M: Maps>(maps: &M, visit: &Visit, pod: &Pod) -> bool {
    let key = key(visit, pod.address, pod.port);
    maps.record(&key, |record| look(record, visit, maps.now_coarse())) == Some(Found::Same)
}

#[inline(always)]
fn key(visit: &Visit, address: Address, port: u16) -> RecordKey {
    let ports = visit.ports as u32 & 0xffff_0000 | u32::from(port);
    RecordKey::new(visit.client, address, visit.family(), visit.protocol as u8, ports)
}

/// What a record says to a flow of the same client, ports and pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It is this flow's.
    Same,
    /// It is another VIP's, which still may use it.
    Other,
    /// It is another VIP's, which has ended.
    Expired,
}

#[inline(always)]
fn look(record: &Record, visit: &Visit, now: u64) -> Found {
    if record.vip == visit.vip && record.port() == visit.ports as u16 {
        if visit.quote == 0 {
            record.note(now, event(visit));
        }
        return Found::Same;
    }
    let begins = visit.protocol == u64::from(TCP) && visit.may_begin();
    if record.gives_way(now, visit.protocol as u8, begins) { Found::Expired } else { Found::Other }
}

/// What the packet says of its flow.
#[inline(always)]
const fn event(visit: &Visit) -> RecordEvent {
    if visit.tcp_flags & RST != 0 {
        RecordEvent::RESETS
    } else if visit.tcp_flags & FIN != 0 {
        RecordEvent::CLIENT_ENDS
    } else if visit.protocol == TCP as u64 && visit.may_begin() {
        RecordEvent::BEGINS
    } else {
        RecordEvent::CONTINUES
    }
}

/// The first pod that can have the flow, from the slot's owner on. Where flows are recorded, the one that has it already
/// comes first.
#[inline(never)]
fn owner<M: Maps>(maps: &M, visit: &mut Visit) -> Reason {
    let Some(table) = PodWord(visit.word).pods() else { return Reason::NoPod };
    let mut recorded = maps.internal(&visit.client, visit.family()) != 0;
    let now = maps.now_coarse();
    let mut key = key(visit, Address::default(), 0);
    let (mut free, mut taken, mut replaces) = (0, false, false);
    for next in 0..PROBES {
        let Some(cell) = cell(maps, table, visit.slot, next) else { return Reason::InconsistentMaps };
        let index = table.backends().wrapping_add(u32::from(cell.owner()));
        let Some(pod) = maps.pod(index) else { return Reason::InconsistentMaps };
        if !maps.has_pod_device(pod.device) {
            continue;
        }
        // Once records count, they do for every pod that the flow may have gone to.
        recorded |= pod.flags & POD_RECORD != 0;
        if !recorded {
            visit.pod = u64::from(index) + 1;
            return Reason::Forwarded;
        }
        key.turn_to(pod.address, pod.port);
        match maps.record(&key, |record| look(record, visit, now)) {
            Some(Found::Same) => {
                visit.pod = u64::from(index) + 1;
                return Reason::Forwarded;
            }
            Some(Found::Other) => taken = true,
            found if free == 0 => {
                free = u64::from(index) + 1;
                replaces = found.is_some();
            }
            Some(Found::Expired) | None => {}
        }
    }
    if free == 0 {
        return if taken { Reason::FlowCollision } else { Reason::PodGone };
    }
    visit.pod = free;
    remember(maps, visit, &mut key, now, replaces)
}

/// Record the flow for the chosen pod. An ICMP error begins none.
#[inline(always)]
fn remember<M: Maps>(maps: &M, visit: &Visit, key: &mut RecordKey, now: u64, replaces: bool) -> Reason {
    if visit.quote != 0 {
        return Reason::Forwarded;
    }
    let Some(pod) = maps.pod((visit.pod as u32).wrapping_sub(1)) else { return Reason::InconsistentMaps };
    key.turn_to(pod.address, pod.port);
    let record = Record::new(visit.vip, visit.ports as u16, now);
    if visit.protocol == u64::from(TCP) {
        // Without a SYN the flow is older than its record.
        record.note(now, event(visit));
    }
    if maps.remember_flow(key, record, replaces) {
        return Reason::Forwarded;
    }
    // Another packet may have been faster, on another CPU: of this flow, or of the one that it would be confused with.
    match maps.record(key, |record| look(record, visit, now)) {
        Some(Found::Same) => Reason::Forwarded,
        Some(Found::Other | Found::Expired) => Reason::FlowCollision,
        None => Reason::FlowNotRecorded,
    }
}
