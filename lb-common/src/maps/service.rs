//! Services: their keys and their words.

use super::SLOTS_UNIT;
use crate::address::{Address, Family};

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
