//! The document from its top down; services are read in [`super::service`].

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use lb_common::maps::SLOTS_UNIT;

use super::fit::{self, Whole};
use super::read::Reader;
use super::tree::{Node, Value};
use super::{Config, EdgeConfig, MapSizes, MssClamp, NodeConfig, scalars, service};
use crate::model::{Prefix, TunnelSource};

const API_VERSION: &str = "beeline.dev/v1";
const KIND: &str = "Config";
const DEFAULT_TRANSITION: Duration = Duration::from_secs(24 * 3600);
/// The folder of the pins where the file names none.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/beeline";
const DEFAULT_METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9469);

/// Bounds of the maps' sizes. Slots take 2 bytes each, a backend or pod 64 and its counters, a flow about 100.
const SERVICES: RangeInclusive<u32> = 1..=1_000_000;
const BACKENDS: RangeInclusive<u32> = 1..=16_777_216;
pub(super) const SLOTS: RangeInclusive<u32> = SLOTS_UNIT..=1 << 30;
const FLOWS: RangeInclusive<u32> = 1..=67_108_864;

/// Reads a whole configuration; `None` only where an error says why.
pub(super) fn read(reader: &mut Reader, root: Node<'_>) -> Option<Config> {
    if let Value::Null = root.value() {
        reader.error(root, "the file is empty; it needs apiVersion, kind and hashSeed");
        return None;
    }
    let known =
        ["apiVersion", "kind", "hashSeed", "edge", "node", "transition", "maps", "pinPath", "metrics", "services"];
    if !reader.fields(root, &known) {
        return None;
    }
    constant(reader, root, "apiVersion", API_VERSION);
    constant(reader, root, "kind", KIND);
    let seed = reader.required(root, "hashSeed", "a number, the same on every edge and node and known to nobody else");
    let hash_seed = seed.and_then(|node| reader.number(node, 0..=u64::MAX));
    let edge = reader.optional(root, "edge", None, |reader, node| edge(reader, node).map(Some));
    let node = reader.optional(root, "node", None, |reader, node| self::node(reader, node).map(Some));
    let transition_max = reader.optional(root, "transition", DEFAULT_TRANSITION, transition);
    let maps = reader.optional(root, "maps", MapSizes::default(), maps);
    let pin_path = reader.optional(root, "pinPath", PathBuf::from(DEFAULT_PIN_PATH), |reader, node| {
        reader.parsed(node, scalars::pin_path)
    });
    let metrics_listen = reader.optional(root, "metrics", SocketAddr::from(DEFAULT_METRICS), metrics);
    let drafts = reader.optional(root, "services", Vec::new(), service::drafts)?;
    let tunnel_source = edge.as_ref().and_then(Option::as_ref).map(|edge| edge.tunnel_source).unwrap_or_default();
    let internal_networks = node.as_ref().and_then(Option::as_ref).map(|node| node.internal_networks.as_slice());
    let internal_networks = internal_networks.unwrap_or_default();
    fit::check(reader, &Whole { root, services: &drafts, tunnel_source, internal_networks, maps });
    Some(Config {
        hash_seed: hash_seed?,
        edge: edge?,
        node: node?,
        transition_max: transition_max?,
        maps: maps?,
        pin_path: pin_path?,
        metrics_listen: metrics_listen?,
        services: drafts.into_iter().map(service::Draft::finish).collect::<Option<_>>()?,
    })
}

fn constant(reader: &mut Reader, root: Node<'_>, key: &str, value: &str) {
    let node = reader.required(root, key, &format!("write {key}: {value}"));
    if let Some(node) = node
        && !matches!(node.value(), Value::Text(text) if text == value)
    {
        reader.error(node, format!("{} is not {value}, the only one that this release reads", node.shown()));
    }
}

fn edge(reader: &mut Reader, node: Node<'_>) -> Option<EdgeConfig> {
    if !reader.fields(node, &["interfaces", "tunnelSource"]) {
        return None;
    }
    let interfaces = reader.optional(node, "interfaces", Vec::new(), interfaces);
    let tunnel_source = reader.optional(node, "tunnelSource", TunnelSource::default(), tunnel_source);
    Some(EdgeConfig { interfaces: interfaces?, tunnel_source: tunnel_source? })
}

