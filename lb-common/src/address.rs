//! Addresses as the maps hold them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 (RFC 791).
    V4 = 4,
    /// IPv6 (RFC 8200).
    V6 = 6,
}

impl Family {
    /// The length in bytes of an address of this family.
    #[must_use]
    pub const fn address_len(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// The length in bytes of a tunnel header of this family, which carries no options.
    #[inline(always)]
    #[must_use]
    pub const fn header_len(self) -> u32 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// An address: two 64-bit words whose bytes lie in network order. An IPv4 address is the first four bytes, the others
/// are 0; which family it is stands beside it ([`Family`]).
///
/// Words of 64 bits, not bytes: keys of maps are made on a program's stack, where the verifier takes no misaligned
/// access (kernel 6.18 and before), and LLVM joins stores of smaller parts across the borders of words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Address(pub [u64; 2]);

impl Address {
    /// From the four bytes of an IPv4 header.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(b: [u8; 4]) -> Self {
        Self([u64::from_ne_bytes([b[0], b[1], b[2], b[3], 0, 0, 0, 0]), 0])
    }

    /// From the sixteen bytes of an IPv6 header.
    #[inline(always)]
    #[must_use]
    pub const fn from_v6(b: [u8; 16]) -> Self {
        Self([
            u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        ])
    }

    /// The four bytes of an IPv4 header.
    #[inline(always)]
    #[must_use]
    pub const fn v4(self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.0[0].to_ne_bytes();
        [a, b, c, d]
    }

    /// The sixteen bytes of an IPv6 header.
    #[inline(always)]
    #[must_use]
    pub const fn v6(self) -> [u8; 16] {
        let [a, b] = [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes()];
        [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
    }

    /// The address's words of 32 bits as they stand in a header.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        let [a, b] = [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes()];
        [
            u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
            u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        ]
    }

    /// The address's words of 32 bits as numbers, the first one first; an IPv4 address is the first one alone.
    #[inline(always)]
    #[must_use]
    pub const fn numbers(self) -> [u32; 4] {
        let [a, b] = [u64::from_be(self.0[0]), u64::from_be(self.0[1])];
        [(a >> 32) as u32, a as u32, (b >> 32) as u32, b as u32]
    }

    /// As the standard library's type.
    #[must_use]
    pub fn ip(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(self.v4())),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.v6())),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

/// The family of an address.
#[must_use]
pub const fn family_of(address: &IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went_in() {
        for text in ["198.51.100.10", "0.0.0.0", "2001:db8::1", "::ffff:10.0.0.1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).ip(family_of(&ip)), ip);
        }
    }
}
