//! What one service is in the maps: its word, its backends' entries, its slots and its counters.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use lb_common::address::Address;
use lb_common::encap::constant_sum;
use lb_common::maps::{BACKEND_AGENT, BACKEND_IPV6, Backend, Dispatch, SLOTS_UNIT, ServiceWord};

use super::{Installed, InstalledBackend, Region, Regioned, Tables, full};
use crate::datapath::store::Store;
use crate::plan::{BackendSpec, ServiceSpec};

/// A service's backends as they were written and not yet shown to packets.
pub(super) struct Backends {
    pub(super) word: ServiceWord,
    pub(super) regions: Option<Regioned>,
    counters: BTreeMap<IpAddr, u32>,
    pub(super) backends: BTreeMap<IpAddr, InstalledBackend>,
}

impl<S: Store> Tables<S> {
    /// Whether exactly these backends are in the maps already, compared word for word where what was there is not known.
    pub(super) fn is_installed(&self, there: &Installed, spec: &ServiceSpec, table: Option<&[u16]>) -> bool {
        if let Some(before) = &there.spec {
            let same = before.algorithm == spec.algorithm && before.slots == spec.slots;
            return same && before.source_affinity == spec.source_affinity && before.backends == spec.backends;
        }
        let word = self.store.word(there.id);
        let (Some(regions), Some(table)) = (there.regions, table) else {
            // Without a table there are no entries to compare, and no packets to count.
            return table.is_none() && word.is_empty();
        };
        if !there.backends.keys().eq(spec.backends.keys())
            || word != word_of(&regions, spec.source_affinity)
            || 1usize << word.log2_slots() != table.len()
        {
            return false;
        }
        let same_backends = spec.backends.iter().enumerate().all(|(place, (address, backend))| {
            let entry = self.store.backend(regions.entries.base + place as u32);
            let next_hop = self.hop_for(address, backend);
            let want = entry_of(address, backend, entry.counter, next_hop, regions.entries.log2);
            entry == want
        });
        let mut slots = vec![0; table.len()];
        self.store.read_slots(word.slots(), &mut slots);
        same_backends && slots == table
    }

    /// Write a service's backends where no packet looks. What was taken is given back if that fails.
    pub(super) fn write_backends(
        &mut self,
        spec: &ServiceSpec,
        table: Option<&[u16]>,
        before: Option<&Installed>,
    ) -> Result<Backends> {
        let counters = self.counters_for(spec, before)?;
        let regions = match table {
            Some(table) => match self.write_regions(spec, &counters, table) {
                Ok(regions) => Some(regions),
                Err(error) => {
                    self.give_new_counters(&counters, before);
                    return Err(error);
                }
            },
            None => None,
        };
        let hop = |address: &IpAddr, backend: &BackendSpec| match regions {
            Some(_) => self.hop_for(address, backend),
            None => 0,
        };
        let backends = installed_backends(spec, &counters, table, hop);
        let word = regions.map_or(ServiceWord::EMPTY, |regions| word_of(&regions, spec.source_affinity));
        Ok(Backends { word, regions, counters, backends })
    }

    /// Give back what [`Self::write_backends`] took, where no packet could follow it.
    pub(super) fn discard_backends(&mut self, half: Backends, before: Option<&Installed>) {
        if let Some(Regioned { slots, entries }) = half.regions {
            let _ = self.slots.free(slots.base, slots.log2);
            let _ = self.backends.free(entries.base, entries.log2);
        }
        self.give_new_counters(&half.counters, before);
    }

    /// A counter for each backend: its own where it has one, a fresh one at zero else.
    fn counters_for(&mut self, spec: &ServiceSpec, before: Option<&Installed>) -> Result<BTreeMap<IpAddr, u32>> {
        let mut counters = BTreeMap::new();
        for address in spec.backends.keys() {
            let counter = match before.and_then(|there| there.backends.get(address)) {
                Some(there) => there.counter,
                None => {
                    let Some(counter) = self.counters.take() else {
                        self.give_new_counters(&counters, before);
                        return Err(full("backends", "backends", self.store.capacity().counters));
                    };
                    if let Err(error) = self.store.reset_counter(counter) {
                        self.counters.give(counter);
                        self.give_new_counters(&counters, before);
                        return Err(error);
                    }
                    counter
                }
            };
            counters.insert(*address, counter);
        }
        Ok(counters)
    }

