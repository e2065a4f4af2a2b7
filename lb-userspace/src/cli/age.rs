//! Times for people.

/// A time in seconds in its two largest units.
pub(super) fn duration(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, ..) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, words) in [(0, "0s"), (61, "1m 1s"), (3_600, "1h 0m"), (90_000, "1d 1h")] {
            assert_eq!(duration(seconds), words);
        }
    }
}
