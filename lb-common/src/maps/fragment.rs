//! What fragments leave for each other.

use crate::address::{Address, Family};

/// Names one packet's fragments (RFC 791 §2.3, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    source: Address,
    destination: Address,
    rest: u64,
}

impl FragmentKey {
    /// The key of an IPv4 packet's fragments.
    #[inline(always)]
    #[must_use]
    pub const fn v4(source: Address, destination: Address, identification: u16, protocol: u8) -> Self {
        let rest = identification as u64 | (protocol as u64) << 32 | (Family::V4 as u64) << 40;
        Self { source, destination, rest }
    }

    /// The key of an IPv6 packet's fragments; the first one alone shows the protocol.
    #[inline(always)]
    #[must_use]
    pub const fn v6(source: Address, destination: Address, identification: u32) -> Self {
        Self { source, destination, rest: identification as u64 | (Family::V6 as u64) << 40 }
    }

    /// The packet's source.
    #[inline(always)]
    #[must_use]
    pub const fn source(&self) -> Address {
        self.source
    }

    /// The packet's destination.
    #[inline(always)]
    #[must_use]
    pub const fn destination(&self) -> Address {
        self.destination
    }
}

/// What a first fragment leaves for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentPorts {
    /// When the first fragment came, in nanoseconds of the monotonic clock.
    pub seen: u64,
    /// Its ports, as [`crate::flow::FlowKey`] joins them.
    pub ports: u32,
    /// Its protocol.
    pub protocol: u32,
}

/// How long a first fragment's ports are kept: as long as Linux keeps fragments (`ipfrag_time`, 30 s), halved, because
/// an identification may come round again within seconds at high rates (RFC 4963).
pub const FRAGMENT_LIFETIME_NS: u64 = 15_000_000_000;
