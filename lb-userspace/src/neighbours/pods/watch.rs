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
