//! The agent's answer to "how are you": one [`Status`] from everything that it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use lb_common::maps::{ABI_VERSION, Counter, ServiceKey};
use lb_common::table::{Algorithm as _, Rendezvous};
use lb_common::verdict::Reason;

use super::Agent;
use super::routes::cannot_send;
use crate::datapath::Datapath;
use crate::datapath::store::Store as _;
use crate::model::{self, Algorithm, key_address, protocol_name};
use crate::neighbours::{Resolution, Via};
use crate::plan::Step;
use crate::status::{BackendStatus, ConfigStatus, MapStatus, ServiceStatus, Status};

/// Counts of backends that are gone, by service: a service's total never goes down while the agent runs.
#[derive(Debug, Default)]
pub(super) struct Retired {
    services: BTreeMap<ServiceKey, Counter>,
}

impl Retired {
    /// Keep what a step took away.
    pub(super) fn keep(&mut self, step: &Step, leaving: Counter) {
        match step {
            Step::PutService(key, _) => {
                let total = self.services.entry(*key).or_default();
                total.packets += leaving.packets;
                total.bytes += leaving.bytes;
            }
            Step::RemoveService(key) => {
                self.services.remove(key);
            }
            _ => {}
        }
    }
}

/// The counts of the backends that a step is about to take from its service.
pub(super) fn leaving(step: &Step, datapath: &Datapath) -> Counter {
    let mut sum = Counter::default();
    let Step::PutService(key, spec) = step else { return sum };
    let Some(there) = datapath.tables.installed().get(key) else { return sum };
    for (_, backend) in there.backends.iter().filter(|(address, _)| !spec.backends.contains_key(address)) {
        let last = datapath.tables.store().counter(backend.counter).unwrap_or_default();
        sum.packets += last.packets;
        sum.bytes += last.bytes;
    }
    sum
}

