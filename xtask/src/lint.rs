//! `cargo xtask lint`: formatting, clippy and rustdoc for the host, for `no_std` and for BPF, without a warning.
//!
//! All in the release profile: what clippy compiles for it (procedural macros, build scripts, the programs) is what
//! the tests need next.

use std::process::Command;

use anyhow::Result;

use crate::{process, workspace};

const BPF_TARGET: &str = "bpfel-unknown-none";

/// Runs every lint, one after another, and stops at the first that complains.
///
/// # Errors
/// When a lint complains.
pub(crate) fn run() -> Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    let deny = ["--", "-D", "warnings"];
    process::run(workspace::cargo().args(["clippy", "--release", "--all-targets"]).args(deny))?;
    // By itself lb-common has none of the features that the agent switches on.
    process::run(workspace::cargo().args(["clippy", "--release", "--package", "lb-common"]).args(deny))?;
    process::run(bpf("clippy")?.args(deny))?;
    process::run(workspace::cargo().args(["doc", "--release", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    process::run(bpf("doc")?.arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

/// A cargo command for the programs and for lb-common as they use it: `no_std`, with a `core` of its own. Apart from
/// the host's target folder: `RUSTC_BOOTSTRAP` makes build scripts decide otherwise, and all behind them stale.
fn bpf(subcommand: &str) -> Result<Command> {
    let target_dir = workspace::target_dir()?.join("bpf");
    let mut cargo = workspace::cargo();
    cargo.args([subcommand, "--release", "--package", "lb-ebpf", "--package", "lb-common"]);
    cargo.args(["--target", BPF_TARGET, "-Z", "build-std=core", "--target-dir"]).arg(target_dir);
    // -Z build-std on the pinned stable compiler.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", workspace::bpf_linker()?);
    // The flags of .cargo/config.toml count only where this is not set; the host's are not for BPF.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(cargo)
}
