//! Entries of the neighbour tables: what they say, and when to ask the kernel to resolve one.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use tokio::time::Instant;

/// The routing protocol number (`NDA_PROTOCOL`, shown as `proto 190` by `ip -d neigh`) on entries that were made
/// managed here. No routing daemon in iproute2's `rt_protos` has it.
pub const ENTRY_PROTOCOL: u8 = 190;

/// The longest pause between two questions for a neighbour that does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// An entry: its interface's index and its address.
pub(super) type Key = (u32, IpAddr);

/// A neighbour as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where its resolution stands.
    pub(super) state: NeighbourState,
    /// Its MAC address, if the entry has one of Ethernet.
    pub(super) mac: Option<[u8; 6]>,
    /// Whether the kernel keeps it resolved by itself.
    pub(super) managed: bool,
    /// Whether it carries [`ENTRY_PROTOCOL`].
    pub(super) ours: bool,
    /// Whether somebody set it on purpose: to be used, never changed.
    pub(super) foreign: bool,
}

impl Entry {
    /// The MAC address to send to, while the kernel itself would (`NUD_VALID`): an entry that is stale or being
    /// verified is good until it has failed.
    pub(super) fn usable(&self) -> Option<[u8; 6]> {
        match self.state {
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent => self.mac,
            _ => None,
        }
    }

    /// Whether it was made managed here, and still is.
    pub(super) fn is_kept_here(&self) -> bool {
        self.managed && self.ours && !self.foreign
    }
}

/// Reads a neighbour message; `None` for those that are not about an IP neighbour (bridges' forwarding entries, proxies).
pub(super) fn parse(message: &NeighbourMessage) -> Option<(Key, Entry)> {
    let header = &message.header;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6)
        || header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    let mut flags = NeighbourExtFlags::empty();
    let mut protocol = RouteProtocol::Unspec;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => address = Some(IpAddr::V4(*value)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(value)) => address = Some(IpAddr::V6(*value)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(value) => flags = *value,
            NeighbourAttribute::Protocol(value) => protocol = *value,
            _ => {}
        }
    }
    let ours = protocol == RouteProtocol::Other(ENTRY_PROTOCOL);
    let learned = header.flags.contains(NeighbourFlags::ExtLearned) || flags.contains(NeighbourExtFlags::ExtValidated);
    let fixed = matches!(header.state, NeighbourState::Permanent | NeighbourState::Noarp);
    let managed = flags.contains(NeighbourExtFlags::Managed);
    let other_protocol = !ours && protocol != RouteProtocol::Unspec;
    let foreign = fixed || learned || other_protocol || (managed && !ours);
    Some(((header.ifindex, address?), Entry { state: header.state, mac, managed, ours, foreign }))
}

/// The message that asks the kernel to resolve a neighbour, and with `managed` to keep it so.
///
/// `NTF_USE` is always set. With it a kernel that knows no `NTF_EXT_MANAGED` (before 5.16) ignores that and merely
/// probes; without it the same kernel would take the request's empty state for the new one and forget the MAC address.
/// To leave `managed` out of the request makes a managed entry an ordinary one (`neigh_update_flags`, Linux 5.16).
pub(super) fn ask((interface, address): Key, managed: bool) -> RouteNetlinkMessage {
    let mut message = question((interface, address));
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use;
    if managed {
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(ENTRY_PROTOCOL)));
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    }
    RouteNetlinkMessage::NewNeighbour(message)
}

/// The message that names an entry.
pub(super) fn question((interface, address): Key) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = interface;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

/// Whether the kernel knows managed entries: believed until one was entered that did not become managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    /// Linux 5.16 and later, as far as is known.
    Managed,
    /// Entries are probed when they become stale.
    ProbesOnly,
}

/// A neighbour that a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// Whether it has failed to answer since it was last usable. While the kernel tries again its state reads
    /// incomplete, as for one that was never asked; this tells them apart.
    pub(super) failing: bool,
    /// Why the kernel did not take the last request.
    pub(super) refused: Option<Errno>,
    attempts: u32,
    not_before: Instant,
}

