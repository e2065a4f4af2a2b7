//! What one service is in a node's maps: its word, its pods' entries, its slots with those that had them before, and its
//! counters.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use lb_common::maps::{
    NO_NAMESPACE, OWN_NAMESPACE, POD_IPV6, POD_RECORD, Pod, PodCell, PodWord, SLOTS_UNIT, ServiceKey,
};
use lb_common::table::Regions;

use super::contents::word_of;
use super::{Freed, Installed, Region, Regioned, Tables, full};
use crate::datapath::quarantine::Numbers;
use crate::datapath::store::{Capacity, Store};
use crate::model::PodKey;
use crate::plan::{LOOPBACK, PodDevice, PodSpec, ServiceSpec};

/// A pod of an installed service, as status and metrics want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledPod {
    /// Its counter's index.
    pub counter: u32,
    /// The number of the device that leads to it; 0 for none.
    pub device: u32,
    /// How many slots it owns.
    pub slots: u32,
}

/// What is known of pods' maps beside the services.
#[derive(Debug)]
pub(in crate::datapath) struct Pods {
    pub(in crate::datapath) slots: Regions,
    pub(in crate::datapath) entries: Regions,
    pub(in crate::datapath) counters: Numbers,
    pub(in crate::datapath) numbers: Numbers,
    /// The number of each interface that leads to a pod, and how many entries have it.
    pub(in crate::datapath) devices: BTreeMap<u32, (u32, u32)>,
    /// How long former pods are asked after a change.
    pub(super) transition_max: Duration,
    /// When the slots of services that have former pods changed last.
    pub(in crate::datapath) changed: BTreeMap<ServiceKey, Instant>,
}

impl Pods {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            slots: Regions::new(capacity.log2_pod_cells, SLOTS_UNIT.ilog2()),
            entries: Regions::new(capacity.log2_pods, 0),
            counters: Numbers::new(0, capacity.pod_counters),
            numbers: Numbers::new(1, capacity.pod_devices),
            devices: BTreeMap::new(),
            transition_max: Duration::from_secs(24 * 3600),
            changed: BTreeMap::new(),
        }
    }

    pub(super) fn entries_used(&self) -> u64 {
        u64::from(self.entries.used_units())
    }

    pub(super) fn slots_used(&self) -> u64 {
        u64::from(self.slots.used_units()) * u64::from(SLOTS_UNIT)
    }

    pub(super) fn devices_used(&self) -> u64 {
        self.devices.len() as u64
    }

    /// When the first former pods are to be forgotten.
    pub(super) fn due(&self) -> Option<Instant> {
        self.changed.values().min()?.checked_add(self.transition_max)
    }

    pub(super) fn take_back(&mut self, freed: Freed) {
        match freed {
            // As for backends.
            Freed::PodSlots(Region { base, log2 }) => {
                let _ = self.slots.free(base, log2);
            }
            Freed::Pods(Region { base, log2 }) => {
                let _ = self.entries.free(base, log2);
            }
            Freed::PodCounter(counter) => self.counters.give(counter),
            Freed::PodDevice(number) => self.numbers.give(number),
            _ => {}
        }
    }
}

/// What becomes of a service's pods.
pub(super) enum PodChange {
    /// Nothing.
    Same,
    /// Some are behind other devices, or in other namespaces; the rest stays.
    Devices,
    /// All was written anew, and is not yet shown to packets.
    Written(Written),
}

pub(super) struct Written {
    word: PodWord,
    regions: Option<Regioned>,
    pods: BTreeMap<PodKey, InstalledPod>,
    /// Whether slots have former pods.
    moved: bool,
    /// A device that could not be had.
    failure: Option<Error>,
}

impl PodChange {
    /// The word to be shown.
    pub(super) fn word(&self) -> Option<PodWord> {
        match self {
            Self::Same | Self::Devices => None,
            Self::Written(written) => Some(written.word),
        }
    }
}

impl<S: Store> Tables<S> {
    /// Let every service without a pod here have been so for as long as the clock goes: for simulations.
    pub fn let_grace_pass(&mut self) {
        for there in self.installed.values() {
            let word = self.store.pod_word(there.id);
            if !word.is_host() && word.pods().is_none() {
                self.store.set_pod_word(there.id, PodWord::empty_since(0));
            }
        }
    }

