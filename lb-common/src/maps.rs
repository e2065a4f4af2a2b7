//! Keys and values of the BPF maps, and the view of them that the decisions are made from.
//!
//! Everything here is part of the pinned ABI: a change to a layout, a map's kind or its meaning raises
//! [`ABI_VERSION`], which names the folder of the pins.

use crate::address::{Address, Family};
use crate::flow::HashKeys;

/// Version of the layout of all maps; pins live under `<pinPath>/v<ABI_VERSION>/`.
pub const ABI_VERSION: u32 = 1;

/// log2 of the number of bits of the prefilter.
pub const PREFILTER_BITS: u32 = 20;
/// Number of 64-bit words of the prefilter.
pub const PREFILTER_WORDS: u32 = 1 << (PREFILTER_BITS - 6);
/// Slots that share a 64-bit word: an array's values have a stride of 8 bytes (kernel 6.18 and before).
pub const SLOTS_PER_WORD: u32 = 4;
/// Smallest region of slots, in slots, and the unit in which a region's base is counted.
pub const SLOTS_UNIT: u32 = 64;
/// Index of the program of the longer way ([`crate::stage::run_slow`]) in the array of stages.
pub const SLOW_STAGE: u32 = 0;
/// Most backends of one service: a slot names one by 16 bits.
pub const MAX_BACKENDS_PER_SERVICE: usize = 1 << 16;

/// A service's key: VIP, protocol and port.
///
/// Two kinds of key stand beside the services': port 0 with a protocol serves every port of it that has no key of its
/// own; port 0 with protocol 0 says that the address is a VIP ([`ServiceKey::vip`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// The VIP.
    address: Address,
    /// Port, protocol and family, from bit 0, 16 and 24 on.
    rest: u64,
}

impl ServiceKey {
    /// The key of a service; the port in host order, 0 for all ports.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, family: Family, protocol: u8, port: u16) -> Self {
        Self { address, rest: port as u64 | (protocol as u64) << 16 | (family as u64) << 24 }
    }

    /// The key that says that an address is a VIP.
    #[inline(always)]
    #[must_use]
    pub const fn vip(address: Address, family: Family) -> Self {
        Self::new(address, family, 0, 0)
    }

    /// Make it the key of all ports of its protocol. In place: a program's stack has room for one.
    #[inline(always)]
    pub const fn widen_to_all_ports(&mut self) {
        self.rest &= !0xffff;
    }

    /// Make it the key that says that its address is a VIP.
    #[inline(always)]
    pub const fn widen_to_vip(&mut self) {
        self.rest &= !0xff_ffff;
    }

    /// The key as a map holds it.
    #[must_use]
    pub const fn to_words(self) -> [u64; 3] {
        [self.address.0[0], self.address.0[1], self.rest]
    }

    /// The key that a map holds.
    #[must_use]
    pub const fn from_words(words: [u64; 3]) -> Self {
        Self { address: Address([words[0], words[1]]), rest: words[2] }
    }

    /// The VIP.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// The family of the VIP.
    #[must_use]
    pub const fn family(&self) -> Family {
        if self.rest >> 24 & 0xff == 4 { Family::V4 } else { Family::V6 }
    }

    /// The protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        (self.rest >> 16) as u8
    }

    /// The port, in host order; 0 for all ports.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.rest as u16
    }

    /// Whether the key says that an address is a VIP, and is no service's.
    #[must_use]
    pub const fn is_vip_mark(&self) -> bool {
        self.protocol() == 0
    }
}

/// An address of this host that tunnels may end at: the key of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TunnelAddress {
    address: Address,
    family: u64,
}

impl TunnelAddress {
    /// The key of an address.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, family: Family) -> Self {
        Self { address, family: family as u64 }
    }

    /// The key as a map holds it.
    #[must_use]
    pub const fn to_words(self) -> [u64; 3] {
        [self.address.0[0], self.address.0[1], self.family]
    }

    /// The address of a key that a map holds.
    #[must_use]
    pub fn ip(words: [u64; 3]) -> core::net::IpAddr {
        Address([words[0], words[1]]).ip(if words[2] == 4 { Family::V4 } else { Family::V6 })
    }
}

/// Data of a key of the trie of trusted sources: the family in four bytes, then the address. A prefix of an address is
/// [`TRUSTED_FAMILY_BITS`] longer as a prefix of this.
pub type TrustedData = [u8; 20];
/// Bits before the address in [`TrustedData`].
pub const TRUSTED_FAMILY_BITS: u32 = 32;

/// The data of a trusted source's key.
#[inline(always)]
#[must_use]
pub const fn trusted_data(address: Address, family: Family) -> TrustedData {
    let a = address.v6();
    let f = (family as u32).to_ne_bytes();
    [
        f[0], f[1], f[2], f[3], a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13],
        a[14], a[15],
    ]
}