impl Want {
    /// One to be asked for at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { failing: false, refused: None, attempts: 0, not_before: now }
    }

    /// Takes note of the entry's present state.
    pub(super) fn observe(&mut self, entry: &Entry) {
        if entry.usable().is_some() {
            self.failing = false;
            self.attempts = 0;
        } else if entry.state == NeighbourState::Failed {
            self.failing = true;
        }
    }

    /// When to ask the kernel to resolve the neighbour; `None` while there is nothing to ask.
    pub(super) fn due(&self, entry: Option<&Entry>, support: Support) -> Option<Instant> {
        let content = entry.is_some_and(|entry| {
            let kept = match support {
                Support::Managed => entry.managed,
                Support::ProbesOnly => entry.state != NeighbourState::Stale,
            };
            entry.foreign || (entry.usable().is_some() && kept)
        });
        (!content).then_some(self.not_before)
    }

    /// Takes note that the kernel has been asked. The next question waits a second, then two, four, …
    pub(super) fn asked(&mut self, now: Instant, refused: Option<Errno>) {
        self.refused = refused;
        self.not_before = now + Duration::from_secs(1 << self.attempts.min(10)).min(LONGEST_PAUSE);
        self.attempts = self.attempts.saturating_add(1);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// An ordinary entry.
    pub(in crate::neighbours) fn entry(state: NeighbourState) -> Entry {
        Entry { state, mac: Some(MAC), managed: false, ours: false, foreign: false }
    }

    fn message(state: NeighbourState) -> NeighbourMessage {
        let mut message = question((3, "192.0.2.1".parse().unwrap()));
        message.header.state = state;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
        message
    }

    #[test]
    fn a_mac_is_used_until_the_neighbour_has_failed() {
        use NeighbourState::{Delay, Failed, Incomplete, Noarp, None, Permanent, Probe, Reachable, Stale};
        for state in [Reachable, Stale, Delay, Probe, Noarp, Permanent] {
            assert_eq!(entry(state).usable(), Some(MAC), "{state:?}");
        }
        for state in [None, Incomplete, Failed] {
            assert_eq!(entry(state).usable(), Option::None, "{state:?}");
        }
    }

    #[test]
    fn what_somebody_set_on_purpose_is_foreign() {
        let foreign = |message: &NeighbourMessage| parse(message).unwrap().1.foreign;
        assert!(!foreign(&message(NeighbourState::Reachable)));
        assert!(foreign(&message(NeighbourState::Permanent)));
        assert!(foreign(&message(NeighbourState::Noarp)));
        let mut learned = message(NeighbourState::Reachable);
        learned.header.flags = NeighbourFlags::ExtLearned;
        assert!(foreign(&learned));
        let mut zebra = message(NeighbourState::Reachable);
        zebra.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Zebra));
        assert!(foreign(&zebra));
        let mut managed = message(NeighbourState::Reachable);
        managed.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        assert!(foreign(&managed), "another's managed entry");
        let RouteNetlinkMessage::NewNeighbour(ours) = ask((3, "192.0.2.1".parse().unwrap()), true) else {
            panic!("a neighbour message was expected")
        };
        let (_, ours) = parse(&ours).unwrap();
        assert!(ours.ours && ours.managed && !ours.foreign);
    }

    #[test]
    fn proxies_and_bridge_entries_are_no_neighbours() {
        let mut proxy = message(NeighbourState::None);
        proxy.header.flags = NeighbourFlags::Proxy;
        assert_eq!(parse(&proxy), None);
        let mut bridge = message(NeighbourState::Reachable);
        bridge.header.family = AddressFamily::Bridge;
        assert_eq!(parse(&bridge), None);
    }

    #[tokio::test]
    async fn a_silent_neighbour_is_asked_with_growing_pauses() {
        let start = Instant::now();
        let mut want = Want::new(start);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..6 {
            want.asked(now, None);
            let due = want.due(Some(&entry(NeighbourState::Failed)), Support::Managed).unwrap();
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        want.observe(&entry(NeighbourState::Reachable));
        want.asked(now, None);
        assert_eq!(want.due(None, Support::Managed), Some(now + Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn an_entry_is_asked_for_until_it_keeps_itself() {
        let want = Want::new(Instant::now());
        let plain = entry(NeighbourState::Reachable);
        let managed = Entry { managed: true, ours: true, ..plain };
        let foreign = Entry { foreign: true, ..entry(NeighbourState::Failed) };
        assert!(want.due(None, Support::Managed).is_some());
        assert!(want.due(Some(&plain), Support::Managed).is_some());
        assert!(want.due(Some(&managed), Support::Managed).is_none());
        assert!(want.due(Some(&foreign), Support::Managed).is_none());
        assert!(want.due(Some(&plain), Support::ProbesOnly).is_none());
        assert!(want.due(Some(&entry(NeighbourState::Stale)), Support::ProbesOnly).is_some());
        let failed = Entry { state: NeighbourState::Failed, ..managed };
        assert!(want.due(Some(&failed), Support::Managed).is_some());
    }

    #[tokio::test]
    async fn a_neighbour_that_failed_stays_failed_while_it_is_asked_again() {
        let mut want = Want::new(Instant::now());
        want.observe(&entry(NeighbourState::Incomplete));
        assert!(!want.failing);
        want.observe(&entry(NeighbourState::Failed));
        want.observe(&entry(NeighbourState::Incomplete));
        assert!(want.failing);
        want.observe(&entry(NeighbourState::Stale));
        assert!(!want.failing);
    }
}
