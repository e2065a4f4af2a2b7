//! Questions to the kernel's routing, and what the answers mean.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use nix::errno::Errno;

use super::Unreachable;

/// A route's type that exists to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Discards silently.
    Blackhole,
    /// Answers that the host cannot be reached.
    Unreachable,
    /// Answers that it is administratively prohibited.
    Prohibit,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
        })
    }
}

/// What the kernel's routing says of a destination. Says nothing of devices and neighbours, which change more often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An address of this host.
    Local {
        /// What it would send from.
        source: IpAddr,
    },
    /// By a device.
    Unicast(Route),
    /// Not at all.
    Unreachable(Unreachable),
}

/// The part of a route that counts here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Index of the device.
    pub(super) interface: u32,
    /// The gateway, if there is one.
    pub(super) gateway: Option<IpAddr>,
    /// The source that the kernel would take, if it has one of the family.
    pub(super) source: Option<IpAddr>,
    /// The route's own or learned MTU in bytes, if it has one.
    pub(super) mtu: Option<u32>,
}

/// The question for a destination.
pub(super) fn question(destination: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    (message.header.address_family, message.header.destination_prefix_length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    message
}

/// The question for the entry of a routing table that counts for a destination (`RTM_F_FIB_MATCH`, Linux 4.13): only
/// that answer has the length of the entry's prefix.
pub(super) fn entry_question(destination: IpAddr) -> RouteMessage {
    let mut message = question(destination);
    message.header.flags = RouteFlags::FibMatch;
    message
}

/// Reads the kernel's answer.
pub(super) fn answer(destination: IpAddr, message: &RouteMessage) -> Answer {
    let mut route = Route { interface: 0, gateway: None, source: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = *index,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match message.header.kind {
        RouteType::Unicast => Answer::Unicast(route),
        RouteType::Local => Answer::Local { source: route.source.unwrap_or(destination) },
        RouteType::BlackHole => refused(destination, Refusal::Blackhole),
        RouteType::Unreachable => refused(destination, Refusal::Unreachable),
        RouteType::Prohibit => refused(destination, Refusal::Prohibit),
        other => {
            let kind = format!("{other:?}").to_lowercase();
            Answer::Unreachable(Unreachable::NotUnicast { destination, kind })
        }
    }
}

/// What an error means that came instead of an answer. The kernel answers with the error that a route's type stands
/// for (`fib_props` in net/ipv4/fib_semantics.c, `fib6_prop` in net/ipv6/route.c).
pub(super) fn refusal(destination: IpAddr, errno: Errno) -> Answer {
    match errno {
        Errno::ENETUNREACH => Answer::Unreachable(Unreachable::NoRoute { destination }),
        Errno::EHOSTUNREACH => refused(destination, Refusal::Unreachable),
        Errno::EACCES => refused(destination, Refusal::Prohibit),
        Errno::EINVAL => refused(destination, Refusal::Blackhole),
        other => Answer::Unreachable(Unreachable::LookupFailed { destination, reason: other.desc().into() }),
    }
}

/// The destinations that a changed route may matter to: its prefix; `None`, for a default route, means all.
pub(super) fn affected(message: &RouteMessage) -> Option<RangeInclusive<IpAddr>> {
    let length = u32::from(message.header.destination_prefix_length);
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    match destination? {
        IpAddr::V4(address) => {
            let rest = u32::MAX.checked_shr(length).unwrap_or(0);
            let bits = address.to_bits();
            Some(IpAddr::V4((bits & !rest).into())..=IpAddr::V4((bits | rest).into()))
        }
        IpAddr::V6(address) => {
            let rest = u128::MAX.checked_shr(length).unwrap_or(0);
            let bits = address.to_bits();
            Some(IpAddr::V6((bits & !rest).into())..=IpAddr::V6((bits | rest).into()))
        }
    }
}

fn refused(destination: IpAddr, by: Refusal) -> Answer {
    Answer::Unreachable(Unreachable::RouteRefuses { destination, by })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESTINATION: &str = "198.51.100.9";

    fn destination() -> IpAddr {
        DESTINATION.parse().unwrap()
    }

    #[test]
    fn an_answer_has_gateway_source_and_mtu() {
        let mut message = question(destination());
        message.header.kind = RouteType::Unicast;
        message.attributes.extend([
            RouteAttribute::Oif(7),
            RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, 1].into())),
            RouteAttribute::PrefSource(RouteAddress::Inet([192, 0, 2, 2].into())),
            RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(3), RouteMetric::Mtu(1400)]),
        ]);
        let expected = Route {
            interface: 7,
            gateway: "192.0.2.1".parse().ok(),
            source: "192.0.2.2".parse().ok(),
            mtu: Some(1400),
        };
        assert_eq!(answer(destination(), &message), Answer::Unicast(expected));
    }

    #[test]
    fn a_gateway_may_be_of_the_other_family() {
        let mut message = question(destination());
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())));
        let Answer::Unicast(route) = answer(destination(), &message) else { panic!("a unicast route was expected") };
        assert_eq!(route.gateway, "fe80::1".parse().ok());
    }

    #[test]
    fn types_and_errors_that_refuse_mean_the_same() {
        for (kind, errno, by) in [
            (RouteType::BlackHole, Errno::EINVAL, Refusal::Blackhole),
            (RouteType::Unreachable, Errno::EHOSTUNREACH, Refusal::Unreachable),
            (RouteType::Prohibit, Errno::EACCES, Refusal::Prohibit),
        ] {
            let mut message = question(destination());
            message.header.kind = kind;
            let expected = Answer::Unreachable(Unreachable::RouteRefuses { destination: destination(), by });
            assert_eq!(answer(destination(), &message), expected);
            assert_eq!(refusal(destination(), errno), expected);
        }
        let none = Answer::Unreachable(Unreachable::NoRoute { destination: destination() });
        assert_eq!(refusal(destination(), Errno::ENETUNREACH), none);
    }

    #[test]
    fn a_broadcast_address_is_no_host() {
        let mut message = question(destination());
        message.header.kind = RouteType::Broadcast;
        let kind = "broadcast".into();
        let expected = Answer::Unreachable(Unreachable::NotUnicast { destination: destination(), kind });
        assert_eq!(answer(destination(), &message), expected);
    }

    #[test]
    fn a_changed_route_matters_to_its_prefix() {
        let mut message = question(destination());
        message.header.destination_prefix_length = 24;
        let range = affected(&message).unwrap();
        assert_eq!(
            (range.start().to_string(), range.end().to_string()),
            ("198.51.100.0".into(), "198.51.100.255".into())
        );
        let mut message = question("2001:db8:1::7".parse().unwrap());
        assert_eq!(affected(&message).unwrap().start(), affected(&message).unwrap().end());
        message.header.destination_prefix_length = 0;
        assert_eq!(affected(&message).unwrap().start().to_string(), "::");
        message.attributes.clear();
        assert_eq!(affected(&message), None);
    }
}
