//! The node's longer way: options, extension headers, fragments, ICMP errors, recorded flows, slots whose pod has
//! changed, and services without a pod.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{Outer, choose, deliver, is_martian, is_own, outer_ipv4, outer_ipv6, quote};
use crate::address::{Address, Family};
use crate::flow::FlowKey;
use crate::maps::{FragmentKey, INTERNAL_OWN_POD, Maps, PodWord};
use crate::packet::icmp::{ICMP, ICMPV6};
use crate::packet::ipv6::Chain;
use crate::packet::transport::{IPV4_IN_IP, IPV6_IN_IP, TCP, UDP};
use crate::packet::{Header, OFFSET_MASK, Packet, ethernet, ipv4 as v4, ipv6 as v6};
use crate::piece::{self, Piece};
use crate::stage::service;
use crate::verdict::Reason;

/// What is known of a packet so far. All words of 64 bits, because it lies in a map's value, of whose contents the
/// verifier knows nothing.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Visit {
    /// The client, or what the quote of an ICMP error says of it.
    pub client: Address,
    /// The VIP.
    pub vip: Address,
    /// The client's port and the VIP's, as [`FlowKey`] joins them.
    pub ports: u64,
    /// Protocol number of the flow.
    pub protocol: u64,
    /// 1 for IPv6 inside, 0 for IPv4.
    pub ipv6: u64,
    /// Where the link header ends in the frame.
    pub l3: u64,
    /// Length of the outer header; 0 for a packet that came without one.
    pub strip: u64,
    /// Its ECN field.
    pub ecn: u64,
    /// Where the outer packet, or the frame, ends.
    pub end: u64,
    /// Length of the inner packet.
    pub length: u64,
    /// Where the transport header, or the ICMP message, begins in the frame; 0 in a later fragment.
    pub l4: u64,
    /// Flags of the TCP header; 0 where there is none in the packet.
    pub tcp_flags: u64,
    /// 1 for a fragment.
    pub is_fragment: u64,
    /// Where the quoted IP header of an ICMP error begins in the frame; 0 for any other packet.
    pub quote: u64,
    /// Where its transport header begins.
    pub quote_l4: u64,
    /// The service's id plus one.
    pub service: u64,
    /// Its [`PodWord`].
    pub word: u64,
    /// The flow's hash.
    pub hash: u64,
    /// The slot within the service's table.
    pub slot: u64,
    /// The chosen pod's index plus one; 0 for none.
    pub pod: u64,
    /// 1 if it is a former pod of the slot.
    pub is_former: u64,
    /// Where a fragment of an IPv6 packet lies, what follows and which it is, as [`Chain`] has it.
    chain: [u64; 4],
}

/// Where the checksum of a TCP header ends in it.
const TCP_CHECKSUM_END: u64 = 18;

/// Flag of a TCP header: no more data.
pub(crate) const FIN: u64 = 1;
/// Flag of a TCP header: a connection begins.
pub(crate) const SYN: u64 = 2;
/// Flag of a TCP header: reset.
pub(crate) const RST: u64 = 4;
/// Flag of a TCP header: the acknowledgment counts.
pub(crate) const ACK: u64 = 16;

impl Visit {
    /// The family of the inner packet.
    #[inline(always)]
    pub(super) const fn family(&self) -> Family {
        if self.ipv6 == 0 { Family::V4 } else { Family::V6 }
    }

    /// Where the inner packet begins in the frame.
    #[inline(always)]
    pub(super) const fn inner(&self) -> u32 {
        (self.l3 + self.strip) as u32 & OFFSET_MASK
    }

    /// Where the transport header begins in the frame.
    #[inline(always)]
    pub(super) const fn l4(&self) -> u32 {
        self.l4 as u32 & OFFSET_MASK
    }

    /// Whether this is a first fragment whose TCP checksum lies in another one: it cannot be rewritten (RFC 1858 §3 drops
    /// it, too).
    #[inline(always)]
    const fn lacks_checksum(&self) -> bool {
        let end = self.inner() as u64 + self.length;
        self.is_fragment != 0 && self.l4 != 0 && self.protocol == TCP as u64 && self.l4 + TCP_CHECKSUM_END > end
    }

    /// Whether the packet may begin a flow: a SYN, or any of UDP. No ICMP error does.
    #[inline(always)]
    pub(super) const fn may_begin(&self) -> bool {
        self.quote == 0 && (self.protocol != TCP as u64 || self.tcp_flags & (SYN | ACK | RST) == SYN)
    }
}

