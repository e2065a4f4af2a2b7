//! Next hops against a real kernel, in network namespaces that the tests make: needs root.

mod namespaces;
mod pods;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_userspace::neighbours::{self, Neighbours, Path, Refusal, Resolution, Snapshot, Unreachable, Via, Watching};
use tokio::sync::watch;

use self::namespaces::{Peer, in_namespace, ip, ip_output, set};

/// Longer than any change here takes to be seen: the slowest, a neighbour that vanishes, needs the kernel's 5 s between
/// two checks of a managed entry and some more.
const PATIENCE: Duration = Duration::from_secs(20);

const PEER_MAC: &str = "02:00:00:00:00:02";

/// A running watch with the destinations that it is asked for.
struct Agent {
    destinations: watch::Sender<BTreeSet<IpAddr>>,
    watching: Watching,
}

impl Agent {
    fn asking_for(destinations: &[&str]) -> Self {
        let (sender, receiver) = watch::channel(destinations.iter().map(|text| address(text)).collect());
        Self {
            destinations: sender,
            watching: Neighbours::spawn(receiver, watch::channel(BTreeSet::new()).1)
                .expect("netlink sockets can be opened"),
        }
    }

    /// Waits until a snapshot is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let snapshots = &mut self.watching.0;
        let found = tokio::time::timeout(PATIENCE, snapshots.wait_for(|snapshot| wanted(snapshot)))
            .await
            .map(|found| found.map(|snapshot| Arc::clone(&snapshot)));
        match found {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(_)) => panic!("{what}: the watch ended"),
            Err(_) => panic!("{what}: not within {PATIENCE:?}: {:#?}", snapshots.borrow()),
        }
    }

    /// Waits until the way to a destination is as wanted.
    async fn until_path(&mut self, destination: &str, what: &str, wanted: impl Fn(&Resolution) -> bool) -> Resolution {
        let destination = address(destination);
        let what = format!("{destination} {what}");
        let snapshot = self.until(&what, |snapshot| snapshot.paths.get(&destination).is_some_and(&wanted)).await;
        snapshot.paths[&destination].clone()
    }

    async fn until_mac(&mut self, destination: &str, wanted: &str) {
        let what = format!("is at {wanted}");
        let path = self.until_path(destination, &what, |path| destination_mac(path) == Some(mac(wanted))).await;
        assert!(path.is_ok());
    }

    async fn until_mtu(&mut self, destination: &str, wanted: u32) {
        let what = format!("has MTU {wanted}");
        let path = self.until_path(destination, &what, |path| mtu(path) == Some(wanted)).await;
        assert!(path.is_ok());
    }

    async fn until_reached(&mut self, destination: &str) -> Path {
        self.until_path(destination, "is reached", Result::is_ok).await.expect("it was waited for")
    }

    async fn until_error(&mut self, destination: &str, error: Unreachable) {
        let what = format!("is unreachable: {error}");
        let path = self.until_path(destination, &what, |path| path.as_ref() == Err(&error)).await;
        assert_eq!(path, Err(error));
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
    bytes.try_into().expect("six bytes")
}

fn destination_mac(path: &Resolution) -> Option<[u8; 6]> {
    match path {
        Ok(Path { via: Via::Device { destination_mac, .. }, .. }) => Some(*destination_mac),
        _ => None,
    }
}

fn mtu(path: &Resolution) -> Option<u32> {
    match path {
        Ok(Path { via: Via::Device { mtu, .. }, .. }) => Some(*mtu),
        _ => None,
    }
}

/// A veth `up0` to a peer; 192.0.2.1 and 2001:db8::1 here, .2 and ::2 there. The kernel's checks of neighbours are
/// made fast.
fn uplink() -> Peer {
    let peer = Peer::new("up0", PEER_MAC);
    ip("addr add 192.0.2.1/24 dev up0");
    ip("addr add 2001:db8::1/64 dev up0 nodad");
    peer.ip("addr add 192.0.2.2/24 dev eth0");
    peer.ip("addr add 2001:db8::2/64 dev eth0 nodad");
    for family in ["ipv4", "ipv6"] {
        let folder = format!("/proc/sys/net/{family}/neigh/up0");
        set(&format!("{folder}/base_reachable_time_ms"), "500");
        set(&format!("{folder}/delay_first_probe_time"), "1");
        set(&format!("{folder}/retrans_time_ms"), "100");
        set(&format!("{folder}/locktime"), "0");
    }
    ip("link set up0 up");
    peer.ip("link set eth0 up");
    peer
}

