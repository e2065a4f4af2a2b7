//! Every developer command of Beeline: `cargo xtask --help`.
//!
//! One module a command. Each command but `setup` begins with a quiet [`setup`], so that a fresh clone needs no
//! other preparation.

mod build;
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
    if let Command::Setup = command {
        return setup::run(Report::Full);
    }
    setup::run(Report::Quiet)?;
    match command {
        Command::Setup => Ok(()),
        Command::Build(args) => build::run(args),
        Command::Lint => lint::run(),
        Command::Test { args, harness } => test::run(&args, &harness),
        Command::Ci => {
            lint::run()?;
            test::run(&[], &[])
        }
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
