//! Pods: who had a slot before, which device leads there, since when there is none, and where replies come from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::maps::{NO_NAMESPACE, OWN_NAMESPACE, PodCell, ServiceKey, ServiceWord};

use super::checked::Checked;
use super::scene::{ROOMY, Scene, assert_as_fresh, assert_nothing_leaks, checked, converge, ip, keys, watched};
use crate::datapath::QUARANTINE;
use crate::datapath::host::HostMaps;
use crate::datapath::store::{Capacity, PodStore as _};
use crate::datapath::tables::Tables;
use crate::model::PodKey;
use crate::plan::PodDevice;

const NOTHING: [&str; 0] = [];
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The node 10.0.0.1 with pods of the first service: the last byte of each address, its port, and whether it drains.
fn with_pods(pods: &[(u8, u16, bool)], slots: u32) -> Scene {
    let mut scene = Scene::node();
    scene.put_pods(0, pods, slots);
    scene
}

fn start(scene: &Scene) -> Tables<Checked> {
    let mut tables = checked(ROOMY, Instant::now());
    assert_eq!(converge(&mut tables, scene), NOTHING);
    assert_as_fresh(&tables, scene);
    tables
}

/// Every slot of the first service: the owner and those before it, from the last on.
fn slots(tables: &Tables<Checked>) -> Vec<(PodKey, Vec<PodKey>)> {
    let there = &tables.installed()[&keys()[0]];
    let pods: Vec<_> = there.pods.keys().copied().collect();
    let word = tables.store.pod_word(there.id).pods().expect("pods");
    let mut cells = vec![PodCell(0); 1 << word.log2_slots()];
    tables.store.read_pod_cells(word.slots(), &mut cells);
    let pod = |place: u16| pods[usize::from(place)];
    let formers = |cell: &PodCell| cell.formers().into_iter().filter(|f| *f != PodCell::NONE).map(pod).collect();
    cells.iter().map(|cell| (pod(cell.owner()), formers(cell))).collect()
}

fn owners(tables: &Tables<Checked>) -> Vec<PodKey> {
    slots(tables).into_iter().map(|(owner, _)| owner).collect()
}

fn adopt(tables: Tables<Checked>) -> (Tables<Checked>, Vec<String>) {
    let clock = tables.store.clock;
    let (tables, notes) = Tables::adopt(tables.store.maps, clock).expect("host maps can be read");
    (watched(tables, clock), notes)
}

#[test]
fn a_moved_slot_knows_who_had_it_before_for_as_long_as_they_are_there() {
    let scene = with_pods(&[(1, 8080, false), (2, 8080, false), (3, 8080, false)], 128);
    let mut tables = start(&scene);
    let first = owners(&tables);
    assert!(slots(&tables).iter().all(|(_, formers)| formers.is_empty()), "nobody was before");
    // The second drains and a fourth comes: every moved slot knows the owner before.
    let next = with_pods(&[(1, 8080, false), (2, 8080, true), (3, 8080, false), (4, 8080, false)], 128);
    assert_eq!(converge(&mut tables, &next), NOTHING);
    let second = slots(&tables);
    let expected = |before: &PodKey, owner: &PodKey| if before == owner { vec![] } else { vec![*before] };
    for (before, (owner, formers)) in first.iter().zip(&second) {
        assert_eq!(*formers, expected(before, owner));
    }
    assert!(second.iter().filter(|(_, formers)| !formers.is_empty()).count() > 20);
    // The third drains, too: some slots have two before them, the last one first.
    let last = with_pods(&[(1, 8080, false), (2, 8080, true), (3, 8080, true), (4, 8080, false)], 128);
    assert_eq!(converge(&mut tables, &last), NOTHING);
    let third = slots(&tables);
    for ((before, formers), (owner, now)) in second.iter().zip(&third) {
        let mut want: Vec<_> =
            [*before].into_iter().chain(formers.iter().copied()).filter(|pod| pod != owner).collect();
        want.dedup();
        want.truncate(2);
        assert_eq!(*now, want);
    }
    assert!(third.iter().any(|(_, formers)| formers.len() == 2));
    // The second is gone, and with it its name in every slot.
    let gone = with_pods(&[(1, 8080, false), (3, 8080, true), (4, 8080, false)], 128);
    assert_eq!(converge(&mut tables, &gone), NOTHING);
    let second = PodKey { address: ip("10.1.0.2"), port: 8080 };
    assert!(slots(&tables).iter().all(|(_, formers)| !formers.contains(&second)));
    assert!(slots(&tables).iter().any(|(_, formers)| !formers.is_empty()));
    assert_as_fresh(&tables, &gone);
    assert_nothing_leaks(tables);
}

