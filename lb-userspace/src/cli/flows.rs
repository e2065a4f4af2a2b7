//! `beeline flows`: the flows that this node has recorded, straight from the pinned map.
//!
//! A million of them take two walks of a second each and no more memory than one batch: the first walk counts, the
//! second writes.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use anyhow::{Context as _, Result};
use clap::Args;

use super::age::duration;
use super::client::Output;
use super::which::Which;
use crate::flows::{Filter, Flow, Flows, clock};

/// Arguments of `flows`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only those of this client's address.
    #[arg(long, value_name = "ADDR")]
    client: Option<IpAddr>,
    /// Only those to this VIP, with a port only those to that: `198.51.100.10:80`, `[2001:db8::10]:80`.
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = vip)]
    vip: Option<(IpAddr, Option<u16>)>,
    /// Only those to this pod's address.
    #[arg(long, value_name = "ADDR")]
    pod: Option<IpAddr>,
    /// Show so many at most.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// How they are printed.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    which: Which,
}

fn vip(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    let socket = || text.parse::<SocketAddr>().map(|socket| (socket.ip(), Some(socket.port())));
    let address = text.trim_start_matches('[').trim_end_matches(']');
    address.parse().map(|address| (address, None)).or_else(|_| socket()).map_err(|_| {
        format!("{text:?} is neither an address nor an address and a port, as 198.51.100.10:80 or [2001:db8::10]:80")
    })
}

/// What the first walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    capacity: u64,
    recorded: u64,
    expired: u64,
    matching: u64,
    /// Width of the widest client, VIP and pod.
    widths: [usize; 3],
}