    /// Compare a service's pods with those in the maps, and if need be write them where no packet looks.
    pub(super) fn write_pods(
        &mut self,
        spec: &ServiceSpec,
        table: Option<&[u16]>,
        before: Option<&Installed>,
        now: Instant,
    ) -> Result<PodChange> {
        let (Some(pods), Some(table)) = (&spec.pods, table) else {
            let there = before.map_or(PodWord::HOST, |there| self.store.pod_word(there.id));
            let (word, same) = match spec.pods {
                None => (PodWord::HOST, there.is_host()),
                // One without a pod remembers since when.
                Some(_) => (PodWord::empty_since(self.store.clock()), !there.is_host() && there.pods().is_none()),
            };
            let written = Written { word, regions: None, pods: BTreeMap::new(), moved: false, failure: None };
            return Ok(if same { PodChange::Same } else { PodChange::Written(written) });
        };
        if let Some(there) = before
            && let Some(change) = self.compare_pods(there, spec, pods, table)
        {
            return Ok(change);
        }
        let counters = self.pod_counters_for(pods, before)?;
        let log2_entries = pods.len().next_power_of_two().ilog2();
        let log2_slots = table.len().ilog2();
        let regions = self.allocate_pods(log2_slots, log2_entries).inspect_err(|_| {
            self.give_new_pod_counters(&counters, before);
        })?;
        let (numbers, failure) = self.take_devices(pods, now);
        let mut installed = BTreeMap::new();
        for (place, (key, pod)) in pods.iter().enumerate() {
            let (counter, device) = (counters[key], numbers[key]);
            let entry = entry_of(key, pod, device, counter, log2_entries);
            self.store.write_pod(regions.entries.base + place as u32, &entry);
            let slots = table.iter().filter(|owner| usize::from(**owner) == place).count() as u32;
            installed.insert(*key, InstalledPod { counter, device, slots });
        }
        // As for backends: what an earlier service left must not look like a pod to whoever adopts the maps.
        for place in pods.len()..1 << log2_entries {
            self.store.write_pod(regions.entries.base + place as u32, &Pod::default());
        }
        let cells = self.cells(pods, table, before);
        self.store.write_pod_cells(first_slot(&regions), &cells);
        Ok(PodChange::Written(Written {
            word: PodWord::table(word_of(&regions, spec.source_affinity)),
            regions: Some(regions),
            pods: installed,
            moved: cells.iter().any(|cell| !cell.is_steady()),
            failure,
        }))
    }

    /// What there is to do if less than all is; `None`: everything is to be written.
    fn compare_pods(
        &self,
        there: &Installed,
        spec: &ServiceSpec,
        pods: &BTreeMap<PodKey, PodSpec>,
        table: &[u16],
    ) -> Option<PodChange> {
        let regions = there.pod_regions?;
        if self.store.pod_word(there.id) != PodWord::table(word_of(&regions, spec.source_affinity))
            || !there.pods.keys().eq(pods.keys())
            || 1usize << regions.slots.log2 != table.len()
            // Its former pods are another hash's.
            || there.rehashed
        {
            return None;
        }
        let mut cells = vec![PodCell(0); table.len()];
        self.store.read_pod_cells(first_slot(&regions), &mut cells);
        if !cells.iter().map(|cell| cell.owner()).eq(table.iter().copied()) {
            return None;
        }
        let mut change = PodChange::Same;
        for (index, (key, pod)) in (regions.entries.base..).zip(pods) {
            let entry = self.store.pod(index);
            let device = self.device_number(pod);
            let want = entry_of(key, pod, device.unwrap_or(entry.device), entry.counter, regions.entries.log2);
            if (Pod { device: want.device, namespace: want.namespace, ..entry }) != want {
                return None;
            }
            if entry != want || device.is_none() {
                change = PodChange::Devices;
            }
        }
        Some(change)
    }

    /// Let packets see what was written; the error of a device that could not be had.
    pub(super) fn show_pods(
        &mut self,
        key: &ServiceKey,
        spec: &ServiceSpec,
        new: &mut Installed,
        change: PodChange,
        before: Option<&Installed>,
        now: Instant,
    ) -> Option<Error> {
        match change {
            PodChange::Same => None,
            PodChange::Devices => self.turn_pods(spec.pods.as_ref()?, new, now),
            PodChange::Written(written) => {
                if let Some(there) = before {
                    self.store.set_pod_word(there.id, written.word);
                    self.retire_pods(key, there, &written.pods, now);
                }
                (new.pod_regions, new.pods, new.rehashed) = (written.regions, written.pods, false);
                if written.moved {
                    self.pods.changed.insert(*key, now);
                }
                written.failure
            }
        }
    }

