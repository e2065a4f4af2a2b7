//! Taking over what a node has for its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, bail};
use lb_common::address::Family;
use lb_common::maps::{NO_NAMESPACE, POD_IPV6, Pod, PodCell, SLOTS_UNIT, ServiceKey};

use crate::datapath::store::Store;
use crate::datapath::tables::{Freed, Installed, InstalledPod, Region, Regioned, Tables};
use crate::model::PodKey;

impl<S: Store> Tables<S> {
    /// Understand a service's pods, if it has any.
    pub(super) fn adopt_pods(&mut self, installed: &mut Installed, taken: &mut Vec<Freed>) -> Result<()> {
        let Some(word) = self.store.pod_word(installed.id).pods() else { return Ok(()) };
        let first = self.pod_entry(word.backends())?;
        let regions = Regioned {
            slots: Region { base: (word.slots() / u64::from(SLOTS_UNIT)) as u32, log2: u32::from(word.log2_slots()) },
            entries: Region { base: word.backends(), log2: u32::from(first.log2_region) },
        };
        self.pods.slots.reserve(regions.slots.base, regions.slots.log2)?;
        taken.push(Freed::PodSlots(regions.slots));
        self.pods.entries.reserve(regions.entries.base, regions.entries.log2)?;
        taken.push(Freed::Pods(regions.entries));
        let Region { base, log2 } = regions.entries;
        let entries: Vec<_> = (base..base + (1 << log2)).map(|index| self.store.pod(index)).collect();
        // No pod listens on port 0: it stands for an entry that is not in use.
        let used = entries.iter().rposition(|entry| entry.port != 0).map_or(0, |last| last + 1);
        let mut pods: BTreeMap<PodKey, InstalledPod> = BTreeMap::new();
        for entry in &entries[..used] {
            let key = key_of(entry);
            // As backends: in the order of addresses and ports, without a gap, each once.
            if entry.port == 0 || pods.last_key_value().is_some_and(|(last, _)| *last >= key) {
                bail!("pod {} port {} is not in its place", key.address, key.port);
            }
            if !self.pods.counters.reserve(entry.counter) {
                bail!("the counter of pod {} port {} is beyond the map or another pod's", key.address, key.port);
            }
            taken.push(Freed::PodCounter(entry.counter));
            pods.insert(key, InstalledPod { counter: entry.counter, device: entry.device, slots: 0 });
        }
        let mut owned = vec![0u32; pods.len()];
        for cell in self.cells_of(&regions) {
            let Some(count) = owned.get_mut(usize::from(cell.owner())) else {
                bail!("a slot names pod {}", cell.owner())
            };
            *count += 1;
            if let Some(former) = cell.formers().into_iter().find(|f| *f != PodCell::NONE && usize::from(*f) >= used) {
                bail!("a slot names the former pod {former}");
            }
        }
        for (pod, slots) in pods.values_mut().zip(owned) {
            pod.slots = slots;
        }
        (installed.pods, installed.pod_regions) = (pods, Some(regions));
        Ok(())
    }

    fn pod_entry(&self, index: u32) -> Result<Pod> {
        let log2_pods = self.store.capacity().log2_pods;
        if u64::from(index) >= 1 << log2_pods {
            bail!("pod {index} is beyond the map");
        }
        let entry = self.store.pod(index);
        if u32::from(entry.log2_region) > log2_pods {
            bail!("pod {index} says that its region has 2^{} entries", entry.log2_region);
        }
        Ok(entry)
    }

    fn cells_of(&self, regions: &Regioned) -> Vec<PodCell> {
        let mut cells = vec![PodCell(0); 1 << regions.slots.log2];
        self.store.read_pod_cells(u64::from(regions.slots.base) * u64::from(SLOTS_UNIT), &mut cells);
        cells
    }

    /// Former pods that are left are asked for the whole time again: nobody knows when they were written.
    pub(super) fn adopt_formers(&mut self, key: &ServiceKey, installed: &Installed, now: Instant) {
        let moved = |regions: Regioned| self.cells_of(&regions).iter().any(|cell| !cell.is_steady());
        if installed.pod_regions.is_some_and(moved) {
            self.pods.changed.insert(*key, now);
        }
    }

    /// Take over the numbers of devices that entries have. An entry whose device is gone, or which has another number
    /// than it has elsewhere, is turned.
    pub(super) fn adopt_pod_devices(&mut self, now: Instant) {
        let pods = || self.installed.values().flat_map(|there| there.pods.values());
        let found: BTreeSet<_> = pods().map(|pod| pod.device).filter(|number| *number != 0).collect();
        let mut wrong = BTreeMap::new();
        for number in found {
            let within = number < self.store.capacity().pod_devices;
            let interface = if within { self.store.pod_device(number) } else { None };
            let right = match interface {
                Some(interface) => self.pods.devices.entry(interface).or_insert((number, 0)).0,
                None => 0,
            };
            if self.pods.numbers.reserve(number) && right != number {
                self.freed.add(now, Freed::PodDevice(number));
            }
            if right != number {
                wrong.insert(number, right);
            }
        }
        let mut users = BTreeMap::<u32, u32>::new();
        for there in self.installed.values_mut() {
            let Some(regions) = there.pod_regions else { continue };
            for (index, pod) in (regions.entries.base..).zip(there.pods.values_mut()) {
                if let Some(right) = wrong.get(&pod.device) {
                    let namespace = if *right == 0 { NO_NAMESPACE } else { self.store.pod(index).namespace };
                    self.store.set_pod_device(index, *right, namespace);
                    pod.device = *right;
                }
                *users.entry(pod.device).or_default() += 1;
            }
        }
        for (number, count) in self.pods.devices.values_mut() {
            *count = users.get(number).copied().unwrap_or_default();
        }
    }
}

fn key_of(entry: &Pod) -> PodKey {
    let family = if entry.flags & POD_IPV6 == 0 { Family::V4 } else { Family::V6 };
    let address: IpAddr = entry.address.ip(family);
    PodKey { address, port: entry.port }
}
