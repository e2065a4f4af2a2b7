//! IP headers and extension headers → bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Error, ensure};

use super::build::{Next, Tail, checksum, checksum_field};
use super::layer::{Auth, Fragment, Ipv4, Ipv6, Options, Routing, Wild};

/// The client's IPv4 address, where a packet names none.
pub(super) const CLIENT4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// The VIP, where a packet names none.
pub(super) const VIP4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x60, 0, 0, 0, 0, 7);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0x10);
const EDGE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BACKEND4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const EDGE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const BACKEND6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11);

/// Whose defaults an IP header has.
#[derive(Clone, Copy)]
pub(super) enum IpDefaults {
    /// What a client sends to a VIP.
    Client,
    /// What the edge puts before it.
    Tunnel,
}

pub(super) fn ipv4_addresses(header: &Ipv4, defaults: IpDefaults) -> (IpAddr, IpAddr) {
    let (src, dst) = match defaults {
        IpDefaults::Client => (CLIENT4, VIP4),
        IpDefaults::Tunnel => (EDGE4, BACKEND4),
    };
    (header.src.unwrap_or(src).into(), header.dst.unwrap_or(dst).into())
}

pub(super) fn ipv6_addresses(header: &Ipv6, defaults: IpDefaults) -> (IpAddr, IpAddr) {
    let (src, dst) = match defaults {
        IpDefaults::Client => (CLIENT6, VIP6),
        IpDefaults::Tunnel => (EDGE6, BACKEND6),
    };
    (header.src.unwrap_or(src).into(), header.dst.unwrap_or(dst).into())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn ipv4(tail: &mut Tail, header: &Ipv4, defaults: IpDefaults) -> Result<(), Error> {
    ensure!(header.dscp < 64, "ipv4: dscp: {}: has 6 bits", header.dscp);
    let (offset, more) = tail.take_piece().unwrap_or((header.offset, header.mf));
    ensure!(offset.is_multiple_of(8), "ipv4: offset: {offset} is not a multiple of 8");
    let mut options = header.options.0.clone();
    options.resize(options.len().next_multiple_of(4), 0);
    ensure!(options.len() <= 40, "ipv4: options: {} bytes do not fit 40", options.len());

    let (ttl, id) = match defaults {
        IpDefaults::Client => (57, 0x1234),
        IpDefaults::Tunnel => (64, 0),
    };
    let length = 20 + options.len();
    let version = header.version.unwrap_or(4);
    let ihl = header.ihl.unwrap_or((length / 4) as u8);
    ensure!(version < 16 && ihl < 16, "ipv4: version and ihl have 4 bits");
    let total = header.total_length.map_or_else(|| (length + tail.bytes.len()).try_into(), Ok)?;
    let df = header.df.unwrap_or(!more && offset == 0);
    let flags = u16::from(header.reserved) << 15 | u16::from(df) << 14 | u16::from(more) << 13;

    let (src, dst) = ipv4_addresses(header, defaults);
    let mut bytes = vec![version << 4 | ihl, header.dscp << 2 | header.ecn as u8];
    bytes.extend(total.to_be_bytes());
    bytes.extend(header.id.unwrap_or(id).to_be_bytes());
    bytes.extend((flags | (offset / 8)).to_be_bytes());
    bytes.extend([header.ttl.unwrap_or(ttl), header.protocol.map_or_else(|| tail.protocol("ipv4"), Ok)?]);
    bytes.extend([0, 0]);
    bytes.extend(octets(src));
    bytes.extend(octets(dst));
    bytes.extend(options);
    let sum = checksum_field(header.checksum, checksum(&[&bytes]), header.checksum_error);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    tail.prepend(&bytes);
    tail.name(Some(Next::IPV4));
    Ok(())
}

pub(super) fn ipv6(tail: &mut Tail, header: &Ipv6, defaults: IpDefaults) -> Result<(), Error> {
    ensure!(header.dscp < 64, "ipv6: dscp: {}: has 6 bits", header.dscp);
    ensure!(tail.take_piece().is_none(), "ipv6: a piece needs a fragment header before it");
    let (hop_limit, label) = match defaults {
        IpDefaults::Client => (57, Wild::Value(0x12345)),
        IpDefaults::Tunnel => (64, Wild::Any(super::layer::AnyWord::Any)),
    };
    let label = header.flow_label.unwrap_or(label);
    let label_value = match label {
        Wild::Value(value) => value,
        Wild::Any(_) => 0,
    };
    ensure!(label_value < 1 << 20, "ipv6: flowLabel: {label_value:#x}: has 20 bits");
    let version = header.version.unwrap_or(6);
    ensure!(version < 16, "ipv6: version: {version}: has 4 bits");
    let length = header.payload_length.map_or_else(|| tail.bytes.len().try_into(), Ok)?;

    let class = u32::from(header.dscp) << 2 | header.ecn as u32;
    let (src, dst) = ipv6_addresses(header, defaults);
    let mut bytes = (u32::from(version) << 28 | class << 20 | label_value).to_be_bytes().to_vec();
    bytes.extend(length.to_be_bytes());
    bytes.push(header.next_header.map_or_else(|| tail.protocol("ipv6"), Ok)?);
    bytes.push(header.hop_limit.unwrap_or(hop_limit));
    bytes.extend(octets(src));
    bytes.extend(octets(dst));
    tail.prepend(&bytes);
    if matches!(label, Wild::Any(_)) {
        tail.mask[1..4].copy_from_slice(&[0xf0, 0, 0]);
    }
    tail.name(Some(Next::IPV6));
    Ok(())
}

/// Puts an extension header before what follows: next header, length in units of 8 bytes without the first, `body`
/// filled with zeros.
fn extension(
    tail: &mut Tail,
    (name, protocol): (&str, u8),
    next_header: Option<u8>,
    length: Option<u8>,
    mut body: Vec<u8>,
) -> Result<(), Error> {
    let size = (body.len() + 2).next_multiple_of(8);
    body.resize(size - 2, 0);
    let next = next_header.map_or_else(|| tail.protocol(name), Ok)?;
    let length = length.map_or_else(|| (size / 8 - 1).try_into(), Ok)?;
    body.splice(..0, [next, length]);
    tail.prepend(&body);
    tail.name(Some(Next::protocol(protocol)));
    Ok(())
}

pub(super) fn options(tail: &mut Tail, header: &Options, protocol: u8) -> Result<(), Error> {
    ensure!(header.size.is_multiple_of(8), "options: size: {} is not a multiple of 8", header.size);
    let mut body = header.options.0.clone();
    body.resize(body.len().max(header.size.saturating_sub(2)), 0);
    extension(tail, ("options", protocol), header.next_header, header.length, body)
}

pub(super) fn routing(tail: &mut Tail, header: &Routing) -> Result<(), Error> {
    let body = [&[header.kind, header.segments_left], &header.data.0[..]].concat();
    extension(tail, ("routing", 43), header.next_header, header.length, body)
}

pub(super) fn fragment(tail: &mut Tail, header: &Fragment) -> Result<(), Error> {
    let (offset, more) = tail.take_piece().unwrap_or((header.offset, header.more));
    ensure!(offset.is_multiple_of(8), "fragment: offset: {offset} is not a multiple of 8");
    let next = header.next_header.map_or_else(|| tail.protocol("fragment"), Ok)?;
    let mut bytes = vec![next, 0];
    bytes.extend((offset | u16::from(more)).to_be_bytes());
    bytes.extend(header.id.to_be_bytes());
    tail.prepend(&bytes);
    tail.name(Some(Next::protocol(44)));
    Ok(())
}

pub(super) fn auth(tail: &mut Tail, header: &Auth) -> Result<(), Error> {
    let icv = header.icv.clone().map_or(vec![0; 12], |icv| icv.0);
    ensure!(icv.len().is_multiple_of(4), "auth: icv: {} bytes are not a multiple of 4", icv.len());
    let next = header.next_header.map_or_else(|| tail.protocol("auth"), Ok)?;
    let length = header.length.map_or_else(|| ((12 + icv.len()) / 4 - 2).try_into(), Ok)?;
    let mut bytes = vec![next, length, 0, 0];
    bytes.extend(header.spi.to_be_bytes());
    bytes.extend(header.seq.to_be_bytes());
    bytes.extend(icv);
    tail.prepend(&bytes);
    tail.name(Some(Next::protocol(51)));
    Ok(())
}
