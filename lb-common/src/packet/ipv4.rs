//! IPv4 headers (RFC 791).

use network_types::ip::Ipv4Hdr;

use super::{Header, Packet};
use crate::checksum;

/// Length of a header without options.
pub const LEN: u32 = 20;
/// Version and length of a header without options.
pub const PLAIN: u8 = 0x45;
/// Most 32-bit words of options.
const MAX_OPTION_WORDS: u32 = 10;
/// The flag "don't fragment", as in the header's 16 bits of flags and offset.
pub const DF: u16 = 0x4000;
/// The flag "more fragments".
pub const MF: u16 = 0x2000;

impl Header for Ipv4Hdr {
    #[inline(always)]
    fn read<P: Packet>(packet: &P, offset: u32) -> Option<Self> {
        Some(from_bytes(packet.load(offset)?))
    }
}

#[inline(always)]
fn from_bytes(b: [u8; 20]) -> Ipv4Hdr {
    Ipv4Hdr {
        vihl: b[0],
        tos: b[1],
        tot_len: [b[2], b[3]],
        id: [b[4], b[5]],
        frags: [b[6], b[7]],
        ttl: b[8],
        proto: b[9],
        check: [b[10], b[11]],
        src_addr: [b[12], b[13], b[14], b[15]],
        dst_addr: [b[16], b[17], b[18], b[19]],
    }
}

/// The header's bytes.
#[inline(always)]
#[must_use]
pub fn to_bytes(h: &Ipv4Hdr) -> [u8; 20] {
    let Ipv4Hdr { vihl, tos, tot_len, id, frags, ttl, proto, check, src_addr: s, dst_addr: d } = *h;
    [
        vihl, tos, tot_len[0], tot_len[1], id[0], id[1], frags[0], frags[1], ttl, proto, check[0], check[1], s[0],
        s[1], s[2], s[3], d[0], d[1], d[2], d[3],
    ]
}

/// A header of ours without options, DF set, TTL 64, identification 0 (RFC 6864 §4.1 allows it with DF), checksum made.
#[inline(always)]
#[must_use]
pub fn answer(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> Ipv4Hdr {
    let mut header = Ipv4Hdr {
        vihl: 0x45,
        tos: 0,
        tot_len: length.to_be_bytes(),
        id: [0; 2],
        frags: DF.to_be_bytes(),
        ttl: crate::encap::HOP_LIMIT,
        proto: protocol,
        check: [0; 2],
        src_addr: source,
        dst_addr: destination,
    };
    header.check = checksum::finish(checksum::sum(&to_bytes(&header))).to_ne_bytes();
    header
}

/// The header's length in bytes, options included, if version and lengths hold together.
#[inline(always)]
#[must_use]
pub fn header_len(h: &Ipv4Hdr) -> Option<u32> {
    let length = u32::from(h.vihl & 0x0f) * 4;
    (h.vihl >> 4 == 4 && length >= LEN && total_len(h) >= length).then_some(length)
}

/// Whether the checksum of a header with this length is right (RFC 791 §3.1): nobody behind an answer or a tunnel's end
/// would find out.
#[inline(always)]
#[must_use]
pub fn is_checksum_right<P: Packet>(packet: &P, offset: u32, header_len: u32) -> bool {
    let Some(fixed) = packet.load::<20>(offset) else { return false };
    let mut total = 0;
    for word in fixed.chunks_exact(4) {
        if let [a, b, c, d] = word {
            total += u64::from(u32::from_ne_bytes([*a, *b, *c, *d]));
        }
    }
    let mut at = LEN;
    for _ in 0..MAX_OPTION_WORDS {
        if at >= header_len {
            break;
        }
        let Some(word) = packet.load::<4>(offset + at) else { return false };
        total += u64::from(u32::from_ne_bytes(word));
        at += 4;
    }
    checksum::fold_words(total) == 0xffff
}

/// The packet's length in bytes, header included.
#[inline(always)]
#[must_use]
pub fn total_len(h: &Ipv4Hdr) -> u32 {
    u32::from(u16::from_be_bytes(h.tot_len))
}

/// Whether the packet is a fragment, the first one included.
#[inline(always)]
#[must_use]
pub fn is_fragment(h: &Ipv4Hdr) -> bool {
    u16::from_ne_bytes(h.frags) & (MF | 0x1fff).to_be() != 0
}

/// Whether more fragments follow this one.
#[inline(always)]
#[must_use]
pub fn more_fragments(h: &Ipv4Hdr) -> bool {
    u16::from_ne_bytes(h.frags) & MF.to_be() != 0
}

/// Where the fragment lies in its packet, in bytes.
#[inline(always)]
#[must_use]
pub fn fragment_offset(h: &Ipv4Hdr) -> u32 {
    u32::from(u16::from_be_bytes(h.frags) & 0x1fff) * 8
}

/// Whether a source is one that no packet from the network may have (RFC 1122 §3.2.1.3, RFC 1812 §5.3.7): network 0,
/// loopback, multicast, reserved and broadcast.
#[inline(always)]
#[must_use]
pub fn is_martian(source: [u8; 4]) -> bool {
    let first = source[0];
    first == 0 || first == 127 || first >= 224
}
