//! The `beeline` binary.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lb_userspace::cli;

/// An L4 direct-server-return load balancer.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent; what it pins goes on without it.
    Agent(cli::agent::AgentArguments),
    /// Remove what an agent pinned: forwarding stops.
    Detach(cli::which::Which),
    /// Put a program that passes everything on interfaces (test beds).
    #[command(hide = true)]
    PassProgram(cli::agent::PassArguments),
    /// Print what the verifier says of each program (developers).
    #[command(hide = true)]
    Programs,
    /// Validate a configuration file; touches nothing.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Run the packets of a capture through the real programs; touches nothing.
    Simulate(cli::simulate::Arguments),
    /// Look for what breaks traffic on this host; changes nothing.
    Doctor(cli::doctor::Arguments),
    /// What the agent of this host does, and what is wrong with it.
    Status(cli::status::Arguments),
    /// The services of the agent of this host.
    Services(cli::client::Asked),
    /// The backends of all services, or of some.
    Backends(cli::backends::Arguments),
    /// The pods of this node, of all services or of some.
    Pods(cli::pods::Arguments),
    /// The flows that this node has recorded, from the kernel itself: root only, no agent needed.
    Flows(cli::flows::Arguments),
    /// Where a flow goes on this host, and why.
    Trace(cli::trace::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Check { file } => return cli::check::run(&file),
        Command::Doctor(arguments) => {
            return cli::doctor::run(&arguments).unwrap_or_else(|error| {
                eprintln!("beeline: {error:#}");
                ExitCode::FAILURE
            });
        }
        Command::Agent(arguments) => cli::agent::run(arguments),
        Command::Detach(which) => cli::agent::detach(&which),
        Command::PassProgram(arguments) => cli::agent::pass_program(&arguments),
        Command::Programs => cli::agent::programs(),
        Command::Simulate(arguments) => cli::simulate::run(&arguments),
        Command::Status(arguments) => cli::status::run(&arguments),
        Command::Services(arguments) => cli::services::run(&arguments),
        Command::Backends(arguments) => cli::backends::run(&arguments),
        Command::Pods(arguments) => cli::pods::run(&arguments),
        Command::Flows(arguments) => cli::flows::run(&arguments),
        Command::Trace(arguments) => cli::trace::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("beeline: {error:#}");
            ExitCode::FAILURE
        }
    }
}
