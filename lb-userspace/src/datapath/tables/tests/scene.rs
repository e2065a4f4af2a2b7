//! A small world: services, backends and ways to them, and packets to ask it with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use lb_common::address::Family;
use lb_common::checksum;
use lb_common::maps::{NextHop, PREFILTER_WORDS, PodCell, ReplyTarget, ServiceKey};
use lb_common::stage::Roles;
use lb_common::verdict::Reason;

use super::checked::Checked;
use crate::datapath::host::{HostFrame, HostMaps};
use crate::datapath::store::{Capacity, PodStore, Store};
use crate::datapath::tables::Tables;
use crate::model::{Algorithm, Backend, Delivery, Desired, Pod, PodKey, Prefix, Service, key_address};
use crate::plan::{self, Host, HostRoles, PodDevice, Route, Wanted};

/// Room for every change of a test while nothing comes out of quarantine.
pub(super) const ROOMY: Capacity = Capacity {
    services: 256,
    log2_backends: 12,
    log2_slots: 16,
    next_hops: 256,
    counters: 1024,
    log2_pods: 12,
    log2_pod_cells: 16,
    pod_counters: 1024,
    pod_devices: 256,
    replies: 512,
};

/// VIPs: the first two have the same words.
pub(super) const VIPS: [&str; 3] = ["198.51.100.1", "c633:6401::", "2001:db8::1"];
pub(super) const BACKENDS: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2"];

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').expect("a prefix");
    Prefix { address: ip(address), length: length.parse().expect("a length") }
}

/// Each VIP with TCP port 80, all TCP ports, and UDP port 53.
pub(super) fn keys() -> Vec<ServiceKey> {
    let ports = [(6, 80), (6, 0), (17, 53)];
    let keys = VIPS.iter().map(|vip| ip(vip)).flat_map(|vip| {
        let family = if vip.is_ipv4() { Family::V4 } else { Family::V6 };
        ports.map(|(protocol, port)| ServiceKey::new(vip.into(), family, protocol, port))
    });
    keys.collect()
}

pub(super) fn hop(number: u8) -> NextHop {
    NextHop { macs: [number; 12], interface: 2 + u32::from(number), mtu: 1500, reserved: [0; 3] }
}

pub(super) fn via(backend: &IpAddr, number: u8) -> Route {
    let source = if backend.is_ipv4() { "192.0.2.1" } else { "2001:db8:ffff::1" };
    Route::Via { next_hop: hop(number), source: ip(source) }
}

pub(super) fn service(backends: impl IntoIterator<Item = (usize, u32, u32)>, slots: u32) -> Service {
    let backends = backends.into_iter().map(|(index, rank, share)| {
        (
            ip(BACKENDS[index]),
            Backend { rank, share, draining: share == 0, agent: index % 2 == 0, pods: BTreeMap::new() },
        )
    });
    Service {
        name: "web".to_owned(),
        port_name: None,
        algorithm: Algorithm::Rendezvous,
        slots,
        source_affinity: false,
        delivery: Delivery::Host,
        backends: backends.collect(),
    }
}

/// An IPv4 pod by its last byte.
pub(super) fn pod_address(last: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, last])
}

fn pod_device(last: u8) -> PodDevice {
    PodDevice { interface: 10 + u32::from(last), namespace: Some(u32::from(last)) }
}

/// All that the plan is made from.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) desired: Desired,
    pub(super) roles: HostRoles,
    pub(super) routes: BTreeMap<IpAddr, Route>,
    pub(super) own: BTreeSet<IpAddr>,
    /// Where pods are, if they are on this host.
    pub(super) pods: BTreeMap<IpAddr, PodDevice>,
}

