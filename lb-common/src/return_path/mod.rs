//! The way out of a pod: its replies leave as the VIP's.
//!
//! This file is the way of nearly all replies: whole, TCP or UDP, nothing between IP and transport. What needs a longer
//! look is in [`slow`], ICMP errors in [`message`], the MSS of a SYN-ACK in [`mss`]. The packets are this host's own, so
//! that nothing is refused for its form: what is not understood is left alone.

pub mod message;
pub mod mss;
pub mod slow;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::{Address, Family};
use crate::maps::{Maps, RecordEvent, RecordKey, ReplyId, ServiceKey};
use crate::nat::{self, Change, End, Place};
use crate::packet::icmp::{ICMP, ICMPV6};
use crate::packet::transport::{self, TCP, UDP};
use crate::packet::{Packet, ipv4 as v4, ipv6 as v6};
use crate::verdict::Reason;

/// An IPv4 packet that leaves this host. `None`: it takes the longer way.
#[inline(always)]
pub fn ipv4<P: Packet, M: Maps>(packet: &mut P, maps: &M, l3: u32, header: &Ipv4Hdr) -> Option<Reason> {
    if header.proto != TCP && header.proto != UDP {
        return if header.proto == ICMP { None } else { Some(Reason::NotOurs) };
    }
    if header.vihl != v4::PLAIN || v4::is_fragment(header) {
        return None;
    }
    let place = Place { family: Family::V4, l3, l4: Some(l3 + v4::LEN), protocol: header.proto };
    let ends = [Address::from_v4(header.src_addr), Address::from_v4(header.dst_addr)];
    whole(packet, maps, &place, l3 + v4::LEN, ends)
}

/// An IPv6 packet that leaves this host. `None`: it takes the longer way.
#[inline(always)]
pub fn ipv6<P: Packet, M: Maps>(packet: &mut P, maps: &M, l3: u32, header: &Ipv6Hdr) -> Option<Reason> {
    if header.next_hdr != TCP && header.next_hdr != UDP {
        let longer = header.next_hdr == ICMPV6 || v6::is_extension(header.next_hdr);
        return if longer { None } else { Some(Reason::NotOurs) };
    }
    let place = Place { family: Family::V6, l3, l4: Some(l3 + v6::LEN), protocol: header.next_hdr };
    let ends = [Address::from_v6(header.src_addr), Address::from_v6(header.dst_addr)];
    whole(packet, maps, &place, l3 + v6::LEN, ends)
}

/// A whole packet with these ends, source and destination.
#[inline(always)]
fn whole<P: Packet, M: Maps>(packet: &mut P, maps: &M, place: &Place, l4: u32, ends: [Address; 2]) -> Option<Reason> {
    let Some(shown) = Shown::read(packet, l4, place.protocol) else { return Some(Reason::NotOurs) };
    let reply = Reply { pod: ends[0], client: ends[1], ports: shown.ports, shows: shown.shows };
    let mut from = Origin::default();
    let found = origin(maps, place, &reply, &mut from);
    if found != Reason::ReplyRewritten {
        return Some(found);
    }
    // Nothing but the time of a record has changed yet.
    if shown.shows == Shows::SynAck && limit(maps, place.family) != 0 {
        return None;
    }
    Some(leave(packet, maps, place, &reply, &from, Reason::ReplyRewritten))
}

/// What a packet shows of where its connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shows {
    /// Nothing of note.
    Nothing,
    /// It opens: the answer to a SYN.
    SynAck,
    /// The pod's side of it ends.
    End,
    /// It is reset.
    Reset,
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What the transport header shows.
struct Shown {
    /// Source and destination port, joined as [`crate::flow::FlowKey`] holds them.
    ports: u32,
    shows: Shows,
}

impl Shown {
    #[inline(always)]
    fn read<P: Packet>(packet: &P, l4: u32, protocol: u8) -> Option<Self> {
        if protocol == UDP {
            let [a, b, c, d, ..] = packet.load::<8>(l4)?;
            return Some(Self { ports: transport::join([a, b, c, d]), shows: Shows::Nothing });
        }
        let h = packet.load::<20>(l4)?;
        let shows = match h[13] {
            flags if flags & RST != 0 => Shows::Reset,
            flags if flags & FIN != 0 => Shows::End,
            flags if flags & (SYN | ACK) == SYN | ACK => Shows::SynAck,
            _ => Shows::Nothing,
        };
        Some(Self { ports: transport::join([h[0], h[1], h[2], h[3]]), shows })
    }
}

