//! Where local pods are: the live device that leads to each, and the namespace of its sockets.
//!
//! A packet that is rewritten to a pod's address goes where the kernel's routing says. Where that is not a device of
//! this host it would go back to the router, and from there perhaps come again: so a pod counts only while a route *of
//! its own* leads to it by a device that is up. What network plugins do:
//!
//! - ptp, Calico, Cilium's endpoint routes, the AWS plugin: a host route by a veth for each pod.
//! - bridge, flannel: a network on a bridge; the neighbour's MAC address and the bridge's forwarding database tell the
//!   port. A port that was known stays so when the bridge forgets a silent pod, until it is gone.
//! - Cilium without endpoint routes: the node's pod network by a gateway that is this host's own address. Which pods
//!   exist the kernel does not know then: all of them count while that device is up.
//! - hostNetwork: the pod's address is this host's own.
//!
//! A route by another gateway, the default route, an uplink's network and devices that lead off this host (tunnels, a
//! bridge's wires) are not a pod's own.
//!
//! The question is for a packet of this host's own: rules that look at where a packet came in, or at its mark, are not
//! seen.
//!
//! `watch` keeps what is known of the pods that are asked for; the decision is here, without a kernel.

mod unreachable;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use self::unreachable::PodUnreachable;
pub(super) use self::watch::Pods;
use super::entries::{Key, Want};
use super::links::Link;
use super::routes::{Answer, Route};
use super::tables::Tables;
use super::{Unreachable, resolve};

/// The loopback device's index, the same in every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h, Linux 6.18).
const LOOPBACK: u32 = 1;

/// The live local device that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPath {
    /// Index of the device: the host's end of the pod's veth (with a bridge its port), a tap, …; the bridge itself
    /// while the port is not known; the loopback device (1) for a hostNetwork pod.
    pub interface: u32,
    /// Its name.
    pub name: String,
    /// Id that this host's namespace has for the one of the pod's sockets. `None` where the device does not tell: the
    /// pod's sockets are this host's own, or cannot be seen.
    pub namespace: Option<u32>,
}

impl PodPath {
    /// Whether the pod's address is this host's own, and its sockets are in this host's namespace.
    #[must_use]
    pub const fn is_host_network(&self) -> bool {
        self.interface == LOOPBACK
    }
}

/// What the kernel's routing says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodRoute {
    /// How it would send there.
    pub(super) answer: Answer,
    /// Length of the prefix of the route that it would take, where it is by a device.
    pub(super) length: u8,
}

/// A pod's place on a bridge when it was last known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    bridge: u32,
    mac: [u8; 6],
    port: u32,
}

/// What else decides where a pod is.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) tables: &'a Tables,
    pub(super) wants: &'a BTreeMap<Key, Want>,
    /// Indexes of the devices that carry a default route.
    pub(super) uplinks: &'a BTreeSet<u32>,
}

/// A device with what is known of it.
#[derive(Clone, Copy)]
struct Device<'a> {
    name: &'a str,
    link: &'a Link,
}

impl Device<'_> {
    fn check_up(self, pod: IpAddr) -> Result<Self, PodUnreachable> {
        if self.link.up {
            return Ok(self);
        }
        let (name, enabled) = (self.name.to_owned(), self.link.enabled);
        Err(Unreachable::DeviceDown { destination: pod, name, enabled }.into())
    }

    fn path(self) -> PodPath {
        // Of a macvlan or the like the id tells where the lower device is, not the pod.
        let namespace = self.link.namespace.filter(|_| is_pair(self.link));
        PodPath { interface: self.link.index, name: self.name.to_owned(), namespace }
    }

    fn no_pod_behind(self, pod: IpAddr) -> PodUnreachable {
        PodUnreachable::NoPodBehind { pod, device: self.name.to_owned(), kind: self.link.kind.clone() }
    }
}

/// Where a pod is.
fn path(pod: IpAddr, route: &PodRoute, seat: Option<&Seat>, view: View<'_>) -> Result<PodPath, PodUnreachable> {
    match &route.answer {
        Answer::Local { .. } => {
            let name = view.tables.links.get(&LOOPBACK).map_or("lo", |(name, _)| name).to_owned();
            Ok(PodPath { interface: LOOPBACK, name, namespace: None })
        }
        Answer::Unreachable(Unreachable::NoRoute { .. }) => Err(PodUnreachable::NoRoute { pod }),
        Answer::Unreachable(reason) => Err(reason.clone().into()),
        Answer::Unicast(by) => {
            let device = own_device(pod, by, route.length, view)?.check_up(pod)?;
            if is_bridge(device.link) { behind_bridge(pod, device, seat, view) } else { Ok(device.path()) }
        }
    }
}

/// The neighbour to ask for its MAC address, if the pod is behind a bridge.
fn neighbour(pod: IpAddr, route: &PodRoute, view: View<'_>) -> Option<Key> {
    let Answer::Unicast(by) = &route.answer else { return None };
    let device = own_device(pod, by, route.length, view).ok()?;
    is_bridge(device.link).then_some((device.link.index, pod))
}

