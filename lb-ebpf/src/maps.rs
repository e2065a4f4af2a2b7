//! The BPF maps, and the decisions' view of them. Sizes are those of the default configuration; the loader sets others.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::address::{Address, Family};
use lb_common::maps::{
    Backend, Counter, FragmentKey, FragmentPorts, Maps, NODE_STAGE, NextHop, PREFILTER_WORDS, Pod, PodCell, PodWord,
    Record, RecordKey, ReplyId, ReplyTarget, ReplyWord, SLOW_STAGE, ServiceId, ServiceKey, ServiceWord, Settings,
    TRUSTED_FAMILY_BITS, Trace, TrustedData, TunnelAddress,
};
use lb_common::node::visit::Visit;
use lb_common::verdict::Reason;

#[map]
static PREFILTER: Array<u64> = Array::with_max_entries(PREFILTER_WORDS, BPF_F_MMAPABLE);
#[map]
static SERVICES: HashMap<ServiceKey, ServiceId> = HashMap::with_max_entries(16_384, 0);
#[map]
static SERVICE_WORDS: Array<u64> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);
#[map]
static SLOTS: Array<u64> = Array::with_max_entries(1 << 21, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(1 << 18, BPF_F_MMAPABLE);
#[map]
static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static TUNNEL_ADDRESSES: HashMap<TunnelAddress, u32> = HashMap::with_max_entries(4096, 0);
#[map]
static TRUSTED: LpmTrie<TrustedData, u32> = LpmTrie::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::with_max_entries(16_384, 0);
#[map]
static BACKEND_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(1 << 17, 0);
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(128, 0);
#[map]
static DEVICES: DevMapHash = DevMapHash::with_max_entries(256, 0);
#[map]
static STAGES: ProgramArray = ProgramArray::with_max_entries(2, 0);
/// As [`STAGES`], of the programs on TC: an array of programs takes those of one kind.
#[map]
static RETURN_STAGES: ProgramArray = ProgramArray::with_max_entries(2, 0);
#[map]
static TRACE: Array<Trace> = Array::with_max_entries(1, 0);
#[map]
static POD_WORDS: Array<u64> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);
#[map]
static POD_CELLS: Array<u64> = Array::with_max_entries(1 << 20, BPF_F_MMAPABLE);
#[map]
static PODS: Array<Pod> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);
#[map]
static POD_DEVICES: DevMapHash = DevMapHash::with_max_entries(4096, 0);
#[map]
static POD_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(1 << 15, 0);
#[map]
static INTERNAL: LpmTrie<TrustedData, u32> = LpmTrie::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
static RECORDS: LruHashMap<RecordKey, [u64; 6]> = LruHashMap::with_max_entries(1 << 20, 0);
#[map]
static REPLIES: HashMap<ServiceKey, ReplyId> = HashMap::with_max_entries(1 << 15, 0);
#[map]
static REPLY_WORDS: Array<u64> = Array::with_max_entries(1 << 15, BPF_F_MMAPABLE);
#[map]
static REPLY_TARGETS: Array<ReplyTarget> = Array::with_max_entries(1 << 15, BPF_F_MMAPABLE);
#[map]
static REPLY_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(1 << 15, 0);
/// How many flows were recorded.
#[map]
static RECORDED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// When this CPU's present second of answers began, and how many there were in it.
#[map]
static ANSWERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// What the steps of the node's longer way tell each other.
#[map]
static VISIT: PerCpuArray<Visit> = PerCpuArray::with_max_entries(1, 0);

/// Answers of the node's own that one CPU sends in a second at most.
const ANSWERS_PER_SECOND: u64 = 1000;

/// A key of a trie as words of 64 bits: length of the prefix and family in the first, the address in the others.
#[repr(C, align(8))]
struct TrieKey([u64; 3]);

const _: () = assert!(size_of::<TrieKey>() == size_of::<Key<TrustedData>>());

