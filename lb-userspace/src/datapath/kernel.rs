//! The store in the kernel: BPF maps.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, DevMapHash, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::address::{Address, Family, family_of};
use lb_common::flow::HashKeys;
use lb_common::maps::{
    BACKEND_NEXT_HOP_WORD, Backend, Counter, NextHop, ServiceId, ServiceKey, ServiceWord, TRUSTED_FAMILY_BITS, Trace,
    TrustedData, TunnelAddress, trusted_data,
};
use lb_common::verdict::Reason;

use super::mapped::Mapped;
use super::store::{Capacity, Store};
use crate::model::Prefix;

use pods::PodMaps;

mod pods;

/// How long an element of a hash map is left alone after its key was removed, before any key is inserted: the kernel
/// gives the element to the next key at once (prealloced hash maps, 6.18 and before), while a program may still read
/// it. Programs run for microseconds.
const REUSE_PAUSE: Duration = Duration::from_millis(2);

/// The maps of one loaded object.
pub struct KernelMaps {
    prefilter: Mapped<1>,
    words: Mapped<1>,
    slots: Mapped<1>,
    backends: Mapped<8>,
    next_hops: Mapped<4>,
    services: HashMap<MapData, [u64; 3], u32>,
    settings: Array<MapData, [u64; 13]>,
    tunnel_addresses: HashMap<MapData, [u64; 3], u32>,
    trusted: LpmTrie<MapData, TrustedData, u32>,
    devices: DevMapHash<MapData>,
    counters: PerCpuArray<MapData, [u64; 2]>,
    counter_entries: u32,
    reasons: PerCpuArray<MapData, u64>,
    trace: Array<MapData, [u64; 5]>,
    pods: PodMaps,
    removed: Option<Instant>,
}

impl KernelMaps {
    /// Take the maps of an object.
    ///
    /// # Errors
    /// A map is missing, of another kind or size, or cannot be mapped.
    pub fn new(object: &mut Ebpf) -> Result<Self> {
        let pods = PodMaps::new(object)?;
        let mut take = |name: &'static str| object.take_map(name).with_context(|| format!("no map {name}"));
        let counters = take("BACKEND_COUNTERS")?;
        Ok(Self {
            prefilter: mapped(take("PREFILTER")?, "PREFILTER")?,
            words: mapped(take("SERVICE_WORDS")?, "SERVICE_WORDS")?,
            slots: mapped(take("SLOTS")?, "SLOTS")?,
            backends: mapped(take("BACKENDS")?, "BACKENDS")?,
            next_hops: mapped(take("NEXT_HOPS")?, "NEXT_HOPS")?,
            services: take("SERVICES")?.try_into().context("SERVICES")?,
            settings: take("SETTINGS")?.try_into().context("SETTINGS")?,
            tunnel_addresses: take("TUNNEL_ADDRESSES")?.try_into().context("TUNNEL_ADDRESSES")?,
            trusted: take("TRUSTED")?.try_into().context("TRUSTED")?,
            devices: take("DEVICES")?.try_into().context("DEVICES")?,
            counter_entries: entries(&counters)?,
            counters: counters.try_into().context("BACKEND_COUNTERS")?,
            reasons: take("REASONS")?.try_into().context("REASONS")?,
            trace: take("TRACE")?.try_into().context("TRACE")?,
            pods,
            removed: None,
        })
    }

    /// A backend's counter, summed over the CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counter(&self, counter: u32) -> Result<Counter> {
        sum(&self.counters, counter)
    }

    /// How often a reason was given, summed over the CPUs. [`Reason::NotOurs`] and [`Reason::Forwarded`] are not counted.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn reason(&self, reason: Reason) -> Result<u64> {
        Ok(self.reasons.get(&(reason as u32), 0).context("reading the reasons")?.iter().sum())
    }

    /// Let programs send by an interface.
    ///
    /// # Errors
    /// The interface is gone, or the map of devices is full.
    pub fn send_by(&mut self, interface: u32) -> Result<()> {
        if self.devices.get(interface, 0).is_err() {
            let added = self.devices.insert(interface, interface, None, 0);
            added.with_context(|| format!("sending by interface {interface}"))?;
        }
        Ok(())
    }

    /// What the last packet of a debugging run left.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn trace(&self) -> Result<Trace> {
        let [reason, service, backend, slot, pod] = self.trace.get(&0, 0).context("reading the trace")?;
        Ok(Trace { reason, service, backend, slot, pod })
    }
}

