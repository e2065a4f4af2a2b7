//! What another agent left: as it was meant to be, half written, or broken.

use std::collections::BTreeSet;
use std::time::Instant;

use lb_common::maps::{Backend, ServiceKey, ServiceWord, VIP_MARK};
use lb_common::verdict::Reason;

use super::checked::Checked;
use super::scene::{
    ROOMY, Scene, assert_as_fresh, assert_nothing_leaks, checked, chosen, converge, ip, keys, prefix, service, via,
    watched,
};
use crate::datapath::host::HostMaps;
use crate::datapath::store::Store as _;
use crate::datapath::tables::Tables;
use crate::model::TunnelSource;
use crate::plan::{HostRoles, Route};

const NOTHING: [&str; 0] = [];

fn adopt(maps: HostMaps) -> (Tables<Checked>, Vec<String>) {
    let now = Instant::now();
    Tables::adopt(Checked::new(maps, now), now).expect("host maps can be read")
}

/// A service without an owner, one without a backend, an unreachable and a local backend beside the usual.
fn varied() -> Scene {
    let mut scene = Scene::some();
    scene.put(2, service([(0, 5, 0), (1, 5, 0)], 64));
    scene.routes.insert(ip("10.0.0.4"), Route::Local);
    scene.routes.insert(ip("fd00::2"), Route::Unreachable { source: None });
    scene.routes.insert(ip("10.0.0.2"), Route::Unreachable { source: Some(ip("192.0.2.1")) });
    scene
}

#[test]
fn where_nothing_differs_nothing_is_written() {
    for roles in [(true, true), (true, false), (false, true)] {
        let mut scene = varied();
        scene.roles = HostRoles { edge: roles.0, node: roles.1 };
        let (mut tables, notes) = adopt(scene.fresh(ROOMY).store().clone());
        assert_eq!(notes, NOTHING);
        assert_eq!(converge(&mut tables, &scene), NOTHING);
        assert_eq!(tables.store.log, NOTHING);
        assert_as_fresh(&tables, &scene);
        assert_nothing_leaks(tables);
    }
}

#[test]
fn only_the_difference_is_written() {
    let scene = varied();
    let (mut tables, _) = adopt(scene.fresh(ROOMY).store().clone());
    let counter = tables.installed()[&keys()[0]].backends[&ip("10.0.0.1")].counter;
    let mut next = scene.clone();
    next.put(0, service([(0, 100, 100), (3, 50, 50)], 64));
    assert_eq!(converge(&mut tables, &next), NOTHING);
    let expected = ["reset_counter", "write_backend", "write_backend", "write_slots", "set_word"];
    assert_eq!(tables.store.log, expected);
    let backends = &tables.installed()[&keys()[0]].backends;
    assert_eq!(backends[&ip("10.0.0.1")].counter, counter, "a backend that stays keeps its counter");
    assert_as_fresh(&tables, &next);
    assert_nothing_leaks(tables);
}

#[test]
fn an_agent_may_die_between_any_two_writes() {
    let before = varied();
    let mut after = varied();
    after.put(0, service([(0, 100, 100), (2, 50, 50), (3, 1, 1)], 128));
    after.put(3, service([(4, 1, 1)], 64));
    after.put(5, service([(1, 1, 1)], 64));
    after.desired.services.remove(&keys()[4]);
    after.desired.services.remove(&keys()[8]);
    after.desired.tunnel_source = TunnelSource { ipv4: Some(prefix("10.200.0.0/16")), ipv6: None };
    after.desired.trusted_sources = [prefix("fd00::/64")].into();
    after.own = [ip("192.0.2.9")].into();
    after.routes.insert(ip("10.0.0.1"), via(&ip("10.0.0.1"), 9));
    after.routes.insert(ip("10.0.0.2"), via(&ip("10.0.0.2"), 8));
    after.routes.insert(ip("fd00::1"), Route::Unreachable { source: None });
    for seed in [7, 8] {
        after.desired.hash_seed = seed;
        let mut writes = 0;
        loop {
            let mut first = checked(ROOMY, Instant::now());
            assert_eq!(converge(&mut first, &before), NOTHING);
            first.store.left = Some(writes);
            converge(&mut first, &after);
            let alive = first.store.left != Some(0);
            let (mut second, notes) = adopt(first.store.maps);
            assert_eq!(notes, NOTHING, "after {writes} writes");
            assert_eq!(converge(&mut second, &after), NOTHING, "after {writes} writes");
            assert_as_fresh(&second, &after);
            assert_nothing_leaks(second);
            if alive {
                break;
            }
            writes += 1;
        }
        assert!(writes > 30, "{writes} writes are too few for what was changed");
    }
}