impl Scene {
    /// No service, every backend on its own way.
    pub(super) fn empty() -> Self {
        let routes = BACKENDS.iter().zip(0..).map(|(text, number)| (ip(text), via(&ip(text), number)));
        Self {
            desired: Desired { hash_seed: 7, ..Desired::default() },
            roles: HostRoles { edge: true, node: true },
            routes: routes.collect(),
            own: BTreeSet::from([ip("192.0.2.1"), ip("2001:db8:ffff::1")]),
            pods: (1..5).map(|pod| (pod_address(pod), pod_device(pod))).collect(),
        }
    }

    /// This host is the node 10.0.0.1, and there is no service.
    pub(super) fn node() -> Self {
        let mut scene = Self::empty();
        scene.own.insert(ip(BACKENDS[0]));
        scene
    }

    /// A service with this node alone. Each pod: the last byte of its address, its port, and whether it drains.
    pub(super) fn put_pods(&mut self, key: usize, pods: &[(u8, u16, bool)], slots: u32) {
        let pods = pods.iter().map(|&(last, port, draining)| {
            (PodKey { address: pod_address(last), port }, Pod { weight: 100, draining, record: false })
        });
        let mut service = Service { delivery: Delivery::Pod, ..service([(0, 100, 100)], slots) };
        service.backends.values_mut().for_each(|backend| backend.pods.extend(pods.clone()));
        self.put(key, service);
    }

    /// Another node without a pod of interest here.
    pub(super) fn add_node(&mut self, key: usize, address: &str) {
        let service = self.desired.services.get_mut(&keys()[key]).expect("the service");
        let node = Backend { rank: 100, share: 100, draining: false, agent: true, pods: BTreeMap::new() };
        service.backends.insert(ip(address), node);
    }

    pub(super) fn drain(&mut self, key: usize, address: &str) {
        let service = self.desired.services.get_mut(&keys()[key]).expect("the service");
        let backend = service.backends.get_mut(&ip(address)).expect("the backend");
        (backend.share, backend.draining) = (0, true);
    }

    /// A service of each VIP, with two to four backends.
    pub(super) fn some() -> Self {
        let mut scene = Self::empty();
        scene.put(0, service([(0, 100, 100), (1, 50, 50)], 64));
        scene.put(1, service([(1, 100, 100), (2, 100, 0), (4, 10, 10)], 128));
        scene.put(4, service([(0, 1, 1), (3, 1, 1), (4, 1, 1), (5, 2, 2)], 64));
        scene.put(8, service([], 64));
        scene.desired.trusted_sources = BTreeSet::from([prefix("10.200.0.0/16")]);
        scene
    }

    pub(super) fn put(&mut self, key: usize, service: Service) {
        self.desired.services.insert(keys()[key], service);
    }

    pub(super) fn wanted(&self) -> Wanted {
        // As the agent does: ways to backends alone.
        let backends = self.desired.backend_addresses();
        let routes = self.routes.iter().filter(|(a, _)| backends.contains(*a)).map(|(a, r)| (*a, *r)).collect();
        let host =
            Host { roles: self.roles, routes: &routes, own: &self.own, pods: &self.pods, uplink_mtu: Some(1500) };
        plan::wanted(&self.desired, &host)
    }

    pub(super) fn fresh(&self, capacity: Capacity) -> Tables<HostMaps> {
        let mut tables = Tables::new(HostMaps::new(capacity));
        for step in plan::steps(&tables.actual(), &self.wanted()) {
            tables.apply(&step, Instant::now()).expect("an empty store has room");
        }
        tables
    }
}

/// The same tables over a store that looks at every write from now on.
pub(super) fn watched(tables: Tables<HostMaps>, clock: Instant) -> Tables<Checked> {
    Tables {
        store: Checked::new(tables.store, clock),
        seed: tables.seed,
        installed: tables.installed,
        tunnel_addresses: tables.tunnel_addresses,
        trusted: tables.trusted,
        next_hops: tables.next_hops,
        hop_numbers: tables.hop_numbers,
        prefilter_users: tables.prefilter_users,
        ids: tables.ids,
        counters: tables.counters,
        hops: tables.hops,
        slots: tables.slots,
        backends: tables.backends,
        pods: tables.pods,
        replies: tables.replies,
        freed: tables.freed,
        builder: tables.builder,
    }
}

