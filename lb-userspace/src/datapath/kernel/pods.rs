//! The pods' part of the store in the kernel.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{DevMapHash, HashMap, LpmTrie, MapData, MapError, PerCpuArray};
use lb_common::maps::{
    Counter, POD_DEVICE_WORD, Pod, PodCell, PodWord, Record, RecordKey, ReplyId, ReplyTarget, ReplyWord, ServiceId,
    ServiceKey, TrustedData,
};
use nix::time::{ClockId, clock_gettime};

use super::{KernelMaps, entries, mapped, prefix_of, reset, sum, trie_key, wait};
use crate::datapath::look::Look;
use crate::datapath::mapped::Mapped;
use crate::datapath::store::PodStore;
use crate::model::Prefix;

/// The maps of pods and their replies.
pub(super) struct PodMaps {
    pub(super) words: Mapped<1>,
    pub(super) cells: Mapped<1>,
    pub(super) pods: Mapped<8>,
    devices: DevMapHash<MapData>,
    pub(super) device_entries: u32,
    counters: PerCpuArray<MapData, [u64; 2]>,
    pub(super) counter_entries: u32,
    internal: LpmTrie<MapData, TrustedData, u32>,
    replies: HashMap<MapData, [u64; 3], u32>,
    reply_words: Mapped<1>,
    reply_targets: Mapped<4>,
    reply_counters: PerCpuArray<MapData, [u64; 2]>,
    recorded: PerCpuArray<MapData, u64>,
    records: HashMap<MapData, [u64; 5], [u64; 6]>,
    record_entries: u32,
    removed: Option<Instant>,
}

impl PodMaps {
    pub(super) fn new(object: &mut Ebpf) -> Result<Self> {
        let mut take = |name: &'static str| object.take_map(name).with_context(|| format!("no map {name}"));
        let (devices, counters, records) = (take("POD_DEVICES")?, take("POD_COUNTERS")?, take("RECORDS")?);
        Ok(Self {
            words: mapped(take("POD_WORDS")?, "POD_WORDS")?,
            cells: mapped(take("POD_CELLS")?, "POD_CELLS")?,
            pods: mapped(take("PODS")?, "PODS")?,
            device_entries: entries(&devices)?,
            devices: devices.try_into().context("POD_DEVICES")?,
            counter_entries: entries(&counters)?,
            counters: counters.try_into().context("POD_COUNTERS")?,
            internal: take("INTERNAL")?.try_into().context("INTERNAL")?,
            replies: take("REPLIES")?.try_into().context("REPLIES")?,
            reply_words: mapped(take("REPLY_WORDS")?, "REPLY_WORDS")?,
            reply_targets: mapped(take("REPLY_TARGETS")?, "REPLY_TARGETS")?,
            reply_counters: take("REPLY_COUNTERS")?.try_into().context("REPLY_COUNTERS")?,
            record_entries: entries(&records)?,
            records: records.try_into().context("RECORDS")?,
            recorded: take("RECORDED")?.try_into().context("RECORDED")?,
            removed: None,
        })
    }

    pub(super) fn replies(&self) -> u32 {
        self.reply_words.entries().min(self.reply_targets.entries())
    }
}

impl KernelMaps {
    /// A pod's counter, summed over the CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn pod_counter(&self, counter: u32) -> Result<Counter> {
        sum(&self.pods.counters, counter)
    }

    /// The counter of a pod's rewritten replies, summed over the CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn reply_counter(&self, id: ReplyId) -> Result<Counter> {
        sum(&self.pods.reply_counters, id)
    }

    /// How many recorded flows fit.
    #[must_use]
    pub const fn flows_capacity(&self) -> u32 {
        self.pods.record_entries
    }

    /// How many flows were recorded, summed over the CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn recorded(&self) -> Result<u64> {
        Ok(self.pods.recorded.get(&0, 0).context("reading the number of recorded flows")?.iter().sum())
    }
}

impl Look for KernelMaps {
    fn flow_record(&self, key: &RecordKey) -> Result<Option<Record>> {
        // A lookup by system call does not count as a use to the LRU (kernel 4.19, `htab_lru_map_lookup_elem_sys`).
        match self.pods.records.get(&key.to_words(), 0) {
            Ok(words) => Ok(Some(Record::from_words(words))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("reading a flow's record"),
        }
    }

    fn internal_flags(&self, address: IpAddr) -> Result<u32> {
        match self.pods.internal.get(&trie_key(Prefix::of(address)), 0) {
            Ok(flags) => Ok(flags),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(error).context("reading the internal networks"),
        }
    }
}

impl PodStore for KernelMaps {
    fn clock(&self) -> u64 {
        // It cannot fail with this clock; 0 is a moment long ago, after which a service without pods answers at once.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
        now.map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
    }

