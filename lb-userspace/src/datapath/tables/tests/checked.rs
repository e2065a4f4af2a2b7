//! A store that wraps the host's maps and panics as soon as a write leaves something that a packet could trip over.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lb_common::address::{Address, family_of};
use lb_common::flow::HashKeys;
use lb_common::maps::{
    Backend, Dispatch, NextHop, SLOTS_UNIT, ServiceId, ServiceKey, ServiceWord, VIP_MARK, prefilter,
};

use crate::datapath::host::HostMaps;
use crate::datapath::store::{Capacity, PodStore, Store};
use crate::model::{Prefix, key_address};

mod pods;

/// How long what packets followed must be left alone.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// A thing that packets may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Id(ServiceId),
    /// A unit of slots.
    Slots(u32),
    Backend(u32),
    Counter(u32),
    NextHop(u32),
    /// A unit of slots of nodes' tables.
    PodSlots(u32),
    Pod(u32),
    PodCounter(u32),
    PodDevice(u32),
    Reply(u32),
    ReplyTarget(u32),
}

/// The wrapped maps, and what is known of them.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) maps: HostMaps,
    /// The test's clock.
    pub(super) clock: Instant,
    /// Every write so far, refused ones not counted.
    pub(super) log: Vec<&'static str>,
    /// The write that is refused, whenever it is tried.
    pub(super) refuse: Option<&'static str>,
    /// Interfaces that are gone.
    pub(super) missing: BTreeSet<u32>,
    /// How many more writes are done before the agent is dead: what it writes then goes nowhere.
    pub(super) left: Option<usize>,
    /// What packets may follow now.
    followed: BTreeSet<Thing>,
    /// When packets could follow it last.
    retired: BTreeMap<Thing, Instant>,
    checks: Cell<usize>,
}

impl Checked {
    pub(super) fn new(maps: HostMaps, clock: Instant) -> Self {
        let (followed, retired) = (BTreeSet::new(), BTreeMap::new());
        let mut store = Self {
            maps,
            clock,
            log: Vec::new(),
            refuse: None,
            missing: BTreeSet::new(),
            left: None,
            followed,
            retired,
            checks: Cell::new(0),
        };
        store.followed = store.walk();
        store
    }

    /// How often everything was looked at.
    pub(super) fn checks(&self) -> usize {
        self.checks.get()
    }

    /// Do a write unless the agent is dead, and look at everything afterwards.
    fn write(
        &mut self,
        name: &'static str,
        new: &[Thing],
        act: impl FnOnce(&mut HostMaps) -> Result<()>,
    ) -> Result<()> {
        if self.left == Some(0) {
            return Ok(());
        }
        if self.refuse == Some(name) {
            bail!("{name} is refused");
        }
        self.left = self.left.map(|left| left - 1);
        for thing in new {
            assert!(!self.followed.contains(thing), "{name}: packets follow {thing:?}");
            if let Some(retired) = self.retired.get(thing) {
                assert!(*retired + LEAST_PAUSE <= self.clock, "{name}: packets may still follow {thing:?}");
            }
        }
        act(&mut self.maps)?;
        self.log.push(name);
        let now = self.walk();
        for thing in self.followed.difference(&now) {
            self.retired.insert(*thing, self.clock);
        }
        self.followed = now;
        Ok(())
    }

    fn set(&mut self, name: &'static str, new: &[Thing], act: impl FnOnce(&mut HostMaps)) {
        let done = self.write(name, new, |maps| {
            act(maps);
            Ok(())
        });
        done.unwrap_or_else(|error| panic!("{error}: it cannot be"));
    }

    /// Follow every key as packets do; everything must hold together.
    fn walk(&self) -> BTreeSet<Thing> {
        self.checks.set(self.checks.get() + 1);
        let services = self.maps.services().expect("host maps can be read");
        let mut followed = BTreeSet::new();
        for address in self.maps.tunnel_addresses().expect("host maps can be read") {
            self.must_pass_prefilter(address);
        }
        for (key, id) in &services {
            self.must_pass_prefilter(key_address(key));
            if key.is_vip_mark() {
                assert_eq!(*id, VIP_MARK);
                continue;
            }
            let mark = ServiceKey::vip(key.address(), key.family());
            assert!(services.contains(&(mark, VIP_MARK)), "{} has no mark", key_address(key));
            assert!(followed.insert(Thing::Id(*id)), "id {id} is of two services");
            self.follow(self.maps.word(*id), &mut followed);
            self.follow_pods(PodStore::pod_word(&self.maps, *id), &mut followed);
        }
        self.follow_replies(&mut followed);
        followed
    }

    fn must_pass_prefilter(&self, address: IpAddr) {
        let (word, bit) = prefilter(address.into(), family_of(&address));
        assert!(self.maps.prefilter(word) & bit != 0, "{address} has no bit in the prefilter");
    }

