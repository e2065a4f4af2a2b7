//! The elementary reads and writes that the tables are made with: BPF maps in the kernel, collections on the host.

use lb_common::flow::HashKeys;
use lb_common::maps::{Backend, NextHop, ServiceId, ServiceKey, ServiceWord};
use std::net::IpAddr;

use crate::model::Prefix;

mod pods;

pub use pods::PodStore;

/// How many of everything fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// VIP:port pairs.
    pub services: u32,
    /// log2 of the number of entries for backends.
    pub log2_backends: u32,
    /// log2 of the number of slots.
    pub log2_slots: u32,
    /// Next hops, the empty one included.
    pub next_hops: u32,
    /// Backends' counters.
    pub counters: u32,
    /// log2 of the number of entries for pods.
    pub log2_pods: u32,
    /// log2 of the number of slots of nodes' tables.
    pub log2_pod_cells: u32,
    /// Pods' counters.
    pub pod_counters: u32,
    /// Devices that lead to pods, number 0, which is none, included.
    pub pod_devices: u32,
    /// Pairs of a pod and a port that replies come from, and targets of theirs.
    pub replies: u32,
}

/// A place for everything that programs read.
///
/// Indices are within the [`Capacity`]; whoever calls has seen to it.
pub trait Store: PodStore {
    /// How many of everything fit.
    fn capacity(&self) -> Capacity;

    /// A word of the prefilter.
    fn prefilter(&self, word: u32) -> u64;
    /// Write a word of the prefilter.
    fn set_prefilter(&mut self, word: u32, value: u64);

    /// Every key and its id.
    ///
    /// # Errors
    /// The map cannot be read.
    fn services(&self) -> anyhow::Result<Vec<(ServiceKey, ServiceId)>>;
    /// Let a new key lead to an id.
    ///
    /// # Errors
    /// The map is full.
    fn insert_service(&mut self, key: ServiceKey, id: ServiceId) -> anyhow::Result<()>;
    /// Forget a key.
    ///
    /// # Errors
    /// There is none.
    fn remove_service(&mut self, key: ServiceKey) -> anyhow::Result<()>;

    /// A service's word.
    fn word(&self, id: ServiceId) -> ServiceWord;
    /// Swap a service's word; all that was written before is seen by whoever sees the new word.
    fn set_word(&mut self, id: ServiceId, word: ServiceWord);

    /// Read slots.
    fn read_slots(&self, base: u64, slots: &mut [u16]);
    /// Write slots; `base` and their number are multiples of 64.
    fn write_slots(&mut self, base: u64, slots: &[u16]);

    /// A backend's entry.
    fn backend(&self, index: u32) -> Backend;
    /// Write a backend's entry that no packet uses.
    fn write_backend(&mut self, index: u32, backend: &Backend);
    /// Change the next hop of a backend that packets may be using.
    fn set_backend_next_hop(&mut self, index: u32, next_hop: u32);

    /// A next hop.
    fn next_hop(&self, index: u32) -> NextHop;
    /// Write a next hop that no packet uses, and let packets leave by its device.
    ///
    /// # Errors
    /// The device is gone, or the map of devices is full.
    fn write_next_hop(&mut self, index: u32, next_hop: &NextHop) -> anyhow::Result<()>;

    /// Keys of the flow hash.
    ///
    /// # Errors
    /// The map cannot be read.
    fn hash_keys(&self) -> anyhow::Result<HashKeys>;
    /// Write the keys of the flow hash.
    ///
    /// # Errors
    /// The map cannot be written.
    fn set_hash_keys(&mut self, keys: &HashKeys) -> anyhow::Result<()>;

    /// Addresses that tunnels may end at.
    ///
    /// # Errors
    /// The map cannot be read.
    fn tunnel_addresses(&self) -> anyhow::Result<Vec<IpAddr>>;
    /// Accept (or no longer accept) tunnels at an address.
    ///
    /// # Errors
    /// The map is full, or the address is not in it.
    fn set_tunnel_address(&mut self, address: IpAddr, present: bool) -> anyhow::Result<()>;

    /// Outer sources that are accepted.
    ///
    /// # Errors
    /// The map cannot be read.
    fn trusted(&self) -> anyhow::Result<Vec<Prefix>>;
    /// Accept (or refuse) an outer source.
    ///
    /// # Errors
    /// The map is full, or the prefix is not in it.
    fn set_trusted(&mut self, prefix: Prefix, present: bool) -> anyhow::Result<()>;

    /// Set a backend's counter to zero.
    ///
    /// # Errors
    /// The map cannot be written.
    fn reset_counter(&mut self, counter: u32) -> anyhow::Result<()>;
}
