//! A bed: network namespaces, links and processes that are private to one thread and vanish with it.
//!
//! The thread of a [`Bed`] moves into a mount namespace of its own, with its own `/run` (where `ip netns` keeps its
//! names) and its own BPF filesystem. Namespaces, pins, configuration files and logs exist there alone, so nothing
//! needs a name that is unique on the host, any number of beds run side by side, and the kernel takes everything down
//! when the last process inside is gone, whatever ended it. Processes are started with a parent-death signal, so that
//! they are gone when the thread is.
//!
//! Root only. A bed sends no packet outside of the namespaces that it made.

mod agent;
mod bulk;
mod capture;
mod config;
mod fabric;
mod hops;
mod host;
mod http;
mod pod_server;
mod pods;
pub mod policies;
mod process;
pub mod raw;
mod rig;
mod service;
mod traffic;
mod udp;
mod wait;
mod web;

use std::any::Any;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::thread::{self, ThreadId};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub use agent::{Agent, Beeline};
pub use bulk::{BULK, Bulk};
pub use capture::Capture;
pub use config::{Config, Edge, Node};
pub use fabric::{Agents, Fabric, Shape, UNDERLAY_V4, UNDERLAY_V6};
pub use host::Host;
pub use http::{Connection, Response, connect, connect_from, get};
pub use pod_server::PodServer;
pub use pods::{POD_HTTP, POD_NETWORK_V4, POD_NETWORK_V6, POD_UDP, Pod, SERVICE_UDP};
pub use process::Process;
pub use rig::Rig;
pub use service::{Backend, Delivery, PodEntry, Port, Service};
pub use traffic::{Fared, LongConnections, Outcome, Served, Traffic, ask};
pub use udp::{Said, UdpEcho, ask_name, echo};
pub use wait::{eventually, holds};
pub use web::{Hit, WebServer};

/// Where the kernel shows BPF objects by name. Inside a bed this is an empty filesystem of the bed's own.
pub const BPF_FILESYSTEM: &str = "/sys/fs/bpf";

/// Files of the bed (configuration, logs, document roots): memory that goes with the bed.
const FILES: &str = "/run/bed";

/// How much of each log a failed bed prints, bytes.
const LOG_TAIL: usize = 4096;

/// The place in which hosts are made. See the module's own text.
pub struct Bed {
    name: String,
    thread: ThreadId,
}

impl Bed {
    /// Runs `body` in a new bed, on a thread of its own, and takes everything down when it returns.
    ///
    /// Where `body` fails or panics, the ends of all logs go to standard error, since they vanish with the bed.
    ///
    /// # Errors
    /// Those of `body`; or what is missing to make a bed: root, or a kernel with BPF and namespaces.
    pub fn run<T: Send>(name: &str, body: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        if !nix::unistd::geteuid().is_root() {
            bail!("bed {name}: making network namespaces needs root: run it with sudo");
        }
        let outcome = thread::scope(|scope| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn_scoped(scope, || Self::on_this_thread(name, body))
                .context("cannot start the bed's thread")
                .map(thread::ScopedJoinHandle::join)
        })?;
        outcome.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    fn on_this_thread<T>(name: &str, body: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        make_private().with_context(|| format!("bed {name}: cannot make a private place"))?;
        let bed = Self { name: name.to_owned(), thread: thread::current().id() };
        let outcome: Result<Result<T>, Box<dyn Any + Send>> = panic::catch_unwind(AssertUnwindSafe(|| body(&bed)));
        if !matches!(outcome, Ok(Ok(_))) {
            bed.print_logs();
        }
        outcome.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// The name that the bed was given; it appears in messages alone.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A new folder for files that live as long as the bed.
    ///
    /// # Errors
    /// The folder exists, or cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(FILES).join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Adds a host: a network namespace with its loopback up, forwarding nothing, filtering nothing by reverse path.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    pub fn host(&self, name: &str) -> Result<Host> {
        Host::new(name, self.thread)
    }

    /// Prints the end of every log of the bed to standard error.
    fn print_logs(&self) {
        for (log, text) in process::logs().unwrap_or_default() {
            let mut start = text.len().saturating_sub(LOG_TAIL);
            while !text.is_char_boundary(start) {
                start += 1;
            }
            eprintln!("--- bed {}: {log}\n{}", self.name, text[start..].trim_end());
        }
    }
}

/// Moves the calling thread into a mount namespace with its own `/run` and BPF filesystem.
fn make_private() -> Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| anyhow!("unshare(CLONE_NEWNS): {error}"))?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("making all mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).context("a tmpfs over /run")?;
    mount(Some("bpf"), BPF_FILESYSTEM, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("a BPF filesystem over {BPF_FILESYSTEM} (needs a kernel with CONFIG_BPF_SYSCALL)"))?;
    fs::create_dir(FILES).with_context(|| format!("cannot make {FILES}"))?;
    process::make_log_folder()
}
