//! Programs on the interfaces that the configuration names; interfaces may come, go and come back.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;
use crate::datapath::Datapath;
use crate::datapath::links::{self, Attached};
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
    /// The index that our program is attached to, and which program.
    attached: Option<(u32, Program)>,
    index: Option<u32>,
    problem: Option<String>,
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
                interface.problem.clone_from(&before.problem);
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

    /// Put programs where they belong, and take them from where they do not.
    pub(super) fn attach(&mut self, datapath: &mut Datapath, snapshot: &Snapshot) {
        let mut pins = Vec::new();
        for (name, interface) in &mut self.wanted {
            interface.index = snapshot.links.get(name).map(|link| link.index);
            let Some(index) = interface.index else {
                interface.attached = None;
                say(name, &mut interface.problem, Some(format!("there is no interface {name}; waiting for it")));
                continue;
            };
            let pin = datapath.pins.link(name, index);
            let pinned = pin.exists();
            pins.push(pin);
            let Some(program) = Program::for_roles(interface.edge, interface.node) else { continue };
            if interface.attached == Some((index, program)) {
                if pinned {
                    continue;
                }
                tracing::error!(interface = name, "somebody removed the pin of our program, and the program with it");
            }
            let ready = datapath.pins.prepare();
            let attached =
                ready.and_then(|()| links::attach(&mut datapath.object, program, &datapath.pins, name, index));
            let problem = match attached {
                Ok(how) => {
                    let how = if how == Attached::New { "attached" } else { "replaced our older program" };
                    tracing::info!(interface = name, index, program = program.name(), "{how}");
                    interface.attached = Some((index, program));
                    None
                }
                Err(error) => {
                    interface.attached = None;
                    Some(format!("{error:#}"))
                }
            };
            say(name, &mut interface.problem, problem);
        }
        let others = links::others(&datapath.pins, &pins).unwrap_or_default();
        for pin in others {
            match unpin(&pin) {
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

    /// Whether a program has gone with its pin, which nobody reports.
    pub(super) fn lost_a_pin(&self, pins: &Pins) -> bool {
        self.wanted
            .iter()
            .any(|(name, interface)| interface.attached.is_some_and(|(index, _)| !pins.link(name, index).exists()))
    }

    /// The interfaces, as status says it.
    pub(super) fn status(&self) -> Vec<InterfaceStatus> {
        let interfaces = self.wanted.iter().map(|(name, interface)| InterfaceStatus {
            name: name.clone(),
            index: interface.index,
            edge: interface.edge,
            node: interface.node,
            attached: interface.attached.is_some(),
            problem: interface.problem.clone(),
        });
        interfaces.collect()
    }
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
