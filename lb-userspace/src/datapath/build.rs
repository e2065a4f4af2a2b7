//! Building tables: the same for every service with the same backends, so that a service with many ports costs one.

use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use lb_common::address::family_of;
use lb_common::flow::mix;
use lb_common::table::rendezvous::Rendezvous;
use lb_common::table::{Algorithm as _, Member, identity};

use crate::model::{Algorithm, PodKey};
use crate::plan::ServiceSpec;

/// What a table depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    seed: u64,
    algorithm: Algorithm,
    slots: u32,
    members: Vec<(u64, u32, u32)>,
}

/// Most slots of a node's table: enough for 10 for each of a hundred pods.
const MAX_POD_SLOTS: u32 = 1024;
/// What the seed of nodes' tables differs by from the edges': an arbitrary number.
const POD_SEED: u64 = 0x706f_6473;

/// A pod's identity: as a backend's, and its port.
fn pod_identity(pod: &PodKey) -> u64 {
    mix(identity(pod.address.into(), family_of(&pod.address)) ^ u64::from(pod.port))
}

/// Tables, the last ones kept.
#[derive(Debug, Default)]
pub(super) struct Builder {
    recent: HashMap<Key, Rc<[u16]>>,
    recent_slots: usize,
    built: u64,
}

/// How many slots of tables are kept: 2 bytes each.
const MAX_RECENT_SLOTS: usize = 1 << 20;

impl Builder {
    /// How many tables were built, not counting those taken from the recent ones.
    pub(super) const fn built(&self) -> u64 {
        self.built
    }

    /// The table of a service; `None` if no backend of it may own a slot.
    pub(super) fn table(&mut self, seed: u64, spec: &ServiceSpec) -> Result<Option<Rc<[u16]>>> {
        if spec.backends.values().all(|backend| backend.share == 0) {
            return Ok(None);
        }
        let members = spec.backends.iter();
        let members = members.map(|(a, b)| (identity((*a).into(), family_of(a)), b.rank, b.share)).collect();
        self.build(Key { seed, algorithm: spec.algorithm, slots: spec.slots, members })
    }

    /// The node's table of a service; `None` if no pod of it on this host may own a slot. Its size never follows the
    /// number of pods, and its seed is another than that of the edges': their owners say nothing of its own.
    pub(super) fn pod_table(&mut self, seed: u64, spec: &ServiceSpec) -> Result<Option<Rc<[u16]>>> {
        let Some(pods) = spec.pods.as_ref().filter(|pods| pods.values().any(|pod| pod.share > 0)) else {
            return Ok(None);
        };
        let members = pods.iter();
        let members = members.map(|(key, pod)| (pod_identity(key), pod.rank, pod.share)).collect();
        let slots = spec.slots.min(MAX_POD_SLOTS);
        self.build(Key { seed: mix(seed.wrapping_add(POD_SEED)), algorithm: spec.algorithm, slots, members })
    }

    fn build(&mut self, key: Key) -> Result<Option<Rc<[u16]>>> {
        if let Some(table) = self.recent.get(&key) {
            return Ok(Some(Rc::clone(table)));
        }
        let members = key.members.iter().map(|&(identity, rank, share)| Member { identity, rank, share });
        let members: Vec<_> = members.collect();
        let mut table = vec![0; key.slots as usize];
        match key.algorithm {
            Algorithm::Rendezvous => Rendezvous.build(key.seed, &members, &mut table),
        }
        .context("building the table")?;
        self.built += 1;
        let table: Rc<[u16]> = table.into();
        if self.recent_slots + table.len() > MAX_RECENT_SLOTS {
            self.recent.clear();
            self.recent_slots = 0;
        }
        self.recent_slots += table.len();
        self.recent.insert(key, Rc::clone(&table));
        Ok(Some(table))
    }
}
