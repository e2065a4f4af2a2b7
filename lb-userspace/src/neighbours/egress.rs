//! The uplinks: the devices that carry a default route, by which replies to outside may leave.
//!
//! All tables count, since rules decide at each packet. A message about a default route only tells that something
//! changed: a replaced route is not announced as deleted, and a device that goes down loses its IPv4 routes without a
//! word. So they are read again. The kernel can filter a dump by much, but not by the length of the prefix
//! (`fib_dump_filter`, Linux 6.18): all routes pass by, and a host with very many of them reads them less often.

use std::collections::BTreeSet;
use std::time::Duration;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use tokio::time::Instant;

use super::kernel::{Error, Kernel};
use super::tables::Change;

/// A reading that took long is followed by a pause of so many times that.
const PAUSE: u32 = 50;

/// The shortest pause after a reading that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of default routes.
#[derive(Default)]
pub(super) struct Uplinks {
    /// Indexes of the devices that carry one.
    pub(super) devices: BTreeSet<u32>,
    dirty: bool,
    not_before: Option<Instant>,
}

impl Uplinks {
    /// Marks them to be read again.
    pub(super) fn doubt(&mut self) {
        self.dirty = true;
    }

    /// Takes note of a change; whether it may matter.
    pub(super) fn note(&mut self, change: &Change) -> bool {
        let matters = match change {
            Change::AllRoutes => true,
            Change::Device(index) => self.devices.contains(index),
            Change::Nothing | Change::Neighbour(_) | Change::Routes(_) | Change::Forwarding(_) => false,
        };
        self.dirty |= matters;
        matters
    }

    /// When to read them again, if that is due at all.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.dirty.then(|| self.not_before.unwrap_or(now))
    }

    /// Reads them if that is due. What cannot be read stays as it was, to be tried again.
    ///
    /// # Errors
    ///
    /// When the socket is closed.
    pub(super) async fn read(&mut self, kernel: &Kernel) -> Result<(), Error> {
        let start = Instant::now();
        if self.due(start).is_none_or(|at| at > start) {
            return Ok(());
        }
        let answer = kernel.default_routes().await;
        let took = start.elapsed();
        let mut pause = took * PAUSE;
        match answer {
            Ok(routes) => {
                self.devices = routes.iter().flat_map(devices).collect();
                self.dirty = false;
            }
            Err(Error::Closed) => return Err(Error::Closed),
            Err(error) => {
                tracing::warn!(%error, "default routes could not be read");
                pause = pause.max(RETRY);
            }
        }
        self.not_before = (pause >= RETRY).then(|| start + took + pause);
        Ok(())
    }
}

/// Whether a route is a default one that leads somewhere.
pub(super) fn is_default(message: &RouteMessage) -> bool {
    let header = &message.header;
    header.destination_prefix_length == 0 && header.kind == RouteType::Unicast
}

/// The devices of routes: of IPv4's, of IPv6's.
pub(super) fn by_family(routes: &[RouteMessage]) -> [BTreeSet<u32>; 2] {
    let of = |family| routes.iter().filter(move |route| route.header.address_family == family).flat_map(devices);
    [of(AddressFamily::Inet).collect(), of(AddressFamily::Inet6).collect()]
}

/// The devices of a route: its own, and those of its next hops.
fn devices(message: &RouteMessage) -> BTreeSet<u32> {
    let mut devices = BTreeSet::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => {
                devices.insert(*index);
            }
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    #[test]
    fn a_default_route_has_no_prefix_and_leads_somewhere() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        assert!(is_default(&message));
        message.header.destination_prefix_length = 1;
        assert!(!is_default(&message));
        message.header.destination_prefix_length = 0;
        message.header.kind = RouteType::Unreachable;
        assert!(!is_default(&message), "IPv6's null entry, or one that refuses");
    }

    #[test]
    fn every_next_hop_has_a_device() {
        let mut message = RouteMessage::default();
        message.attributes.push(RouteAttribute::Oif(3));
        assert_eq!(devices(&message), [3].into());
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        message.attributes = vec![RouteAttribute::MultiPath(vec![hop(4), hop(5)])];
        assert_eq!(devices(&message), [4, 5].into());
    }

    #[test]
    fn default_routes_and_uplinks_that_change_are_read_again() {
        let now = Instant::now();
        let mut uplinks = Uplinks { devices: [4].into(), ..Uplinks::default() };
        let host = "192.0.2.1".parse().unwrap();
        for change in [Change::Nothing, Change::Device(5), Change::Routes(host..=host)] {
            assert!(!uplinks.note(&change), "{change:?}");
        }
        assert_eq!(uplinks.due(now), None);
        assert!(uplinks.note(&Change::Device(4)));
        assert_eq!(uplinks.due(now), Some(now));
        let mut uplinks = Uplinks { not_before: Some(now + RETRY), ..Uplinks::default() };
        assert!(uplinks.note(&Change::AllRoutes));
        assert_eq!(uplinks.due(now), Some(now + RETRY));
    }
}