/// What a key of a service maps to: the index of its word. [`VIP_MARK`] for keys made by [`ServiceKey::vip`].
pub type ServiceId = u32;
/// The id that stands for "this address is a VIP".
pub const VIP_MARK: ServiceId = u32::MAX;

/// All that a packet needs of its service, in one word that is swapped by one store: where its slots are, how many,
/// where its backends are, and whether the source alone is hashed. 0 is a service without a backend to own a slot.
///
/// From the lowest bit: 27 bits base of the slots in [`SLOTS_UNIT`]s, 5 bits log2 of their number, 30 bits base of the
/// backends, 1 bit source affinity, 1 bit that is always set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ServiceWord(pub u64);

impl ServiceWord {
    /// A service without a table.
    pub const EMPTY: Self = Self(0);

    /// Largest base of a region of slots that fits, exclusive, in slots.
    pub const MAX_SLOTS: u64 = (SLOTS_UNIT as u64) << 27;
    /// Largest base of a region of backends that fits, exclusive.
    pub const MAX_BACKENDS: u64 = 1 << 30;

    /// A word. `slots` is the base of the region in slots, a multiple of [`SLOTS_UNIT`] below [`Self::MAX_SLOTS`];
    /// `backends` is below [`Self::MAX_BACKENDS`], `log2_slots` below 32.
    #[must_use]
    pub const fn new(slots: u64, log2_slots: u8, backends: u32, source_affinity: bool) -> Self {
        debug_assert!(slots.is_multiple_of(SLOTS_UNIT as u64) && slots < Self::MAX_SLOTS);
        debug_assert!(log2_slots < 32 && (backends as u64) < Self::MAX_BACKENDS);
        Self(
            (slots / SLOTS_UNIT as u64)
                | ((log2_slots as u64) << 27)
                | ((backends as u64) << 32)
                | ((source_affinity as u64) << 62)
                | (1 << 63),
        )
    }

    /// Whether there is no table.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Base of the region of slots, in slots.
    #[inline(always)]
    #[must_use]
    pub const fn slots(self) -> u64 {
        (self.0 & ((1 << 27) - 1)) * SLOTS_UNIT as u64
    }

    /// log2 of the number of slots.
    #[inline(always)]
    #[must_use]
    pub const fn log2_slots(self) -> u8 {
        (self.0 >> 27 & 31) as u8
    }

    /// Index of the service's first backend.
    #[inline(always)]
    #[must_use]
    pub const fn backends(self) -> u32 {
        (self.0 >> 32 & ((1 << 30) - 1)) as u32
    }

    /// Whether the source alone is hashed.
    #[inline(always)]
    #[must_use]
    pub const fn source_affinity(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    /// The slot that a flow picks, as an index into all slots.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, hash: u64) -> u64 {
        self.slots() + (hash & ((1 << self.log2_slots()) - 1))
    }
}

/// How packets get to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dispatch {
    /// The entry is not in use.
    None = 0,
    /// The backend is this host: up to the stack, without a tunnel.
    Local = 1,
    /// IPIP with an IPv4 outer header.
    Ipv4 = 4,
    /// IPIP with an IPv6 outer header.
    Ipv6 = 6,
}

/// One backend of one service. A cache line; written before the service's word points at it, and then only
/// [`Backend::next_hop`] changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// Outer destination.
    pub destination: Address,
    /// Outer source, with the bits of [`Backend::entropy`] clear.
    pub source: Address,
    /// Index of the next hop; 0 while there is none.
    pub next_hop: u32,
    /// Index of the backend's counter; stays with the backend of a service for as long as it is configured.
    pub counter: u32,
    /// The last 32 bits of the outer source that the flow hash fills, in network order; 0 for a fixed source.
    pub entropy: u32,
    /// Sum of the constant words of an IPv4 outer header ([`crate::encap::constant_sum`]): all but TOS, total length,
    /// protocol and entropy. Folded, not inverted.
    pub checksum: u16,
    /// A [`Dispatch`].
    pub dispatch: u8,
    /// log2 of the size of the region of backends that this one lies in: for the agent that adopts the maps.
    pub log2_region: u8,
    /// [`BACKEND_AGENT`] and [`BACKEND_IPV6`].
    pub flags: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

impl Backend {
    /// The entry as eight words, as the agent writes it.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 8] {
        let Self { destination, source, next_hop, counter, entropy, checksum, dispatch, log2_region, flags, reserved } =
            *self;
        let [c0, c1] = checksum.to_ne_bytes();
        [
            destination.0[0],
            destination.0[1],
            source.0[0],
            source.0[1],
            join(next_hop, counter),
            join(entropy, u32::from_ne_bytes([c0, c1, dispatch, log2_region])),
            join(flags, reserved[0]),
            join(reserved[1], reserved[2]),
        ]
    }

    /// The entry that these words hold.
    #[must_use]
    pub const fn from_words(w: [u64; 8]) -> Self {
        let (next_hop, counter) = split(w[4]);
        let (entropy, small) = split(w[5]);
        let (flags, reserved) = split(w[6]);
        let (reserved_1, reserved_2) = split(w[7]);
        let [c0, c1, dispatch, log2_region] = small.to_ne_bytes();
        Self {
            destination: Address([w[0], w[1]]),
            source: Address([w[2], w[3]]),
            next_hop,
            counter,
            entropy,
            checksum: u16::from_ne_bytes([c0, c1]),
            dispatch,
            log2_region,
            flags,
            reserved: [reserved, reserved_1, reserved_2],
        }
    }
}

