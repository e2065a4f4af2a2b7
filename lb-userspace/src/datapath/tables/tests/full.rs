//! Maps that are full, and writes that are refused: what was there stays, and the same step goes through later.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lb_common::verdict::Reason;

use super::checked::Checked;
use super::scene::{
    ROOMY, Scene, assert_as_fresh, assert_nothing_leaks, checked, chosen, converge, hop, ip, keys, service, via,
};
use crate::datapath::QUARANTINE;
use crate::datapath::store::Capacity;
use crate::datapath::tables::Tables;
use crate::plan::{Route, Step};

const NOTHING: [&str; 0] = [];

/// What is taken, and what is written where nothing waits.
fn taken(tables: &Tables<Checked>) -> [usize; 6] {
    [
        tables.ids.taken() as usize,
        tables.counters.taken() as usize,
        tables.hops.taken() as usize,
        tables.slots.used_units() as usize,
        tables.backends.used_units() as usize,
        tables.prefilter_users.values().sum::<u32>() as usize,
    ]
}

/// `scene` fits and `next` does not: nothing is lost or taken, however often it is tried; once `scene`'s first service
/// is gone long enough, the same goes through.
fn one_too_many(capacity: Capacity, scene: &Scene, next: &Scene, complaint: &str) {
    let mut tables = checked(capacity, Instant::now());
    assert_eq!(converge(&mut tables, scene), NOTHING);
    assert_as_fresh(&tables, scene);
    let mut before = taken(&tables);
    for _ in 0..3 {
        let errors = converge(&mut tables, next);
        // The way to a new backend is known even where the service does not fit.
        before[2] = tables.hop_numbers.len();
        assert!(errors.len() == 1 && errors[0].contains(complaint), "{complaint}: {errors:?}");
        assert_eq!(taken(&tables), before, "{complaint}");
        assert_eq!(chosen(&tables.store.maps, &keys()[0]), [Reason::Forwarded].into(), "{complaint}");
        tables.store.clock += QUARANTINE;
    }
    let mut less = next.clone();
    less.desired.services.remove(&keys()[0]);
    converge(&mut tables, &less);
    tables.store.clock += QUARANTINE;
    assert_eq!(converge(&mut tables, &less), NOTHING, "{complaint}");
    assert_as_fresh(&tables, &less);
    assert_nothing_leaks(tables);
}

#[test]
fn a_full_map_of_each_kind_is_named_and_harmless() {
    let mut scene = Scene::empty();
    scene.put(0, service([(0, 1, 1), (1, 1, 1)], 64));
    scene.put(1, service([(0, 1, 1), (1, 1, 1)], 64));
    let mut next = scene.clone();
    next.put(2, service([(2, 1, 1), (3, 1, 1)], 64));
    let exact = "raise maps.";
    one_too_many(
        Capacity { services: 2, ..ROOMY },
        &scene,
        &next,
        &format!("more services: the map holds 2; {exact}services"),
    );
    one_too_many(
        Capacity { log2_backends: 2, ..ROOMY },
        &scene,
        &next,
        &format!("more backends: the map holds 2; {exact}backends"),
    );
    one_too_many(
        Capacity { log2_slots: 7, ..ROOMY },
        &scene,
        &next,
        &format!("more slots: the map holds 128; {exact}slots"),
    );
    one_too_many(
        Capacity { counters: 5, ..ROOMY },
        &scene,
        &next,
        &format!("more backends: the map holds 5; {exact}backends"),
    );
}

#[test]
fn what_was_removed_is_left_alone_for_a_second() {
    let mut scene = Scene::empty();
    scene.put(0, service([(0, 1, 1)], 64));
    let only = Capacity { services: 1, log2_backends: 1, log2_slots: 6, next_hops: 2, counters: 1, ..ROOMY };
    let mut tables = checked(only, Instant::now());
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    let mut next = Scene::empty();
    next.put(1, service([(1, 1, 1)], 64));
    assert_eq!(converge(&mut tables, &next).len(), 2, "neither the next hop nor the service fits");
    for (milliseconds, fits) in [(999, false), (1, true)] {
        tables.store.clock += Duration::from_millis(milliseconds);
        assert_eq!(converge(&mut tables, &next).is_empty(), fits, "{milliseconds} ms");
    }
    assert_as_fresh(&tables, &next);
    assert_nothing_leaks(tables);
}

#[test]
fn a_change_that_does_not_fit_leaves_the_service_as_it_was() {
    let mut scene = Scene::empty();
    scene.put(0, service([(0, 1, 1), (1, 1, 1)], 64));
    scene.put(1, service([(0, 1, 1)], 64));
    let mut next = scene.clone();
    next.put(0, service([(0, 1, 1), (2, 1, 1)], 64));
    one_too_many(Capacity { log2_slots: 7, ..ROOMY }, &scene, &next, "more slots");
}

#[test]
fn a_table_that_finds_no_room_after_a_new_seed_is_tried_again() {
    let mut scene = Scene::empty();
    scene.put(0, service([(0, 1, 1), (1, 1, 1)], 64));
    scene.put(1, service([(0, 1, 1), (1, 1, 1)], 64));
    let mut tables = checked(Capacity { log2_slots: 8, ..ROOMY }, Instant::now());
    scene.put(2, service([(2, 1, 1), (1, 1, 1)], 64));
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    scene.desired.hash_seed = 8;
    assert_eq!(converge(&mut tables, &scene).len(), 2, "there is room for one of three");
    for _ in 0..2 {
        tables.store.clock += QUARANTINE;
        converge(&mut tables, &scene);
    }
    assert_as_fresh(&tables, &scene);
    assert_nothing_leaks(tables);
}

