//! Taking over maps that another agent left: what they hold is understood before anything is changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use lb_common::address::Family;
use lb_common::maps::{BACKEND_IPV6, Backend, Dispatch, PREFILTER_WORDS, SLOTS_UNIT, ServiceId};

use super::store::Store;
use super::tables::{Installed, InstalledBackend, Region, Regioned, Tables};
use crate::model::key_address;

impl<S: Store> Tables<S> {
    /// Tables over a store that may hold what another agent wrote. Services that do not hold together are removed, each
    /// with a word of why in the second part.
    ///
    /// # Errors
    /// The maps cannot be read or written.
    pub fn adopt(store: S) -> Result<(Self, Vec<String>)> {
        let mut tables = Self::new(store);
        let mut notes = Vec::new();
        let (marks, services): (Vec<_>, Vec<_>) =
            tables.store.services()?.into_iter().partition(|(key, _)| key.is_vip_mark());
        for (key, id) in services {
            match tables.adopt_service(id) {
                Ok(installed) => {
                    tables.installed.insert(key, installed);
                }
                Err(error) => {
                    notes.push(format!("{} port {}: {error:#}: removed", key_address(&key), key.port()));
                    tables.store.remove_service(key)?;
                }
            }
        }
        for (mark, _) in marks {
            if !tables.installed.keys().any(|k| k.address() == mark.address() && k.family() == mark.family()) {
                tables.store.remove_service(mark)?;
            }
        }
        tables.tunnel_addresses = tables.store.tunnel_addresses()?.into_iter().collect();
        tables.trusted = tables.store.trusted()?.into_iter().collect();
        tables.adopt_prefilter();
        Ok((tables, notes))
    }

    fn adopt_service(&mut self, id: ServiceId) -> Result<Installed> {
        if !self.ids.reserve(id) {
            bail!("id {id} is beyond the map or another service's");
        }
        let word = self.store.word(id);
        if word.is_empty() {
            return Ok(Installed { id, spec: None, backends: BTreeMap::new(), regions: None });
        }
        let first = self.entry(word.backends())?;
        let regions = Regioned {
            slots: Region { base: (word.slots() / u64::from(SLOTS_UNIT)) as u32, log2: u32::from(word.log2_slots()) },
            backends: Region { base: word.backends(), log2: u32::from(first.log2_region) },
        };
        self.slots.reserve(regions.slots.base, regions.slots.log2)?;
        if let Err(error) = self.backends.reserve(regions.backends.base, regions.backends.log2) {
            let _ = self.slots.free(regions.slots.base, regions.slots.log2);
            return Err(error.into());
        }
        let backends = self.adopt_backends(regions).inspect_err(|_| {
            let _ = self.slots.free(regions.slots.base, regions.slots.log2);
            let _ = self.backends.free(regions.backends.base, regions.backends.log2);
        })?;
        Ok(Installed { id, spec: None, backends, regions: Some(regions) })
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

    fn adopt_backends(&mut self, regions: Regioned) -> Result<BTreeMap<IpAddr, InstalledBackend>> {
        let Region { base, log2 } = regions.backends;
        let entries: Vec<_> = (base..base + (1 << log2)).map(|index| self.store.backend(index)).collect();
        let used = entries.iter().filter(|entry| entry.dispatch != Dispatch::None as u8);
        let mut backends = BTreeMap::new();
        for entry in used {
            let family = if entry.flags & BACKEND_IPV6 == 0 { Family::V4 } else { Family::V6 };
            let address = entry.destination.ip(family);
            let installed = InstalledBackend { counter: entry.counter, next_hop: entry.next_hop, slots: 0 };
            if backends.insert(address, installed).is_some() {
                bail!("backend {address} is there twice");
            }
        }
        let mut slots = vec![0u16; 1 << regions.slots.log2];
        self.store.read_slots(u64::from(regions.slots.base) * u64::from(SLOTS_UNIT), &mut slots);
        let mut owned = vec![0u32; backends.len()];
        for place in slots {
            let Some(count) = owned.get_mut(usize::from(place)) else { bail!("a slot names backend {place}") };
            *count += 1;
        }
        for ((address, backend), slots) in backends.iter_mut().zip(owned) {
            backend.slots = slots;
            if !self.counters.reserve(backend.counter) {
                bail!("the counter of {address} is beyond the map or another backend's");
            }
            self.adopt_next_hop(*address, backend.next_hop)?;
        }
        Ok(backends)
    }

    fn adopt_next_hop(&mut self, address: IpAddr, number: u32) -> Result<()> {
        if number == 0 || self.next_hops.contains_key(&address) {
            return Ok(());
        }
        if number >= self.store.capacity().next_hops {
            bail!("the next hop of {address} is beyond the map");
        }
        let hop = self.store.next_hop(number);
        let (_, users) = self.hop_numbers.entry(hop.to_words()).or_insert((number, 0));
        *users += 1;
        self.hops.reserve(number);
        self.next_hops.insert(address, hop);
        Ok(())
    }

    /// Bring the prefilter to what the keys say: bits of what is there first, then no others.
    fn adopt_prefilter(&mut self) {
        let addresses: Vec<_> = self.installed.keys().map(key_address).chain(self.tunnel_addresses.clone()).collect();
        for address in addresses {
            self.use_prefilter(address);
        }
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
