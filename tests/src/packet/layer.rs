//! The layers of a packet and their fields. Every field may be left out; see the table of defaults in
//! [`crate::packet`]. A field that the builder would compute (a length, a checksum, a next protocol, a version) may be
//! set to make a wrong packet.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Deserialize;

pub use super::text::{AnyWord, Hex, Mac, Wild};

/// One layer, or one thing done to the finished frame.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Layer {
    /// Ethernet (IEEE 802.3). Implied when a packet starts with another layer.
    Ethernet(Ethernet),
    /// A VLAN tag (IEEE 802.1Q).
    Vlan(Vlan),
    /// ARP (RFC 826) for IPv4 over Ethernet.
    Arp(Arp),
    /// IPv4 (RFC 791) with a client's defaults.
    Ipv4(Ipv4),
    /// IPv4 with the defaults of a header that the edge puts before a packet.
    Tunnel4(Ipv4),
    /// IPv6 (RFC 8200) with a client's defaults.
    Ipv6(Ipv6),
    /// IPv6 with the defaults of a header that the edge puts before a packet.
    Tunnel6(Ipv6),
    /// Hop-by-hop options (RFC 8200 §4.3).
    HopByHop(Options),
    /// Destination options (RFC 8200 §4.6).
    DestinationOptions(Options),
    /// A routing header (RFC 8200 §4.4).
    Routing(Routing),
    /// A fragment header of IPv6 (RFC 8200 §4.5).
    Fragment(Fragment),
    /// An authentication header (RFC 4302).
    Auth(Auth),
    /// TCP (RFC 9293).
    Tcp(Tcp),
    /// UDP (RFC 768).
    Udp(Udp),
    /// ICMP (RFC 792).
    Icmp(Icmp),
    /// ICMPv6 (RFC 4443).
    Icmpv6(Icmp),
    /// Data.
    Payload(Payload),
    /// A fragment's part of what an IP header has behind it; the header before says where it lies.
    Piece(Piece),
    /// What came in, from its IP header on, without Ethernet padding. Only in what is expected to come out.
    Received(Received),
    /// Cut the finished frame to this many bytes. Nothing but `pad` may follow.
    Truncate(usize),
    /// Fill the finished frame with zeros up to this many bytes. Nothing but `truncate` may follow.
    Pad(usize),
}

/// Fields of an Ethernet header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Ethernet {
    /// Source address.
    pub src: Option<Mac>,
    /// Destination address.
    pub dst: Option<Mac>,
    /// The type; by default that of the next layer.
    pub ethertype: Option<u16>,
}

/// Fields of a VLAN tag.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Vlan {
    /// VLAN identifier, 12 bits.
    pub id: u16,
    /// Priority, 3 bits.
    pub pcp: u16,
    /// Drop eligible.
    pub dei: bool,
    /// The tag's own type, which stands in the layer before: 0x8100 by default, 0x88a8 for a service tag.
    #[serde(rename = "type")]
    pub tag_type: Option<u16>,
    /// The type of what follows; by default that of the next layer.
    pub ethertype: Option<u16>,
}

/// Fields of an ARP packet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Arp {
    /// 1 request (the default), 2 reply.
    pub operation: Option<u16>,
    /// The sender's MAC address.
    pub sender_mac: Option<Mac>,
    /// The sender's IPv4 address.
    pub sender: Option<Ipv4Addr>,
    /// The target's MAC address; zeros by default.
    pub target_mac: Option<Mac>,
    /// The target's IPv4 address.
    pub target: Option<Ipv4Addr>,
}

/// The ECN field (RFC 3168), which IPv4 and IPv6 share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ecn {
    /// Not ECN-capable.
    #[default]
    NotEct = 0,
    /// ECN-capable, codepoint 1.
    Ect1 = 1,
    /// ECN-capable, codepoint 0.
    Ect0 = 2,
    /// Congestion experienced.
    Ce = 3,
}

/// Fields of an IPv4 header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Ipv4 {
    /// Source address.
    pub src: Option<Ipv4Addr>,
    /// Destination address.
    pub dst: Option<Ipv4Addr>,
    /// Time to live.
    pub ttl: Option<u8>,
    /// Differentiated services codepoint, 6 bits.
    pub dscp: u8,
    /// ECN field.
    pub ecn: Ecn,
    /// Identification.
    pub id: Option<u16>,
    /// Don't fragment; by default set, except in fragments.
    pub df: Option<bool>,
    /// More fragments; a `piece` that follows says it by itself.
    pub mf: bool,
    /// The reserved bit of the flags.
    pub reserved: bool,
    /// Fragment offset in bytes, a multiple of 8; a `piece` that follows says it by itself.
    pub offset: u16,
    /// Options; filled with zeros to a multiple of 4 bytes.
    pub options: Hex,
    /// Protocol; by default that of the next layer.
    pub protocol: Option<u8>,
    /// Version, 4.
    pub version: Option<u8>,
    /// Header length in words of 4 bytes.
    pub ihl: Option<u8>,
    /// Length of the packet in bytes.
    pub total_length: Option<u16>,
    /// Header checksum.
    pub checksum: Option<u16>,
    /// What is added to the right checksum in one's complement: an error that no incremental update may mend.
    pub checksum_error: u16,
}

