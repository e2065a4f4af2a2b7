//! Reads what the checks look at. Nothing is written; what cannot be read is said to be so.

mod links;
mod offloads;
mod programs;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;

pub use self::links::{Device, Route};
pub use self::offloads::Offloads;
pub use self::programs::{OnTc, Program, Xdp};
pub use self::tools::Rules;
use super::node_interfaces;
use crate::config::Config;
use crate::datapath::pins::{BPF_FS, Pins};
use crate::status::Status;

/// What a host is like at one moment.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's release, as `uname -r` has it.
    pub release: String,
    /// The effective capabilities of this process, by their numbers in linux/capability.h.
    pub capabilities: u64,
    /// Whether the kernel tells its types.
    pub btf: bool,
    /// Where the BPF filesystem is.
    pub bpf_filesystem: BpfFilesystem,
    /// The interfaces.
    pub devices: Vec<Device>,
    /// The routes of all tables and both families.
    pub routes: Vec<Route>,
    /// Indexes of the interfaces that carry a default route: of IPv4, of IPv6.
    pub uplinks: [BTreeSet<u32>; 2],
    /// All addresses of this host.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether the pins under pinPath can be listed, or why not.
    pub pins: Result<(), String>,
    /// Settings under `/proc/sys`, by path; those that cannot be read are missing.
    pub settings: BTreeMap<String, i64>,
    /// The packet filters, one for each tool that is installed; not looked at without the right to.
    pub rules: Vec<Rules>,
    /// What the agent says, or why it does not.
    pub agent: Result<Status, Silence>,
}

/// Why nothing is known of the agent.
#[derive(Clone, Debug)]
pub struct Silence {
    /// In words.
    pub why: String,
    /// This user may not ask it.
    pub forbidden: bool,
}

/// Whether pins can be made at pinPath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfFilesystem {
    /// It is there.
    There,
    /// It is not, and the agent mounts it.
    Mountable,
    /// It is not.
    Missing,
}

/// Numbers of capabilities (linux/capability.h). `CAP_PERFMON` and `CAP_BPF` came with Linux 5.8; before them, and in
/// place of them, `CAP_SYS_ADMIN` counts.
pub(super) mod capability {
    /// Networks, XDP and TC.
    pub(in crate::doctor) const NET_ADMIN: u32 = 12;
    /// All of it.
    pub(in crate::doctor) const SYS_ADMIN: u32 = 21;
    /// Programs that read packets by pointers.
    pub(in crate::doctor) const PERFMON: u32 = 38;
    /// Maps and programs.
    pub(in crate::doctor) const BPF: u32 = 39;
}

impl Facts {
    /// Reads them, in the network namespace of the calling thread. `agent` is what asking the agent gave.
    ///
    /// # Errors
    /// The kernel's interfaces and routes cannot be listed.
    pub fn read(config: &Config, agent: Result<Status, Silence>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let network = runtime.block_on(links::read(config)).context("asking the kernel for interfaces and routes")?;
        let mut facts = Self {
            release: uname()?.release().to_string_lossy().into_owned(),
            capabilities: capabilities()?,
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            bpf_filesystem: bpf_filesystem(&config.pin_path),
            devices: network.devices,
            routes: network.routes,
            uplinks: network.uplinks,
            addresses: network.addresses,
            pins: Pins::new(&config.pin_path).all_links().map(drop).map_err(|error| format!("{error:#}")),
            settings: settings(config),
            rules: Vec::new(),
            agent,
        };
        if config.node.is_some() && facts.may(capability::NET_ADMIN) {
            facts.rules = tools::rules();
        }
        Ok(facts)
    }

    /// Whether this process has a capability, or the one that stands for all of them.
    pub(super) fn may(&self, capability: u32) -> bool {
        let has = |number: u32| self.capabilities >> number & 1 == 1;
        // CAP_NET_ADMIN has no stand-in.
        has(capability) || (capability != capability::NET_ADMIN && has(capability::SYS_ADMIN))
    }

    /// A setting under `/proc/sys`.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.settings.get(path).copied()
    }

    /// The interface of this name.
    pub(super) fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// Whether a route to some pod of the configuration leads to this device, and the device is no uplink.
    pub(super) fn leads_to_pod(&self, config: &Config, device: &Device) -> bool {
        let mut pods = config.services.iter().flat_map(|service| &service.backends).flat_map(|backend| &backend.pods);
        !node_interfaces(config).contains(&device.name)
            && pods.any(|pod| {
                let leads =
                    |route: &&Route| route.unicast && route.prefix.length > 0 && route.prefix.contains(&pod.address);
                let best = self.routes.iter().filter(leads).max_by_key(|route| route.prefix.length);
                best.is_some_and(|route| route.interface == Some(device.index))
            })
    }
}

fn bpf_filesystem(path: &Path) -> BpfFilesystem {
    let there = path.ancestors().find(|path| path.is_dir());
    if there.is_some_and(|path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)) {
        BpfFilesystem::There
    } else if path.starts_with(BPF_FS) && Path::new(BPF_FS).is_dir() {
        BpfFilesystem::Mountable
    } else {
        BpfFilesystem::Missing
    }
}

/// `CapEff` of proc_pid_status(5).
fn capabilities() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff in it")?;
    u64::from_str_radix(line.trim(), 16).context("CapEff in /proc/self/status")
}

fn settings(config: &Config) -> BTreeMap<String, i64> {
    let mut paths: Vec<String> = [
        "net/core/bpf_jit_enable",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/all/arp_ignore",
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
        "net/netfilter/nf_conntrack_tcp_be_liberal",
    ]
    .map(str::to_owned)
    .into();
    for name in node_interfaces(config) {
        paths
            .extend(["rp_filter", "arp_ignore", "forwarding"].map(|setting| format!("net/ipv4/conf/{name}/{setting}")));
        paths.push(format!("net/ipv6/conf/{name}/force_forwarding"));
    }
    let value = |path: String| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(&path)).ok()?;
        Some((path, text.trim().parse().ok()?))
    };
    paths.into_iter().filter_map(value).collect()
}
