//! The tables of all services: what is installed where, and how a step is carried out.
//!
//! A change of a service never touches what packets are using: its backends and slots are written to fresh regions, then
//! its word is swapped. What the old word pointed at waits in quarantine.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use lb_common::address::family_of;
use lb_common::flow::HashKeys;
use lb_common::maps::{NextHop, SLOTS_UNIT, ServiceId, ServiceKey, ServiceWord, VIP_MARK, prefilter};
use lb_common::table::region::Regions;

use super::build::Builder;
use super::quarantine::{Numbers, Quarantine};
use super::store::Store;
use crate::model::{Prefix, key_address};
use crate::plan::{Actual, BackendSpec, ReplyKey, ReplySpec, ServiceSpec, Step};
use contents::{installed_backends, word_of};

/// A power-of-two region: its base in the units of its allocator, and the log2 of its size in slots or entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) base: u32,
    pub(super) log2: u32,
}

/// Where a service's slots and backends lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Regioned {
    /// Its base counts [`SLOTS_UNIT`]s.
    pub(super) slots: Region,
    /// Its base counts entries.
    pub(super) backends: Region,
}

/// A backend of an installed service, as status and metrics want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledBackend {
    /// Its counter's index.
    pub counter: u32,
    /// Its next hop's index; 0 for none.
    pub next_hop: u32,
    /// How many slots it owns.
    pub slots: u32,
}

/// A service in the maps.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Its id.
    pub id: ServiceId,
    /// What it was made from; `None` until it is compared after an adoption or a change of the seed.
    pub spec: Option<ServiceSpec>,
    /// Its backends, by address, in the order of their places.
    pub backends: BTreeMap<IpAddr, InstalledBackend>,
    pub(super) regions: Option<Regioned>,
}

impl Installed {
    /// The index of its first backend; `None` without a table.
    #[must_use]
    pub fn first_backend(&self) -> Option<u32> {
        self.regions.map(|regions| regions.backends.base)
    }
}

/// What waits in quarantine.
#[derive(Debug)]
pub(super) enum Freed {
    Service(ServiceId),
    Slots(Region),
    Backends(Region),
    Counter(u32),
    NextHop(u32),
}

/// How full the maps are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// VIP:port pairs.
    pub services: u64,
    /// Entries of backends, regions rounded up.
    pub backends: u64,
    /// Slots.
    pub slots: u64,
    /// Next hops.
    pub next_hops: u64,
    /// Tables built since the agent started.
    pub tables_built: u64,
}

/// All tables, in a store.
pub struct Tables<S> {
    pub(super) store: S,
    pub(super) seed: Option<u64>,
    pub(super) installed: BTreeMap<ServiceKey, Installed>,
    pub(super) tunnel_addresses: BTreeSet<IpAddr>,
    pub(super) trusted: BTreeSet<Prefix>,
    /// Next hops by backend, and by value with the number of backends that use each.
    pub(super) next_hops: BTreeMap<IpAddr, NextHop>,
    pub(super) hop_numbers: HashMap<[u64; 4], (u32, u32)>,
    pub(super) prefilter_users: BTreeMap<(u32, u64), u32>,
    pub(super) ids: Numbers,
    pub(super) counters: Numbers,
    pub(super) hops: Numbers,
    pub(super) slots: Regions,
    pub(super) backends: Regions,
    pub(super) freed: Quarantine<Freed>,
    builder: Builder,
}

impl<S: Store> Tables<S> {
    /// Tables over an empty store.
    #[must_use]
    pub fn new(store: S) -> Self {
        let capacity = store.capacity();
        Self {
            store,
            seed: None,
            installed: BTreeMap::new(),
            tunnel_addresses: BTreeSet::new(),
            trusted: BTreeSet::new(),
            next_hops: BTreeMap::new(),
            hop_numbers: HashMap::new(),
            prefilter_users: BTreeMap::new(),
            ids: Numbers::new(0, capacity.services),
            counters: Numbers::new(0, capacity.counters),
            hops: Numbers::new(1, capacity.next_hops),
            slots: Regions::new(capacity.log2_slots, SLOTS_UNIT.ilog2()),
            backends: Regions::new(capacity.log2_backends, 0),
            freed: Quarantine::default(),
            builder: Builder::default(),
        }
    }

