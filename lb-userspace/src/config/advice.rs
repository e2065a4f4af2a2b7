//! What is allowed and yet may not be meant.

use super::scalars::{is_everyone, prefix_text};
use super::service::{MAX_SLOTS, MIN_SLOTS};
use super::{BackendConfig, BackendState, Config, ServiceConfig};
use crate::model::Delivery;

/// Slots a backend that keep shares within a few percent of what weights say, and moves few flows at a change.
const SLOTS_PER_BACKEND: u64 = 400;
/// Below this many slots a backend, shares become uneven.
const FEW: u64 = 100;
/// Above this many, tables take memory and time for nothing.
const MANY: u64 = 40_000;

impl Config {
    /// One line for each thing that is valid and yet may not be meant, with its path.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        if !self.has_role() {
            advice.push("neither edge nor node is here: simulate works, an agent would have nothing to do".to_owned());
        }
        for prefix in self.node.iter().flat_map(|node| &node.trusted_sources).filter(|prefix| is_everyone(prefix)) {
            advice.push(format!(
                "node.trustedSources: {} lets anybody who reaches this node send packets in any client's name; \
                 name the edges' outer sources",
                prefix_text(prefix)
            ));
        }
        let to_pods = self.services.iter().any(|service| service.delivery == Delivery::Pod);
        if to_pods && self.node.as_ref().is_some_and(|node| node.internal_networks.is_empty()) {
            advice.push(
                "node.internalNetworks: there are none, and replies to addresses inside the cluster must not be rewritten: \
                 this file's pods and nodes are known, all others are not; write the networks of pods, nodes and Services, \
                 such as [10.244.0.0/16, 10.50.0.0/24, 10.96.0.0/12]"
                    .to_owned(),
            );
        }
        if self.services.is_empty() {
            advice.push("services: there are none".to_owned());
        }
        for (index, service) in self.services.iter().enumerate() {
            let name = format!("services[{index}] ({})", service.name);
            advice.extend(backends(service).map(|words| format!("{name}: {words}")));
            advice.extend(slots(service).map(|words| format!("{name}: {words}")));
        }
        advice
    }
}

fn backends(service: &ServiceConfig) -> Option<&'static str> {
    let to_pods = service.delivery == Delivery::Pod;
    if service.backends.is_empty() {
        Some("no backends: packets to it are dropped and counted")
    } else if to_pods && service.backends.iter().all(|backend| backend.pods.is_empty()) {
        Some("no backend has pods: packets to it are dropped and counted")
    } else if to_pods && service.backends.iter().all(|backend| !has_ready_pod(backend)) {
        Some("all pods are draining: they go on taking new flows until one is ready")
    } else if service.backends.iter().all(|backend| backend.state == BackendState::Draining) {
        Some("all backends are draining: they go on taking new flows until one is ready")
    } else {
        None
    }
}

fn has_ready_pod(backend: &BackendConfig) -> bool {
    backend.state == BackendState::Ready && backend.pods.iter().any(|pod| pod.state == BackendState::Ready)
}

/// The edge's table has a service's backends, and a node's its pods on that node: the larger number counts.
fn slots(service: &ServiceConfig) -> Option<String> {
    let backends = service.backends.len() as u64;
    let pods = service.backends.iter().map(|backend| backend.pods.len() as u64).max().unwrap_or_default();
    let slots = u64::from(service.slots);
    let (members, things) = if pods > backends { (pods, "pods of a backend") } else { (backends, "backends") };
    // One backend owns every slot, however many there are.
    if members < 2 {
        return None;
    }
    let wanted = (members * SLOTS_PER_BACKEND).next_power_of_two().clamp(MIN_SLOTS.into(), MAX_SLOTS.into());
    let words = if slots < members * FEW {
        "few: shares become uneven"
    } else if slots > members * MANY {
        "more than they need"
    } else {
        return None;
    };
    (wanted != slots).then(|| format!("{slots} slots for {members} {things} are {words}; slots: {wanted} fits"))
}