    fn give_new_counters(&mut self, counters: &BTreeMap<IpAddr, u32>, before: Option<&Installed>) {
        for (address, counter) in counters {
            if !before.is_some_and(|there| there.backends.contains_key(address)) {
                self.counters.give(*counter);
            }
        }
    }

    /// Write a service's backends and slots where no packet looks yet.
    fn write_regions(
        &mut self,
        spec: &ServiceSpec,
        counters: &BTreeMap<IpAddr, u32>,
        table: &[u16],
    ) -> Result<Regioned> {
        let log2_backends = spec.backends.len().next_power_of_two().ilog2();
        let log2_slots = table.len().ilog2();
        let Some(backends) = self.backends.allocate(log2_backends) else {
            return Err(full("backends", "backends", 1 << self.store.capacity().log2_backends.saturating_sub(1)));
        };
        let Some(slots) = self.slots.allocate(log2_slots) else {
            let _ = self.backends.free(backends, log2_backends);
            return Err(full("slots", "slots", 1 << self.store.capacity().log2_slots));
        };
        for (place, (address, backend)) in spec.backends.iter().enumerate() {
            let counter = counters.get(address).copied().unwrap_or_default();
            let entry = entry_of(address, backend, counter, self.hop_for(address, backend), log2_backends);
            self.store.write_backend(backends + place as u32, &entry);
        }
        // What an earlier service left behind must not look like a backend to whoever adopts the maps.
        for place in spec.backends.len()..1 << log2_backends {
            self.store.write_backend(backends + place as u32, &Backend::default());
        }
        self.store.write_slots(u64::from(slots) * u64::from(SLOTS_UNIT), table);
        Ok(Regioned {
            slots: Region { base: slots, log2: log2_slots },
            entries: Region { base: backends, log2: log2_backends },
        })
    }
}

/// The word that leads to regions.
pub(super) fn word_of(regions: &Regioned, source_affinity: bool) -> ServiceWord {
    let slots = u64::from(regions.slots.base) * u64::from(SLOTS_UNIT);
    ServiceWord::new(slots, regions.slots.log2 as u8, regions.entries.base, source_affinity)
}

fn entry_of(address: &IpAddr, spec: &BackendSpec, counter: u32, next_hop: u32, log2_region: u32) -> Backend {
    let destination = (*address).into();
    let checksum = match spec.dispatch {
        Dispatch::Ipv4 => constant_sum(spec.source.v4(), Address::v4(destination)),
        Dispatch::None | Dispatch::Local | Dispatch::Ipv6 => 0,
    };
    Backend {
        destination,
        source: spec.source,
        next_hop,
        counter,
        entropy: spec.entropy,
        checksum,
        dispatch: spec.dispatch as u8,
        log2_region: log2_region as u8,
        flags: if spec.agent { BACKEND_AGENT } else { 0 } | if address.is_ipv6() { BACKEND_IPV6 } else { 0 },
        reserved: [0; 3],
    }
}

fn installed_backends(
    spec: &ServiceSpec,
    counters: &BTreeMap<IpAddr, u32>,
    table: Option<&[u16]>,
    next_hop: impl Fn(&IpAddr, &BackendSpec) -> u32,
) -> BTreeMap<IpAddr, InstalledBackend> {
    let mut owned = vec![0u32; spec.backends.len()];
    for place in table.unwrap_or_default() {
        if let Some(count) = owned.get_mut(usize::from(*place)) {
            *count += 1;
        }
    }
    let backends = spec.backends.iter().zip(owned);
    let installed = backends.map(|((address, backend), slots)| {
        let counter = counters.get(address).copied().unwrap_or_default();
        (*address, InstalledBackend { counter, next_hop: next_hop(address, backend), slots })
    });
    installed.collect()
}
