//! `beeline agent`, `beeline detach`, and what test beds and developers need of the programs.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::which::Which;
use crate::agent::{self, Options};
use crate::config::MapSizes;
use crate::datapath::object::{self, Program};
use crate::datapath::{links, pins::Pins};

/// Arguments of `agent`.
#[derive(Args, Debug)]
pub struct AgentArguments {
    /// The configuration file; watched.
    #[arg(long, default_value = "/etc/beeline/config.yaml")]
    config: PathBuf,
    /// How log lines look. RUST_LOG sets what is logged.
    #[arg(long, value_enum, default_value = "human")]
    log_format: LogFormat,
    /// Log every packet: for a few packets a second.
    #[arg(long)]
    debug_packets: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

/// Run the agent.
///
/// # Errors
/// It cannot start.
pub fn run(arguments: AgentArguments) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Human => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    let options = Options { config: arguments.config, debug_packets: arguments.debug_packets };
    runtime()?.block_on(agent::run(options))
}

/// Remove what an agent pinned.
///
/// # Errors
/// An agent is running, or something cannot be removed.
pub fn detach(which: &Which) -> Result<()> {
    let pin_path = which.pin_path()?;
    println!("{}", runtime()?.block_on(agent::detach(&pin_path))?);
    Ok(())
}

/// Arguments of `pass-program`.
#[derive(Args, Debug)]
pub struct PassArguments {
    /// Where to pin the links.
    #[arg(long)]
    pin: PathBuf,
    /// The interfaces.
    #[arg(required = true)]
    interfaces: Vec<String>,
}

/// Put a program that passes everything on interfaces, as the other ends of veth pairs in a test bed need.
///
/// # Errors
/// An interface is missing or taken.
pub fn pass_program(arguments: &PassArguments) -> Result<()> {
    let pins = Pins::new(&arguments.pin);
    pins.prepare()?;
    let mut object = object::load(&small(), false, None, false)?;
    for interface in &arguments.interfaces {
        let index = nix::net::if_::if_nametoindex(interface.as_str());
        let index = index.with_context(|| format!("there is no interface {interface}"))?;
        links::attach(&mut object, Program::Pass, &pins, interface, index)?;
    }
    Ok(())
}

/// Print what the verifier says of each program.
///
/// # Errors
/// A program is refused.
pub fn programs() -> Result<()> {
    println!("{:<20} {:>14} {:>12} {:>11} {:>10}", "program", "verified insns", "translated B", "JIT B", "memlock B");
    let mut object = object::load(&small(), false, None, false)?;
    for which in Program::ALL {
        let info = object::info(&mut object, which)?;
        let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        println!(
            "{:<20} {:>14} {:>12} {:>11} {:>10}",
            which.name(),
            number(info.verified_instruction_count()),
            number(info.size_translated()),
            info.size_jitted(),
            number(info.memory_locked().ok()),
        );
    }
    Ok(())
}

/// Maps of the smallest size, for programs that are looked at and not used.
const fn small() -> MapSizes {
    MapSizes { services: 1, backends: 1, slots: 64, flows: 1 }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")
}