/// From the frame to the verdict.
#[inline(always)]
pub fn run<P: Packet, M: Maps>(packet: &mut P, maps: &M, visit: &mut Visit) -> Reason {
    let mut reason = arrive(packet, maps, visit);
    if reason == Reason::Forwarded {
        reason = if visit.ipv6 == 0 { look_into_ipv4(packet, maps, visit) } else { follow(packet, visit) };
    }
    if reason == Reason::Forwarded && visit.ipv6 != 0 {
        reason = look_into_ipv6(packet, maps, visit);
    }
    if reason == Reason::Forwarded && visit.quote != 0 {
        reason = quote::read(packet, maps, visit);
    }
    if reason == Reason::Forwarded {
        reason = find_service(packet, maps, visit);
    }
    if reason != Reason::Forwarded {
        return reason;
    }
    if !PodWord(visit.word).is_host() {
        if visit.lacks_checksum() {
            return Reason::MalformedInner;
        }
        reason = choose::choose(packet, maps, visit);
        if reason == Reason::NoPod {
            return super::answer::answer(packet, maps, visit);
        }
        if reason != Reason::Forwarded {
            return reason;
        }
    }
    deliver::deliver(packet, maps, visit)
}

/// The outer header, if there is one. Only a packet to a VIP whose backend is this host comes here without.
#[inline(never)]
fn arrive<P: Packet, M: Maps>(packet: &P, maps: &M, visit: &mut Visit) -> Reason {
    let Some((family, l3)) = ethernet::parse(packet) else { return Reason::NotOurs };
    visit.l3 = u64::from(l3);
    visit.ipv6 = u64::from(family == Family::V6);
    let outer = match family {
        Family::V4 => {
            let Some(header) = Ipv4Hdr::read(packet, l3) else { return Reason::NotOurs };
            visit.end = u64::from(l3 + v4::total_len(&header));
            if header.proto != IPV4_IN_IP && header.proto != IPV6_IN_IP {
                return Reason::Forwarded;
            }
            outer_ipv4(packet, maps, l3, &header)
        }
        Family::V6 => {
            let Some(header) = Ipv6Hdr::read(packet, l3) else { return Reason::NotOurs };
            visit.end = u64::from(l3 + v6::total_len(&header));
            if header.next_hdr != IPV4_IN_IP && header.next_hdr != IPV6_IN_IP {
                return Reason::Forwarded;
            }
            outer_ipv6(packet, maps, l3, &header)
        }
    };
    match outer {
        Ok(Outer { l3: _, header_len, end, ecn, protocol }) => {
            visit.strip = u64::from(header_len);
            visit.end = u64::from(end);
            visit.ecn = u64::from(ecn);
            visit.ipv6 = u64::from(protocol == IPV6_IN_IP);
            Reason::Forwarded
        }
        Err(reason) => reason,
    }
}

/// The inner IPv4 packet: its addresses, and its ports or the ICMP message in it.
#[inline(never)]
fn look_into_ipv4<P: Packet, M: Maps>(packet: &P, maps: &M, visit: &mut Visit) -> Reason {
    let at = visit.inner();
    let Some(header) = Ipv4Hdr::read(packet, at) else { return Reason::MalformedInner };
    let Some(header_len) = v4::header_len(&header) else { return Reason::MalformedInner };
    let length = v4::total_len(&header);
    if u64::from(at + length) > visit.end {
        return Reason::MalformedInner;
    }
    visit.length = u64::from(length);
    visit.client = Address::from_v4(header.src_addr);
    visit.vip = Address::from_v4(header.dst_addr);
    let is_fragment = v4::is_fragment(&header);
    let l4 = at + header_len;
    if header.proto == ICMP {
        return message(visit, l4, is_fragment);
    }
    if header.proto != TCP && header.proto != UDP {
        return Reason::InnerNotService;
    }
    let key = FragmentKey::v4(visit.client, visit.vip, u16::from_ne_bytes(header.id), header.proto);
    let piece = Piece {
        l4,
        length: length - header_len,
        is_fragment,
        offset: v4::fragment_offset(&header),
        more: v4::more_fragments(&header),
        protocol: header.proto,
    };
    find_ports(packet, maps, visit, &key, &piece)
}