fn mapped<const WORDS: usize>(map: Map, name: &str) -> Result<Mapped<WORDS>> {
    match map {
        Map::Array(data) => Mapped::new(data).with_context(|| format!("map {name}")),
        other => anyhow::bail!("map {name} is no array: {other:?}"),
    }
}

/// How many entries a map has in the kernel: one that was pinned may differ from the object's.
fn entries(map: &Map) -> Result<u32> {
    match map {
        Map::PerCpuArray(data) | Map::DevMapHash(data) | Map::LruHashMap(data) => {
            Ok(data.info().context("reading a map's sizes")?.max_entries())
        }
        other => anyhow::bail!("a map is of another kind: {other:?}"),
    }
}

/// A counter, summed over the CPUs.
fn sum(counters: &PerCpuArray<MapData, [u64; 2]>, counter: u32) -> Result<Counter> {
    let values = counters.get(&counter, 0).context("reading a counter")?;
    let sum = values.iter().fold([0, 0], |[p, b]: [u64; 2], [packets, bytes]| [p + packets, b + bytes]);
    Ok(Counter { packets: sum[0], bytes: sum[1] })
}

fn reset(counters: &mut PerCpuArray<MapData, [u64; 2]>, counter: u32) -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::Error::new(error).context(path))?;
    let zeros = PerCpuValues::try_from(vec![[0; 2]; cpus]).context("a counter of zero")?;
    counters.set(counter, zeros, 0).context("resetting a counter")
}

/// Before a key is inserted into a hash map: leave the element of one that was just removed alone for long enough.
fn wait(removed: &mut Option<Instant>) {
    if let Some(removed) = removed.take() {
        std::thread::sleep(REUSE_PAUSE.saturating_sub(removed.elapsed()));
    }
}

fn prefix_of(key: &Key<TrustedData>) -> Result<Prefix> {
    let length = key.prefix_len().checked_sub(TRUSTED_FAMILY_BITS).context("a prefix of no family")?;
    let [f0, f1, f2, f3, address @ ..] = key.data();
    let family = if u32::from_ne_bytes([f0, f1, f2, f3]) == 4 { Family::V4 } else { Family::V6 };
    ensure!(length <= 8 * family.address_len() as u32, "a prefix with {length} bits");
    Ok(Prefix { address: Address::from_v6(address).ip(family), length: length as u8 })
}

fn trie_key(prefix: Prefix) -> Key<TrustedData> {
    let family = family_of(&prefix.address);
    Key::new(TRUSTED_FAMILY_BITS + u32::from(prefix.length), trusted_data(prefix.address.into(), family))
}

impl Store for KernelMaps {
    fn capacity(&self) -> Capacity {
        Capacity {
            services: self.words.entries(),
            log2_backends: self.backends.entries().ilog2(),
            log2_slots: (self.slots.entries() * lb_common::maps::SLOTS_PER_WORD).ilog2(),
            next_hops: self.next_hops.entries(),
            counters: self.counter_entries,
            log2_pods: self.pods.pods.entries().ilog2(),
            log2_pod_cells: self.pods.cells.entries().ilog2(),
            pod_counters: self.pods.counter_entries,
            pod_devices: self.pods.device_entries,
            replies: self.pods.replies(),
        }
    }

    fn prefilter(&self, word: u32) -> u64 {
        self.prefilter.read(word)[0]
    }

    fn set_prefilter(&mut self, word: u32, value: u64) {
        self.prefilter.publish(word, 0, value);
    }

    fn services(&self) -> Result<Vec<(ServiceKey, ServiceId)>> {
        let pairs = self.services.iter().map(|pair| pair.map(|(key, id)| (ServiceKey::from_words(key), id)));
        pairs.collect::<Result<_, _>>().context("reading the services")
    }

    fn insert_service(&mut self, key: ServiceKey, id: ServiceId) -> Result<()> {
        wait(&mut self.removed);
        self.services.insert(key.to_words(), id, 0).context("adding a service: raise maps.services?")
    }

