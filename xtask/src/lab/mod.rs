//! The lab: a whole network of namespaces in which Beeline does its job on real traffic.

mod exec;
mod live;
mod network;
mod once;
mod table;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use beeline_tests::bed::Beeline;
use clap::Args;

use crate::{build, process, workspace};

/// Arguments of `cargo xtask run`.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// Send requests, drain pods and a node, lose agents and an edge, take all down; exit 0 only if all held.
    #[arg(long)]
    once: bool,
    /// Use this beeline and build nothing.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Arguments of `cargo xtask exec`.
#[derive(Args)]
pub(crate) struct ExecArgs {
    /// Which lab, where several run: the process id that it printed.
    #[arg(long)]
    lab: Option<u32>,
    /// A host of the lab: client, router, edge1, node1, pod1-1 …
    host: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl RunArgs {
    /// Whether there is nothing to build, and so nothing that set-up must prepare.
    pub(crate) fn prepared(&self) -> bool {
        self.binary.is_some()
    }
}

/// Builds the lab and either leaves it to its visitor until Ctrl-C, or puts it through its paces.
///
/// # Errors
/// When the build fails, the lab does not come up, or an answer was wrong.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => {
            build::compile(false)?;
            workspace::beeline_binary(false)?
        }
    };
    if !workspace::is_root() {
        eprintln!("run: network namespaces and BPF need root; the lab runs by sudo");
        let mut again = process::as_root(env::current_exe()?);
        again.args(["run", "--binary"]).arg(binary).args(args.once.then_some("--once"));
        return Err(again.exec()).context("cannot start sudo");
    }
    let beeline = Beeline::at(&binary)?;
    if args.once { once::run(&beeline) } else { live::run(&beeline) }
}

/// Runs a command on a host of a running lab, in place of this process.
///
/// # Errors
/// When there is no such lab, host or program; otherwise it does not return.
pub(crate) fn exec(args: &ExecArgs) -> Result<()> {
    if !workspace::is_root() {
        let mut again = process::as_root(env::current_exe()?);
        again.arg("exec").args(args.lab.map(|lab| format!("--lab={lab}")));
        again.args([&args.host, "--"]).args(&args.command);
        return Err(again.exec()).context("cannot start sudo");
    }
    exec::run(args.lab, &args.host, &args.command)
}
