//! Layers → bytes.

use std::net::IpAddr;

use anyhow::{Context, Error, bail, ensure};

use super::build_ip::{self, IpDefaults};
use super::build_transport;
use super::layer::{Arp, Ethernet, Layer, Mac, Payload, PayloadBytes, Piece, Vlan};

/// Source address of a frame that comes in.
pub const ETHERNET_SOURCE: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);
/// Destination address of a frame that comes in.
pub const ETHERNET_DESTINATION: Mac = Mac([2, 0, 0, 0, 0, 0x0e]);

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// A frame that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// For each byte the bits that count in a comparison; 0 where the fixture says `any`.
    pub mask: Vec<u8>,
    /// Where the link layer ends.
    pub network: usize,
    /// Where the network layer ends: before the padding.
    pub end: usize,
}

impl Frame {
    /// What follows the link layer, without padding; empty if the frame is cut before.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.bytes.get(self.network..self.end).unwrap_or_default()
    }

    /// The Ethernet header's addresses and the VLAN tags; empty if the frame is cut before.
    fn link(&self) -> &[u8] {
        self.bytes.get(..self.network).unwrap_or_default()
    }

    /// Whether these bytes are the frame, but for what the fixture says is `any`.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let same = |((a, b), mask): ((&u8, &u8), &u8)| (a ^ b) & mask == 0;
        self.bytes.len() == bytes.len() && self.bytes.iter().zip(bytes).zip(&self.mask).all(same)
    }
}

/// The link layer of a packet whose layers name none.
#[derive(Clone, Copy, Debug)]
pub enum Link<'a> {
    /// From the router to the machine under test.
    Incoming,
    /// The received frame's addresses and VLAN tags.
    AsReceived(&'a Frame),
    /// The received frame's VLAN tags, its addresses swapped: an answer.
    Swapped(&'a Frame),
    /// The received frame's VLAN tags, with these addresses.
    NextHop {
        /// The frame that came in.
        received: &'a Frame,
        /// The source address.
        source: Mac,
        /// The next hop's address.
        destination: Mac,
    },
}

impl<'a> Link<'a> {
    fn received(&self) -> Option<&'a Frame> {
        match self {
            Self::Incoming => None,
            Self::AsReceived(received) | Self::Swapped(received) | Self::NextHop { received, .. } => Some(received),
        }
    }

    /// Destination address, source address.
    fn addresses(&self) -> Option<[[u8; 6]; 2]> {
        let of = |frame: &Frame| {
            let at = |i: usize| frame.bytes.get(i..i + 6)?.try_into().ok();
            Some([at(0)?, at(6)?])
        };
        match self {
            Self::Incoming => Some([ETHERNET_DESTINATION.0, ETHERNET_SOURCE.0]),
            Self::AsReceived(received) => of(received),
            Self::Swapped(received) => of(received).map(|[destination, source]| [source, destination]),
            Self::NextHop { source, destination, .. } => Some([destination.0, source.0]),
        }
    }
}

/// Builds a frame from its layers.
///
/// # Errors
/// When a layer cannot be written as it stands: a field out of range, a next protocol that nothing names, `received`
/// where nothing came in.
pub fn build(layers: &[Layer], link: Link<'_>) -> Result<Frame, Error> {
    let is_change = |layer: &Layer| matches!(layer, Layer::Truncate(_) | Layer::Pad(_));
    let changes_at = layers.iter().position(is_change).unwrap_or(layers.len());
    let (layers, changes) = layers.split_at(changes_at);
    ensure!(changes.iter().all(is_change), "truncate and pad apply to the finished frame: let no layer follow them");

    let received = link.received();
    let mut tail = build_all(layers, &[], received.map(Frame::packet))?;
    let is_link = |layer: &&Layer| matches!(layer, Layer::Ethernet(_) | Layer::Vlan(_));
    let mut network = layers.iter().take_while(is_link).map(link_len).sum();
    if !matches!(layers.first(), Some(Layer::Ethernet(_))) {
        let own_tags = matches!(layers.first(), Some(Layer::Vlan(_)));
        network += prepend_link(&mut tail, &link, own_tags)?;
    }
    let mut end = tail.bytes.len();
    for change in changes {
        match *change {
            Layer::Truncate(length) => {
                ensure!(length <= tail.bytes.len(), "truncate: {length}: the frame has {}", tail.bytes.len());
                tail.bytes.truncate(length);
                end = end.min(length);
            }
            Layer::Pad(length) => {
                ensure!(length >= tail.bytes.len(), "pad: {length}: the frame has {} already", tail.bytes.len());
                tail.bytes.resize(length, 0);
            }
            _ => bail!("a layer after truncate or pad"),
        }
    }
    tail.mask.resize(tail.bytes.len(), 0xff);
    Ok(Frame { bytes: tail.bytes, mask: tail.mask, network, end })
}

fn link_len(layer: &Layer) -> usize {
    if matches!(layer, Layer::Vlan(_)) { 4 } else { 14 }
}

