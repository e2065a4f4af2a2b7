//! Offloads of an interface, by the ethtool ioctl.

use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use nix::libc;

/// What a network card does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// It takes VLAN tags out of frames that it receives.
    pub vlan: bool,
    /// It joins packets that it receives (LRO).
    pub lro: bool,
    /// It finishes checksums of what it sends; a veth that says so leaves them unfinished.
    pub checksums: bool,
}

/// linux/sockios.h
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// linux/ethtool.h: `ETHTOOL_GFLAGS`, and two of its flags.
const GET_FLAGS: u32 = 0x25;
const FLAG_RXVLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;
/// linux/ethtool.h: `ETHTOOL_GTXCSUM`.
const GET_CHECKSUMS: u32 = 0x16;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Asks for an interface of the calling thread's network namespace.
pub(super) fn read(name: &str) -> Option<Offloads> {
    let flags = ask(name, GET_FLAGS)?;
    let checksums = ask(name, GET_CHECKSUMS)? != 0;
    Some(Offloads { vlan: flags & FLAG_RXVLAN != 0, lro: flags & FLAG_LRO != 0, checksums })
}

fn ask(name: &str, command: u32) -> Option<u32> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0))).ok()?;
    let mut value = EthtoolValue { command, data: 0 };
    // SAFETY: all zeroes are a valid ifreq: numbers, and pointers that may be null.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.as_bytes();
    // The last byte stays zero.
    if bytes.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value that it points to are live and of the sizes that the kernel takes for
    // commands with a `struct ethtool_value` (dev_ethtool, net/ethtool/ioctl.c).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    (result == 0).then_some(value.data)
}
