//! Random histories, with a random clock, restarts and deaths between any two writes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::checked::Checked;
use super::scene::{
    BACKENDS, ROOMY, Scene, assert_as_fresh, assert_nothing_leaks, checked, converge, ip, keys, prefix, service, via,
};
use crate::datapath::tables::Tables;
use crate::model::{Prefix, Service, TunnelSource};
use crate::plan::{HostRoles, Route};

/// What may happen between two looks at the state.
#[derive(Clone, Debug)]
enum Change {
    Put(usize, Service),
    Remove(usize),
    /// Toggle the share of one of its backends.
    Drain(usize, Index),
    Route(usize, Route),
    Seed(u64),
    Source(TunnelSource),
    Trust(BTreeSet<Prefix>),
    Own(BTreeSet<std::net::IpAddr>),
    Roles(HostRoles),
    /// Another agent takes over.
    Restart,
}

fn change() -> impl Strategy<Value = Change> {
    let key = 0..keys().len();
    let member = prop::option::of((1u32..4, 0u32..4));
    let members = prop::collection::vec(member, BACKENDS.len());
    let put = (key.clone(), members, 6u32..8, any::<bool>()).prop_map(|(key, members, log2_slots, affinity)| {
        let members = members.into_iter().enumerate();
        let members = members.filter_map(|(index, member)| member.map(|(rank, share)| (index, rank, share)));
        Change::Put(key, Service { source_affinity: affinity, ..service(members, 1 << log2_slots) })
    });
    let route = (0..BACKENDS.len(), 0u8..5, any::<bool>()).prop_map(|(backend, way, known)| {
        let address = ip(BACKENDS[backend]);
        let route = match (way, via(&address, way)) {
            (3, _) => Route::Local,
            (4, Route::Via { source, .. }) => Route::Unreachable { source: known.then_some(source) },
            (_, via) => via,
        };
        Change::Route(backend, route)
    });
    let prefixes = prop::collection::btree_set(select(vec![prefix("10.0.0.0/8"), prefix("fd00::/64")]), 0..3);
    // The last one is a VIP, too.
    let own = select(vec![ip("192.0.2.1"), ip("2001:db8:ffff::1"), ip("198.51.100.1")]);
    prop_oneof![
        8 => put,
        3 => key.clone().prop_map(Change::Remove),
        3 => (key, any::<Index>()).prop_map(|(key, backend)| Change::Drain(key, backend)),
        6 => route,
        1 => (0u64..3).prop_map(Change::Seed),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(v4, v6)| Change::Source(TunnelSource {
            ipv4: v4.then(|| prefix("10.200.0.0/16")),
            ipv6: v6.then(|| prefix("fd00:bee::/64")),
        })),
        1 => prefixes.prop_map(Change::Trust),
        1 => prop::collection::btree_set(own, 0..4).prop_map(Change::Own),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(edge, node)| Change::Roles(HostRoles { edge, node })),
        1 => Just(Change::Restart),
    ]
}

fn make(scene: &mut Scene, change: &Change) {
    match change.clone() {
        Change::Put(key, service) => scene.put(key, service),
        Change::Remove(key) => {
            scene.desired.services.remove(&keys()[key]);
        }
        Change::Drain(key, index) => {
            let Some(service) = scene.desired.services.get_mut(&keys()[key]) else { return };
            let count = service.backends.len().max(1);
            if let Some(backend) = service.backends.values_mut().nth(index.index(count)) {
                backend.share = if backend.share == 0 { backend.rank } else { 0 };
            }
        }
        Change::Route(backend, route) => {
            scene.routes.insert(ip(BACKENDS[backend]), route);
        }
        Change::Seed(seed) => scene.desired.hash_seed = seed,
        Change::Source(source) => scene.desired.tunnel_source = source,
        Change::Trust(prefixes) => scene.desired.trusted_sources = prefixes,
        Change::Own(own) => scene.own = own,
        Change::Roles(roles) => scene.roles = roles,
        Change::Restart => {}
    }
}

/// Another agent on the same maps. Starting takes longer than any program runs, so that the quarantine starts anew.
fn restart(tables: &Tables<Checked>) -> Tables<Checked> {
    let store = Checked::new(tables.store.maps.clone(), tables.store.clock);
    let clock = store.clock;
    let (tables, notes) = Tables::adopt(store, clock).expect("host maps can be read");
    assert_eq!(notes, Vec::<String>::new(), "whatever was left holds together");
    tables
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_history_ends_as_a_fresh_start(
        rounds in prop::collection::vec((prop::collection::vec(change(), 1..4), 0u64..1500), 1..14)
    ) {
        let mut tables = checked(ROOMY, Instant::now());
        let mut scene = Scene::empty();
        for (changes, pause) in rounds {
            changes.iter().for_each(|change| make(&mut scene, change));
            if changes.iter().any(|change| matches!(change, Change::Restart)) {
                tables = restart(&tables);
            }
            assert_eq!(converge(&mut tables, &scene), Vec::<String>::new());
            assert_as_fresh(&tables, &scene);
            tables.store.clock += Duration::from_millis(pause);
        }
        assert_nothing_leaks(tables);
    }

    #[test]
    fn a_dead_agent_leaves_maps_that_the_next_one_takes_over(
        before in prop::collection::vec(change(), 1..12),
        after in prop::collection::vec(change(), 1..6),
        dies in any::<Index>(),
    ) {
        let mut scene = Scene::some();
        before.iter().for_each(|change| make(&mut scene, change));
        let start = Instant::now();
        let mut first = checked(ROOMY, start);
        assert_eq!(converge(&mut first, &scene), Vec::<String>::new());
        let mut next = scene.clone();
        after.iter().for_each(|change| make(&mut next, change));
        // How many writes there are is known once they were done.
        let mut whole = restart(&first);
        whole.seed = Some(scene.desired.hash_seed);
        let adopted = whole.store.log.len();
        assert_eq!(adopted, 0, "nothing differed, and {:?} were written", whole.store.log);
        converge(&mut whole, &next);
        let writes = whole.store.log.len();
        first.store.left = Some(dies.index(writes + 1));
        converge(&mut first, &next);
        let mut second = restart(&first);
        assert_eq!(converge(&mut second, &next), Vec::<String>::new());
        assert_as_fresh(&second, &next);
        assert_nothing_leaks(second);
    }
}
