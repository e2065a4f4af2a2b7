//! The configuration file: one YAML document, read strictly.
//!
//! Reading never stops at the first error: [`parse`] gives either a [`Config`] in which everything is valid by itself
//! and fits together, or all that is wrong, each thing with its path, its place and the way out. What the schema knows
//! and this release does not do is refused, never ignored.

mod advice;
mod backend;
mod document;
mod error;
mod fit;
mod read;
mod scalars;
mod service;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use document::DEFAULT_PIN_PATH;
pub use error::{ConfigError, ConfigErrors, LoadError, Position};

use crate::model::{Algorithm, Delivery, Prefix, TunnelSource};

/// Largest file that is read, in bytes: several times what 100,000 backends take.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Seed of the flow hash and of the tables; the same on every edge and node.
    pub hash_seed: u64,
    /// The edge's part, where this host is one.
    pub edge: Option<EdgeConfig>,
    /// The node's part, where this host is one.
    pub node: Option<NodeConfig>,
    /// How long a moved slot still asks who owned it before.
    pub transition_max: Duration,
    /// Sizes of the maps.
    pub maps: MapSizes,
    /// The folder of the pins, on a BPF filesystem; each ABI version has one of its own in it.
    pub pin_path: PathBuf,
    /// Where metrics and health are served.
    pub metrics_listen: SocketAddr,
    /// The services.
    pub services: Vec<ServiceConfig>,
}

/// The edge's part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// The interfaces that clients' packets come in by; empty where the file names none.
    pub interfaces: Vec<String>,
    /// Prefixes that outer sources are taken from.
    pub tunnel_source: TunnelSource,
}

/// The node's part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The uplinks: tunnel packets come in by them, and replies leave; empty where the file names none.
    pub interfaces: Vec<String>,
    /// Outer sources that tunnel packets are accepted from; at least one.
    pub trusted_sources: Vec<Prefix>,
    /// Addresses of pods, nodes and Services: replies to them are not rewritten.
    pub internal_networks: Vec<Prefix>,
    /// Whether clients outside reach pods by their own addresses too.
    pub direct_pod_access: bool,
    /// What the MSS of a SYN-ACK is lowered to.
    pub mss_clamp: MssClamp,
    /// Whether pods' replies are kept out of the node's NAT by an nftables table of our own.
    pub nat_exemption: bool,
}

/// What the MSS of a SYN-ACK is lowered to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// What two tunnel headers leave of the uplink's MTU.
    #[default]
    Auto,
    /// Never lowered.
    Off,
    /// This many bytes.
    Bytes(u16),
}

/// Sizes of the maps, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// VIP, protocol and port triples.
    pub services: u32,
    /// Backends and pods, counted once for each port of each service that has them.
    pub backends: u32,
    /// Slots of all tables, and of the tables that replace them while they are rebuilt.
    pub slots: u32,
    /// Recorded flows.
    pub flows: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self { services: 10_000, backends: 100_000, slots: 8_388_608, flows: 1_000_000 }
    }
}

/// A service: one VIP, some ports, some backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Its name; no other service has it.
    pub name: String,
    /// The VIP.
    pub address: IpAddr,
    /// The ports; at least one.
    pub ports: Vec<PortConfig>,
    /// How packets get to backends.
    pub forwarding: Forwarding,
    /// How tables are built.
    pub algorithm: Algorithm,
    /// Slots of the table of each port; a power of two.
    pub slots: u32,
    /// What a backend does with a packet.
    pub delivery: Delivery,
    /// Which flows stay together.
    pub affinity: Affinity,
    /// Clients that may use it; empty for everyone.
    pub allow: Vec<Prefix>,
    /// The backends, each address once.
    pub backends: Vec<BackendConfig>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Its name; no other port of the service has it.
    pub name: Option<String>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port; 0 for all ports of the protocol that the VIP has no service for.
    pub port: u16,
    /// The port on the backend, or in its pods that name none; 0 where `port` is.
    pub target_port: u16,
}

/// A protocol that services may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP (RFC 9293).
    #[default]
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// How packets get to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// By IP in IP tunnels (RFC 2003, RFC 2473).
    #[default]
    Ipip,
}

/// Which flows stay together on one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Each flow by itself.
    #[default]
    None,
    /// All flows of a source address.
    Source,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// Where its packets are sent.
    pub address: IpAddr,
    /// Its weight, 1 to 1,000; with delivery to pods it is theirs that count.
    pub weight: u32,
    /// Whether it takes new flows.
    pub state: BackendState,
    /// Whether it runs the node program.
    pub agent: bool,
    /// Its pods; none with delivery to the host.
    pub pods: Vec<PodConfig>,
}

/// A pod of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodConfig {
    /// Its address, of the VIP's family; the backend's own for a pod in its network.
    pub address: IpAddr,
    /// The port that it serves every port of the service on; `None` for each port's `target_port`.
    pub port: Option<u16>,
    /// Its weight, 1 to 1,000.
    pub weight: u32,
    /// Whether it takes new flows.
    pub state: BackendState,
    /// Whether its flows are recorded because the node cannot see its sockets.
    pub record_flows: bool,
}

/// Whether a backend or a pod takes new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendState {
    /// It does.
    #[default]
    Ready,
    /// It keeps those that it has.
    Draining,
}

impl Config {
    /// Whether this host is an edge, a node or both. A file without either is good for simulation only.
    #[must_use]
    pub const fn has_role(&self) -> bool {
        self.edge.is_some() || self.node.is_some()
    }
}

impl ServiceConfig {
    /// The slots of the tables of all its ports.
    #[must_use]
    pub const fn total_slots(&self) -> u64 {
        self.slots as u64 * self.ports.len() as u64
    }
}

/// Reads the file at `path`.
///
/// # Errors
/// When it cannot be read, is too large or no text, and with all that is wrong with what it says.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    let unread = |error| LoadError::Read { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    File::open(path).map_err(unread)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unread)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    let text = str::from_utf8(&bytes)
        .map_err(|error| LoadError::NotText { path: path.to_owned(), offset: error.valid_up_to() })?;
    Ok(parse(text, &path.display().to_string())?)
}

/// Reads a configuration; `name` is what errors call it.
///
/// # Errors
/// With the first error of syntax, or else with all that is wrong with what it says.
pub fn parse(text: &str, name: &str) -> Result<Config, ConfigErrors> {
    let failed = |errors| ConfigErrors { file: name.to_owned(), errors };
    let tree = tree::Tree::read(text).map_err(|error| failed(vec![error]))?;
    let mut reader = read::Reader::default();
    let config = document::read(&mut reader, tree.root());
    match config {
        Some(config) if reader.errors.is_empty() => Ok(config),
        _ => {
            // What several things together have wrong is found last; people read from the top.
            reader.errors.sort_by_key(|error| error.line);
            Err(failed(reader.errors))
        }
    }
}