impl Agent {
    /// Everything, now.
    pub(super) fn report(&self) -> Status {
        let services: Vec<_> = self.desired.services.iter().map(|(key, service)| self.service(key, service)).collect();
        let interfaces = self.interfaces.status();
        let mut problems: Vec<String> = self.config_error.iter().cloned().collect();
        problems.extend(interfaces.iter().filter_map(|interface| interface.problem.clone()));
        problems.extend(self.problems.iter().cloned());
        for service in &services {
            problems.extend(service.problem.iter().map(|problem| format!("{}: {problem}", service.label)));
        }
        // A backend of many services is one thing to look at.
        let unreachable: BTreeSet<_> = services
            .iter()
            .flat_map(|service| &service.backends)
            .filter_map(|backend| {
                backend.problem.as_ref().map(|problem| format!("backend {}: {problem}", backend.address))
            })
            .collect();
        problems.extend(unreachable);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI_VERSION,
            pid: std::process::id(),
            started: seconds(self.started),
            pin_path: self.config.pin_path.clone(),
            ready: self.applied.is_some() && self.failed.is_empty() && !self.interfaces.has_problem(),
            problems,
            config: ConfigStatus {
                file: self.file.clone(),
                generation: self.generation,
                applied: self.applied.map(seconds).unwrap_or_default(),
                errors: self.config_errors,
                error: self.config_error.clone(),
                hash_seed: self.config.hash_seed,
            },
            interfaces,
            reasons: self.reasons(&services),
            services,
            maps: self.maps(),
            tables_built: self.datapath.tables.fill().tables_built,
        }
    }

    fn service(&self, key: &ServiceKey, service: &model::Service) -> ServiceStatus {
        let there = self.datapath.tables.installed().get(key);
        let backends: Vec<_> =
            service.backends.iter().map(|(address, backend)| self.backend(key, *address, backend)).collect();
        let retired = self.retired.services.get(key).copied().unwrap_or_default();
        let algorithm = match service.algorithm {
            Algorithm::Rendezvous => format!("{} v{}", Rendezvous.name(), Rendezvous.version()),
        };
        ServiceStatus {
            label: service.label(key),
            address: Some(key_address(key)),
            protocol: protocol_name(key.protocol()).to_owned(),
            port: key.port(),
            algorithm,
            slots: service.slots,
            source_affinity: service.source_affinity,
            installed: there.is_some(),
            problem: self.failed.get(key).cloned(),
            packets: retired.packets + backends.iter().map(|backend| backend.packets).sum::<u64>(),
            bytes: retired.bytes + backends.iter().map(|backend| backend.bytes).sum::<u64>(),
            backends,
        }
    }

    fn backend(&self, key: &ServiceKey, address: std::net::IpAddr, backend: &model::Backend) -> BackendStatus {
        let there = self.datapath.tables.installed().get(key).and_then(|there| there.backends.get(&address));
        let counter = there.and_then(|there| self.datapath.tables.store().counter(there.counter).ok());
        let counter = counter.unwrap_or_default();
        let snapshot = self.snapshots.borrow();
        // A host that is no edge sends to no backend.
        let path = if self.roles().edge { snapshot.paths.get(&address) } else { None };
        let unsent = path.and_then(|path| path.as_ref().ok());
        let unsent = unsent.and_then(|path| cannot_send(&path.via, &snapshot, &self.interfaces.edges(&snapshot)));
        let (via, problem) = match unsent {
            Some(why) => (None, Some(format!("{address} {why}"))),
            None => way(path),
        };
        BackendStatus {
            address,
            state: if backend.draining { "draining" } else { "ready" }.to_owned(),
            weight: backend.rank,
            agent: backend.agent,
            slots: there.map_or(0, |there| there.slots),
            packets: counter.packets,
            bytes: counter.bytes,
            reachable: via.is_some(),
            via,
            problem,
        }
    }

    fn reasons(&self, services: &[ServiceStatus]) -> BTreeMap<String, u64> {
        let counted = |reason: Reason| self.datapath.tables.store().reason(reason).unwrap_or_default();
        let all = Reason::ALL.iter().filter(|reason| !matches!(reason, Reason::NotOurs | Reason::Forwarded));
        let mut reasons: BTreeMap<_, _> = all.map(|reason| (reason.name().to_owned(), counted(*reason))).collect();
        // Every packet that goes to a backend is counted there; those with reasons of their own are known.
        // A packet that no device took had been counted for its backend before.
        let others =
            [Reason::IcmpErrorForwarded, Reason::FragmentForwarded, Reason::DeliveredLocally, Reason::NoDevice];
        let others: u64 = others.into_iter().map(counted).sum();
        let sent: u64 = services.iter().map(|service| service.packets).sum();
        reasons.insert(Reason::Forwarded.name().to_owned(), sent.saturating_sub(others));
        reasons
    }

    fn maps(&self) -> Vec<MapStatus> {
        let fill = self.datapath.tables.fill();
        let capacity = self.datapath.tables.store().capacity();
        let map = |name: &str, used, capacity| MapStatus { name: name.to_owned(), used, capacity };
        vec![
            map("services", fill.services, u64::from(capacity.services)),
            map("backends", fill.backends, 1 << capacity.log2_backends),
            map("slots", fill.slots, 1 << capacity.log2_slots),
            map("next_hops", fill.next_hops, u64::from(capacity.next_hops)),
            map("pods", fill.pods, 1 << capacity.log2_pods),
            map("pod_slots", fill.pod_slots, 1 << capacity.log2_pod_cells),
            map("pod_devices", fill.pod_devices, u64::from(capacity.pod_devices - 1)),
            map("replies", fill.replies, u64::from(capacity.replies)),
        ]
    }
}

/// The way to a backend in words, or why there is none.
fn way(path: Option<&Resolution>) -> (Option<String>, Option<String>) {
    match path {
        None => (None, None),
        Some(Err(unreachable)) => (None, Some(unreachable.to_string())),
        Some(Ok(path)) => match &path.via {
            Via::Local => (Some("this host".to_owned()), None),
            Via::Device { name, destination_mac: mac, mtu, gateway, .. } => {
                let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                let gateway = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
                (Some(format!("{name}{gateway} {mac} mtu {mtu}")), None)
            }
        },
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}