/// Prints the recorded flows.
///
/// # Errors
/// Not root, nothing is pinned, the map cannot be read, or standard output cannot be written; one that is closed has
/// read enough.
pub fn run(arguments: &Arguments) -> Result<()> {
    let flows = Flows::open(&arguments.which.pin_path()?)?;
    let filter = Filter { client: arguments.client, vip: arguments.vip, pod: arguments.pod };
    let now = clock()?;
    let counts = count(&flows, &filter, now)?;
    let limit = arguments.limit.unwrap_or(u64::MAX);
    let mut printer = Printer { output: arguments.output, out: BufWriter::new(io::stdout().lock()), counts, shown: 0 };
    let mut written = printer.begin(limit);
    if limit > 0 {
        flows.walk(|key, record| {
            if written.is_ok() && filter.takes(key, record) {
                written = printer.flow(&Flow::new(key, record, now));
            }
            if written.is_err() || printer.shown >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
    }
    match written.and_then(|()| printer.end()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

fn count(flows: &Flows, filter: &Filter, now: u64) -> Result<Counts> {
    let mut counts = Counts { capacity: flows.capacity()?, ..Counts::default() };
    flows.walk(|key, record| {
        counts.recorded += 1;
        if record.is_expired(now, key.protocol()) {
            counts.expired += 1;
        }
        if filter.takes(key, record) {
            counts.take(&Flow::new(key, record, now));
        }
        ControlFlow::Continue(())
    })?;
    Ok(counts)
}

impl Counts {
    fn take(&mut self, flow: &Flow) {
        self.matching += 1;
        for (width, end) in self.widths.iter_mut().zip(ends(flow)) {
            *width = (*width).max(end.len());
        }
    }
}

/// Client, VIP and pod with their ports.
fn ends(flow: &Flow) -> [String; 3] {
    let end = |address, port| SocketAddr::new(address, port).to_string();
    [end(flow.client, flow.client_port), end(flow.vip, flow.vip_port), end(flow.pod, flow.pod_port)]
}

/// Writes as flows come.
struct Printer<W> {
    output: Output,
    out: W,
    counts: Counts,
    shown: u64,
}

impl<W: Write> Printer<W> {
    fn begin(&mut self, limit: u64) -> io::Result<()> {
        let Counts { capacity, recorded, expired, matching, widths } = &mut self.counts;
        match self.output {
            Output::Json => {
                write!(
                    self.out,
                    "{{\"recorded\":{recorded},\"expired\":{expired},\"capacity\":{capacity},\"matching\":{matching},\"flows\":["
                )
            }
            Output::Text => {
                let shown = limit.min(*matching);
                let of = if matching == recorded { String::new() } else { format!(" of {matching} that match") };
                writeln!(
                    self.out,
                    "{shown} shown{of}, of {recorded} recorded flows ({expired} expired); there is room for {capacity}"
                )?;
                if shown == 0 {
                    return Ok(());
                }
                for (width, heading) in widths.iter_mut().zip(["CLIENT", "VIP", "POD"]) {
                    *width = (*width).max(heading.len());
                }
                self.row(["CLIENT", "VIP", "POD"].map(str::to_owned), "PROTOCOL", "STATE", "AGE", "IDLE", "")
            }
        }
    }

    fn flow(&mut self, flow: &Flow) -> io::Result<()> {
        self.shown += 1;
        match self.output {
            Output::Json => {
                let comma = if self.shown == 1 { "" } else { "," };
                let flow = serde_json::to_string(flow).map_err(io::Error::from)?;
                write!(self.out, "{comma}\n{flow}")
            }
            Output::Text => {
                let (age, idle) = (duration(flow.age_seconds), duration(flow.idle_seconds));
                let mark = if flow.expired { "expired" } else { "" };
                self.row(ends(flow), &flow.protocol, &flow.state, &age, &idle, mark)
            }
        }
    }

    fn row(
        &mut self,
        ends: [String; 3],
        protocol: &str,
        state: &str,
        age: &str,
        idle: &str,
        mark: &str,
    ) -> io::Result<()> {
        let [client, vip, pod] = &ends;
        let [a, b, c] = self.counts.widths;
        let line =
            format!("{client:<a$}  {vip:<b$}  {pod:<c$}  {protocol:<8}  {state:<11}  {age:>8}  {idle:>8}  {mark}");
        writeln!(self.out, "{}", line.trim_end())
    }

    fn end(&mut self) -> io::Result<()> {
        if matches!(self.output, Output::Json) {
            writeln!(self.out, "\n],\"shown\":{}}}", self.shown)?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: &str, port: u16, vip: &str, expired: bool) -> Flow {
        Flow {
            protocol: "TCP".to_owned(),
            client: client.parse().expect("an address"),
            client_port: port,
            vip: vip.parse().expect("an address"),
            vip_port: 80,
            pod: if vip.contains(':') { "fd44:1::b" } else { "10.244.1.11" }.parse().expect("an address"),
            pod_port: 8080,
            state: if expired { "closing" } else { "established" }.to_owned(),
            age_seconds: 3_700,
            idle_seconds: 61,
            expired,
        }
    }

    fn printed(output: Output, limit: u64) -> String {
        let flows = [flow("10.60.0.2", 40_000, "198.51.100.10", false), flow("fd60::2", 50_000, "2001:db8::11", true)];
        let mut counts = Counts { capacity: 1_000_000, recorded: 12, expired: 3, ..Counts::default() };
        flows.iter().for_each(|flow| counts.take(flow));
        let mut printer = Printer { output, out: Vec::new(), counts, shown: 0 };
        printer.begin(limit).expect("a vector takes it");
        for flow in flows.iter().take(limit as usize) {
            printer.flow(flow).expect("a vector takes it");
        }
        printer.end().expect("a vector takes it");
        String::from_utf8(printer.out).expect("text")
    }

    #[test]
    fn flows_line_up() {
        assert_eq!(
            printed(Output::Text, u64::MAX),
            "\
2 shown of 2 that match, of 12 recorded flows (3 expired); there is room for 1000000
CLIENT           VIP                POD               PROTOCOL  STATE             AGE      IDLE
10.60.0.2:40000  198.51.100.10:80   10.244.1.11:8080  TCP       established     1h 1m     1m 1s
[fd60::2]:50000  [2001:db8::11]:80  [fd44:1::b]:8080  TCP       closing         1h 1m     1m 1s  expired
"
        );
    }

    #[test]
    fn none_is_said_to_be_none() {
        let mut printer = Printer { output: Output::Text, out: Vec::new(), counts: Counts::default(), shown: 0 };
        printer.begin(u64::MAX).expect("a vector takes it");
        assert_eq!(printer.out, b"0 shown, of 0 recorded flows (0 expired); there is room for 0\n");
    }

    #[test]
    fn a_document_is_one_whatever_the_number() {
        for (limit, shown) in [(0, 0), (1, 1), (9, 2)] {
            let json: serde_json::Value = serde_json::from_str(&printed(Output::Json, limit)).expect("JSON");
            assert_eq!(json["shown"], shown);
            assert_eq!(json["flows"].as_array().map(Vec::len), Some(shown));
            assert_eq!((json["recorded"].as_u64(), json["matching"].as_u64()), (Some(12), Some(2)));
        }
    }

    #[test]
    fn a_vip_with_and_without_a_port() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(vip("198.51.100.10"), Ok((address("198.51.100.10"), None)));
        assert_eq!(vip("198.51.100.10:80"), Ok((address("198.51.100.10"), Some(80))));
        assert_eq!(vip("2001:db8::10"), Ok((address("2001:db8::10"), None)));
        assert_eq!(vip("[2001:db8::10]:80"), Ok((address("2001:db8::10"), Some(80))));
        assert!(vip("198.51.100").is_err());
    }
}
