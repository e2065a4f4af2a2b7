//! What the agent says of itself: the one picture that `/status`, the commands and the metrics are made from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Everything, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The version of the maps' layout.
    pub abi: u32,
    /// The agent's process id.
    pub pid: u32,
    /// When the agent started, in seconds since 1970.
    pub started: u64,
    /// Where the maps and links are pinned.
    pub pin_path: PathBuf,
    /// Whether the configuration has been applied and every interface has its program.
    pub ready: bool,
    /// Everything that an operator should look at, in sentences.
    pub problems: Vec<String>,
    /// The configuration.
    pub config: ConfigStatus,
    /// The interfaces that the configuration names.
    pub interfaces: Vec<InterfaceStatus>,
    /// The services, by VIP, protocol and port.
    pub services: Vec<ServiceStatus>,
    /// How often each reason was given to a packet, by its name; `forwarded` is the sum over all backends less what has
    /// reasons of its own. `not_ours` is not counted.
    pub reasons: BTreeMap<String, u64>,
    /// How full the maps are.
    pub maps: Vec<MapStatus>,
    /// Tables built since the agent started.
    pub tables_built: u64,
}

/// The configuration and how it came to be in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file.
    pub file: PathBuf,
    /// Counts up with each configuration that was applied; 0 before the first.
    pub generation: u64,
    /// When the one in force was applied, in seconds since 1970.
    pub applied: u64,
    /// How many new versions of the file were refused since the agent started.
    pub errors: u64,
    /// Why the newest version of the file is not in force.
    pub error: Option<String>,
    /// The seed of hash and tables.
    pub hash_seed: u64,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index; `None` while there is no such interface.
    pub index: Option<u32>,
    /// Whether it has the edge role.
    pub edge: bool,
    /// Whether it has the node role.
    pub node: bool,
    /// Whether our program is attached.
    pub attached: bool,
    /// Why not.
    pub problem: Option<String>,
}

/// A service: one VIP, protocol and port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `name/port`.
    pub label: String,
    /// The VIP.
    pub address: Option<IpAddr>,
    /// The protocol: `TCP` or `UDP`.
    pub protocol: String,
    /// The port; 0 for all.
    pub port: u16,
    /// Name and version of the algorithm, as `rendezvous v1`.
    pub algorithm: String,
    /// Number of slots.
    pub slots: u32,
    /// Whether the source alone is hashed.
    pub source_affinity: bool,
    /// Whether it is in the maps.
    pub installed: bool,
    /// Why it is not in the maps as configured.
    pub problem: Option<String>,
    /// Packets forwarded since the service is in the maps (its removed backends' included while this agent runs).
    pub packets: u64,
    /// Their bytes, from the clients' IP headers on.
    pub bytes: u64,
    /// Its backends, by address.
    pub backends: Vec<BackendStatus>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Where packets are sent.
    pub address: IpAddr,
    /// `ready` or `draining`.
    pub state: String,
    /// Its weight as configured.
    pub weight: u32,
    /// Whether it runs our node program.
    pub agent: bool,
    /// How many slots it owns.
    pub slots: u32,
    /// Packets sent to it.
    pub packets: u64,
    /// Their bytes, from the clients' IP headers on.
    pub bytes: u64,
    /// Whether there is a way to it.
    pub reachable: bool,
    /// The way: device, gateway, MAC, MTU; or `this host`.
    pub via: Option<String>,
    /// Why there is no way.
    pub problem: Option<String>,
}

/// How full a map is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapStatus {
    /// What it holds: `services`, `backends`, `slots`, `next_hops`.
    pub name: String,
    /// In use.
    pub used: u64,
    /// As many as fit.
    pub capacity: u64,
}

/// The socket on which the agent with these pins answers `/status`.
#[must_use]
pub fn socket_path(pin_path: &Path) -> PathBuf {
    let name: Vec<_> = pin_path.components().skip(1).map(|part| part.as_os_str().to_string_lossy()).collect();
    Path::new("/run/beeline").join(format!("{}.sock", name.join("-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_path_has_a_socket_of_its_own() {
        let path = socket_path(Path::new("/sys/fs/bpf/beeline-edge1"));
        assert_eq!(path, Path::new("/run/beeline/sys-fs-bpf-beeline-edge1.sock"));
    }
}
