//! `beeline simulate`: what the real programs would do with the packets of a capture.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use lb_common::verdict::Reason;
use serde::Serialize;

use crate::config;
use crate::plan::HostRoles;
use crate::simulate::capture::{Capture, Writer};
use crate::simulate::{Outcome, Simulator, Surroundings};

/// Arguments of `simulate`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The configuration file that the maps are made from.
    #[arg(long, required_unless_present = "reasons")]
    config: Option<PathBuf>,
    /// The role of the host that the packets come to.
    #[arg(long, value_enum, required_unless_present = "reasons")]
    role: Option<Role>,
    /// The capture: pcap or pcapng, link type Ethernet.
    #[arg(long, value_name = "IN", required_unless_present = "reasons")]
    pcap: Option<PathBuf>,
    /// Write the resulting frames, but for dropped ones, to a pcap file.
    #[arg(long, value_name = "OUT")]
    write: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Source MAC address of packets that are sent.
    #[arg(long, value_parser = mac, default_value = "02:00:00:00:00:01")]
    source_mac: [u8; 6],
    /// Destination MAC address of packets that are sent.
    #[arg(long, value_parser = mac, default_value = "02:00:00:00:00:02")]
    next_hop_mac: [u8; 6],
    /// MTU towards every backend, in bytes.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(576..=65535))]
    mtu: u32,
    /// An address of this host as a node (repeatable); without one, every backend's address is this host's.
    #[arg(long, value_name = "ADDRESS")]
    node_address: Vec<IpAddr>,
    /// List all reasons that a packet may get, and stop.
    #[arg(long)]
    reasons: bool,
}

/// Whose programs.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    /// Packets for VIPs.
    Edge,
    /// Tunnel packets.
    Node,
    /// Both on one interface.
    EdgeNode,
    /// Replies of a node's pods, on their way out.
    Return,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// One line of JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Outcome {
        packet: u64,
        verdict: &'a str,
        reason: &'a str,
        service: Option<&'a str>,
        backend: Option<IpAddr>,
        pod: Option<IpAddr>,
        length: usize,
        bytes: String,
    },
    Error {
        packet: u64,
        error: &'a str,
    },
}

/// Run the command.
///
/// # Errors
/// The configuration or the capture cannot be used, or there is no right to use BPF. A packet that cannot be run is no
/// error.
pub fn run(arguments: &Arguments) -> Result<()> {
    match print(arguments) {
        // A reader that has gone, such as head, has read enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        result => result,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn print(arguments: &Arguments) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    if arguments.reasons {
        for reason in Reason::ALL {
            writeln!(out, "{:<28} {:<7}{}", reason.name(), verdict(*reason), reason.description())?;
        }
        return Ok(out.flush()?);
    }
    let config = arguments.config.as_deref().context("--config is missing")?;
    let config = config::load(config)?;
    let read = arguments.pcap.as_deref().context("--pcap is missing")?;
    let mut capture = Capture::open(read)?;
    if let Some(write) = arguments.write.as_deref().filter(|write| is_same_file(read, write)) {
        bail!("--write {} is the capture that is read: name another file", write.display());
    }
    let mut writer = arguments.write.as_deref().map(Writer::create).transpose()?;
    let mut simulator = Simulator::new(&config, &surroundings(arguments)?)?;
    let run = if matches!(arguments.role, Some(Role::Return)) { Simulator::run_return } else { Simulator::run };
    let mut number = 0;
    while let Some(captured) = capture.next_packet() {
        number += 1;
        let captured = captured.with_context(|| format!("packet {number}"))?;
        let outcome =
            captured.frame.and_then(|frame| run(&mut simulator, &frame).map_err(|error| format!("{error:#}")));
        if let (Some(writer), Ok(outcome)) = (&mut writer, &outcome)
            && outcome.verdict != "drop"
        {
            writer.write(captured.timestamp, &outcome.bytes)?;
        }
        match arguments.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string(&line(number, &outcome))?)?,
            Format::Text => writeln!(out, "{}", text(number, &outcome))?,
        }
    }
    Ok(out.flush()?)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((inode(one), inode(other)), (Ok(one), Ok(other)) if one == other)
}

fn surroundings(arguments: &Arguments) -> Result<Surroundings> {
    let role = arguments.role.context("--role is missing")?;
    let roles = match role {
        Role::Edge => HostRoles { edge: true, node: false },
        Role::Node | Role::Return => HostRoles { edge: false, node: true },
        Role::EdgeNode => HostRoles { edge: true, node: true },
    };
    let addresses: BTreeSet<IpAddr> = arguments.node_address.iter().copied().collect();
    Ok(Surroundings {
        source_mac: arguments.source_mac,
        next_hop_mac: arguments.next_hop_mac,
        mtu: arguments.mtu,
        node_addresses: if addresses.is_empty() { None } else { Some(addresses) },
        ..Surroundings::new(roles)
    })
}

/// The verdict that goes with a reason, when what is sent leaves by the interface that it came by.
const fn verdict(reason: Reason) -> &'static str {
    match reason.action() {
        lb_common::verdict::Action::Pass => "pass",
        lb_common::verdict::Action::Send | lb_common::verdict::Action::Answer => "tx",
        lb_common::verdict::Action::Drop => "drop",
    }
}

fn line<'a>(packet: u64, outcome: &'a std::result::Result<Outcome, String>) -> Line<'a> {
    match outcome {
        Err(error) => Line::Error { packet, error },
        Ok(outcome) => Line::Outcome {
            packet,
            verdict: outcome.verdict,
            reason: outcome.reason.name(),
            service: outcome.service.as_deref(),
            backend: outcome.backend,
            pod: outcome.pod,
            length: outcome.bytes.len(),
            bytes: outcome.bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        },
    }
}

fn text(packet: u64, outcome: &std::result::Result<Outcome, String>) -> String {
    match outcome {
        Err(error) => format!("{packet:>6}  error: {error}"),
        Ok(outcome) => {
            let service = outcome.service.as_deref().unwrap_or("-");
            let name = |address: Option<IpAddr>| address.map_or_else(|| "-".to_owned(), |address| address.to_string());
            let (backend, pod) = (name(outcome.backend), name(outcome.pod));
            let (verdict, reason, length) = (outcome.verdict, outcome.reason.name(), outcome.bytes.len());
            format!("{packet:>6}  {verdict:<8} {reason:<26} {service:<24} {backend:<24} {pod:<24} {length:>5} bytes")
        }
    }
}

/// A MAC address of a host.
fn mac(text: &str) -> std::result::Result<[u8; 6], String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| format!("{text:?} is no MAC address: write it as 02:00:00:00:00:01"))?;
    }
    if parts.next().is_some() || mac[0] & 1 == 1 {
        return Err(format!("{text:?} is no host's MAC address: write it as 02:00:00:00:00:01"));
    }
    Ok(mac)
}
