//! `cargo xtask test`: every test of the workspace, as root, against the release binary.

use std::env;
use std::process::Command;
use std::thread;

use anyhow::Result;

use crate::{build, process, workspace};

/// The most tests at once in one test program: those in network namespaces wait for packets rather than work, yet
/// each runs several processes.
const MOST_THREADS: usize = 4;

/// Builds the binary and runs the tests; `args` go to `cargo test` (`-p beeline-tests edge`), `harness` to the test
/// programs (`--nocapture`).
///
/// In the release profile: its dependencies are compiled once for the binary and the tests, and property tests take a
/// fraction of the time. It lets integers wrap silently, so lb-common's tests run once more with checks.
///
/// # Errors
/// When the build or a test fails.
pub(crate) fn run(args: &[String], harness: &[String]) -> Result<()> {
    let runner = runner()?;
    if !args.is_empty() || !harness.is_empty() {
        build::compile(false)?;
        return process::run(cargo_test(runner.as_ref())?.args(cargo_arguments(args, harness)));
    }
    // Together: the tests' dependencies switch on features of the binary's, which would be compiled twice.
    process::run(workspace::cargo().args(["build", "--release", "--bins", "--tests"]))?;
    process::run(&mut cargo_test(runner.as_ref())?)?;
    let mut checked = cargo_test(runner.as_ref())?;
    checked.args(["--lib", "--package", "lb-common", "--all-features"]);
    for check in ["overflow-checks", "debug-assertions"] {
        checked.arg("--config").arg(format!("profile.release.package.lb-common.{check}=true"));
    }
    process::run(&mut checked)
}

/// The arguments as they were typed: clap takes away the `--` that nothing stands before, and leaves every other in
/// `args`.
pub(crate) fn cargo_arguments(args: &[String], harness: &[String]) -> Vec<String> {
    let separator = (!harness.is_empty()).then(|| "--".to_owned());
    args.iter().cloned().chain(separator).chain(harness.iter().cloned()).collect()
}

fn cargo_test(runner: Option<&(String, &str)>) -> Result<Command> {
    let mut test = workspace::cargo();
    test.args(["test", "--release"]).env("BEELINE_BIN", workspace::beeline_binary(false)?);
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        test.env("RUST_TEST_THREADS", cores.min(MOST_THREADS).to_string());
    }
    if let Some((variable, command)) = runner {
        test.env(variable, command);
    }
    Ok(test)
}

/// What makes cargo run the test programs as root, where the caller is not.
fn runner() -> Result<Option<(String, &'static str)>> {
    if workspace::is_root() {
        return Ok(None);
    }
    eprintln!("test: network namespaces and BPF need root; the test programs run by sudo");
    Ok(Some((runner_variable(&workspace::host_triple()?), "sudo -E")))
}

/// The variable by which cargo is told what to run a target's programs with.
fn runner_variable(triple: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace(['-', '.'], "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_is_named_by_the_hosts_triple() {
        let triple = workspace::host_triple().unwrap();
        let name = runner_variable(&triple);
        assert!(name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'), "{name}");
        assert_eq!(runner_variable("aarch64-unknown-linux-gnu"), "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER");
    }
}
