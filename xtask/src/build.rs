//! `cargo xtask build`: the binary, with the programs embedded by lb-userspace's build script.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// What to build, and what to say about it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Build without optimisation, to target/debug/beeline (the programs are always optimised).
    #[arg(long)]
    debug: bool,
    /// Load the programs and print instruction counts and the verifier's statistics of each; needs root or sudo.
    #[arg(long)]
    stats: bool,
}

/// Builds the binary and says where it is.
///
/// # Errors
/// When cargo fails, or with `--stats` when the kernel refuses a program.
pub(crate) fn run(args: Args) -> Result<()> {
    compile(args.debug)?;
    let binary = workspace::beeline_binary(args.debug)?;
    let size = fs::metadata(&binary).with_context(|| format!("{} was not built", binary.display()))?.len();
    eprintln!("{} ({:.1} MiB)", binary.display(), size as f64 / f64::from(1 << 20));
    if args.stats {
        process::run(process::as_root(&binary).arg("programs"))?;
    }
    Ok(())
}

/// Compiles the binary.
///
/// # Errors
/// When cargo fails.
pub(crate) fn compile(debug: bool) -> Result<()> {
    let mut build = workspace::cargo();
    build.args(["build", "--package", "lb-userspace", "--bin", "beeline"]);
    if !debug {
        build.arg("--release");
    }
    process::run(&mut build)
}
