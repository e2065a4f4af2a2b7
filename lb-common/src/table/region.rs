//! Where tables lie in the one array of all slots: a buddy allocator for regions of a power of two (Knowlton, 1965).
//!
//! A table is a power of two of slots, so that a mask picks one; buddies of that size waste nothing and join again. Bases
//! are multiples of their region's size.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// The free and the used regions of an array.
///
/// Sizes are log2 of a number of slots; bases count units of the smallest region. Equal calls give equal regions: of the
/// smallest free regions that fit the one with the lowest base is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    log2_min: u32,
    /// Bases of the free regions of 2^index units.
    free: Vec<BTreeSet<u32>>,
    /// Orders of the used regions, by their bases.
    used: BTreeMap<u32, u32>,
    free_units: u32,
}

/// Why a region could be neither freed nor reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// No region of that size is in use at that base: it was freed before, or never handed out.
    NotUsed {
        /// The base, in units.
        base: u32,
        /// log2 of its size in slots.
        log2_size: u32,
    },
    /// The region reaches over the end, is larger than all, or its base is no multiple of its size.
    OutOfRange {
        /// The base, in units.
        base: u32,
        /// log2 of its size in slots.
        log2_size: u32,
    },
    /// A part of the region is in use.
    Overlap {
        /// The base, in units.
        base: u32,
        /// log2 of its size in slots.
        log2_size: u32,
    },
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotUsed { base, log2_size } => {
                write!(f, "no region of 2^{log2_size} slots is in use at unit {base}: free what was handed out, once")
            }
            Self::OutOfRange { base, log2_size } => write!(
                f,
                "a region of 2^{log2_size} slots at unit {base} does not lie in the array: its base must be a multiple \
                 of its size, and its end within the capacity"
            ),
            Self::Overlap { base, log2_size } => {
                write!(f, "a region of 2^{log2_size} slots at unit {base} overlaps one in use: free that one first")
            }
        }
    }
}

impl core::error::Error for RegionError {}

impl Regions {
    /// All of an array of 2^`log2_capacity` slots, free, in units of 2^`log2_min` slots.
    ///
    /// # Panics
    /// When the capacity is less than a unit, or 2³² units and more.
    #[must_use]
    pub fn new(log2_capacity: u32, log2_min: u32) -> Self {
        assert!(log2_capacity >= log2_min, "a capacity of 2^{log2_capacity} slots is less than a unit of 2^{log2_min}");
        let top = log2_capacity - log2_min;
        assert!(top < 32, "a capacity of 2^{top} units: at most 2^31 can be counted");
        let mut free = vec![BTreeSet::new(); top as usize + 1];
        free[top as usize].insert(0);
        Self { log2_min, free, used: BTreeMap::new(), free_units: 1 << top }
    }

    /// A region of 2^`log2_size` slots, a unit at least: its base in units. None when no free region is large enough.
    pub fn allocate(&mut self, log2_size: u32) -> Option<u32> {
        let order = self.order(log2_size);
        let (from, base) =
            self.free.iter().zip(0..).skip(order as usize).find_map(|(free, from)| Some((from, *free.first()?)))?;
        self.take(base, from, base, order);
        Some(base)
    }

    /// Take a region that is known to be in use, as a former agent left it.
    ///
    /// # Errors
    /// [`RegionError::OutOfRange`] and [`RegionError::Overlap`]; nothing is changed then.
    pub fn reserve(&mut self, base: u32, log2_size: u32) -> Result<(), RegionError> {
        let order = self.order(log2_size);
        if order as usize >= self.free.len()
            || u64::from(base) + (1 << order) > self.units()
            || !u64::from(base).is_multiple_of(1 << order)
        {
            return Err(RegionError::OutOfRange { base, log2_size });
        }
        let around = |from: u32| base & !((1u32 << from) - 1);
        let from = (order..self.free.len() as u32)
            .find(|from| self.free[*from as usize].contains(&around(*from)))
            .ok_or(RegionError::Overlap { base, log2_size })?;
        self.take(around(from), from, base, order);
        Ok(())
    }

    /// Give a region back.
    ///
    /// # Errors
    /// [`RegionError::NotUsed`] when it is not in use with this size; nothing is changed then.
    pub fn free(&mut self, base: u32, log2_size: u32) -> Result<(), RegionError> {
        let mut order = self.order(log2_size);
        if self.used.get(&base) != Some(&order) {
            return Err(RegionError::NotUsed { base, log2_size });
        }
        self.used.remove(&base);
        self.free_units += 1 << order;
        let mut base = base;
        while order as usize + 1 < self.free.len() && self.free[order as usize].remove(&(base ^ 1 << order)) {
            base &= !(1 << order);
            order += 1;
        }
        self.free[order as usize].insert(base);
        Ok(())
    }