#[test]
fn former_pods_are_forgotten_in_place_when_their_time_is_over() {
    let mut tables = start(&with_pods(&[(1, 80, false), (2, 80, false)], 64));
    let mut scene = with_pods(&[(1, 80, false), (2, 80, true)], 64);
    scene.desired.transition_max = Duration::from_secs(600);
    tables.set_transition_max(scene.desired.transition_max);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    let changed = tables.store.clock;
    let moved = slots(&tables).iter().filter(|(_, formers)| !formers.is_empty()).count();
    assert!(moved > 10);
    for (seconds, cleared) in [(1, false), (598, false), (1, true)] {
        assert_eq!(tables.due().map(|due| due - changed > Duration::from_secs(599)), Some(seconds != 1 || cleared));
        tables.store.clock += Duration::from_secs(seconds);
        tables.store.log.clear();
        assert_eq!(converge(&mut tables, &scene), NOTHING);
        assert_eq!(tables.store.log, vec!["set_pod_cell"; if cleared { moved } else { 0 }]);
    }
    assert_eq!(tables.due(), None);
    assert!(slots(&tables).iter().all(|(_, formers)| formers.is_empty()));
    assert_as_fresh(&tables, &scene);
    assert_nothing_leaks(tables);
}

#[test]
fn an_adopted_table_keeps_its_former_pods_for_the_whole_time_again() {
    let mut tables = start(&with_pods(&[(1, 80, false), (2, 80, false)], 64));
    let scene = with_pods(&[(1, 80, false), (2, 80, true)], 64);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    let before = slots(&tables);
    tables.store.clock += DAY / 2;
    let (mut tables, notes) = adopt(tables);
    assert_eq!(notes, NOTHING);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_eq!(tables.store.log, NOTHING, "what is as it should be is not written");
    assert_eq!(slots(&tables), before);
    assert_eq!(tables.due(), Some(tables.store.clock + DAY));
    tables.store.clock += DAY;
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert!(slots(&tables).iter().all(|(_, formers)| formers.is_empty()));
    assert_nothing_leaks(tables);
}

#[test]
fn a_table_of_another_size_keeps_what_its_slots_say() {
    let pods = [(1, 80, false), (2, 80, false), (3, 80, false)];
    let mut tables = start(&with_pods(&pods, 64));
    let before = owners(&tables);
    assert_eq!(converge(&mut tables, &with_pods(&pods, 256)), NOTHING);
    for (slot, (owner, formers)) in slots(&tables).iter().enumerate() {
        let old = before[slot % 64];
        assert_eq!(*formers, if old == *owner { vec![] } else { vec![old] }, "slot {slot}");
    }
    assert_eq!(converge(&mut tables, &with_pods(&pods, 128)), NOTHING);
    assert!(slots(&tables).iter().all(|(_, formers)| formers.is_empty()), "a smaller one says nothing");
    // However many slots the edges' tables have.
    assert_eq!(converge(&mut tables, &with_pods(&pods, 8192)), NOTHING);
    assert_eq!(slots(&tables).len(), 1024);
    assert_nothing_leaks(tables);
}

