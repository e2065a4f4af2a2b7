//! What the agent says of itself: the one picture that `/status`, the commands and the metrics are made from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Everything, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The version of the maps' layout.
    pub abi: u32,
    /// The agent's process id.
    pub pid: u32,
    /// When the agent started, in seconds since 1970.
    pub started: u64,
    /// Where the maps and links are pinned.
    pub pin_path: PathBuf,
    /// Whether the configuration has been applied and every interface has its program.
    pub ready: bool,
    /// Everything that an operator should look at, in sentences.
    pub problems: Vec<String>,
    /// The configuration.
    pub config: ConfigStatus,
    /// The interfaces that the configuration names.
    pub interfaces: Vec<InterfaceStatus>,
    /// The services, by VIP, protocol and port.
    pub services: Vec<ServiceStatus>,
    /// How often each reason was given to a packet, by its name; `forwarded` is the sum over all backends less what has
    /// reasons of its own. `not_ours` is not counted.
    pub reasons: BTreeMap<String, u64>,
    /// What becomes of the replies of this host's pods.
    pub replies: Vec<ReplyStatus>,
    /// Flows that were recorded since the maps were made.
    pub flows_recorded: u64,
    /// How full the maps are.
    pub maps: Vec<MapStatus>,
    /// Tables built since the agent started.
    pub tables_built: u64,
}

/// The configuration and how it came to be in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file.
    pub file: PathBuf,
    /// Counts up with each configuration that was applied; 0 before the first.
    pub generation: u64,
    /// When the one in force was applied, in seconds since 1970.
    pub applied: u64,
    /// How many new versions of the file were refused since the agent started.
    pub errors: u64,
    /// Why the newest version of the file is not in force.
    pub error: Option<String>,
    /// The seed of hash and tables.
    pub hash_seed: u64,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index; `None` while there is no such interface.
    pub index: Option<u32>,
    /// Whether it has the edge role.
    pub edge: bool,
    /// Whether it has the node role.
    pub node: bool,
    /// Whether our program is attached.
    pub attached: bool,
    /// Whether our program on pods' replies is attached to its way out.
    pub replies: bool,
    /// What is not as it is best, but works.
    pub remark: Option<String>,
    /// Why not.
    pub problem: Option<String>,
}

/// A service: one VIP, protocol and port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `name/port`.
    pub label: String,
    /// The VIP.
    pub address: Option<IpAddr>,
    /// The protocol: `TCP` or `UDP`.
    pub protocol: String,
    /// The port; 0 for all.
    pub port: u16,
    /// Name and version of the algorithm, as `rendezvous v1`.
    pub algorithm: String,
    /// Number of slots.
    pub slots: u32,
    /// Whether the source alone is hashed.
    pub source_affinity: bool,
    /// Whether it is in the maps.
    pub installed: bool,
    /// Why it is not in the maps as configured.
    pub problem: Option<String>,
    /// Packets forwarded since the service is in the maps (its removed backends' included while this agent runs).
    pub packets: u64,
    /// Their bytes, from the clients' IP headers on.
    pub bytes: u64,
    /// Its backends, by address.
    pub backends: Vec<BackendStatus>,
    /// `host` or `pod`.
    pub delivery: String,
    /// Packets handed to its pods on this host since the service is in the maps (its removed pods' included while this
    /// agent runs).
    pub pod_packets: u64,
    /// Their bytes, from the clients' IP headers on.
    pub pod_bytes: u64,
    /// Its pods on this host, by address and port; none on a host that is no node.
    pub pods: Vec<PodStatus>,
}

/// A pod of a service on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its address.
    pub address: IpAddr,
    /// The port in the pod.
    pub port: u16,
    /// `ready` or `draining`.
    pub state: String,
    /// Its weight as configured.
    pub weight: u32,
    /// How many slots of this host's table it owns.
    pub slots: u32,
    /// Packets handed to it.
    pub packets: u64,
    /// Their bytes, from the clients' IP headers on.
    pub bytes: u64,
    /// Whether its flows are recorded.
    pub recorded: bool,
    /// The device that leads to it.
    pub device: Option<String>,
    /// Whether that is there: without it nothing is handed to the pod.
    pub live: bool,
    /// Why there is none.
    pub problem: Option<String>,
}

