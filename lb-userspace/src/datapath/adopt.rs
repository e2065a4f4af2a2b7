//! Taking over maps that another agent left: what they hold is understood before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, bail};
use lb_common::address::Family;
use lb_common::maps::{BACKEND_IPV6, Backend, Dispatch, PREFILTER_WORDS, SLOTS_UNIT, ServiceId, ServiceKey, VIP_MARK};

use super::store::Store;
use super::tables::{Freed, Installed, InstalledBackend, Region, Regioned, Tables};
use crate::model::key_address;

mod pods;
mod replies;

impl<S: Store> Tables<S> {
    /// Tables over a store that may hold what another agent wrote. Services that do not hold together are removed, each
    /// with a word of why in the second part.
    ///
    /// # Errors
    /// The maps cannot be read or written.
    pub fn adopt(store: S, now: Instant) -> Result<(Self, Vec<String>)> {
        let mut tables = Self::new(store);
        let mut notes = Vec::new();
        let (marks, services): (Vec<_>, Vec<_>) =
            tables.store.services()?.into_iter().partition(|(key, _)| key.is_vip_mark());
        let marks: BTreeSet<_> = marks.into_iter().map(|(mark, _)| mark).collect();
        for (key, id) in services {
            let mut taken = Vec::new();
            match tables.adopt_service(id, &mut taken) {
                Ok(installed) => {
                    tables.adopt_formers(&key, &installed, now);
                    tables.installed.insert(key, installed);
                }
                Err(error) => {
                    notes.push(format!("{} port {}: {error:#}: removed", key_address(&key), key.port()));
                    tables.store.remove_service(key)?;
                    // Packets may still follow what it was.
                    taken.into_iter().for_each(|thing| tables.freed.add(now, thing));
                }
            }
        }
        tables.adopt_next_hops(now);
        tables.adopt_pod_devices(now);
        tables.adopt_internal(&mut notes)?;
        tables.adopt_replies(&mut notes, now)?;
        tables.tunnel_addresses = tables.store.tunnel_addresses()?.into_iter().collect();
        tables.trusted = tables.store.trusted()?.into_iter().collect();
        // As for every change: bits before keys, and gone after them.
        tables.add_bits();
        tables.adopt_marks(&marks)?;
        tables.clear_other_bits();
        Ok((tables, notes))
    }

    /// Understand a service. What is taken for it stands in `taken` whether that succeeds or not.
    fn adopt_service(&mut self, id: ServiceId, taken: &mut Vec<Freed>) -> Result<Installed> {
        if !self.ids.reserve(id) {
            bail!("id {id} is beyond the map or another service's");
        }
        taken.push(Freed::Service(id));
        let mut installed = Installed::empty(id);
        self.adopt_regions(&mut installed, taken)?;
        self.adopt_pods(&mut installed, taken)?;
        Ok(installed)
    }

    fn adopt_regions(&mut self, installed: &mut Installed, taken: &mut Vec<Freed>) -> Result<()> {
        let word = self.store.word(installed.id);
        if word.is_empty() {
            return Ok(());
        }
        let first = self.entry(word.backends())?;
        let regions = Regioned {
            slots: Region { base: (word.slots() / u64::from(SLOTS_UNIT)) as u32, log2: u32::from(word.log2_slots()) },
            entries: Region { base: word.backends(), log2: u32::from(first.log2_region) },
        };
        self.slots.reserve(regions.slots.base, regions.slots.log2)?;
        taken.push(Freed::Slots(regions.slots));
        self.backends.reserve(regions.entries.base, regions.entries.log2)?;
        taken.push(Freed::Backends(regions.entries));
        installed.backends = self.adopt_backends(regions, taken)?;
        installed.regions = Some(regions);
        Ok(())
    }

    fn entry(&self, index: u32) -> Result<Backend> {
        if u64::from(index) >= 1 << self.store.capacity().log2_backends {
            bail!("backend {index} is beyond the map");
        }
        let entry = self.store.backend(index);
        if u64::from(entry.log2_region) > u64::from(self.store.capacity().log2_backends) {
            bail!("backend {index} says that its region has 2^{} entries", entry.log2_region);
        }
        Ok(entry)
    }

