//! What a node's programs read beside the services: pods, the devices that lead to them, and their replies.

use lb_common::maps::{Pod, PodCell, PodWord, ReplyId, ReplyTarget, ReplyWord, ServiceId, ServiceKey};

use crate::model::Prefix;

/// The part of a [`super::Store`] that is for pods. Indices are within the [`super::Capacity`], too.
pub trait PodStore {
    /// The clock that programs go by, in nanoseconds: CLOCK_MONOTONIC.
    fn clock(&self) -> u64;

    /// What a node does with a service's packets.
    fn pod_word(&self, id: ServiceId) -> PodWord;
    /// Swap that; all that was written before is seen by whoever sees the new word.
    fn set_pod_word(&mut self, id: ServiceId, word: PodWord);

    /// Read slots of a node's tables.
    fn read_pod_cells(&self, base: u64, cells: &mut [PodCell]);
    /// Write slots that no packet uses.
    fn write_pod_cells(&mut self, base: u64, cells: &[PodCell]);
    /// Change a slot that packets may be using.
    fn set_pod_cell(&mut self, index: u64, cell: PodCell);

    /// A pod's entry.
    fn pod(&self, index: u32) -> Pod;
    /// Write a pod's entry that no packet uses.
    fn write_pod(&mut self, index: u32, pod: &Pod);
    /// Change device and namespace of a pod that packets may be using.
    fn set_pod_device(&mut self, index: u32, device: u32, namespace: u32);
    /// Set a pod's counter to zero.
    ///
    /// # Errors
    /// The map cannot be written.
    fn reset_pod_counter(&mut self, counter: u32) -> anyhow::Result<()>;

    /// The index of the interface that a device's number stands for; `None` while it stands for none. The kernel forgets
    /// an interface that is gone by itself (kernel 4.14).
    fn pod_device(&self, number: u32) -> Option<u32>;
    /// Let a number stand for an interface.
    ///
    /// # Errors
    /// The interface is gone.
    fn write_pod_device(&mut self, number: u32, interface: u32) -> anyhow::Result<()>;

    /// The internal networks with their flags ([`lb_common::maps::INTERNAL_NETWORK`]).
    ///
    /// # Errors
    /// The map cannot be read.
    fn internal(&self) -> anyhow::Result<Vec<(Prefix, u32)>>;
    /// Let a prefix be an internal network with these flags, or none any more.
    ///
    /// # Errors
    /// The map is full, or the prefix is not in it.
    fn set_internal(&mut self, prefix: Prefix, flags: Option<u32>) -> anyhow::Result<()>;

    /// What the MSS of a SYN-ACK is lowered to in IPv4 and IPv6, in bytes; 0 for never.
    ///
    /// # Errors
    /// The map cannot be read.
    fn mss(&self) -> anyhow::Result<[u32; 2]>;
    /// Write that.
    ///
    /// # Errors
    /// The map cannot be written.
    fn set_mss(&mut self, mss: [u32; 2]) -> anyhow::Result<()>;

    /// Every pod, protocol and port whose replies are rewritten, and its id.
    ///
    /// # Errors
    /// The map cannot be read.
    fn replies(&self) -> anyhow::Result<Vec<(ServiceKey, ReplyId)>>;
    /// Let a new pod, protocol and port lead to an id.
    ///
    /// # Errors
    /// The map is full.
    fn insert_reply(&mut self, key: ServiceKey, id: ReplyId) -> anyhow::Result<()>;
    /// Forget a pod, protocol and port.
    ///
    /// # Errors
    /// There is none.
    fn remove_reply(&mut self, key: ServiceKey) -> anyhow::Result<()>;
    /// How replies are rewritten.
    fn reply_word(&self, id: ReplyId) -> ReplyWord;
    /// Swap that; all that was written before is seen by whoever sees the new word.
    fn set_reply_word(&mut self, id: ReplyId, word: ReplyWord);
    /// Where replies come from.
    fn reply_target(&self, index: u32) -> ReplyTarget;
    /// Write a target that no packet uses.
    fn write_reply_target(&mut self, index: u32, target: &ReplyTarget);
    /// Set the counter of an id to zero.
    ///
    /// # Errors
    /// The map cannot be written.
    fn reset_reply_counter(&mut self, id: ReplyId) -> anyhow::Result<()>;
}