/// The extension headers of the inner IPv6 packet.
#[inline(never)]
fn follow<P: Packet>(packet: &P, visit: &mut Visit) -> Reason {
    let at = visit.inner();
    let Some(header) = Ipv6Hdr::read(packet, at) else { return Reason::MalformedInner };
    let length = v6::total_len(&header);
    if header.vcf[0] >> 4 != 6 || u64::from(at + length) > visit.end {
        return Reason::MalformedInner;
    }
    visit.length = u64::from(length);
    visit.client = Address::from_v6(header.src_addr);
    visit.vip = Address::from_v6(header.dst_addr);
    let mut chain = Chain::default();
    let reason = v6::follow(packet, at + v6::LEN, at + length, header.next_hdr, &mut chain);
    if reason != Reason::Forwarded {
        // What an edge of ours does not send.
        return Reason::MalformedInner;
    }
    visit.l4 = u64::from(chain.offset);
    visit.protocol = u64::from(chain.protocol);
    visit.is_fragment = u64::from(chain.is_fragment);
    visit.chain =
        [u64::from(chain.fragment_offset), u64::from(chain.more_fragments), u64::from(chain.identification), 0];
    Reason::Forwarded
}

/// The inner IPv6 packet behind its extension headers.
#[inline(never)]
fn look_into_ipv6<P: Packet, M: Maps>(packet: &P, maps: &M, visit: &mut Visit) -> Reason {
    let [offset, more, identification, _] = visit.chain;
    let is_fragment = visit.is_fragment != 0;
    let protocol = visit.protocol as u8;
    let l4 = visit.l4();
    if protocol == ICMPV6 {
        return message(visit, l4, is_fragment);
    }
    let later = is_fragment && offset != 0;
    if !later && protocol != TCP && protocol != UDP {
        return Reason::InnerNotService;
    }
    let key = FragmentKey::v6(visit.client, visit.vip, identification as u32);
    let end = visit.inner() + visit.length as u32;
    let length = end.saturating_sub(l4);
    let piece = Piece { l4, length, is_fragment, offset: offset as u32, more: more != 0, protocol };
    find_ports(packet, maps, visit, &key, &piece)
}

/// A whole ICMP message is looked into: only errors come in a tunnel.
#[inline(always)]
const fn message(visit: &mut Visit, l4: u32, is_fragment: bool) -> Reason {
    if is_fragment {
        return Reason::UnsupportedIcmp;
    }
    visit.l4 = l4 as u64;
    visit.quote = l4 as u64 + crate::packet::icmp::LEN as u64;
    Reason::Forwarded
}

/// The ports of the flow, from the packet or from what its first fragment left.
#[inline(always)]
fn find_ports<P: Packet, M: Maps>(packet: &P, maps: &M, visit: &mut Visit, key: &FragmentKey, piece: &Piece) -> Reason {
    let (ports, protocol) = match piece::ports(packet, maps, key, piece, visit.length as u32, visit.family()) {
        Ok(known) => known,
        Err(Reason::UnknownFragment) => return Reason::UnknownFragment,
        Err(_) => return Reason::MalformedInner,
    };
    visit.ports = u64::from(ports);
    visit.protocol = u64::from(protocol);
    visit.is_fragment = u64::from(piece.is_fragment);
    visit.l4 = 0;
    visit.tcp_flags = 0;
    if !piece.is_fragment || piece.offset == 0 {
        visit.l4 = u64::from(piece.l4);
        if protocol == TCP
            && let Some([_, flags]) = packet.load::<2>(piece.l4 + 12)
        {
            visit.tcp_flags = u64::from(flags);
        }
    }
    Reason::Forwarded
}

/// Whose flow it is, and whether the source may be.
#[inline(never)]
fn find_service<P: Packet, M: Maps>(_packet: &P, maps: &M, visit: &mut Visit) -> Reason {
    let family = visit.family();
    let flow = FlowKey {
        source: visit.client,
        destination: visit.vip,
        ports: visit.ports as u32,
        protocol: visit.protocol as u8,
        family,
    };
    let Ok(id) = service(maps, flow.destination, family, flow.protocol, flow.service_port()) else {
        return Reason::InnerNotService;
    };
    visit.service = u64::from(id) + 1;
    if is_martian(flow.source, family) || flow.source == flow.destination {
        return Reason::MartianSource;
    }
    if is_own(maps, flow.source, family) || maps.internal(&flow.source, family) & INTERNAL_OWN_POD != 0 {
        return Reason::Hairpin;
    }
    let (Some(word), Some(settings)) = (maps.pod_word(id), maps.settings()) else { return Reason::InconsistentMaps };
    visit.word = word.0;
    if let Some(pods) = word.pods() {
        visit.hash = flow.hash(&settings.hash_keys, pods.source_affinity());
    }
    Reason::Forwarded
}