/// What `ip neigh` shows of an entry.
fn entry(address: &str) -> String {
    ip_output(&format!("-d neigh show {address} dev up0"))
}

#[test]
fn a_host_on_the_link_is_reached_by_its_mac() {
    in_namespace(async || {
        let _peer = uplink();
        let mut agent = Agent::asking_for(&["192.0.2.2", "2001:db8::2"]);
        for (destination, source) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
            let path = agent.until_reached(destination).await;
            assert_eq!(path.source, address(source));
            let link = agent.watching.0.borrow().links["up0"].clone();
            let expected = Via::Device {
                interface: link.index,
                name: "up0".into(),
                source_mac: link.mac.expect("a veth has a MAC address"),
                destination_mac: mac(PEER_MAC),
                mtu: 1500,
                gateway: None,
            };
            assert_eq!(path.via, expected);
            assert_eq!(link.kind, "veth");
            let entry = entry(destination);
            assert!(entry.contains("managed") && entry.contains("proto 190"), "{entry}");
        }
    });
}

#[test]
fn a_gateways_mac_stands_for_all_behind_it() {
    in_namespace(async || {
        let _peer = uplink();
        ip("addr add 203.0.113.1/32 dev lo");
        ip("route add 198.51.100.0/24 via 192.0.2.2 src 203.0.113.1");
        ip("route add 2001:db8:1::/64 via 2001:db8::2 mtu 1400");
        let mut agent = Agent::asking_for(&["198.51.100.7", "198.51.100.8", "2001:db8:1::7"]);
        for destination in ["198.51.100.7", "198.51.100.8"] {
            let path = agent.until_reached(destination).await;
            assert_eq!(path.source, address("203.0.113.1"), "the route's preferred source");
            let Via::Device { destination_mac, gateway, mtu, .. } = path.via else { panic!("{path:?}") };
            assert_eq!((destination_mac, gateway, mtu), (mac(PEER_MAC), Some(address("192.0.2.2")), 1500));
        }
        let path = agent.until_reached("2001:db8:1::7").await;
        let Via::Device { gateway, mtu, .. } = path.via else { panic!("{path:?}") };
        assert_eq!((gateway, mtu), (Some(address("2001:db8::2")), 1400));
    });
}

#[test]
fn an_ipv4_route_may_have_an_ipv6_gateway() {
    in_namespace(async || {
        let _peer = uplink();
        ip("route add 198.51.100.0/24 via inet6 2001:db8::2");
        let mut agent = Agent::asking_for(&["198.51.100.7"]);
        let path = agent.until_reached("198.51.100.7").await;
        assert_eq!(path.source, address("192.0.2.1"));
        let Via::Device { destination_mac, gateway, .. } = path.via else { panic!("{path:?}") };
        assert_eq!((destination_mac, gateway), (mac(PEER_MAC), Some(address("2001:db8::2"))));
    });
}

#[test]
fn the_smaller_mtu_of_route_and_device_counts() {
    in_namespace(async || {
        let _peer = uplink();
        ip("route add 198.51.100.0/24 via 192.0.2.2 mtu 1400");
        let mut agent = Agent::asking_for(&["198.51.100.7"]);
        agent.until_mtu("198.51.100.7", 1400).await;
        ip("link set up0 mtu 1300");
        agent.until_mtu("198.51.100.7", 1300).await;
        ip("link set up0 mtu 9000");
        agent.until_mtu("198.51.100.7", 1400).await;
        ip("route replace 198.51.100.0/24 via 192.0.2.2");
        agent.until_mtu("198.51.100.7", 9000).await;
    });
}

