//! `beeline check FILE`: reads a configuration and touches nothing.

use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{Config, load};

/// Says what is in a file and what may not be meant (on standard output, exit status 0), or all that is wrong with it
/// (on standard error, exit status 1).
#[must_use]
pub fn run(file: &Path) -> ExitCode {
    match load(file) {
        Ok(config) => match io::stdout().write_all(summary(&file.display().to_string(), &config).as_bytes()) {
            // A reader that has gone, such as head, has read enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => failed(&format!("standard output: {error}")),
            _ => ExitCode::SUCCESS,
        },
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn Display) -> ExitCode {
    // With standard error gone, the exit status still says it.
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::FAILURE
}

fn summary(file: &str, config: &Config) -> String {
    let services = count(config.services.len() as u64, "service");
    let ports = count(config.services.iter().map(|service| service.ports.len() as u64).sum(), "port");
    let backends = count(config.services.iter().map(|service| service.backends.len() as u64).sum(), "backend");
    let pods: u64 = config.services.iter().flat_map(|s| &s.backends).map(|backend| backend.pods.len() as u64).sum();
    let pods = if pods > 0 { format!(" with {}", count(pods, "pod")) } else { String::new() };
    let slots = count(config.services.iter().map(|service| service.total_slots()).sum(), "slot");
    let mut text = format!("{file}: ok: {services}, {backends}{pods}, {slots} on {ports}\n");
    for advice in config.advice() {
        writeln!(text, "{file}: advice: {advice}").expect("a String takes all that is written to it");
    }
    text
}

fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn the_summary_counts_and_advises() {
        let config = parse(
            "{apiVersion: beeline.dev/v1, kind: Config, hashSeed: 7, edge: {}, services: [\
             {name: web, address: 198.51.100.10, ports: [{port: 80}, {port: 443}], backends: [{address: 10.0.0.1}]},\
             {name: dns, address: 198.51.100.11, slots: 64, ports: [{port: 53}], backends: []}]}",
            "lb.yaml",
        )
        .expect("a valid file");
        assert_eq!(
            summary("lb.yaml", &config),
            "lb.yaml: ok: 2 services, 1 backend, 8256 slots on 3 ports\n\
             lb.yaml: advice: services[1] (dns): no backends: packets to it are dropped and counted\n"
        );
    }
}