    fn remove_service(&mut self, key: ServiceKey) -> Result<()> {
        self.removed = Some(Instant::now());
        self.services.remove(&key.to_words()).context("removing a service")
    }

    fn word(&self, id: ServiceId) -> ServiceWord {
        ServiceWord(self.words.read(id)[0])
    }

    fn set_word(&mut self, id: ServiceId, word: ServiceWord) {
        self.words.publish(id, 0, word.0);
    }

    fn read_slots(&self, base: u64, slots: &mut [u16]) {
        let first = (base / 4) as u32;
        for (index, four) in (first..).zip(slots.chunks_mut(4)) {
            let word = self.slots.read(index)[0];
            for (slot, place) in four.iter_mut().enumerate() {
                *place = (word >> (16 * slot)) as u16;
            }
        }
    }

    fn write_slots(&mut self, base: u64, slots: &[u16]) {
        let first = (base / 4) as u32;
        for (index, four) in (first..).zip(slots.chunks(4)) {
            let word = four.iter().rev().fold(0, |word, place| word << 16 | u64::from(*place));
            self.slots.write(index, [word]);
        }
    }

    fn backend(&self, index: u32) -> Backend {
        Backend::from_words(self.backends.read(index))
    }

    fn write_backend(&mut self, index: u32, backend: &Backend) {
        self.backends.write(index, backend.to_words());
    }

    fn set_backend_next_hop(&mut self, index: u32, next_hop: u32) {
        let mut words = self.backends.read(index);
        words[BACKEND_NEXT_HOP_WORD] =
            Backend { next_hop, ..Backend::from_words(words) }.to_words()[BACKEND_NEXT_HOP_WORD];
        self.backends.publish(index, BACKEND_NEXT_HOP_WORD, words[BACKEND_NEXT_HOP_WORD]);
    }

    fn next_hop(&self, index: u32) -> NextHop {
        NextHop::from_words(self.next_hops.read(index))
    }

    fn write_next_hop(&mut self, index: u32, next_hop: &NextHop) -> Result<()> {
        self.send_by(next_hop.interface)?;
        self.next_hops.write(index, next_hop.to_words());
        Ok(())
    }

    fn hash_keys(&self) -> Result<HashKeys> {
        let [keys @ .., _mss] = self.settings.get(&0, 0).context("reading the settings")?;
        Ok(HashKeys(keys))
    }

    fn set_hash_keys(&mut self, keys: &HashKeys) -> Result<()> {
        let mut settings = self.settings.get(&0, 0).context("reading the settings")?;
        settings[..keys.0.len()].copy_from_slice(&keys.0);
        self.settings.set(0, settings, 0).context("writing the settings")
    }

    fn tunnel_addresses(&self) -> Result<Vec<IpAddr>> {
        let keys = self.tunnel_addresses.keys().map(|key| key.map(TunnelAddress::ip));
        keys.collect::<Result<_, _>>().context("reading the tunnel addresses")
    }

    fn set_tunnel_address(&mut self, address: IpAddr, present: bool) -> Result<()> {
        let key = TunnelAddress::new(address.into(), family_of(&address)).to_words();
        let done = if present { self.tunnel_addresses.insert(key, 1, 0) } else { self.tunnel_addresses.remove(&key) };
        done.with_context(|| format!("tunnel address {address}"))
    }

    fn trusted(&self) -> Result<Vec<Prefix>> {
        let mut prefixes = BTreeSet::new();
        for key in self.trusted.keys() {
            let key = key.context("reading the trusted sources")?;
            prefixes.insert(prefix_of(&key).context("a trusted source")?);
        }
        Ok(prefixes.into_iter().collect())
    }

    fn set_trusted(&mut self, prefix: Prefix, present: bool) -> Result<()> {
        let key = trie_key(prefix);
        let done = if present { self.trusted.insert(&key, 1, 0) } else { self.trusted.remove(&key) };
        done.with_context(|| format!("trusted source {}/{}", prefix.address, prefix.length))
    }

    fn reset_counter(&mut self, counter: u32) -> Result<()> {
        reset(&mut self.counters, counter)
    }
}