#[test]
fn another_seed_leaves_no_former_pods() {
    let mut scene = with_pods(&[(1, 80, false), (2, 80, false)], 64);
    let mut tables = start(&scene);
    let before = owners(&tables);
    scene.desired.hash_seed = 8;
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_ne!(owners(&tables), before);
    assert!(slots(&tables).iter().all(|(_, formers)| formers.is_empty()));
    assert_as_fresh(&tables, &scene);
    assert_nothing_leaks(tables);
}

/// Where a pod is, the writes that this costs, and the interface and namespace that packets find then.
type Turn<'a> = (PodDevice, &'a [&'a str], (Option<u32>, u32));

#[test]
fn a_device_that_comes_and_goes_costs_one_store() {
    let mut scene = with_pods(&[(1, 80, false), (2, 80, false)], 64);
    // Every flow is recorded, be the namespace known or not.
    scene.desired.direct_pod_access = true;
    let mut tables = start(&scene);
    let entry = |tables: &Tables<Checked>| {
        let there = &tables.installed()[&keys()[0]];
        let entry = tables.store.pod(there.first_pod().expect("pods"));
        (tables.store.pod_device(entry.device).filter(|_| entry.device != 0), entry.namespace)
    };
    let (before, pod) = (owners(&tables), ip("10.1.0.1"));
    let steps: [Turn<'_>; 4] = [
        (device(31, Some(5)), &["write_pod_device", "set_pod_device"], (Some(31), 5)),
        (device(31, Some(6)), &["set_pod_device"], (Some(31), 6)),
        // The other one's.
        (device(12, None), &["set_pod_device"], (Some(12), NO_NAMESPACE)),
        (device(1, None), &["write_pod_device", "set_pod_device"], (Some(1), OWN_NAMESPACE)),
    ];
    for (device, writes, want) in steps {
        scene.pods.insert(pod, device);
        tables.store.log.clear();
        assert_eq!(converge(&mut tables, &scene), NOTHING);
        assert_eq!(tables.store.log, writes, "{device:?}");
        assert_eq!(entry(&tables), want);
        assert_eq!(owners(&tables), before);
        assert_as_fresh(&tables, &scene);
    }
    assert_nothing_leaks(tables);
}

const fn device(interface: u32, namespace: Option<u32>) -> PodDevice {
    PodDevice { interface, namespace }
}

#[test]
fn a_device_that_cannot_be_had_stops_nothing_else() {
    let mut scene = with_pods(&[(1, 80, false)], 64);
    let mut tables = start(&scene);
    scene.put_pods(0, &[(1, 80, false), (2, 80, false), (3, 80, false)], 64);
    tables.store.missing = BTreeSet::from([12]);
    let errors = converge(&mut tables, &scene);
    assert_eq!(errors, ["there is no interface 12"]);
    let there = tables.installed()[&keys()[0]].clone();
    let devices: Vec<_> = there.pods.values().map(|pod| pod.device).collect();
    assert!(devices[0] != 0 && devices[1] == 0 && devices[2] != 0, "{devices:?}");
    // It stays as it is until the device is there, or the plan says that it is not.
    assert_eq!(converge(&mut tables, &scene), errors);
    tables.store.missing.clear();
    tables.store.log.clear();
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_eq!(tables.store.log, ["write_pod_device", "set_pod_device"]);
    assert_as_fresh(&tables, &scene);
    assert_nothing_leaks(tables);
}

#[test]
fn a_device_that_the_kernel_took_away_is_found_gone_by_whoever_adopts() {
    let scene = with_pods(&[(1, 80, false), (2, 80, false)], 64);
    let mut tables = start(&scene);
    tables.store.maps.remove_interface(11);
    let (mut tables, notes) = adopt(tables);
    assert_eq!(notes, NOTHING);
    let devices: Vec<_> = tables.installed()[&keys()[0]].pods.values().map(|pod| pod.device != 0).collect();
    assert_eq!(devices, [false, true]);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_as_fresh(&tables, &scene);
    assert_nothing_leaks(tables);
}

#[test]
fn a_service_without_a_pod_remembers_since_when() {
    let mut scene = with_pods(&[], 64);
    let mut tables = checked(ROOMY, Instant::now());
    tables.store.maps.advance(1_000);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    let since = |tables: &Tables<Checked>| {
        let word = tables.store.pod_word(tables.installed()[&keys()[0]].id);
        (!word.is_host() && word.pods().is_none()).then(|| word.since())
    };
    assert_eq!(since(&tables), Some(1_000));
    tables.store.maps.advance(1_000);
    // Another backend changes the service, but not that.
    scene.add_node(0, "10.0.0.2");
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_eq!(since(&tables), Some(1_000));
    let (mut tables, _) = adopt(tables);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_eq!(since(&tables), Some(1_000), "nor does another agent");
    scene.put_pods(0, &[(1, 80, false)], 64);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_eq!(since(&tables), None);
    scene.put_pods(0, &[], 64);
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_eq!(since(&tables), Some(2_000));
    assert_nothing_leaks(tables);
}

#[test]
fn a_half_that_does_not_change_is_not_written() {
    let mut scene = with_pods(&[(1, 80, false), (2, 80, false)], 64);
    scene.add_node(0, "10.0.0.2");
    let mut tables = start(&scene);
    tables.store.log.clear();
    scene.drain(0, "10.0.0.2");
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert!(tables.store.log.contains(&"set_word"), "{:?}", tables.store.log);
    assert!(!tables.store.log.iter().any(|write| write.contains("pod")), "{:?}", tables.store.log);
    tables.store.log.clear();
    scene.roles.edge = false;
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    tables.store.log.clear();
    scene.put_pods(0, &[(1, 80, false), (2, 80, true)], 64);
    scene.add_node(0, "10.0.0.2");
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_eq!(tables.store.log, ["write_pod", "write_pod", "write_pod_cells", "set_pod_word"]);
    assert_nothing_leaks(tables);
}

#[test]
fn replies_keep_their_id_and_take_another_target() {
    let scene = with_pods(&[(1, 80, false)], 64);
    let mut tables = start(&scene);
    let key = *tables.actual().replies.keys().next().expect("replies of a pod");
    let id = tables.reply_id(&key).expect("an id");
    let target = tables.store.reply_word(id).target();
    tables.store.log.clear();
    // The service is another VIP's now.
    let mut next = Scene::node();
    next.put_pods(1, &[(1, 80, false)], 64);
    let service = next.desired.services.remove(&keys()[1]).expect("it was put");
    let family = lb_common::address::Family::V4;
    let vip = ServiceKey::new(ip("198.51.100.77").into(), family, 6, 80);
    next.desired.services.insert(vip, service);
    assert_eq!(converge(&mut tables, &next), NOTHING);
    assert_eq!(tables.reply_id(&key), Some(id));
    let word = tables.store.reply_word(id);
    assert_ne!(word.target(), target);
    assert_eq!(tables.store.reply_target(word.target()).vip, ip("198.51.100.77").into());
    let written: Vec<_> = tables.store.log.iter().filter(|write| write.contains("reply")).collect();
    assert_eq!(written, [&"write_reply_target", &"set_reply_word"]);
    // Another word on records alone keeps the target.
    next.desired.direct_pod_access = true;
    tables.store.log.clear();
    assert_eq!(converge(&mut tables, &next), NOTHING);
    let written: Vec<_> = tables.store.log.iter().filter(|write| write.contains("reply")).collect();
    assert_eq!(written, [&"set_reply_word"]);
    assert_eq!(tables.store.reply_word(id).target(), word.target());
    assert_nothing_leaks(tables);
}

#[test]
fn full_maps_of_pods_are_named_and_harmless() {
    let scene = with_pods(&[(1, 80, false)], 64);
    let mut next = scene.clone();
    next.put_pods(0, &[(1, 80, false), (2, 80, false)], 64);
    let cases = [
        (Capacity { log2_pods: 1, ..ROOMY }, "more pods: the map holds 1; raise maps.backends"),
        (Capacity { log2_pod_cells: 6, ..ROOMY }, "more slots of pods: the map holds 64; raise maps.slots"),
        (Capacity { pod_counters: 1, ..ROOMY }, "more pods: the map holds 1; raise maps.backends"),
        (Capacity { pod_devices: 2, ..ROOMY }, "more pods' devices: the map holds 2"),
        (Capacity { replies: 1, ..ROOMY }, "more pods' replies: the map holds 1; raise maps.services"),
    ];
    for (capacity, complaint) in cases {
        let mut tables = checked(capacity, Instant::now());
        assert_eq!(converge(&mut tables, &scene), NOTHING, "{complaint}");
        for _ in 0..3 {
            let errors = converge(&mut tables, &next);
            assert!(errors.len() == 1 && errors[0].contains(complaint), "{complaint}: {errors:?}");
            tables.store.clock += QUARANTINE;
        }
        let none = Scene::node();
        converge(&mut tables, &none);
        tables.store.clock += QUARANTINE;
        assert_eq!(converge(&mut tables, &scene), NOTHING, "{complaint}");
        assert_as_fresh(&tables, &scene);
        assert_nothing_leaks(tables);
    }
}

#[test]
fn pods_that_do_not_hold_together_are_removed_with_a_word() {
    type Break = fn(&mut HostMaps, ServiceWord);
    let cases: [(&str, Break); 6] = [
        ("a slot names pod 9", |maps, word| maps.set_pod_cell(word.slots(), PodCell::new(9, [PodCell::NONE; 2]))),
        ("a slot names the former pod 8", |maps, word| {
            maps.set_pod_cell(word.slots(), PodCell::new(0, [8, PodCell::NONE]));
        }),
        ("is not in its place", |maps, word| {
            let (first, second) = (maps.pod(word.backends()), maps.pod(word.backends() + 1));
            maps.write_pod(word.backends(), &second);
            maps.write_pod(word.backends() + 1, &first);
        }),
        ("the counter of pod 10.1.0.2 port 80", |maps, word| {
            let mut second = maps.pod(word.backends() + 1);
            second.counter = maps.pod(word.backends()).counter;
            maps.write_pod(word.backends() + 1, &second);
        }),
        ("target 500000 is beyond", |maps, _| {
            let (_, id) = maps.replies().expect("replies")[0];
            maps.set_reply_word(id, lb_common::maps::ReplyWord::new(500_000, false, false));
        }),
        ("internal network 10.1.0.1/32 has flags 8", |maps, _| {
            maps.set_internal(crate::model::Prefix::of(ip("10.1.0.1")), Some(8)).expect("room");
        }),
    ];
    let scene = with_pods(&[(1, 80, false), (2, 80, false)], 64);
    for (complaint, broken) in cases {
        let tables = start(&scene);
        let word = tables.store.pod_word(tables.installed()[&keys()[0]].id).pods().expect("pods");
        let mut maps = tables.store.maps;
        broken(&mut maps, word);
        let now = Instant::now();
        let (tables, notes) = Tables::adopt(maps, now).expect("host maps can be read");
        assert!(notes.len() == 1 && notes[0].contains(complaint), "{complaint}: {notes:?}");
        let mut tables = watched(tables, now);
        assert_eq!(converge(&mut tables, &scene), NOTHING, "{complaint}");
        assert_as_fresh(&tables, &scene);
        assert_nothing_leaks(tables);
    }
}

#[test]
fn a_pods_port_counts_for_its_place() {
    let mut tables = start(&with_pods(&[(1, 80, false), (1, 81, false)], 64));
    let found: BTreeMap<(IpAddr, u16), usize> = owners(&tables).iter().fold(BTreeMap::new(), |mut found, pod| {
        *found.entry((pod.address, pod.port)).or_default() += 1;
        found
    });
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(converge(&mut tables, &with_pods(&[(1, 81, false)], 64)), NOTHING);
    assert_nothing_leaks(tables);
}
