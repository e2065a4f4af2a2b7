//! Hosts and the cables between them.

use std::fs::{self, File};
use std::io::Write as _;
use std::panic;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, ThreadId};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::process::{self, Process};

/// Written in every namespace before its first device appears. Addresses are used at once (no duplicate address
/// detection), and packets that come out of a tunnel have sources that no reverse path leads to.
/// ICMP errors are not rationed: tests make more of them in a second than a host would send.
const DEFAULTS: [(&str, &str); 8] = [
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv6.icmp.ratelimit", "0"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.all.accept_ra", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
];

/// A host of the bed: a network namespace.
#[derive(Clone)]
pub struct Host {
    name: String,
    /// The bed's thread: the only one that may start processes, since they die with the thread that started them.
    thread: ThreadId,
}

impl Host {
    pub(super) fn new(name: &str, thread: ThreadId) -> Result<Self> {
        let mut add = Command::new("ip");
        add.args(["netns", "add", name]);
        process::output_of(add)?;
        let host = Self { name: name.to_owned(), thread };
        host.sysctl(&DEFAULTS)?;
        host.ip(&["link set lo up"])?;
        Ok(host)
    }

    /// The name, in messages and under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command line (words parted by blanks) here, to its end, and returns what it printed.
    ///
    /// # Errors
    /// It could not be started, or failed: with all that it wrote.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_args(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`Host::run`], for arguments with blanks in them.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn run_args<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Result<String> {
        process::output_of(process::in_namespace(&self.name, argv)?)
    }

    /// Starts a program here that runs until it is stopped or the bed ends.
    ///
    /// # Errors
    /// It cannot be started; or the caller is not the bed's own thread, with whose end the program would die.
    pub fn spawn<S: AsRef<std::ffi::OsStr>>(&self, name: &str, argv: &[S]) -> Result<Process> {
        if thread::current().id() != self.thread {
            bail!("{}: {name}: only the bed's own thread starts processes (they die with their thread)", self.name);
        }
        Process::start(&self.name, name, argv)
    }

    /// Runs lines of iproute2 (`link add …`, `route add …`) in one go; the family is that of the
    /// addresses in a line.
    ///
    /// # Errors
    /// The first line that fails, with iproute2's own words.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start ip (package iproute2)")?;
        let batch = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect::<String>();
        child.stdin.take().context("ip without standard input")?.write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}: ip: {}in\n{batch}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Sets kernel parameters of this network namespace, in the dotted form.
    ///
    /// # Errors
    /// The kernel has no such parameter or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.within(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys").join(name.replace('.', "/"));
                fs::write(&path, value).with_context(|| format!("{}: {name} = {value}", self.name))?;
            }
            Ok(())
        })
    }

    /// Lets the host forward packets, like a router or a Kubernetes node.
    ///
    /// # Errors
    /// As [`Host::sysctl`].
    pub fn forward(&self) -> Result<()> {
        self.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])
    }

    /// Runs `body` on a thread that is in this network namespace. Sockets that it opens stay there, and can be
    /// returned; threads that it starts are there too.
    ///
    /// # Errors
    /// Those of `body`, or of entering the namespace.
    pub fn within<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let outcome = thread::scope(|scope| {
            let enter = || {
                let path = format!("/run/netns/{}", self.name);
                let namespace = File::open(&path).with_context(|| format!("{path} (is this thread in a bed?)"))?;
                setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {path}"))?;
                body()
            };
            let named = thread::Builder::new().name(self.name.clone());
            named.spawn_scoped(scope, enter).context("cannot start a thread").map(thread::ScopedJoinHandle::join)
        })?;
        outcome.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Lays a cable (a veth pair) from `device` here to `far_device` at `far`, both ends up.
    ///
    /// Both ends finish checksums and segments before the wire, as hardware does: a veth would hand over what the
    /// receiver's XDP program then rewrites wrongly.
    ///
    /// # Errors
    /// A device of that name exists, or the kernel refuses.
    pub fn cable(&self, device: &str, far: &Self, far_device: &str) -> Result<()> {
        self.ip(&[format!("link add {device} type veth peer name {far_device} netns {}", far.name)])?;
        for (host, device) in [(self, device), (far, far_device)] {
            host.run(&format!("ethtool -K {device} tx off tso off gso off gro on"))?;
            host.ip(&[format!("link set {device} up")])?;
        }
        Ok(())
    }

    /// Adds addresses (`10.0.0.1/24`, `fd00::1/64`) to `device`, usable at once.
    ///
    /// # Errors
    /// The kernel refuses one of them.
    pub fn addresses<S: AsRef<str>>(&self, device: &str, addresses: &[S]) -> Result<()> {
        let line = |address: &S| {
            let address = address.as_ref();
            let nodad = if address.contains(':') { " nodad" } else { "" };
            format!("addr add {address} dev {device}{nodad}")
        };
        self.ip(&addresses.iter().map(line).collect::<Vec<_>>())
    }
}
