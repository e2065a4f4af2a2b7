//! What an operator can do about a reason.

use lb_common::verdict::Reason;

/// What to do about packets with this reason; `None` where they are as they should be, or their sender is at fault.
#[must_use]
pub const fn way_out(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::NotOurs
        | Reason::NeighbourDiscovery
        | Reason::DeliveredLocally
        | Reason::Decapsulated
        | Reason::DeliveredToPod
        | Reason::DeliveredToFormerPod
        | Reason::FragmentDeliveredToPod
        | Reason::IcmpErrorDelivered
        | Reason::ReplyRewritten
        | Reason::ReplyFragmentRewritten
        | Reason::ReplyIcmpRewritten
        | Reason::Forwarded
        | Reason::IcmpErrorForwarded
        | Reason::FragmentForwarded
        | Reason::EchoReply
        | Reason::FragNeeded
        | Reason::PacketTooBig
        | Reason::MalformedIpv4
        | Reason::MalformedIpv6
        | Reason::MalformedExtensionHeader
        | Reason::TooManyExtensionHeaders
        | Reason::SourceRouted
        | Reason::MalformedTcp
        | Reason::MalformedUdp
        | Reason::MalformedIcmp
        | Reason::MalformedFragment
        | Reason::MartianSource
        | Reason::UnsupportedProtocol
        | Reason::UnsupportedIcmp
        | Reason::MalformedQuote
        | Reason::ForeignQuote
        | Reason::IcmpErrorTooLong => return None,
        Reason::FragNeededWithoutDf | Reason::FragmentTooLong => {
            "Raise the MTU between edge and backends by the length of two tunnel headers; see the MTU in beeline backends."
        }
        Reason::UnknownFragment => {
            "Some now and then are lost first fragments. Many: let all fragments of a flow come to one edge (a router's \
             hash over addresses alone for fragments)."
        }
        Reason::UnknownPort => "If clients should reach that port, add it to the service.",
        Reason::NoBackend => "Give the service a backend that is ready, or with delivery pod a node with pods.",
        Reason::BackendUnreachable => "beeline backends says why each one cannot be reached.",
        Reason::NoHeadroom => "Use a driver that leaves 256 bytes before a frame for XDP; veth and all native ones do.",
        Reason::NoDevice => "Restart the agent, and report it: it gives out no next hop before its device is there.",
        Reason::InconsistentMaps => "Restart the agent, which compares everything, and report it.",
        Reason::UntrustedSource => {
            "If the source is an edge of yours, add its address, or its tunnelSource, to node.trustedSources."
        }
        Reason::MalformedTunnel | Reason::MalformedInner => {
            "Some other sender uses this tunnel, or the network damages packets: look at them with tcpdump 'ip proto 4 or \
             ip proto 41'."
        }
        Reason::FragmentedTunnel => {
            "Raise the MTU between edge and node: a tunnel packet was cut, though edges forbid it. Another sender?"
        }
        Reason::InnerNotService => {
            "Edge and node have different configurations: give this node the VIP and port, or take this host from the \
             service's backends on the edges."
        }
        Reason::Hairpin => {
            "A client on this host, or one of its pods, asked a VIP that led back here. In a cluster let kube-proxy or the \
             CNI answer for the VIP inside (ipMode VIP), or send such clients to the Service's own address."
        }
        Reason::EcnNotCapable => "A router on the way marks packets that are not ECN-capable: look at its queues.",
        Reason::NoPod => {
            "Within 2 s of the last pod's end this is the grace in which edges learn of it. Longer: an edge still sends to \
             this node, so compare its configuration; fragments, resets and ICMP errors are never answered."
        }
        Reason::ResetSent | Reason::UnreachableSent => {
            "No pod of the service is on this node, and an edge sends to it: give the service a ready pod, or take the \
             node from its backends."
        }
        Reason::PodGone => {
            "beeline pods says why no device leads to each pod. Take pods that have ended from the configuration."
        }
        Reason::AnswerLimited => "As for reset_sent; more than 1,000 answers a second and CPU are not sent.",
        Reason::AnswerUnroutable => {
            "Give this node a route to clients: its answers, as its pods' replies, leave by it."
        }
        Reason::FlowCollision => {
            "One client has used one port for two VIPs that lead to the same pods. Give the service more pods on the node, \
             or each of its VIPs another targetPort."
        }
        Reason::FlowNotRecorded => "Raise maps.flows; beeline status --maps shows how full the map of records is.",
        Reason::ReplyWithoutRecord => {
            "The flow's record was lost (beeline status --maps: evicted), has expired, or outside clients use the pod's own \
             address: then set node.directPodAccess."
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_documentation_says_what_to_do() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
        let mut table = "| reason | what to do |\n|---|---|\n".to_owned();
        for (reason, words) in Reason::ALL.iter().filter_map(|reason| Some((reason, way_out(*reason)?))) {
            writeln!(table, "| `{}` | {words} |", reason.name()).expect("a String takes it");
        }
        assert!(page.contains(&table), "docs/operations.md lacks this table:\n{table}");
    }
}
