//! Why no live local device leads to a pod, in words for an operator.

use std::net::IpAddr;

use super::Unreachable;

/// Why a pod is not to be delivered to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodUnreachable {
    /// No route matches.
    #[error("no route leads to {pod}: the pod is not on this host (any more), or its network is not set up")]
    NoRoute {
        /// The pod.
        pod: IpAddr,
    },
    /// Only the default route matches: a packet would leave for the router, which may well send it back.
    #[error("only the default route, by {device}, leads to {pod}: the pod is not on this host (any more)")]
    DefaultRoute {
        /// The pod.
        pod: IpAddr,
        /// The default route's device.
        device: String,
    },
    /// The route is by another host.
    #[error("the route to {pod} is by the gateway {gateway} on {device}: the pod is not on this host (any more)")]
    Gateway {
        /// The pod.
        pod: IpAddr,
        /// The gateway.
        gateway: IpAddr,
        /// The route's device.
        device: String,
    },
    /// The address is one of an uplink's network, where other hosts are, and has no route of its own.
    #[error(
        "{pod} has no route of its own, only that of the network on the uplink {device}: the pod is not on this host (any more)"
    )]
    UplinkNetwork {
        /// The pod.
        pod: IpAddr,
        /// The device, which carries a default route.
        device: String,
    },
    /// The device, or the bridge's port, leads to no pod of this host.
    #[error("{pod} is reached by {device}, a {kind} device: no pod of this host is behind it")]
    NoPodBehind {
        /// The pod.
        pod: IpAddr,
        /// The device.
        device: String,
        /// What it is.
        kind: String,
    },
    /// The pod was behind a port of a bridge that is not one any more.
    #[error("the port of {bridge} that led to {pod} is gone: the pod was deleted, or is being set up again")]
    PortGone {
        /// The pod.
        pod: IpAddr,
        /// The bridge.
        bridge: String,
    },
    /// As for any destination: a refusing route, a device that is down, a neighbour that does not answer (yet).
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
}

impl PodUnreachable {
    /// Whether it is only not known yet: the pod was asked for its MAC address and may yet answer.
    #[must_use]
    pub const fn is_pending(&self) -> bool {
        matches!(self, Self::Unreachable(Unreachable::NeighbourPending { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_pod_and_device() {
        let pod = "10.244.0.7".parse().unwrap();
        let elsewhere = PodUnreachable::DefaultRoute { pod, device: "eth0".into() };
        assert_eq!(
            elsewhere.to_string(),
            "only the default route, by eth0, leads to 10.244.0.7: the pod is not on this host (any more)"
        );
        let down = Unreachable::DeviceDown { destination: pod, name: "cali1".into(), enabled: false };
        assert_eq!(PodUnreachable::from(down).to_string(), "10.244.0.7 is reached by cali1, which is down: set it up");
    }

    #[test]
    fn only_an_unanswered_question_is_pending() {
        let (neighbour, device) = ("10.244.0.7".parse().unwrap(), "cni0".to_owned());
        let pending = Unreachable::NeighbourPending { neighbour, device: device.clone() };
        assert!(PodUnreachable::from(pending).is_pending());
        assert!(!PodUnreachable::from(Unreachable::NeighbourFailed { neighbour, device }).is_pending());
        assert!(!PodUnreachable::NoRoute { pod: neighbour }.is_pending());
    }
}
