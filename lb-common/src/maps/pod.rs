//! Pods of this node: their entries, and which of them a slot has.

use super::backend::{join, split};
use super::{SLOTS_UNIT, ServiceWord};
use crate::address::Address;

/// One pod of one service on this node. A cache line; written before the service's word points at it, and then only
/// [`Pod::device`] and [`Pod::namespace`] change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Pod {
    /// The pod's address, of the VIP's family.
    pub address: Address,
    /// Number of the local device that leads to it, in the map of pods' devices; 0 while there is none.
    pub device: u32,
    /// Id that the node's network namespace has for the pod's; [`NO_NAMESPACE`] where its sockets cannot be seen,
    /// [`OWN_NAMESPACE`] where it has the node's.
    pub namespace: u32,
    /// Index of the pod's counter; stays with the pod of a service for as long as it is configured.
    pub counter: u32,
    /// The port that the pod listens on, in host order.
    pub port: u16,
    /// log2 of the size of the region of pods that this one lies in: for the agent that adopts the maps.
    pub log2_region: u8,
    /// [`POD_RECORD`] and [`POD_IPV6`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u64; 4],
}

/// The bit of [`Pod::flags`] for a pod whose flows are recorded.
pub const POD_RECORD: u8 = 1;
/// The bit of [`Pod::flags`] that says that the address is an IPv6 address: for the agent that adopts the maps.
pub const POD_IPV6: u8 = 2;
/// [`Pod::namespace`] where the pod's sockets cannot be seen.
pub const NO_NAMESPACE: u32 = u32::MAX;
/// [`Pod::namespace`] of a pod in the node's own network namespace.
pub const OWN_NAMESPACE: u32 = u32::MAX - 1;
/// The word of a pod's entry that holds device and namespace, and so may change while packets use the entry.
pub const POD_DEVICE_WORD: usize = 2;

impl Pod {
    /// The entry as eight words, as the agent writes it.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 8] {
        let Self { address, device, namespace, counter, port, log2_region, flags, reserved } = *self;
        let [p0, p1] = port.to_ne_bytes();
        [
            address.0[0],
            address.0[1],
            join(device, namespace),
            join(counter, u32::from_ne_bytes([p0, p1, log2_region, flags])),
            reserved[0],
            reserved[1],
            reserved[2],
            reserved[3],
        ]
    }

    /// The entry that these words hold.
    #[must_use]
    pub const fn from_words(w: [u64; 8]) -> Self {
        let (device, namespace) = split(w[2]);
        let (counter, small) = split(w[3]);
        let [p0, p1, log2_region, flags] = small.to_ne_bytes();
        Self {
            address: Address([w[0], w[1]]),
            device,
            namespace,
            counter,
            port: u16::from_ne_bytes([p0, p1]),
            log2_region,
            flags,
            reserved: [w[4], w[5], w[6], w[7]],
        }
    }
}

/// What a node does with a service's packets, in one word that is swapped by one store. 0: they go up to the host.
///
/// With bit 63 set it is a [`ServiceWord`] whose slots are [`PodCell`]s and whose backends are pods. With bit 62 alone
/// set no pod of the service is here, and the other bits say since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct PodWord(pub u64);

impl PodWord {
    /// Packets go up to the host.
    pub const HOST: Self = Self(0);
    const TABLE: u64 = 1 << 63;
    const EMPTY: u64 = 1 << 62;

    /// A word that leads to pods.
    #[must_use]
    pub const fn table(word: ServiceWord) -> Self {
        debug_assert!(word.0 & Self::TABLE != 0);
        Self(word.0)
    }

    /// A word without pods since a time of the monotonic clock, in nanoseconds.
    #[must_use]
    pub const fn empty_since(nanoseconds: u64) -> Self {
        Self(Self::EMPTY | nanoseconds & (Self::EMPTY - 1))
    }

    /// Whether packets go up to the host.
    #[inline(always)]
    #[must_use]
    pub const fn is_host(self) -> bool {
        self.0 == 0
    }

    /// Where pods and slots lie, if there are pods.
    #[inline(always)]
    #[must_use]
    pub const fn pods(self) -> Option<ServiceWord> {
        if self.0 & Self::TABLE == 0 { None } else { Some(ServiceWord(self.0)) }
    }

    /// Since when there is no pod, in nanoseconds of the monotonic clock; of no meaning if there are pods.
    #[inline(always)]
    #[must_use]
    pub const fn since(self) -> u64 {
        self.0 & (Self::EMPTY - 1)
    }
}

/// A slot of a node's table: its owner and the pods that owned it before, by their places among the service's pods.
///
/// From the lowest bit: 16 bits owner, 16 bits the last former pod, 16 bits the one before that ([`PodCell::NONE`] where
/// there is none), 16 bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PodCell(pub u64);

impl PodCell {
    /// The place that stands for no pod.
    pub const NONE: u16 = u16::MAX;
    /// How many former pods a slot remembers.
    pub const FORMERS: usize = 2;
    /// Base of a region of cells is a multiple of this.
    pub const UNIT: u32 = SLOTS_UNIT;

    /// A slot with this owner, and former pods from the last to the first.
    #[must_use]
    pub const fn new(owner: u16, formers: [u16; Self::FORMERS]) -> Self {
        Self(owner as u64 | (formers[0] as u64) << 16 | (formers[1] as u64) << 32)
    }

    /// The owner's place.
    #[inline(always)]
    #[must_use]
    pub const fn owner(self) -> u16 {
        self.0 as u16
    }

    /// The former pods' places, from the last to the first.
    #[inline(always)]
    #[must_use]
    pub const fn formers(self) -> [u16; Self::FORMERS] {
        [(self.0 >> 16) as u16, (self.0 >> 32) as u16]
    }

    /// Whether the slot has an owner and nobody before it.
    #[inline(always)]
    #[must_use]
    pub const fn is_steady(self) -> bool {
        self.0 >> 16 == 0xffff_ffff
    }
}
