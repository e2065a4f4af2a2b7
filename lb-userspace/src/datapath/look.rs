//! Where a flow goes, by what the maps hold: the same steps as the programs', without a packet and without a trace in
//! the maps. `beeline trace` shows it.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lb_common::address::{Family, family_of};
use lb_common::flow::FlowKey;
use lb_common::maps::{
    BACKEND_IPV6, Dispatch, INTERNAL_OWN_POD, POD_IPV6, POD_RECORD, Pod, PodCell, PodWord, Record, RecordKey,
    ServiceKey, ServiceWord,
};
use lb_common::node::{NO_POD_GRACE_NS, pod_hash};
use lb_common::packet::transport::TCP;
use lb_common::table::{Member, Rendezvous, identity};
use lb_common::verdict::Reason;

use super::store::Store;
use super::tables::Tables;
use crate::model::{Algorithm, PodKey};

/// How many slots' owners a node asks, as the programs do.
const PROBES: u64 = 4;

/// What only a trace reads of a store.
pub trait Look: Store {
    /// A flow's record.
    ///
    /// # Errors
    /// The map cannot be read.
    fn flow_record(&self, key: &RecordKey) -> Result<Option<Record>>;
    /// The flags of the internal network that an address is in ([`lb_common::maps::INTERNAL_NETWORK`]); 0 for none.
    ///
    /// # Errors
    /// The map cannot be read.
    fn internal_flags(&self, address: IpAddr) -> Result<u32>;
}

/// Where an edge sends a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeLook {
    /// The slot, of so many; 0 of 0 without a table.
    pub slot: u32,
    /// Slots of the service's table.
    pub slots: u32,
    /// The slot's owner.
    pub owner: Option<IpAddr>,
    /// Who follows in the slot's ranking, the next one first.
    pub alternates: Vec<IpAddr>,
    /// What becomes of a packet.
    pub reason: Reason,
}

/// Where a node sends a flow.
#[derive(Debug)]
pub struct NodeLook {
    /// The slot, of so many; 0 of 0 without pods.
    pub slot: u32,
    /// Slots of the service's table on this node.
    pub slots: u32,
    /// The pods that are asked, in their order.
    pub candidates: Vec<Candidate>,
    /// Which of them gets a packet that begins the flow, and every other one unless a former pod knows it.
    pub chosen: Option<usize>,
    /// For how many nanoseconds no pod has been here; `None` if there is one.
    pub without_pods: Option<u64>,
    /// What becomes of a packet.
    pub reason: Reason,
}

/// How a pod comes to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It owned the slot before.
    Former,
    /// It owns the slot.
    Owner,
    /// It owns one of the slots that follow.
    Next,
}

/// A pod that may get the flow.
#[derive(Debug)]
pub struct Candidate {
    /// The pod.
    pub pod: PodKey,
    /// Why it is asked.
    pub role: Role,
    /// The live device that leads to it.
    pub interface: Option<u32>,
    /// Whether flows of this client to it are recorded.
    pub recorded: bool,
    /// The record of this client's address and port to it, and whether it is of the VIP and port that were asked for.
    pub record: Option<(RecordKey, Record, bool)>,
}

impl<S: Look> Tables<S> {
    /// The key of the service that a flow's packets are for: its own port's, or that of all ports.
    #[must_use]
    pub fn service_of(&self, flow: &FlowKey) -> Option<ServiceKey> {
        let mut key = ServiceKey::new(flow.destination, flow.family, flow.protocol, flow.service_port());
        if !self.installed.contains_key(&key) {
            key.widen_to_all_ports();
        }
        self.installed.contains_key(&key).then_some(key)
    }

    /// Why a flow that no service takes is dropped or passed.
    #[must_use]
    pub fn without_service(&self, flow: &FlowKey) -> Reason {
        let key = ServiceKey::new(flow.destination, flow.family, flow.protocol, flow.service_port());
        if self.has_vip(&key) { Reason::UnknownPort } else { Reason::NotOurs }
    }