/// Fields of an IPv6 header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Ipv6 {
    /// Source address.
    pub src: Option<Ipv6Addr>,
    /// Destination address.
    pub dst: Option<Ipv6Addr>,
    /// Hop limit.
    pub hop_limit: Option<u8>,
    /// Differentiated services codepoint, 6 bits.
    pub dscp: u8,
    /// ECN field.
    pub ecn: Ecn,
    /// Flow label, 20 bits, or `any`: not compared (0 in a packet that is sent).
    pub flow_label: Option<Wild<u32>>,
    /// Next header; by default that of the next layer.
    pub next_header: Option<u8>,
    /// Version, 6.
    pub version: Option<u8>,
    /// Length of what follows the header, in bytes.
    pub payload_length: Option<u16>,
}

/// Fields of hop-by-hop and destination options.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// The options themselves; filled with Pad1 (zeros) to a header of a multiple of 8 bytes.
    pub options: Hex,
    /// Make the header this many bytes long, filled with Pad1.
    pub size: usize,
    /// Next header; by default that of the next layer.
    pub next_header: Option<u8>,
    /// The length field, in units of 8 bytes without the first.
    pub length: Option<u8>,
}

/// Fields of a routing header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Routing {
    /// Routing type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Segments left.
    pub segments_left: u8,
    /// Type-specific data; filled with zeros to a header of a multiple of 8 bytes.
    pub data: Hex,
    /// Next header; by default that of the next layer.
    pub next_header: Option<u8>,
    /// The length field, in units of 8 bytes without the first.
    pub length: Option<u8>,
}

/// Fields of IPv6's fragment header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Fragment {
    /// Offset in bytes, a multiple of 8.
    pub offset: u16,
    /// More fragments.
    pub more: bool,
    /// Identification.
    pub id: u32,
    /// Next header; by default that of the next layer.
    pub next_header: Option<u8>,
}

/// Fields of an authentication header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Auth {
    /// Security parameters index.
    pub spi: u32,
    /// Sequence number.
    pub seq: u32,
    /// Integrity check value; 12 zeros by default.
    pub icv: Option<Hex>,
    /// Next header; by default that of the next layer.
    pub next_header: Option<u8>,
    /// The length field, in words of 4 bytes without the first two.
    pub length: Option<u8>,
}

/// Fields of a TCP header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Tcp {
    /// Source port.
    pub src: Option<u16>,
    /// Destination port.
    pub dst: Option<u16>,
    /// Letters of FSRPAUEC (FIN, SYN, RST, PSH, ACK, URG, ECE, CWR); A by default.
    pub flags: Option<String>,
    /// Sequence number.
    pub seq: Option<u32>,
    /// Acknowledgement number.
    pub ack: Option<u32>,
    /// Window.
    pub window: Option<u16>,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; filled with zeros to a multiple of 4 bytes.
    pub options: Hex,
    /// Header length in words of 4 bytes.
    pub data_offset: Option<u8>,
    /// Checksum.
    pub checksum: Option<u16>,
    /// What is added to the right checksum, as in [`Ipv4`].
    pub checksum_error: u16,
}

/// Fields of a UDP header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Udp {
    /// Source port.
    pub src: Option<u16>,
    /// Destination port.
    pub dst: Option<u16>,
    /// Length of header and data in bytes.
    pub length: Option<u16>,
    /// Checksum; 0 is "none" (RFC 768).
    pub checksum: Option<u16>,
    /// What is added to the right checksum, as in [`Ipv4`].
    pub checksum_error: u16,
}

/// Fields of an ICMP or ICMPv6 message. What `quote` has comes before the layers that follow.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Icmp {
    /// Type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier of an echo: the first half of the second word.
    pub id: Option<u16>,
    /// Sequence number of an echo: the second half of the second word.
    pub seq: Option<u16>,
    /// MTU of a frag-needed (16 bits) or a packet-too-big (32 bits).
    pub mtu: Option<u32>,
    /// The second word, where it is none of these.
    pub rest: Option<u32>,
    /// The packet that the message quotes, from its IP header.
    pub quote: Vec<Layer>,
    /// How many bytes of it are quoted; all by default.
    pub quote_bytes: Option<usize>,
    /// Checksum.
    pub checksum: Option<u16>,
    /// What is added to the right checksum, as in [`Ipv4`].
    pub checksum_error: u16,
}

/// Data: so many bytes that count up from 0, or these.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Payload {
    /// So many bytes, which count up from 0.
    Length(usize),
    /// These bytes.
    Bytes(PayloadBytes),
}

/// Data that is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PayloadBytes {
    /// In hexadecimal.
    Hex(Hex),
    /// As text.
    Text(String),
}

/// A part of layers that were built as if they were whole, so that their checksums are those of the whole.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Piece {
    /// All that the whole packet has behind its IP header, or behind IPv6's fragment header.
    pub of: Vec<Layer>,
    /// From this byte of it: the fragment's offset.
    #[serde(default)]
    pub from: u16,
    /// Up to this byte, which is not in it any more; by default to the end.
    pub to: Option<u16>,
}

/// Which part of what came in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Received {
    /// From this byte of the IP packet.
    pub from: usize,
}
