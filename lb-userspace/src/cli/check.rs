//! `beeline check FILE`: reads a configuration and touches nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::config::{Config, load};

/// Says what is in a file and what may not be meant (on standard output, exit status 0), or all that is wrong with it
/// (on standard error, exit status 1).
#[must_use]
pub fn run(file: &Path) -> ExitCode {
    match load(file) {
        Ok(config) => {
            print!("{}", summary(&file.display().to_string(), &config));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn summary(file: &str, config: &Config) -> String {
    let services = count(config.services.len() as u64, "service");
    let ports = count(config.services.iter().map(|service| service.ports.len() as u64).sum(), "port");
    let backends = count(config.services.iter().map(|service| service.backends.len() as u64).sum(), "backend");
    let slots = count(config.services.iter().map(|service| service.total_slots()).sum(), "slot");
    let mut text = format!("{file}: ok: {services}, {backends}, {slots} on {ports}\n");
    for advice in config.advice() {
        writeln!(text, "{file}: advice: {advice}").expect("a String takes all that is written to it");
    }
    text
}

fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