    fn pod_word(&self, id: ServiceId) -> PodWord {
        PodWord(self.pods.words.read(id)[0])
    }

    fn set_pod_word(&mut self, id: ServiceId, word: PodWord) {
        self.pods.words.publish(id, 0, word.0);
    }

    fn read_pod_cells(&self, base: u64, cells: &mut [PodCell]) {
        for (index, cell) in (base as u32..).zip(cells) {
            *cell = PodCell(self.pods.cells.read(index)[0]);
        }
    }

    fn write_pod_cells(&mut self, base: u64, cells: &[PodCell]) {
        for (index, cell) in (base as u32..).zip(cells) {
            self.pods.cells.write(index, [cell.0]);
        }
    }

    fn set_pod_cell(&mut self, index: u64, cell: PodCell) {
        self.pods.cells.publish(index as u32, 0, cell.0);
    }

    fn pod(&self, index: u32) -> Pod {
        Pod::from_words(self.pods.pods.read(index))
    }

    fn write_pod(&mut self, index: u32, pod: &Pod) {
        self.pods.pods.write(index, pod.to_words());
    }

    fn set_pod_device(&mut self, index: u32, device: u32, namespace: u32) {
        let words = Pod { device, namespace, ..Pod::default() }.to_words();
        self.pods.pods.publish(index, POD_DEVICE_WORD, words[POD_DEVICE_WORD]);
    }

    fn reset_pod_counter(&mut self, counter: u32) -> Result<()> {
        reset(&mut self.pods.counters, counter)
    }

    fn pod_device(&self, number: u32) -> Option<u32> {
        self.pods.devices.get(number, 0).ok().map(|device| device.if_index)
    }

    fn write_pod_device(&mut self, number: u32, interface: u32) -> Result<()> {
        let done = self.pods.devices.insert(number, interface, None, 0);
        done.with_context(|| format!("interface {interface}, which leads to a pod"))
    }

    fn internal(&self) -> Result<Vec<(Prefix, u32)>> {
        let mut networks = Vec::new();
        for pair in self.pods.internal.iter() {
            let (key, flags) = pair.context("reading the internal networks")?;
            networks.push((prefix_of(&key).context("an internal network")?, flags));
        }
        Ok(networks)
    }

    fn set_internal(&mut self, prefix: Prefix, flags: Option<u32>) -> Result<()> {
        let key = trie_key(prefix);
        let done = match flags {
            Some(flags) => self.pods.internal.insert(&key, flags, 0),
            None => self.pods.internal.remove(&key),
        };
        done.with_context(|| format!("internal network {}/{}", prefix.address, prefix.length))
    }

    fn mss(&self) -> Result<[u32; 2]> {
        let [.., mss] = self.settings.get(&0, 0).context("reading the settings")?;
        let [a, b, c, d, e, f, g, h] = mss.to_ne_bytes();
        Ok([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
    }

    fn set_mss(&mut self, mss: [u32; 2]) -> Result<()> {
        let mut settings = self.settings.get(&0, 0).context("reading the settings")?;
        let ([a, b, c, d], [e, f, g, h]) = (mss[0].to_ne_bytes(), mss[1].to_ne_bytes());
        // The keys of the hash before it are written as they are: whoever reads them meanwhile sees no other bytes.
        settings[12] = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        self.settings.set(0, settings, 0).context("writing the settings")
    }

    fn replies(&self) -> Result<Vec<(ServiceKey, ReplyId)>> {
        let pairs = self.pods.replies.iter().map(|pair| pair.map(|(key, id)| (ServiceKey::from_words(key), id)));
        pairs.collect::<Result<_, _>>().context("reading the replies")
    }

    fn insert_reply(&mut self, key: ServiceKey, id: ReplyId) -> Result<()> {
        wait(&mut self.pods.removed);
        self.pods.replies.insert(key.to_words(), id, 0).context("adding a pod's replies: raise maps.services?")
    }

    fn remove_reply(&mut self, key: ServiceKey) -> Result<()> {
        self.pods.removed = Some(Instant::now());
        self.pods.replies.remove(&key.to_words()).context("removing a pod's replies")
    }

    fn reply_word(&self, id: ReplyId) -> ReplyWord {
        ReplyWord(self.pods.reply_words.read(id)[0])
    }

    fn set_reply_word(&mut self, id: ReplyId, word: ReplyWord) {
        self.pods.reply_words.publish(id, 0, word.0);
    }

    fn reply_target(&self, index: u32) -> ReplyTarget {
        ReplyTarget::from_words(self.pods.reply_targets.read(index))
    }

    fn write_reply_target(&mut self, index: u32, target: &ReplyTarget) {
        self.pods.reply_targets.write(index, target.to_words());
    }

    fn reset_reply_counter(&mut self, id: ReplyId) -> Result<()> {
        reset(&mut self.pods.reply_counters, id)
    }
}
