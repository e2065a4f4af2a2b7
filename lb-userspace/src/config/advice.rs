//! What is allowed and yet may not be meant.

use super::scalars::{is_everyone, prefix_text};
use super::service::{MAX_SLOTS, MIN_SLOTS};
use super::{BackendState, Config, ServiceConfig};

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
    if service.backends.is_empty() {
        Some("no backends: packets to it are dropped and counted")
    } else if service.backends.iter().all(|backend| backend.state == BackendState::Draining) {
        Some("all backends are draining: they go on taking new flows until one is ready")
    } else {
        None
    }
}

fn slots(service: &ServiceConfig) -> Option<String> {
    let backends = service.backends.len() as u64;
    let slots = u64::from(service.slots);
    // One backend owns every slot, however many there are.
    if backends < 2 {
        return None;
    }
    let wanted = (backends * SLOTS_PER_BACKEND).next_power_of_two().clamp(MIN_SLOTS.into(), MAX_SLOTS.into());
    let words = if slots < backends * FEW {
        "few: shares become uneven"
    } else if slots > backends * MANY {
        "more than they need"
    } else {
        return None;
    };
    (wanted != slots).then(|| format!("{slots} slots for {backends} backends are {words}; slots: {wanted} fits"))
}