#[test]
fn half_turned_entries_are_turned_to_one_next_hop() {
    let mut scene = Scene::empty();
    for key in [0, 1, 2] {
        scene.put(key, service([(0, 1, 1)], 64));
    }
    let mut maps = scene.fresh(ROOMY).store().clone();
    let index = |maps: &HostMaps, key: usize| {
        let services = maps.services().expect("keys");
        let (_, id) = services.iter().find(|(other, _)| *other == keys()[key]).expect("the service");
        maps.word(*id).backends()
    };
    let (first, second) = (index(&maps, 0), index(&maps, 2));
    maps.write_next_hop(2, &super::scene::hop(9)).expect("room");
    maps.set_backend_next_hop(first, 2);
    maps.set_backend_next_hop(second, 0);
    for number in [0, 9] {
        let (mut tables, _) = adopt(maps.clone());
        let hops: BTreeSet<_> = tables
            .installed()
            .values()
            .map(|there| tables.store.backend(there.first_backend().expect("a table")).next_hop)
            .collect();
        assert!(hops.len() == 1 && !hops.contains(&0), "entries of one backend have the next hops {hops:?}");
        scene.routes.insert(ip("10.0.0.1"), via(&ip("10.0.0.1"), number));
        assert_eq!(converge(&mut tables, &scene), NOTHING);
        assert_as_fresh(&tables, &scene);
        assert_nothing_leaks(tables);
    }
}

#[test]
fn what_does_not_hold_together_is_removed_with_a_word() {
    type Break = fn(&mut HostMaps, ServiceWord, u32);
    let cases: [(&str, Break); 6] = [
        ("id 4000000 is beyond", |maps, _, _| maps.insert_service(keys()[0], 4_000_000).expect("room")),
        ("another service's", |maps, _, id| maps.insert_service(keys()[0], id + 1).expect("room")),
        ("a slot names backend 7", |maps, word, _| maps.write_slots(word.slots(), &[7; 64])),
        ("not in its place", |maps, word, _| {
            let entry = Backend { dispatch: 0, ..maps.backend(word.backends()) };
            maps.write_backend(word.backends(), &entry);
        }),
        ("the counter of 10.0.0.2", |maps, word, _| {
            let (first, second) = (maps.backend(word.backends()), maps.backend(word.backends() + 1));
            maps.write_backend(word.backends() + 1, &Backend { counter: first.counter, ..second });
        }),
        ("2^31 slots", |maps, word, id| maps.set_word(id, ServiceWord(word.0 | 31 << 27))),
    ];
    for (complaint, broken) in cases {
        let scene = Scene::some();
        let mut maps = scene.fresh(ROOMY).store().clone();
        let services = maps.services().expect("keys");
        let (_, id) = services.iter().find(|(key, _)| *key == keys()[0]).expect("the service");
        let word = maps.word(*id);
        broken(&mut maps, word, *id);
        let now = Instant::now();
        let (tables, notes) = Tables::adopt(maps, now).expect("host maps can be read");
        assert!(notes.len() == 1 && notes[0].contains(complaint), "{complaint}: {notes:?}");
        // Whatever is left holds together, and the agent goes on from there.
        let mut tables = watched(tables, now);
        assert_eq!(converge(&mut tables, &scene), NOTHING, "{complaint}");
        assert_as_fresh(&tables, &scene);
        assert_nothing_leaks(tables);
    }
}

#[test]
fn marks_and_bits_follow_the_keys() {
    let scene = Scene::some();
    let mut maps = scene.fresh(ROOMY).store().clone();
    let vip = |key: ServiceKey| ServiceKey::vip(key.address(), key.family());
    maps.remove_service(vip(keys()[0])).expect("the mark of a VIP");
    let gone = ServiceKey::vip(ip("203.0.113.9").into(), lb_common::address::Family::V4);
    maps.insert_service(gone, VIP_MARK).expect("room");
    maps.set_prefilter(5, !0);
    let now = Instant::now();
    let (tables, notes) = Tables::adopt(maps, now).expect("host maps can be read");
    let mut tables = watched(tables, now);
    assert_eq!((notes, converge(&mut tables, &scene)), (vec![], vec![]));
    assert_as_fresh(&tables, &scene);
    assert_eq!(chosen(&tables.store.maps, &keys()[0]), [Reason::Forwarded].into());
    assert_nothing_leaks(tables);
}
