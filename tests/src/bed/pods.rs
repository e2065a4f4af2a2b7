//! Pods on the nodes of a fabric, as CNIs set them up.
//!
//! ```text
//! pod1-1 eth0 ──── pod1-1 (no bridge: 10.244.1.1/32 on each) ─┐
//! pod1-2 eth0 ──── pod1-2                                     ├─ node1 eth0 ── router
//! pod2-1 eth0 ──── pod2-1 ── cni0 (a bridge: 10.244.2.1/24) ── node2 eth0 ── router
//! ```
//!
//! The pods' veths keep the offloads that the kernel gives them: what a pod sends comes to its node in large packets
//! with partial checksums, and is finished and cut by the node's `eth0` (see [`Host::cable`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};

use super::policies::{ReversePath, masquerade, reverse_path};
use super::{Bed, Fabric, Host, PodServer, Service};

/// All pods' addresses, IPv4. Node N has 10.244.N.0/24.
pub const POD_NETWORK_V4: &str = "10.244.0.0/16";
/// All pods' addresses, IPv6. Node N has fd44:N::/64.
pub const POD_NETWORK_V6: &str = "fd44::/16";

/// What a node takes for the inside of its cluster: pods, nodes and edges, addresses of Services.
const INTERNAL_NETWORKS: [&str; 6] =
    [POD_NETWORK_V4, POD_NETWORK_V6, "10.50.0.0/16", "fd50::/16", "10.96.0.0/16", "fd96::/16"];

/// The pods' HTTP port: another than the service's.
pub const POD_HTTP: u16 = 8080;
/// The service's UDP port.
pub const SERVICE_UDP: u16 = 53;
/// The pods' UDP port.
pub const POD_UDP: u16 = 9000;

/// The bridge of a node that has one.
const BRIDGE: &str = "cni0";

/// A pod: a network namespace behind a veth, known by its name to all.
#[derive(Clone)]
pub struct Pod {
    /// Its network namespace, which is named as the pod.
    pub host: Host,
    /// Which of the fabric's nodes it is on, from 0.
    pub node: usize,
    addresses: [IpAddr; 2],
}

impl Pod {
    /// `pod1-2` is the second of `node1`. The node's end of its veth has that name too.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// Its address in the family of `other`.
    pub fn address_for(&self, other: IpAddr) -> IpAddr {
        self.addresses[usize::from(other.is_ipv6())]
    }

    /// Starts HTTP on [`POD_HTTP`] and UDP on [`POD_UDP`], in both families.
    ///
    /// # Errors
    /// As [`PodServer::start`].
    pub fn serve(&self, bed: &Bed) -> Result<PodServer> {
        PodServer::start(bed, self)
    }
}