    fn adopt_backends(
        &mut self,
        regions: Regioned,
        taken: &mut Vec<Freed>,
    ) -> Result<BTreeMap<IpAddr, InstalledBackend>> {
        let Region { base, log2 } = regions.entries;
        let entries: Vec<_> = (base..base + (1 << log2)).map(|index| self.store.backend(index)).collect();
        let used = entries.iter().rposition(|entry| entry.dispatch != Dispatch::None as u8).map_or(0, |last| last + 1);
        let mut backends = BTreeMap::new();
        for entry in &entries[..used] {
            let family = if entry.flags & BACKEND_IPV6 == 0 { Family::V4 } else { Family::V6 };
            let address = entry.destination.ip(family);
            // Places are ranks in the order of addresses: without a gap, each once.
            if entry.dispatch == Dispatch::None as u8 || backends.last_key_value().is_some_and(|(a, _)| *a >= address) {
                bail!("backend {address} is not in its place");
            }
            if !self.counters.reserve(entry.counter) {
                bail!("the counter of {address} is beyond the map or another backend's");
            }
            taken.push(Freed::Counter(entry.counter));
            let installed = InstalledBackend { counter: entry.counter, next_hop: entry.next_hop, slots: 0 };
            backends.insert(address, installed);
        }
        let mut slots = vec![0u16; 1 << regions.slots.log2];
        self.store.read_slots(u64::from(regions.slots.base) * u64::from(SLOTS_UNIT), &mut slots);
        let mut owned = vec![0u32; backends.len()];
        for place in slots {
            let Some(count) = owned.get_mut(usize::from(place)) else { bail!("a slot names backend {place}") };
            *count += 1;
        }
        for (backend, slots) in backends.values_mut().zip(owned) {
            backend.slots = slots;
        }
        Ok(backends)
    }

    /// Take over the next hops that entries have. An agent that stopped while it turned a backend's entries to another
    /// next hop left some at the old one: all are turned to the same.
    fn adopt_next_hops(&mut self, now: Instant) {
        let backends = self.installed.values().flat_map(|there| &there.backends);
        let found: BTreeSet<_> = backends.map(|(address, there)| (*address, there.next_hop)).collect();
        for (address, number) in &found {
            self.adopt_next_hop(*address, *number);
        }
        let mut numbers = BTreeMap::new();
        for (address, number) in found {
            let right = self.hop_number(&address);
            if number != right {
                numbers.insert(address, right);
                if number != 0 && self.hops.reserve(number) {
                    self.freed.add(now, Freed::NextHop(number));
                }
            }
        }
        self.point_backends(&numbers);
    }

    fn adopt_next_hop(&mut self, address: IpAddr, number: u32) {
        if number == 0 || number >= self.store.capacity().next_hops || self.next_hops.contains_key(&address) {
            return;
        }
        let hop = self.store.next_hop(number);
        if hop.interface == 0 {
            return;
        }
        let (first, users) = self.hop_numbers.entry(hop.to_words()).or_insert((number, 0));
        *users += 1;
        if *first == number {
            self.hops.reserve(number);
        }
        self.next_hops.insert(address, hop);
    }

    /// Bring the marks of VIPs to what the keys say.
    fn adopt_marks(&mut self, marks: &BTreeSet<ServiceKey>) -> Result<()> {
        let wanted: BTreeSet<_> =
            self.installed.keys().map(|key| ServiceKey::vip(key.address(), key.family())).collect();
        for mark in marks.difference(&wanted) {
            self.store.remove_service(*mark)?;
        }
        for mark in wanted.difference(marks) {
            self.store.insert_service(*mark, VIP_MARK)?;
        }
        Ok(())
    }

    /// Set the bits of the prefilter that the keys ask for.
    fn add_bits(&mut self) {
        let addresses: Vec<_> = self.installed.keys().map(key_address).chain(self.tunnel_addresses.clone()).collect();
        for address in addresses {
            self.use_prefilter(address);
        }
    }

    /// Clear those that no key asks for.
    fn clear_other_bits(&mut self) {
        let mut wanted = BTreeMap::<u32, u64>::new();
        for (word, bit) in self.prefilter_users.keys() {
            *wanted.entry(*word).or_default() |= bit;
        }
        for word in 0..PREFILTER_WORDS {
            let want = wanted.get(&word).copied().unwrap_or(0);
            if self.store.prefilter(word) != want {
                self.store.set_prefilter(word, want);
            }
        }
    }
}