#[test]
fn a_new_mac_is_followed() {
    in_namespace(async || {
        let peer = uplink();
        peer.shell("echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify");
        let mut agent = Agent::asking_for(&["192.0.2.2"]);
        agent.until_reached("192.0.2.2").await;
        let other = "02:00:00:00:00:99";
        peer.ip(&format!("link set eth0 address {other}"));
        agent.until_mac("192.0.2.2", other).await;
    });
}

#[test]
fn a_host_that_vanishes_is_unreachable_until_it_is_back() {
    in_namespace(async || {
        let peer = uplink();
        let mut agent = Agent::asking_for(&["192.0.2.2", "2001:db8::2"]);
        agent.until_reached("192.0.2.2").await;
        agent.until_reached("2001:db8::2").await;
        peer.ip("addr flush dev eth0");
        for gone in ["192.0.2.2", "2001:db8::2"] {
            let error = Unreachable::NeighbourFailed { neighbour: address(gone), device: "up0".into() };
            agent.until_error(gone, error).await;
        }
        peer.ip("addr add 192.0.2.2/24 dev eth0");
        peer.ip("addr add 2001:db8::2/64 dev eth0 nodad");
        for back in ["192.0.2.2", "2001:db8::2"] {
            agent.until_reached(back).await;
            assert!(entry(back).contains("managed"), "{}", entry(back));
        }
    });
}

#[test]
fn a_host_that_never_answers_is_first_waited_for() {
    in_namespace(async || {
        let _peer = uplink();
        let mut agent = Agent::asking_for(&["192.0.2.77"]);
        let (neighbour, device) = (address("192.0.2.77"), "up0".to_owned());
        agent.until_error("192.0.2.77", Unreachable::NeighbourPending { neighbour, device: device.clone() }).await;
        agent.until_error("192.0.2.77", Unreachable::NeighbourFailed { neighbour, device }).await;
        // It is asked again and again, but does not read as pending again.
        let mut snapshots = agent.watching.0.clone();
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(4) {
            let _ = tokio::time::timeout(Duration::from_secs(1), snapshots.changed()).await;
            let path = snapshots.borrow().paths[&neighbour].clone();
            assert!(matches!(path, Err(Unreachable::NeighbourFailed { .. })), "{path:?}");
        }
    });
}

#[test]
fn a_route_that_goes_and_comes_is_followed() {
    in_namespace(async || {
        let _peer = uplink();
        let mut agent = Agent::asking_for(&["198.51.100.7", "2001:db8:1::7"]);
        for (text, prefix, gateway) in
            [("198.51.100.7", "198.51.100.0/24", "192.0.2.2"), ("2001:db8:1::7", "2001:db8:1::/64", "2001:db8::2")]
        {
            let destination = address(text);
            agent.until_error(text, Unreachable::NoRoute { destination }).await;
            ip(&format!("route add {prefix} via {gateway}"));
            agent.until_reached(text).await;
            for (kind, by) in [
                ("blackhole", Refusal::Blackhole),
                ("unreachable", Refusal::Unreachable),
                ("prohibit", Refusal::Prohibit),
            ] {
                ip(&format!("route add {kind} {text}"));
                agent.until_error(text, Unreachable::RouteRefuses { destination, by }).await;
                ip(&format!("route del {kind} {text}"));
                agent.until_reached(text).await;
            }
            ip(&format!("route del {prefix}"));
            agent.until_error(text, Unreachable::NoRoute { destination }).await;
        }
    });
}

#[test]
fn a_rule_counts_as_a_route_does() {
    in_namespace(async || {
        let _peer = uplink();
        ip("route add 198.51.100.0/24 via 192.0.2.2 table 100");
        let mut agent = Agent::asking_for(&["198.51.100.7"]);
        let destination = address("198.51.100.7");
        agent.until_error("198.51.100.7", Unreachable::NoRoute { destination }).await;
        ip("rule add to 198.51.100.0/24 table 100");
        agent.until_reached("198.51.100.7").await;
        ip("rule del to 198.51.100.0/24 table 100");
        agent.until_error("198.51.100.7", Unreachable::NoRoute { destination }).await;
    });
}

