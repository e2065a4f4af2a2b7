//! How much memory a pinned map takes, and how much of it is used.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, MapType, PerCpuArray};

use super::batch;
use super::pins::Pins;

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapMemory {
    /// The name of its pin, in lower case.
    pub name: String,
    /// Its kind, as the kernel's headers call it.
    pub kind: String,
    /// How many entries fit.
    pub capacity: u64,
    /// How many there are; `None` for arrays, which have all their entries always, and for maps that would have to be
    /// walked key by key.
    pub used: Option<u64>,
    /// Bytes of the kernel's memory (`memlock` of the map's descriptor: what it takes now from kernel 6.4 on, before
    /// that an estimate for a full one).
    pub bytes: u64,
}

/// All maps that are pinned, by name.
///
/// # Errors
/// A pin is not a map, or the kernel does not say.
pub fn of_pins(pins: &Pins) -> Result<Vec<MapMemory>> {
    let mut maps: Vec<_> = pins.all_maps()?.iter().map(|pin| of_pin(pin)).collect::<Result<_>>()?;
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(maps)
}

fn of_pin(pin: &Path) -> Result<MapMemory> {
    let shown = || pin.display().to_string();
    let map = MapData::from_pin(pin).with_context(shown)?;
    let info = map.info().with_context(shown)?;
    let kind = info.map_type().with_context(shown)?;
    let used = match kind {
        MapType::Hash | MapType::LruHash => Some(batch::count(&map).with_context(shown)?),
        _ => None,
    };
    Ok(MapMemory {
        name: pin.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        kind: kind_name(kind),
        capacity: u64::from(info.max_entries()),
        used,
        bytes: bytes(&map).with_context(shown)?,
    })
}

/// Bytes of the kernel's memory that a map takes.
///
/// # Errors
/// The kernel does not say.
pub fn bytes(map: &MapData) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    memlock(&text).with_context(|| format!("{path} has no memlock"))
}

fn memlock(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

/// `LruHash` as `lru_hash`.
fn kind_name(kind: MapType) -> String {
    let mut name = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// How many flows were recorded since the maps were made, summed over the CPUs.
///
/// # Errors
/// Nothing is pinned, or the map cannot be read.
pub fn recorded(pins: &Pins) -> Result<u64> {
    let pin = pins.maps().join("recorded");
    let map = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
    let counts: PerCpuArray<MapData, u64> = Map::PerCpuArray(map).try_into().context("the number of recorded flows")?;
    Ok(counts.get(&0, 0).context("reading the number of recorded flows")?.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_map() {
        let text = "pos:\t0\nflags:\t02000002\nmap_type:\t9\nmax_entries:\t1048576\nmemlock:\t152043520\nmap_id:\t7\n";
        assert_eq!(memlock(text), Some(152_043_520));
        assert_eq!(memlock("pos:\t0\n"), None);
    }

    #[test]
    fn kinds_are_called_as_in_the_kernel() {
        assert_eq!(kind_name(MapType::LruHash), "lru_hash");
        assert_eq!(kind_name(MapType::Array), "array");
    }
}
