//! The pods that are asked for, and what has to be looked at again for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::stream::{self, StreamExt as _};

use super::super::Addresses;
use super::super::entries::Key;
use super::super::kernel::{Error, Kernel};
use super::super::routes::Answer;
use super::super::tables::{Change, Tables};
use super::{PodPath, PodRoute, PodUnreachable, Seat, View, neighbour, path, seat};

/// Questions on their way at once: as many answers as the smallest receive buffer holds.
const AT_ONCE: usize = 32;

/// What is known of pods.
pub(in crate::neighbours) struct Pods {
    wanted: Addresses,
    routes: BTreeMap<IpAddr, PodRoute>,
    seats: BTreeMap<IpAddr, Seat>,
    /// Those to ask the kernel about again.
    dirty: BTreeSet<IpAddr>,
}

impl Pods {
    pub(in crate::neighbours) const fn new(wanted: Addresses) -> Self {
        Self { wanted, routes: BTreeMap::new(), seats: BTreeMap::new(), dirty: BTreeSet::new() }
    }

    /// Waits until other pods are asked for; for ever when nobody is left who could ask.
    pub(in crate::neighbours) async fn changed(&mut self) {
        if self.wanted.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Marks all to be asked about again.
    pub(in crate::neighbours) fn doubt_all(&mut self) {
        self.dirty.extend(self.routes.keys());
    }

    /// Takes note of a change; whether it matters to a pod.
    pub(in crate::neighbours) fn note(&mut self, change: &Change, tables: &Tables) -> bool {
        match change {
            Change::Nothing | Change::Neighbour(_) => return false,
            Change::AllRoutes => self.doubt_all(),
            Change::Routes(range) => {
                let before = self.dirty.len();
                self.dirty.extend(self.wanted.borrow().range(range.clone()));
                return self.dirty.len() > before;
            }
            // The kernel drops a device's IPv4 routes without a word when it goes down. Pods by other devices keep
            // theirs, or the message about a better one tells.
            Change::Device(index) => {
                let elsewhere = |answer: &Answer| matches!(answer, Answer::Unicast(by) if by.interface != *index && by.gateway.is_none());
                let doubtful = self.routes.iter().filter(|(_, route)| !elsewhere(&route.answer)).map(|(pod, _)| *pod);
                self.dirty.extend(doubtful);
            }
            Change::Forwarding((bridge, mac, _)) => {
                return self.routes.iter().any(|(pod, route)| {
                    matches!(&route.answer, Answer::Unicast(by) if by.interface == *bridge)
                        && tables.neighbours.get(&(*bridge, *pod)).is_some_and(|entry| entry.mac == Some(*mac))
                });
            }
        }
        !self.routes.is_empty()
    }

    /// Asks for the routes of what is new or may have changed.
    pub(in crate::neighbours) async fn look_up(&mut self, kernel: &Kernel) -> Result<(), Error> {
        let wanted = self.wanted.borrow_and_update().clone();
        self.routes.retain(|pod, _| wanted.contains(pod));
        self.seats.retain(|pod, _| wanted.contains(pod));
        let dirty = std::mem::take(&mut self.dirty);
        let questions: Vec<IpAddr> =
            wanted.into_iter().filter(|pod| dirty.contains(pod) || !self.routes.contains_key(pod)).collect();
        let mut answers = stream::iter(questions)
            .map(|pod| async move { (pod, kernel.pod_route(pod).await) })
            .buffer_unordered(AT_ONCE);
        while let Some((pod, route)) = answers.next().await {
            self.routes.insert(pod, route?);
        }
        Ok(())
    }

    /// The neighbours whose MAC addresses are needed to find pods behind bridges.
    pub(in crate::neighbours) fn neighbours<'a>(&'a self, view: View<'a>) -> impl Iterator<Item = Key> + 'a {
        self.routes.iter().filter_map(move |(pod, route)| neighbour(*pod, route, view))
    }

    /// Takes note of the ports of pods behind bridges.
    pub(in crate::neighbours) fn find_seats(&mut self, view: View<'_>) {
        for (pod, route) in &self.routes {
            match seat(*pod, route, self.seats.get(pod), view) {
                Some(seat) => self.seats.insert(*pod, seat),
                None => self.seats.remove(pod),
            };
        }
    }

    /// Where each pod is.
    pub(in crate::neighbours) fn paths(&self, view: View<'_>) -> BTreeMap<IpAddr, Result<PodPath, PodUnreachable>> {
        self.routes.iter().map(|(pod, route)| (*pod, path(*pod, route, self.seats.get(pod), view))).collect()
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourState};

    use super::super::super::Unreachable;
    use super::super::super::entries::question;
    use super::super::super::routes::Route;
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn by(interface: u32, gateway: Option<IpAddr>) -> PodRoute {
        PodRoute { answer: Answer::Unicast(Route { interface, gateway, source: None, mtu: None }), length: 32 }
    }

    /// One pod each by veth 5, by bridge 20, by a gateway, without a route and of this host.
    fn pods() -> Pods {
        let none = Answer::Unreachable(Unreachable::NoRoute { destination: ip("10.0.0.4") });
        let routes: BTreeMap<IpAddr, PodRoute> = [
            (ip("10.0.0.1"), by(5, None)),
            (ip("10.0.0.2"), by(20, None)),
            (ip("10.0.0.3"), by(7, Some(ip("192.0.2.1")))),
            (ip("10.0.0.4"), PodRoute { answer: none, length: 0 }),
            (ip("10.0.0.5"), PodRoute { answer: Answer::Local { source: ip("10.0.0.5") }, length: 0 }),
        ]
        .into();
        let (_, wanted) = tokio::sync::watch::channel(routes.keys().copied().collect());
        Pods { routes, ..Pods::new(wanted) }
    }

    /// The last byte of each pod that is asked about again.
    fn doubted(change: &Change) -> Vec<u8> {
        let mut pods = pods();
        let matters = pods.note(change, &Tables::default());
        assert_eq!(matters, !pods.dirty.is_empty(), "{change:?}");
        let last = |pod: &IpAddr| match pod {
            IpAddr::V4(pod) => pod.octets()[3],
            IpAddr::V6(pod) => pod.octets()[15],
        };
        pods.dirty.iter().map(last).collect()
    }

    #[test]
    fn only_pods_that_a_change_may_concern_are_asked_about() {
        let all = [1, 2, 3, 4, 5];
        assert_eq!(doubted(&Change::AllRoutes), all);
        assert_eq!(doubted(&Change::Routes(ip("10.0.0.2")..=ip("10.0.0.3"))), [2, 3]);
        assert!(doubted(&Change::Routes(ip("10.1.0.0")..=ip("10.1.255.255"))).is_empty());
        assert_eq!(doubted(&Change::Device(5)), [1, 3, 4, 5], "not the one by another device");
        assert_eq!(doubted(&Change::Device(20)), [2, 3, 4, 5]);
        assert!(doubted(&Change::Neighbour((20, ip("10.0.0.2")))).is_empty());
    }

    #[test]
    fn a_bridges_news_matter_if_they_are_of_a_pods_mac() {
        let mut tables = Tables::default();
        let mut message = question((20, ip("10.0.0.2")));
        message.header.state = NeighbourState::Reachable;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
        tables.apply(&RouteNetlinkMessage::NewNeighbour(message));
        let mut pods = pods();
        assert!(pods.note(&Change::Forwarding((20, MAC, 0)), &tables));
        assert!(!pods.note(&Change::Forwarding((21, MAC, 0)), &tables));
        assert!(!pods.note(&Change::Forwarding((20, [2; 6], 0)), &tables));
        assert!(pods.dirty.is_empty(), "no route has changed");
    }
}
