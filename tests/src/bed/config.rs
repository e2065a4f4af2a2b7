//! Configuration files of the agent, as people write them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::Service;

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
    /// Recorded flows that fit, where it is not the default.
    pub flows: Option<u32>,
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
    /// Addresses of pods, nodes and Services: replies to them stay as they are.
    pub internal_networks: Vec<String>,
    /// Clients outside talk to pods by the pods' own addresses too.
    pub direct_pod_access: bool,
    /// `auto`, `off` or bytes, where it is not the default.
    pub mss_clamp: Option<String>,
    /// Keep the pods' replies out of the node's NAT.
    pub nat_exemption: bool,
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
            flows: None,
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

    /// The service `name`.
    ///
    /// # Errors
    /// There is no such service.
    pub fn service(&mut self, name: &str) -> Result<&mut Service> {
        self.services.iter_mut().find(|service| service.name == name).with_context(|| format!("no service {name}"))
    }

    /// Sets the state of the backend `address` in every service.
    pub fn drain(&mut self, address: IpAddr, draining: bool) {
        for backend in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            if backend.address == address {
                backend.draining = draining;
            }
        }
    }

    /// Sets the state of the pod `address` in every service that has it.
    ///
    /// # Errors
    /// No service has it.
    pub fn drain_pod(&mut self, address: IpAddr, draining: bool) -> Result<()> {
        self.each_with_pod(address, |service| service.drain_pod(address, draining))
    }

    /// Takes the pod `address` out of every service that has it.
    ///
    /// # Errors
    /// No service has it.
    pub fn remove_pod(&mut self, address: IpAddr) -> Result<()> {
        self.each_with_pod(address, |service| service.remove_pod(address))
    }

    fn each_with_pod(&mut self, address: IpAddr, change: impl Fn(&mut Service) -> Result<()>) -> Result<()> {
        let changed =
            self.services.iter_mut().filter_map(|service| service.pod(address).is_ok().then(|| change(service)));
        match changed.collect::<Result<Vec<()>>>()?.len() {
            0 => bail!("no service has the pod {address}"),
            _ => Ok(()),
        }
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
            write!(f, "{node}")?;
        }
        if let Some(flows) = self.flows {
            writeln!(f, "maps: {{flows: {flows}}}")?;
        }
        writeln!(f, "services:{}", if self.services.is_empty() { " []" } else { "" })?;
        self.services.iter().try_for_each(|service| write!(f, "{service}"))
    }
}

impl Display for Node {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { interfaces, trusted_sources, internal_networks, direct_pod_access, mss_clamp, nat_exemption } = self;
        writeln!(f, "node:\n  interfaces: {}", list(interfaces))?;
        writeln!(f, "  trustedSources: {}", list(trusted_sources))?;
        if !internal_networks.is_empty() {
            writeln!(f, "  internalNetworks: {}", list(internal_networks))?;
        }
        if *direct_pod_access {
            writeln!(f, "  directPodAccess: true")?;
        }
        if let Some(clamp) = mss_clamp {
            writeln!(f, "  mssClamp: {clamp}")?;
        }
        if *nat_exemption {
            writeln!(f, "  natExemption: true")?;
        }
        Ok(())
    }
}

/// A YAML list on one line; quoted, since an IPv6 address has colons.
fn list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}
