//! `beeline simulate` on what tcpdump has captured of real traffic.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{Bed, Fabric, Rig, Shape, eventually, holds};
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing may be written before all is.
const QUIET: Duration = Duration::from_millis(300);
/// Inside the bed.
const CAPTURE: &str = "/run/bed/capture.pcap";

/// The bytes of a field of hexadecimal text.
fn bytes(line: &Value) -> Result<Vec<u8>> {
    let text = line["bytes"].as_str().with_context(|| format!("no bytes in {line}"))?;
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?)).collect()
}

#[test]
fn a_capture_of_tcpdump_is_forwarded_as_it_was_on_the_wire() -> Result<()> {
    Bed::run("simulate", |bed| {
        let mut rig = Rig::start(bed, Shape { edges: 1, ..Shape::default() }, Fabric::web_services)?;
        let file = Path::new(CAPTURE);
        let argv = ["tcpdump", "-Z", "root", "-U", "--immediate-mode", "-n", "-i", "eth0", "-w", CAPTURE, "tcp"];
        let mut capture = rig.fabric.client.spawn("tcpdump", &argv)?;
        let written = |least: u64| {
            let size = std::fs::metadata(file).map_or(0, |file| file.len());
            holds(size >= least, || format!("{size} bytes are written, not {least}"))
        };
        eventually("tcpdump to listen", PATIENCE, || written(1))?;
        let pairs: Vec<_> = Fabric::VIPS.into_iter().map(|vip| (rig.fabric.client_for(vip), vip)).collect();
        rig.fabric.request(&pairs, 4)?;
        // tcpdump is behind the wire by a moment: until what it writes has stopped growing.
        let mut last = 0;
        eventually("the packets", PATIENCE, || {
            std::thread::sleep(QUIET);
            let size = std::fs::metadata(file)?.len();
            let before = std::mem::replace(&mut last, size);
            holds(size == before, || format!("from {before} to {size} bytes"))
        })?;
        capture.signal(Signal::SIGINT)?;
        eventually("tcpdump to end", PATIENCE, || holds(capture.ended()?.is_some(), || "it runs".to_owned()))?;

        let agent = rig.agents.all().next().context("no agent")?;
        let config = agent.file().display().to_string();
        let arguments = ["simulate", "--config", &config, "--role", "edge", "--pcap", CAPTURE, "--format", "json"];
        let lines = rig.beeline.run(&rig.fabric.client, &arguments)?;
        let lines: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let mut sent = 0;
        for (number, line) in (1..).zip(&lines) {
            ensure!(line["packet"] == number, "line {number} is of another packet: {line}");
            let bytes = bytes(line)?;
            ensure!(line["length"] == bytes.len(), "the length is another: {line}");
            if line["verdict"] == "pass" {
                ensure!(
                    line["reason"] == "not_ours" && line["service"].is_null() && line["backend"].is_null(),
                    "{line}"
                );
                continue;
            }
            ensure!(line["verdict"] == "tx" && line["reason"] == "forwarded" && line["pod"].is_null(), "{line}");
            ensure!(bytes.starts_with(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]), "other MAC addresses: {line}");
            let backend: IpAddr = line["backend"].as_str().context("no backend")?.parse()?;
            let destination = match backend {
                IpAddr::V4(backend) => bytes[30..34] == backend.octets(),
                IpAddr::V6(backend) => bytes[38..54] == backend.octets(),
            };
            ensure!(destination, "not sent to its backend: {line}");
            sent += 1;
        }
        // A request is a SYN, an ACK, the question, and the end; the answers come straight from the nodes.
        ensure!(sent >= pairs.len() * 4 * 4 && lines.len() > sent, "{sent} of {} packets were sent", lines.len());
        Ok(())
    })
}
