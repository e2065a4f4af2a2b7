//! Keys and values of the BPF maps, and the view of them that the decisions are made from.
//!
//! Everything here is part of the pinned ABI: a change to a layout, a map's kind or its meaning raises
//! [`ABI_VERSION`], which names the folder of the pins.

mod backend;
mod fragment;
mod host;
mod pod;
mod prefilter;
mod record;
mod service;

pub use backend::{BACKEND_AGENT, BACKEND_IPV6, BACKEND_NEXT_HOP_WORD, Backend, Dispatch, NextHop};
pub use fragment::{FRAGMENT_LIFETIME_NS, FragmentKey, FragmentPorts};
pub use host::{TRUSTED_FAMILY_BITS, TrustedData, TunnelAddress, trusted_data};
pub use pod::{NO_NAMESPACE, OWN_NAMESPACE, POD_DEVICE_WORD, POD_IPV6, POD_RECORD, Pod, PodCell, PodWord};
pub use prefilter::{PREFILTER_BITS, PREFILTER_WORDS, prefilter, prefilter_v4, prefilter_v6};
pub use record::{
    INTERNAL_NETWORK, INTERNAL_OWN_POD, RECORD_SHORT_NS, RECORD_TCP_NS, RECORD_UDP_NS, Record, RecordEvent, RecordKey,
    RecordState, ReplyId, ReplyTarget, ReplyWord,
};
pub use service::{ServiceId, ServiceKey, ServiceWord, VIP_MARK};

use crate::address::{Address, Family};
use crate::flow::HashKeys;

/// Version of the layout of all maps; pins live under `<pinPath>/v<ABI_VERSION>/`.
pub const ABI_VERSION: u32 = 2;

/// Slots that share a 64-bit word: an array's values have a stride of 8 bytes (kernel 6.18 and before).
pub const SLOTS_PER_WORD: u32 = 4;
/// Smallest region of slots, in slots, and the unit in which a region's base is counted.
pub const SLOTS_UNIT: u32 = 64;
/// Index of the program of the longer way ([`crate::stage::run_slow`]) in the array of stages.
pub const SLOW_STAGE: u32 = 0;
/// Index of the program of the node's longer way ([`crate::stage::run_node`]) in the array of stages.
pub const NODE_STAGE: u32 = 1;
/// Most backends of one service: a slot names one by 16 bits.
pub const MAX_BACKENDS_PER_SERVICE: usize = 1 << 16;

/// Packets and bytes; bytes count the packet as the client sent it, from its IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What is the same for all packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Keys of the flow hash.
    pub hash_keys: HashKeys,
    /// What the MSS of a SYN-ACK is lowered to, in IPv4 and IPv6; 0 for never.
    pub mss: [u32; 2],
}

/// What a debugging run notes of its last packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trace {
    /// A [`crate::verdict::Reason`].
    pub reason: u64,
    /// The service's id plus one; 0 for none.
    pub service: u64,
    /// The backend's index plus one; 0 for none.
    pub backend: u64,
    /// The slot within its service's table.
    pub slot: u64,
    /// The pod's index plus one; 0 for none.
    pub pod: u64,
}

