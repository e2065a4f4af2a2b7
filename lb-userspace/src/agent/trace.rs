//! The agent's answer to "where does this flow go": what the maps hold, with what is known of backends and pods.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::flow::FlowKey;
use lb_common::maps::{NO_NAMESPACE, OWN_NAMESPACE, ServiceKey};
use lb_common::packet::{ipv4, ipv6};
use lb_common::verdict::Reason;

use super::Agent;
use super::routes::own_addresses;
use crate::datapath::look::{Candidate, Look as _, NodeLook, Role};
use crate::datapath::store::{PodStore as _, Store as _};
use crate::flows::Flow;
use crate::model::{self, Delivery, PodKey};
use crate::neighbours::Snapshot;
use crate::plan::ReplyKey;
use crate::server::Question;
use crate::status::BackendStatus;
use crate::trace::{EdgeTrace, FlowAsked, NodeTrace, PodTrace, ReplyTrace, ServiceTrace, Trace};

impl Agent {
    /// Answer a question. Whoever asked may have gone.
    pub(super) fn answer(&self, question: Question) {
        match question {
            Question::Status(sender) => {
                let _ = sender.send(self.report());
            }
            Question::Trace(flow, sender) => {
                let _ = sender.send(self.trace(&flow));
            }
        }
    }

    fn trace(&self, asked: &FlowAsked) -> Trace {
        let mut trace = Trace::new(asked);
        let interfaces = self.interfaces.status().into_iter();
        trace.warnings = interfaces.filter_map(|i| Some(format!("{}: {}", i.name, i.problem?))).collect();
        if let Err(error) = self.fill(asked, &mut trace) {
            trace.warnings.push(format!("the maps do not say all: {error:#}"));
        }
        trace
    }

    fn fill(&self, asked: &FlowAsked, trace: &mut Trace) -> Result<()> {
        let (flow, tables, roles) = (asked.key(), &self.datapath.tables, self.roles());
        let Some(key) = tables.service_of(&flow) else {
            let configured = self.desired.services.iter().find(|(key, _)| is_for(key, &flow));
            trace.service = configured.map(|(key, service)| self.service_trace(key, service));
            let reason = match tables.without_service(&flow) {
                Reason::UnknownPort if !roles.edge => Reason::InnerNotService,
                reason => reason,
            };
            trace.outcome = Some(reason.into());
            return Ok(());
        };
        if let Some(service) = self.desired.services.get(&key) {
            trace.service = Some(self.service_trace(&key, service));
        }
        if is_martian(asked) {
            trace.outcome = Some(Reason::MartianSource.into());
            return Ok(());
        }
        let affinity = self.desired.services.get(&key).is_some_and(|service| service.source_affinity);
        trace.hash = Some(format!("{:016x}", flow.hash(&tables.store().hash_keys()?, affinity)));
        let mut local = false;
        if roles.edge {
            let edge = self.trace_edge(&key, &flow)?;
            local = edge.outcome.reason == Reason::DeliveredLocally.name();
            trace.edge = Some(edge);
        }
        if roles.node {
            trace.node = Some(self.trace_node(asked, &key, &flow, local)?);
        }
        Ok(())
    }

    fn service_trace(&self, key: &ServiceKey, service: &model::Service) -> ServiceTrace {
        ServiceTrace {
            label: service.label(key),
            port: key.port(),
            delivery: match service.delivery {
                Delivery::Host => "host",
                Delivery::Pod => "pod",
            }
            .to_owned(),
            source_affinity: service.source_affinity,
            problem: self.failed.get(key).cloned(),
        }
    }

    fn trace_edge(&self, key: &ServiceKey, flow: &FlowKey) -> Result<EdgeTrace> {
        let look = self.datapath.tables.look_as_edge(key, flow)?;
        let status = |address| -> BackendStatus {
            let backend = self.desired.services.get(key).and_then(|service| service.backends.get(&address));
            match backend {
                Some(backend) => self.backend(key, address, backend),
                None => BackendStatus {
                    address,
                    state: "gone".to_owned(),
                    weight: 0,
                    agent: false,
                    slots: 0,
                    packets: 0,
                    bytes: 0,
                    reachable: false,
                    via: None,
                    problem: Some(format!("{address} is in the maps, and not in the configuration any more")),
                },
            }
        };
        Ok(EdgeTrace {
            slot: look.slot,
            slots: look.slots,
            owner: look.owner.map(status),
            alternates: look.alternates.into_iter().map(status).collect(),
            outcome: look.reason.into(),
        })
    }

    fn trace_node(&self, asked: &FlowAsked, key: &ServiceKey, flow: &FlowKey, local: bool) -> Result<NodeTrace> {
        let tables = &self.datapath.tables;
        let now = tables.store().clock();
        let NodeLook { slot, slots, candidates, chosen, without_pods, reason } =
            tables.look_as_node(key, flow, now, local)?;
        let snapshot = self.snapshots.borrow();
        let reply = chosen.map(|chosen| self.trace_reply(asked, &candidates[chosen], now)).transpose()?.flatten();
        let pods = candidates.iter().map(|candidate| self.trace_pod(asked, key, candidate, now, &snapshot));
        Ok(NodeTrace {
            slot,
            slots,
            candidates: pods.collect(),
            pod: chosen.map(|chosen| socket(&candidates[chosen].pod)),
            without_pods_ms: without_pods.map(|waited| waited / 1_000_000),
            reply,
            outcome: reason.into(),
        })
    }

