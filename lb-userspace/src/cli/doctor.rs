//! `beeline doctor --config FILE`: looks for what breaks traffic on this host; changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::client::{self, Output};
use crate::config;
use crate::doctor::{Facts, Finding, Level, Silence, count, examine};
use crate::status::{Status, socket_path};

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
    let facts = Facts::read(&config, ask(&config.pin_path))?;
    let findings = examine(&config, &facts);
    let counts = count(&findings);
    let of = |level| counts.get(&level).copied().unwrap_or(0);
    let json = json!({
        "problems": of(Level::Problem), "warnings": of(Level::Warning), "unseen": of(Level::Unseen),
        "remarks": of(Level::Remark), "findings": findings,
    });
    arguments.output.print(&json, || text(&findings, &arguments.config, &counts))?;
    Ok(if of(Level::Problem) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the agent with these pins says.
fn ask(pin_path: &Path) -> Result<Status, Silence> {
    let socket = socket_path(pin_path);
    client::fetch(&socket, pin_path, client::TIMEOUT).map_err(|error| Silence {
        why: format!("{error:#}"),
        forbidden: UnixStream::connect(&socket).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied),
    })
}

/// The worst first; what is well stands at the end, on one line for each check.
fn text(findings: &[Finding], file: &Path, counts: &BTreeMap<Level, usize>) -> String {
    let mut page = String::new();
    for level in [Level::Problem, Level::Warning, Level::Unseen, Level::Remark] {
        for Finding { check, what, way_out, .. } in findings.iter().filter(|finding| finding.level == level) {
            let _infallible = writeln!(page, "{:7}  {check}: {what}", name(level));
            if let Some(way_out) = way_out {
                let way_out = way_out.replace("--config FILE", &format!("--config {}", file.display()));
                let _infallible = writeln!(page, "         -> {way_out}");
            }
        }
    }
    let mut well: Vec<(&str, Vec<&str>)> = Vec::new();
    for Finding { check, what, .. } in findings.iter().filter(|finding| finding.level == Level::Ok) {
        match well.last_mut().filter(|(last, _)| last == check) {
            Some((_, places)) => places.push(what),
            None => well.push((check, vec![what])),
        }
    }
    for (check, places) in well {
        let _infallible = writeln!(page, "{:7}  {check}: {}", name(Level::Ok), places.join("; "));
    }
    let counted: Vec<_> = [(Level::Problem, "problem"), (Level::Warning, "warning"), (Level::Unseen, "not looked at")]
        .into_iter()
        .filter_map(|(level, word)| {
            let number = *counts.get(&level)?;
            let plural = if number == 1 || level == Level::Unseen { "" } else { "s" };
            Some(format!("{number} {word}{plural}"))
        })
        .collect();
    let _infallible = match counted.is_empty() {
        true => writeln!(page, "\nno problem found"),
        false => writeln!(page, "\n{}", counted.join(", ")),
    };
    page
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Remark => "remark",
        Level::Unseen => "unseen",
        Level::Warning => "warning",
        Level::Problem => "problem",
    }
}