impl Fabric {
    /// A second VIP of both families, of the services `shop` and `shop6`.
    pub const SECOND_VIPS: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0x11))];

    /// Makes a cluster of the nodes: they forward, hide pods behind themselves, and each has its pods.
    pub(super) fn build_pods(&mut self, bed: &Bed) -> Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            node.forward()?;
            reverse_path(node, ReversePath::Loose)?;
            masquerade(node)?;
            self.lead_pods_to(index)?;
            if self.has_bridge(index) {
                let number = index + 1;
                // An address of its own: the lowest of its ports' changes with them, and pods' packets to the one before
                // are not taken until they have asked again.
                node.ip(&[
                    format!("link add {BRIDGE} address 02:44:00:00:{number:02x}:01 type bridge mcast_snooping 0"),
                    format!("link set {BRIDGE} up"),
                ])?;
                node.addresses(BRIDGE, &[format!("10.244.{number}.1/24"), format!("fd44:{number}::1/64")])?;
            }
        }
        for node in 0..self.nodes.len() {
            for _ in 0..self.shape.pods {
                self.add_pod(bed, node)?;
            }
        }
        Ok(())
    }

    fn has_bridge(&self, node: usize) -> bool {
        self.shape.bridge.is_some_and(|bridge| usize::from(bridge) == node)
    }

    /// Routes to the pods of a node, on the router and where there is one on the hop behind it.
    fn lead_pods_to(&self, node: usize) -> Result<()> {
        let addresses = [self.node_addresses(true)[node], self.node_addresses(false)[node]];
        let lines = |via: [IpAddr; 2]| {
            let number = node + 1;
            [
                format!("route add 10.244.{number}.0/24 via {}", via[0]),
                format!("route add fd44:{number}::/64 via {}", via[1]),
            ]
        };
        match self.hops.get(node) {
            Some(hop) => {
                hop.ip(&lines(addresses))?;
                self.router.ip(&lines(Self::hop_addresses(node)))
            }
            None => self.router.ip(&lines(addresses)),
        }
    }

    /// Adds one more pod to a node (from 0), as a rollout does. Nothing runs in it yet. It is the last of
    /// [`Fabric::pods`].
    ///
    /// # Errors
    /// There is no such node, it has 100 pods, or the kernel refuses.
    pub fn add_pod(&mut self, bed: &Bed, node: usize) -> Result<Pod> {
        self.nodes.get(node).with_context(|| format!("no node {node}"))?;
        let (number, index) = (u8::try_from(node + 1)?, self.pods_of(node).count() + 1);
        if index > 100 {
            bail!("node {number} has 100 pods already");
        }
        let last = 10 + u8::try_from(index)?;
        let addresses = [
            IpAddr::from([10, 244, number, last]),
            IpAddr::from([0xfd44, u16::from(number), 0, 0, 0, 0, 0, u16::from(last)]),
        ];
        let pod = Pod { host: bed.host(&format!("pod{number}-{index}"))?, node, addresses };
        self.plug_pod(&pod, None)?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Gives a pod its veth, addresses and routes: a new one, or after [`Fabric::unplug_pod`]. With `index` that is the
    /// interface's index on the node.
    ///
    /// # Errors
    /// It has a veth already, or the kernel refuses.
    pub fn plug_pod(&self, pod: &Pod, index: Option<u32>) -> Result<()> {
        let (host, device, addresses) = (&self.nodes[pod.node], pod.name(), pod.addresses);
        let number = u8::try_from(pod.node + 1)?;
        let gateways =
            [IpAddr::from([10, 244, number, 1]), IpAddr::from([0xfd44, u16::from(number), 0, 0, 0, 0, 0, 1])];
        let index = index.map(|index| format!(" index {index}")).unwrap_or_default();
        // The same at every time, so that nobody has to ask for it anew.
        let octets = if let IpAddr::V4(address) = addresses[0] { address.octets() } else { [0; 4] };
        let mac = format!("02:44:00:00:{:02x}:{:02x}", octets[2], octets[3]);
        // Made by the node across to the pod, which is what gives the pod's namespace an id there.
        host.ip(&[
            format!("link add {device}{index} type veth peer name eth0 address {mac} netns {}", pod.host.name()),
            format!("link set {device} up"),
        ])?;
        pod.host.ip(&["link set eth0 up"])?;
        if self.has_bridge(pod.node) {
            host.ip(&[format!("link set {device} master {BRIDGE}")])?;
            pod.host.addresses("eth0", &[format!("{}/24", addresses[0]), format!("{}/64", addresses[1])])?;
        } else {
            host.addresses(device, &[format!("{}/32", gateways[0]), format!("{}/128", gateways[1])])?;
            host.ip(&addresses.map(|address| format!("route add {address} dev {device}")))?;
            pod.host.addresses("eth0", &[format!("{}/32", addresses[0]), format!("{}/128", addresses[1])])?;
            pod.host.ip(&gateways.map(|gateway| format!("route add {gateway} dev eth0")))?;
        }
        pod.host.ip(&gateways.map(|gateway| format!("route add default via {gateway}")))
    }

    /// Takes a pod's veth away, as the end of a pod does: its node has no device that leads to it any more. What runs
    /// in it runs on, unreachable; it stays in [`Fabric::pods`].
    ///
    /// # Errors
    /// It is gone already.
    pub fn unplug_pod(&self, pod: &Pod) -> Result<()> {
        self.nodes[pod.node].ip(&[format!("link del {}", pod.name())])
    }

    /// The pods of a node (from 0).
    pub fn pods_of(&self, node: usize) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| pod.node == node)
    }

    /// A service of `pods`, tunnelled in IPv4 or IPv6, without a port yet. Every node is a backend, with or without
    /// a pod.
    pub fn pod_service<'a>(
        &self,
        name: &str,
        vip: IpAddr,
        tunnel_v4: bool,
        pods: impl IntoIterator<Item = &'a Pod>,
    ) -> Service {
        let mut nodes: Vec<_> = self.node_addresses(tunnel_v4).into_iter().map(|node| (node, Vec::new())).collect();
        pods.into_iter().for_each(|pod| nodes[pod.node].1.push(pod.address_for(vip)));
        Service::of_pods(name, vip, &nodes)
    }

    /// HTTP and UDP to all pods at the first VIPs (`web`, `web6`), HTTP to the first pod of each node at the second
    /// VIPs too (`shop`, `shop6`); tunnelled in the family of the VIP.
    pub fn pod_services(&self) -> Vec<Service> {
        let mut services = self.web_pod_services();
        for (name, vip) in ["shop", "shop6"].into_iter().zip(Self::SECOND_VIPS) {
            let firsts = (0..self.nodes.len()).filter_map(|node| self.pods_of(node).next());
            services.push(self.pod_service(name, vip, vip.is_ipv4(), firsts).port_to("TCP", 80, POD_HTTP));
        }
        services
    }

    /// HTTP and UDP to all pods at the first VIPs (`web`, `web6`): each pod's port has one VIP.
    pub fn web_pod_services(&self) -> Vec<Service> {
        let service = |(name, vip): (&str, IpAddr)| {
            let service = self.pod_service(name, vip, vip.is_ipv4(), &self.pods).port_to("TCP", 80, POD_HTTP);
            service.port_to("UDP", SERVICE_UDP, POD_UDP)
        };
        ["web", "web6"].into_iter().zip(Self::VIPS).map(service).collect()
    }

    /// What the nodes' configuration calls internal: nothing where there are no pods.
    pub(super) fn internal_networks(&self) -> Vec<String> {
        if self.shape.pods == 0 { Vec::new() } else { INTERNAL_NETWORKS.map(ToOwned::to_owned).to_vec() }
    }
}
