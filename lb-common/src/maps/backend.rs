//! Backends and next hops.

use crate::address::Address;

/// How packets get to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dispatch {
    /// The entry is not in use.
    None = 0,
    /// The backend is this host: up to the stack, without a tunnel.
    Local = 1,
    /// IPIP with an IPv4 outer header.
    Ipv4 = 4,
    /// IPIP with an IPv6 outer header.
    Ipv6 = 6,
}

/// One backend of one service. A cache line; written before the service's word points at it, and then only
/// [`Backend::next_hop`] changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// Outer destination.
    pub destination: Address,
    /// Outer source, with the bits of [`Backend::entropy`] clear.
    pub source: Address,
    /// Index of the next hop; 0 while there is none.
    pub next_hop: u32,
    /// Index of the backend's counter; stays with the backend of a service for as long as it is configured.
    pub counter: u32,
    /// The last 32 bits of the outer source that the flow hash fills, in network order; 0 for a fixed source.
    pub entropy: u32,
    /// Sum of the constant words of an IPv4 outer header ([`crate::encap::constant_sum`]): all but TOS, total length,
    /// protocol and entropy. Folded, not inverted.
    pub checksum: u16,
    /// A [`Dispatch`].
    pub dispatch: u8,
    /// log2 of the size of the region of backends that this one lies in: for the agent that adopts the maps.
    pub log2_region: u8,
    /// [`BACKEND_AGENT`] and [`BACKEND_IPV6`].
    pub flags: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

impl Backend {
    /// The entry as eight words, as the agent writes it.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 8] {
        let Self { destination, source, next_hop, counter, entropy, checksum, dispatch, log2_region, flags, reserved } =
            *self;
        let [c0, c1] = checksum.to_ne_bytes();
        [
            destination.0[0],
            destination.0[1],
            source.0[0],
            source.0[1],
            join(next_hop, counter),
            join(entropy, u32::from_ne_bytes([c0, c1, dispatch, log2_region])),
            join(flags, reserved[0]),
            join(reserved[1], reserved[2]),
        ]
    }

    /// The entry that these words hold.
    #[must_use]
    pub const fn from_words(w: [u64; 8]) -> Self {
        let (next_hop, counter) = split(w[4]);
        let (entropy, small) = split(w[5]);
        let (flags, reserved) = split(w[6]);
        let (reserved_1, reserved_2) = split(w[7]);
        let [c0, c1, dispatch, log2_region] = small.to_ne_bytes();
        Self {
            destination: Address([w[0], w[1]]),
            source: Address([w[2], w[3]]),
            next_hop,
            counter,
            entropy,
            checksum: u16::from_ne_bytes([c0, c1]),
            dispatch,
            log2_region,
            flags,
            reserved: [reserved, reserved_1, reserved_2],
        }
    }
}

impl NextHop {
    /// The entry as four words, as the agent writes it.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 4] {
        let Self { macs: m, interface, mtu, reserved } = *self;
        [
            u64::from_ne_bytes([m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]]),
            join(u32::from_ne_bytes([m[8], m[9], m[10], m[11]]), interface),
            join(mtu, reserved[0]),
            join(reserved[1], reserved[2]),
        ]
    }

    /// The entry that these words hold.
    #[must_use]
    pub const fn from_words(w: [u64; 4]) -> Self {
        let a = w[0].to_ne_bytes();
        let (last, interface) = split(w[1]);
        let b = last.to_ne_bytes();
        let (mtu, reserved) = split(w[2]);
        let (reserved_1, reserved_2) = split(w[3]);
        Self {
            macs: [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3]],
            interface,
            mtu,
            reserved: [reserved, reserved_1, reserved_2],
        }
    }
}

/// Two neighbours of 32 bits as they lie in one word.
pub(super) const fn join(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// The two neighbours that lie in one word.
pub(super) const fn split(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// The word of a backend's entry that holds its next hop, and so may change while packets use the entry.
pub const BACKEND_NEXT_HOP_WORD: usize = 4;

/// The bit of [`Backend::flags`] for a backend that runs the node program.
pub const BACKEND_AGENT: u32 = 1;
/// The bit of [`Backend::flags`] that says that the destination is an IPv6 address: for the agent that adopts the maps.
pub const BACKEND_IPV6: u32 = 2;

/// Where a packet leaves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// Destination MAC address, then source MAC address, as they stand in the frame.
    pub macs: [u8; 12],
    /// The interface's index; 0 in an entry that is not in use.
    pub interface: u32,
    /// Largest IP packet that fits, in bytes: the path's MTU, outer header included.
    pub mtu: u32,
    /// Zero.
    pub reserved: [u32; 3],
}
