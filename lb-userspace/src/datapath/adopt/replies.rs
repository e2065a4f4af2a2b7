//! Taking over what a node does with its pods' replies.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use lb_common::address::Family;
use lb_common::maps::{INTERNAL_NETWORK, INTERNAL_OWN_POD, ReplyId, ServiceKey};

use crate::datapath::store::Store;
use crate::datapath::tables::{Freed, Tables};
use crate::model::key_address;
use crate::plan::{ReplyKey, ReplySpec};

impl<S: Store> Tables<S> {
    /// Internal networks, and those with flags that say nothing are removed.
    pub(super) fn adopt_internal(&mut self, notes: &mut Vec<String>) -> Result<()> {
        for (prefix, flags) in self.store.internal()? {
            if flags & !INTERNAL_OWN_POD == INTERNAL_NETWORK {
                self.replies.internal.insert(prefix, flags & INTERNAL_OWN_POD != 0);
            } else {
                notes.push(format!("internal network {}/{} has flags {flags}: removed", prefix.address, prefix.length));
                self.store.set_internal(prefix, None)?;
            }
        }
        Ok(())
    }

    /// Replies; those that do not hold together are removed.
    pub(super) fn adopt_replies(&mut self, notes: &mut Vec<String>, now: Instant) -> Result<()> {
        for (key, id) in self.store.replies()? {
            let mut taken = Vec::new();
            match self.adopt_reply(&key, id, &mut taken) {
                Ok((reply, spec, target)) => {
                    self.replies.there.insert(reply, spec);
                    self.replies.numbers.insert(reply, (id, target));
                }
                Err(error) => {
                    notes.push(format!("replies of {} port {}: {error:#}: removed", key_address(&key), key.port()));
                    self.store.remove_reply(key)?;
                    // Packets may still follow what it was.
                    taken.into_iter().for_each(|thing| self.freed.add(now, thing));
                }
            }
        }
        Ok(())
    }

    fn adopt_reply(
        &mut self,
        key: &ServiceKey,
        id: ReplyId,
        taken: &mut Vec<Freed>,
    ) -> Result<(ReplyKey, ReplySpec, u32)> {
        ensure!(self.replies.ids.reserve(id), "id {id} is beyond the map or another pod's");
        taken.push(Freed::Reply(id));
        let word = self.store.reply_word(id);
        let index = word.target();
        ensure!(self.replies.targets.reserve(index), "target {index} is beyond the map or another pod's");
        taken.push(Freed::ReplyTarget(index));
        let target = self.store.reply_target(index);
        let Ok(port) = u16::try_from(target.port) else { bail!("its VIP has port {}", target.port) };
        let family = match target.ipv6 {
            0 => Family::V4,
            1 => Family::V6,
            other => bail!("its VIP has family {other}"),
        };
        ensure!(family == key.family(), "its VIP is of another family");
        let reply = ReplyKey { pod: key_address(key), protocol: key.protocol(), port: key.port() };
        let spec =
            ReplySpec { vip: target.vip.ip(family), port, recorded: word.is_recorded(), direct: word.is_direct() };
        Ok((reply, spec, index))
    }
}