/// The maps as a decision sees them. In the kernel they are BPF maps, on the host plain collections.
pub trait Maps {
    /// A word of the prefilter; `index` is below [`PREFILTER_WORDS`].
    fn prefilter(&self, index: u32) -> u64;
    /// The id of a service, or [`VIP_MARK`].
    fn service(&self, key: &ServiceKey) -> Option<ServiceId>;
    /// A service's word.
    fn word(&self, id: ServiceId) -> Option<ServiceWord>;
    /// A slot: the backend's place among its service's. `index` counts over all slots.
    fn slot(&self, index: u64) -> Option<u16>;
    /// A backend.
    fn backend(&self, index: u32) -> Option<&Backend>;
    /// A next hop.
    fn next_hop(&self, index: u32) -> Option<&NextHop>;
    /// What is the same for all packets.
    fn settings(&self) -> Option<&Settings>;
    /// Whether a tunnel may end at this address of the host.
    fn is_tunnel_address(&self, address: &Address, family: Family) -> bool;
    /// Whether tunnel packets from this outer source are accepted.
    fn is_trusted(&self, address: &Address, family: Family) -> bool;
    /// What the first of these fragments left.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Remember a first fragment's ports.
    fn remember_fragment(&self, key: &FragmentKey, ports: FragmentPorts);
    /// Count a packet for a backend.
    fn count_backend(&self, counter: u32, bytes: u32);
    /// The monotonic clock, in nanoseconds.
    fn now(&self) -> u64;
    /// The same, as of the last tick: milliseconds old, and cheap.
    fn now_coarse(&self) -> u64;

    /// What a node does with a service's packets.
    fn pod_word(&self, id: ServiceId) -> Option<PodWord>;
    /// A slot of a node's table. `index` counts over all of them.
    fn pod_cell(&self, index: u64) -> Option<PodCell>;
    /// A pod.
    fn pod(&self, index: u32) -> Option<&Pod>;
    /// Whether there still is a device with this number to pods. The kernel itself removes one that is gone.
    fn has_pod_device(&self, number: u32) -> bool;
    /// [`INTERNAL_NETWORK`] and [`INTERNAL_OWN_POD`], for an address in the internal networks; 0 for one outside.
    fn internal(&self, address: &Address, family: Family) -> u32;
    /// Look at a flow's record.
    fn record<R>(&self, key: &RecordKey, look: impl FnOnce(&Record) -> R) -> Option<R>;
    /// Record a flow; `false` if it cannot be, or if there is a record that is not to be replaced.
    fn remember_flow(&self, key: &RecordKey, record: Record, replace: bool) -> bool;
    /// Count a packet for a pod.
    fn count_pod(&self, counter: u32, bytes: u32);
    /// Whether another answer of the node's own may be sent now.
    fn may_answer(&self) -> bool;

    /// What a pod's address, protocol and port lead to.
    fn reply(&self, key: &ServiceKey) -> Option<ReplyId>;
    /// How replies are rewritten.
    fn reply_word(&self, id: ReplyId) -> Option<ReplyWord>;
    /// Where replies come from.
    fn reply_target(&self, index: u32) -> Option<&ReplyTarget>;
    /// Count a reply.
    fn count_reply(&self, id: ReplyId, bytes: u32);
}

#[cfg(test)]
mod tests {
    use super::backend::join;
    use super::*;

    #[test]
    fn layouts_are_the_abi() {
        assert_eq!(size_of::<ServiceKey>(), 24);
        assert_eq!(size_of::<Backend>(), 64);
        assert_eq!(size_of::<NextHop>(), 32);
        assert_eq!(size_of::<FragmentKey>(), 40);
        assert_eq!(size_of::<FragmentPorts>(), 16);
        assert_eq!(size_of::<Counter>(), 16);
        assert_eq!(size_of::<Pod>(), 64);
        assert_eq!(size_of::<RecordKey>(), 40);
        assert_eq!(size_of::<Record>(), 48);
        assert_eq!(size_of::<ReplyTarget>(), 32);
        assert_eq!(size_of::<Settings>(), 104);
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let words = core::array::from_fn(|i| crate::flow::mix(i as u64));
        assert_eq!(Backend::from_words(words).to_words(), words);
        let words = core::array::from_fn(|i| crate::flow::mix(i as u64));
        assert_eq!(NextHop::from_words(words).to_words(), words);
        let words = core::array::from_fn(|i| crate::flow::mix(i as u64));
        assert_eq!(Pod::from_words(words).to_words(), words);
        let pod = Pod { device: 7, namespace: 9, ..Pod::default() };
        assert_eq!(pod.to_words()[POD_DEVICE_WORD], join(7, 9));
        let words = core::array::from_fn(|i| crate::flow::mix(i as u64));
        assert_eq!(ReplyTarget::from_words(words).to_words(), words);
        let backend = Backend { next_hop: 7, counter: 9, ..Backend::default() };
        assert_eq!(backend.to_words()[BACKEND_NEXT_HOP_WORD], join(7, 9));
    }

