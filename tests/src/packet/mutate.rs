//! Packets that nobody wrote: frames with a few bits, bytes or lengths changed, the same ones for the same seed.

/// A source of numbers that look random (xorshift64*, Vigna 2016), the same for the same seed.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // The generator stays at 0 for ever if it starts there.
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        high as usize % limit.max(1)
    }
}

/// Values at the edges of what lengths, types and protocols mean.
const NOTABLE: [u8; 16] = [0, 1, 4, 5, 6, 8, 15, 17, 41, 44, 51, 58, 60, 0x7f, 0x80, 0xff];
/// Most headers lie in so many bytes; what is behind them is data, which no program looks at.
const HEADERS: usize = 160;
/// A frame of the smallest size that the kernel's BPF_PROG_TEST_RUN takes.
pub const SHORTEST: usize = 14;

/// A frame with one to three changes.
#[must_use]
pub fn mutate(frame: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(bytes.len().min(HEADERS));
        match numbers.below(8) {
            0..=2 => bytes[at] ^= 1 << numbers.below(8),
            3 | 4 => bytes[at] = NOTABLE[numbers.below(NOTABLE.len())],
            5 => bytes[at] = bytes[at].wrapping_add(1),
            6 => bytes.truncate(SHORTEST.max(numbers.below(bytes.len() + 1))),
            _ => bytes.extend(std::iter::repeat_n(0x5a, numbers.below(32))),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_frames() {
        let frame: Vec<u8> = (0..100).collect();
        let run = |seed| {
            let mut numbers = Numbers::new(seed);
            (0..50).map(|_| mutate(&frame, &mut numbers)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn frames_change_in_content_and_length_and_stay_frames() {
        let frame: Vec<u8> = (0..100).collect();
        let mut numbers = Numbers::new(7);
        let frames: Vec<_> = (0..1000).map(|_| mutate(&frame, &mut numbers)).collect();
        assert!(frames.iter().all(|bytes| bytes.len() >= SHORTEST));
        assert!(frames.iter().any(|bytes| bytes.len() < 60) && frames.iter().any(|bytes| bytes.len() > 110));
        let changed = |at: usize| frames.iter().any(|bytes| bytes.get(at).is_some_and(|byte| *byte != frame[at]));
        assert!((0..100).all(changed));
        assert!(frames.iter().filter(|bytes| **bytes == frame).count() < 50);
    }
}
