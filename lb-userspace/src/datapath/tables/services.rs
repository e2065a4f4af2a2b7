//! Services: how one is put into the maps and taken out of them.
//!
//! A service has two halves, each with a word of its own: its backends, for an edge, and its pods on this host, for a
//! node. A half that does not change is not written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, bail};
use lb_common::maps::{PodWord, ServiceId, ServiceKey, ServiceWord, VIP_MARK};

use super::{Freed, Installed, InstalledBackend, Tables, full};
use crate::datapath::store::Store;
use crate::model::key_address;
use crate::plan::ServiceSpec;

impl<S: Store> Tables<S> {
    pub(super) fn put_service(&mut self, key: ServiceKey, spec: &ServiceSpec, now: Instant) -> Result<()> {
        if spec.backends.len() > lb_common::maps::MAX_BACKENDS_PER_SERVICE {
            bail!("{} backends are more than the {} of a service", spec.backends.len(), 1 << 16);
        }
        let Some(seed) = self.seed else {
            bail!("the keys of the flow hash are not written yet: no table can be built")
        };
        if self.installed.get(&key).is_some_and(|there| there.spec.as_ref() == Some(spec)) {
            return Ok(());
        }
        let table = self.builder.table(seed, spec)?;
        let pod_table = self.builder.pod_table(seed, spec)?;
        let before = self.installed.get(&key).cloned();
        let backends = match &before {
            Some(there) if self.is_installed(there, spec, table.as_deref()) => None,
            _ => Some(self.write_backends(spec, table.as_deref(), before.as_ref())?),
        };
        let pods = match self.write_pods(spec, pod_table.as_deref(), before.as_ref(), now) {
            Ok(pods) => pods,
            Err(error) => {
                if let Some(backends) = backends {
                    self.discard_backends(backends, before.as_ref());
                }
                return Err(error);
            }
        };
        let mut new = match before.clone() {
            Some(there) => there,
            None => {
                let word = backends.as_ref().map_or(ServiceWord::EMPTY, |half| half.word);
                let pod_word = pods.word().unwrap_or(PodWord::HOST);
                match self.write_key(key, word, pod_word) {
                    Ok(id) => Installed::empty(id),
                    // No key led there: no packet can follow it.
                    Err(error) => {
                        if let Some(backends) = backends {
                            self.discard_backends(backends, None);
                        }
                        self.discard_pods(pods, None, now);
                        return Err(error);
                    }
                }
            }
        };
        if let Some(half) = backends {
            if before.is_some() {
                self.store.set_word(new.id, half.word);
            }
            (new.regions, new.backends) = (half.regions, half.backends);
            if let Some(there) = &before {
                self.retire_backends(there, &new.backends, now);
            }
        }
        let failure = self.show_pods(&key, spec, &mut new, pods, before.as_ref(), now);
        // With a device that could not be had, it is not what was asked for: it is tried again.
        new.spec = failure.is_none().then(|| spec.clone());
        self.installed.insert(key, new);
        failure.map_or(Ok(()), Err)
    }

    /// Put what a service's backends no longer use into quarantine.
    fn retire_backends(&mut self, there: &Installed, kept: &BTreeMap<IpAddr, InstalledBackend>, now: Instant) {
        if let Some(regions) = there.regions {
            self.freed.add(now, Freed::Slots(regions.slots));
            self.freed.add(now, Freed::Backends(regions.entries));
        }
        for (address, backend) in &there.backends {
            if !kept.contains_key(address) {
                self.freed.add(now, Freed::Counter(backend.counter));
            }
        }
    }

    /// Give a new service an id, and let packets find it.
    fn write_key(&mut self, key: ServiceKey, word: ServiceWord, pods: PodWord) -> Result<ServiceId> {
        let id = self.ids.take().ok_or_else(|| full("services", "services", self.store.capacity().services))?;
        self.store.set_word(id, word);
        if self.store.pod_word(id) != pods {
            self.store.set_pod_word(id, pods);
        }
        self.show_service(key, id).inspect_err(|_| {
            self.store.set_word(id, ServiceWord::EMPTY);
            if !pods.is_host() {
                self.store.set_pod_word(id, PodWord::HOST);
            }
            self.ids.give(id);
        })?;
        Ok(id)
    }

    /// Let packets find a new service: the prefilter's bit, the mark of its VIP, then its key.
    fn show_service(&mut self, key: ServiceKey, id: ServiceId) -> Result<()> {
        let first = !self.has_vip(&key);
        self.use_prefilter(key_address(&key));
        let shown = self.insert_keys(key, id, first);
        if shown.is_err() {
            self.unuse_prefilter(key_address(&key));
        }
        shown
    }

    fn insert_keys(&mut self, key: ServiceKey, id: ServiceId, first: bool) -> Result<()> {
        let vip = ServiceKey::vip(key.address(), key.family());
        if first {
            self.store.insert_service(vip, VIP_MARK)?;
        }
        self.store.insert_service(key, id).inspect_err(|_| {
            if first {
                // The mark alone does no harm, and whoever adopts the maps removes it: the first error says more.
                let _ = self.store.remove_service(vip);
            }
        })
    }

    /// Whether a service has the same VIP.
    pub(in crate::datapath) fn has_vip(&self, key: &ServiceKey) -> bool {
        // Keys are ordered by address first; the same words may be an IPv4 and an IPv6 address.
        let from = ServiceKey::from_words([key.to_words()[0], key.to_words()[1], 0]);
        let same = self.installed.range(from..).map(|(other, _)| other);
        same.take_while(|other| other.address() == key.address()).any(|other| other.family() == key.family())
    }

    pub(super) fn remove_service(&mut self, key: ServiceKey, now: Instant) -> Result<()> {
        if !self.installed.contains_key(&key) {
            return Ok(());
        }
        self.store.remove_service(key)?;
        let Some(there) = self.installed.remove(&key) else { return Ok(()) };
        let last = !self.has_vip(&key);
        let unmarked =
            if last { self.store.remove_service(ServiceKey::vip(key.address(), key.family())) } else { Ok(()) };
        self.unuse_prefilter(key_address(&key));
        // Its id first: the words at it are cleared before what they point at is given out again.
        self.freed.add(now, Freed::Service(there.id));
        self.retire_backends(&there, &BTreeMap::new(), now);
        self.retire_pods(&key, &there, &BTreeMap::new(), now);
        unmarked
    }
}
