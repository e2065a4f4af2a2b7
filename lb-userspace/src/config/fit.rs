//! What fits together: nothing twice, no address in two parts, everything within the maps.
//!
//! Every check is one pass with a hash map: files of 100,000 backends are read at each change.

mod pods;
mod prefixes;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::document::SLOTS;
use super::error::ConfigError;
use super::read::Reader;
use super::service::Draft;
use super::tree::Node;
use super::{MapSizes, Protocol};
use crate::model::{Prefix, TunnelSource};

/// Most backends of a service: a slot names one by 16 bits, and one value stays free.
const MAX_BACKENDS: usize = u16::MAX as usize;

/// All that is checked together.
pub(super) struct Whole<'a, 't> {
    pub(super) root: Node<'t>,
    pub(super) services: &'a [Draft<'t>],
    pub(super) tunnel_source: TunnelSource,
    pub(super) internal_networks: &'a [Prefix],
    /// `None` where their own errors are noted.
    pub(super) maps: Option<MapSizes>,
}

/// Notes everything that does not fit.
pub(super) fn check(reader: &mut Reader, whole: &Whole<'_, '_>) {
    names(reader, whole.services);
    ports(reader, whole.services);
    let vips = vips(whole.services);
    backends(reader, whole.services, &vips);
    pods::check(reader, whole.services, &vips);
    prefixes::tunnel_source(reader, whole);
    prefixes::internal_networks(reader, whole);
    capacity(reader, whole);
}

fn names(reader: &mut Reader, services: &[Draft<'_>]) {
    let mut names = HashMap::new();
    for service in services {
        let Some(name) = &service.name else { continue };
        if let Some(first) = names.get(name) {
            let first: &Node<'_> = first;
            let message = format!("{name:?} is the name of {} too; every service has its own", first.path());
            reader.error_in(service.node, "name", message);
        } else {
            names.insert(name, service.node);
        }
    }
}

fn ports(reader: &mut Reader, services: &[Draft<'_>]) {
    let mut keys: HashMap<(IpAddr, Protocol, u16), Node<'_>> = HashMap::new();
    for service in services {
        let mut names: HashMap<&str, Node<'_>> = HashMap::new();
        for port in &service.ports {
            if let Some((address, (protocol, number))) = service.address.zip(port.key) {
                if let Some(first) = keys.get(&(address, protocol, number)) {
                    let key = key_text(address, protocol, number);
                    let message = format!("{key} is taken by {}; a VIP's port has one service", first.path());
                    reader.error_in(port.node, "port", message);
                } else {
                    keys.insert((address, protocol, number), port.node);
                }
            }
            let Some(name) = port.config.as_ref().and_then(|config| config.name.as_deref()) else { continue };
            if let Some(first) = names.get(name) {
                let message = format!("{name:?} is the name of {} too; every port has its own", first.path());
                reader.error_in(port.node, "name", message);
            } else {
                names.insert(name, port.node);
            }
        }
    }
}

fn key_text(address: IpAddr, protocol: Protocol, port: u16) -> String {
    let protocol = crate::model::protocol_name(protocol.number());
    match address {
        IpAddr::V4(v4) => format!("{v4}:{port}/{protocol}"),
        IpAddr::V6(v6) => format!("[{v6}]:{port}/{protocol}"),
    }
}

/// The VIPs, each with its first service.
fn vips<'t>(services: &[Draft<'t>]) -> HashMap<IpAddr, Node<'t>> {
    let mut vips = HashMap::new();
    for service in services {
        if let Some(address) = service.address {
            vips.entry(address).or_insert(service.node);
        }
    }
    vips
}

fn backends(reader: &mut Reader, services: &[Draft<'_>], vips: &HashMap<IpAddr, Node<'_>>) {
    for service in services {
        let mut seen = HashSet::new();
        for backend in &service.backends {
            let Some(address) = backend.address else { continue };
            if let Some(vip) = vips.get(&address) {
                let message = format!("{address} is the VIP of {}; a backend has an address of its own", vip.path());
                reader.error_in(backend.node, "address", message);
            }
            if !seen.insert(address) {
                let message = format!("{address} stands twice in this service; keep one");
                reader.error_in(backend.node, "address", message);
            }
        }
        if service.backends.len() > MAX_BACKENDS {
            let message =
                format!("{} backends are too many: a service has up to {MAX_BACKENDS}", service.backends.len());
            reader.error_in(service.node, "backends", message);
        }
    }
}

fn capacity(reader: &mut Reader, whole: &Whole<'_, '_>) {
    let Some(maps) = whole.maps else { return };
    let (mut services, mut backends, mut pods, mut slots) = (0u64, 0u64, 0u64, 0u64);
    for service in whole.services {
        let ports = service.ports.len() as u64;
        services += ports;
        backends += ports * service.backends.len() as u64;
        pods += ports * service.backends.iter().map(|backend| backend.pods.len() as u64).sum::<u64>();
        slots += ports * u64::from(service.slots.unwrap_or_default());
    }
    if services > u64::from(maps.services) {
        let message =
            format!("{} is too small: the services have {services} ports; write at least {services}", maps.services);
        too_small(reader, whole.root, "services", message);
    }
    let entries = backends + pods;
    if entries > u64::from(maps.backends) {
        let things = if pods > 0 { "backends and pods" } else { "backends" };
        let message = format!(
            "{} is too small: the services have {entries} {things}, counted for each port; write at least {entries}",
            maps.backends
        );
        too_small(reader, whole.root, "backends", message);
    }
    let needed = slots * 2;
    if needed > u64::from(maps.slots) {
        let way_out = if needed > u64::from(*SLOTS.end()) {
            format!("give services fewer slots: {} at most fit in any map", SLOTS.end() / 2)
        } else {
            format!("write at least {needed}, or give services fewer slots")
        };
        let message = format!(
            "{} is too small: the tables have {slots} slots, and need as many again while they are replaced; {way_out}",
            maps.slots
        );
        too_small(reader, whole.root, "slots", message);
    }
}

fn too_small(reader: &mut Reader, root: Node<'_>, key: &str, message: String) {
    match root.get("maps") {
        Some(maps) => reader.error_in(maps, key, message),
        None => reader.errors.push(ConfigError { path: format!("maps.{key}"), message, line: None }),
    }
}