pub(super) fn checked(capacity: Capacity, clock: Instant) -> Tables<Checked> {
    Tables::new(Checked::new(HostMaps::new(capacity), clock))
}

/// As the agent converges; the errors of the steps that failed.
pub(super) fn converge(tables: &mut Tables<Checked>, scene: &Scene) -> Vec<String> {
    let now = tables.store.clock;
    tables.release(now);
    let steps = plan::steps(&tables.actual(), &scene.wanted());
    steps.iter().filter_map(|step| tables.apply(step, now).err()).map(|error| format!("{error:#}")).collect()
}

/// The state is what a fresh agent would have made: every packet is treated alike, and nothing is left to do.
pub(super) fn assert_as_fresh(tables: &Tables<Checked>, scene: &Scene) {
    let (fresh, there) = (scene.fresh(tables.store.capacity()), &tables.store.maps);
    assert_eq!(plan::steps(&tables.actual(), &scene.wanted()), [], "a converged state has no next step");
    assert_eq!(tables.actual(), fresh.actual());
    let new = fresh.store();
    for word in 0..PREFILTER_WORDS {
        assert_eq!(Store::prefilter(there, word), Store::prefilter(new, word), "word {word} of the prefilter");
    }
    assert_eq!(there.hash_keys().expect("keys"), new.hash_keys().expect("keys"));
    assert_eq!(there.tunnel_addresses().expect("addresses"), new.tunnel_addresses().expect("addresses"));
    assert_eq!(there.trusted().expect("prefixes"), new.trusted().expect("prefixes"));
    let of = |maps: &HostMaps| maps.services().expect("keys").into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(of(there), of(new));
    let roles = Roles { edge: scene.roles.edge, node: scene.roles.node };
    assert_eq!(deliveries(there), deliveries(new));
    assert_eq!(rewritings(there), rewritings(new));
    assert_eq!(there.mss().expect("settings"), new.mss().expect("settings"));
    assert_eq!(PodStore::internal(there).expect("networks"), PodStore::internal(new).expect("networks"));
    for frame in frames() {
        assert_eq!(outcome(there, roles, &frame), outcome(new, roles, &frame), "{frame:?}");
    }
}

/// What a node does with each slot of each service: `None` for the host, nobody for no pod, else each slot's owner with
/// the interface and the namespace.
type Delivered = Option<(bool, Vec<([u64; 2], u16, u8, Option<u32>, u32)>)>;

fn deliveries(maps: &HostMaps) -> BTreeMap<ServiceKey, Delivered> {
    let services = maps.services().expect("keys").into_iter().filter(|(key, _)| !key.is_vip_mark());
    let delivered = services.map(|(key, id)| {
        let word = PodStore::pod_word(maps, id);
        let Some(word) = word.pods() else { return (key, (!word.is_host()).then(|| (false, Vec::new()))) };
        let mut cells = vec![PodCell(0); 1 << word.log2_slots()];
        maps.read_pod_cells(word.slots(), &mut cells);
        let owners = cells.iter().map(|cell| {
            let pod = PodStore::pod(maps, word.backends() + u32::from(cell.owner()));
            let interface = Some(pod.device).filter(|device| *device != 0).and_then(|device| maps.pod_device(device));
            (pod.address.0, pod.port, pod.flags, interface, pod.namespace)
        });
        (key, Some((word.source_affinity(), owners.collect())))
    });
    delivered.collect()
}

/// Where the replies of each pod come from, and whether that is recorded or direct.
fn rewritings(maps: &HostMaps) -> BTreeMap<ServiceKey, (ReplyTarget, bool, bool)> {
    let replies = maps.replies().expect("replies").into_iter();
    let rewritten = replies.map(|(key, id)| {
        let word = PodStore::reply_word(maps, id);
        (key, (PodStore::reply_target(maps, word.target()), word.is_recorded(), word.is_direct()))
    });
    rewritten.collect()
}

