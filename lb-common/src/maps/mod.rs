//! Keys and values of the BPF maps, and the view of them that the decisions are made from.
//!
//! Everything here is part of the pinned ABI: a change to a layout, a map's kind or its meaning raises
//! [`ABI_VERSION`], which names the folder of the pins.

mod backend;
mod fragment;
mod host;
mod prefilter;
mod service;

pub use backend::{BACKEND_AGENT, BACKEND_IPV6, BACKEND_NEXT_HOP_WORD, Backend, Dispatch, NextHop};
pub use fragment::{FRAGMENT_LIFETIME_NS, FragmentKey, FragmentPorts};
pub use host::{TRUSTED_FAMILY_BITS, TrustedData, TunnelAddress, trusted_data};
pub use prefilter::{PREFILTER_BITS, PREFILTER_WORDS, prefilter, prefilter_v4, prefilter_v6};
pub use service::{ServiceId, ServiceKey, ServiceWord, VIP_MARK};

use crate::address::{Address, Family};
use crate::flow::HashKeys;

/// Version of the layout of all maps; pins live under `<pinPath>/v<ABI_VERSION>/`.
pub const ABI_VERSION: u32 = 1;

/// Slots that share a 64-bit word: an array's values have a stride of 8 bytes (kernel 6.18 and before).
pub const SLOTS_PER_WORD: u32 = 4;
/// Smallest region of slots, in slots, and the unit in which a region's base is counted.
pub const SLOTS_UNIT: u32 = 64;
/// Index of the program of the longer way ([`crate::stage::run_slow`]) in the array of stages.
pub const SLOW_STAGE: u32 = 0;
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
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let words = core::array::from_fn(|i| crate::flow::mix(i as u64));
        assert_eq!(Backend::from_words(words).to_words(), words);
        let words = core::array::from_fn(|i| crate::flow::mix(i as u64));
        assert_eq!(NextHop::from_words(words).to_words(), words);
        let backend = Backend { next_hop: 7, counter: 9, ..Backend::default() };
        assert_eq!(backend.to_words()[BACKEND_NEXT_HOP_WORD], join(7, 9));
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
