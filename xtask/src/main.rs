//! Every developer command of Beeline: `cargo xtask --help`.
//!
//! One module a command. Each command but `setup` begins with a quiet [`setup`], so that a fresh clone needs no
//! other preparation.

mod build;
mod lab;
mod lint;
mod process;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use setup::Report;

/// Developer commands of Beeline.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the build, the tests and the lab need; every other command does this first.
    Setup,
    /// Build the beeline binary, programs embedded, to target/release/beeline.
    Build(build::Args),
    /// Check formatting, clippy and rustdoc for the host, no_std and BPF.
    Lint,
    /// Build, then run every test, as root.
    Test {
        /// Passed on to `cargo test`: a filter, or options such as `-p lb-common`.
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
        /// After `--`: passed on to the test programs, such as `--nocapture`.
        #[arg(last = true)]
        harness: Vec<String>,
    },
    /// Everything that CI runs: lint, then test.
    Ci,
    /// Build the lab, a network of namespaces with edges and nodes on real traffic, and show it until Ctrl-C.
    Run(lab::RunArgs),
    /// Run a command on a host of a running lab: `cargo xtask exec client -- curl -s http://198.51.100.10/`.
    Exec(lab::ExecArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Begins with set-up, then does what was asked.
fn run(command: Command) -> Result<()> {
    match &command {
        Command::Setup => return setup::run(Report::Full),
        // The lab is up, or was prepared by the one who calls: nothing to set up.
        Command::Exec(args) => return lab::exec(args),
        Command::Run(args) if args.prepared() => return lab::run(args),
        _ => setup::run(Report::Quiet)?,
    }
    match command {
        Command::Setup => Ok(()),
        Command::Build(args) => build::run(args),
        Command::Lint => lint::run(),
        Command::Test { args, harness } => test::run(&args, &harness),
        Command::Ci => {
            lint::run()?;
            test::run(&[], &[])
        }
        Command::Run(args) => lab::run(&args),
        Command::Exec(args) => lab::exec(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cargo_test_is_given_what_was_typed() {
        for typed in ["-p lb-common hash -- --nocapture --exact", "-- --nocapture", "--lib", ""] {
            let words = ["xtask", "test"].into_iter().chain(typed.split_whitespace());
            let Command::Test { args, harness } = Cli::parse_from(words).command else { panic!("{typed}: no test") };
            assert_eq!(test::cargo_arguments(&args, &harness).join(" "), typed);
        }
    }
}
