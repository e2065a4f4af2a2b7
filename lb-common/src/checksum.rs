//! Internet checksums (RFC 1071).
//!
//! Sums are taken over 16-bit words in the machine's own order and stored as they are: a ones' complement sum does not
//! depend on the order of bytes (RFC 1071 §2), so no checksum is ever byte-swapped here.

/// A sum folded to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum of a sum: folded and inverted, in the machine's order.
#[inline(always)]
#[must_use]
pub const fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// A 32-bit word as two 16-bit words of a sum.
#[inline(always)]
#[must_use]
pub const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The sum of an even number of bytes. For headers: their size is known where it is called.
#[inline(always)]
#[must_use]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut total = 0;
    for pair in bytes.chunks_exact(2) {
        if let [a, b] = pair {
            total += u32::from(u16::from_ne_bytes([*a, *b]));
        }
    }
    total
}

/// A sum of 32-bit words folded to 16 bits: the same as that of their halves.
#[inline(always)]
#[must_use]
pub const fn fold_words(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    fold((sum & 0xffff) as u32 + (sum >> 16) as u32)
}

/// The checksum after one 16-bit word under it has changed (RFC 1624 §3, equation 3). All in the machine's order.
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u32 + !old as u32 + new as u32)
}

/// What a sum changes by when some words of it are replaced; both as sums of those words. For [`amend`].
#[inline(always)]
#[must_use]
pub const fn difference(old: u32, new: u32) -> u32 {
    !fold(old) as u32 + fold(new) as u32
}

/// The checksum after the words under it have changed by a [`difference`] (RFC 1624 §3, equation 3).
#[inline(always)]
#[must_use]
pub const fn amend(checksum: u16, difference: u32) -> u16 {
    finish(!checksum as u32 + (difference & 0xffff) + (difference >> 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_new_sum(mut bytes: [u8; 20], place in 0usize..9, new: u16) {
            // A checksum field of zero, as the sum is taken.
            bytes[18..].fill(0);
            // The one case in which both may differ is a sum of nothing but zeros (RFC 1624 §3).
            prop_assume!(bytes[..18].iter().any(|b| *b != 0));
            let old = u16::from_ne_bytes([bytes[2 * place], bytes[2 * place + 1]]);
            let before = finish(sum(&bytes));
            bytes[2 * place..2 * place + 2].copy_from_slice(&new.to_ne_bytes());
            prop_assume!(bytes[..18].iter().any(|b| *b != 0));
            prop_assert_eq!(replace(before, old, new), finish(sum(&bytes)));
        }
    }

    proptest! {
        #[test]
        fn words_of_32_bits_sum_to_the_same(bytes: [u8; 20]) {
            let words: u64 = bytes.chunks(4).map(|w| u64::from(u32::from_ne_bytes(w.try_into().unwrap()))).sum();
            prop_assert_eq!(fold_words(words), fold(sum(&bytes)));
        }
    }

    /// The example of RFC 1624 §4.
    #[test]
    fn rfc_1624_example() {
        assert_eq!(replace(0xdd2f, 0x5555, 0x3285), 0x0000);
    }
}
