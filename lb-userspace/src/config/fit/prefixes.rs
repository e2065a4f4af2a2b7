//! That prefixes hold nothing that they must not.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::Whole;
use crate::config::read::Reader;
use crate::config::scalars;
use crate::config::service::Draft;
use crate::config::tree::Node;
use crate::model::{Prefix, TunnelSource};

/// Answers to packets from a tunnel source go to the edge: no VIP, backend or pod may be in it. One offender is enough.
pub(super) fn tunnel_source(reader: &mut Reader, whole: &Whole<'_, '_>) {
    let TunnelSource { ipv4, ipv6 } = whole.tunnel_source;
    for (key, prefix) in [("ipv4", ipv4), ("ipv6", ipv6)] {
        let Some(prefix) = prefix else { continue };
        let offender = whole.services.iter().flat_map(addresses).find(|(address, ..)| prefix.contains(address));
        if let Some((address, what, node)) = offender {
            let source = whole.root.get("edge").and_then(|edge| edge.get("tunnelSource"));
            let source = source.expect("a tunnel source was read");
            let message = format!(
                "{} contains {address}, {what} of {}; take a prefix that is routed to this edge and used for nothing else",
                scalars::prefix_text(&prefix),
                node.path()
            );
            reader.error_in(source, key, message);
        }
    }
}

/// All addresses of a service, and what each is.
fn addresses<'a, 't>(service: &'a Draft<'t>) -> impl Iterator<Item = (IpAddr, &'static str, Node<'t>)> + 'a {
    let vip = service.address.map(|address| (address, "the VIP", service.node));
    let backends = service.backends.iter().filter_map(|backend| Some((backend.address?, "the address", backend.node)));
    let pods = service.backends.iter().flat_map(|backend| &backend.pods);
    let pods = pods.filter_map(|pod| Some((pod.address?, "the address", pod.node)));
    vip.into_iter().chain(backends).chain(pods)
}

/// Replies to internal networks are not rewritten, and a VIP is in none. One offender for each is enough.
pub(super) fn internal_networks(reader: &mut Reader, whole: &Whole<'_, '_>) {
    let list = whole.root.get("node").and_then(|node| node.get("internalNetworks"));
    let members = list.into_iter().flat_map(Node::members);
    let mut networks: HashMap<Prefix, Vec<Node<'_>>> = HashMap::new();
    for (prefix, member) in whole.internal_networks.iter().zip(members) {
        networks.entry(*prefix).or_default().push(member);
    }
    // A look for each length that there is: few, however long the list.
    let lengths: HashSet<_> = networks.keys().map(|prefix| (prefix.address.is_ipv4(), prefix.length)).collect();
    for service in whole.services {
        let Some(vip) = service.address else { continue };
        for (_, length) in lengths.iter().filter(|(ipv4, _)| *ipv4 == vip.is_ipv4()) {
            let prefix = Prefix { address: scalars::first_address(vip, *length), length: *length };
            for member in networks.remove(&prefix).unwrap_or_default() {
                let message = format!(
                    "{} contains {vip}, the VIP of {}; name networks of pods, nodes and Services, without VIPs",
                    scalars::prefix_text(&prefix),
                    service.node.path()
                );
                reader.error(member, message);
            }
        }
    }
}
