//! A backend of a service and its pods, by themselves.

use std::net::IpAddr;

use super::read::Reader;
use super::tree::Node;
use super::{BackendConfig, BackendState, PodConfig, scalars};
use crate::model::Delivery;

const DEFAULT_WEIGHT: u32 = 100;
const MAX_WEIGHT: u32 = 1_000;

/// What could be read of a backend; `None` stands for what an error was noted for.
pub(super) struct DraftBackend<'t> {
    pub(super) node: Node<'t>,
    pub(super) address: Option<IpAddr>,
    pub(super) pods: Vec<DraftPod<'t>>,
    rest: Option<Rest>,
}

/// A backend without its address and its pods.
struct Rest {
    weight: u32,
    state: BackendState,
    agent: bool,
}

/// What could be read of a pod.
pub(super) struct DraftPod<'t> {
    pub(super) node: Node<'t>,
    pub(super) address: Option<IpAddr>,
    pub(super) config: Option<PodConfig>,
}

impl DraftBackend<'_> {
    /// The backend, where all of it could be read.
    pub(super) fn finish(self) -> Option<BackendConfig> {
        let Rest { weight, state, agent } = self.rest?;
        let pods = self.pods.into_iter().map(|pod| pod.config).collect::<Option<_>>()?;
        Some(BackendConfig { address: self.address?, weight, state, agent, pods })
    }
}

/// Reads a backend of a service with this delivery; `None` where it could not be read.
pub(super) fn draft<'t>(reader: &mut Reader, node: Node<'t>, delivery: Option<Delivery>) -> DraftBackend<'t> {
    if !reader.fields(node, &["address", "weight", "state", "agent", "pods"]) {
        return DraftBackend { node, address: None, pods: Vec::new(), rest: None };
    }
    let address = reader.required(node, "address", "where the backend's packets are sent");
    let address = address.and_then(|node| reader.parsed(node, scalars::unicast));
    let to_pods = delivery == Some(Delivery::Pod);
    let weight = reader.optional(node, "weight", DEFAULT_WEIGHT, |reader, node| {
        if to_pods {
            let message =
                format!("{} has no meaning: with delivery pod its pods' weights count; leave it out", node.shown());
            reader.error(node, message);
            return None;
        }
        weight(reader, node)
    });
    let state = reader.optional(node, "state", BackendState::default(), state);
    let agent = reader.optional(node, "agent", to_pods, |reader, node| {
        let agent = reader.flag(node)?;
        if to_pods && !agent {
            let message =
                "false: a node without the agent cannot deliver to pods; leave it out, or write delivery: host";
            reader.error(node, message);
        }
        Some(agent)
    });
    let pods = node.get("pods").map(|list| pods(reader, list, delivery)).unwrap_or_default();
    let rest = || Some(Rest { weight: weight?, state: state?, agent: agent? });
    DraftBackend { node, address, pods, rest: rest() }
}

fn weight(reader: &mut Reader, node: Node<'_>) -> Option<u32> {
    if node.raw() == Some("0") {
        reader.error(
            node,
            format!("0 is not a weight from 1 to {MAX_WEIGHT}; write state: draining to give it no new flows"),
        );
        return None;
    }
    reader.number(node, 1..=MAX_WEIGHT)
}

fn state(reader: &mut Reader, node: Node<'_>) -> Option<BackendState> {
    reader.choice(node, &[("ready", Some(BackendState::Ready)), ("draining", Some(BackendState::Draining))])
}

/// Pods are read even where they are refused, so that slips in them show.
fn pods<'t>(reader: &mut Reader, list: Node<'t>, delivery: Option<Delivery>) -> Vec<DraftPod<'t>> {
    let Some(members) = reader.list(list) else { return Vec::new() };
    if delivery == Some(Delivery::Host) && members.clone().next().is_some() {
        reader.error(list, "delivery host hands packets to no pod; write delivery: pod, or leave the pods out");
    }
    members.map(|member| pod(reader, member)).collect()
}

fn pod<'t>(reader: &mut Reader, node: Node<'t>) -> DraftPod<'t> {
    if !reader.fields(node, &["address", "port", "weight", "state", "recordFlows"]) {
        return DraftPod { node, address: None, config: None };
    }
    let address = reader.required(node, "address", "the pod's own");
    let address = address.and_then(|node| reader.parsed(node, scalars::unicast));
    let port = reader.optional(node, "port", None, |reader, node| reader.number(node, 1..=u16::MAX).map(Some));
    let weight = reader.optional(node, "weight", DEFAULT_WEIGHT, weight);
    let state = reader.optional(node, "state", BackendState::default(), state);
    let record_flows = reader.optional(node, "recordFlows", false, Reader::flag);
    let config = || {
        Some(PodConfig { address: address?, port: port?, weight: weight?, state: state?, record_flows: record_flows? })
    };
    DraftPod { node, address, config: config() }
}