/// What becomes of the replies from one port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyStatus {
    /// The pod's address.
    pub pod: IpAddr,
    /// The port in the pod.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The VIP that they leave as, where no record says another.
    pub vip: IpAddr,
    /// The VIP's port.
    pub vip_port: u16,
    /// Whether records alone say which VIP they leave as.
    pub recorded: bool,
    /// Whether one without a record leaves as it is; else it is dropped, where records alone say it.
    pub direct: bool,
    /// Packets that left as the VIP's.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Where packets are sent.
    pub address: IpAddr,
    /// `ready` or `draining`.
    pub state: String,
    /// Its weight as configured.
    pub weight: u32,
    /// Whether it runs our node program.
    pub agent: bool,
    /// How many slots it owns.
    pub slots: u32,
    /// Packets sent to it.
    pub packets: u64,
    /// Their bytes, from the clients' IP headers on.
    pub bytes: u64,
    /// Whether there is a way to it. Without a way or a problem, this host does not send to it, or cannot say yet.
    pub reachable: bool,
    /// The way: device, gateway, MAC, MTU; or `this host`.
    pub via: Option<String>,
    /// Why there is no way.
    pub problem: Option<String>,
}

/// How full a map is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapStatus {
    /// What it holds: `services`, `backends`, `slots`, `next_hops`, and on a node `pods`, `pod_slots`,
    /// `pod_devices`, `replies`, `internal_networks`, `records`.
    pub name: String,
    /// In use; `None` for `records`, which only `beeline flows` and `beeline status --maps` count.
    pub used: Option<u64>,
    /// As many as fit.
    pub capacity: u64,
}

/// How many problems are shown at once: a cable that is out can make one for every backend.
const PROBLEMS_SHOWN: usize = 20;

impl Status {
    /// The first problems, as many as people read, and how many more there are.
    pub fn first_problems(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let more = self.problems.len().saturating_sub(PROBLEMS_SHOWN);
        let rest = (more > 0)
            .then(|| Cow::Owned(format!("and {more} more: see beeline services, beeline backends, beeline pods")));
        self.problems.iter().take(PROBLEMS_SHOWN).map(|problem| Cow::Borrowed(problem.as_str())).chain(rest)
    }
}

impl ServiceStatus {
    /// The VIP for people; `-` for none.
    pub(crate) fn vip(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| match self.address {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("-"),
        })
    }

    /// Whether `name` means this service: its label, the name before the port's, its VIP, or its VIP and port.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let part = self.label.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let address =
            |address: IpAddr| name.parse() == Ok(address) || name.parse() == Ok(SocketAddr::from((address, self.port)));
        part || self.address.is_some_and(address)
    }
}

impl PodStatus {
    /// Whether it drains.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.state == "draining"
    }
}

impl BackendStatus {
    /// Whether it drains.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.state == "draining"
    }

    /// Whether it should be sent to and cannot be.
    #[must_use]
    pub fn unreachable(&self) -> bool {
        !self.reachable && self.problem.is_some()
    }
}

/// The socket on which the agent with these pins answers `/status`.
#[must_use]
pub fn socket_path(pin_path: &Path) -> PathBuf {
    let name: Vec<_> = pin_path.components().skip(1).map(|part| part.as_os_str().to_string_lossy()).collect();
    Path::new("/run/beeline").join(format!("{}.sock", name.join("-")))
}

