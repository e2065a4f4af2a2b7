//! The allocator of regions against a model that knows nothing but which unit is whose.

use lb_common::table::Regions;
use lb_common::table::region::RegionError;
use proptest::prelude::*;

const LOG2_CAPACITY: u32 = 14;
const LOG2_MIN: u32 = 6;
const UNITS: usize = 1 << (LOG2_CAPACITY - LOG2_MIN);

#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate(u32),
    Reserve(u32, u32),
    /// Free one of those in use, picked by its place.
    Free(usize),
    /// Free whatever this names.
    FreeWild(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let size = 4u32..=LOG2_CAPACITY + 1;
    prop_oneof![
        4 => (4u32..=12).prop_map(Step::Allocate),
        2 => (0..UNITS as u32 + 8, size.clone()).prop_map(|(base, size)| Step::Reserve(base, size)),
        3 => any::<usize>().prop_map(Step::Free),
        1 => (0..UNITS as u32 + 8, size).prop_map(|(base, size)| Step::FreeWild(base, size)),
    ]
}

/// Which units are in use, and the regions handed out as (base, log2 of the size asked for).
struct Model {
    unit: [bool; UNITS],
    regions: Vec<(u32, u32)>,
}

fn length(log2_size: u32) -> u32 {
    1 << log2_size.saturating_sub(LOG2_MIN)
}

impl Model {
    /// Whether a region of this length lies at this base, in the array and free.
    fn fits(&self, base: u32, length: u32) -> bool {
        let (from, to) = (base as usize, (base + length) as usize);
        base.is_multiple_of(length) && to <= UNITS && self.unit[from..to].iter().all(|used| !used)
    }

    fn set(&mut self, base: u32, log2_size: u32, used: bool) {
        self.unit[base as usize..(base + length(log2_size)) as usize].fill(used);
    }

    fn apply(&mut self, regions: &mut Regions, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Allocate(log2_size) => {
                let possible = (0..UNITS as u32).any(|base| self.fits(base, length(log2_size)));
                let base = regions.allocate(log2_size);
                prop_assert_eq!(base.is_some(), possible, "a free region of that size is found if there is one");
                if let Some(base) = base {
                    prop_assert!(self.fits(base, length(log2_size)), "unit {} is in use", base);
                    self.set(base, log2_size, true);
                    self.regions.push((base, log2_size));
                }
            }
            Step::Reserve(base, log2_size) => {
                let possible = self.fits(base, length(log2_size));
                prop_assert_eq!(regions.reserve(base, log2_size).is_ok(), possible);
                if possible {
                    self.set(base, log2_size, true);
                    self.regions.push((base, log2_size));
                }
            }
            Step::Free(pick) if !self.regions.is_empty() => {
                let (base, log2_size) = self.regions.swap_remove(pick % self.regions.len());
                prop_assert_eq!(regions.free(base, log2_size), Ok(()));
                prop_assert_eq!(regions.free(base, log2_size), Err(RegionError::NotUsed { base, log2_size }));
                self.set(base, log2_size, false);
            }
            Step::Free(_) => {}
            Step::FreeWild(base, log2_size) => {
                let found = self.regions.iter().position(|r| r.0 == base && length(r.1) == length(log2_size));
                prop_assert_eq!(regions.free(base, log2_size).is_ok(), found.is_some());
                if let Some(found) = found {
                    self.regions.swap_remove(found);
                    self.set(base, log2_size, false);
                }
            }
        }
        let used = self.unit.iter().filter(|used| **used).count() as u32;
        prop_assert_eq!((regions.used_units(), regions.free_units()), (used, UNITS as u32 - used));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn regions_never_overlap_and_join_again(steps in proptest::collection::vec(step(), 1..200)) {
        let mut regions = Regions::new(LOG2_CAPACITY, LOG2_MIN);
        let mut model = Model { unit: [false; UNITS], regions: Vec::new() };
        for step in steps {
            model.apply(&mut regions, step)?;
        }
        for (base, log2_size) in model.regions {
            prop_assert_eq!(regions.free(base, log2_size), Ok(()));
        }
        prop_assert_eq!(regions, Regions::new(LOG2_CAPACITY, LOG2_MIN));
    }
}
