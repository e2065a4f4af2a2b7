//! The metrics page as Prometheus' own tool reads it, and at full size.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use lb_userspace::metrics::render;
use lb_userspace::status::{BackendStatus, InterfaceStatus, MapStatus, PodStatus, ReplyStatus, ServiceStatus, Status};

const MISSING: &str = "promtool, of Debian's package prometheus, is missing: run cargo xtask setup";

/// A status with this many services of `backends` backends each.
fn status(services: u32, backends: u32) -> Status {
    let backend = |service: u32, number: u32| BackendStatus {
        address: IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + service * backends + number)),
        state: if number == 0 { "draining" } else { "ready" }.to_owned(),
        weight: 100,
        agent: false,
        slots: 400,
        packets: u64::MAX - u64::from(number),
        bytes: u64::MAX,
        reachable: number != 1,
        via: Some("eth0".to_owned()),
        problem: (number == 1).then(|| "no route".to_owned()),
    };
    let pod = |number: u32| PodStatus {
        address: IpAddr::from(Ipv4Addr::from_bits(0x0af4_0000 + number)),
        port: 8080,
        state: "ready".to_owned(),
        weight: 100,
        slots: 512,
        packets: u64::MAX,
        bytes: u64::MAX,
        recorded: false,
        device: Some("veth0".to_owned()),
        live: true,
        problem: None,
    };
    let reply = |number: u32| ReplyStatus {
        pod: IpAddr::from(Ipv4Addr::from_bits(0x0af4_0000 + number)),
        port: 8080,
        protocol: "TCP".to_owned(),
        vip: IpAddr::from(Ipv4Addr::from_bits(0xc633_0000)),
        vip_port: 80,
        recorded: false,
        direct: false,
        packets: 1,
        bytes: u64::MAX,
    };
    let service = |number: u32| ServiceStatus {
        label: format!("a service with \"quotes\", a \\ and\na line {number}/http"),
        address: Some(if number.is_multiple_of(2) {
            IpAddr::from(Ipv4Addr::from_bits(0xc633_0000 + number))
        } else {
            IpAddr::from(u128::from(number).to_be_bytes())
        }),
        protocol: "TCP".to_owned(),
        port: 80,
        slots: 4096,
        installed: true,
        delivery: "pod".to_owned(),
        pods: (0..backends.min(2)).map(pod).collect(),
        backends: (0..backends).map(|b| backend(number, b)).collect(),
        ..ServiceStatus::default()
    };
    Status {
        version: "0.1.0".to_owned(),
        started: 1_700_000_000,
        interfaces: vec![InterfaceStatus { name: "eth0".to_owned(), ..InterfaceStatus::default() }],
        services: (0..services).map(service).collect(),
        replies: (0..backends.min(2)).map(reply).collect(),
        maps: vec![MapStatus { name: "slots".to_owned(), used: Some(64), capacity: 4096 }],
        ..Status::default()
    }
}

/// What `promtool check metrics` has to say about a page: its complaints, and whether it accepts the page.
fn promtool(page: &str) -> (String, bool) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(MISSING);
    promtool.stdin.take().expect("a pipe").write_all(page.as_bytes()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    (said, output.status.success())
}

#[test]
fn promtool_has_no_complaint() {
    for status in [status(3, 3), Status::default()] {
        let page = render(&status).expect("a String takes it");
        assert_eq!(promtool(&page), (String::new(), true), "{page}");
    }
}

#[test]
fn promtool_would_complain() {
    let mut page = render(&status(1, 1)).expect("a String takes it");
    writeln!(page, "# TYPE beeline_forgotten counter\nbeeline_forgotten 1").expect("a String takes it");
    let (said, accepted) = promtool(&page);
    assert!(said.contains("beeline_forgotten") && !accepted, "{said}");
}

#[test]
fn the_largest_page_is_complete() {
    let page = render(&status(10_000, 10)).expect("a String takes it");
    let lines = page.lines().filter(|line| line.starts_with("beeline_backend_packets_total{"));
    assert_eq!(lines.count(), 100_000);
    let last = page.lines().rfind(|line| line.starts_with("beeline_backend_reachable{")).expect("a line");
    assert!(last.ends_with("backend=\"10.1.134.159\"} 1"), "{last}");
}

#[test]
fn the_documented_rules_are_valid() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
    let (_, rest) = page.split_once("```yaml\n").expect("the rules");
    let (rules, _) = rest.split_once("```").expect("their end");
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(rules.as_bytes()).expect("a file");
    let path = file.path().to_str().expect("text");
    let output = Command::new("promtool").args(["check", "rules", path]).output().expect(MISSING);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("{} rules found", rules.matches("alert:").count())), "{said}");
}
