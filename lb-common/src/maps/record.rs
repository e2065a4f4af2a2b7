//! Recorded flows, and where pods' replies come from.

use core::cell::Cell;

use super::backend::{join, split};
use crate::address::{Address, Family};
use crate::packet::transport::UDP;

/// Names a flow as the pod sees it: the client and the pod, with their ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RecordKey {
    client: Address,
    pod: Address,
    rest: u64,
}

impl RecordKey {
    /// The key of a flow. `ports` has the client's port in the upper half and the pod's in the lower, in host order.
    #[inline(always)]
    #[must_use]
    pub const fn new(client: Address, pod: Address, family: Family, protocol: u8, ports: u32) -> Self {
        Self { client, pod, rest: ports as u64 | (protocol as u64) << 32 | (family as u64) << 40 }
    }

    /// Ask for another pod's record of the same client. In place: a program's stack has room for one.
    #[inline(always)]
    pub const fn turn_to(&mut self, pod: Address, port: u16) {
        self.pod = pod;
        self.rest = self.rest & !0xffff | port as u64;
    }

    /// The key that a map holds.
    #[must_use]
    pub const fn from_words(words: [u64; 5]) -> Self {
        Self { client: Address([words[0], words[1]]), pod: Address([words[2], words[3]]), rest: words[4] }
    }

    /// The key as a map holds it.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 5] {
        [self.client.0[0], self.client.0[1], self.pod.0[0], self.pod.0[1], self.rest]
    }

    /// The client's address.
    #[must_use]
    pub const fn client(&self) -> Address {
        self.client
    }

    /// The pod's address.
    #[must_use]
    pub const fn pod(&self) -> Address {
        self.pod
    }

    /// The client's port, in host order.
    #[must_use]
    pub const fn client_port(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// The pod's port, in host order.
    #[must_use]
    pub const fn pod_port(&self) -> u16 {
        self.rest as u16
    }

    /// The protocol number.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        (self.rest >> 32) as u8
    }

    /// The family of both addresses.
    #[must_use]
    pub const fn family(&self) -> Family {
        if self.rest >> 40 & 0xff == 4 { Family::V4 } else { Family::V6 }
    }
}

/// How far a recorded flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordState {
    /// Its first packet has come.
    New = 0,
    /// More have.
    Established = 1,
    /// The client has sent its FIN.
    ClientClosing = 2,
    /// The pod has.
    PodClosing = 3,
    /// Both have, or one has reset it: the client may use its port again at once, for another VIP too.
    Closed = 4,
    /// It was closed, and the pod has answered a SYN since that did not come by the VIP: the ports are another flow's.
    Void = 5,
}

/// What a packet says of its flow: the state after it for each state before, four bits each from the lowest on. A number,
/// because the verifier would follow every branch of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordEvent(u32);

impl RecordEvent {
    /// A SYN: it begins, or begins anew.
    pub const BEGINS: Self = Self(0x0_0000);
    /// The client goes on.
    pub const CONTINUES: Self = Self(0x54_3211);
    /// The client's FIN.
    pub const CLIENT_ENDS: Self = Self(0x54_4222);
    /// The pod goes on.
    pub const ANSWERS: Self = Self(0x54_3210);
    /// The pod answers a SYN.
    pub const POD_OPENS: Self = Self(0x55_3210);
    /// The pod's FIN.
    pub const POD_ENDS: Self = Self(0x54_3433);
    /// A RST of either.
    pub const RESETS: Self = Self(0x54_4444);

    /// The state after the packet.
    #[inline(always)]
    const fn after(self, state: u64) -> u64 {
        (self.0 >> ((state & 7) as u32 * 4) & 7) as u64
    }
}

impl RecordState {
    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::ClientClosing | Self::PodClosing => "closing",
            Self::Closed => "closed",
            Self::Void => "void",
        }
    }

    #[inline(always)]
    const fn of(word: u64) -> Self {
        match word {
            0 => Self::New,
            1 => Self::Established,
            2 => Self::ClientClosing,
            3 => Self::PodClosing,
            4 => Self::Closed,
            _ => Self::Void,
        }
    }
}

/// Which VIP a recorded flow was asked at.
///
/// Its state and its clock change in place, one word each. (Cells, not atomics: BPF has no plain atomic loads before its
/// fourth instruction set, and needs none for an aligned word.)
#[derive(Debug, Default)]
#[repr(C)]
pub struct Record {
    /// The VIP.
    pub vip: Address,
    /// Its port, in host order. Never written again: the table may give the place to another flow at any time.
    port: u64,
    /// A [`RecordState`].
    state: Cell<u64>,
    /// When its last packet came or left, in nanoseconds of the monotonic clock, coarse.
    seen: Cell<u64>,
    /// When it was recorded, likewise.
    pub created: u64,
}

/// How long a flow that has only begun, or that is closing, keeps its record: Linux's TIME_WAIT (`TCP_TIMEWAIT_LEN`).
pub const RECORD_SHORT_NS: u64 = 60_000_000_000;
/// How long an idle TCP connection keeps its record.
pub const RECORD_TCP_NS: u64 = 24 * 3_600_000_000_000;
/// How long an idle UDP flow keeps its record: as conntrack's `nf_conntrack_udp_timeout_stream`, with a margin.
pub const RECORD_UDP_NS: u64 = 180_000_000_000;