impl TrieKey {
    #[inline(always)]
    fn new(address: &Address, family: Family) -> Self {
        let bits = (TRUSTED_FAMILY_BITS + 8 * family.address_len() as u32).to_ne_bytes();
        let family = (family as u32).to_ne_bytes();
        let first = [bits[0], bits[1], bits[2], bits[3], family[0], family[1], family[2], family[3]];
        Self([u64::from_ne_bytes(first), address.0[0], address.0[1]])
    }

    #[inline(always)]
    const fn key(&self) -> &Key<TrustedData> {
        // SAFETY: the same size, all bytes are numbers, and the alignment of words is more than the key's.
        unsafe { &*(&raw const self.0).cast() }
    }
}

/// All maps at once.
pub(crate) struct Tables;

impl Maps for Tables {
    #[inline(always)]
    fn prefilter(&self, index: u32) -> u64 {
        PREFILTER.get(index).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceId> {
        // SAFETY: the agent inserts no key until long after one was removed, so that the element is not used for
        // another key while it is read here.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn word(&self, id: ServiceId) -> Option<ServiceWord> {
        let word = SERVICE_WORDS.get_ptr(id)?;
        // SAFETY: an aligned map value; volatile, because the agent swaps it by one store at any time.
        Some(ServiceWord(unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn slot(&self, index: u64) -> Option<u16> {
        let word = *SLOTS.get((index >> 2) as u32)?;
        Some((word >> ((index & 3) * 16)) as u16)
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<&Backend> {
        BACKENDS.get(index)
    }

    #[inline(always)]
    fn next_hop(&self, index: u32) -> Option<&NextHop> {
        NEXT_HOPS.get(index)
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn is_tunnel_address(&self, address: &Address, family: Family) -> bool {
        // SAFETY: only whether there is an element counts.
        unsafe { TUNNEL_ADDRESSES.get(TunnelAddress::new(*address, family)) }.is_some()
    }

    #[inline(always)]
    fn is_trusted(&self, address: &Address, family: Family) -> bool {
        TRUSTED.get(TrieKey::new(address, family).key()).is_some()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: a torn read gives the ports of another packet of the last seconds, which is then sent to its backend.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, ports: FragmentPorts) {
        // A full table makes room by itself; on any other failure the later fragments are dropped and counted.
        let _ = FRAGMENTS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn count_backend(&self, counter: u32, bytes: u32) {
        add(&BACKEND_COUNTERS, counter, bytes);
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper has no arguments and cannot fail.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn now_coarse(&self) -> u64 {
        // SAFETY: as in `now`; kernel 5.11.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn pod_word(&self, id: ServiceId) -> Option<PodWord> {
        let word = POD_WORDS.get_ptr(id)?;
        // SAFETY: as in `word`.
        Some(PodWord(unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn pod_cell(&self, index: u64) -> Option<PodCell> {
        let cell = POD_CELLS.get_ptr(index as u32)?;
        // SAFETY: as in `word`: the agent clears former pods in place.
        Some(PodCell(unsafe { cell.read_volatile() }))
    }

    #[inline(always)]
    fn pod(&self, index: u32) -> Option<&Pod> {
        PODS.get(index)
    }

    #[inline(always)]
    fn has_pod_device(&self, number: u32) -> bool {
        // The kernel empties the place of a device that is unregistered (kernel 4.14), and programs may look (5.3).
        number != 0 && POD_DEVICES.get_ifindex(number).is_some()
    }

    #[inline(always)]
    fn internal(&self, address: &Address, family: Family) -> u32 {
        INTERNAL.get(TrieKey::new(address, family).key()).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn record<R>(&self, key: &RecordKey, look: impl FnOnce(&Record) -> R) -> Option<R> {
        let record = RECORDS.get_ptr(key)?.cast::<Record>();
        // SAFETY: an element of the map, which stays readable while the program runs. One that another flow takes over
        // meanwhile gets this packet's state and time, and this packet its VIP, which its client refuses.
        Some(look(unsafe { &*record }))
    }

    #[inline(always)]
    fn remember_flow(&self, key: &RecordKey, record: Record, replace: bool) -> bool {
        let flags = if replace { BPF_ANY } else { BPF_NOEXIST };
        let done = RECORDS.insert(key, record.to_words(), u64::from(flags)).is_ok();
        if done && let Some(recorded) = RECORDED.get_ptr_mut(0) {
            // SAFETY: this CPU's own element, as in `add`.
            unsafe { *recorded += 1 };
        }
        done
    }

    #[inline(always)]
    fn count_pod(&self, counter: u32, bytes: u32) {
        add(&POD_COUNTERS, counter, bytes);
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        let Some(answers) = ANSWERS.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own element, as in `add`.
        let answers = unsafe { &mut *answers };
        let now = self.now_coarse();
        if now.wrapping_sub(answers[0]) > 1_000_000_000 {
            *answers = [now, 0];
        }
        answers[1] += 1;
        answers[1] <= ANSWERS_PER_SECOND
    }

    #[inline(always)]
    fn reply(&self, key: &ServiceKey) -> Option<ReplyId> {
        // SAFETY: as in `service`.
        unsafe { REPLIES.get(key) }.copied()
    }

    #[inline(always)]
    fn reply_word(&self, id: ReplyId) -> Option<ReplyWord> {
        let word = REPLY_WORDS.get_ptr(id)?;
        // SAFETY: as in `word`.
        Some(ReplyWord(unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn reply_target(&self, index: u32) -> Option<&ReplyTarget> {
        REPLY_TARGETS.get(index)
    }

    #[inline(always)]
    fn count_reply(&self, id: ReplyId, bytes: u32) {
        add(&REPLY_COUNTERS, id, bytes);
    }
}

#[inline(always)]
fn add(counters: &PerCpuArray<Counter>, index: u32, bytes: u32) {
    if let Some(entry) = counters.get_ptr_mut(index) {
        // SAFETY: this CPU's own element; programs of one CPU run with softirqs off and do not interrupt each other.
        let entry = unsafe { &mut *entry };
        entry.packets += 1;
        entry.bytes += u64::from(bytes);
    }
}

/// Count a packet for its reason.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element, as in `count_backend`.
        unsafe { *counter += 1 };
    }
}

/// Note what a debugging run wants to know of the packet.
#[inline(always)]
pub(crate) fn trace(trace: Trace) {
    // An array's element always exists; there is nobody to tell if it did not.
    let _ = TRACE.set(0, trace, 0);
}

/// What this run, or the program before it, noted last.
#[inline(always)]
pub(crate) fn last_trace() -> Trace {
    TRACE.get(0).copied().unwrap_or_default()
}

/// The place where the node's longer way keeps what it knows of a packet, empty.
#[inline(always)]
pub(crate) fn visit() -> Option<&'static mut Visit> {
    let visit = VISIT.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element, and programs of one CPU do not interrupt each other; all its fields are numbers.
    let visit = unsafe { &mut *visit };
    *visit = Visit::default();
    Some(visit)
}

/// Send the frame by another device: the action for the kernel, if the device is among ours.
#[inline(always)]
pub(crate) fn redirect(interface: u64) -> Option<u32> {
    DEVICES.redirect(interface as u32, 0).ok()
}

/// Go on in the program of the edge's longer way; returns only if there is none.
#[inline(always)]
pub(crate) fn longer_way(ctx: &XdpContext) {
    // SAFETY: a tail call with this program's own context; the packet is as it came.
    unsafe { STAGES.tail_call(ctx, SLOW_STAGE) };
}

/// As [`longer_way`], of the node.
#[inline(always)]
pub(crate) fn longer_way_of_node(ctx: &XdpContext) {
    // SAFETY: as in `longer_way`.
    unsafe { STAGES.tail_call(ctx, NODE_STAGE) };
}

/// As [`longer_way`], of replies.
#[inline(always)]
pub(crate) fn longer_way_out(ctx: &TcContext) {
    // SAFETY: as in `longer_way`.
    unsafe { RETURN_STAGES.tail_call(ctx, SLOW_STAGE) };
}

/// As [`longer_way_of_node`], where the node's program is on TC.
#[inline(always)]
pub(crate) fn longer_way_of_node_tc(ctx: &TcContext) {
    // SAFETY: as in `longer_way`.
    unsafe { RETURN_STAGES.tail_call(ctx, NODE_STAGE) };
}
