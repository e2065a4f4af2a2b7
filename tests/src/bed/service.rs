//! Services of a configuration file.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use anyhow::{Context as _, Result};

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
    /// Who takes the packets out of the tunnel.
    pub delivery: Delivery,
    /// All flows of one client go to one backend, and there to one pod.
    pub source_affinity: bool,
    /// Where its packets go.
    pub backends: Vec<Backend>,
}

/// Who gets the packets behind the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The backend itself, which holds the VIP.
    Host,
    /// A pod of the backend, which is a node.
    Pod,
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
    /// The pods' port; with host delivery the same.
    pub target: u16,
}

/// A backend of a service.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where its packets are sent to.
    pub address: IpAddr,
    /// Its rank. Not written with delivery to pods, whose own weights count.
    pub weight: u32,
    /// Owns no slots any more.
    pub draining: bool,
    /// Its pods, with delivery to pods.
    pub pods: Vec<PodEntry>,
}

/// A pod of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEntry {
    /// Its address.
    pub address: IpAddr,
    /// Its port, where it is not the service port's target.
    pub port: Option<u16>,
    /// Its rank.
    pub weight: u32,
    /// Terminating and still serving.
    pub draining: bool,
    /// The node records its flows: it cannot see the pod's sockets.
    pub record_flows: bool,
}

impl PodEntry {
    /// A ready pod of the usual weight, on the service's target port.
    pub fn new(address: IpAddr) -> Self {
        Self { address, port: None, weight: 100, draining: false, record_flows: false }
    }
}

impl Service {
    /// A service at `address` with one unnamed port, delivered to the hosts `backends`.
    pub fn new(name: &str, address: IpAddr, protocol: &'static str, port: u16, backends: &[IpAddr]) -> Self {
        let backend = |address: &IpAddr| Backend { address: *address, weight: 100, draining: false, pods: Vec::new() };
        Self {
            name: name.to_owned(),
            address,
            ports: vec![Port { name: None, protocol, port, target: port }],
            slots: 4096,
            delivery: Delivery::Host,
            source_affinity: false,
            backends: backends.iter().map(backend).collect(),
        }
    }

    /// A service at `address` without a port yet, delivered to the pods of each node.
    pub fn of_pods(name: &str, address: IpAddr, nodes: &[(IpAddr, Vec<IpAddr>)]) -> Self {
        let backend = |(address, pods): &(IpAddr, Vec<IpAddr>)| Backend {
            address: *address,
            weight: 100,
            draining: false,
            pods: pods.iter().copied().map(PodEntry::new).collect(),
        };
        Self {
            ports: Vec::new(),
            delivery: Delivery::Pod,
            backends: nodes.iter().map(backend).collect(),
            ..Self::new(name, address, "TCP", 0, &[])
        }
    }

    /// Adds an unnamed port.
    #[must_use]
    pub fn port(self, protocol: &'static str, port: u16) -> Self {
        self.port_to(protocol, port, port)
    }

    /// Adds an unnamed port that leads to the pods' port `target`.
    #[must_use]
    pub fn port_to(mut self, protocol: &'static str, port: u16, target: u16) -> Self {
        self.ports.push(Port { name: None, protocol, port, target });
        self
    }

    /// The pod `address` of this service.
    ///
    /// # Errors
    /// It has no such pod.
    pub fn pod(&mut self, address: IpAddr) -> Result<&mut PodEntry> {
        let mut pods = self.backends.iter_mut().flat_map(|backend| &mut backend.pods);
        pods.find(|pod| pod.address == address).with_context(|| format!("{} has no pod {address}", self.name))
    }

    /// Sets the state of a pod.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn drain_pod(&mut self, address: IpAddr, draining: bool) -> Result<()> {
        self.pod(address)?.draining = draining;
        Ok(())
    }

    /// Takes a pod out.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn remove_pod(&mut self, address: IpAddr) -> Result<()> {
        self.pod(address)?;
        self.backends.iter_mut().for_each(|backend| backend.pods.retain(|pod| pod.address != address));
        Ok(())
    }

    /// Adds a pod to the backend `node`.
    ///
    /// # Errors
    /// There is no such backend.
    pub fn add_pod(&mut self, node: IpAddr, pod: PodEntry) -> Result<()> {
        let backend = self.backends.iter_mut().find(|backend| backend.address == node);
        backend.with_context(|| format!("{} has no backend {node}", self.name))?.pods.push(pod);
        Ok(())
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "- name: {}\n  address: \"{}\"\n  slots: {}\n  ports:", self.name, self.address, self.slots)?;
        for Port { name, protocol, port, target } in &self.ports {
            let name = name.as_ref().map(|name| format!("name: {name}, ")).unwrap_or_default();
            writeln!(f, "  - {{{name}protocol: {protocol}, port: {port}, targetPort: {target}}}")?;
        }
        if self.source_affinity {
            writeln!(f, "  affinity: source")?;
        }
        let delivery = match self.delivery {
            Delivery::Host => "host",
            Delivery::Pod => "pod",
        };
        writeln!(f, "  delivery: {delivery}\n  backends:{}", if self.backends.is_empty() { " []" } else { "" })?;
        for Backend { address, weight, draining, pods } in &self.backends {
            let state = if *draining { ", state: draining" } else { "" };
            match self.delivery {
                Delivery::Host => writeln!(f, "  - {{address: \"{address}\", weight: {weight}{state}}}")?,
                Delivery::Pod => {
                    let pods: Vec<String> = pods.iter().map(ToString::to_string).collect();
                    writeln!(f, "  - {{address: \"{address}\"{state}, pods: [{}]}}", pods.join(", "))?;
                }
            }
        }
        Ok(())
    }
}

impl Display for PodEntry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { address, port, weight, draining, record_flows } = self;
        write!(f, "{{address: \"{address}\", weight: {weight}")?;
        if let Some(port) = port {
            write!(f, ", port: {port}")?;
        }
        f.write_str(if *draining { ", state: draining" } else { "" })?;
        f.write_str(if *record_flows { ", recordFlows: true}" } else { "}" })
    }
}