    /// The store.
    #[must_use]
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The installed services.
    #[must_use]
    pub const fn installed(&self) -> &BTreeMap<ServiceKey, Installed> {
        &self.installed
    }

    /// What the plan compares with.
    #[must_use]
    pub fn actual(&self) -> Actual<'_> {
        Actual {
            hash_seed: self.seed,
            services: self.installed.iter().map(|(key, there)| (*key, there.spec.as_ref())).collect(),
            next_hops: &self.next_hops,
            tunnel_addresses: &self.tunnel_addresses,
            trusted: &self.trusted,
            internal: &NO_INTERNAL,
            replies: &NO_REPLIES,
            mss: Some([0; 2]),
        }
    }

    /// How full the maps are.
    #[must_use]
    pub fn fill(&self) -> Fill {
        Fill {
            services: self.installed.len() as u64,
            backends: u64::from(self.backends.used_units()),
            slots: u64::from(self.slots.used_units()) * u64::from(SLOTS_UNIT),
            next_hops: self.hop_numbers.len() as u64,
            tables_built: self.builder.built(),
        }
    }

    /// When something will come out of quarantine.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.freed.due()
    }

    /// Take back what has waited long enough.
    pub fn release(&mut self, now: Instant) {
        while let Some(freed) = self.freed.pop(now) {
            match freed {
                Freed::Service(id) => {
                    self.store.set_word(id, ServiceWord::EMPTY);
                    self.ids.give(id);
                }
                Freed::Counter(counter) => self.counters.give(counter),
                Freed::NextHop(number) => self.hops.give(number),
                // Both were allocated or reserved here; a refusal would be a second free, which leaks nothing.
                Freed::Slots(Region { base, log2 }) => {
                    let _ = self.slots.free(base, log2);
                }
                Freed::Backends(Region { base, log2 }) => {
                    let _ = self.backends.free(base, log2);
                }
            }
        }
    }

    fn free_regions(&mut self, Regioned { slots, backends }: Regioned) {
        let _ = self.slots.free(slots.base, slots.log2);
        let _ = self.backends.free(backends.base, backends.log2);
    }

    /// Carry out one step.
    ///
    /// # Errors
    /// A map is full, or the kernel refuses; what was there before is still there.
    pub fn apply(&mut self, step: &Step, now: Instant) -> Result<()> {
        match step {
            Step::SetSeed(seed) => self.set_seed(*seed),
            Step::SetNextHops(changes) => self.set_next_hops(changes, now),
            Step::ForgetNextHops(addresses) => self.forget_next_hops(addresses, now),
            Step::AddTunnelAddress(address) => {
                self.use_prefilter(*address);
                self.store.set_tunnel_address(*address, true).inspect_err(|_| self.unuse_prefilter(*address))?;
                self.tunnel_addresses.insert(*address);
                Ok(())
            }
            Step::RemoveTunnelAddress(address) => {
                self.store.set_tunnel_address(*address, false)?;
                self.tunnel_addresses.remove(address);
                self.unuse_prefilter(*address);
                Ok(())
            }
            Step::Trust(prefix) => {
                self.store.set_trusted(*prefix, true)?;
                self.trusted.insert(*prefix);
                Ok(())
            }
            Step::Distrust(prefix) => {
                self.store.set_trusted(*prefix, false)?;
                self.trusted.remove(prefix);
                Ok(())
            }
            Step::PutService(key, spec) => self.put_service(*key, spec, now),
            Step::RemoveService(key) => self.remove_service(*key, now),
            Step::SetMss(_)
            | Step::AddInternal(..)
            | Step::RemoveInternal(_)
            | Step::PutReply(..)
            | Step::RemoveReply(_) => bail!("{NO_PODS}"),
        }
    }

    fn set_seed(&mut self, seed: u64) -> Result<()> {
        let keys = HashKeys::from_seed(seed);
        if self.store.hash_keys()? != keys {
            self.store.set_hash_keys(&keys)?;
        }
        if self.seed.replace(seed) != Some(seed) {
            // Their tables are another seed's: each is to be compared, now or once there is room for it.
            self.installed.values_mut().for_each(|there| there.spec = None);
        }
        Ok(())
    }

    fn put_service(&mut self, key: ServiceKey, spec: &ServiceSpec, now: Instant) -> Result<()> {
        if spec.backends.len() > lb_common::maps::MAX_BACKENDS_PER_SERVICE {
            bail!("{} backends are more than the {} of a service", spec.backends.len(), 1 << 16);
        }
        let Some(seed) = self.seed else {
            bail!("the keys of the flow hash are not written yet: no table can be built")
        };
        if spec.pods.is_some() {
            bail!("{NO_PODS}");
        }
        if self.installed.get(&key).is_some_and(|there| there.spec.as_ref() == Some(spec)) {
            return Ok(());
        }
        let table = self.builder.table(seed, spec)?;
        if self.is_installed(&key, spec, table.as_deref()) {
            if let Some(there) = self.installed.get_mut(&key) {
                there.spec = Some(spec.clone());
            }
            return Ok(());
        }
        let before = self.installed.get(&key).cloned();
        let counters = self.counters_for(spec, before.as_ref())?;
        match self.write_service(key, spec, &counters, table.as_deref(), before.as_ref()) {
            Ok(new) => {
                if let Some(there) = before {
                    self.retire(&there, &new.backends, now);
                }
                self.installed.insert(key, new);
                Ok(())
            }
            Err(error) => {
                self.give_new_counters(&counters, before.as_ref());
                Err(error)
            }
        }
    }

    /// Write a service where no packet looks, then let packets look there. What was taken is given back if that fails.
    fn write_service(
        &mut self,
        key: ServiceKey,
        spec: &ServiceSpec,
        counters: &BTreeMap<IpAddr, u32>,
        table: Option<&[u16]>,
        before: Option<&Installed>,
    ) -> Result<Installed> {
        let regions = match table {
            Some(table) => Some(self.write_regions(spec, counters, table)?),
            None => None,
        };
        let word = regions.map_or(ServiceWord::EMPTY, |regions| word_of(&regions, spec));
        let id = match before {
            Some(there) => {
                self.store.set_word(there.id, word);
                there.id
            }
            None => self.write_key(key, word).inspect_err(|_| {
                // No key led there: no packet can follow it.
                if let Some(regions) = regions {
                    self.free_regions(regions);
                }
            })?,
        };
        let hop = |address: &IpAddr, backend: &BackendSpec| match regions {
            Some(_) => self.hop_for(address, backend),
            None => 0,
        };
        let backends = installed_backends(spec, counters, table, hop);
        Ok(Installed { id, spec: Some(spec.clone()), backends, regions })
    }

    /// Give a new service an id, and let packets find it.
    fn write_key(&mut self, key: ServiceKey, word: ServiceWord) -> Result<ServiceId> {
        let id = self.ids.take().ok_or_else(|| full("services", "services", self.store.capacity().services))?;
        self.store.set_word(id, word);
        self.show_service(key, id).inspect_err(|_| {
            self.store.set_word(id, ServiceWord::EMPTY);
            self.ids.give(id);
        })?;
        Ok(id)
    }

    /// Let packets find a new service: the prefilter's bit, the mark of its VIP, then its key.
    fn show_service(&mut self, key: ServiceKey, id: ServiceId) -> Result<()> {
        let first = !self.has_vip(&key);
        self.use_prefilter(key_address(&key));
        let shown = self.insert_keys(key, id, first);
        if shown.is_err() {
            self.unuse_prefilter(key_address(&key));
        }
        shown
    }

    fn insert_keys(&mut self, key: ServiceKey, id: ServiceId, first: bool) -> Result<()> {
        let vip = ServiceKey::vip(key.address(), key.family());
        if first {
            self.store.insert_service(vip, VIP_MARK)?;
        }
        self.store.insert_service(key, id).inspect_err(|_| {
            if first {
                // The mark alone does no harm, and whoever adopts the maps removes it: the first error says more.
                let _ = self.store.remove_service(vip);
            }
        })
    }

    /// Whether a service has the same VIP.
    pub(super) fn has_vip(&self, key: &ServiceKey) -> bool {
        // Keys are ordered by address first; the same words may be an IPv4 and an IPv6 address.
        let from = ServiceKey::from_words([key.to_words()[0], key.to_words()[1], 0]);
        let same = self.installed.range(from..).map(|(other, _)| other);
        same.take_while(|other| other.address() == key.address()).any(|other| other.family() == key.family())
    }

    fn remove_service(&mut self, key: ServiceKey, now: Instant) -> Result<()> {
        if !self.installed.contains_key(&key) {
            return Ok(());
        }
        self.store.remove_service(key)?;
        let Some(there) = self.installed.remove(&key) else { return Ok(()) };
        let last = !self.has_vip(&key);
        let unmarked =
            if last { self.store.remove_service(ServiceKey::vip(key.address(), key.family())) } else { Ok(()) };
        self.unuse_prefilter(key_address(&key));
        // Its id first: the word at it is cleared before what the word points at is given out again.
        self.freed.add(now, Freed::Service(there.id));
        self.retire(&there, &BTreeMap::new(), now);
        unmarked
    }

    /// Put what a service no longer uses into quarantine.
    fn retire(&mut self, there: &Installed, kept: &BTreeMap<IpAddr, InstalledBackend>, now: Instant) {
        if let Some(regions) = there.regions {
            self.freed.add(now, Freed::Slots(regions.slots));
            self.freed.add(now, Freed::Backends(regions.backends));
        }
        for (address, backend) in &there.backends {
            if !kept.contains_key(address) {
                self.freed.add(now, Freed::Counter(backend.counter));
            }
        }
    }

    pub(super) fn use_prefilter(&mut self, address: IpAddr) {
        let (word, bit) = prefilter(address.into(), family_of(&address));
        *self.prefilter_users.entry((word, bit)).or_default() += 1;
        let value = self.store.prefilter(word);
        if value & bit == 0 {
            self.store.set_prefilter(word, value | bit);
        }
    }

    fn unuse_prefilter(&mut self, address: IpAddr) {
        let (word, bit) = prefilter(address.into(), family_of(&address));
        let Some(users) = self.prefilter_users.get_mut(&(word, bit)) else { return };
        *users -= 1;
        if *users == 0 {
            self.prefilter_users.remove(&(word, bit));
            let value = self.store.prefilter(word);
            self.store.set_prefilter(word, value & !bit);
        }
    }
}

/// Maps that have nothing for pods.
static NO_INTERNAL: BTreeMap<Prefix, bool> = BTreeMap::new();
static NO_REPLIES: BTreeMap<ReplyKey, ReplySpec> = BTreeMap::new();
const NO_PODS: &str = "these maps cannot deliver to pods; write delivery: host";

/// What does not fit, and the size of the configuration's `maps` that makes room for it.
fn full(what: &str, size: &str, capacity: u32) -> anyhow::Error {
    anyhow!("no room for more {what}: the map holds {capacity}; raise maps.{size} and restart after `beeline detach`")
}

mod contents;
mod hops;
#[cfg(test)]
mod tests;