    /// Units that are free, be they in one region or in many.
    #[must_use]
    pub fn free_units(&self) -> u32 {
        self.free_units
    }

    /// Units that are in use.
    #[must_use]
    pub fn used_units(&self) -> u32 {
        (self.units() - u64::from(self.free_units)) as u32
    }

    /// log2 of the slots of the largest region that can be had; None when all is in use.
    #[must_use]
    pub fn largest_free(&self) -> Option<u32> {
        let order = self.free.iter().rposition(|free| !free.is_empty())?;
        Some(order as u32 + self.log2_min)
    }

    fn units(&self) -> u64 {
        1 << (self.free.len() - 1)
    }

    fn order(&self, log2_size: u32) -> u32 {
        log2_size.saturating_sub(self.log2_min)
    }

    /// Use the region at `base`, and split the free region around it down to its size.
    fn take(&mut self, around: u32, mut from: u32, base: u32, order: u32) {
        self.free[from as usize].remove(&around);
        while from > order {
            from -= 1;
            let half = base & !((1 << from) - 1);
            self.free[from as usize].insert(half ^ 1 << from);
        }
        self.used.insert(base, order);
        self.free_units -= 1 << order;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_the_smallest_that_fit_is_taken() {
        let mut regions = Regions::new(12, 6);
        assert_eq!(regions.allocate(6), Some(0));
        assert_eq!(regions.allocate(8), Some(4));
        assert_eq!(regions.allocate(6), Some(1));
        assert_eq!(regions.allocate(3), Some(2), "less than a unit is a unit");
        assert_eq!((regions.free_units(), regions.used_units(), regions.largest_free()), (57, 7, Some(11)));
        assert_eq!(regions.allocate(12), None);
        assert_eq!(regions.allocate(11), Some(32));
        assert_eq!(regions.allocate(6), Some(3), "a lone unit, before a part of a larger region");
        regions.free(1, 6).unwrap();
        regions.free(0, 6).unwrap();
        regions.free(3, 6).unwrap();
        assert_eq!(regions.allocate(6), Some(3), "the smallest that fits, before the lower half of a pair");
        assert_eq!(regions.allocate(6), Some(0), "the lower half of a pair");
    }

    #[test]
    fn what_is_freed_joins_to_the_whole() {
        let mut regions = Regions::new(10, 6);
        let units: Vec<u32> = (0..16).map(|_| regions.allocate(6).unwrap()).collect();
        assert_eq!((regions.allocate(6), regions.largest_free()), (None, None));
        for unit in units.iter().filter(|unit| *unit % 2 == 0).chain(units.iter().filter(|unit| *unit % 2 == 1)) {
            regions.free(*unit, 6).unwrap();
        }
        assert_eq!(regions, Regions::new(10, 6));
        assert_eq!(regions.allocate(10), Some(0));
    }

    #[test]
    fn nothing_is_freed_twice_or_in_part() {
        let mut regions = Regions::new(10, 6);
        let base = regions.allocate(8).unwrap();
        for (base, log2_size) in [(base, 7), (base, 9), (base + 1, 6), (8, 6), (4096, 6)] {
            assert_eq!(regions.free(base, log2_size), Err(RegionError::NotUsed { base, log2_size }));
        }
        regions.free(base, 8).unwrap();
        assert_eq!(regions.free(base, 8), Err(RegionError::NotUsed { base, log2_size: 8 }));
    }

    #[test]
    fn what_a_former_agent_left_is_adopted() {
        let mut regions = Regions::new(10, 6);
        regions.reserve(4, 8).unwrap();
        regions.reserve(15, 6).unwrap();
        for (base, log2_size) in [(4, 8), (5, 6), (0, 9), (0, 10), (14, 7)] {
            assert_eq!(regions.reserve(base, log2_size), Err(RegionError::Overlap { base, log2_size }));
        }
        for (base, log2_size) in [(16, 6), (1, 7), (0, 11), (u32::MAX, 6), (0, 200), (8, 10)] {
            assert_eq!(regions.reserve(base, log2_size), Err(RegionError::OutOfRange { base, log2_size }));
        }
        assert_eq!(regions.used_units(), 5);
        assert_eq!(regions.allocate(9), None, "both halves have a part in use");
        assert_eq!(regions.allocate(8), Some(0));
        regions.free(4, 8).unwrap();
        regions.free(15, 6).unwrap();
        regions.free(0, 8).unwrap();
        assert_eq!(regions, Regions::new(10, 6));
    }

    #[test]
    fn the_largest_array_can_be_counted() {
        let mut regions = Regions::new(33, 6);
        assert_eq!(regions.allocate(33), Some(0));
        regions.free(0, 33).unwrap();
        assert_eq!(regions.allocate(22), Some(0));
        assert_eq!(regions.free_units(), (1 << 27) - (1 << 16));
    }
}