    /// Give back what [`Self::write_pods`] took, where no packet could follow it.
    pub(super) fn discard_pods(&mut self, change: PodChange, before: Option<&Installed>, now: Instant) {
        let PodChange::Written(Written { regions, pods, .. }) = change else { return };
        if let Some(Regioned { slots, entries }) = regions {
            let _ = self.pods.slots.free(slots.base, slots.log2);
            let _ = self.pods.entries.free(entries.base, entries.log2);
        }
        let counters = pods.iter().map(|(key, pod)| (*key, pod.counter)).collect();
        self.give_new_pod_counters(&counters, before);
        pods.values().for_each(|pod| self.give_device(pod.device, now));
    }

    /// Put what a service's pods no longer use into quarantine.
    pub(super) fn retire_pods(
        &mut self,
        key: &ServiceKey,
        there: &Installed,
        kept: &BTreeMap<PodKey, InstalledPod>,
        now: Instant,
    ) {
        self.pods.changed.remove(key);
        if let Some(regions) = there.pod_regions {
            self.freed.add(now, Freed::PodSlots(regions.slots));
            self.freed.add(now, Freed::Pods(regions.entries));
        }
        for (pod, installed) in &there.pods {
            if !kept.contains_key(pod) {
                self.freed.add(now, Freed::PodCounter(installed.counter));
            }
            self.give_device(installed.device, now);
        }
    }

    /// A counter for each pod: its own where it has one, a fresh one at zero else.
    fn pod_counters_for(
        &mut self,
        pods: &BTreeMap<PodKey, PodSpec>,
        before: Option<&Installed>,
    ) -> Result<BTreeMap<PodKey, u32>> {
        let mut counters = BTreeMap::new();
        for key in pods.keys() {
            let counter = match before.and_then(|there| there.pods.get(key)) {
                Some(there) => Ok(there.counter),
                None => self.new_pod_counter(),
            };
            match counter {
                Ok(counter) => counters.insert(*key, counter),
                Err(error) => {
                    self.give_new_pod_counters(&counters, before);
                    return Err(error);
                }
            };
        }
        Ok(counters)
    }

    fn new_pod_counter(&mut self) -> Result<u32> {
        let none = || full("pods", "backends", self.store.capacity().pod_counters);
        let counter = self.pods.counters.take().ok_or_else(none)?;
        self.store.reset_pod_counter(counter).inspect_err(|_| self.pods.counters.give(counter))?;
        Ok(counter)
    }

    fn give_new_pod_counters(&mut self, counters: &BTreeMap<PodKey, u32>, before: Option<&Installed>) {
        for (key, counter) in counters {
            if !before.is_some_and(|there| there.pods.contains_key(key)) {
                self.pods.counters.give(*counter);
            }
        }
    }

    fn allocate_pods(&mut self, log2_slots: u32, log2_entries: u32) -> Result<Regioned> {
        let Capacity { log2_pods, log2_pod_cells, .. } = self.store.capacity();
        let Some(entries) = self.pods.entries.allocate(log2_entries) else {
            return Err(full("pods", "backends", 1 << log2_pods.saturating_sub(1)));
        };
        let Some(slots) = self.pods.slots.allocate(log2_slots) else {
            let _ = self.pods.entries.free(entries, log2_entries);
            return Err(full("slots of pods", "slots", 1 << log2_pod_cells));
        };
        Ok(Regioned {
            slots: Region { base: slots, log2: log2_slots },
            entries: Region { base: entries, log2: log2_entries },
        })
    }
}

/// The index of a region's first slot.
pub(in crate::datapath) fn first_slot(regions: &Regioned) -> u64 {
    u64::from(regions.slots.base) * u64::from(SLOTS_UNIT)
}

/// The id that entries have for the pod's namespace.
pub(super) fn namespace(pod: &PodSpec) -> u32 {
    match pod.device {
        Some(PodDevice { interface: LOOPBACK, .. }) => OWN_NAMESPACE,
        Some(PodDevice { namespace: Some(namespace), .. }) => namespace,
        Some(PodDevice { namespace: None, .. }) | None => NO_NAMESPACE,
    }
}

fn entry_of(key: &PodKey, pod: &PodSpec, device: u32, counter: u32, log2_region: u32) -> Pod {
    Pod {
        address: key.address.into(),
        device,
        // Without a device there is no way to it, be it in a namespace or not.
        namespace: if device == 0 { NO_NAMESPACE } else { namespace(pod) },
        counter,
        port: key.port,
        log2_region: log2_region as u8,
        flags: if pod.record { POD_RECORD } else { 0 } | if key.address.is_ipv6() { POD_IPV6 } else { 0 },
        reserved: [0; 4],
    }
}
