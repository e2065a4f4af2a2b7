//! Next hops: each is written once, however many backends have it, and one write turns an entry to another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::Result;
use lb_common::address::Address;
use lb_common::maps::NextHop;

use super::{Freed, Tables, full};
use crate::datapath::store::Store;
use crate::plan::BackendSpec;

impl<S: Store> Tables<S> {
    pub(in crate::datapath) fn hop_number(&self, address: &IpAddr) -> u32 {
        let hop = self.next_hops.get(address);
        hop.and_then(|hop| self.hop_numbers.get(&hop.to_words())).map_or(0, |(number, _)| *number)
    }

    /// The next hop that an entry of a backend should have.
    pub(super) fn hop_for(&self, address: &IpAddr, spec: &BackendSpec) -> u32 {
        if leaves(&spec.source) { self.hop_number(address) } else { 0 }
    }

    pub(super) fn set_next_hops(&mut self, changes: &BTreeMap<IpAddr, Option<NextHop>>, now: Instant) -> Result<()> {
        let mut failure = None;
        let mut numbers = BTreeMap::new();
        let mut given = Vec::new();
        for (address, change) in changes {
            let number = match change {
                Some(hop) => match self.take_hop(hop) {
                    Ok(number) => number,
                    Err(error) => {
                        failure = Some(error);
                        continue;
                    }
                },
                None => 0,
            };
            numbers.insert(*address, number);
            given.extend(match change {
                Some(hop) => self.next_hops.insert(*address, *hop),
                None => self.next_hops.remove(address),
            });
        }
        self.point_backends(&numbers);
        for hop in given {
            self.give_hop(&hop, now);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Forget the next hops of backends that are gone. One that packets are still sent by, because a service could not
    /// be changed, stays.
    pub(super) fn forget_next_hops(&mut self, addresses: &BTreeSet<IpAddr>, now: Instant) -> Result<()> {
        let backends = self.installed.values().flat_map(|there| &there.backends);
        let used: BTreeSet<_> = backends
            .filter(|(address, there)| there.next_hop != 0 && addresses.contains(address))
            .map(|(a, _)| *a)
            .collect();
        let gone = addresses.difference(&used).map(|address| (*address, None));
        self.set_next_hops(&gone.collect(), now)
    }

    /// Let every entry of these backends use these next hops.
    pub(in crate::datapath) fn point_backends(&mut self, numbers: &BTreeMap<IpAddr, u32>) {
        if numbers.is_empty() {
            return;
        }
        for there in self.installed.values_mut() {
            let Some(regions) = there.regions else { continue };
            for (index, (address, backend)) in (regions.entries.base..).zip(&mut there.backends) {
                let Some(number) = numbers.get(address) else { continue };
                let number = if leaves(&self.store.backend(index).source) { *number } else { 0 };
                if backend.next_hop != number {
                    backend.next_hop = number;
                    self.store.set_backend_next_hop(index, number);
                }
            }
        }
    }

    fn take_hop(&mut self, hop: &NextHop) -> Result<u32> {
        if let Some((number, users)) = self.hop_numbers.get_mut(&hop.to_words()) {
            *users += 1;
            return Ok(*number);
        }
        let number = self.hops.take().ok_or_else(|| full("next hops", "backends", self.store.capacity().next_hops))?;
        self.store.write_next_hop(number, hop).inspect_err(|_| self.hops.give(number))?;
        self.hop_numbers.insert(hop.to_words(), (number, 1));
        Ok(number)
    }

    fn give_hop(&mut self, hop: &NextHop, now: Instant) {
        let words = hop.to_words();
        let Some((number, users)) = self.hop_numbers.get_mut(&words) else { return };
        *users -= 1;
        if *users == 0 {
            self.freed.add(now, Freed::NextHop(*number));
            self.hop_numbers.remove(&words);
        }
    }
}

/// Whether packets may leave with this outer source. One that is not known yet (or not needed, to this host itself) comes
/// with new entries; until then the old ones must not send packets from nowhere.
fn leaves(source: &Address) -> bool {
    *source != Address::default()
}
