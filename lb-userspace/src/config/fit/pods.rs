//! What fits together of pods: each on one node, at an address of its own, and once in a backend.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use lb_common::table::{MAX_MEMBERS, MAX_WEIGHT};

use crate::config::backend::{DraftBackend, DraftPod};
use crate::config::read::Reader;
use crate::config::service::Draft;
use crate::config::tree::Node;
use crate::model::Delivery;

/// The addresses of all services, each with the first thing that has it.
struct Taken<'a, 't> {
    vips: &'a HashMap<IpAddr, Node<'t>>,
    backends: HashMap<IpAddr, Node<'t>>,
    /// The backend's address too.
    pods: HashMap<IpAddr, (IpAddr, Node<'t>)>,
}

/// Notes everything that does not fit. Where the service does not deliver to pods, having any is noted already.
pub(super) fn check<'t>(reader: &mut Reader, services: &[Draft<'t>], vips: &HashMap<IpAddr, Node<'t>>) {
    let mut taken = Taken { vips, backends: HashMap::new(), pods: HashMap::new() };
    for backend in services.iter().flat_map(|service| &service.backends) {
        if let Some(address) = backend.address {
            taken.backends.entry(address).or_insert(backend.node);
        }
    }
    for service in services.iter().filter(|service| service.delivery == Some(Delivery::Pod)) {
        let targets: HashSet<_> =
            service.ports.iter().filter_map(|port| Some(port.config.as_ref()?.target_port)).collect();
        for backend in &service.backends {
            for pod in &backend.pods {
                family(reader, service, pod);
                taken.check(reader, backend, pod);
            }
            once(reader, backend, &targets);
            bounds(reader, backend);
        }
    }
}

fn family(reader: &mut Reader, service: &Draft<'_>, pod: &DraftPod<'_>) {
    let Some((vip, address)) = service.address.zip(pod.address) else { return };
    if vip.is_ipv4() != address.is_ipv4() {
        let name = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let (pods, wanted) = (name(address), name(vip));
        let message = format!(
            "{address} is an {pods} address, and the VIP {vip} is {wanted}: only the tunnel to the node may be of the other \
             family; write the pod's {wanted} address"
        );
        reader.error_in(pod.node, "address", message);
    }
}

impl<'t> Taken<'_, 't> {
    /// That no VIP, no other backend and no other backend's pod has the address.
    fn check(&mut self, reader: &mut Reader, backend: &DraftBackend<'t>, pod: &DraftPod<'t>) {
        let Some(address) = pod.address else { return };
        if let Some(vip) = self.vips.get(&address) {
            let message = format!("{address} is the VIP of {}; a pod has an address of its own", vip.path());
            reader.error_in(pod.node, "address", message);
        }
        let Some(own) = backend.address else { return };
        if let Some(other) = self.backends.get(&address).filter(|_| address != own) {
            let message = format!(
                "{address} is the address of {}; a pod has an address of its own, or that of the backend that it is on",
                other.path()
            );
            reader.error_in(pod.node, "address", message);
        }
        let (first, node) = *self.pods.entry(address).or_insert((own, pod.node));
        if first != own {
            let message = format!("{address} is a pod of {first} in {}; a pod is on one node", node.path());
            reader.error_in(pod.node, "address", message);
        }
    }
}

/// That no pod serves one port twice. `targets` are the ports of the service's pods that name none.
fn once(reader: &mut Reader, backend: &DraftBackend<'_>, targets: &HashSet<u16>) {
    let mut named = HashSet::new();
    let mut unnamed = HashSet::new();
    // Those that name one of the service's ports, which another that names none would serve as well.
    let mut as_others = HashMap::new();
    for pod in &backend.pods {
        let Some(config) = pod.config else { continue };
        let address = config.address;
        let twice = match config.port {
            Some(port) => {
                if targets.contains(&port) {
                    as_others.insert(address, port);
                }
                let twice = !named.insert((address, port)) || (targets.contains(&port) && unnamed.contains(&address));
                twice.then(|| format!("{address} with port {port}"))
            }
            None => match as_others.get(&address) {
                _ if !unnamed.insert(address) => Some(address.to_string()),
                Some(port) => Some(format!("{address} with port {port}")),
                None => None,
            },
        };
        if let Some(what) = twice {
            reader.error(pod.node, format!("{what} stands twice in this backend; keep one"));
        }
    }
}

/// That a backend has no more pods, and together no larger weight, than a table takes.
fn bounds(reader: &mut Reader, backend: &DraftBackend<'_>) {
    let count = backend.pods.len();
    if count > MAX_MEMBERS {
        reader.error_in(backend.node, "pods", format!("{count} pods are too many: a backend has up to {MAX_MEMBERS}"));
    }
    let weights = backend.pods.iter().filter_map(|pod| pod.config);
    let sum: u64 = weights.map(|pod| u64::from(pod.weight)).sum();
    if sum > u64::from(MAX_WEIGHT) {
        let message = format!("their weights are {sum} together, and {MAX_WEIGHT} at most fit; write smaller ones");
        reader.error_in(backend.node, "pods", message);
    }
}
