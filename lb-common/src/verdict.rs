//! What becomes of a packet, and why: one exhaustive enum for all programs.

/// What the program tells the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Up to the host's own network stack.
    Pass,
    /// Out to a next hop, by the same device or by another.
    Send,
    /// Back out of the device that it came from, as an answer.
    Answer,
    /// Dropped.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $action:ident,)+) => {
        /// Why a packet got its verdict. The discriminant is the index of the reason's counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason's name in `simulate`, metrics and status.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The reason in a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }

            /// The verdict that goes with the reason.
            #[inline(always)]
            #[must_use]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)+ }
            }
        }
    };
}

reasons! {
    /// Neither for a VIP nor for a tunnel address of this host; never counted.
    NotOurs "not_ours" Pass,
    /// IPv6 neighbour discovery for a VIP, which belongs to the host's stack.
    NeighbourDiscovery "neighbour_discovery" Pass,
    /// The chosen backend is this host: up to its stack without a tunnel.
    DeliveredLocally "delivered_locally" Pass,
    /// Decapsulated and passed up to this node's stack.
    Decapsulated "decapsulated" Pass,
    /// Handed to a pod of this node, with the pod's address and port.
    DeliveredToPod "delivered_to_pod" Pass,
    /// Handed to the pod that owned the slot before, which knows the flow.
    DeliveredToFormerPod "delivered_to_former_pod" Pass,
    /// A fragment handed to the pod of its flow.
    FragmentDeliveredToPod "fragment_delivered_to_pod" Pass,
    /// An ICMP error translated, outside and inside, and handed to the pod of the flow that it quotes.
    IcmpErrorDelivered "icmp_error_delivered" Pass,
    /// A pod's reply, which leaves as the VIP's.
    ReplyRewritten "reply_rewritten" Pass,
    /// A fragment of a pod's reply, which leaves as the VIP's.
    ReplyFragmentRewritten "reply_fragment_rewritten" Pass,
    /// An ICMP error about a packet to a pod, translated outside and inside: it leaves as the VIP's.
    ReplyIcmpRewritten "reply_icmp_rewritten" Pass,
    /// Encapsulated and sent to a backend.
    Forwarded "forwarded" Send,
    /// An ICMP error sent to the backend of the flow that it quotes.
    IcmpErrorForwarded "icmp_error_forwarded" Send,
    /// A fragment sent where its flow's whole packets go.
    FragmentForwarded "fragment_forwarded" Send,
    /// An echo request to a VIP, answered.
    EchoReply "echo_reply" Answer,
    /// Too long for the tunnel with DF set: answered with frag-needed.
    FragNeeded "frag_needed" Answer,
    /// Too long for the tunnel with DF clear: answered with frag-needed, which the sender need not heed.
    FragNeededWithoutDf "frag_needed_without_df" Answer,
    /// Too long for the tunnel: answered with packet-too-big.
    PacketTooBig "packet_too_big" Answer,
    /// No pod of the service has been here for a while: TCP answered with a reset (RFC 9293 §3.10.7.1).
    ResetSent "reset_sent" Answer,
    /// No pod of the service has been here for a while: UDP answered with port-unreachable.
    UnreachableSent "unreachable_sent" Answer,
    /// IPv4 header with a wrong version, length or checksum, or a packet longer than its frame.
    MalformedIpv4 "malformed_ipv4" Drop,
    /// IPv6 header with a wrong version, or a packet longer than its frame.
    MalformedIpv6 "malformed_ipv6" Drop,
    /// Extension headers that are cut off, or whose lengths do not fit the packet.
    MalformedExtensionHeader "malformed_extension_header" Drop,
    /// More extension headers than are followed.
    TooManyExtensionHeaders "too_many_extension_headers" Drop,
    /// IPv6 packet whose routing header has segments left: a VIP is nobody's waypoint (RFC 8200 §4.4, RFC 5095).
    SourceRouted "source_routed" Drop,
    /// TCP header cut off or with a wrong data offset.
    MalformedTcp "malformed_tcp" Drop,
    /// UDP header cut off or with a wrong length.
    MalformedUdp "malformed_udp" Drop,
    /// ICMP message cut off.
    MalformedIcmp "malformed_icmp" Drop,
    /// Fragment without a header to steer by (RFC 1858), of a length that no other can follow, or past the largest packet.
    MalformedFragment "malformed_fragment" Drop,
    /// Source address that no packet from the network may have: unspecified, loopback, multicast, or the destination.
    MartianSource "martian_source" Drop,
    /// Later fragment whose first one was not seen.
    UnknownFragment "unknown_fragment" Drop,
    /// Protocol that no VIP serves.
    UnsupportedProtocol "unsupported_protocol" Drop,
    /// ICMP type that a VIP neither answers nor forwards.
    UnsupportedIcmp "unsupported_icmp" Drop,
    /// ICMP error whose quoted packet is cut off or malformed.
    MalformedQuote "malformed_quote" Drop,
    /// ICMP error that quotes a packet which the VIP did not send.
    ForeignQuote "foreign_quote" Drop,
    /// ICMP error too long for the tunnel; no error is sent about an error.
    IcmpErrorTooLong "icmp_error_too_long" Drop,
    /// Later IPv4 fragment too long for the tunnel; no error is sent about one (RFC 1122 §3.2.2).
    FragmentTooLong "fragment_too_long" Drop,
    /// Port of a VIP that no service has.
    UnknownPort "unknown_port" Drop,
    /// Service without a backend that may own a slot.
    NoBackend "no_backend" Drop,
    /// Backend without a next hop.
    BackendUnreachable "backend_unreachable" Drop,
    /// No room for the tunnel header before the packet.
    NoHeadroom "no_headroom" Drop,
    /// Next hop's device is not among those that the program may send by.
    NoDevice "no_device" Drop,
    /// Maps contradict each other: a fault of the agent.
    InconsistentMaps "inconsistent_maps" Drop,
    /// Tunnel packet from a source that is not trusted.
    UntrustedSource "untrusted_source" Drop,
    /// Tunnel packet that is malformed.
    MalformedTunnel "malformed_tunnel" Drop,
    /// Tunnel packet in fragments.
    FragmentedTunnel "fragmented_tunnel" Drop,
    /// Packet inside the tunnel that is malformed.
    MalformedInner "malformed_inner" Drop,
    /// Packet inside the tunnel that is not for a VIP and port of ours.
    InnerNotService "inner_not_service" Drop,
    /// Packet inside the tunnel that this host itself sent.
    Hairpin "hairpin" Drop,
    /// Congestion marked outside on a packet that is not ECN-capable inside (RFC 6040 §4.2).
    EcnNotCapable "ecn_not_capable" Drop,
    /// No pod of the service is on this node, and no answer is due (yet) or possible.
    NoPod "no_pod" Drop,
    /// Pods that may have the packet have no live device on this node.
    PodGone "pod_gone" Drop,
    /// No pod of the service is here, and answers of this kind are rationed.
    AnswerLimited "answer_limited" Drop,
    /// No pod of the service is here, and the routing table has no way for the answer.
    AnswerUnroutable "answer_unroutable" Drop,
    /// Every pod that may have the flow has one of the same client address and port to another VIP.
    FlowCollision "flow_collision" Drop,
    /// A flow that has to be recorded could not be.
    FlowNotRecorded "flow_not_recorded" Drop,
    /// A pod's reply that only a record could tell the VIP of, and there is none.
    ReplyWithoutRecord "reply_without_record" Drop,
}

impl Reason {
    /// The reason with this index, if there is one.
    #[must_use]
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_distinct_and_indices_match() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_index(index as u32), Some(*reason));
        }
    }
}