/// Puts the implied link layer before a packet and gives its length. A packet that has its `own_tags` gets no others.
fn prepend_link(tail: &mut Tail, link: &Link<'_>, own_tags: bool) -> Result<usize, Error> {
    let addresses =
        link.addresses().context("the received frame has no Ethernet header: write the layer `ethernet`")?;
    let ethertype = tail.ethertype("ethernet")?;
    let tags = match link.received() {
        Some(received) if !own_tags => received.link().get(12..received.network - 2).unwrap_or_default(),
        _ => &[],
    };
    let header = [&addresses.concat()[..], tags, &ethertype.to_be_bytes()].concat();
    tail.prepend(&header);
    Ok(header.len())
}

/// What has been built so far: all that lies behind the layer at hand.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) bytes: Vec<u8>,
    pub(super) mask: Vec<u8>,
    next: Option<Next>,
    /// Where a piece lies in its whole, and whether more follow: for the header before it.
    piece: Option<(u16, bool)>,
}

/// How a layer is called by the one before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub(super) ethertype: Option<u16>,
    pub(super) protocol: Option<u8>,
}

impl Next {
    pub(super) const fn protocol(protocol: u8) -> Self {
        Self { ethertype: None, protocol: Some(protocol) }
    }

    const fn ethertype(ethertype: u16) -> Self {
        Self { ethertype: Some(ethertype), protocol: None }
    }

    pub(super) const IPV4: Self = Self { ethertype: Some(ETHERTYPE_IPV4), protocol: Some(4) };
    pub(super) const IPV6: Self = Self { ethertype: Some(ETHERTYPE_IPV6), protocol: Some(41) };
}

impl Tail {
    pub(super) fn prepend(&mut self, header: &[u8]) {
        self.bytes.splice(..0, header.iter().copied());
        self.mask.splice(..0, header.iter().map(|_| 0xff));
    }

    pub(super) fn name(&mut self, next: Option<Next>) {
        self.next = next;
    }

    pub(super) fn take_piece(&mut self) -> Option<(u16, bool)> {
        self.piece.take()
    }

    pub(super) fn protocol(&self, layer: &str) -> Result<u8, Error> {
        let protocol = self.next.and_then(|next| next.protocol);
        protocol.with_context(|| format!("{layer}: no layer follows that has a protocol number: set it"))
    }

    fn ethertype(&self, layer: &str) -> Result<u16, Error> {
        let ethertype = self.next.and_then(|next| next.ethertype);
        ethertype.with_context(|| format!("{layer}: no layer follows that has an ethertype: set `ethertype`"))
    }
}

/// Builds layers from the last to the first. `outer` are the layers around all of them, `received` is the packet that
/// came in, if any.
pub(super) fn build_all(layers: &[Layer], outer: &[Layer], received: Option<&[u8]>) -> Result<Tail, Error> {
    let mut tail = Tail::default();
    for (index, layer) in layers.iter().enumerate().rev() {
        let enclosing = [outer, layers.get(..index).unwrap_or_default()].concat();
        prepend_layer(&mut tail, layer, &enclosing, received)?;
    }
    Ok(tail)
}

fn prepend_layer(tail: &mut Tail, layer: &Layer, enclosing: &[Layer], received: Option<&[u8]>) -> Result<(), Error> {
    match layer {
        Layer::Ethernet(header) => ethernet(tail, header),
        Layer::Vlan(header) => vlan(tail, header),
        Layer::Arp(header) => {
            arp(tail, header);
            Ok(())
        }
        Layer::Ipv4(header) => build_ip::ipv4(tail, header, IpDefaults::Client),
        Layer::Tunnel4(header) => build_ip::ipv4(tail, header, IpDefaults::Tunnel),
        Layer::Ipv6(header) => build_ip::ipv6(tail, header, IpDefaults::Client),
        Layer::Tunnel6(header) => build_ip::ipv6(tail, header, IpDefaults::Tunnel),
        Layer::HopByHop(header) => build_ip::options(tail, header, 0),
        Layer::DestinationOptions(header) => build_ip::options(tail, header, 60),
        Layer::Routing(header) => build_ip::routing(tail, header),
        Layer::Fragment(header) => build_ip::fragment(tail, header),
        Layer::Auth(header) => build_ip::auth(tail, header),
        Layer::Tcp(header) => build_transport::tcp(tail, header, addresses(enclosing)?),
        Layer::Udp(header) => build_transport::udp(tail, header, addresses(enclosing)?),
        Layer::Icmp(header) => build_transport::icmp(tail, header, received),
        Layer::Icmpv6(header) => build_transport::icmpv6(tail, header, addresses(enclosing)?, received),
        Layer::Payload(data) => {
            payload(tail, data);
            Ok(())
        }
        Layer::Piece(part) => piece(tail, part, enclosing, received),
        Layer::Received(part) => {
            let received = received.context("received: nothing came in before this packet")?;
            let bytes = received.get(part.from..).context("received: `from` is past what came in")?;
            tail.prepend(bytes);
            tail.name(match bytes.first().map(|byte| byte >> 4) {
                Some(4) if part.from == 0 => Some(Next::IPV4),
                Some(6) if part.from == 0 => Some(Next::IPV6),
                _ => None,
            });
            Ok(())
        }
        Layer::Truncate(_) | Layer::Pad(_) => bail!("truncate and pad apply to the whole frame, not to a quote"),
    }
}

