//! The maps as plain collections and a frame as a vector: the same tables and decisions as in the kernel, for tests.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use lb_common::address::{Address, Family};
use lb_common::checksum;
use lb_common::flow::HashKeys;
use lb_common::maps::{
    Backend, Counter, FragmentKey, FragmentPorts, Maps, NextHop, PREFILTER_WORDS, Pod, PodCell, PodWord, Record,
    RecordKey, ReplyId, ReplyTarget, ReplyWord, ServiceId, ServiceKey, ServiceWord, Settings,
};
use lb_common::node::visit::Visit;
use lb_common::packet::{Connection, Packet, QUOTE, Socket, ethernet};
use lb_common::stage::{self, Roles, Trail};
use lb_common::verdict::Reason;

use super::store::{Capacity, Store};
use crate::model::Prefix;

mod pods;

/// All maps of one host.
#[derive(Clone, Debug)]
pub struct HostMaps {
    capacity: Capacity,
    prefilter: Vec<u64>,
    services: BTreeMap<ServiceKey, ServiceId>,
    words: Vec<ServiceWord>,
    slots: Vec<u16>,
    backends: Vec<Backend>,
    next_hops: Vec<NextHop>,
    settings: Settings,
    tunnel_addresses: BTreeSet<IpAddr>,
    trusted: BTreeSet<Prefix>,
    fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    counters: RefCell<Vec<Counter>>,
    pod_words: Vec<PodWord>,
    pod_cells: Vec<PodCell>,
    pods: Vec<Pod>,
    /// The interface of each number, while there is one.
    pod_devices: Vec<Option<u32>>,
    pod_counters: RefCell<Vec<Counter>>,
    internal: BTreeMap<Prefix, u32>,
    records: RefCell<HashMap<RecordKey, Rc<Record>>>,
    /// How many of them there is room for.
    records_limit: usize,
    replies: BTreeMap<ServiceKey, ReplyId>,
    reply_words: Vec<ReplyWord>,
    reply_targets: Vec<ReplyTarget>,
    reply_counters: RefCell<Vec<Counter>>,
    now: u64,
}

impl HostMaps {
    /// Empty maps.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            prefilter: vec![0; PREFILTER_WORDS as usize],
            services: BTreeMap::new(),
            words: vec![ServiceWord::EMPTY; capacity.services as usize],
            slots: vec![0; 1 << capacity.log2_slots],
            backends: vec![Backend::default(); 1 << capacity.log2_backends],
            next_hops: vec![NextHop::default(); capacity.next_hops as usize],
            settings: Settings { hash_keys: HashKeys([0; 12]), mss: [0; 2] },
            tunnel_addresses: BTreeSet::new(),
            trusted: BTreeSet::new(),
            fragments: RefCell::default(),
            counters: RefCell::new(vec![Counter::default(); capacity.counters as usize]),
            pod_words: vec![PodWord::HOST; capacity.services as usize],
            pod_cells: vec![PodCell(0); 1 << capacity.log2_pod_cells],
            pods: vec![Pod::default(); 1 << capacity.log2_pods],
            pod_devices: vec![None; capacity.pod_devices as usize],
            pod_counters: RefCell::new(vec![Counter::default(); capacity.pod_counters as usize]),
            internal: BTreeMap::new(),
            records: RefCell::default(),
            records_limit: usize::MAX,
            replies: BTreeMap::new(),
            reply_words: vec![ReplyWord::default(); capacity.replies as usize],
            reply_targets: vec![ReplyTarget::default(); capacity.replies as usize],
            reply_counters: RefCell::new(vec![Counter::default(); capacity.replies as usize]),
            now: 0,
        }
    }

    /// Let the clock go on.
    pub fn advance(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
    }

    /// Let there be room for so many recorded flows: one more is refused.
    pub fn limit_records(&mut self, limit: usize) {
        self.records_limit = limit;
    }

    /// A backend's counter.
    #[must_use]
    pub fn counter(&self, counter: u32) -> Counter {
        self.counters.borrow().get(counter as usize).copied().unwrap_or_default()
    }

    /// Run a frame that came by an interface through the decisions, as the programs do.
    #[must_use]
    pub fn run(&self, roles: Roles, frame: &mut HostFrame) -> (Reason, Trail) {
        let mut trail = Trail::default();
        if let Some(reason) = stage::run(roles, frame, self, &mut trail) {
            return (reason, trail);
        }
        if trail.stage == 0 {
            trail = Trail::default();
            let reason = stage::run_slow(frame, self, &mut trail);
            if trail.stage == 0 {
                return (reason, trail);
            }
        }
        let backend = trail.backend;
        let mut trail = Trail { backend, ..Trail::default() };
        let reason = stage::run_node(frame, self, &mut trail, &mut Visit::default());
        (reason, trail)
    }

    /// Run a frame that leaves this host through the decisions, as the programs do.
    #[must_use]
    pub fn run_return(&self, frame: &mut HostFrame) -> (Reason, Trail) {
        let mut trail = Trail::default();
        match stage::run_return(frame, self, &mut trail) {
            Some(reason) => (reason, trail),
            None => {
                let mut trail = Trail::default();
                (stage::run_return_slow(frame, self, &mut trail), trail)
            }
        }
    }
}

