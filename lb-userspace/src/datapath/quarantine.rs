//! Numbers that were given back wait before they are used again: a packet that was looked up a moment ago may still
//! follow the old ones.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long everything that packets may still follow is left alone. A program runs for microseconds; a second is far
/// beyond any delay that a running program may see.
pub const QUARANTINE: Duration = Duration::from_secs(1);

/// A set of numbers below a limit, the lowest given out first.
#[derive(Debug)]
pub(super) struct Numbers {
    #[cfg(test)]
    first: u32,
    next: u32,
    limit: u32,
    free: BTreeSet<u32>,
}

impl Numbers {
    /// All of `first..limit` are free.
    #[must_use]
    pub(super) fn new(first: u32, limit: u32) -> Self {
        Self {
            #[cfg(test)]
            first,
            next: first,
            limit,
            free: BTreeSet::new(),
        }
    }

    /// Take the lowest free number.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        (self.next < self.limit).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Take a certain number; `false` if it is not free.
    pub(super) fn reserve(&mut self, number: u32) -> bool {
        if number >= self.limit {
            return false;
        }
        if number < self.next {
            return self.free.remove(&number);
        }
        self.free.extend(self.next..number);
        self.next = number + 1;
        true
    }

    /// How many are taken.
    #[cfg(test)]
    pub(super) fn taken(&self) -> u32 {
        self.next - self.first - self.free.len() as u32
    }

    /// Give a number back.
    pub(super) fn give(&mut self, number: u32) {
        self.free.insert(number);
    }
}

/// Things on their way back, by the time at which they may be used again.
#[derive(Debug)]
pub(super) struct Quarantine<T> {
    waiting: VecDeque<(Instant, T)>,
}

impl<T> Default for Quarantine<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T> Quarantine<T> {
    /// Let a thing wait from `now` on.
    pub(super) fn add(&mut self, now: Instant, thing: T) {
        self.waiting.push_back((now + QUARANTINE, thing));
    }

    /// The next thing that has waited long enough.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let (due, _) = self.waiting.front()?;
        (*due <= now).then(|| self.waiting.pop_front()).flatten().map(|(_, thing)| thing)
    }

    /// When the next thing will have waited long enough.
    #[must_use]
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_and_bounded() {
        let mut numbers = Numbers::new(1, 5);
        assert!(numbers.reserve(3));
        assert!(!numbers.reserve(3));
        assert!(!numbers.reserve(5));
        assert_eq!(std::iter::from_fn(|| numbers.take()).collect::<Vec<_>>(), [1, 2, 4]);
        numbers.give(2);
        assert_eq!(numbers.take(), Some(2));
    }

    #[test]
    fn nothing_comes_back_early() {
        let start = Instant::now();
        let mut quarantine = Quarantine::default();
        quarantine.add(start, 'a');
        assert_eq!(quarantine.pop(start + QUARANTINE / 2), None);
        assert_eq!(quarantine.due(), Some(start + QUARANTINE));
        assert_eq!(quarantine.pop(start + QUARANTINE), Some('a'));
        assert_eq!(quarantine.pop(start + QUARANTINE), None);
    }
}
