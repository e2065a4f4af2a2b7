//! Programs that run in a bed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::eventually;

/// Where logs are kept, inside a bed.
const LOGS: &str = "/run/bed/log";

/// A program that runs until it is told to stop; killed when dropped, and when the bed's thread ends.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `argv` in the network namespace `host`; standard output and error go to one log.
    pub(super) fn start<S: AsRef<OsStr>>(host: &str, name: &str, argv: &[S]) -> Result<Self> {
        let log = Path::new(LOGS).join(format!("{host}-{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let mut command = in_namespace(host, argv)?;
        // A process group of its own: Ctrl-C in a terminal is for the lab, which then stops its processes in order.
        command.process_group(0).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("{host}: cannot start {command:?}"))?;
        Ok(Self { name: format!("{host}/{name}"), child, log, ended: None })
    }

    /// The process id: of the program itself, which replaces the helpers that put it in its place.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that the program, and those of the same name before it on this host, wrote so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Where the log is, seen from inside the bed.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// How the program ended, `None` while it runs.
    ///
    /// # Errors
    /// The kernel will not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// The program has ended, with the end of its log.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} has ended already ({status}):\n{}", self.name, self.log()?);
        }
        let pid = i32::try_from(self.pid()).context("a process id beyond 31 bits")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Kills the program as a crash would, without notice (SIGKILL), and waits until it is gone.
    ///
    /// # Errors
    /// The program had ended before, or ended otherwise than by the signal.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        self.ended = Some(status);
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("{} ended by itself ({status}) when it was to be killed:\n{}", self.name, self.log()?);
        }
        Ok(())
    }

    /// Asks the program to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// It had ended before, or does not end within `patience`.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        eventually("the end of a process", patience, || {
            self.ended()?.with_context(|| format!("{} still runs", self.name))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(None)) {
            // Both fail only where the process is gone already, which is what is wanted.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The command that runs `argv` in the namespace `host` and dies with the calling thread. Its helpers replace
/// themselves, so that the child's process id is the program's.
///
/// `nsenter` and not `ip netns exec`, which would hide the bed's BPF filesystem behind a fresh `/sys`.
pub(super) fn in_namespace<S: AsRef<OsStr>>(host: &str, argv: &[S]) -> Result<Command> {
    if argv.is_empty() {
        bail!("{host}: no command was given");
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nsenter"]).arg(format!("--net=/run/netns/{host}")).arg("--").args(argv);
    Ok(command)
}

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// It could not be started, or failed: with all that it wrote.
pub(super) fn output_of(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?} failed ({}): {text}{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(text)
}

/// Makes the folder of logs.
pub(super) fn make_log_folder() -> Result<()> {
    fs::create_dir(LOGS).with_context(|| format!("cannot make {LOGS}"))
}

/// Name and text of every log of this bed.
pub(super) fn logs() -> Result<Vec<(String, String)>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(LOGS).context("reading the folder of logs")? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        logs.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), text));
    }
    logs.sort();
    Ok(logs)
}
