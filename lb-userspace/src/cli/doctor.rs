//! `beeline doctor --config FILE`: looks for what breaks traffic on this host; changes nothing.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::client::{self, Output};
use crate::config;
use crate::doctor::{Facts, Finding, Level, count, examine};
use crate::status::socket_path;

/// What is looked at, and how it is printed.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The configuration of this host.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How the findings are printed.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Prints all findings; the exit status is 1 if one of them breaks traffic.
///
/// # Errors
/// The configuration is not valid, the kernel does not answer, or standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = config::load(&arguments.config)?;
    let agent = client::fetch(&socket_path(&config.pin_path), &config.pin_path, client::TIMEOUT);
    let facts = Facts::read(&config, agent.map_err(|error| format!("{error:#}")))?;
    let findings = examine(&config, &facts);
    let counts = count(&findings);
    let of = |level| counts.get(&level).copied().unwrap_or(0);
    let (problems, warnings, unseen) = (of(Level::Problem), of(Level::Warning), of(Level::Unseen));
    let json = json!({"problems": problems, "warnings": warnings, "unseen": unseen, "findings": findings});
    arguments.output.print(&json, || text(&findings, problems, warnings, unseen))?;
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(findings: &[Finding], problems: usize, warnings: usize, unseen: usize) -> String {
    let mut page = String::new();
    for Finding { level, check, what, way_out } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Unseen => "unseen",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        let _infallible = writeln!(page, "{level:7}  {check}: {what}");
        if let Some(way_out) = way_out {
            let _infallible = writeln!(page, "         -> {way_out}");
        }
    }
    let _infallible = writeln!(page, "\nproblems: {problems}, warnings: {warnings}, not looked at: {unseen}");
    page
}