#[test]
fn a_link_that_goes_down_and_up_has_its_neighbours_again() {
    in_namespace(async || {
        let peer = uplink();
        let mut agent = Agent::asking_for(&["192.0.2.2"]);
        let destination = address("192.0.2.2");
        agent.until_reached("192.0.2.2").await;

        peer.ip("link set eth0 down");
        let error = Unreachable::DeviceDown { destination, name: "up0".into(), enabled: true };
        agent.until_error("192.0.2.2", error).await;
        peer.ip("link set eth0 up");
        agent.until_reached("192.0.2.2").await;

        ip("link set up0 down");
        agent.until_error("192.0.2.2", Unreachable::NoRoute { destination }).await;
        assert!(!agent.watching.0.borrow().links["up0"].enabled);
        ip("link set up0 up");
        agent.until_reached("192.0.2.2").await;
        assert!(entry("192.0.2.2").contains("managed"), "{}", entry("192.0.2.2"));
    });
}

#[test]
fn an_interface_that_is_made_again_is_found_again() {
    in_namespace(async || {
        let first = uplink();
        let mut agent = Agent::asking_for(&["192.0.2.2"]);
        agent.until_reached("192.0.2.2").await;
        let index = agent.watching.0.borrow().links["up0"].index;
        ip("link del up0");
        agent.until("up0 is gone", |snapshot| !snapshot.links.contains_key("up0")).await;
        agent.until_error("192.0.2.2", Unreachable::NoRoute { destination: address("192.0.2.2") }).await;
        drop(first);
        let _second = uplink();
        let path = agent.until_reached("192.0.2.2").await;
        let Via::Device { interface, .. } = path.via else { panic!("{path:?}") };
        assert_ne!(interface, index);
        assert_eq!(interface, agent.watching.0.borrow().links["up0"].index);
    });
}

#[test]
fn the_hosts_own_addresses_are_local() {
    in_namespace(async || {
        let _peer = uplink();
        let mut agent = Agent::asking_for(&["192.0.2.1", "2001:db8::1", "203.0.113.5"]);
        for own in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(agent.until_reached(own).await, Path { via: Via::Local, source: address(own) });
        }
        let destination = address("203.0.113.5");
        agent.until_error("203.0.113.5", Unreachable::NoRoute { destination }).await;
        ip("addr add 203.0.113.5/32 dev lo");
        assert_eq!(agent.until_reached("203.0.113.5").await, Path { via: Via::Local, source: destination });
        let addresses = agent.watching.0.borrow().addresses.clone();
        let expected = ["192.0.2.1", "2001:db8::1", "203.0.113.5", "127.0.0.1", "::1"].map(address);
        assert!(expected.iter().all(|address| addresses.contains(address)), "{addresses:?}");
        ip("addr del 203.0.113.5/32 dev lo");
        agent.until_error("203.0.113.5", Unreachable::NoRoute { destination }).await;
    });
}

#[test]
fn a_device_without_ethernet_is_refused() {
    in_namespace(async || {
        ip("addr add 198.51.100.1/32 dev lo");
        ip("route add 203.0.113.0/24 dev lo");
        let mut agent = Agent::asking_for(&["203.0.113.9"]);
        let destination = address("203.0.113.9");
        let error = Unreachable::NotEthernet { destination, name: "lo".into(), kind: "loopback".into() };
        agent.until_error("203.0.113.9", error).await;
    });
}

