//! The BPF maps, and the decisions' view of them. Sizes are those of the default configuration; the loader sets others.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;
use lb_common::address::{Address, Family};
use lb_common::maps::{
    Backend, Counter, FragmentKey, FragmentPorts, Maps, NextHop, PREFILTER_WORDS, SLOW_STAGE, ServiceId, ServiceKey,
    ServiceWord, Settings, TRUSTED_FAMILY_BITS, Trace, TrustedData, TunnelAddress, trusted_data,
};
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
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(64, 0);
#[map]
static DEVICES: DevMapHash = DevMapHash::with_max_entries(256, 0);
#[map]
static STAGES: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TRACE: Array<Trace> = Array::with_max_entries(1, 0);

/// A key of the trie where the stack is aligned for words of 64 bits: the address in it is copied by those.
#[repr(C, align(8))]
struct TrustedKey(Key<TrustedData>);

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
        let bits = TRUSTED_FAMILY_BITS + 8 * family.address_len() as u32;
        let key = TrustedKey(Key::new(bits, trusted_data(*address, family)));
        TRUSTED.get(&key.0).is_some()
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
        if let Some(entry) = BACKEND_COUNTERS.get_ptr_mut(counter) {
            // SAFETY: this CPU's own element, and XDP programs of one CPU do not interrupt each other.
            let entry = unsafe { &mut *entry };
            entry.packets += 1;
            entry.bytes += u64::from(bytes);
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper has no arguments and cannot fail.
        unsafe { bpf_ktime_get_ns() }
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

/// Send the frame by another device: the action for the kernel, if the device is among ours.
#[inline(always)]
pub(crate) fn redirect(interface: u64) -> Option<u32> {
    DEVICES.redirect(interface as u32, 0).ok()
}

/// Go on in the program of the longer way; returns only if there is none.
#[inline(always)]
pub(crate) fn longer_way(ctx: &XdpContext) {
    // SAFETY: a tail call with this program's own context; the packet is as it came.
    unsafe { STAGES.tail_call(ctx, SLOW_STAGE) };
}
