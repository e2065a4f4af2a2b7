//! The bitmap that most packets are told from ours by.

use crate::address::{Address, Family};

/// log2 of the number of bits of the prefilter.
pub const PREFILTER_BITS: u32 = 20;
/// Number of 64-bit words of the prefilter.
pub const PREFILTER_WORDS: u32 = 1 << (PREFILTER_BITS - 6);

/// The bit of the prefilter for an IPv4 address: index of the word and the bit in it.
#[inline(always)]
#[must_use]
pub const fn prefilter_v4(address: Address) -> (u32, u64) {
    let h = (address.0[0] as u32).wrapping_mul(0x9e37_79b1) >> (32 - PREFILTER_BITS);
    (h >> 6, 1 << (h & 63))
}

/// The bit of the prefilter for an IPv6 address: index of the word and the bit in it.
#[inline(always)]
#[must_use]
pub const fn prefilter_v6(address: Address) -> (u32, u64) {
    let [a, b] = address.0;
    let high = a.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let low = b.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let h = ((high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PREFILTER_BITS)) as u32;
    (h >> 6, 1 << (h & 63))
}

/// The bit of the prefilter for an address: index of the word and the bit in it.
#[inline(always)]
#[must_use]
pub const fn prefilter(address: Address, family: Family) -> (u32, u64) {
    match family {
        Family::V4 => prefilter_v4(address),
        Family::V6 => prefilter_v6(address),
    }
}
