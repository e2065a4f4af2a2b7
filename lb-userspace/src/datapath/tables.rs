//! The tables of all services: what is installed where, and how a step is carried out.
//!
//! A change of a service never touches what packets are using: its backends and slots are written to fresh regions, then
//! its word is swapped. What the old word pointed at waits in quarantine.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, anyhow};
use lb_common::address::family_of;
use lb_common::flow::HashKeys;
use lb_common::maps::{NextHop, PodWord, ReplyId, SLOTS_UNIT, ServiceId, ServiceKey, ServiceWord, prefilter};
use lb_common::table::region::Regions;

use super::build::Builder;
use super::quarantine::{Numbers, Quarantine};
use super::store::Store;
use crate::model::{PodKey, Prefix};
use crate::plan::{Actual, ServiceSpec, Step};
use pods::Pods;
use replies::Replies;

pub use pods::InstalledPod;

/// A power-of-two region: its base in the units of its allocator, and the log2 of its size in slots or entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) base: u32,
    pub(super) log2: u32,
}

/// Where a service's slots and the entries of its backends lie, or those of its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Regioned {
    /// Its base counts [`SLOTS_UNIT`]s.
    pub(super) slots: Region,
    /// Its base counts entries.
    pub(super) entries: Region,
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
    /// Its pods on this host, by address and port, in the order of their places.
    pub pods: BTreeMap<PodKey, InstalledPod>,
    pub(super) pod_regions: Option<Regioned>,
    /// Whether the slots were picked by another hash when they were written: they tell nothing of who had which flow.
    pub(super) rehashed: bool,
}

impl Installed {
    /// A service with neither backends nor pods.
    pub(super) const fn empty(id: ServiceId) -> Self {
        Self {
            id,
            spec: None,
            backends: BTreeMap::new(),
            regions: None,
            pods: BTreeMap::new(),
            pod_regions: None,
            rehashed: false,
        }
    }

    /// The index of its first backend; `None` without a table.
    #[must_use]
    pub fn first_backend(&self) -> Option<u32> {
        self.regions.map(|regions| regions.entries.base)
    }

    /// The index of its first pod; `None` without one.
    #[must_use]
    pub fn first_pod(&self) -> Option<u32> {
        self.pod_regions.map(|regions| regions.entries.base)
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
    PodSlots(Region),
    Pods(Region),
    PodCounter(u32),
    PodDevice(u32),
    Reply(ReplyId),
    ReplyTarget(u32),
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
    /// Entries of pods, regions rounded up.
    pub pods: u64,
    /// Slots of nodes' tables.
    pub pod_slots: u64,
    /// Devices that lead to pods.
    pub pod_devices: u64,
    /// Pods' ports whose replies are rewritten.
    pub replies: u64,
    /// Internal networks.
    pub internal_networks: u64,
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
    pub(super) pods: Pods,
    pub(super) replies: Replies,
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
            pods: Pods::new(capacity),
            replies: Replies::new(capacity),
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
            internal: &self.replies.internal,
            replies: &self.replies.there,
            mss: self.replies.mss,
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
            pods: self.pods.entries_used(),
            pod_slots: self.pods.slots_used(),
            pod_devices: self.pods.devices_used(),
            replies: self.replies.there.len() as u64,
            internal_networks: self.replies.internal.len() as u64,
            tables_built: self.builder.built(),
        }
    }

    /// When something will come out of quarantine, or a service's former pods are to be forgotten.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        [self.freed.due(), self.pods.due()].into_iter().flatten().min()
    }

    /// Take back what has waited long enough, and forget the former pods of services that changed long enough ago.
    pub fn release(&mut self, now: Instant) {
        self.forget_formers(now);
        while let Some(freed) = self.freed.pop(now) {
            match freed {
                Freed::Service(id) => {
                    self.store.set_word(id, ServiceWord::EMPTY);
                    if !self.store.pod_word(id).is_host() {
                        self.store.set_pod_word(id, PodWord::HOST);
                    }
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
                Freed::PodSlots(_) | Freed::Pods(_) | Freed::PodCounter(_) | Freed::PodDevice(_) => {
                    self.pods.take_back(freed);
                }
                Freed::Reply(_) | Freed::ReplyTarget(_) => self.replies.take_back(freed),
            }
        }
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
            Step::SetMss(mss) => self.set_mss(*mss),
            Step::AddInternal(prefix, own_pod) => self.add_internal(*prefix, *own_pod),
            Step::RemoveInternal(prefix) => self.remove_internal(*prefix),
            Step::PutReply(key, spec) => self.put_reply(*key, *spec, now),
            Step::RemoveReply(key) => self.remove_reply(*key, now),
        }
    }

    fn set_seed(&mut self, seed: u64) -> Result<()> {
        let keys = HashKeys::from_seed(seed);
        if self.store.hash_keys()? != keys {
            self.store.set_hash_keys(&keys)?;
            self.installed.values_mut().for_each(|there| there.rehashed = true);
        }
        if self.seed.replace(seed) != Some(seed) {
            // Their tables are another seed's: each is to be compared, now or once there is room for it.
            self.installed.values_mut().for_each(|there| there.spec = None);
        }
        Ok(())
    }

    pub(super) fn use_prefilter(&mut self, address: IpAddr) {
        let (word, bit) = prefilter(address.into(), family_of(&address));
        *self.prefilter_users.entry((word, bit)).or_default() += 1;
        let value = self.store.prefilter(word);
        if value & bit == 0 {
            self.store.set_prefilter(word, value | bit);
        }
    }

    pub(super) fn unuse_prefilter(&mut self, address: IpAddr) {
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

impl Tables<super::kernel::KernelMaps> {
    /// Let programs send by these interfaces. One that is gone meanwhile needs nothing.
    pub fn send_by(&mut self, interfaces: &BTreeSet<u32>) {
        for interface in interfaces {
            if let Err(error) = self.store.send_by(*interface) {
                tracing::debug!("{error:#}");
            }
        }
    }
}

/// What does not fit, and the size of the configuration's `maps` that makes room for it.
fn full(what: &str, size: &str, capacity: u32) -> anyhow::Error {
    anyhow!("no room for more {what}: the map holds {capacity}; raise maps.{size} and restart after `beeline detach`")
}

mod contents;
mod devices;
mod formers;
mod hops;
mod pods;
mod replies;
mod services;
#[cfg(test)]
mod tests;