/// The reason, the chosen backend by its address, and the frame as it leaves.
fn outcome(maps: &HostMaps, roles: Roles, frame: &[u8]) -> (Reason, Option<[u64; 2]>, Vec<u8>) {
    let mut frame = HostFrame::new(frame, 1);
    let (reason, trail) = maps.run(roles, &mut frame);
    let backend = trail.backend.checked_sub(1).map(|index| Store::backend(maps, index as u32).destination.0);
    (reason, backend, frame.bytes().to_vec())
}

/// The addresses of the backends that flows to a service go to.
pub(super) fn chosen(maps: &HostMaps, key: &ServiceKey) -> BTreeSet<Reason> {
    let roles = Roles { edge: true, node: true };
    let flows = (0..64).map(|flow| outcome(maps, roles, &frame(key, key.port().max(1), flow)).0);
    flows.collect()
}

/// Some flows to every service that there may be, and to ports beside.
fn frames() -> Vec<Vec<u8>> {
    let keys = keys();
    let flows = keys.iter().flat_map(|key| {
        let ports = if key.port() == 0 { vec![443, 8080] } else { vec![key.port()] };
        ports.into_iter().flat_map(move |port| (0..6).map(move |flow| frame(key, port, flow)))
    });
    flows.collect()
}

/// A TCP or UDP packet of a client.
pub(super) fn frame(key: &ServiceKey, port: u16, flow: u16) -> Vec<u8> {
    let mut bytes = vec![2; 12];
    let transport = [&(1024 + flow * 7).to_be_bytes()[..], &port.to_be_bytes(), &[0, 20, 0, 0], &[0x50; 12]].concat();
    match key_address(key) {
        IpAddr::V4(vip) => {
            bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, key.protocol(), 0, 0, 203, 0, 113, flow as u8]);
            bytes.extend(vip.octets());
            let header: [u8; 20] = bytes[14..].try_into().unwrap();
            bytes[24..26].copy_from_slice(&checksum::finish(checksum::sum(&header)).to_ne_bytes());
        }
        IpAddr::V6(vip) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, key.protocol(), 64]);
            bytes.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, flow as u8 + 1]);
            bytes.extend(vip.octets());
        }
    }
    bytes.extend(transport);
    bytes
}

/// Remove everything, wait, and see that nothing was kept.
pub(super) fn assert_nothing_leaks(mut tables: Tables<Checked>) {
    let mut scene = Scene::empty();
    scene.own.clear();
    // An agent that was just taken over does not have to know the seed to remove services.
    scene.desired.hash_seed = tables.seed.unwrap_or(7);
    assert_eq!(converge(&mut tables, &scene), Vec::<String>::new());
    tables.store.clock += crate::datapath::QUARANTINE;
    let clock = tables.store.clock;
    tables.release(clock);
    assert_eq!(tables.due(), None);
    let regions = (tables.slots.used_units(), tables.backends.used_units());
    assert_eq!((regions, tables.hops.taken(), tables.hop_numbers.len()), ((0, 0), 0, 0));
    assert_eq!((tables.ids.taken(), tables.counters.taken(), tables.prefilter_users.len()), (0, 0, 0));
    let (pods, replies) = (&tables.pods, &tables.replies);
    assert_eq!((pods.slots.used_units(), pods.entries.used_units()), (0, 0));
    assert_eq!((pods.counters.taken(), pods.numbers.taken(), pods.devices.len(), pods.changed.len()), (0, 0, 0, 0));
    assert_eq!((replies.ids.taken(), replies.targets.taken(), replies.internal.len()), (0, 0, 0));
    let maps = &tables.store.maps;
    assert_eq!(maps.replies().expect("replies"), []);
    assert!((0..PREFILTER_WORDS).all(|word| Store::prefilter(maps, word) == 0), "a bit of the prefilter is left");
    assert_eq!(maps.services().expect("keys"), []);
}
