//! The agent's answer to "how are you": one [`Status`] from everything that it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use lb_common::maps::{ABI_VERSION, Counter, POD_RECORD, ServiceKey};
use lb_common::table::{Algorithm as _, Rendezvous};
use lb_common::verdict::Reason;

use super::Agent;
use super::routes::{cannot_send, own_addresses};
use crate::datapath::Datapath;
use crate::datapath::object::INTERNAL_NETWORKS;
use crate::datapath::store::{PodStore as _, Store as _};
use crate::datapath::tables::Installed;
use crate::model::{self, Algorithm, Delivery, PodKey, key_address, protocol_name};
use crate::neighbours::{Resolution, Snapshot, Via};
use crate::plan::Step;
use crate::status::{BackendStatus, ConfigStatus, MapStatus, PodStatus, ReplyStatus, ServiceStatus, Status};

/// Counts of backends and pods that are gone, by service: a service's totals never go down while the agent runs.
#[derive(Debug, Default)]
pub(super) struct Retired {
    services: BTreeMap<ServiceKey, Leaving>,
}

/// What a service's backends and its pods had counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leaving {
    backends: Counter,
    pods: Counter,
}

fn add(sum: &mut Counter, more: Counter) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

impl Retired {
    /// Keep what a step took away.
    pub(super) fn keep(&mut self, step: &Step, leaving: Leaving) {
        match step {
            Step::PutService(key, _) => {
                let total = self.services.entry(*key).or_default();
                add(&mut total.backends, leaving.backends);
                add(&mut total.pods, leaving.pods);
            }
            Step::RemoveService(key) => {
                self.services.remove(key);
            }
            _ => {}
        }
    }
}