    fn follow(&self, word: ServiceWord, followed: &mut BTreeSet<Thing>) {
        if word.is_empty() {
            return;
        }
        let mut once = |thing| assert!(followed.insert(thing), "{thing:?} is of two services");
        let mut slots = vec![0; 1 << word.log2_slots()];
        self.maps.read_slots(word.slots(), &mut slots);
        let unit = (word.slots() / u64::from(SLOTS_UNIT)) as u32;
        (unit..unit + slots.len() as u32 / SLOTS_UNIT).for_each(|unit| once(Thing::Slots(unit)));
        let size = 1u32 << self.maps.backend(word.backends()).log2_region;
        let mut hops = BTreeSet::new();
        for index in word.backends()..word.backends() + size {
            once(Thing::Backend(index));
            let entry = self.maps.backend(index);
            if entry.dispatch == Dispatch::None as u8 {
                continue;
            }
            once(Thing::Counter(entry.counter));
            assert_eq!(1 << entry.log2_region, size, "entries of one region do not agree");
            if entry.next_hop != 0 {
                assert_ne!(
                    self.maps.next_hop(entry.next_hop).interface,
                    0,
                    "next hop {} is not written",
                    entry.next_hop
                );
                let local = entry.dispatch == Dispatch::Local as u8;
                assert!(local || entry.source != Address::default(), "packets from nowhere");
                hops.insert(Thing::NextHop(entry.next_hop));
            }
        }
        for place in slots {
            assert!(u32::from(place) < size, "a slot names backend {place} of {size}");
            let entry = self.maps.backend(word.backends() + u32::from(place));
            assert_ne!(entry.dispatch, Dispatch::None as u8, "a slot names the unused backend {place}");
        }
        followed.extend(hops);
    }
}

impl Store for Checked {
    fn capacity(&self) -> Capacity {
        self.maps.capacity()
    }

    fn prefilter(&self, word: u32) -> u64 {
        Store::prefilter(&self.maps, word)
    }

    fn set_prefilter(&mut self, word: u32, value: u64) {
        self.set("set_prefilter", &[], |maps| maps.set_prefilter(word, value));
    }

    fn services(&self) -> Result<Vec<(ServiceKey, ServiceId)>> {
        self.maps.services()
    }

    fn insert_service(&mut self, key: ServiceKey, id: ServiceId) -> Result<()> {
        let name = if key.is_vip_mark() { "insert_mark" } else { "insert_service" };
        self.write(name, &[], |maps| {
            assert!(!maps.services()?.iter().any(|(other, _)| *other == key), "a key is written over");
            maps.insert_service(key, id)
        })
    }

    fn remove_service(&mut self, key: ServiceKey) -> Result<()> {
        let name = if key.is_vip_mark() { "remove_mark" } else { "remove_service" };
        self.write(name, &[], |maps| maps.remove_service(key))
    }

    fn word(&self, id: ServiceId) -> ServiceWord {
        Store::word(&self.maps, id)
    }

    fn set_word(&mut self, id: ServiceId, word: ServiceWord) {
        // A word in force is swapped; one that is not must have been left alone for long enough.
        let thing = Some(Thing::Id(id)).filter(|thing| !self.followed.contains(thing));
        self.set("set_word", thing.as_slice(), |maps| maps.set_word(id, word));
    }

    fn read_slots(&self, base: u64, slots: &mut [u16]) {
        self.maps.read_slots(base, slots);
    }

    fn write_slots(&mut self, base: u64, slots: &[u16]) {
        let unit = (base / u64::from(SLOTS_UNIT)) as u32;
        let units: Vec<_> = (unit..unit + slots.len() as u32 / SLOTS_UNIT).map(Thing::Slots).collect();
        self.set("write_slots", &units, |maps| maps.write_slots(base, slots));
    }

    fn backend(&self, index: u32) -> Backend {
        Store::backend(&self.maps, index)
    }

    fn write_backend(&mut self, index: u32, backend: &Backend) {
        self.set("write_backend", &[Thing::Backend(index)], |maps| maps.write_backend(index, backend));
    }

    fn set_backend_next_hop(&mut self, index: u32, next_hop: u32) {
        self.set("set_backend_next_hop", &[], |maps| maps.set_backend_next_hop(index, next_hop));
    }

    fn next_hop(&self, index: u32) -> NextHop {
        Store::next_hop(&self.maps, index)
    }

    fn write_next_hop(&mut self, index: u32, next_hop: &NextHop) -> Result<()> {
        assert_ne!(index, 0, "0 stands for none");
        self.write("write_next_hop", &[Thing::NextHop(index)], |maps| maps.write_next_hop(index, next_hop))
    }

    fn hash_keys(&self) -> Result<HashKeys> {
        self.maps.hash_keys()
    }

    fn set_hash_keys(&mut self, keys: &HashKeys) -> Result<()> {
        self.write("set_hash_keys", &[], |maps| maps.set_hash_keys(keys))
    }

    fn tunnel_addresses(&self) -> Result<Vec<IpAddr>> {
        self.maps.tunnel_addresses()
    }

    fn set_tunnel_address(&mut self, address: IpAddr, present: bool) -> Result<()> {
        self.write("set_tunnel_address", &[], |maps| maps.set_tunnel_address(address, present))
    }

    fn trusted(&self) -> Result<Vec<Prefix>> {
        self.maps.trusted()
    }

    fn set_trusted(&mut self, prefix: Prefix, present: bool) -> Result<()> {
        self.write("set_trusted", &[], |maps| maps.set_trusted(prefix, present))
    }

    fn reset_counter(&mut self, counter: u32) -> Result<()> {
        self.write("reset_counter", &[Thing::Counter(counter)], |maps| maps.reset_counter(counter))
    }
}
