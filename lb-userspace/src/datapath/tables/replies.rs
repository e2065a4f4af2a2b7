//! What nodes do with their pods' replies: where they come from, what is never rewritten, and SYN-ACKs' MSS.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use lb_common::address::family_of;
use lb_common::maps::{INTERNAL_NETWORK, INTERNAL_OWN_POD, ReplyId, ReplyTarget, ReplyWord, ServiceKey};

use super::{Freed, Tables, full};
use crate::datapath::quarantine::Numbers;
use crate::datapath::store::{Capacity, Store};
use crate::model::Prefix;
use crate::plan::{ReplyKey, ReplySpec};

/// What is known of the replies' maps.
#[derive(Debug)]
pub(in crate::datapath) struct Replies {
    pub(in crate::datapath) there: BTreeMap<ReplyKey, ReplySpec>,
    /// Each one's id and target.
    pub(in crate::datapath) numbers: BTreeMap<ReplyKey, (ReplyId, u32)>,
    pub(in crate::datapath) ids: Numbers,
    pub(in crate::datapath) targets: Numbers,
    pub(in crate::datapath) internal: BTreeMap<Prefix, bool>,
    /// `None` while it is not known.
    pub(super) mss: Option<[u16; 2]>,
}

impl Replies {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            there: BTreeMap::new(),
            numbers: BTreeMap::new(),
            ids: Numbers::new(0, capacity.replies),
            targets: Numbers::new(0, capacity.replies),
            internal: BTreeMap::new(),
            mss: None,
        }
    }

    pub(super) fn take_back(&mut self, freed: Freed) {
        match freed {
            Freed::Reply(id) => self.ids.give(id),
            Freed::ReplyTarget(target) => self.targets.give(target),
            _ => {}
        }
    }
}

impl<S: Store> Tables<S> {
    /// The id of a pod's replies, which is their counter's index; `None` if they are not rewritten.
    #[must_use]
    pub fn reply_id(&self, key: &ReplyKey) -> Option<ReplyId> {
        self.replies.numbers.get(key).map(|(id, _)| *id)
    }

    pub(super) fn put_reply(&mut self, key: ReplyKey, spec: ReplySpec, now: Instant) -> Result<()> {
        match self.replies.numbers.get(&key).copied() {
            Some((id, target)) => self.change_reply(key, spec, id, target, now)?,
            None => self.add_reply(key, spec)?,
        }
        self.replies.there.insert(key, spec);
        Ok(())
    }

    fn change_reply(&mut self, key: ReplyKey, spec: ReplySpec, id: ReplyId, old: u32, now: Instant) -> Result<()> {
        let same = self.store.reply_target(old) == target_of(&spec);
        let target = if same { old } else { self.write_target(&spec)? };
        let word = word_of(&spec, target);
        if self.store.reply_word(id) != word {
            self.store.set_reply_word(id, word);
        }
        if !same {
            self.freed.add(now, Freed::ReplyTarget(old));
            self.replies.numbers.insert(key, (id, target));
        }
        Ok(())
    }

    fn add_reply(&mut self, key: ReplyKey, spec: ReplySpec) -> Result<()> {
        let none = || full("pods' replies", "services", self.store.capacity().replies);
        let id = self.replies.ids.take().ok_or_else(none)?;
        let shown = self.show_reply(&key, &spec, id).inspect_err(|_| self.replies.ids.give(id));
        self.replies.numbers.insert(key, (id, shown?));
        Ok(())
    }

    /// Write all, then the key that leads there; the target.
    fn show_reply(&mut self, key: &ReplyKey, spec: &ReplySpec, id: ReplyId) -> Result<u32> {
        self.store.reset_reply_counter(id)?;
        let target = self.write_target(spec)?;
        self.store.set_reply_word(id, word_of(spec, target));
        // No key led there: no packet can follow it.
        self.store.insert_reply(map_key(key), id).inspect_err(|_| self.replies.targets.give(target))?;
        Ok(target)
    }

    fn write_target(&mut self, spec: &ReplySpec) -> Result<u32> {
        let none = || full("VIPs of pods' replies", "services", self.store.capacity().replies);
        let target = self.replies.targets.take().ok_or_else(none)?;
        self.store.write_reply_target(target, &target_of(spec));
        Ok(target)
    }

    pub(super) fn remove_reply(&mut self, key: ReplyKey, now: Instant) -> Result<()> {
        let Some((id, target)) = self.replies.numbers.get(&key).copied() else { return Ok(()) };
        self.store.remove_reply(map_key(&key))?;
        self.replies.numbers.remove(&key);
        self.replies.there.remove(&key);
        self.freed.add(now, Freed::Reply(id));
        self.freed.add(now, Freed::ReplyTarget(target));
        Ok(())
    }

    pub(super) fn add_internal(&mut self, prefix: Prefix, own_pod: bool) -> Result<()> {
        self.store.set_internal(prefix, Some(INTERNAL_NETWORK | if own_pod { INTERNAL_OWN_POD } else { 0 }))?;
        self.replies.internal.insert(prefix, own_pod);
        Ok(())
    }

    pub(super) fn remove_internal(&mut self, prefix: Prefix) -> Result<()> {
        self.store.set_internal(prefix, None)?;
        self.replies.internal.remove(&prefix);
        Ok(())
    }

    pub(super) fn set_mss(&mut self, mss: [u16; 2]) -> Result<()> {
        let wanted = mss.map(u32::from);
        if self.store.mss()? != wanted {
            self.store.set_mss(wanted)?;
        }
        self.replies.mss = Some(mss);
        Ok(())
    }
}

/// The key that programs look for.
pub(in crate::datapath) fn map_key(key: &ReplyKey) -> ServiceKey {
    ServiceKey::new(key.pod.into(), family_of(&key.pod), key.protocol, key.port)
}

fn target_of(spec: &ReplySpec) -> ReplyTarget {
    let (vip, port, ipv6) = (spec.vip.into(), u32::from(spec.port), u32::from(spec.vip.is_ipv6()));
    ReplyTarget { vip, port, ipv6, reserved: 0 }
}

fn word_of(spec: &ReplySpec, target: u32) -> ReplyWord {
    ReplyWord::new(target, spec.recorded, spec.direct)
}
