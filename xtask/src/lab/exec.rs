//! Running a command on a host of a lab that another process holds.
//!
//! A lab says where it is by an abstract socket, `beeline-lab/PID/TID`: the kernel takes the name back when the
//! process ends, however it ends.

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

const NAME: &str = "beeline-lab/";

/// Makes the lab of the calling thread findable for as long as the returned socket lives.
pub(super) fn announce() -> Result<UnixListener> {
    let name = format!("{NAME}{}/{}", std::process::id(), nix::unistd::gettid());
    let address = SocketAddr::from_abstract_name(name)?;
    UnixListener::bind_addr(&address).context("cannot announce the lab")
}

/// Process and thread of every running lab.
fn labs() -> Result<Vec<(u32, u32)>> {
    let sockets = fs::read_to_string("/proc/net/unix").context("cannot read /proc/net/unix")?;
    let lab = |line: &str| {
        let (process, thread) = line.split_once('@')?.1.strip_prefix(NAME)?.split_once('/')?;
        Some((process.parse().ok()?, thread.parse().ok()?))
    };
    Ok(sockets.lines().filter_map(lab).collect())
}

/// Replaces this process by `command` on `host`.
pub(super) fn run(lab: Option<u32>, host: &str, command: &[String]) -> Result<()> {
    let mut labs = labs()?;
    labs.retain(|(process, _)| lab.is_none_or(|wanted| wanted == *process));
    let (process, thread) = match labs[..] {
        [lab] => lab,
        [] if lab.is_some() => bail!("no lab runs as process {}", lab.unwrap_or_default()),
        [] => bail!("no lab is running: start one with `cargo xtask run`"),
        _ => {
            let processes: Vec<String> = labs.iter().map(|(process, _)| format!("--lab {process}")).collect();
            bail!("several labs are running: choose one with {}", processes.join(" or "))
        }
    };
    let here = std::env::current_dir()?;
    let enter = |path: &str, kind| -> Result<()> {
        let namespace = File::open(path).with_context(|| format!("cannot open {path}"))?;
        setns(namespace, kind).with_context(|| format!("cannot enter {path}"))
    };
    enter(&format!("/proc/{process}/task/{thread}/ns/mnt"), CloneFlags::CLONE_NEWNS)?;
    let path = format!("/run/netns/{host}");
    if !fs::exists(&path)? {
        let hosts = fs::read_dir("/run/netns")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut hosts = hosts.collect::<Result<Vec<_>>>()?;
        hosts.sort();
        bail!("the lab has no host {host:?}: it has {}", hosts.join(", "));
    }
    enter(&path, CloneFlags::CLONE_NEWNET)?;
    // Entering a mount namespace moves to its root; the folder is the same one there.
    std::env::set_current_dir(&here).with_context(|| format!("cannot go back to {}", here.display()))?;
    let (program, arguments) = command.split_first().context("no command was given")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}
