//! The pods that had a slot before: asked for a while, so that their flows stay with them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lb_common::maps::PodCell;

use super::pods::first_slot;
use super::{Installed, Tables};
use crate::datapath::store::Store;
use crate::model::PodKey;
use crate::plan::PodSpec;

impl<S: Store> Tables<S> {
    /// How long a slot's former pods are asked after a change.
    pub fn set_transition_max(&mut self, transition_max: Duration) {
        self.pods.transition_max = transition_max;
    }

    /// The slots of a table, each with the pods that had it before and still are there.
    pub(super) fn cells(
        &self,
        pods: &BTreeMap<PodKey, PodSpec>,
        table: &[u16],
        before: Option<&Installed>,
    ) -> Vec<PodCell> {
        let before = before.filter(|there| !there.rehashed).and_then(|there| Some((there, there.pod_regions?)));
        let Some((there, regions)) = before.filter(|(_, regions)| 1usize << regions.slots.log2 <= table.len()) else {
            return table.iter().map(|owner| PodCell::new(*owner, [PodCell::NONE; PodCell::FORMERS])).collect();
        };
        let mut old = vec![PodCell(0); 1 << regions.slots.log2];
        self.store.read_pod_cells(first_slot(&regions), &mut old);
        // Where the pod of an old place is now.
        let now: BTreeMap<&PodKey, u16> = pods.keys().zip(0..).collect();
        let places: Vec<_> = there.pods.keys().map(|key| now.get(key).copied()).collect();
        // A table that has grown picks by the same bits of the hash and more.
        let cells = table.iter().zip(old.iter().cycle()).map(|(owner, old)| {
            let [last, first] = old.formers();
            let mut formers = [PodCell::NONE; PodCell::FORMERS];
            let mut count = 0;
            for place in [old.owner(), last, first] {
                let Some(Some(place)) = places.get(usize::from(place)) else { continue };
                if place != owner && !formers.contains(place) && count < PodCell::FORMERS {
                    formers[count] = *place;
                    count += 1;
                }
            }
            PodCell::new(*owner, formers)
        });
        cells.collect()
    }

    /// Clear the former pods of services whose last change is long enough ago.
    pub(super) fn forget_formers(&mut self, now: Instant) {
        let max = self.pods.transition_max;
        let over = |changed: &Instant| changed.checked_add(max).is_some_and(|end| end <= now);
        let due: BTreeSet<_> = self.pods.changed.iter().filter(|(_, changed)| over(changed)).map(|(k, _)| *k).collect();
        for key in due {
            self.pods.changed.remove(&key);
            let Some(regions) = self.installed.get(&key).and_then(|there| there.pod_regions) else { continue };
            let mut cells = vec![PodCell(0); 1 << regions.slots.log2];
            self.store.read_pod_cells(first_slot(&regions), &mut cells);
            for (index, cell) in (first_slot(&regions)..).zip(cells).filter(|(_, cell)| !cell.is_steady()) {
                self.store.set_pod_cell(index, PodCell::new(cell.owner(), [PodCell::NONE; PodCell::FORMERS]));
            }
        }
    }
}
