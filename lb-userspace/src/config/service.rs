//! One service, by itself: its backends are [`super::backend`]'s, how services fit together is [`super::fit`]'s.

use std::net::IpAddr;

use super::backend::{self, DraftBackend};
use super::document::prefixes;
use super::read::Reader;
use super::tree::Node;
use super::{Affinity, Forwarding, PortConfig, Protocol, ServiceConfig, scalars};
use crate::model::{Algorithm, Delivery, Prefix};

/// Slots of a service that does not say.
const DEFAULT_SLOTS: u32 = 4096;
/// Fewest slots of a service.
pub(super) const MIN_SLOTS: u32 = lb_common::maps::SLOTS_UNIT;
/// Most slots of a service.
pub(super) const MAX_SLOTS: u32 = 1 << 22;

/// What could be read of a service; `None` stands for what an error was noted for.
pub(super) struct Draft<'t> {
    pub(super) node: Node<'t>,
    pub(super) name: Option<String>,
    pub(super) address: Option<IpAddr>,
    pub(super) ports: Vec<DraftPort<'t>>,
    pub(super) slots: Option<u32>,
    pub(super) delivery: Option<Delivery>,
    pub(super) backends: Vec<DraftBackend<'t>>,
    choices: Option<Choices>,
}

struct Choices {
    forwarding: Forwarding,
    algorithm: Algorithm,
    affinity: Affinity,
    allow: Vec<Prefix>,
}

/// What could be read of a port.
pub(super) struct DraftPort<'t> {
    pub(super) node: Node<'t>,
    /// Protocol and port.
    pub(super) key: Option<(Protocol, u16)>,
    pub(super) config: Option<PortConfig>,
}

impl Draft<'_> {
    /// The service, where all of it could be read.
    pub(super) fn finish(self) -> Option<ServiceConfig> {
        let Choices { forwarding, algorithm, affinity, allow } = self.choices?;
        Some(ServiceConfig {
            name: self.name?,
            address: self.address?,
            ports: self.ports.into_iter().map(|port| port.config).collect::<Option<_>>()?,
            forwarding,
            algorithm,
            slots: self.slots?,
            delivery: self.delivery?,
            affinity,
            allow,
            backends: self.backends.into_iter().map(DraftBackend::finish).collect::<Option<_>>()?,
        })
    }
}

/// Reads the list of services.
pub(super) fn drafts<'t>(reader: &mut Reader, node: Node<'t>) -> Option<Vec<Draft<'t>>> {
    let members = reader.list(node)?;
    Some(members.map(|member| draft(reader, member)).collect())
}

fn draft<'t>(reader: &mut Reader, node: Node<'t>) -> Draft<'t> {
    let known =
        ["name", "address", "ports", "forwarding", "algorithm", "slots", "delivery", "affinity", "allow", "backends"];
    let mut draft = Draft {
        node,
        name: None,
        address: None,
        ports: Vec::new(),
        slots: None,
        delivery: None,
        backends: Vec::new(),
        choices: None,
    };
    if !reader.fields(node, &known) {
        return draft;
    }
    let name = reader.required(node, "name", "what metrics and commands call the service");
    draft.name = name.and_then(|node| reader.text(node).and_then(|_| reader.parsed(node, scalars::service_name)));
    let address = reader.required(node, "address", "the VIP");
    draft.address = address.and_then(|node| reader.parsed(node, scalars::unicast));
    draft.slots = reader.optional(node, "slots", DEFAULT_SLOTS, slots);
    let delivery = reader.optional(node, "delivery", Delivery::default(), delivery);
    draft.delivery = delivery;
    draft.choices = choices(reader, node);
    if let Some(list) = reader.required(node, "ports", "at least one, such as [{port: 80}]") {
        draft.ports = ports(reader, list, delivery);
    }
    if let Some(list) = reader.required(node, "backends", "where packets go; [] for none yet") {
        let members = reader.list(list).into_iter().flatten();
        draft.backends = members.map(|member| backend::draft(reader, member, delivery)).collect();
    }
    draft
}

fn slots(reader: &mut Reader, node: Node<'_>) -> Option<u32> {
    let slots = reader.number(node, MIN_SLOTS..=MAX_SLOTS)?;
    if !slots.is_power_of_two() {
        let above = slots.next_power_of_two();
        reader.error(node, format!("{slots} is not a power of two; the nearest are {} and {above}", above / 2));
        return None;
    }
    Some(slots)
}

