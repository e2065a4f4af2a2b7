//! Pods in BPF maps: written by one agent, found by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use lb_common::address::Family;
use lb_common::maps::{NO_NAMESPACE, OWN_NAMESPACE, PodCell, ServiceKey};
use lb_userspace::config::MapSizes;
use lb_userspace::datapath::store::PodStore as _;
use lb_userspace::datapath::{Datapath, memory};
use lb_userspace::model::{Algorithm, PodKey, Prefix};
use lb_userspace::plan::{self, PodDevice, PodSpec, ReplyKey, ReplySpec, ServiceSpec, Wanted};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const SIZES: MapSizes = MapSizes { services: 64, backends: 64, slots: 1024, flows: 256 };

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Runs a test on a thread with a BPF filesystem of its own, which goes with the thread.
fn with_bpf_filesystem(test: impl FnOnce(&Path) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes BPF maps: run it as root");
    let thread = std::thread::spawn(|| {
        let folder = tempfile::tempdir().expect("a folder");
        unshare(CloneFlags::CLONE_NEWNS).expect("a new mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>).expect("a BPF filesystem");
        test(&folder.path().join("beeline"));
        nix::mount::umount(folder.path()).expect("nothing uses it any more");
    });
    if let Err(reason) = thread.join() {
        std::panic::resume_unwind(reason);
    }
}

/// Two pods of one service: one in the host's network, one whose device is not there.
fn wanted() -> Wanted {
    let pod = |device| PodSpec { rank: 100, share: 100, record: true, device };
    let key = |address| PodKey { address: ip(address), port: 8080 };
    let lo = PodDevice { interface: 1, namespace: None };
    let spec = ServiceSpec {
        algorithm: Algorithm::Rendezvous,
        slots: 128,
        source_affinity: false,
        backends: BTreeMap::new(),
        pods: Some(BTreeMap::from([(key("10.1.0.1"), pod(Some(lo))), (key("10.1.0.2"), pod(None))])),
    };
    let reply = ReplySpec { vip: ip("198.51.100.1"), port: 80, recorded: true, direct: false };
    let reply_key = |pod| ReplyKey { pod: ip(pod), protocol: 6, port: 8080 };
    Wanted {
        hash_seed: 7,
        services: BTreeMap::from([(ServiceKey::new(ip("198.51.100.1").into(), Family::V4, 6, 80), spec)]),
        tunnel_addresses: BTreeSet::from([ip("10.0.0.1")]),
        internal: BTreeMap::from([
            (Prefix { address: ip("10.0.0.0"), length: 8 }, false),
            (Prefix::of(ip("10.1.0.1")), true),
            (Prefix { address: ip("fd00::"), length: 16 }, false),
        ]),
        replies: BTreeMap::from([(reply_key("10.1.0.1"), reply), (reply_key("10.1.0.2"), reply)]),
        mss: [1420, 1400],
        ..Wanted::default()
    }
}

fn converge(datapath: &mut Datapath, wanted: &Wanted) {
    for step in plan::steps(&datapath.tables.actual(), wanted) {
        datapath.tables.apply(&step, Instant::now()).expect("there is room, and lo is there");
    }
}

#[test]
fn the_next_agent_finds_pods_and_replies_as_they_were() {
    with_bpf_filesystem(|pins| {
        let wanted = wanted();
        let (key, spec) = wanted.services.first_key_value().expect("a service");
        let look = |datapath: &Datapath| {
            let store = datapath.tables.store();
            let there = &datapath.tables.installed()[key];
            let word = store.pod_word(there.id).pods().expect("pods");
            let mut cells = vec![PodCell(0); 1 << word.log2_slots()];
            store.read_pod_cells(word.slots(), &mut cells);
            let first = there.first_pod().expect("pods");
            (word, cells, [store.pod(first), store.pod(first + 1)], store.mss().expect("settings"))
        };
        let mut first = Datapath::open(&SIZES, true, pins, false).expect("maps can be made");
        converge(&mut first, &wanted);
        let before = look(&first);
        let (word, cells, pods, mss) = &before;
        assert_eq!((word.log2_slots(), *mss), (7, [1420, 1400]));
        assert_eq!(cells.iter().map(|cell| cell.owner()).collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
        assert!(cells.iter().all(|cell| cell.is_steady()));
        assert_eq!(
            (pods[0].port, pods[0].namespace, pods[1].device, pods[1].namespace),
            (8080, OWN_NAMESPACE, 0, NO_NAMESPACE)
        );
        assert_eq!(first.tables.store().pod_device(pods[0].device), Some(1));
        assert_eq!(first.tables.store().pod_device(0), None, "0 stands for none");
        drop(first);

        let mut second = Datapath::open(&SIZES, true, pins, false).expect("the maps fit");
        let actual = second.tables.actual();
        assert_eq!((actual.internal, actual.replies), (&wanted.internal, &wanted.replies));
        converge(&mut second, &wanted);
        assert_eq!(look(&second), before);
        assert_eq!(second.tables.actual().services[key], Some(spec));
        assert_eq!(second.tables.store().recorded().expect("a count"), 0);
        converge(&mut second, &Wanted { hash_seed: 7, ..Wanted::default() });
        assert_eq!(second.tables.store().replies().expect("the map"), []);
        assert_eq!(second.tables.store().internal().expect("the map"), []);
    });
}

#[test]
fn a_host_becomes_a_node_only_with_new_maps() {
    with_bpf_filesystem(|pins| {
        drop(Datapath::open(&SIZES, false, pins, false).expect("maps can be made"));
        let small: u64 = memory::of_pins(&lb_userspace::datapath::pins::Pins::new(pins))
            .expect("pins")
            .iter()
            .filter(|map| map.name == "records")
            .map(|map| map.bytes)
            .sum();
        assert!(small > 0, "the map of recorded flows takes memory");
        let Err(error) = Datapath::open(&SIZES, true, pins, false) else {
            panic!("maps of another size are taken over")
        };
        let error = format!("{error:#}");
        assert!(
            error.contains("the configuration's maps and roles ask for") && error.contains("beeline detach"),
            "{error}"
        );
    });
    with_bpf_filesystem(|pins| {
        drop(Datapath::open(&SIZES, true, pins, false).expect("maps can be made"));
        drop(Datapath::open(&SIZES, false, pins, false).expect("a host that is no node any more has room to spare"));
    });
}
