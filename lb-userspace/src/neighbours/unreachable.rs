//! Why a destination cannot be reached, in words for an operator.

use std::net::IpAddr;

use super::Refusal;

/// Why packets to a destination cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// No route matches.
    #[error("no route to {destination}: add one, or give this host an address on its network")]
    NoRoute {
        /// The destination.
        destination: IpAddr,
    },
    /// A route matches that exists to refuse.
    #[error("the route to {destination} is of type {by}: remove it, or add a more specific one")]
    RouteRefuses {
        /// The destination.
        destination: IpAddr,
        /// The route's type.
        by: Refusal,
    },
    /// The kernel takes the destination for an address that is not one host's.
    #[error("{destination} is a {kind} address here, not a host's")]
    NotUnicast {
        /// The destination.
        destination: IpAddr,
        /// The route's type: broadcast, multicast, anycast, …
        kind: String,
    },
    /// The kernel did not answer the question for a route.
    #[error("the kernel could not say how to reach {destination}: {reason}")]
    LookupFailed {
        /// The destination.
        destination: IpAddr,
        /// The kernel's error.
        reason: String,
    },
    /// The host has no source address of the family.
    #[error("{destination} is reached by {device}, but this host has no address of that family to send from")]
    NoSource {
        /// The destination.
        destination: IpAddr,
        /// The route's device.
        device: String,
    },
    /// The route's device is not there any more.
    #[error("the route to {destination} names interface {index}, which does not exist (any more)")]
    DeviceGone {
        /// The destination.
        destination: IpAddr,
        /// Index of the interface.
        index: u32,
    },
    /// The device is down, or has no carrier.
    #[error("{destination} is reached by {name}, which {}", if *.enabled { "has no carrier: check the cable, or the other end" } else { "is down: set it up" })]
    DeviceDown {
        /// The destination.
        destination: IpAddr,
        /// The device.
        name: String,
        /// Whether it is set up, and lacks only the carrier.
        enabled: bool,
    },
    /// The device has no Ethernet header.
    #[error("{destination} is reached by {name}, a {kind} device: only Ethernet devices can be sent from")]
    NotEthernet {
        /// The destination.
        destination: IpAddr,
        /// The device.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The neighbour has been asked for its MAC address and may yet answer.
    #[error("waiting for {neighbour} on {device} to say its MAC address")]
    NeighbourPending {
        /// The gateway, or the destination itself where it is on the link.
        neighbour: IpAddr,
        /// The device.
        device: String,
    },
    /// The neighbour does not answer.
    #[error("{neighbour} does not answer on {device} ({}): is that host up, and on this network?", if .neighbour.is_ipv4() { "ARP" } else { "neighbour discovery" })]
    NeighbourFailed {
        /// The gateway, or the destination itself where it is on the link.
        neighbour: IpAddr,
        /// The device.
        device: String,
    },
    /// The kernel would not take the neighbour into its table.
    #[error("the kernel does not take {neighbour} on {device} into its neighbour table: {reason}")]
    NeighbourRefused {
        /// The gateway, or the destination itself where it is on the link.
        neighbour: IpAddr,
        /// The device.
        device: String,
        /// The kernel's error, and what helps.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_address_and_device() {
        let destination = "192.0.2.7".parse().unwrap();
        let down = Unreachable::DeviceDown { destination, name: "eth1".into(), enabled: false };
        assert_eq!(down.to_string(), "192.0.2.7 is reached by eth1, which is down: set it up");
        let silent = Unreachable::NeighbourFailed { neighbour: "2001:db8::1".parse().unwrap(), device: "eth0".into() };
        assert_eq!(
            silent.to_string(),
            "2001:db8::1 does not answer on eth0 (neighbour discovery): is that host up, and on this network?"
        );
        let refused = Unreachable::RouteRefuses { destination, by: Refusal::Blackhole };
        assert_eq!(
            refused.to_string(),
            "the route to 192.0.2.7 is of type blackhole: remove it, or add a more specific one"
        );
    }
}
