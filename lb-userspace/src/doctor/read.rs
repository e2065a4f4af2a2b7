//! Reads what the checks look at. Nothing is written; what cannot be read is said to be so.

mod links;
mod offloads;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;

pub use self::links::{Device, Route, Xdp};
pub use self::offloads::Offloads;
use super::{delivers_to_pods, node_interfaces};
use crate::config::Config;
use crate::status::Status;

/// What a host is like at one moment.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's release, as `uname -r` has it.
    pub release: String,
    /// Whether this process is root's.
    pub root: bool,
    /// Whether the kernel tells its types.
    pub btf: bool,
    /// Whether pinPath is on a BPF filesystem.
    pub bpf_filesystem: bool,
    /// The interfaces.
    pub devices: Vec<Device>,
    /// The routes of all tables and both families.
    pub routes: Vec<Route>,
    /// All addresses of this host.
    pub addresses: BTreeSet<IpAddr>,
    /// Settings under `/proc/sys`, by path; those that cannot be read are missing.
    pub settings: BTreeMap<String, i64>,
    /// The packet filters, one for each tool.
    pub rules: Vec<Rules>,
    /// What the agent says, or why it does not.
    pub agent: Result<Status, String>,
}

/// The packet filters as a tool lists them.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The tool's name.
    pub tool: &'static str,
    /// What it wrote, or why it did not.
    pub text: Result<String, String>,
}

impl Facts {
    /// Reads them, in the network namespace of the calling thread. `agent` is what asking the agent gave.
    ///
    /// # Errors
    /// The kernel's interfaces and routes cannot be listed.
    pub fn read(config: &Config, agent: Result<Status, String>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let network = runtime.block_on(links::read()).context("asking the kernel for interfaces and routes")?;
        let mut facts = Self {
            release: uname()?.release().to_string_lossy().into_owned(),
            root: geteuid().is_root(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            bpf_filesystem: on_bpf_filesystem(&config.pin_path),
            devices: network.devices,
            routes: network.routes,
            addresses: network.addresses,
            settings: BTreeMap::new(),
            rules: Vec::new(),
            agent,
        };
        facts.settings = settings(config);
        if config.node.is_some() {
            facts.rules = rules();
        }
        if delivers_to_pods(config) {
            for device in &mut facts.devices {
                if node_interfaces(config).contains(&device.name) {
                    device.egress = links::egress(&device.name);
                }
            }
        }
        Ok(facts)
    }

    /// A setting under `/proc/sys`.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.settings.get(path).copied()
    }

    /// The interface of this name.
    pub(super) fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// The default routes of a family.
    pub(super) fn default_routes(&self, v4: bool) -> impl Iterator<Item = &Route> {
        self.routes
            .iter()
            .filter(move |route| route.unicast && route.prefix.length == 0 && route.prefix.address.is_ipv4() == v4)
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

fn on_bpf_filesystem(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.is_dir());
    there.is_some_and(|path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC))
}

fn settings(config: &Config) -> BTreeMap<String, i64> {
    let mut paths: Vec<String> = [
        "net/core/bpf_jit_enable",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/all/arp_ignore",
        "net/ipv4/conf/all/arp_announce",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
        "net/netfilter/nf_conntrack_tcp_be_liberal",
    ]
    .map(str::to_owned)
    .into();
    for name in node_interfaces(config) {
        paths.push(format!("net/ipv4/conf/{name}/rp_filter"));
        paths.extend(["ipv4", "ipv6"].map(|family| format!("net/{family}/conf/{name}/forwarding")));
    }
    let value = |path: String| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(&path)).ok()?;
        Some((path, text.trim().parse().ok()?))
    };
    paths.into_iter().filter_map(value).collect()
}

fn rules() -> Vec<Rules> {
    let tools: [(&str, &[&str]); 3] =
        [("nft", &["-j", "list", "ruleset"]), ("iptables-save", &[]), ("ip6tables-save", &[])];
    tools.map(|(tool, arguments)| Rules { tool, text: listed(tool, arguments) }).into()
}

fn listed(tool: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(tool).args(arguments).output().map_err(|error| format!("cannot be run: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("its rules cannot be listed: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}
