//! Logarithms in integers.
//!
//! A table must come out the same on every host, and `no_std` has no logarithm: so this one is a constant table of
//! log2(1 + i/1024), made when the crate is compiled, with straight lines between its entries. They lie at most 2⁻²²
//! below the curve, and never fall where it rises. What rendezvous needs, the ratio of two small logarithms, is right to
//! one in a thousand.

/// Fractional bits of a logarithm.
pub(super) const FRACTION_BITS: u32 = 38;
/// log2 of the number of lines between two powers of two.
const SEGMENT_BITS: u32 = 10;
const SEGMENTS: usize = 1 << SEGMENT_BITS;

/// log2(1 + i/1024) in [`FRACTION_BITS`].
static TABLE: [u64; SEGMENTS + 1] = table();

/// The upper half of a product.
const fn multiply_high(a: u64, b: u64) -> u64 {
    let (a1, a0, b1, b0) = (a >> 32, a & 0xffff_ffff, b >> 32, b & 0xffff_ffff);
    let middle = a1 * b0 + ((a0 * b0) >> 32);
    let carry = a0 * b1 + (middle & 0xffff_ffff);
    a1 * b1 + (middle >> 32) + (carry >> 32)
}

/// The binary logarithm of `mantissa`/2⁶³, which lies in [1, 2): squaring doubles it, and what passes 2 is its next bit.
const fn log2_bits(mut mantissa: u64) -> u64 {
    let mut log = 0;
    let mut bit = 0;
    while bit < FRACTION_BITS {
        let square = multiply_high(mantissa, mantissa);
        log <<= 1;
        if square >> 63 == 1 {
            log |= 1;
            mantissa = square;
        } else {
            mantissa = square << 1;
        }
        bit += 1;
    }
    log
}

const fn table() -> [u64; SEGMENTS + 1] {
    let mut table = [0; SEGMENTS + 1];
    let mut i = 0;
    while i < SEGMENTS {
        table[i] = log2_bits(1 << 63 | (i as u64) << (63 - SEGMENT_BITS));
        i += 1;
    }
    table[SEGMENTS] = 1 << FRACTION_BITS;
    table
}

/// −log2(`u`/2⁶⁴) in [`FRACTION_BITS`]; never smaller for a smaller `u`. `u` is not 0.
#[inline]
pub(super) fn minus_log2(u: u64) -> u64 {
    let zeros = u.leading_zeros();
    let mantissa = u << zeros;
    let segment = (mantissa >> (63 - SEGMENT_BITS)) as usize & (SEGMENTS - 1);
    let along = mantissa >> (31 - SEGMENT_BITS) & 0xffff_ffff;
    let (low, high) = (TABLE[segment], TABLE[segment + 1]);
    (u64::from(zeros + 1) << FRACTION_BITS) - (low + (((high - low) * along) >> 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: f64 = (1u64 << FRACTION_BITS) as f64;

    #[test]
    fn the_table_is_the_logarithm() {
        for (i, entry) in TABLE.iter().enumerate() {
            let exact = (1.0 + i as f64 / SEGMENTS as f64).log2();
            assert!((*entry as f64 / ONE - exact).abs() < 1e-11, "entry {i}: {entry}");
        }
    }

    #[test]
    fn a_logarithm_is_near_the_exact_one() {
        for shift in 0..40 {
            for u in [u64::MAX, 0xffff_ffff_0000_0000, 0xfedc_ba98_7654_3210, 0xc000_0000_0000_0001, 1 << 63] {
                let u = u >> shift;
                let exact = 64.0 - (u as f64).log2();
                let ours = minus_log2(u) as f64 / ONE;
                assert!((ours - exact).abs() < 2.5e-7, "{u:#x}: {ours} is not {exact}");
            }
        }
    }

    /// What orders the backends of a slot are logarithms of numbers next to 1, where all digits cancel.
    #[test]
    fn next_to_one_the_ratio_is_right() {
        for k in 1..100_000u64 {
            let x = k as f64 / (1u64 << 22) as f64;
            let exact = -(-x).ln_1p() / core::f64::consts::LN_2;
            let ours = minus_log2((k << 42).wrapping_neg()) as f64 / ONE;
            assert!((ours / exact - 1.0).abs() < 1e-3, "{k}: {ours} is not {exact}");
        }
    }

    #[test]
    fn a_smaller_number_never_has_a_smaller_logarithm() {
        let mut u = u64::MAX;
        let mut last = minus_log2(u);
        while u > 1 << 20 {
            u -= (u >> 13) | 1;
            let next = minus_log2(u);
            assert!(next >= last, "{u:#x}");
            last = next;
        }
    }
}