/// A packet from a pod to a client, or one that stands for it.
pub(crate) struct Reply {
    pub(crate) pod: Address,
    pub(crate) client: Address,
    /// The pod's port in the upper half, the client's in the lower, in host order.
    pub(crate) ports: u32,
    pub(crate) shows: Shows,
}

impl Reply {
    #[inline(always)]
    const fn pod_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }
}

/// Where a reply comes from, as its client knows it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Origin {
    pub(crate) vip: Address,
    pub(crate) port: u16,
    pub(crate) id: ReplyId,
}

/// Which VIP and port a reply comes from. [`Reason::ReplyRewritten`] when `from` says it; else why it does not leave as
/// one's. (A `Result` that is kept would be half undefined, which the verifier refuses to have stored.)
#[inline(always)]
pub(crate) fn origin<M: Maps>(maps: &M, place: &Place, reply: &Reply, from: &mut Origin) -> Reason {
    let key = ServiceKey::new(reply.pod, place.family, place.protocol, reply.pod_port());
    let Some(id) = maps.reply(&key) else { return Reason::NotOurs };
    let Some(word) = maps.reply_word(id) else { return Reason::InconsistentMaps };
    from.id = id;
    if !word.is_recorded() && maps.internal(&reply.client, place.family) == 0 {
        let Some(target) = maps.reply_target(word.target()) else { return Reason::InconsistentMaps };
        from.vip = target.vip;
        from.port = target.port as u16;
        return Reason::ReplyRewritten;
    }
    let key = RecordKey::new(reply.client, reply.pod, place.family, place.protocol, reply.ports.rotate_left(16));
    let event = match reply.shows {
        Shows::Nothing => RecordEvent::ANSWERS,
        Shows::SynAck => RecordEvent::POD_OPENS,
        Shows::End => RecordEvent::POD_ENDS,
        Shows::Reset => RecordEvent::RESETS,
    };
    let now = maps.now_coarse();
    let mut is_old = false;
    let is_the_vips = maps.record(&key, |record| {
        is_old = record.is_expired(now, place.protocol);
        // Of UDP the client's datagrams alone keep a record: the pod may answer the same client without the VIP.
        if place.protocol != UDP {
            record.note(now, event);
        }
        from.vip = record.vip;
        from.port = record.port();
        !record.is_void()
    }) == Some(true);
    if is_the_vips && !is_old {
        return Reason::ReplyRewritten;
    }
    // Whoever is inside asked the pod itself, or a ClusterIP that is translated elsewhere.
    if word.is_direct() || maps.internal(&reply.client, place.family) != 0 {
        return Reason::NotOurs;
    }
    // Nobody else asks this pod: an old record is better than none.
    if is_the_vips { Reason::ReplyRewritten } else { Reason::ReplyWithoutRecord }
}

/// Give a reply the VIP as its source, and count it.
#[inline(always)]
pub(crate) fn leave<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    place: &Place,
    reply: &Reply,
    from: &Origin,
    reason: Reason,
) -> Reason {
    let change =
        Change { end: End::Source, from: reply.pod, to: from.vip, port_from: reply.pod_port(), port_to: from.port };
    // A buffer of many segments may have no length in its IP header.
    let bytes = packet.excess(place.l3).unwrap_or(0);
    if !nat::rewrite(packet, place, &change) {
        return Reason::InconsistentMaps;
    }
    maps.count_reply(from.id, bytes);
    reason
}

/// What the MSS of a SYN-ACK is lowered to; 0 for never.
#[inline(always)]
pub(crate) fn limit<M: Maps>(maps: &M, family: Family) -> u32 {
    match (maps.settings(), family) {
        (Some(settings), Family::V4) => settings.mss[0],
        (Some(settings), Family::V6) => settings.mss[1],
        (None, _) => 0,
    }
}

#[cfg(test)]
mod tests;
