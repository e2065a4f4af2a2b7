//! Where a flow goes on this host, by what the maps hold: what `beeline trace` asks, and what the agent answers.

mod way_out;

use std::net::SocketAddr;

use anyhow::{Result, bail};
use lb_common::address::family_of;
use lb_common::flow::FlowKey;
use lb_common::packet::transport::{TCP, UDP};
use lb_common::verdict::Reason;
use serde::{Deserialize, Serialize};

pub use way_out::way_out;

use crate::flows::Flow;
use crate::metrics::verdict;
use crate::model::protocol_name;
use crate::status::{BackendStatus, PodStatus};

/// A flow that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowAsked {
    /// The protocol number.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// The VIP.
    pub vip: SocketAddr,
}

impl FlowAsked {
    /// A flow of a protocol, by its name.
    ///
    /// # Errors
    /// The protocol is neither TCP nor UDP, or the two ends are of different families.
    pub fn new(protocol: &str, client: SocketAddr, vip: SocketAddr) -> Result<Self> {
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => TCP,
            "udp" => UDP,
            _ => bail!("protocol {protocol:?} is neither tcp nor udp"),
        };
        if client.is_ipv4() != vip.is_ipv4() {
            bail!("{client} and {vip} are of different families: no packet goes from one to the other");
        }
        Ok(Self { protocol, client, vip })
    }

    /// The flow as the programs see it.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        FlowKey {
            source: self.client.ip().into(),
            destination: self.vip.ip().into(),
            ports: FlowKey::join(self.client.port(), self.vip.port()),
            protocol: self.protocol,
            family: family_of(&self.vip.ip()),
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The client.
    pub client: SocketAddr,
    /// The VIP.
    pub vip: SocketAddr,
    /// Why packets may not come as far as the rest says.
    pub warnings: Vec<String>,
    /// The service that takes the flow.
    pub service: Option<ServiceTrace>,
    /// What becomes of a packet of a flow that no service takes.
    pub outcome: Option<Outcome>,
    /// The flow's hash, in hexadecimal.
    pub hash: Option<String>,
    /// The way through this host as an edge.
    pub edge: Option<EdgeTrace>,
    /// The way through this host as a node.
    pub node: Option<NodeTrace>,
}

impl Trace {
    /// An answer that says nothing yet.
    #[must_use]
    pub fn new(flow: &FlowAsked) -> Self {
        Self {
            protocol: protocol_name(flow.protocol).to_owned(),
            client: flow.client,
            vip: flow.vip,
            warnings: Vec::new(),
            service: None,
            outcome: None,
            hash: None,
            edge: None,
            node: None,
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTrace {
    /// `name/port`.
    pub label: String,
    /// The port that it is found by; 0 for all ports.
    pub port: u16,
    /// `host` or `pod`.
    pub delivery: String,
    /// Whether the client's address alone is hashed.
    pub source_affinity: bool,
    /// Why it is not in the maps as configured.
    pub problem: Option<String>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The reason's name.
    pub reason: String,
    /// `pass`, `send`, `answer` or `drop`.
    pub verdict: String,
    /// The reason in a sentence.
    pub meaning: String,
    /// What to do about it, where something can be done.
    pub way_out: Option<String>,
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self {
            reason: reason.name().to_owned(),
            verdict: verdict(reason.action()).to_owned(),
            meaning: reason.description().trim().to_owned(),
            way_out: way_out(reason).map(str::to_owned),
        }
    }
}

/// The way through an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeTrace {
    /// The slot that the hash picks.
    pub slot: u32,
    /// Slots of the service's table; 0 without one.
    pub slots: u32,
    /// The slot's owner: where packets are sent.
    pub owner: Option<BackendStatus>,
    /// Who would own the slot if those before were not there, the next one first.
    pub alternates: Vec<BackendStatus>,
    /// What becomes of a packet.
    pub outcome: Outcome,
}

/// The way through a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTrace {
    /// The slot of this node's table that the hash picks.
    pub slot: u32,
    /// Slots of the service's table on this node; 0 without pods.
    pub slots: u32,
    /// The pods that are asked, in their order.
    pub candidates: Vec<PodTrace>,
    /// The pod that gets the flow, unless a former pod's sockets know it.
    pub pod: Option<SocketAddr>,
    /// For how many milliseconds no pod of the service has been here.
    pub without_pods_ms: Option<u64>,
    /// The replies of that pod.
    pub reply: Option<ReplyTrace>,
    /// What becomes of a packet.
    pub outcome: Outcome,
}

/// A pod that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTrace {
    /// `former`, `owner` or `next`.
    pub role: String,
    /// The pod.
    pub pod: PodStatus,
    /// Why flows of this client to it are recorded; none if they are not.
    pub recorded_because: Vec<String>,
    /// The record of this client's address and port to it, be it of this VIP or of another.
    pub record: Option<Flow>,
}

/// What becomes of a pod's replies to the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTrace {
    /// What they leave as; `None`: as they are, or not at all.
    pub leaves_as: Option<SocketAddr>,
    /// Why.
    pub because: String,
    /// What becomes of one now.
    pub outcome: Outcome,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_has_one_family_and_a_known_protocol() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (client, vip) = (address("10.60.0.2:40000"), address("198.51.100.10:80"));
        let key = FlowAsked::new("TCP", client, vip).expect("a flow").key();
        assert_eq!((key.protocol, key.ports, key.service_port()), (6, 40_000 << 16 | 80, 80));
        let error = FlowAsked::new("tcp", client, address("[2001:db8::10]:80")).expect_err("two families");
        assert!(error.to_string().contains("different families"), "{error}");
        assert!(FlowAsked::new("icmp", client, vip).is_err());
    }
}