    /// Where this host, as an edge, sends a flow of this service.
    ///
    /// # Errors
    /// A map cannot be read, or the service is not in the maps.
    pub fn look_as_edge(&self, key: &ServiceKey, flow: &FlowKey) -> Result<EdgeLook> {
        let there = self.installed.get(key).context("the service is not in the maps")?;
        let word = self.store.word(there.id);
        let mut look = EdgeLook { slot: 0, slots: 0, owner: None, alternates: Vec::new(), reason: Reason::NoBackend };
        if word.is_empty() {
            return Ok(look);
        }
        let index = word.slot(flow.hash(&self.store.hash_keys()?, word.source_affinity()));
        (look.slot, look.slots) = ((index - word.slots()) as u32, 1 << word.log2_slots());
        let mut places = [0; 4];
        self.store.read_slots(index & !3, &mut places);
        let entry = self.store.backend(word.backends() + u32::from(places[(index & 3) as usize]));
        let family = if entry.flags & BACKEND_IPV6 == 0 { Family::V4 } else { Family::V6 };
        let owner = entry.destination.ip(family);
        look.owner = Some(owner);
        look.reason = match entry.dispatch {
            dispatch if dispatch == Dispatch::Local as u8 => Reason::DeliveredLocally,
            _ if entry.next_hop == 0 => Reason::BackendUnreachable,
            _ => Reason::Forwarded,
        };
        look.alternates = self.ranking(key, look.slot, look.slots, 4)?;
        look.alternates.retain(|address| *address != owner);
        look.alternates.truncate(3);
        Ok(look)
    }

    /// The first backends of a slot's ranking, by the ranks and the seed that the table was built with.
    fn ranking(&self, key: &ServiceKey, slot: u32, slots: u32, top: usize) -> Result<Vec<IpAddr>> {
        let spec = self.installed.get(key).and_then(|there| there.spec.as_ref());
        let (Some(spec), Some(seed)) = (spec, self.seed) else { return Ok(Vec::new()) };
        let member = |(address, backend): (&IpAddr, &crate::plan::BackendSpec)| Member {
            identity: identity((*address).into(), family_of(address)),
            rank: backend.rank,
            share: backend.share,
        };
        let members: Vec<_> = spec.backends.iter().map(member).collect();
        let mut best = vec![0; top];
        let found = match spec.algorithm {
            Algorithm::Rendezvous => {
                let rankings = Rendezvous.rankings(seed, &members, slots as usize).context("the slot's ranking")?;
                rankings.of(slot, &mut best)
            }
        };
        let addresses: Vec<_> = spec.backends.keys().copied().collect();
        Ok(best[..found].iter().map(|member| addresses[usize::from(*member)]).collect())
    }

    /// Where this host, as a node, sends a flow of this service, at a moment of the monotonic clock in nanoseconds.
    /// `local`: the packet comes from this host as an edge, without a tunnel.
    ///
    /// # Errors
    /// A map cannot be read, or the service is not in the maps.
    pub fn look_as_node(&self, key: &ServiceKey, flow: &FlowKey, now: u64, local: bool) -> Result<NodeLook> {
        let there = self.installed.get(key).context("the service is not in the maps")?;
        let word = self.store.pod_word(there.id);
        let reason = if local { Reason::DeliveredLocally } else { Reason::Decapsulated };
        let mut look = NodeLook { slot: 0, slots: 0, candidates: Vec::new(), chosen: None, without_pods: None, reason };
        let internal = self.store.internal_flags(flow.source.ip(flow.family))?;
        let own = self.tunnel_addresses.contains(&flow.source.ip(flow.family));
        if own || (!word.is_host() && internal & INTERNAL_OWN_POD != 0) {
            look.reason = Reason::Hairpin;
            return Ok(look);
        }
        let Some(table) = word.pods() else {
            if !word.is_host() {
                let waited = now.saturating_sub(PodWord(word.0).since());
                look.without_pods = Some(waited);
                look.reason = answer(waited, flow.protocol);
            }
            return Ok(look);
        };
        let hash = flow.hash(&self.store.hash_keys()?, table.source_affinity());
        let slot = table.slot(pod_hash(hash)) - table.slots();
        (look.slot, look.slots) = (slot as u32, 1 << table.log2_slots());
        look.candidates = self.candidates(table, slot, flow, internal != 0)?;
        (look.chosen, look.reason) = choose(&look.candidates, flow, now);
        Ok(look)
    }