#[test]
fn next_hops_that_do_not_fit_leave_those_that_are_there() {
    let mut scene = Scene::empty();
    scene.put(0, service([(0, 1, 1)], 64));
    scene.put(1, service([(1, 1, 1)], 64));
    let mut tables = checked(Capacity { next_hops: 3, ..ROOMY }, Instant::now());
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    scene.put(2, service([(2, 1, 1)], 64));
    let errors = converge(&mut tables, &scene);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("no room for more next hops: the map holds 3; raise maps.backends"), "{errors:?}");
    assert_eq!(chosen(&tables.store.maps, &keys()[0]), [Reason::Forwarded].into());
    assert_eq!(chosen(&tables.store.maps, &keys()[2]), [Reason::BackendUnreachable].into());
    scene.desired.services.remove(&keys()[0]);
    converge(&mut tables, &scene);
    assert_eq!(converge(&mut tables, &scene).len(), 1, "the number waits in quarantine");
    tables.store.clock += QUARANTINE;
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_as_fresh(&tables, &scene);
    assert_nothing_leaks(tables);
}

#[test]
fn a_refused_write_takes_nothing() {
    let names =
        ["insert_service", "insert_mark", "reset_counter", "write_next_hop", "set_tunnel_address", "set_trusted"];
    for name in names {
        let mut tables = checked(ROOMY, Instant::now());
        let mut scene = Scene::empty();
        scene.put(0, service([(0, 1, 1)], 64));
        assert_eq!(converge(&mut tables, &scene), NOTHING);
        let mut next = Scene::some();
        next.own.insert(ip("192.0.2.77"));
        tables.store.refuse = Some(name);
        let refused = format!("{name} is refused");
        let errors = converge(&mut tables, &next);
        assert!(!errors.is_empty() && errors.iter().all(|error| *error == refused), "{errors:?}");
        let before = taken(&tables);
        assert_eq!(converge(&mut tables, &next), errors, "the second try fails as the first did");
        assert_eq!(taken(&tables), before, "{name}");
        tables.store.refuse = None;
        assert_eq!(converge(&mut tables, &next), NOTHING);
        assert_as_fresh(&tables, &next);
        assert!(tables.store.checks() > 20);
        assert_nothing_leaks(tables);
    }
}

#[test]
fn without_hash_keys_no_table_is_built() {
    let mut tables = checked(ROOMY, Instant::now());
    tables.store.refuse = Some("set_hash_keys");
    let errors = converge(&mut tables, &Scene::some());
    assert!(errors.iter().any(|error| error.contains("no table can be built")), "{errors:?}");
    assert!(tables.installed().is_empty());
    tables.store.refuse = None;
    assert_eq!(converge(&mut tables, &Scene::some()), NOTHING);
    assert_as_fresh(&tables, &Scene::some());
}

#[test]
fn a_mark_that_stays_behind_keeps_nothing_else() {
    let mut tables = checked(ROOMY, Instant::now());
    let mut scene = Scene::empty();
    scene.own.clear();
    scene.put(0, service([(0, 1, 1)], 64));
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    tables.store.refuse = Some("insert_mark");
    scene.desired.services.clear();
    assert_eq!(converge(&mut tables, &scene), NOTHING, "removing needs no insertion");
    assert_nothing_leaks(tables);
}

#[test]
fn a_backend_that_leaves_keeps_its_next_hop_while_a_service_cannot_change() {
    let mut scene = Scene::empty();
    scene.put(0, service([(0, 1, 1), (1, 1, 1)], 64));
    let mut tables = checked(Capacity { log2_slots: 6, ..ROOMY }, Instant::now());
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    scene.put(0, service([(0, 1, 1)], 64));
    assert_eq!(converge(&mut tables, &scene).len(), 1, "the only unit of slots is in use");
    assert_eq!(chosen(&tables.store.maps, &keys()[0]), [Reason::Forwarded].into());
    // It is planned again, and refused again for as long as it is used.
    let step = Step::ForgetNextHops(BTreeSet::from([ip("10.0.0.2")]));
    assert!(crate::plan::steps(&tables.actual(), &scene.wanted()).contains(&step));
    scene.desired.services.clear();
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    assert_nothing_leaks(tables);
}

#[test]
fn no_packet_leaves_from_nowhere() {
    let mut scene = Scene::empty();
    scene.put(0, service([(0, 1, 1)], 64));
    scene.routes.insert(ip("10.0.0.1"), Route::Unreachable { source: None });
    let mut tables = checked(Capacity { log2_slots: 6, ..ROOMY }, Instant::now());
    assert_eq!(converge(&mut tables, &scene), NOTHING);
    // Its source is known now, but the new entry finds no room: the store would see a next hop without a source.
    scene.routes.insert(ip("10.0.0.1"), via(&ip("10.0.0.1"), 0));
    assert_eq!(converge(&mut tables, &scene).len(), 1);
    assert_eq!(tables.actual().next_hops[&ip("10.0.0.1")], hop(0));
    assert_eq!(chosen(&tables.store.maps, &keys()[0]), [Reason::BackendUnreachable].into());
}