    #[test]
    fn a_pods_word_says_what_it_is() {
        assert!(PodWord::HOST.is_host() && PodWord::HOST.pods().is_none());
        let word = ServiceWord::new(64, 10, 7, true);
        assert_eq!(PodWord::table(word).pods(), Some(word));
        let empty = PodWord::empty_since(123);
        assert!(!empty.is_host() && empty.pods().is_none());
        assert_eq!(empty.since(), 123);
        assert!(PodCell::new(3, [PodCell::NONE; 2]).is_steady());
        assert!(!PodCell::new(3, [5, PodCell::NONE]).is_steady());
        assert_eq!((PodCell::new(3, [5, 6]).owner(), PodCell::new(3, [5, 6]).formers()), (3, [5, 6]));
    }

    #[test]
    fn a_record_expires_by_state_and_protocol() {
        let record = Record::new(Address::default(), 443, 1_000);
        assert_eq!((record.port(), record.state(), record.seen()), (443, RecordState::New, 1_000));
        assert!(!record.is_expired(1_000 + RECORD_SHORT_NS, 6) && record.is_expired(1_001 + RECORD_SHORT_NS, 6));
        record.note(2_000, RecordEvent::CONTINUES);
        assert!(!record.is_expired(2_000 + RECORD_TCP_NS, 6) && record.is_expired(2_001 + RECORD_TCP_NS, 6));
        assert!(!record.is_expired(2_000 + RECORD_UDP_NS, 17) && record.is_expired(2_001 + RECORD_UDP_NS, 17));
        record.note(3_000, RecordEvent::CLIENT_ENDS);
        assert_eq!((record.port(), record.state()), (443, RecordState::ClientClosing));
        assert!(record.is_expired(3_001 + RECORD_SHORT_NS, 6));
        assert!(!record.gives_way(3_000, 6, true), "one side is still open");
        record.note(4_000, RecordEvent::POD_ENDS);
        assert_eq!(record.state(), RecordState::Closed);
        assert!(record.gives_way(4_000, 6, true) && !record.gives_way(4_000, 6, false));
        record.note(5_000, RecordEvent::BEGINS);
        record.note(5_000, RecordEvent::ANSWERS);
        assert_eq!(record.state(), RecordState::New);
        record.note(5_000, RecordEvent::RESETS);
        assert_eq!(record.state(), RecordState::Closed);
        record.note(6_000, RecordEvent::POD_OPENS);
        record.note(6_000, RecordEvent::CONTINUES);
        assert!(record.is_void() && record.gives_way(6_000, 6, true));
        record.note(7_000, RecordEvent::BEGINS);
        record.note(7_000, RecordEvent::POD_OPENS);
        assert_eq!((record.state(), record.is_void(), record.port()), (RecordState::New, false, 443));
    }

    #[test]
    fn a_word_gives_back_its_parts() {
        let word = ServiceWord::new(ServiceWord::MAX_SLOTS - 64, 18, (ServiceWord::MAX_BACKENDS - 1) as u32, true);
        assert_eq!(
            (word.slots(), word.log2_slots(), word.backends(), word.source_affinity()),
            (ServiceWord::MAX_SLOTS - 64, 18, (1 << 30) - 1, true)
        );
        let word = ServiceWord::new(0, 6, 0, false);
        assert_eq!(
            (word.slots(), word.log2_slots(), word.backends(), word.source_affinity(), word.is_empty()),
            (0, 6, 0, false, false)
        );
        assert_eq!(word.slot(u64::MAX), 63);
        assert!(ServiceWord::EMPTY.is_empty());
    }
}