fn count(counters: &RefCell<Vec<Counter>>, index: u32, bytes: u32) {
    if let Some(entry) = counters.borrow_mut().get_mut(index as usize) {
        entry.packets += 1;
        entry.bytes += u64::from(bytes);
    }
}

impl Maps for HostMaps {
    fn prefilter(&self, index: u32) -> u64 {
        self.prefilter.get(index as usize).copied().unwrap_or(0)
    }

    fn service(&self, key: &ServiceKey) -> Option<ServiceId> {
        self.services.get(key).copied()
    }

    fn word(&self, id: ServiceId) -> Option<ServiceWord> {
        self.words.get(id as usize).copied()
    }

    fn slot(&self, index: u64) -> Option<u16> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.get(index as usize)
    }

    fn next_hop(&self, index: u32) -> Option<&NextHop> {
        self.next_hops.get(index as usize)
    }

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn is_tunnel_address(&self, address: &Address, family: Family) -> bool {
        self.tunnel_addresses.contains(&address.ip(family))
    }

    fn is_trusted(&self, address: &Address, family: Family) -> bool {
        let address = address.ip(family);
        self.trusted.iter().any(|prefix| prefix.contains(&address))
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, ports: FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, ports);
    }

    fn count_backend(&self, counter: u32, bytes: u32) {
        count(&self.counters, counter, bytes);
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn now_coarse(&self) -> u64 {
        self.now
    }

    fn pod_word(&self, id: ServiceId) -> Option<PodWord> {
        self.pod_words.get(id as usize).copied()
    }

    fn pod_cell(&self, index: u64) -> Option<PodCell> {
        self.pod_cells.get(index as usize).copied()
    }

    fn pod(&self, index: u32) -> Option<&Pod> {
        self.pods.get(index as usize)
    }

    fn has_pod_device(&self, number: u32) -> bool {
        self.pod_devices.get(number as usize).is_some_and(Option::is_some)
    }

    fn internal(&self, address: &Address, family: Family) -> u32 {
        let address = address.ip(family);
        let covering = self.internal.iter().filter(|(prefix, _)| prefix.contains(&address));
        covering.max_by_key(|(prefix, _)| prefix.length).map_or(0, |(_, flags)| *flags)
    }

    fn record<R>(&self, key: &RecordKey, look: impl FnOnce(&Record) -> R) -> Option<R> {
        self.records.borrow().get(key).map(|record| look(record))
    }

    fn remember_flow(&self, key: &RecordKey, record: Record, replace: bool) -> bool {
        let mut records = self.records.borrow_mut();
        let there = records.contains_key(key);
        let room = if there { replace } else { records.len() < self.records_limit };
        if room {
            records.insert(*key, Rc::new(record));
        }
        room
    }

    fn count_pod(&self, counter: u32, bytes: u32) {
        count(&self.pod_counters, counter, bytes);
    }

    fn may_answer(&self) -> bool {
        true
    }

    fn reply(&self, key: &ServiceKey) -> Option<ReplyId> {
        self.replies.get(key).copied()
    }

    fn reply_word(&self, id: ReplyId) -> Option<ReplyWord> {
        self.reply_words.get(id as usize).copied()
    }

    fn reply_target(&self, index: u32) -> Option<&ReplyTarget> {
        self.reply_targets.get(index as usize)
    }

    fn count_reply(&self, id: ReplyId, bytes: u32) {
        count(&self.reply_counters, id, bytes);
    }
}

impl Store for HostMaps {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn prefilter(&self, word: u32) -> u64 {
        self.prefilter[word as usize]
    }

    fn set_prefilter(&mut self, word: u32, value: u64) {
        self.prefilter[word as usize] = value;
    }

    fn services(&self) -> anyhow::Result<Vec<(ServiceKey, ServiceId)>> {
        Ok(self.services.iter().map(|(key, id)| (*key, *id)).collect())
    }

    fn insert_service(&mut self, key: ServiceKey, id: ServiceId) -> anyhow::Result<()> {
        self.services.insert(key, id);
        Ok(())
    }

    fn remove_service(&mut self, key: ServiceKey) -> anyhow::Result<()> {
        anyhow::ensure!(self.services.remove(&key).is_some(), "no such service");
        Ok(())
    }

    fn word(&self, id: ServiceId) -> ServiceWord {
        self.words[id as usize]
    }