#[cfg(test)]
pub(crate) use tests::sample;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_path_has_a_socket_of_its_own() {
        let path = socket_path(Path::new("/sys/fs/bpf/beeline-edge1"));
        assert_eq!(path, Path::new("/run/beeline/sys-fs-bpf-beeline-edge1.sock"));
    }

    #[test]
    fn a_service_has_several_names() {
        let service = &sample().services[0];
        for name in ["web/http", "web", "198.51.100.10", "198.51.100.10:80"] {
            assert!(service.is_called(name), "{name}");
        }
        for name in ["we", "web/", "http", "198.51.100.1", "198.51.100.10:81", ""] {
            assert!(!service.is_called(name), "{name}");
        }
    }

    #[test]
    fn a_thousand_problems_fit_on_a_screen() {
        let problems = (0..1000).map(|number| format!("problem {number}")).collect();
        let status = Status { problems, ..Status::default() };
        let shown: Vec<_> = status.first_problems().collect();
        assert_eq!(shown.len(), 21);
        assert_eq!(shown[19], "problem 19");
        assert_eq!(shown[20], "and 980 more: see beeline services, beeline backends, beeline pods");
        assert_eq!(sample().first_problems().collect::<Vec<_>>(), sample().problems);
    }

    const UNREACHABLE: &str = "10.0.0.12 does not answer on eth0 (ARP): is that host up, and on this network?";
    const NO_DEVICE: &str =
        "no route leads to 10.244.1.12: the pod is not on this host (any more), or its network is not set up";
    const FULL: &str =
        "no room for more slots: the map holds 4096; raise maps.slots and restart after `beeline detach`";
    const NO_INTERFACE: &str = "there is no interface eth1; waiting for it";
    const REFUSED: &str = "/etc/beeline/lb.yaml:12:10: services[1].slots: 5000 is not a power of two; the nearest are \
        4096 and 8192\n/etc/beeline/lb.yaml:14:24: services[1].backends[0].address: \"10.0.0\" is not an IP address";

    /// A status with a bit of everything.
    pub(crate) fn sample() -> Status {
        let backend = |last, state: &str, slots, problem: Option<&str>| BackendStatus {
            address: IpAddr::from([10, 0, 0, last]),
            state: state.to_owned(),
            weight: 100,
            agent: false,
            slots,
            packets: u64::from(slots) / 4,
            bytes: u64::from(slots) * 100,
            reachable: problem.is_none(),
            via: problem.is_none().then(|| "eth0 02:00:00:00:00:02 mtu 1500".to_owned()),
            problem: problem.map(str::to_owned),
        };
        let pod = |last, state: &str, slots, problem: Option<&str>| PodStatus {
            address: IpAddr::from([10, 244, 1, last]),
            port: 8080,
            state: state.to_owned(),
            weight: 100,
            slots,
            packets: u64::from(slots) / 2,
            bytes: u64::from(slots) * 100,
            recorded: last == 11,
            device: problem.is_none().then(|| format!("veth{last}")),
            live: problem.is_none(),
            problem: problem.map(str::to_owned),
        };
        let reply = |last, recorded| ReplyStatus {
            pod: IpAddr::from([10, 244, 1, last]),
            port: 8080,
            protocol: "TCP".to_owned(),
            vip: IpAddr::from([198, 51, 100, 10]),
            vip_port: 80,
            recorded,
            direct: false,
            packets: 400,
            bytes: 90_000,
        };
        let web = ServiceStatus {
            label: "web/http".to_owned(),
            address: Some(IpAddr::from([198, 51, 100, 10])),
            protocol: "TCP".to_owned(),
            port: 80,
            algorithm: "rendezvous v1".to_owned(),
            slots: 4096,
            installed: true,
            packets: 1500,
            bytes: 600_000,
            backends: vec![
                backend(11, "ready", 3072, None),
                backend(12, "ready", 1024, Some(UNREACHABLE)),
                backend(13, "draining", 0, None),
            ],
            delivery: "pod".to_owned(),
            pod_packets: 700,
            pod_bytes: 280_000,
            pods: vec![
                pod(11, "ready", 768, None),
                pod(12, "ready", 256, Some(NO_DEVICE)),
                pod(13, "draining", 0, None),
            ],
            ..ServiceStatus::default()
        };
        let dns = ServiceStatus {
            label: "dns/UDP/53".to_owned(),
            address: Some("2001:db8::53".parse().expect("an address")),
            protocol: "UDP".to_owned(),
            port: 53,
            algorithm: "rendezvous v1".to_owned(),
            slots: 64,
            problem: Some(FULL.to_owned()),
            delivery: "host".to_owned(),
            ..ServiceStatus::default()
        };
        let map = |name: &str, used, capacity| MapStatus { name: name.to_owned(), used: Some(used), capacity };
        let attached = InterfaceStatus {
            name: "eth0".to_owned(),
            index: Some(2),
            edge: true,
            node: true,
            attached: true,
            ..InterfaceStatus::default()
        };
        let missing = InterfaceStatus {
            name: "eth1".to_owned(),
            edge: true,
            problem: Some(NO_INTERFACE.to_owned()),
            ..InterfaceStatus::default()
        };
        Status {
            version: "0.1.0".to_owned(),
            abi: 1,
            pid: 4242,
            started: 1_700_000_000,
            pin_path: PathBuf::from("/sys/fs/bpf/beeline"),
            ready: false,
            problems: vec![
                REFUSED.to_owned(),
                NO_INTERFACE.to_owned(),
                format!("web/http: {UNREACHABLE}"),
                format!("dns/UDP/53: {FULL}"),
                format!("pod 10.244.1.12: {NO_DEVICE}"),
            ],
            config: ConfigStatus {
                file: PathBuf::from("/etc/beeline/lb.yaml"),
                generation: 3,
                applied: 1_700_090_000,
                errors: 2,
                error: Some(REFUSED.to_owned()),
                hash_seed: 7,
            },
            interfaces: vec![attached, missing],
            services: vec![web, dns],
            reasons: [("forwarded", 1490), ("icmp_error_forwarded", 10), ("unknown_port", 12), ("hairpin", 0)]
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
            replies: vec![reply(11, true), reply(12, false)],
            flows_recorded: 321,
            maps: vec![map("services", 2, 10_000), map("slots", 4096, 4096)],
            tables_built: 5,
        }
    }
}
