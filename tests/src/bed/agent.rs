//! The program under test: `beeline`, built before.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{BPF_FILESYSTEM, Bed, Config, Host, Process, Response, eventually, get, holds};

/// How long an agent may take to load its programs and apply its first configuration. Loading is the verifier's work
/// and slow on a busy machine.
const START: Duration = Duration::from_secs(30);

/// How long a question to an agent may take.
const ASK: Duration = Duration::from_secs(5);

/// The binary.
#[derive(Debug, Clone)]
pub struct Beeline {
    path: PathBuf,
}

impl Beeline {
    /// Finds the binary: `$BEELINE_BIN`, else `target/release/beeline` of this workspace.
    ///
    /// # Errors
    /// There is none: build it first.
    pub fn find() -> Result<Self> {
        let built = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/release/beeline");
        Self::at(&std::env::var_os("BEELINE_BIN").map_or_else(built, PathBuf::from))
    }

    /// The binary at `path`.
    ///
    /// # Errors
    /// There is none: build it first.
    pub fn at(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| format!("no beeline at {} (build it with `cargo xtask build`)", path.display()))?;
        Ok(Self { path })
    }

    /// Where the binary is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `beeline ARGS` on `host` and returns what it printed.
    ///
    /// # Errors
    /// It failed: with all that it wrote.
    pub fn run(&self, host: &Host, args: &[&str]) -> Result<String> {
        let mut argv = vec![self.path.as_os_str()];
        argv.extend(args.iter().map(std::ffi::OsStr::new));
        host.run_args(&argv)
    }

    /// Puts an XDP program that lets everything pass on `devices` of `host`. XDP_TX out of a veth arrives only where
    /// the other end has a program too; a network card needs no such thing.
    ///
    /// # Errors
    /// A device is missing or has a program.
    pub fn pass_program(&self, host: &Host, devices: &[&str]) -> Result<()> {
        let pins = format!("{BPF_FILESYSTEM}/beeline-pass-{}", host.name());
        let mut args = vec!["pass-program", "--pin", &pins];
        args.extend(devices);
        self.run(host, &args).map(drop)
    }

    /// Writes `config` to a file of `host` and starts an agent with it, without waiting for it.
    ///
    /// # Errors
    /// The file cannot be written or the program not be started.
    pub fn start(&self, bed: &Bed, host: &Host, config: &Config) -> Result<Agent> {
        let folder = bed.folder(&format!("{}-beeline", host.name()))?;
        let file = folder.join("beeline.yaml");
        config.write(&file)?;
        self.start_with(host, &file, config)
    }

    /// Starts an agent with a file that the caller has written, `config` being what is in it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_with(&self, host: &Host, file: &Path, config: &Config) -> Result<Agent> {
        let (process, metrics) = (self.spawn(host, file)?, config.metrics.parse()?);
        Ok(Agent {
            beeline: self.clone(),
            host: host.clone(),
            process,
            file: file.to_owned(),
            pins: config.pin_path.clone(),
            metrics,
        })
    }

    /// As [`Beeline::start`], and waits until the configuration is in force.
    ///
    /// # Errors
    /// As [`Beeline::start`] and [`Agent::wait_ready`].
    pub fn agent(&self, bed: &Bed, host: &Host, config: &Config) -> Result<Agent> {
        let mut agent = self.start(bed, host, config)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    fn spawn(&self, host: &Host, file: &Path) -> Result<Process> {
        let argv = [self.path.as_os_str(), "agent".as_ref(), "--config".as_ref(), file.as_os_str()];
        host.spawn("beeline", &argv)
    }
}

/// An agent on a host of the bed.
pub struct Agent {
    beeline: Beeline,
    host: Host,
    process: Process,
    file: PathBuf,
    pins: String,
    metrics: SocketAddr,
}

impl Agent {
    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Starts the agent anew, after it was stopped or killed, and waits until it is ready.
    ///
    /// # Errors
    /// It still runs, cannot be started or does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.ended()?.is_none() {
            bail!("the agent of {} still runs", self.host.name());
        }
        self.process = self.beeline.spawn(&self.host, &self.file)?;
        self.wait_ready()
    }

    /// Waits until the agent says that its configuration is in force.
    ///
    /// # Errors
    /// It ended, with its log; or is not ready in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        eventually("an agent to be ready", START, || {
            if let Some(status) = self.process.ended()? {
                bail!("the agent of {} ended ({status}):\n{}", self.host.name(), self.process.log()?);
            }
            let answer = self.http("/readyz")?;
            holds(answer.status == 200, || format!("{}: {} {}", self.host.name(), answer.status, answer.text()))
        })
    }

    /// Gives the agent another configuration, and waits until it is in force.
    ///
    /// # Errors
    /// The file cannot be written, or the agent does not apply it.
    pub fn apply(&self, config: &Config) -> Result<()> {
        let generation = || {
            let status = self.json("status")?;
            status["config"]["generation"].as_u64().with_context(|| format!("no generation in {status}"))
        };
        let before = generation()?;
        config.write(&self.file)?;
        eventually("a configuration to be in force", START, || {
            holds(generation()? > before, || format!("{}: still at {before}", self.host.name()))
        })
    }

    /// Asks the agent's own HTTP port.
    ///
    /// # Errors
    /// It does not answer.
    pub fn http(&self, path: &str) -> Result<Response> {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        self.host.within(|| get(loopback, self.metrics, path, ASK))
    }

    /// `beeline COMMAND -o json` for this agent (`status`, `services`, `backends`).
    ///
    /// # Errors
    /// The command fails or prints no JSON.
    pub fn json(&self, command: &str) -> Result<Value> {
        let pins = self.pins.as_str();
        let text = self.beeline.run(&self.host, &[command, "-o", "json", "--pin-path", pins])?;
        serde_json::from_str(&text).with_context(|| format!("beeline {command} -o json printed {text:?}"))
    }

    /// Packets that this edge has sent to each backend address, over all services.
    ///
    /// # Errors
    /// As [`Agent::json`], or the status has no such counts.
    pub fn packets_by_backend(&self) -> Result<BTreeMap<IpAddr, u64>> {
        let status = self.json("status")?;
        let mut packets = BTreeMap::new();
        for service in list(&status, "services")? {
            for backend in list(service, "backends")? {
                let address = backend["address"].as_str().and_then(|address| address.parse().ok());
                let address: IpAddr = address.with_context(|| format!("no address in {backend}"))?;
                let count = backend["packets"].as_u64().with_context(|| format!("no packets in {backend}"))?;
                *packets.entry(address).or_default() += count;
            }
        }
        Ok(packets)
    }

    /// Packets counted under `reason`, a name of `beeline simulate --reasons`; 0 where the status does not list it.
    ///
    /// # Errors
    /// As [`Agent::json`], or the status has no reasons.
    pub fn packets_with_reason(&self, reason: &str) -> Result<u64> {
        let status = self.json("status")?;
        let reasons = status["reasons"].as_object().with_context(|| format!("no reasons in {status}"))?;
        Ok(reasons.get(reason).and_then(Value::as_u64).unwrap_or(0))
    }
}

/// The list `name` of a JSON object.
fn list<'a>(object: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    object[name].as_array().with_context(|| format!("no list of {name} in {object}"))
}
