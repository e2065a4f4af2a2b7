//! TCP, UDP, ICMP and ICMPv6 → bytes.

use std::net::IpAddr;

use anyhow::{Context, Error, bail, ensure};

use super::build::{Next, Tail, build_all, checksum, checksum_field};
use super::layer::{Icmp, Tcp, Udp};

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// The checksum over the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) and a message whose checksum field is 0.
fn pseudo_checksum((src, dst): (IpAddr, IpAddr), protocol: u8, message: &[u8]) -> Result<u16, Error> {
    let length = u32::try_from(message.len())?.to_be_bytes();
    let trailer = [length, [0, 0, 0, protocol]].concat();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Ok(checksum(&[&src.octets(), &dst.octets(), &trailer, message])),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Ok(checksum(&[&src.octets(), &dst.octets(), &trailer, message])),
        _ => bail!("source {src} and destination {dst} are of two families"),
    }
}

fn tcp_flags(letters: &str) -> Result<u8, Error> {
    letters.chars().try_fold(0, |flags, letter| {
        let bit = "FSRPAUEC".find(letter).with_context(|| format!("tcp: flags: {letter:?} is none of FSRPAUEC"))?;
        Ok(flags | 1 << bit)
    })
}

pub(super) fn tcp(tail: &mut Tail, header: &Tcp, addresses: (IpAddr, IpAddr)) -> Result<(), Error> {
    let mut options = header.options.0.clone();
    options.resize(options.len().next_multiple_of(4), 0);
    let data_offset = header.data_offset.map_or_else(|| (5 + options.len() / 4).try_into(), Ok)?;
    ensure!(data_offset < 16, "tcp: data offset {data_offset} has more than 4 bits");
    let flags = tcp_flags(header.flags.as_deref().unwrap_or("A"))?;

    let mut bytes = header.src.unwrap_or(40000).to_be_bytes().to_vec();
    bytes.extend(header.dst.unwrap_or(80).to_be_bytes());
    bytes.extend(header.seq.unwrap_or(1000).to_be_bytes());
    bytes.extend(header.ack.unwrap_or(if flags & 0x10 == 0 { 0 } else { 2000 }).to_be_bytes());
    bytes.extend([data_offset << 4, flags]);
    bytes.extend(header.window.unwrap_or(0xfaf0).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(header.urgent.to_be_bytes());
    bytes.extend(options);
    tail.prepend(&bytes);
    let sum = pseudo_checksum(addresses, PROTOCOL_TCP, &tail.bytes)?;
    let sum = checksum_field(header.checksum, sum, header.checksum_error);
    tail.bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    tail.name(Some(Next::protocol(PROTOCOL_TCP)));
    Ok(())
}

pub(super) fn udp(tail: &mut Tail, header: &Udp, addresses: (IpAddr, IpAddr)) -> Result<(), Error> {
    let length = header.length.map_or_else(|| (8 + tail.bytes.len()).try_into(), Ok)?;
    let mut bytes = header.src.unwrap_or(40000).to_be_bytes().to_vec();
    bytes.extend(header.dst.unwrap_or(53).to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0]);
    tail.prepend(&bytes);
    let sum = match header.checksum {
        Some(sum) => sum,
        // A sum that comes out as 0 is sent as its other form: 0 says that there is none (RFC 768).
        None => {
            match checksum_field(None, pseudo_checksum(addresses, PROTOCOL_UDP, &tail.bytes)?, header.checksum_error) {
                0 => 0xffff,
                sum => sum,
            }
        }
    };
    tail.bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    tail.name(Some(Next::protocol(PROTOCOL_UDP)));
    Ok(())
}

/// The message with its checksum 0: header, then the quote, then what follows.
fn icmp_message(tail: &mut Tail, header: &Icmp, mtu_bits: u32, received: Option<&[u8]>) -> Result<(), Error> {
    if !header.quote.is_empty() {
        let quote = build_all(&header.quote, &[], received)?.bytes;
        let length = header.quote_bytes.unwrap_or(quote.len());
        let quote = quote.get(..length).with_context(|| format!("quoteBytes: {length}: there are {}", quote.len()))?;
        tail.prepend(quote);
    }
    let echo = header
        .id
        .or(header.seq)
        .map(|_| u32::from(header.id.unwrap_or_default()) << 16 | u32::from(header.seq.unwrap_or_default()));
    ensure!(
        [echo.is_some(), header.mtu.is_some(), header.rest.is_some()].into_iter().filter(|set| *set).count() < 2,
        "icmp: the second word is id and seq, or mtu, or rest"
    );
    if let Some(mtu) = header.mtu {
        ensure!(mtu >> (mtu_bits - 1) < 2, "icmp: mtu: {mtu} has more than {mtu_bits} bits");
    }
    let rest = echo.or(header.mtu).or(header.rest).unwrap_or_default();
    tail.prepend(&[[header.kind, header.code, 0, 0], rest.to_be_bytes()].concat());
    Ok(())
}

pub(super) fn icmp(tail: &mut Tail, header: &Icmp, received: Option<&[u8]>) -> Result<(), Error> {
    icmp_message(tail, header, 16, received)?;
    let sum = checksum_field(header.checksum, checksum(&[&tail.bytes]), header.checksum_error);
    tail.bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    tail.name(Some(Next::protocol(PROTOCOL_ICMP)));
    Ok(())
}

pub(super) fn icmpv6(
    tail: &mut Tail,
    header: &Icmp,
    addresses: (IpAddr, IpAddr),
    received: Option<&[u8]>,
) -> Result<(), Error> {
    icmp_message(tail, header, 32, received)?;
    let sum = pseudo_checksum(addresses, PROTOCOL_ICMPV6, &tail.bytes)?;
    let sum = checksum_field(header.checksum, sum, header.checksum_error);
    tail.bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    tail.name(Some(Next::protocol(PROTOCOL_ICMPV6)));
    Ok(())
}