/// The pod's place on a bridge as the kernel's tables tell it now.
fn seat(pod: IpAddr, route: &PodRoute, last: Option<&Seat>, view: View<'_>) -> Option<Seat> {
    let key @ (bridge, _) = neighbour(pod, route, view)?;
    let Some(mac) = view.tables.neighbours.get(&key).and_then(|entry| entry.usable()) else {
        return last.copied();
    };
    match view.tables.port(bridge, mac) {
        Some(port) => Some(Seat { bridge, mac, port }),
        // Forgotten, after minutes of silence or with its port. The port itself tells which.
        None => last.filter(|last| (last.bridge, last.mac) == (bridge, mac)).copied(),
    }
}

/// The device of a route that is the pod's own.
fn own_device<'a>(pod: IpAddr, by: &Route, length: u8, view: View<'a>) -> Result<Device<'a>, PodUnreachable> {
    let index = by.interface;
    let Some((name, link)) = view.tables.links.get(&index) else {
        return Err(Unreachable::DeviceGone { destination: pod, index }.into());
    };
    let device = Device { name, link };
    if length == 0 {
        return Err(PodUnreachable::DefaultRoute { pod, device: name.clone() });
    }
    if let Some(gateway) = by.gateway.filter(|gateway| *gateway != pod && !view.tables.has_address(*gateway)) {
        return Err(PodUnreachable::Gateway { pod, gateway, device: name.clone() });
    }
    let single = length == if pod.is_ipv4() { 32 } else { 128 };
    // On a bridge the port decides: some plugins make the uplink one of its ports.
    if view.uplinks.contains(&index) && !single && !is_bridge(link) {
        return Err(PodUnreachable::UplinkNetwork { pod, device: name.clone() });
    }
    if index == LOOPBACK || is_tunnel(link) {
        return Err(device.no_pod_behind(pod));
    }
    Ok(device)
}

/// A pod behind a bridge: its port decides while that is known, then whether it answers.
///
/// The kernel forgets all neighbours of a bridge whose own MAC address changes, which it takes from its ports
/// (`br_stp_recalculate_bridge_id` and `neigh_changeaddr`, Linux 6.18). So a pod that is only asked again stays where it
/// was.
fn behind_bridge(
    pod: IpAddr,
    bridge: Device<'_>,
    seat: Option<&Seat>,
    view: View<'_>,
) -> Result<PodPath, PodUnreachable> {
    let key = (bridge.link.index, pod);
    let mac = view.tables.neighbours.get(&key).and_then(|entry| entry.usable());
    let seat = seat.filter(|seat| seat.bridge == bridge.link.index && mac.is_none_or(|mac| mac == seat.mac));
    let device = match seat {
        Some(seat) => port(pod, bridge, seat, view)?,
        // By a port that the bridge has not learned.
        None => bridge,
    };
    let want = view.wants.get(&key);
    let asked_again = seat.is_some() && want.is_none_or(|want| !want.failing && want.refused.is_none());
    if mac.is_some() || asked_again {
        Ok(device.path())
    } else {
        Err(resolve::why_unresolved(pod, bridge.name.to_owned(), want).into())
    }
}

/// The port of a pod behind a bridge.
fn port<'a>(pod: IpAddr, bridge: Device<'_>, seat: &Seat, view: View<'a>) -> Result<Device<'a>, PodUnreachable> {
    let port = view.tables.links.get(&seat.port).filter(|(_, link)| link.master == Some(seat.bridge));
    let Some((name, link)) = port else {
        return Err(PodUnreachable::PortGone { pod, bridge: bridge.name.to_owned() });
    };
    let port = Device { name, link }.check_up(pod)?;
    if is_tunnel(link) || is_wire(link) { Err(port.no_pod_behind(pod)) } else { Ok(port) }
}

fn is_bridge(link: &Link) -> bool {
    link.kind == "bridge"
}

/// Whether it is one of a pair, with the other in the pod.
fn is_pair(link: &Link) -> bool {
    matches!(link.kind.as_str(), "veth" | "netkit")
}

/// Whether it leads to other hosts by way of a tunnel.
fn is_tunnel(link: &Link) -> bool {
    matches!(
        link.kind.as_str(),
        "amt"
            | "bareudp"
            | "batadv"
            | "erspan"
            | "geneve"
            | "gre"
            | "gretap"
            | "gtp"
            | "ip6erspan"
            | "ip6gre"
            | "ip6gretap"
            | "ip6tnl"
            | "ipip"
            | "ppp"
            | "sit"
            | "vti"
            | "vti6"
            | "vxlan"
            | "wireguard"
            | "xfrm"
    )
}

/// Whether it leads to other hosts by a wire: a device of hardware has no kind of its own.
fn is_wire(link: &Link) -> bool {
    matches!(link.kind.as_str(), "ethernet" | "bond" | "team" | "vlan")
}

#[cfg(test)]
mod tests;