    fn cell(&self, table: ServiceWord, slot: u64, next: u64) -> PodCell {
        let mut cell = [PodCell(0)];
        self.store.read_pod_cells(table.slots() + (slot + next & ((1 << table.log2_slots()) - 1)), &mut cell);
        cell[0]
    }

    /// The pods that are asked, each once in each role.
    fn candidates(&self, table: ServiceWord, slot: u64, flow: &FlowKey, internal: bool) -> Result<Vec<Candidate>> {
        let mut candidates: Vec<Candidate> = Vec::new();
        let formers = self.cell(table, slot, 0).formers().into_iter().filter(|place| *place != PodCell::NONE);
        let owners = (0..PROBES).map(|next| {
            let role = if next == 0 { Role::Owner } else { Role::Next };
            (role, self.cell(table, slot, next).owner())
        });
        for (role, place) in formers.map(|place| (Role::Former, place)).chain(owners) {
            let candidate =
                self.candidate(role, &self.store.pod(table.backends() + u32::from(place)), flow, internal)?;
            let asked = |other: &Candidate| (other.role == Role::Former) == (role == Role::Former);
            if !candidates.iter().any(|other| asked(other) && other.pod == candidate.pod) {
                candidates.push(candidate);
            }
        }
        Ok(candidates)
    }

    fn candidate(&self, role: Role, pod: &Pod, flow: &FlowKey, internal: bool) -> Result<Candidate> {
        let family = if pod.flags & POD_IPV6 == 0 { Family::V4 } else { Family::V6 };
        let ports = flow.ports & 0xffff_0000 | u32::from(pod.port);
        let key = RecordKey::new(flow.source, pod.address, family, flow.protocol, ports);
        let record = self.store.flow_record(&key)?.map(|record| {
            let same = record.vip == flow.destination && record.port() == flow.service_port();
            (key, record, same)
        });
        Ok(Candidate {
            pod: PodKey { address: pod.address.ip(family), port: pod.port },
            role,
            interface: if pod.device == 0 { None } else { self.store.pod_device(pod.device) },
            recorded: internal || pod.flags & POD_RECORD != 0,
            record,
        })
    }
}

/// What a node without a pod does, after so many nanoseconds of that.
fn answer(waited: u64, protocol: u8) -> Reason {
    match protocol {
        _ if waited < NO_POD_GRACE_NS => Reason::NoPod,
        TCP => Reason::ResetSent,
        _ => Reason::UnreachableSent,
    }
}

/// As the program chooses, but that it asks former pods' sockets too.
fn choose(candidates: &[Candidate], flow: &FlowKey, now: u64) -> (Option<usize>, Reason) {
    let same = |candidate: &Candidate| candidate.record.as_ref().is_some_and(|(_, _, same)| *same);
    let live = || candidates.iter().enumerate().filter(|(_, candidate)| candidate.interface.is_some());
    let former = live().find(|(_, c)| c.role == Role::Former && c.recorded && same(c));
    if let Some((index, _)) = former {
        return (Some(index), Reason::DeliveredToFormerPod);
    }
    let (mut recorded, mut free, mut taken) = (false, None, false);
    for (index, candidate) in live().filter(|(_, candidate)| candidate.role != Role::Former) {
        // Once records count, they do for every pod that the flow may have gone to.
        recorded |= candidate.recorded;
        if !recorded || same(candidate) {
            return (Some(index), Reason::DeliveredToPod);
        }
        match &candidate.record {
            Some((_, record, _)) if !record.is_expired(now, flow.protocol) => taken = true,
            _ => free = free.or(Some(index)),
        }
    }
    match (free, taken) {
        (Some(index), _) => (Some(index), Reason::DeliveredToPod),
        (None, true) => (None, Reason::FlowCollision),
        (None, false) => (None, Reason::PodGone),
    }
}
