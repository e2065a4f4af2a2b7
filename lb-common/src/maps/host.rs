//! This host as a tunnel's end: its addresses, and whom it trusts.

use crate::address::{Address, Family};

/// An address of this host that tunnels may end at: the key of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TunnelAddress {
    address: Address,
    family: u64,
}

impl TunnelAddress {
    /// The key of an address.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, family: Family) -> Self {
        Self { address, family: family as u64 }
    }

    /// The key as a map holds it.
    #[must_use]
    pub const fn to_words(self) -> [u64; 3] {
        [self.address.0[0], self.address.0[1], self.family]
    }

    /// The address of a key that a map holds.
    #[must_use]
    pub fn ip(words: [u64; 3]) -> core::net::IpAddr {
        Address([words[0], words[1]]).ip(if words[2] == 4 { Family::V4 } else { Family::V6 })
    }
}

/// Data of a key of the trie of trusted sources: the family in four bytes, then the address. A prefix of an address is
/// [`TRUSTED_FAMILY_BITS`] longer as a prefix of this.
pub type TrustedData = [u8; 20];
/// Bits before the address in [`TrustedData`].
pub const TRUSTED_FAMILY_BITS: u32 = 32;

/// The data of a trusted source's key.
#[inline(always)]
#[must_use]
pub const fn trusted_data(address: Address, family: Family) -> TrustedData {
    let a = address.v6();
    let f = (family as u32).to_ne_bytes();
    [
        f[0], f[1], f[2], f[3], a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13],
        a[14], a[15],
    ]
}
