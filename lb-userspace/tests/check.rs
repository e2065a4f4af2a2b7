//! `beeline check` as people and scripts see it: streams and exit status.

use std::process::{Command, Output};

const VALID: &str = "{apiVersion: beeline.dev/v1, kind: Config, hashSeed: 7, edge: {}, services: [\
    {name: web, address: 198.51.100.10, ports: [{port: 80}], backends: [{address: 10.0.0.1}]}]}";

/// Runs `beeline check lb.yaml` in a folder of its own where lb.yaml holds `text`.
fn check(text: &str) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("lb.yaml"), text).expect("a file in it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
    command.current_dir(folder.path()).args(["check", "lb.yaml"]).output().expect("the binary runs")
}

#[test]
fn a_valid_file() {
    let output = check(VALID);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "lb.yaml: ok: 1 service, 1 backend, 4096 slots on 1 port\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_broken_file() {
    let output = check(&VALID.replace("10.0.0.1", "10.0.0").replace("port: 80", "port: 80, targetPort: 81"));
    let lines: Vec<_> = str::from_utf8(&output.stderr).expect("text").lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with("lb.yaml:1:") && lines[0].contains(": services[0].ports[0].targetPort: 81 "),
        "{lines:?}"
    );
    assert!(lines[1].ends_with(": services[0].backends[0].address: \"10.0.0\" is not an IP address"), "{lines:?}");
    assert_eq!(output.stdout, b"");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn wrong_usage() {
    let output = Command::new(env!("CARGO_BIN_EXE_beeline")).arg("check").output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
}