impl NextHop {
    /// The entry as four words, as the agent writes it.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 4] {
        let Self { macs: m, interface, mtu, reserved } = *self;
        [
            u64::from_ne_bytes([m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]]),
            join(u32::from_ne_bytes([m[8], m[9], m[10], m[11]]), interface),
            join(mtu, reserved[0]),
            join(reserved[1], reserved[2]),
        ]
    }

    /// The entry that these words hold.
    #[must_use]
    pub const fn from_words(w: [u64; 4]) -> Self {
        let a = w[0].to_ne_bytes();
        let (last, interface) = split(w[1]);
        let b = last.to_ne_bytes();
        let (mtu, reserved) = split(w[2]);
        let (reserved_1, reserved_2) = split(w[3]);
        Self {
            macs: [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3]],
            interface,
            mtu,
            reserved: [reserved, reserved_1, reserved_2],
        }
    }
}

/// Two neighbours of 32 bits as they lie in one word.
const fn join(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// The two neighbours that lie in one word.
const fn split(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// The word of a backend's entry that holds its next hop, and so may change while packets use the entry.
pub const BACKEND_NEXT_HOP_WORD: usize = 4;

/// The bit of [`Backend::flags`] for a backend that runs the node program.
pub const BACKEND_AGENT: u32 = 1;
/// The bit of [`Backend::flags`] that says that the destination is an IPv6 address: for the agent that adopts the maps.
pub const BACKEND_IPV6: u32 = 2;

/// Where a packet leaves to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// Destination MAC address, then source MAC address, as they stand in the frame.
    pub macs: [u8; 12],
    /// The interface's index; 0 in an entry that is not in use.
    pub interface: u32,
    /// Largest IP packet that fits, in bytes: the path's MTU, outer header included.
    pub mtu: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

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

/// Names one packet's fragments (RFC 791 §2.3, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    source: Address,
    destination: Address,
    rest: u64,
}

impl FragmentKey {
    /// The key of an IPv4 packet's fragments.
    #[inline(always)]
    #[must_use]
    pub const fn v4(source: Address, destination: Address, identification: u16, protocol: u8) -> Self {
        let rest = identification as u64 | (protocol as u64) << 32 | (Family::V4 as u64) << 40;
        Self { source, destination, rest }
    }

    /// The key of an IPv6 packet's fragments; the first one alone shows the protocol.
    #[inline(always)]
    #[must_use]
    pub const fn v6(source: Address, destination: Address, identification: u32) -> Self {
        Self { source, destination, rest: identification as u64 | (Family::V6 as u64) << 40 }
    }

    /// The packet's source.
    #[inline(always)]
    #[must_use]
    pub const fn source(&self) -> Address {
        self.source
    }

    /// The packet's destination.
    #[inline(always)]
    #[must_use]
    pub const fn destination(&self) -> Address {
        self.destination
    }
}

/// What a first fragment leaves for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentPorts {
    /// When the first fragment came, in nanoseconds of the monotonic clock.
    pub seen: u64,
    /// Its ports, as [`crate::flow::FlowKey`] joins them.
    pub ports: u32,
    /// Its protocol.
    pub protocol: u32,
}

/// How long a first fragment's ports are kept: as long as Linux keeps fragments (`ipfrag_time`, 30 s), halved, because
/// an identification may come round again within seconds at high rates (RFC 4963).
pub const FRAGMENT_LIFETIME_NS: u64 = 15_000_000_000;

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

/// The bit of the prefilter for an IPv4 address: index of the word and the bit in it.
#[inline(always)]
#[must_use]
pub const fn prefilter_v4(address: Address) -> (u32, u64) {
    let h = (address.0[0] as u32).wrapping_mul(0x9e37_79b1) >> (32 - PREFILTER_BITS);
    (h >> 6, 1 << (h & 63))
}

/// The bit of the prefilter for an IPv6 address: index of the word and the bit in it.
#[inline(always)]
#[must_use]
pub const fn prefilter_v6(address: Address) -> (u32, u64) {
    let [a, b] = address.0;
    let high = a.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let low = b.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let h = ((high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PREFILTER_BITS)) as u32;
    (h >> 6, 1 << (h & 63))
}

/// The bit of the prefilter for an address: index of the word and the bit in it.
#[inline(always)]
#[must_use]
pub const fn prefilter(address: Address, family: Family) -> (u32, u64) {
    match family {
        Family::V4 => prefilter_v4(address),
        Family::V6 => prefilter_v6(address),
    }
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