    fn set_word(&mut self, id: ServiceId, word: ServiceWord) {
        self.words[id as usize] = word;
    }

    fn read_slots(&self, base: u64, slots: &mut [u16]) {
        slots.copy_from_slice(&self.slots[base as usize..base as usize + slots.len()]);
    }

    fn write_slots(&mut self, base: u64, slots: &[u16]) {
        self.slots[base as usize..base as usize + slots.len()].copy_from_slice(slots);
    }

    fn backend(&self, index: u32) -> Backend {
        self.backends[index as usize]
    }

    fn write_backend(&mut self, index: u32, backend: &Backend) {
        self.backends[index as usize] = *backend;
    }

    fn set_backend_next_hop(&mut self, index: u32, next_hop: u32) {
        self.backends[index as usize].next_hop = next_hop;
    }

    fn next_hop(&self, index: u32) -> NextHop {
        self.next_hops[index as usize]
    }

    fn write_next_hop(&mut self, index: u32, next_hop: &NextHop) -> anyhow::Result<()> {
        self.next_hops[index as usize] = *next_hop;
        Ok(())
    }

    fn hash_keys(&self) -> anyhow::Result<HashKeys> {
        Ok(self.settings.hash_keys)
    }

    fn set_hash_keys(&mut self, keys: &HashKeys) -> anyhow::Result<()> {
        self.settings.hash_keys = *keys;
        Ok(())
    }

    fn tunnel_addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        Ok(self.tunnel_addresses.iter().copied().collect())
    }

    fn set_tunnel_address(&mut self, address: IpAddr, present: bool) -> anyhow::Result<()> {
        if present {
            self.tunnel_addresses.insert(address)
        } else {
            self.tunnel_addresses.remove(&address)
        };
        Ok(())
    }

    fn trusted(&self) -> anyhow::Result<Vec<Prefix>> {
        Ok(self.trusted.iter().copied().collect())
    }

    fn set_trusted(&mut self, prefix: Prefix, present: bool) -> anyhow::Result<()> {
        if present {
            self.trusted.insert(prefix)
        } else {
            self.trusted.remove(&prefix)
        };
        Ok(())
    }

    fn reset_counter(&mut self, counter: u32) -> anyhow::Result<()> {
        self.counters.get_mut()[counter as usize] = Counter::default();
        Ok(())
    }
}

/// A frame that came by an interface, with room before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFrame {
    buffer: Vec<u8>,
    start: usize,
    interface: u32,
    sockets: HashMap<(u32, Connection), Socket>,
}

/// Room before a frame, in bytes: XDP_PACKET_HEADROOM of Linux.
const HEADROOM: usize = 256;

impl HostFrame {
    /// A frame.
    #[must_use]
    pub fn new(bytes: &[u8], interface: u32) -> Self {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(bytes);
        Self { buffer, start: HEADROOM, interface, sockets: HashMap::new() }
    }

    /// Let a namespace's sockets know something of a connection.
    #[must_use]
    pub fn with_socket(mut self, namespace: u32, connection: Connection, socket: Socket) -> Self {
        self.sockets.insert((namespace, connection), socket);
        self
    }

    /// The frame's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl Packet for HostFrame {
    const CAN_ANSWER: bool = true;

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.bytes().get(start..start.checked_add(N)?)?.try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool {
        let start = self.start + offset as usize;
        match self.buffer.get_mut(start..start + N) {
            Some(place) => {
                place.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    fn excess(&self, length: u32) -> Option<u32> {
        (self.bytes().len() as u32).checked_sub(length)
    }

    fn quote_sum(&self, offset: u32) -> Option<u32> {
        let bytes: [u8; QUOTE] = self.load(offset)?;
        Some(checksum::sum(&bytes))
    }

    fn grow<const N: usize>(&mut self) -> bool {
        match self.start.checked_sub(N) {
            Some(start) => {
                self.start = start;
                true
            }
            None => false,
        }
    }

    fn strip(&mut self, l3: u32, length: u32, family: Family) -> bool {
        let (Some(macs), Some(tags)) = (self.load::<12>(0), ethernet::tags(self, l3)) else { return false };
        // As the kernel: an Ethernet header must be left.
        if self.bytes().len() < length as usize + 14 {
            return false;
        }
        self.start += length as usize;
        ethernet::write(self, l3, &macs, &tags, family)
    }

    fn trim(&mut self, length: u32) -> bool {
        match self.bytes().len().checked_sub(length as usize) {
            Some(left) if left >= 14 => {
                self.buffer.truncate(self.start + left);
                true
            }
            _ => false,
        }
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn socket(&self, namespace: u32, connection: &Connection, _l3: u32, _l4: u32) -> Socket {
        self.sockets.get(&(namespace, *connection)).copied().unwrap_or(Socket::None)
    }
}