/// Builds the whole and cuts the piece out of it.
fn piece(tail: &mut Tail, part: &Piece, enclosing: &[Layer], received: Option<&[u8]>) -> Result<(), Error> {
    ensure!(tail.bytes.is_empty(), "piece: let no layer follow it but pad and truncate");
    let whole = build_all(&part.of, enclosing, received)?;
    let length = u16::try_from(whole.bytes.len()).context("piece: the whole does not fit a packet")?;
    let to = part.to.unwrap_or(length);
    let bytes = whole.bytes.get(usize::from(part.from)..usize::from(to));
    tail.prepend(bytes.with_context(|| format!("piece: {} to {to}: there are {length} bytes", part.from))?);
    tail.name(whole.next);
    tail.piece = Some((part.from, to < length));
    Ok(())
}

/// Source and destination of the nearest IP header around a layer, for the pseudo-header of its checksum.
fn addresses(enclosing: &[Layer]) -> Result<(IpAddr, IpAddr), Error> {
    let of = |layer: &Layer| match layer {
        Layer::Ipv4(header) => Some(build_ip::ipv4_addresses(header, IpDefaults::Client)),
        Layer::Tunnel4(header) => Some(build_ip::ipv4_addresses(header, IpDefaults::Tunnel)),
        Layer::Ipv6(header) => Some(build_ip::ipv6_addresses(header, IpDefaults::Client)),
        Layer::Tunnel6(header) => Some(build_ip::ipv6_addresses(header, IpDefaults::Tunnel)),
        _ => None,
    };
    enclosing.iter().rev().find_map(of).context("a transport header needs an IP header before it")
}

fn ethernet(tail: &mut Tail, header: &Ethernet) -> Result<(), Error> {
    let ethertype = header.ethertype.map_or_else(|| tail.ethertype("ethernet"), Ok)?;
    let (Mac(dst), Mac(src)) = (header.dst.unwrap_or(ETHERNET_DESTINATION), header.src.unwrap_or(ETHERNET_SOURCE));
    tail.prepend(&[&dst[..], &src, &ethertype.to_be_bytes()].concat());
    tail.name(None);
    Ok(())
}

fn vlan(tail: &mut Tail, header: &Vlan) -> Result<(), Error> {
    ensure!(header.id < 1 << 12 && header.pcp < 8, "vlan: id has 12 bits, pcp 3");
    let ethertype = header.ethertype.map_or_else(|| tail.ethertype("vlan"), Ok)?;
    let control = header.pcp << 13 | u16::from(header.dei) << 12 | header.id;
    tail.prepend(&[control.to_be_bytes(), ethertype.to_be_bytes()].concat());
    tail.name(Some(Next::ethertype(header.tag_type.unwrap_or(ETHERTYPE_VLAN))));
    Ok(())
}

fn arp(tail: &mut Tail, header: &Arp) {
    let sender_mac = header.sender_mac.unwrap_or(ETHERNET_SOURCE);
    let sender = header.sender.unwrap_or(build_ip::CLIENT4);
    let target = header.target.unwrap_or(build_ip::VIP4);
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(header.operation.unwrap_or(1).to_be_bytes());
    bytes.extend(sender_mac.0);
    bytes.extend(sender.octets());
    bytes.extend(header.target_mac.unwrap_or(Mac([0; 6])).0);
    bytes.extend(target.octets());
    tail.prepend(&bytes);
    tail.name(Some(Next::ethertype(ETHERTYPE_ARP)));
}

fn payload(tail: &mut Tail, data: &Payload) {
    match data {
        Payload::Length(length) => tail.prepend(&(0..*length).map(|i| i as u8).collect::<Vec<_>>()),
        Payload::Bytes(PayloadBytes::Hex(hex)) => tail.prepend(&hex.0),
        Payload::Bytes(PayloadBytes::Text(text)) => tail.prepend(text.as_bytes()),
    }
    tail.name(None);
}

/// The Internet checksum (RFC 1071) of these pieces as if they were one, each but the last of even length.
#[must_use]
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let words = pieces.iter().flat_map(|piece| piece.chunks(2));
    let value = |word: &[u8]| u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low));
    let mut sum: u64 = words.map(value).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// A checksum, or the right one with an error added to it.
pub(super) fn checksum_field(set: Option<u16>, right: u16, error: u16) -> u16 {
    let (sum, carry) = right.overflowing_add(error);
    set.unwrap_or(sum + u16::from(carry))
}

#[cfg(test)]
mod tests;
