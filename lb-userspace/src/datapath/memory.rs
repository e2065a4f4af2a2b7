//! What the maps cost.

use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::maps::MapData;

use super::pins::Pins;

/// A pinned map and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapMemory {
    /// Its name, as [`super::object::MAPS`] has it.
    pub name: String,
    /// As many entries as fit.
    pub entries: u32,
    /// Bytes of the kernel's memory.
    pub bytes: u64,
}

/// The memory of every map that is pinned, by name.
///
/// # Errors
/// A pin cannot be opened, or is no map.
pub fn of_pins(pins: &Pins) -> Result<Vec<MapMemory>> {
    let mut maps = Vec::new();
    for pin in pins.all_maps()? {
        let map = MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?;
        let info = map.info().with_context(|| format!("reading the sizes of {}", pin.display()))?;
        let name = pin.file_name().map(|name| name.to_string_lossy().to_uppercase()).unwrap_or_default();
        let values = u64::from(info.key_size()) + u64::from(info.value_size());
        let bytes = memlock(&map).unwrap_or(u64::from(info.max_entries()) * values);
        maps.push(MapMemory { name, entries: info.max_entries(), bytes });
    }
    maps.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(maps)
}

/// What the kernel says of a map: `memlock` in its descriptor's fdinfo, from kernel 6.4 on what it really takes, before
/// that an estimate (bpf_map_show_fdinfo).
fn memlock(map: &MapData) -> Option<u64> {
    let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).ok()?;
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}