    fn trace_pod(
        &self,
        asked: &FlowAsked,
        key: &ServiceKey,
        candidate: &Candidate,
        now: u64,
        snapshot: &Snapshot,
    ) -> PodTrace {
        let pod = candidate.pod;
        let own = own_addresses(snapshot);
        let service = self.desired.services.get(key);
        let wanted = service.and_then(|service| service.local_pods(&own).find(|(key, _)| **key == pod));
        let wanted = wanted.map(|(_, pod)| *pod);
        PodTrace {
            role: match candidate.role {
                Role::Former => "former",
                Role::Owner => "owner",
                Role::Next => "next",
            }
            .to_owned(),
            pod: self.pod(key, pod, wanted, snapshot),
            recorded_because: if candidate.recorded {
                self.why_recorded(asked, &pod, wanted, snapshot)
            } else {
                vec![]
            },
            record: candidate.record.as_ref().map(|(key, record, _)| Flow::new(key, record, now)),
        }
    }

    /// Why flows of a client to a pod are recorded.
    fn why_recorded(
        &self,
        asked: &FlowAsked,
        pod: &PodKey,
        wanted: Option<model::Pod>,
        snapshot: &Snapshot,
    ) -> Vec<String> {
        let (mut why, at) = (Vec::new(), socket(pod));
        let own = own_addresses(snapshot);
        let leads = |(key, service): &(&ServiceKey, &model::Service)| {
            key.protocol() == asked.protocol && service.local_pods(&own).any(|(key, _)| key == pod)
        };
        let vips = self.desired.services.iter().filter(leads).count();
        if vips > 1 {
            why.push(format!("{vips} VIPs or ports lead to {at}"));
        }
        let client = asked.client.ip();
        let networks = self.datapath.tables.actual().internal;
        let network = networks.keys().filter(|network| network.contains(&client)).max_by_key(|network| network.length);
        if let Some(network) = network {
            why.push(format!("the client is in the internal network {}/{}", network.address, network.length));
        }
        if self.desired.direct_pod_access {
            why.push("node.directPodAccess is set".to_owned());
        }
        if wanted.is_some_and(|pod| pod.record) {
            why.push("the pod has recordFlows".to_owned());
        }
        match self.namespace(pod, asked) {
            Some(OWN_NAMESPACE) => why.push("the pod has this host's own network".to_owned()),
            Some(NO_NAMESPACE) => why.push("the pod's sockets cannot be seen from this host".to_owned()),
            _ => {}
        }
        if why.is_empty() {
            why.push("so the maps have it".to_owned());
        }
        why
    }

    /// The namespace that the maps have for a pod with a device.
    fn namespace(&self, pod: &PodKey, asked: &FlowAsked) -> Option<u32> {
        let tables = &self.datapath.tables;
        let there = tables.installed().get(&tables.service_of(&asked.key())?)?;
        let place = there.pods.keys().position(|key| key == pod)?;
        let entry = tables.store().pod(there.first_pod()? + place as u32);
        (entry.device != 0).then_some(entry.namespace)
    }

    /// What the pod's replies to the client become.
    fn trace_reply(&self, asked: &FlowAsked, chosen: &Candidate, now: u64) -> Result<Option<ReplyTrace>> {
        let store = self.datapath.tables.store();
        let pod = chosen.pod;
        let key = ReplyKey { pod: pod.address, protocol: asked.protocol, port: pod.port };
        let Some(id) = self.datapath.tables.reply_id(&key) else { return Ok(None) };
        let word = store.reply_word(id);
        let target = store.reply_target(word.target());
        let family = lb_common::address::family_of(&pod.address);
        let fixed = SocketAddr::new(target.vip.ip(family), target.port as u16);
        let internal = store.internal_flags(asked.client.ip())? != 0;
        if !word.is_recorded() && !internal {
            let because = format!("nothing but {fixed} leads to {}", socket(&pod));
            return Ok(Some(ReplyTrace { leaves_as: Some(fixed), because, outcome: Reason::ReplyRewritten.into() }));
        }
        if let Some((_, record, _)) = &chosen.record {
            let vip = SocketAddr::new(record.vip.ip(family), record.port());
            let because = match record.is_expired(now, asked.protocol) {
                true => "the record says so; it has expired, and a flow to another VIP may take its place",
                false => "the record says so",
            };
            return Ok(Some(ReplyTrace {
                leaves_as: Some(vip),
                because: because.to_owned(),
                outcome: Reason::ReplyRewritten.into(),
            }));
        }
        let (because, reason) = match (word.is_direct(), internal) {
            (true, _) => ("there is no record, and the pod also talks to clients directly", Reason::NotOurs),
            (false, true) => ("there is no record, and the client is in an internal network", Reason::NotOurs),
            (false, false) => {
                ("there is no record of the flow yet; its first packet in makes it", Reason::ReplyWithoutRecord)
            }
        };
        Ok(Some(ReplyTrace { leaves_as: None, because: because.to_owned(), outcome: reason.into() }))
    }
}

fn socket(pod: &PodKey) -> SocketAddr {
    SocketAddr::new(pod.address, pod.port)
}

/// Whether a flow's packets are for a service.
fn is_for(key: &ServiceKey, flow: &FlowKey) -> bool {
    (key.address(), key.family(), key.protocol()) == (flow.destination, flow.family, flow.protocol)
        && (key.port() == 0 || key.port() == flow.service_port())
}

/// Whether no packet from the network may have the client's address.
fn is_martian(asked: &FlowAsked) -> bool {
    let source = lb_common::address::Address::from(asked.client.ip());
    asked.client.ip() == asked.vip.ip()
        || if asked.client.is_ipv4() { ipv4::is_martian(source.v4()) } else { ipv6::is_martian(source.v6()) }
}