/// The counts of the backends and pods that a step is about to take from its service.
pub(super) fn leaving(step: &Step, datapath: &Datapath) -> Leaving {
    let mut sum = Leaving::default();
    let Step::PutService(key, spec) = step else { return sum };
    let Some(there) = datapath.tables.installed().get(key) else { return sum };
    let store = datapath.tables.store();
    for (_, backend) in there.backends.iter().filter(|(address, _)| !spec.backends.contains_key(address)) {
        add(&mut sum.backends, store.counter(backend.counter).unwrap_or_default());
    }
    let stays = |pod| spec.pods.as_ref().is_some_and(|pods| pods.contains_key(pod));
    // Without a pod that may own a slot there is no table, and no pod of it has a counter.
    let empty = spec.pods.as_ref().is_none_or(|pods| pods.values().all(|pod| pod.share == 0));
    for (_, pod) in there.pods.iter().filter(|(pod, _)| empty || !stays(pod)) {
        add(&mut sum.pods, store.pod_counter(pod.counter).unwrap_or_default());
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
        let gone: BTreeSet<_> = services
            .iter()
            .flat_map(|service| &service.pods)
            .filter_map(|pod| pod.problem.as_ref().map(|problem| format!("pod {}: {problem}", pod.address)))
            .collect();
        problems.extend(gone);
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
            replies: self.replies(),
            flows_recorded: self.datapath.tables.store().recorded().unwrap_or_default(),
            maps: self.maps(),
            tables_built: self.datapath.tables.fill().tables_built,
        }
    }

    fn service(&self, key: &ServiceKey, service: &model::Service) -> ServiceStatus {
        let there = self.datapath.tables.installed().get(key);
        let backends: Vec<_> =
            service.backends.iter().map(|(address, backend)| self.backend(key, *address, backend)).collect();
        let retired = self.retired.services.get(key).copied().unwrap_or_default();
        let pods = self.pods(key, service);
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
            packets: retired.backends.packets + backends.iter().map(|backend| backend.packets).sum::<u64>(),
            bytes: retired.backends.bytes + backends.iter().map(|backend| backend.bytes).sum::<u64>(),
            backends,
            delivery: match service.delivery {
                Delivery::Host => "host",
                Delivery::Pod => "pod",
            }
            .to_owned(),
            pod_packets: retired.pods.packets + pods.iter().map(|pod| pod.packets).sum::<u64>(),
            pod_bytes: retired.pods.bytes + pods.iter().map(|pod| pod.bytes).sum::<u64>(),
            pods,
        }
    }

    pub(super) fn backend(&self, key: &ServiceKey, address: IpAddr, backend: &model::Backend) -> BackendStatus {
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

    /// The pods of a service on this host.
    fn pods(&self, key: &ServiceKey, service: &model::Service) -> Vec<PodStatus> {
        if !self.roles().node {
            return Vec::new();
        }
        let snapshot = self.snapshots.borrow();
        let own = own_addresses(&snapshot);
        let pods = service.local_pods(&own);
        let mut pods: Vec<_> = pods.map(|(pod, wanted)| self.pod(key, *pod, Some(*wanted), &snapshot)).collect();
        pods.sort_by_key(|pod| (pod.address, pod.port));
        pods
    }

    /// A pod of a service; without `wanted` one that is still in the maps and no longer configured.
    pub(super) fn pod(
        &self,
        key: &ServiceKey,
        pod: PodKey,
        wanted: Option<model::Pod>,
        snapshot: &Snapshot,
    ) -> PodStatus {
        let store = self.datapath.tables.store();
        let installed = self.datapath.tables.installed().get(key);
        let there = installed.and_then(|there| there.pods.get(&pod));
        let counter = there.and_then(|there| store.pod_counter(there.counter).ok()).unwrap_or_default();
        let interface = there.filter(|there| there.device != 0).and_then(|there| store.pod_device(there.device));
        let place = installed.and_then(|there| there.pods.keys().position(|key| *key == pod));
        let first = installed.and_then(Installed::first_pod);
        let entry = first.zip(place).map(|(first, place)| store.pod(first + place as u32));
        PodStatus {
            address: pod.address,
            port: pod.port,
            state: match wanted {
                Some(wanted) if wanted.draining => "draining",
                Some(_) => "ready",
                None => "gone",
            }
            .to_owned(),
            weight: wanted.map_or(0, |wanted| wanted.weight),
            slots: there.map_or(0, |there| there.slots),
            packets: counter.packets,
            bytes: counter.bytes,
            recorded: entry.is_some_and(|entry| entry.flags & POD_RECORD != 0),
            device: interface.map(|index| device_name(index, snapshot)),
            live: interface.is_some(),
            problem: if interface.is_some() { None } else { no_device(&pod, snapshot) },
        }
    }

    fn replies(&self) -> Vec<ReplyStatus> {
        let tables = &self.datapath.tables;
        let replies = tables.actual().replies.iter().map(|(key, spec)| {
            let count = tables.reply_id(key).and_then(|id| tables.store().reply_counter(id).ok()).unwrap_or_default();
            ReplyStatus {
                pod: key.pod,
                port: key.port,
                protocol: protocol_name(key.protocol).to_owned(),
                vip: spec.vip,
                vip_port: spec.port,
                recorded: spec.recorded,
                direct: spec.direct,
                packets: count.packets,
                bytes: count.bytes,
            }
        });
        replies.collect()
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
        let map = |name: &str, used, capacity| MapStatus { name: name.to_owned(), used: Some(used), capacity };
        let flows = u64::from(self.datapath.tables.store().flows_capacity());
        vec![
            map("services", fill.services, u64::from(capacity.services)),
            map("backends", fill.backends, 1 << capacity.log2_backends),
            map("slots", fill.slots, 1 << capacity.log2_slots),
            map("next_hops", fill.next_hops, u64::from(capacity.next_hops)),
            map("pods", fill.pods, 1 << capacity.log2_pods),
            map("pod_slots", fill.pod_slots, 1 << capacity.log2_pod_cells),
            map("pod_devices", fill.pod_devices, u64::from(capacity.pod_devices - 1)),
            map("replies", fill.replies, u64::from(capacity.replies)),
            map("internal_networks", fill.internal_networks, u64::from(INTERNAL_NETWORKS)),
            // Counting them is a walk through all: too long for the task that keeps the datapath.
            MapStatus { name: "records".to_owned(), used: None, capacity: flows },
        ]
    }
}

/// The name of an interface; its number where the kernel has not said it (any more).
pub(super) fn device_name(index: u32, snapshot: &Snapshot) -> String {
    let named = snapshot.links.iter().find(|(_, link)| link.index == index);
    named.map_or_else(|| format!("interface {index}"), |(name, _)| name.clone())
}

/// Why the maps have no live device for a pod; `None` while the kernel has not said where it is.
fn no_device(pod: &PodKey, snapshot: &Snapshot) -> Option<String> {
    Some(match snapshot.pods.get(&pod.address)? {
        Err(error) => error.to_string(),
        Ok(path) => format!("{} is behind {}, which is not in the maps yet", pod.address, path.name),
    })
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
