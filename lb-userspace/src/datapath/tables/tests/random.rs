//! Random histories, with a random clock, restarts and deaths between any two writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::address::Family;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::checked::Checked;
use super::scene::{
    BACKENDS, ROOMY, Scene, assert_as_fresh, assert_nothing_leaks, checked, converge, ip, keys, pod_address, prefix,
    service, via,
};
use crate::config::MssClamp;
use crate::datapath::tables::Tables;
use crate::model::{Backend, Delivery, Pod, PodKey, Prefix, Service, TunnelSource};
use crate::plan::{HostRoles, PodDevice, Route};

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
    Own(BTreeSet<IpAddr>),
    Roles(HostRoles),
    /// Let a service be delivered to these pods: by backend.
    Pods(usize, BTreeMap<usize, BTreeMap<PodKey, Pod>>),
    Device(u8, Option<PodDevice>),
    DirectPodAccess(bool),
    Mss(u16),
    /// An interface is gone, and the kernel has let every number of it stand for none.
    Gone(u32),
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
    let pod = (1u8..6, 80u16..82, 1u32..4, any::<bool>(), any::<bool>()).prop_map(
        |(last, port, weight, draining, record)| {
            (PodKey { address: pod_address(last), port }, Pod { weight, draining, record })
        },
    );
    let pods = prop::collection::vec(pod, 0..5).prop_map(|pods| pods.into_iter().collect::<BTreeMap<_, _>>());
    let pods = (key.clone(), prop::collection::btree_map(0..BACKENDS.len(), pods, 1..4));
    let device = (1u8..6, prop::option::of((1u32..5, prop::option::of(0u32..3)))).prop_map(|(last, device)| {
        Change::Device(last, device.map(|(interface, namespace)| PodDevice { interface, namespace }))
    });
    let prefixes = prop::collection::btree_set(select(vec![prefix("10.0.0.0/8"), prefix("fd00::/64")]), 0..3);
    // The last one is a VIP, too.
    let own = vec![ip("192.0.2.1"), ip("2001:db8:ffff::1"), ip(BACKENDS[0]), ip(BACKENDS[1]), ip("198.51.100.1")];
    let own = select(own);
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
        6 => pods.prop_map(|(key, pods)| Change::Pods(key, pods)),
        4 => device,
        1 => any::<bool>().prop_map(Change::DirectPodAccess),
        1 => (1000u16..1003).prop_map(Change::Mss),
        1 => (1u32..5).prop_map(Change::Gone),
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
        Change::Pods(key, pods) => {
            // To all ports of a VIP there is no delivery to pods.
            let key = if key % 3 == 1 { key - 1 } else { key };
            let of_family = |pod: PodKey| match (keys()[key].family(), pod.address) {
                (Family::V6, IpAddr::V4(address)) => PodKey { address: address.to_ipv6_mapped().into(), ..pod },
                _ => pod,
            };
            let nodes = pods.into_iter().map(|(index, pods)| {
                let pods: BTreeMap<_, _> = pods.into_iter().map(|(key, pod)| (of_family(key), pod)).collect();
                let rank = pods.values().map(|pod| pod.weight).sum::<u32>().max(1);
                (ip(BACKENDS[index]), Backend { rank, share: rank, draining: false, agent: true, pods })
            });
            let service =
                Service { delivery: Delivery::Pod, backends: nodes.collect(), ..service([], 64 << (key % 2)) };
            scene.put(key, service);
        }
        Change::Device(last, device) => {
            let IpAddr::V4(address) = pod_address(last) else { return };
            for pod in [IpAddr::V4(address), address.to_ipv6_mapped().into()] {
                scene.pods.remove(&pod);
                scene.pods.extend(device.map(|device| (pod, device)));
            }
        }
        Change::DirectPodAccess(direct) => scene.desired.direct_pod_access = direct,
        Change::Mss(mss) => scene.desired.mss_clamp = MssClamp::Bytes(mss),
        // As the agent hears it.
        Change::Gone(interface) => scene.pods.retain(|_, device| device.interface != interface),
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
            for change in &changes {
                if let Change::Gone(interface) = change {
                    tables.store.maps.remove_interface(*interface);
                }
            }
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
