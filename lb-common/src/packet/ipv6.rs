//! IPv6 headers and extension headers (RFC 8200).

use network_types::ip::Ipv6Hdr;

use super::{Header, Packet};
use crate::verdict::Reason;

/// Length of the fixed header.
pub const LEN: u32 = 40;

/// Most extension headers that are followed.
pub const MAX_EXTENSIONS: u32 = 8;
/// Most bytes of extension headers that are followed.
pub const MAX_EXTENSION_BYTES: u32 = 256;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

impl Header for Ipv6Hdr {
    #[inline(always)]
    fn read<P: Packet>(packet: &P, offset: u32) -> Option<Self> {
        let b: [u8; 40] = packet.load(offset)?;
        Some(Self {
            vcf: [b[0], b[1], b[2], b[3]],
            payload_len: [b[4], b[5]],
            next_hdr: b[6],
            hop_limit: b[7],
            src_addr: [
                b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15], b[16], b[17], b[18], b[19], b[20], b[21], b[22],
                b[23],
            ],
            dst_addr: [
                b[24], b[25], b[26], b[27], b[28], b[29], b[30], b[31], b[32], b[33], b[34], b[35], b[36], b[37],
                b[38], b[39],
            ],
        })
    }
}

/// The first eight bytes of a header: version, traffic class, flow label (20 bits), payload length, next header, hop
/// limit.
#[inline(always)]
#[must_use]
pub fn first_bytes(traffic_class: u8, flow_label: u32, payload_len: u16, next_header: u8, hop_limit: u8) -> [u8; 8] {
    let [a, b, c, d] = (6 << 28 | u32::from(traffic_class) << 20 | flow_label & 0xf_ffff).to_be_bytes();
    let [e, f] = payload_len.to_be_bytes();
    [a, b, c, d, e, f, next_header, hop_limit]
}

/// The traffic class: DSCP and ECN.
#[inline(always)]
#[must_use]
pub fn traffic_class(h: &Ipv6Hdr) -> u8 {
    (u16::from_be_bytes([h.vcf[0], h.vcf[1]]) >> 4) as u8
}

/// The packet's length in bytes, fixed header included.
#[inline(always)]
#[must_use]
pub fn total_len(h: &Ipv6Hdr) -> u32 {
    LEN + u32::from(u16::from_be_bytes(h.payload_len))
}

/// Whether a source is one that no packet from the network may have: unspecified, loopback, multicast (RFC 4291 §2.5.2,
/// §2.5.3, §2.7).
#[inline(always)]
#[must_use]
pub fn is_martian(source: [u8; 16]) -> bool {
    let [high, low] = crate::address::Address::from_v6(source).0;
    source[0] == 0xff || (high == 0 && u64::from_be(low) <= 1)
}

/// Whether a next-header value names an extension header that is followed.
#[inline(always)]
#[must_use]
pub const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT | AUTHENTICATION)
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where the payload begins, from the start of the frame.
    pub offset: u32,
    /// The payload's protocol; 0 in a later fragment, which does not show it.
    pub protocol: u8,
    /// Whether the packet is one of several fragments.
    pub is_fragment: bool,
    /// Where the fragment lies in its packet, in bytes.
    pub fragment_offset: u32,
    /// Whether more fragments follow this one.
    pub more_fragments: bool,
    /// The fragment's identification as it stands in the header.
    pub identification: u32,
}

/// Follow the extension headers from `offset` on, none of which may reach past `end`. [`Reason::Forwarded`] when `chain` says what is behind them.
///
/// A fragment that is the whole packet (RFC 6946) counts as no fragment. A later fragment ends the chain.
#[inline(always)]
pub fn follow<P: Packet>(packet: &P, offset: u32, end: u32, next_header: u8, chain: &mut Chain) -> Reason {
    let start = offset;
    let mut offset = offset;
    let mut next = next_header;
    for _ in 0..=MAX_EXTENSIONS {
        if !is_extension(next) {
            chain.offset = offset;
            chain.protocol = next;
            return Reason::Forwarded;
        }
        let Some(header) = packet.load::<8>(offset) else { return Reason::MalformedExtensionHeader };
        let mut length = (u32::from(header[1]) + 1) * 8;
        if next == AUTHENTICATION {
            // RFC 4302 §2.2: in 32-bit words, less two.
            length = (u32::from(header[1]) + 2) * 4;
        } else if next == FRAGMENT {
            // RFC 8200 §4.5: always eight bytes; the second is reserved.
            length = 8;
        }
        if offset + length > end {
            return Reason::MalformedExtensionHeader;
        }
        if next == FRAGMENT {
            let field = u16::from_be_bytes([header[2], header[3]]);
            if field & 0xfff9 != 0 {
                chain.is_fragment = true;
                chain.more_fragments = field & 1 == 1;
                chain.fragment_offset = u32::from(field & 0xfff8);
                chain.identification = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
                if chain.fragment_offset != 0 {
                    chain.offset = offset + 8;
                    chain.protocol = 0;
                    return Reason::Forwarded;
                }
            }
        }
        // Segments left, in every type of routing header (RFC 8200 §4.4).
        if next == ROUTING && header[3] != 0 {
            return Reason::SourceRouted;
        }
        next = header[0];
        offset += length;
        if offset - start > MAX_EXTENSION_BYTES {
            return Reason::TooManyExtensionHeaders;
        }
    }
    Reason::TooManyExtensionHeaders
}