#[test]
fn what_is_static_is_used_and_never_touched() {
    in_namespace(async || {
        let _peer = uplink();
        let fixed = "02:00:00:00:00:55";
        ip(&format!("neigh add 192.0.2.2 lladdr {fixed} nud permanent dev up0"));
        let mut agent = Agent::asking_for(&["192.0.2.2", "192.0.2.3"]);
        agent.until_mac("192.0.2.2", fixed).await;
        // One that becomes static while it is managed.
        let (neighbour, device) = (address("192.0.2.3"), "up0".to_owned());
        agent.until_error("192.0.2.3", Unreachable::NeighbourPending { neighbour, device }).await;
        assert!(entry("192.0.2.3").contains("managed"), "{}", entry("192.0.2.3"));
        ip(&format!("neigh replace 192.0.2.3 lladdr {fixed} nud permanent dev up0"));
        agent.until_mac("192.0.2.3", fixed).await;
        ip("link set up0 mtu 1400");
        agent.until("the MTU is seen", |snapshot| snapshot.links["up0"].mtu == 1400).await;
        agent.destinations.send_replace(BTreeSet::new());
        agent.until("nothing is wanted", |snapshot| snapshot.paths.is_empty()).await;
        neighbours::release().await.expect("release works");
        for address in ["192.0.2.2", "192.0.2.3"] {
            let entry = entry(address);
            assert!(entry.contains("PERMANENT") && entry.contains(fixed) && !entry.contains("managed"), "{entry}");
        }
    });
}

#[test]
fn managed_entries_go_when_released_or_no_longer_wanted() {
    in_namespace(async || {
        let peer = uplink();
        peer.ip("addr add 192.0.2.3/24 dev eth0");
        let mut agent = Agent::asking_for(&["192.0.2.2", "192.0.2.3"]);
        agent.until_reached("192.0.2.2").await;
        agent.until_reached("192.0.2.3").await;
        agent.destinations.send_replace([address("192.0.2.2")].into());
        agent.until("one is left", |snapshot| snapshot.paths.len() == 1).await;
        assert!(!entry("192.0.2.3").contains("managed"), "{}", entry("192.0.2.3"));
        assert!(entry("192.0.2.2").contains("managed"), "{}", entry("192.0.2.2"));

        let Agent { destinations, watching: (_snapshots, task) } = agent;
        drop(destinations);
        task.await.expect("no panic").expect("it ends well");
        assert!(entry("192.0.2.2").contains("managed"), "an agent that ends leaves its neighbours");

        ip("neigh add 192.0.2.4 managed dev up0");
        assert_eq!(neighbours::release().await.expect("release works"), 1);
        let released = entry("192.0.2.2");
        assert!(!released.contains("managed") && released.contains(PEER_MAC), "{released}");
        assert!(entry("192.0.2.4").contains("managed"), "another's managed entry stays so");
    });
}

#[test]
fn a_thousand_destinations_are_looked_up_quickly() {
    in_namespace(async || {
        let _peer = uplink();
        ip("route add 198.18.0.0/15 via 192.0.2.2");
        let all: Vec<String> = (0..1000).map(|n| format!("198.18.{}.{}", n / 250, n % 250)).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut agent = Agent::asking_for(&all);
        let ready = |snapshot: &Snapshot, wanted: u32| {
            snapshot.paths.len() == 1000 && snapshot.paths.values().all(|path| mtu(path) == Some(wanted))
        };
        agent.until("all are reached", |snapshot| ready(snapshot, 1500)).await;
        ip("link set up0 mtu 1400");
        let start = Instant::now();
        agent.until("all are looked up again", |snapshot| ready(snapshot, 1400)).await;
        let took = start.elapsed();
        println!("1,000 destinations: {took:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn lost_messages_are_made_up_for() {
    in_namespace(async || {
        let _peer = uplink();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        let mut agent = Agent::asking_for(&["198.51.100.7"]);
        agent.until_reached("198.51.100.7").await;
        // The watch runs on this thread: while `ip` works nobody reads.
        let routes: String =
            (0..20_000).map(|n| format!("route add 10.0.{}.{}/32 dev lo\n", n / 256, n % 256)).collect();
        namespaces::ip_batch(&routes);
        ip("route del 198.51.100.0/24");
        assert!(namespaces::netlink_drops() > 0, "the test is meant to overrun the receive buffer");
        let destination = address("198.51.100.7");
        agent.until_error("198.51.100.7", Unreachable::NoRoute { destination }).await;
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        agent.until_reached("198.51.100.7").await;
    });
}
