//! Configuration files of the agent, as people write them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};

/// One agent's configuration. Writes itself as YAML.
#[derive(Debug, Clone)]
pub struct Config {
    /// Key of all flow hashes.
    pub hash_seed: u64,
    /// Folder of pinned maps and links.
    pub pin_path: String,
    /// Where metrics and health are served.
    pub metrics: String,
    /// The edge role.
    pub edge: Option<Edge>,
    /// The node role.
    pub node: Option<Node>,
    /// What is balanced.
    pub services: Vec<Service>,
}

/// The edge role.
#[derive(Debug, Clone, Default)]
pub struct Edge {
    /// Devices that VIP packets come in by.
    pub interfaces: Vec<String>,
    /// Outer source prefix of IPv4, where it is not the edge's own address.
    pub tunnel_source_v4: Option<String>,
    /// Outer source prefix of IPv6.
    pub tunnel_source_v6: Option<String>,
}

/// The node role.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Devices that tunnel packets come in by.
    pub interfaces: Vec<String>,
    /// Addresses and prefixes of edges.
    pub trusted_sources: Vec<String>,
}

/// A service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// The VIP.
    pub address: IpAddr,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Slots of its table; a power of two.
    pub slots: u32,
    /// Where its packets go.
    pub backends: Vec<Backend>,
}

/// A port of a service.
#[derive(Debug, Clone)]
pub struct Port {
    /// Name, where it has one.
    pub name: Option<String>,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Port number, 0 for all.
    pub port: u16,
}

/// A backend of a service.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where its packets are sent to.
    pub address: IpAddr,
    /// Its rank.
    pub weight: u32,
    /// Owns no slots any more.
    pub draining: bool,
}

impl Config {
    /// A configuration without a role or a service, for the agent of `host`.
    pub fn new(host: &str) -> Self {
        Self {
            hash_seed: 42,
            pin_path: format!("/sys/fs/bpf/beeline-{host}"),
            metrics: "127.0.0.1:9469".to_owned(),
            edge: None,
            node: None,
            services: Vec::new(),
        }
    }

    /// Writes the file whole or not at all: a neighbour file takes its place by rename, as editors do.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, self.to_string()).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
    }

    /// Sets the state of the backend `address` in every service.
    pub fn drain(&mut self, address: IpAddr, draining: bool) {
        for backend in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            if backend.address == address {
                backend.draining = draining;
            }
        }
    }
}

impl Service {
    /// A service at `address` with one unnamed port.
    pub fn new(name: &str, address: IpAddr, protocol: &'static str, port: u16, backends: &[IpAddr]) -> Self {
        let backend = |address: &IpAddr| Backend { address: *address, weight: 100, draining: false };
        Self {
            name: name.to_owned(),
            address,
            ports: vec![Port { name: None, protocol, port }],
            slots: 4096,
            backends: backends.iter().map(backend).collect(),
        }
    }

    /// Adds an unnamed port.
    #[must_use]
    pub fn port(mut self, protocol: &'static str, port: u16) -> Self {
        self.ports.push(Port { name: None, protocol, port });
        self
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "apiVersion: beeline.dev/v1\nkind: Config\nhashSeed: {}", self.hash_seed)?;
        writeln!(f, "pinPath: {}\nmetrics: {{listen: \"{}\"}}", self.pin_path, self.metrics)?;
        if let Some(edge) = &self.edge {
            writeln!(f, "edge:\n  interfaces: {}", list(&edge.interfaces))?;
            let sources = [("ipv4", &edge.tunnel_source_v4), ("ipv6", &edge.tunnel_source_v6)];
            if sources.iter().any(|(_, prefix)| prefix.is_some()) {
                writeln!(f, "  tunnelSource:")?;
            }
            for (family, prefix) in sources {
                if let Some(prefix) = prefix {
                    writeln!(f, "    {family}: \"{prefix}\"")?;
                }
            }
        }
        if let Some(node) = &self.node {
            writeln!(f, "node:\n  interfaces: {}", list(&node.interfaces))?;
            writeln!(f, "  trustedSources: {}", list(&node.trusted_sources))?;
        }
        writeln!(f, "services:{}", if self.services.is_empty() { " []" } else { "" })?;
        self.services.iter().try_for_each(|service| write!(f, "{service}"))
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "- name: {}\n  address: \"{}\"\n  slots: {}\n  ports:", self.name, self.address, self.slots)?;
        for Port { name, protocol, port } in &self.ports {
            let name = name.as_ref().map(|name| format!("name: {name}, ")).unwrap_or_default();
            writeln!(f, "  - {{{name}protocol: {protocol}, port: {port}, targetPort: {port}}}")?;
        }
        writeln!(f, "  delivery: host\n  backends:{}", if self.backends.is_empty() { " []" } else { "" })?;
        for Backend { address, weight, draining } in &self.backends {
            let state = if *draining { ", state: draining" } else { "" };
            writeln!(f, "  - {{address: \"{address}\", weight: {weight}{state}}}")?;
        }
        Ok(())
    }
}

/// A YAML list on one line; quoted, since an IPv6 address has colons.
fn list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}
