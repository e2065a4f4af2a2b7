//! Programs on the interfaces that the configuration names; interfaces may come, go and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Result;

use crate::config::Config;
use crate::datapath::Datapath;
use crate::datapath::links::tc::{self, Hook, Way};
use crate::datapath::links::{self, Attached, Taken};
use crate::datapath::object::Program;
use crate::datapath::pins::{Pins, unpin};
use crate::neighbours::Snapshot;
use crate::status::InterfaceStatus;

/// The interfaces of the configuration, by name.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    wanted: BTreeMap<String, Interface>,
}

#[derive(Clone, Debug, Default)]
struct Interface {
    edge: bool,
    node: bool,
    /// The index that our program on the way in is attached to, and which program.
    attached: Option<(u32, Program)>,
    /// The index that our program on the way out is attached to.
    out: Option<u32>,
    index: Option<u32>,
    problem: Option<String>,
    /// Why the way in is not where it is best.
    remark: Option<String>,
}

impl Interfaces {
    pub(super) fn new(config: &Config) -> Self {
        let mut interfaces = Self::default();
        interfaces.reconfigure(config);
        interfaces
    }

    /// Take the interfaces of another configuration; what is attached is remembered.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        let before = std::mem::take(&mut self.wanted);
        for name in config.edge.iter().flat_map(|edge| &edge.interfaces) {
            self.wanted.entry(name.clone()).or_default().edge = true;
        }
        for name in config.node.iter().flat_map(|node| &node.interfaces) {
            self.wanted.entry(name.clone()).or_default().node = true;
        }
        for (name, interface) in &mut self.wanted {
            if let Some(before) = before.get(name) {
                interface.attached = before.attached;
                interface.out = before.out;
                interface.problem.clone_from(&before.problem);
                interface.remark.clone_from(&before.remark);
            }
        }
    }

    /// Whether an interface lacks its program.
    pub(super) fn has_problem(&self) -> bool {
        self.wanted.values().any(|interface| interface.problem.is_some())
    }

    /// Indices of the interfaces that clients' packets come in by.
    pub(super) fn edges(&self, snapshot: &Snapshot) -> BTreeSet<u32> {
        let edges = self.wanted.iter().filter(|(_, interface)| interface.edge);
        edges.filter_map(|(name, _)| snapshot.links.get(name).map(|link| link.index)).collect()
    }

    /// The smallest MTU of the node's uplinks, in bytes; `None` while there are none.
    pub(super) fn uplink_mtu(&self, snapshot: &Snapshot) -> Option<u32> {
        let nodes = self.wanted.iter().filter(|(_, interface)| interface.node);
        nodes.filter_map(|(name, _)| snapshot.links.get(name).map(|link| link.mtu)).min()
    }

    /// Let pods' replies leave as the VIP's before any packet comes to a pod. What fails is said by [`Self::attach`].
    pub(super) fn prepare_replies(&mut self, datapath: &mut Datapath, snapshot: &Snapshot) {
        for (name, interface) in self.wanted.iter_mut().filter(|(_, interface)| interface.node) {
            if let Some(link) = snapshot.links.get(name)
                && let Err(error) = interface.attach_out(datapath, name, link.index)
            {
                tracing::debug!(interface = name, "the way out is not ready: {error:#}");
            }
        }
    }

    /// Indices of the node's interfaces.
    pub(super) fn nodes(&self, snapshot: &Snapshot) -> BTreeSet<u32> {
        let nodes = self.wanted.iter().filter(|(_, interface)| interface.node);
        nodes.filter_map(|(name, _)| snapshot.links.get(name).map(|link| link.index)).collect()
    }

    /// Put programs where they belong, and take them from where they do not. With `replies`, pods' replies leave by the
    /// node's interfaces.
    pub(super) fn attach(&mut self, datapath: &mut Datapath, snapshot: &Snapshot, replies: bool) {
        let mut pins = Vec::new();
        for (name, interface) in &mut self.wanted {
            interface.index = snapshot.links.get(name).map(|link| link.index);
            let Some(index) = interface.index else {
                interface.attached = None;
                interface.out = None;
                say(name, &mut interface.problem, Some(format!("there is no interface {name}; waiting for it")));
                continue;
            };
            let way_out = if interface.node && replies { interface.attach_out(datapath, name, index) } else { Ok(()) };
            let way_in = interface.attach_in(datapath, name, index);
            if !(interface.node && replies) {
                interface.out = None;
            }
            say(name, &mut interface.problem, way_in.and(way_out).err().map(|error| format!("{error:#}")));
            // After the problem is known: what an earlier agent attached stays then.
            pins.extend(interface.pins(&datapath.pins, name));
        }
        let others = links::others(&datapath.pins, &pins).unwrap_or_default();
        for pin in others {
            match tc::release(&pin).and_then(|()| unpin(&pin)) {
                Ok(()) => {
                    tracing::info!(pin = %pin.display(), "detached: no longer configured, or the interface is gone")
                }
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        if !self.has_problem() {
            match datapath.pins.remove_superseded() {
                Ok(versions) => {
                    for version in versions {
                        tracing::info!(pins = %version.display(), "removed the maps of an agent of another version");
                    }
                }
                Err(error) => tracing::error!("{error:#}"),
            }
        }
    }

    /// Whether a program has gone with its pin, or lost its place at the head, which nobody reports.
    pub(super) fn lost_a_place(&self, pins: &Pins) -> bool {
        self.wanted.iter().any(|(name, interface)| {
            let pinned = interface.attached.is_none() || interface.pins(pins, name).iter().all(|pin| pin.exists());
            let first = |hook, index| tc::is_first(pins, name, index, hook).unwrap_or(false);
            let out = interface.out.is_none_or(|index| first(Hook::Out, index));
            let on_tc = interface.attached.filter(|(_, program)| *program == Program::NodeTc);
            !pinned || !out || !on_tc.is_none_or(|(index, _)| first(Hook::In, index))
        })
    }

    /// The interfaces, as status says it.
    pub(super) fn status(&self) -> Vec<InterfaceStatus> {
        let interfaces = self.wanted.iter().map(|(name, interface)| InterfaceStatus {
            name: name.clone(),
            index: interface.index,
            edge: interface.edge,
            node: interface.node,
            attached: interface.attached.is_some(),
            replies: interface.out.is_some(),
            remark: interface.remark.clone(),
            problem: interface.problem.clone(),
        });
        interfaces.collect()
    }
}

impl Interface {
    /// The program of the way in: on XDP, or for a node on TC ingress where XDP is taken.
    fn attach_in(&mut self, datapath: &mut Datapath, name: &str, index: u32) -> Result<()> {
        let Some(program) = Program::for_roles(self.edge, self.node) else { return Ok(()) };
        let is_there = |attached| attached == program || (attached == Program::NodeTc && !self.edge);
        if let Some((there, attached)) = self.attached
            && there == index
            && is_there(attached)
        {
            let pinned = in_pin(&datapath.pins, name, index, attached).exists();
            if pinned && (attached != Program::NodeTc || tc::is_first(&datapath.pins, name, index, Hook::In)?) {
                return Ok(());
            }
            if !pinned {
                tracing::error!(interface = name, "somebody removed the pin of our program, and the program with it");
            }
        }
        self.attached = None;
        datapath.pins.prepare()?;
        let (how, program) = match links::attach(&mut datapath.object, program, &datapath.pins, name, index) {
            Ok(how) => {
                self.remark = None;
                (how, program)
            }
            Err(error) if error.is::<Taken>() && !self.edge => {
                self.remark = Some(format!("another XDP program is on {name}: tunnel packets are taken on TC ingress"));
                let way = Way::of_this_kernel();
                let how = tc::attach(&mut datapath.object, &datapath.pins, name, index, Hook::In, way)?;
                (how, Program::NodeTc)
            }
            Err(error) => return Err(error),
        };
        tell(name, index, program, how);
        self.attached = Some((index, program));
        Ok(())
    }

    /// The program of the way out, at the head.
    fn attach_out(&mut self, datapath: &mut Datapath, name: &str, index: u32) -> Result<()> {
        let pins = &datapath.pins;
        let there = out_pins(pins, name, index).iter().any(|pin| pin.exists());
        if self.out == Some(index) && there && tc::is_first(pins, name, index, Hook::Out)? {
            return Ok(());
        }
        if self.out == Some(index) {
            tracing::warn!(interface = name, there, "our program lost its place on the way out; putting it back");
        }
        self.out = None;
        pins.prepare()?;
        let way = Way::of_this_kernel();
        let how = tc::attach(&mut datapath.object, &datapath.pins, name, index, Hook::Out, way)?;
        tell(name, index, Program::Return, how);
        self.out = Some(index);
        Ok(())
    }

    /// The pins of what is attached. Where that failed, what an earlier agent attached is better than nothing.
    fn pins(&self, pins: &Pins, name: &str) -> Vec<PathBuf> {
        let Some(index) = self.index else { return Vec::new() };
        let way_in = match self.attached {
            Some((index, program)) => vec![in_pin(pins, name, index, program)],
            None => [Program::Node, Program::NodeTc].map(|program| in_pin(pins, name, index, program)).to_vec(),
        };
        let way_out = out_pins(pins, name, index).into_iter().filter(|_| self.out.is_some() || self.problem.is_some());
        way_in.into_iter().chain(way_out.filter(|pin| pin.exists())).collect()
    }
}

fn in_pin(pins: &Pins, name: &str, index: u32, program: Program) -> PathBuf {
    match (program, Way::of_this_kernel()) {
        (Program::NodeTc, Way::Tcx) => tc::tcx_pin(pins, name, index, Hook::In),
        (Program::NodeTc, Way::Clsact) => tc::clsact_pin(pins, name, index, Hook::In),
        _ => pins.link(name, index),
    }
}

fn out_pins(pins: &Pins, name: &str, index: u32) -> [PathBuf; 2] {
    [tc::tcx_pin(pins, name, index, Hook::Out), tc::clsact_pin(pins, name, index, Hook::Out)]
}

fn tell(name: &str, index: u32, program: Program, how: Attached) {
    let how = if how == Attached::New { "attached" } else { "replaced our older program" };
    tracing::info!(interface = name, index, program = program.name(), "{how}");
}

/// Keep a problem, and log it once.
fn say(name: &str, place: &mut Option<String>, problem: Option<String>) {
    if let Some(problem) = &problem
        && place.as_ref() != Some(problem)
    {
        tracing::error!(interface = name, "{problem}");
    }
    *place = problem;
}