fn tunnel_source(reader: &mut Reader, node: Node<'_>) -> Option<TunnelSource> {
    if !reader.fields(node, &["ipv4", "ipv6"]) {
        return None;
    }
    let mut source = |key, ipv4| {
        reader.optional(node, key, None, |reader, node| {
            reader.parsed(node, |text| scalars::source_prefix(text, ipv4)).map(Some)
        })
    };
    let (ipv4, ipv6) = (source("ipv4", true), source("ipv6", false));
    Some(TunnelSource { ipv4: ipv4?, ipv6: ipv6? })
}

fn node(reader: &mut Reader, node: Node<'_>) -> Option<NodeConfig> {
    let known = ["interfaces", "trustedSources", "internalNetworks", "directPodAccess", "mssClamp", "natExemption"];
    if !reader.fields(node, &known) {
        return None;
    }
    let interfaces = reader.optional(node, "interfaces", Vec::new(), interfaces);
    let trusted = reader.required(node, "trustedSources", "the outer sources of the edges; all others are dropped");
    let trusted_sources = trusted.and_then(|list| {
        let prefixes = prefixes(reader, list)?;
        if list.members().next().is_none() {
            reader.error(list, "is empty: every tunnel packet would be dropped; name the edges' outer sources");
        }
        Some(prefixes)
    });
    let internal_networks = reader.optional(node, "internalNetworks", Vec::new(), prefixes);
    let direct_pod_access = reader.optional(node, "directPodAccess", false, Reader::flag);
    let mss_clamp =
        reader.optional(node, "mssClamp", MssClamp::Auto, |reader, node| reader.parsed(node, scalars::mss_clamp));
    let nat_exemption = reader.optional(node, "natExemption", false, Reader::flag);
    Some(NodeConfig {
        interfaces: interfaces?,
        trusted_sources: trusted_sources?,
        internal_networks: internal_networks?,
        direct_pod_access: direct_pod_access?,
        mss_clamp: mss_clamp?,
        nat_exemption: nat_exemption?,
    })
}

fn interfaces(reader: &mut Reader, node: Node<'_>) -> Option<Vec<String>> {
    let members = reader.list(node)?;
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    let mut complete = true;
    for member in members {
        let name = reader.text(member).and_then(|_| reader.parsed(member, scalars::interface));
        let Some(name) = name else {
            complete = false;
            continue;
        };
        if !seen.insert(name.clone()) {
            reader.error(member, format!("{name:?} stands here twice; keep one"));
        }
        names.push(name);
    }
    if complete && names.is_empty() {
        reader.error(node, "is empty; name the interfaces, such as [eth0]");
    }
    complete.then_some(names)
}

/// A list of prefixes.
pub(super) fn prefixes(reader: &mut Reader, node: Node<'_>) -> Option<Vec<Prefix>> {
    let members = reader.list(node)?;
    // Every member is read before the first bad one ends it.
    let prefixes: Vec<_> = members.map(|member| reader.parsed(member, scalars::prefix)).collect();
    prefixes.into_iter().collect()
}

fn transition(reader: &mut Reader, node: Node<'_>) -> Option<Duration> {
    if !reader.fields(node, &["max"]) {
        return None;
    }
    reader.optional(node, "max", DEFAULT_TRANSITION, |reader, node| reader.parsed(node, scalars::transition))
}

fn maps(reader: &mut Reader, node: Node<'_>) -> Option<MapSizes> {
    if !reader.fields(node, &["services", "backends", "slots", "flows"]) {
        return None;
    }
    let default = MapSizes::default();
    let mut size = |key, default, range: RangeInclusive<u32>| {
        reader.optional(node, key, default, |reader, node| reader.number(node, range))
    };
    let services = size("services", default.services, SERVICES);
    let backends = size("backends", default.backends, BACKENDS);
    let flows = size("flows", default.flows, FLOWS);
    let slots = size("slots", default.slots, SLOTS).filter(|slots| {
        let fits = slots.is_multiple_of(SLOTS_UNIT);
        if !fits {
            let (below, above) = (slots / SLOTS_UNIT * SLOTS_UNIT, slots.next_multiple_of(SLOTS_UNIT));
            let message = format!("{slots} is not a multiple of {SLOTS_UNIT}; the nearest are {below} and {above}");
            reader.error_in(node, "slots", message);
        }
        fits
    });
    Some(MapSizes { services: services?, backends: backends?, slots: slots?, flows: flows? })
}

fn metrics(reader: &mut Reader, node: Node<'_>) -> Option<SocketAddr> {
    if !reader.fields(node, &["listen"]) {
        return None;
    }
    let default = SocketAddr::from(DEFAULT_METRICS);
    reader.optional(node, "listen", default, |reader, node| reader.parsed(node, scalars::listen))
}
