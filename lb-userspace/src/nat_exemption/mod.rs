//! `node.natExemption`: a table of our own in nftables that keeps pods' replies out of the node's NAT.
//!
//! A pod's reply gets the VIP on the way out of the node, behind all of netfilter. To conntrack it belongs to the flow
//! that the client began, which no NAT rule changes. Where conntrack has forgotten that flow, the reply begins a new one,
//! from the pod to the client, and the rule by which CNIs hide pods (`MASQUERADE`) gives it the node's address: the
//! client gets an answer from a stranger.
//!
//! The table maps each reply's source to itself, in a NAT chain that comes before those of others. A flow that has a
//! mapping of its source, if to what it is, is not given another (nf_nat_inet_fn of the kernel asks nf_nat_initialized
//! after each chain); just accepting it there would leave it to the next chain. Chains of iptables, old and new, are asked
//! in the same order: all NAT chains hang on one hook and are sorted by priority (kernel 4.18).
//!
//! Not tracking replies at all (`notrack`) would do that too, and harm: conntrack would see half of every flow, call the
//! client's segments invalid and never undo the NAT of a node port that leads to the same pod; and policies that let
//! established flows alone out of a pod would drop every reply, not only the forgotten ones.
//!
//! The table stays when the agent ends, as the datapath does, and goes with `beeline detach`.

mod netlink;
mod nft;
mod ruleset;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::model::Prefix;
use crate::plan::{ReplyKey, ReplySpec};

/// The table of one agent.
#[derive(Debug)]
pub struct NatExemption {
    table: String,
    state: State,
}

/// What is known of the table in the kernel.
#[derive(Debug)]
enum State {
    /// Nothing: an earlier agent may have left one.
    Unknown,
    Absent,
    Applied {
        rules: String,
        /// How nft lists it.
        listing: String,
        /// The ruleset's generation at which it was last seen to be so.
        generation: u32,
    },
}

impl NatExemption {
    /// The table of the agent that pins its maps at `pin_path`; nothing is changed yet.
    #[must_use]
    pub fn new(pin_path: &Path) -> Self {
        Self { table: ruleset::table_name(pin_path), state: State::Unknown }
    }

    /// Name of the table, of nftables' family `inet`.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Bring the table to what these replies need: there is none where it is not `enabled` or they need nothing. Asks the
    /// kernel only where something has changed since the last time, or [`NatExemption::lost`] found it changed.
    ///
    /// # Errors
    /// nft is missing or refuses; what was there before is still there.
    pub fn apply(
        &mut self,
        replies: &BTreeMap<ReplyKey, ReplySpec>,
        internal: &BTreeMap<Prefix, bool>,
        enabled: bool,
    ) -> Result<()> {
        let rules = if enabled { ruleset::rules(&self.table, replies, internal) } else { None };
        match (rules, &self.state) {
            (None, State::Absent) => Ok(()),
            (None, _) => self.remove().map(drop),
            (Some(wanted), State::Applied { rules, .. }) if wanted == *rules => Ok(()),
            (Some(wanted), _) => self.replace(wanted).context("node.natExemption"),
        }
    }

    fn replace(&mut self, rules: String) -> Result<()> {
        self.state = State::Unknown;
        nft::load(&rules)?;
        // Before the listing: a change between the two is then looked at the next time.
        let generation = netlink::generation()?;
        let listing = nft::list(&self.table)?;
        tracing::info!(table = self.table, "nftables keeps pods' replies out of NAT");
        self.state = State::Applied { rules, listing, generation };
        Ok(())
    }

    /// Whether somebody has changed or removed the table since it was applied; the next [`NatExemption::apply`] then
    /// makes it anew. Cheap: nft is asked only where the ruleset of this network namespace has changed at all.
    pub fn lost(&mut self) -> bool {
        let State::Applied { listing, generation, .. } = &mut self.state else { return false };
        let now = netlink::generation().ok();
        if now == Some(*generation) {
            return false;
        }
        if nft::list(&self.table).is_ok_and(|there| there == *listing) {
            *generation = now.unwrap_or(*generation);
            return false;
        }
        tracing::warn!(table = self.table, "somebody changed or removed the table of nftables; it is made anew");
        self.state = State::Unknown;
        true
    }

    /// Remove the table; says whether there was one. nft is not needed where there is none.
    ///
    /// # Errors
    /// nft is missing or refuses.
    pub fn remove(&mut self) -> Result<bool> {
        let there = netlink::has_table(&self.table).context("asking for the table of node.natExemption")?;
        if there {
            nft::load(&ruleset::removal(&self.table)).context("removing the table of node.natExemption")?;
            tracing::info!(table = self.table, "removed the table of nftables");
        }
        self.state = State::Absent;
        Ok(there)
    }
}
