//! The datapath: BPF maps and programs, and the tables in them.
//!
//! [`tables`] carries out the plan's steps on a [`store`]: BPF maps ([`kernel`]) or plain collections ([`host`]).
//! [`object`] loads the programs, [`pins`] keeps maps and links alive without the agent.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::MapData;

use crate::config::MapSizes;
use kernel::KernelMaps;
use pins::Pins;
use tables::Tables;

mod adopt;
pub mod batch;
mod build;
pub mod host;
pub mod kernel;
pub mod links;
pub mod look;
mod mapped;
pub mod memory;
pub mod object;
mod packet_log;
pub mod pins;
mod quarantine;
pub mod store;
pub mod tables;

pub use quarantine::QUARANTINE;

/// The programs and maps of an agent, pinned.
pub struct Datapath {
    /// The loaded object.
    pub object: Ebpf,
    /// The tables in its maps.
    pub tables: Tables<KernelMaps>,
    /// Where it is pinned.
    pub pins: Pins,
}

impl Datapath {
    /// Open the datapath that is pinned under a path, or make a new one: for a host with `pods`, which is a node, or for
    /// another.
    ///
    /// # Errors
    /// No right to use BPF, no BPF filesystem, or pins that do not fit the configuration.
    pub fn open(sizes: &MapSizes, pods: bool, pin_path: &Path, debug: bool) -> Result<Self> {
        let pins = Pins::new(pin_path);
        pins.prepare()?;
        check_pins(&pins, sizes, pods)?;
        let mut object = object::load(sizes, pods, Some(&pins.maps()), debug)?;
        let (tables, notes) = Tables::adopt(KernelMaps::new(&mut object)?, std::time::Instant::now())?;
        for note in notes {
            tracing::warn!("what another agent left does not hold together: {note}");
        }
        if !tables.installed().is_empty() {
            tracing::info!(services = tables.installed().len(), "adopted the datapath of an earlier agent");
        }
        object::link_stages(&mut object)?;
        if debug {
            packet_log::follow(&mut object)?;
        }
        Ok(Self { object, tables, pins })
    }
}

/// Whether this process may be an agent at all: asked before it takes anything.
///
/// # Errors
/// It is not root.
pub fn check_rights() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("an agent needs root (or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON as root in a container)");
    }
    Ok(())
}

/// Maps are reused with no check by the kernel: compare their sizes with the configuration's.
fn check_pins(pins: &Pins, sizes: &MapSizes, pods: bool) -> Result<()> {
    let wanted = object::map_entries(sizes, pods);
    for pin in pins.all_maps()? {
        let info = MapData::from_pin(&pin).and_then(|map| map.info());
        let info =
            info.with_context(|| format!("{} is no map of ours: remove it, or choose another pinPath", pin.display()))?;
        let name = pin.file_name().map(|name| name.to_string_lossy().to_uppercase()).unwrap_or_default();
        let want = wanted.iter().find(|(map, _)| *map == name);
        if let Some((_, entries)) = want
            && info.max_entries() != *entries
            && !(info.max_entries() > *entries && object::may_be_larger(&name, pods))
        {
            bail!(
                "{} holds {} entries, and the configuration's maps and roles ask for {entries}: set them back, or \
                 `beeline detach` (forwarding stops) and start again",
                pin.display(),
                info.max_entries()
            );
        }
    }
    Ok(())
}
