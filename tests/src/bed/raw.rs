//! Whole IP packets, with whatever is in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};

use super::{Host, holds};

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let once = (sum & 0xffff) + (sum >> 16);
    (!((once & 0xffff) + (once >> 16)) as u16).to_be_bytes()
}

/// A packet of either family. Not fragmented; in IPv4 it may not be.
///
/// # Errors
/// The addresses are of two families, or the payload is too long.
pub fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(payload.len())?;
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x45, 0]);
            bytes.extend((length + 20).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            let sum = checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => bail!("{source} and {destination} are of two families"),
    }
    bytes.extend(payload);
    Ok(bytes)
}

/// The protocol number of a packet of this family in another one (RFC 2003, RFC 2473).
pub fn in_ip(inner: IpAddr) -> u8 {
    if inner.is_ipv4() { 4 } else { 41 }
}

/// The sum over a transport header with its pseudo-header. The parts before the last are of even length.
fn transport_sum(source: IpAddr, destination: IpAddr, protocol: u8, parts: &[&[u8]]) -> Result<[u8; 2]> {
    let length = u16::try_from(parts.iter().map(|part| part.len()).sum::<usize>())?.to_be_bytes();
    let octets = |address| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address).to_vec(),
        IpAddr::V6(address) => Ipv6Addr::octets(&address).to_vec(),
    };
    let pseudo = [octets(source), octets(destination), vec![0, protocol], length.to_vec()].concat();
    Ok(checksum(&[&[&pseudo[..]], parts].concat()))
}

/// A UDP datagram with its checksum.
///
/// # Errors
/// As [`packet`].
pub fn datagram(source: SocketAddr, destination: SocketAddr, text: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(text.len() + 8)?.to_be_bytes();
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let sum = transport_sum(source.ip(), destination.ip(), 17, &[&ports, &length, &[0, 0], text])?;
    packet(source.ip(), destination.ip(), 17, &[&ports, &length[..], &sum, text].concat())
}

/// A TCP segment without data, with these flags (RFC 9293 §3.1) and its checksum.
///
/// # Errors
/// As [`packet`].
pub fn segment(source: SocketAddr, destination: SocketAddr, flags: u8) -> Result<Vec<u8>> {
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff];
    let sum = transport_sum(source.ip(), destination.ip(), 6, &[&ports, &rest])?;
    packet(source.ip(), destination.ip(), 6, &[&ports[..], &rest, &sum, &[0, 0]].concat())
}

/// An ICMP error that says that the host is not to be reached (RFC 792 type 3 code 1, RFC 4443 type 1 code 3), about
/// the packet `quoted`.
///
/// # Errors
/// As [`packet`].
pub fn host_unreachable(source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Result<Vec<u8>> {
    if source.is_ipv4() {
        let head = [3, 1, 0, 0, 0, 0, 0, 0];
        let [a, b] = checksum(&[&head, quoted]);
        return packet(source, destination, 1, &[&[3, 1, a, b, 0, 0, 0, 0], quoted].concat());
    }
    let [a, b] = transport_sum(source, destination, 58, &[&[1, 3, 0, 0, 0, 0, 0, 0], quoted])?;
    packet(source, destination, 58, &[&[1, 3, a, b, 0, 0, 0, 0], quoted].concat())
}

/// Sends whole IP packets from `host`, whatever their source addresses say.
///
/// # Errors
/// The kernel refuses one of them.
pub fn send_raw<'a>(
    host: &Host,
    destination: IpAddr,
    packets: impl IntoIterator<Item = &'a Vec<u8>> + Send,
) -> Result<()> {
    host.within(|| {
        let family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let to = SockaddrStorage::from(SocketAddr::new(destination, 0));
        for bytes in packets {
            let sent = sendto(raw.as_raw_fd(), bytes, &to, MsgFlags::empty())
                .with_context(|| format!("sending {} bytes to {destination}", bytes.len()))?;
            holds(sent == bytes.len(), || format!("{sent} of {} bytes were sent", bytes.len()))?;
        }
        Ok(())
    })
}
