//! Where pods are, and the uplinks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_userspace::neighbours::{Neighbours, PodPath, PodUnreachable, Refusal, Snapshot, Unreachable, Watching};
use tokio::sync::watch;

use crate::address;
use crate::namespaces::{Peer, in_namespace, ip, ip_batch, ip_output, set};

/// Longer than any change here takes to be seen: the slowest, a pod that never answers, needs the kernel's three
/// questions at a second each.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest for what an event tells.
const AT_ONCE: Duration = Duration::from_millis(500);

const POD: &str = "10.244.0.5";
const POD6: &str = "fd00::5";

type Found = Result<PodPath, PodUnreachable>;

/// A running watch with the pods that it is asked for.
struct Agent {
    pods: watch::Sender<BTreeSet<IpAddr>>,
    _destinations: watch::Sender<BTreeSet<IpAddr>>,
    watching: Watching,
}

impl Agent {
    fn asking_for(pods: &[&str]) -> Self {
        let (pods, wanted) = watch::channel(pods.iter().map(|text| address(text)).collect());
        let (_destinations, none) = watch::channel(BTreeSet::new());
        let watching = Neighbours::spawn(none, wanted).expect("netlink sockets can be opened");
        Self { pods, _destinations, watching }
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

    async fn until_pod(&mut self, pod: &str, what: &str, wanted: impl Fn(&Found) -> bool) -> Found {
        let address = address(pod);
        let what = format!("{pod} {what}");
        let snapshot = self.until(&what, |snapshot| snapshot.pods.get(&address).is_some_and(&wanted)).await;
        snapshot.pods[&address].clone()
    }

    /// Waits until the pod is behind a device.
    async fn until_behind(&mut self, pod: &str, device: &str) -> PodPath {
        let is_there = |found: &Found| found.as_ref().is_ok_and(|path| path.name == device);
        let path = self.until_pod(pod, &format!("is behind {device}"), is_there).await.expect("it was waited for");
        assert_eq!(path.interface, index(device));
        path
    }

    async fn until_error(&mut self, pod: &str, error: impl Into<PodUnreachable>) {
        let error = error.into();
        let found = self.until_pod(pod, &error.to_string(), |found| found.as_ref() == Err(&error)).await;
        assert_eq!(found, Err(error));
    }

    /// Waits until the pod is behind no device, whatever the reason; how long that took.
    async fn until_gone(&mut self, pod: &str) -> Duration {
        let start = Instant::now();
        self.until_pod(pod, "is gone", Result::is_err).await.expect_err("it was waited for");
        start.elapsed()
    }
}

fn index(device: &str) -> u32 {
    let shown = ip_output(&format!("-o link show dev {device}"));
    shown.split(':').next().and_then(|index| index.parse().ok()).expect("an index")
}

/// The id of the namespace of a veth's other end, as `ip` shows it.
fn namespace_behind(device: &str) -> Option<u32> {
    let shown = ip_output(&format!("-o link show dev {device}"));
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link-netnsid");
    words.nth(1).and_then(|id| id.parse().ok())
}

/// A pod as ptp and Calico make it: a veth, and a host route for each address.
fn pod(device: &str, addresses: &[&str]) -> Peer {
    let peer = Peer::new(device, "02:00:00:00:00:05");
    ip(&format!("link set {device} up"));
    peer.ip("link set eth0 up");
    for address in addresses {
        peer.ip(&format!("addr add {address} dev eth0"));
        ip(&format!("route add {address} dev {device}"));
    }
    peer
}

/// A bridge `cni0` with 10.244.0.1/24 and fd00::1/64.
fn bridge() {
    ip("link add cni0 type bridge");
    ip("addr add 10.244.0.1/24 dev cni0");
    ip("addr add fd00::1/64 dev cni0 nodad");
    for family in ["ipv4", "ipv6"] {
        set(&format!("/proc/sys/net/{family}/neigh/cni0/retrans_time_ms"), "100");
    }
    ip("link set cni0 up");
}

/// Runs `bridge` here.
fn bridge_command(arguments: &str) {
    let status = Command::new("bridge").args(arguments.split_whitespace()).status().expect("bridge can be started");
    assert!(status.success(), "bridge {arguments}");
}

/// A pod behind it.
fn bridged_pod(device: &str, mac: &str, address: &str, address6: &str) -> Peer {
    let peer = Peer::new(device, mac);
    ip(&format!("link set {device} master cni0 up"));
    peer.ip(&format!("addr add {address}/24 dev eth0"));
    peer.ip(&format!("addr add {address6}/64 dev eth0 nodad"));
    peer.ip("link set eth0 up");
    peer
}

/// An uplink with a default route of each family.
fn uplink() -> Peer {
    let peer = Peer::new("up0", "02:00:00:00:00:01");
    ip("addr add 192.0.2.1/24 dev up0");
    ip("addr add 2001:db8::1/64 dev up0 nodad");
    peer.ip("link set eth0 up");
    ip("link set up0 up");
    ip("route add default via 192.0.2.254");
    ip("route add default via 2001:db8::254");
    peer
}

#[test]
fn a_pod_behind_a_veth_has_its_device_and_namespace() {
    in_namespace(async || {
        let _first = pod("veth1", &[POD, POD6]);
        let _second = pod("veth2", &["10.244.0.6"]);
        let mut agent = Agent::asking_for(&[POD, POD6, "10.244.0.6"]);
        let first = agent.until_behind(POD, "veth1").await;
        assert_eq!(agent.until_behind(POD6, "veth1").await, first);
        let second = agent.until_behind("10.244.0.6", "veth2").await;
        assert!(first.namespace.is_some() && second.namespace.is_some());
        assert_ne!(first.namespace, second.namespace);
        assert_eq!(first.namespace, namespace_behind("veth1"));
        assert_eq!(second.namespace, namespace_behind("veth2"));
        assert!(!first.is_host_network());
        let links = agent.watching.0.borrow().links.clone();
        assert_eq!((links["veth1"].namespace, links["veth1"].master), (first.namespace, None));
    });
}

#[test]
fn a_veth_that_moves_to_another_namespace_names_it() {
    in_namespace(async || {
        let other = Peer::new("other", "02:00:00:00:00:09");
        ip("link add veth1 type veth peer name inside");
        ip("link set veth1 up");
        ip("link set inside up");
        ip(&format!("route add {POD} dev veth1"));
        let mut agent = Agent::asking_for(&[POD]);
        let path = agent.until_behind(POD, "veth1").await;
        assert_eq!(path.namespace, None, "its other end is here");
        ip(&format!("link set inside netns {}", other.id()));
        other.ip("link set inside up");
        let expected = namespace_behind("veth1");
        assert!(expected.is_some());
        let named = |found: &Found| found.as_ref().is_ok_and(|path| path.namespace == expected);
        agent.until_pod(POD, "has a namespace", named).await.expect("it was waited for");
    });
}

#[test]
fn a_host_network_pod_is_behind_the_loopback_device() {
    in_namespace(async || {
        let _uplink = uplink();
        let mut agent = Agent::asking_for(&["192.0.2.1", "2001:db8::1", "203.0.113.5"]);
        for own in ["192.0.2.1", "2001:db8::1"] {
            let path = agent.until_behind(own, "lo").await;
            assert!(path.is_host_network() && path.interface == 1 && path.namespace.is_none());
        }
        let elsewhere = PodUnreachable::DefaultRoute { pod: address("203.0.113.5"), device: "up0".into() };
        agent.until_error("203.0.113.5", elsewhere.clone()).await;
        ip("addr add 203.0.113.5/32 dev lo");
        agent.until_behind("203.0.113.5", "lo").await;
        ip("addr del 203.0.113.5/32 dev lo");
        agent.until_error("203.0.113.5", elsewhere).await;
    });
}

#[test]
fn a_deleted_pod_is_not_sent_to_the_router() {
    in_namespace(async || {
        let _uplink = uplink();
        let pod = pod("veth1", &[POD, POD6]);
        let mut agent = Agent::asking_for(&[POD, POD6]);
        agent.until_behind(POD, "veth1").await;
        agent.until_behind(POD6, "veth1").await;
        ip("link del veth1");
        for gone in [POD, POD6] {
            let took = agent.until_gone(gone).await;
            assert!(took < AT_ONCE, "{took:?}");
            let error = PodUnreachable::DefaultRoute { pod: address(gone), device: "up0".into() };
            agent.until_error(gone, error).await;
        }
        drop(pod);
        agent.pods.send_replace([address(POD)].into());
        agent.until("one is left", |snapshot| snapshot.pods.len() == 1).await;
    });
}

#[test]
fn a_pod_whose_namespace_ends_is_gone() {
    in_namespace(async || {
        let pod = pod("veth1", &[POD]);
        let mut agent = Agent::asking_for(&[POD]);
        agent.until_behind(POD, "veth1").await;
        drop(pod);
        agent.until_error(POD, PodUnreachable::NoRoute { pod: address(POD) }).await;
    });
}

#[test]
fn a_device_that_goes_down_or_loses_its_carrier_leads_nowhere() {
    in_namespace(async || {
        let _uplink = uplink();
        let pod = pod("veth1", &[POD, POD6]);
        let mut agent = Agent::asking_for(&[POD, POD6]);
        let before = agent.until_behind(POD, "veth1").await;
        agent.until_behind(POD6, "veth1").await;

        pod.ip("link set eth0 down");
        for gone in [POD, POD6] {
            let down = Unreachable::DeviceDown { destination: address(gone), name: "veth1".into(), enabled: true };
            agent.until_error(gone, down).await;
        }
        pod.ip("link set eth0 up");
        assert_eq!(agent.until_behind(POD, "veth1").await, before);
        agent.until_behind(POD6, "veth1").await;

        ip("link set veth1 down");
        for gone in [POD, POD6] {
            let took = agent.until_gone(gone).await;
            assert!(took < AT_ONCE, "{took:?}");
            // The kernel drops the device's routes.
            let error = PodUnreachable::DefaultRoute { pod: address(gone), device: "up0".into() };
            agent.until_error(gone, error).await;
        }
        ip("link set veth1 up");
        ip(&format!("route add {POD} dev veth1"));
        assert_eq!(agent.until_behind(POD, "veth1").await, before);
    });
}

#[test]
fn a_pod_that_is_made_again_is_found_by_its_new_device() {
    in_namespace(async || {
        let first = pod("veth1", &[POD]);
        let mut agent = Agent::asking_for(&[POD]);
        let before = agent.until_behind(POD, "veth1").await;
        ip("link del veth1");
        agent.until_error(POD, PodUnreachable::NoRoute { pod: address(POD) }).await;
        drop(first);
        let _second = pod("veth1", &[POD]);
        let after = agent.until_behind(POD, "veth1").await;
        assert_ne!(before.interface, after.interface);
        assert_eq!(after.namespace, namespace_behind("veth1"));
        // The route moves to another device while both are there.
        let _third = pod("veth2", &[]);
        ip(&format!("route replace {POD} dev veth2"));
        let moved = agent.until_behind(POD, "veth2").await;
        assert_eq!(moved.namespace, namespace_behind("veth2"));
    });
}

#[test]
fn a_pod_behind_a_bridge_is_found_by_its_port() {
    in_namespace(async || {
        bridge();
        let first = bridged_pod("veth1", "02:00:00:00:00:05", POD, POD6);
        let _second = bridged_pod("veth2", "02:00:00:00:00:06", "10.244.0.6", "fd00::6");
        let mut agent = Agent::asking_for(&[POD, POD6, "10.244.0.6"]);
        let path = agent.until_behind(POD, "veth1").await;
        assert_eq!(path.namespace, namespace_behind("veth1"));
        assert!(path.namespace.is_some());
        assert_eq!(agent.until_behind(POD6, "veth1").await, path);
        agent.until_behind("10.244.0.6", "veth2").await;
        assert_eq!(agent.watching.0.borrow().links["veth1"].master, Some(index("cni0")));

        // A bridge that has forgotten the pod: it has not moved.
        bridge_command("fdb del 02:00:00:00:00:05 dev veth1 master");
        ip("link set veth2 down");
        let down = Unreachable::DeviceDown { destination: address("10.244.0.6"), name: "veth2".into(), enabled: false };
        agent.until_error("10.244.0.6", down).await;
        assert_eq!(agent.watching.0.borrow().pods[&address(POD)], Ok(path));
        ip("link set veth2 up");
        agent.until_behind("10.244.0.6", "veth2").await;

        ip("link del veth1");
        for gone in [POD, POD6] {
            let took = agent.until_gone(gone).await;
            assert!(took < AT_ONCE, "{took:?}");
            agent.until_error(gone, PodUnreachable::PortGone { pod: address(gone), bridge: "cni0".into() }).await;
        }
        drop(first);
        let again = bridged_pod("veth1", "02:00:00:00:00:55", POD, POD6);
        again.shell("ping -c1 -W5 10.244.0.1 >/dev/null && ping -c1 -W5 fd00::1 >/dev/null");
        let path = agent.until_behind(POD, "veth1").await;
        assert_eq!(path.namespace, namespace_behind("veth1"));
        agent.until_behind(POD6, "veth1").await;
    });
}

#[test]
fn a_pod_that_never_answered_behind_a_bridge_is_first_waited_for() {
    in_namespace(async || {
        bridge();
        let _other = bridged_pod("veth2", "02:00:00:00:00:06", "10.244.0.6", "fd00::6");
        let mut agent = Agent::asking_for(&[POD]);
        let (neighbour, device) = (address(POD), "cni0".to_owned());
        agent.until_error(POD, Unreachable::NeighbourPending { neighbour, device: device.clone() }).await;
        agent.until_error(POD, Unreachable::NeighbourFailed { neighbour, device }).await;
        let _pod = bridged_pod("veth1", "02:00:00:00:00:05", POD, POD6);
        agent.until_behind(POD, "veth1").await;
    });
}

#[test]
fn a_port_that_leaves_its_bridge_leads_nowhere() {
    in_namespace(async || {
        bridge();
        let _pod = bridged_pod("veth1", "02:00:00:00:00:05", POD, POD6);
        let _other = bridged_pod("veth2", "02:00:00:00:00:06", "10.244.0.6", "fd00::6");
        let mut agent = Agent::asking_for(&[POD]);
        agent.until_behind(POD, "veth1").await;
        ip("link set veth1 nomaster");
        agent.until_error(POD, PodUnreachable::PortGone { pod: address(POD), bridge: "cni0".into() }).await;
        ip("link set veth1 master cni0");
        agent.until_behind(POD, "veth1").await;
    });
}

#[test]
fn routes_that_are_not_the_pods_own_lead_nowhere() {
    in_namespace(async || {
        let mut agent = Agent::asking_for(&[POD, POD6, "192.0.2.77", "2001:db8::77"]);
        for pod in [POD, POD6] {
            agent.until_error(pod, PodUnreachable::NoRoute { pod: address(pod) }).await;
        }
        let _uplink = uplink();
        for (pod, gateway, elsewhere) in [(POD, "192.0.2.2", "10.244.0.0/24"), (POD6, "2001:db8::2", "fd00::/64")] {
            let device = "up0".to_owned();
            agent.until_error(pod, PodUnreachable::DefaultRoute { pod: address(pod), device: device.clone() }).await;
            ip(&format!("route add {elsewhere} via {gateway}"));
            let error = PodUnreachable::Gateway { pod: address(pod), gateway: address(gateway), device };
            agent.until_error(pod, error).await;
            ip(&format!("route add blackhole {pod}"));
            let error = Unreachable::RouteRefuses { destination: address(pod), by: Refusal::Blackhole };
            agent.until_error(pod, error).await;
        }
        for pod in ["192.0.2.77", "2001:db8::77"] {
            let error = PodUnreachable::UplinkNetwork { pod: address(pod), device: "up0".into() };
            agent.until_error(pod, error).await;
        }
        // Without default routes it is a network as any other.
        ip("route del default via 192.0.2.254");
        ip("route del default via 2001:db8::254");
        agent.until_behind("192.0.2.77", "up0").await;
    });
}

#[test]
fn a_gateway_that_is_this_host_is_a_device() {
    in_namespace(async || {
        let _uplink = uplink();
        ip("link add cilium_host type veth peer name cilium_net");
        ip("link set cilium_host up");
        ip("link set cilium_net up");
        ip("addr add 10.244.0.1/32 dev cilium_host");
        ip("route add 10.244.0.0/24 via 10.244.0.1 dev cilium_host src 10.244.0.1");
        let mut agent = Agent::asking_for(&[POD]);
        assert_eq!(agent.until_behind(POD, "cilium_host").await.namespace, None);
        ip("link set cilium_net down");
        agent.until_gone(POD).await;
    });
}

#[test]
fn other_devices_have_no_namespace() {
    in_namespace(async || {
        let _uplink = uplink();
        let other = Peer::new("other", "02:00:00:00:00:09");
        other.ip("link set eth0 up");
        ip("link set other up");
        ip("link add mv0 link other type macvlan mode bridge");
        ip("link set mv0 up");
        ip(&format!("route add {POD} dev mv0"));
        ip("tuntap add tap0 mode tap");
        ip("link set tap0 up");
        ip("route add 10.244.0.6 dev tap0");
        let mut agent = Agent::asking_for(&[POD, "10.244.0.6"]);
        assert_eq!(agent.until_behind(POD, "mv0").await.namespace, None);
        let (destination, name) = (address("10.244.0.6"), "tap0".to_owned());
        agent.until_error("10.244.0.6", Unreachable::DeviceDown { destination, name, enabled: true }).await;
    });
}

#[test]
fn hundreds_of_pods_are_followed_quickly() {
    in_namespace(async || {
        let _uplink = uplink();
        let _many = pod("veth1", &[]);
        let _one = pod("veth2", &[POD]);
        let pods: Vec<String> = (0..500).map(|n| format!("10.245.{}.{}", n / 250, n % 250 + 1)).collect();
        ip_batch(&pods.iter().map(|pod| format!("route add {pod} dev veth1\n")).collect::<String>());
        let mut all: Vec<&str> = pods.iter().map(String::as_str).collect();
        all.push(POD);
        let start = Instant::now();
        let mut agent = Agent::asking_for(&all);
        agent.until("all are found", |snapshot| snapshot.pods.values().filter(|pod| pod.is_ok()).count() == 501).await;
        println!("501 pods found: {:?}", start.elapsed());
        ip("link del veth2");
        let took = agent.until_gone(POD).await;
        println!("one of 501 gone: {took:?}");
        assert!(took < AT_ONCE, "{took:?}");
        ip("link del veth1");
        let start = Instant::now();
        agent.until("all are gone", |snapshot| snapshot.pods.values().all(Result::is_err)).await;
        println!("500 pods gone: {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    });
}

#[test]
fn uplinks_are_the_devices_of_default_routes() {
    in_namespace(async || {
        let mut agent = Agent::asking_for(&[]);
        let _uplink = uplink();
        let _second = Peer::new("up1", "02:00:00:00:00:02");
        let _third = Peer::new("up2", "02:00:00:00:00:03");
        for (device, address) in [("up1", "198.51.100.1/24"), ("up2", "203.0.113.1/24")] {
            ip(&format!("addr add {address} dev {device}"));
            ip(&format!("link set {device} up"));
        }
        let (up0, up1, up2) = (index("up0"), index("up1"), index("up2"));
        agent.until("one uplink", |snapshot| snapshot.uplinks == [up0].into()).await;
        ip("route add default via 198.51.100.254 table 100");
        agent.until("one of another table", |snapshot| snapshot.uplinks == [up0, up1].into()).await;
        ip("route del default via 192.0.2.254");
        ip("route add 0.0.0.0/1 dev up2");
        agent.until("that of IPv6 is left", |snapshot| snapshot.uplinks == [up0, up1].into()).await;
        ip("route del default via 2001:db8::254");
        agent.until("only the other table's is left", |snapshot| snapshot.uplinks == [up1].into()).await;
        ip("route replace default table 100 nexthop via 198.51.100.254 nexthop via 203.0.113.254");
        agent.until("both next hops", |snapshot| snapshot.uplinks == [up1, up2].into()).await;
        ip("link set up1 down");
        agent.until("one next hop", |snapshot| !snapshot.links["up1"].up).await;
        ip("route flush table 100");
        agent.until("none", |snapshot| snapshot.uplinks.is_empty()).await;
    });
}