fn delivery(reader: &mut Reader, node: Node<'_>) -> Option<Delivery> {
    reader.choice(node, &[("host", Some(Delivery::Host)), ("pod", Some(Delivery::Pod))])
}

fn choices(reader: &mut Reader, node: Node<'_>) -> Option<Choices> {
    let forwarding = reader.optional(node, "forwarding", Forwarding::default(), |reader, node| {
        reader.choice(node, &[("ipip", Some(Forwarding::Ipip)), ("l2", None)])
    });
    let algorithm = reader.optional(node, "algorithm", Algorithm::default(), |reader, node| {
        reader.choice(node, &[("rendezvous", Some(Algorithm::Rendezvous)), ("maglev", None)])
    });
    let affinity = reader.optional(node, "affinity", Affinity::default(), |reader, node| {
        reader.choice(node, &[("none", Some(Affinity::None)), ("source", Some(Affinity::Source))])
    });
    let allow = reader.optional(node, "allow", Vec::new(), |reader, node| {
        let allow = prefixes(reader, node)?;
        if !allow.is_empty() {
            let list = allow.iter().map(scalars::prefix_text).collect::<Vec<_>>().join(", ");
            reader
                .error(node, format!("[{list}] is not supported by this release; write [], or filter before the edge"));
        }
        Some(allow)
    });
    Some(Choices { forwarding: forwarding?, algorithm: algorithm?, affinity: affinity?, allow: allow? })
}

fn ports<'t>(reader: &mut Reader, list: Node<'t>, delivery: Option<Delivery>) -> Vec<DraftPort<'t>> {
    let Some(members) = reader.list(list) else { return Vec::new() };
    let ports: Vec<_> = members.map(|member| port(reader, member, delivery)).collect();
    if ports.is_empty() {
        reader.error(list, "is empty; a service has at least one port, such as {port: 80}; port 0 is all ports");
    }
    ports
}

fn port<'t>(reader: &mut Reader, node: Node<'t>, delivery: Option<Delivery>) -> DraftPort<'t> {
    if !reader.fields(node, &["name", "protocol", "port", "targetPort"]) {
        return DraftPort { node, key: None, config: None };
    }
    let name = reader.optional(node, "name", None, |reader, node| {
        reader.text(node)?;
        reader.parsed(node, scalars::port_name).map(Some)
    });
    let protocol = reader.optional(node, "protocol", Protocol::default(), |reader, node| {
        reader.choice(node, &[("TCP", Some(Protocol::Tcp)), ("UDP", Some(Protocol::Udp)), ("SCTP", None)])
    });
    let number = reader.required(node, "port", "a number from 1 to 65535, or 0 for all ports");
    let number = number
        .and_then(|node| reader.number(node, 0..=u16::MAX).filter(|&port| port_fits(reader, node, port, delivery)));
    let target = match node.get("targetPort") {
        Some(target) => {
            reader.number(target, 0..=u16::MAX).filter(|&value| target_fits(reader, target, value, number, delivery))
        }
        None => number,
    };
    let config = || Some(PortConfig { name: name?, protocol: protocol?, port: number?, target_port: target? });
    DraftPort { node, key: protocol.zip(number), config: config() }
}

fn port_fits(reader: &mut Reader, node: Node<'_>, port: u16, delivery: Option<Delivery>) -> bool {
    let fits = port != 0 || delivery != Some(Delivery::Pod);
    if !fits {
        reader.error(
            node,
            "0 is all ports, and with delivery pod a reply could not be told from the pod's own traffic; name the ports",
        );
    }
    fits
}

fn target_fits(
    reader: &mut Reader,
    node: Node<'_>,
    target: u16,
    port: Option<u16>,
    delivery: Option<Delivery>,
) -> bool {
    let message = match (port, delivery) {
        (Some(port), _) if port == target => return true,
        (Some(0), _) => format!("{target} cannot serve all ports; write 0, or leave it out"),
        (Some(port), Some(Delivery::Host)) => format!(
            "{target} is not the port, {port}: delivery host hands packets on unchanged; use the same port, \
             or delivery: pod"
        ),
        (_, _) if target == 0 => "0 is no port; write 1 to 65535, or leave it out".into(),
        (_, _) => return true,
    };
    reader.error(node, message);
    false
}