impl Record {
    /// The record of a flow that begins.
    #[inline(always)]
    #[must_use]
    pub const fn new(vip: Address, port: u16, now: u64) -> Self {
        Self { vip, port: port as u64, state: Cell::new(0), seen: Cell::new(now), created: now }
    }

    /// The record that a map holds.
    #[must_use]
    pub const fn from_words(words: [u64; 6]) -> Self {
        Self {
            vip: Address([words[0], words[1]]),
            port: words[2],
            state: Cell::new(words[3]),
            seen: Cell::new(words[4]),
            created: words[5],
        }
    }

    /// The record as a map holds it.
    #[inline(always)]
    #[must_use]
    pub fn to_words(&self) -> [u64; 6] {
        [self.vip.0[0], self.vip.0[1], self.port, self.state.get(), self.seen.get(), self.created]
    }

    /// The VIP's port, in host order.
    #[inline(always)]
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port as u16
    }

    /// How far the flow has come.
    #[inline(always)]
    #[must_use]
    pub fn state(&self) -> RecordState {
        RecordState::of(self.state.get())
    }

    /// When its last packet came or left, in nanoseconds of the monotonic clock, coarse.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// Note a packet. Whoever notes one at the same time may win: nothing but a timeout depends on it.
    #[inline(always)]
    pub fn note(&self, now: u64, event: RecordEvent) {
        if self.seen.get() != now {
            self.seen.set(now);
        }
        let before = self.state.get();
        let after = event.after(before);
        if after != before {
            self.state.set(after);
        }
    }

    /// Whether the ports are another flow's by now.
    #[inline(always)]
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.state.get() == RecordState::Void as u64
    }

    /// Whether a packet of another flow may take the record's place: once it is expired, and at once by a SYN if it is
    /// closed.
    #[inline(always)]
    #[must_use]
    pub fn gives_way(&self, now: u64, protocol: u8, begins: bool) -> bool {
        begins && self.state.get() >= RecordState::Closed as u64 || self.is_expired(now, protocol)
    }

    /// Whether the flow has been silent for longer than its record is kept.
    #[inline(always)]
    #[must_use]
    pub fn is_expired(&self, now: u64, protocol: u8) -> bool {
        let limit = match self.state() {
            _ if protocol == UDP => RECORD_UDP_NS,
            RecordState::Established => RECORD_TCP_NS,
            _ => RECORD_SHORT_NS,
        };
        now.saturating_sub(self.seen()) > limit
    }
}

/// What a pod's address, protocol and port ([`super::ServiceKey`]) lead to: the index of a [`ReplyWord`], and of the
/// counter of its replies.
pub type ReplyId = u32;

/// How a pod's replies are rewritten, in one word that is swapped by one store: the index of a [`ReplyTarget`] from bit
/// 0, [`ReplyWord::RECORDED`] and [`ReplyWord::DIRECT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ReplyWord(pub u64);

impl ReplyWord {
    /// Only a recorded flow says which VIP a reply comes from.
    pub const RECORDED: u64 = 1 << 32;
    /// A reply without a record is the pod's own business with whoever it goes to.
    pub const DIRECT: u64 = 1 << 33;

    /// A word.
    #[must_use]
    pub const fn new(target: u32, recorded: bool, direct: bool) -> Self {
        let recorded = if recorded { Self::RECORDED } else { 0 };
        Self(target as u64 | recorded | if direct { Self::DIRECT } else { 0 })
    }

    /// The index of the target.
    #[inline(always)]
    #[must_use]
    pub const fn target(self) -> u32 {
        self.0 as u32
    }

    /// Whether records decide.
    #[inline(always)]
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        self.0 & Self::RECORDED != 0
    }

    /// Whether a reply without a record is left alone.
    #[inline(always)]
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.0 & Self::DIRECT != 0
    }
}

/// The VIP and port that a pod's replies come from. Written before a word points at it, and never changed then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReplyTarget {
    /// The VIP.
    pub vip: Address,
    /// Its port, in host order.
    pub port: u32,
    /// 1 for an IPv6 address, 0 for an IPv4 address or an entry that is not in use: for the agent that adopts the maps.
    pub ipv6: u32,
    /// Zero.
    pub reserved: u64,
}

impl ReplyTarget {
    /// The entry as four words, as the agent writes it.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 4] {
        let Self { vip, port, ipv6, reserved } = *self;
        [vip.0[0], vip.0[1], join(port, ipv6), reserved]
    }

    /// The entry that these words hold.
    #[must_use]
    pub const fn from_words(w: [u64; 4]) -> Self {
        let (port, ipv6) = split(w[2]);
        Self { vip: Address([w[0], w[1]]), port, ipv6, reserved: w[3] }
    }
}

/// The bit of an internal network's value in the trie: always set.
pub const INTERNAL_NETWORK: u32 = 1;
/// The bit of an internal network's value in the trie for a pod of this host.
pub const INTERNAL_OWN_POD: u32 = 2;
