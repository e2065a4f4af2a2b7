//! `beeline status --maps`: the pinned maps, how full they are, and the memory that they take.

use anyhow::{Result, bail};
use serde::Serialize;

use super::super::client::Asked;
use super::super::table::{Side, Table};
use super::{fill, unknown};
use crate::datapath::memory::{self, MapMemory};
use crate::datapath::pins::Pins;
use crate::status::MapStatus;

/// All that is printed.
#[derive(Debug, Serialize)]
struct Memory {
    maps: Vec<Row>,
    /// Bytes of all maps.
    bytes: u64,
    flows: Flows,
    /// Why arrays' use is not known.
    no_agent: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    name: String,
    kind: String,
    used: Option<u64>,
    capacity: u64,
    bytes: u64,
}

/// The recorded flows.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Flows {
    /// Recorded since the maps were made.
    recorded: u64,
    /// Still there, expired ones included.
    there: u64,
    /// The others: pushed out of a full map, or expired and replaced by another flow of the same client and port.
    evicted: u64,
}

pub(super) fn run(asked: &Asked) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the pinned maps are read by root alone: ask with sudo");
    }
    let pins = Pins::new(&asked.pin_path()?);
    // The number that were recorded first: one that is recorded meanwhile is not taken for one that was evicted.
    let recorded = memory::recorded(&pins)?;
    let maps = memory::of_pins(&pins)?;
    let (known, no_agent) = match asked.fetch() {
        Ok(status) => (status.maps, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let memory = Memory::new(maps, &known, recorded, no_agent);
    asked.print(&memory, || render(&memory))
}

/// The name by which the agent knows how full an array is, and how many of those are one entry of the map.
fn known_as(pin: &str) -> Option<(&'static str, u64)> {
    Some(match pin {
        "service_words" | "pod_words" => ("services", 1),
        // Four slots share a word.
        "slots" => ("slots", 4),
        "backends" => ("backends", 1),
        "next_hops" => ("next_hops", 1),
        "pods" => ("pods", 1),
        "pod_cells" => ("pod_slots", 1),
        "pod_devices" => ("pod_devices", 1),
        "reply_words" | "reply_targets" | "reply_counters" => ("replies", 1),
        "internal" => ("internal_networks", 1),
        _ => return None,
    })
}

impl Memory {
    fn new(maps: Vec<MapMemory>, known: &[MapStatus], recorded: u64, no_agent: Option<String>) -> Self {
        let there = maps.iter().find(|map| map.name == "records").and_then(|map| map.used).unwrap_or(0);
        let rows = maps.into_iter().map(|map| {
            let as_agent = known_as(&map.name).and_then(|(name, each)| {
                let status = known.iter().find(|status| status.name == name)?;
                Some((status.used?, each))
            });
            let (used, each) = match as_agent {
                Some((used, each)) => (Some(used), each),
                None => (map.used, known_as(&map.name).map_or(1, |(_, each)| each)),
            };
            Row { name: map.name, kind: map.kind, used, capacity: map.capacity * each, bytes: map.bytes }
        });
        let maps: Vec<_> = rows.collect();
        let bytes = maps.iter().map(|map| map.bytes).sum();
        Self { maps, bytes, flows: Flows { recorded, there, evicted: recorded.saturating_sub(there) }, no_agent }
    }
}

fn render(memory: &Memory) -> String {
    let mut table = Table::new([
        ("MAP", Side::Left),
        ("KIND", Side::Left),
        ("USED", Side::Right),
        ("CAPACITY", Side::Right),
        ("FILL", Side::Right),
        ("BYTES", Side::Right),
    ]);
    for Row { name, kind, used, capacity, bytes } in &memory.maps {
        let shown = used.map_or_else(unknown, |used| used.to_string());
        table.row([name.clone(), kind.clone(), shown, capacity.to_string(), fill(*used, *capacity), bytes.to_string()]);
    }
    let Flows { recorded, there, evicted } = memory.flows;
    let mut text = table.render();
    text.push_str(&format!("\nmemory          {} bytes in {} maps\n", memory.bytes, memory.maps.len()));
    text.push_str(&format!("recorded flows  {recorded} ever, {there} there, {evicted} evicted or replaced\n"));
    if let Some(error) = &memory.no_agent {
        text.push_str(&format!("how full arrays are only an agent knows: {error}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(no_agent: Option<String>) -> Memory {
        let map = |name: &str, kind: &str, capacity, used, bytes| MapMemory {
            name: name.to_owned(),
            kind: kind.to_owned(),
            capacity,
            used,
            bytes,
        };
        let maps = vec![
            map("records", "lru_hash", 1_000_000, Some(200_000), 152_043_520),
            map("slots", "array", 1024, None, 8_544),
            map("trace", "array", 1, None, 344),
        ];
        let known = [MapStatus { name: "slots".to_owned(), used: Some(64), capacity: 4096 }];
        Memory::new(maps, if no_agent.is_some() { &[] } else { &known }, 200_321, no_agent)
    }

    #[test]
    fn maps_line_up() {
        let text = render(&memory(None));
        assert_eq!(
            text,
            "\
MAP      KIND        USED  CAPACITY  FILL      BYTES
records  lru_hash  200000   1000000   20%  152043520
slots    array         64      4096    1%       8544
trace    array          -         1     -        344

memory          152052408 bytes in 3 maps
recorded flows  200321 ever, 200000 there, 321 evicted or replaced
"
        );
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
        assert!(page.contains(&text), "docs/operations.md lacks this:\n{text}");
        let json = serde_json::to_value(memory(None)).expect("JSON");
        assert_eq!(json["flows"]["evicted"], 321);
        assert_eq!(json["maps"][1]["used"], 64);
    }

    #[test]
    fn without_an_agent_arrays_are_of_unknown_fill() {
        let text = render(&memory(Some("no agent answers".to_owned())));
        assert!(text.contains("\nslots    array          -      4096     -       8544\n"), "{text}");
        assert!(text.ends_with("only an agent knows: no agent answers\n"), "{text}");
    }
}
