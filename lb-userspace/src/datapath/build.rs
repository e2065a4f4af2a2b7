//! Building tables: the same for every service with the same backends, so that a service with many ports costs one.

use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use lb_common::address::family_of;
use lb_common::table::rendezvous::Rendezvous;
use lb_common::table::{Algorithm as _, Member, identity};

use crate::model::Algorithm;
use crate::plan::ServiceSpec;

/// What a table depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    seed: u64,
    algorithm: Algorithm,
    slots: u32,
    members: Vec<(u64, u32, u32)>,
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
        let key = Key { seed, algorithm: spec.algorithm, slots: spec.slots, members };
        if let Some(table) = self.recent.get(&key) {
            return Ok(Some(Rc::clone(table)));
        }
        let members = key.members.iter().map(|&(identity, rank, share)| Member { identity, rank, share });
        let members: Vec<_> = members.collect();
        let mut table = vec![0; spec.slots as usize];
        match spec.algorithm {
            Algorithm::Rendezvous => Rendezvous.build(seed, &members, &mut table),
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
