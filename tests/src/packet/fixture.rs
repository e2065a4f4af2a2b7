//! Fixture files: packets with what is expected of them.
//!
//! ```yaml
//! description: What the packets of this file are about.
//! role: edge                      # edge | node | edge+node
//! config: {…}                     # the configuration of this file's packets
//! nodeAddresses: [10.0.0.11]      # the host's own addresses as a node; by default each backend's
//! nextHop: {mtu: 1400}            # by default as `beeline simulate` makes it up
//! packets:
//! - name: syn
//!   description: What this packet shows.
//!   in: [ipv4: {}, tcp: {flags: S}]
//!   verdict: tx                   # pass | drop | tx
//!   reason: forwarded
//!   service: web/http             # `none` for none; not compared if left out
//!   backend: 10.0.0.11
//!   out: [tunnel4: {}, received: {}]
//! - name: several                 # packets that follow each other: `sequence` has a list of such steps
//!   description: …
//!   sequence: [{in: […], verdict: …}, …]
//! ```
//!
//! All packets of a file run in order through the same maps. `out` may be left out where the frame comes out as it
//! came in. Its link layer is implied: the next hop's addresses in what is sent on, swapped in an answer, as it came in
//! what is passed; VLAN tags stay.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, ensure};
use serde::Deserialize;

use super::build::{Frame, Link, build};
use super::describe;
use super::layer::{Layer, Mac};

/// Which programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// The edge.
    Edge,
    /// The node.
    Node,
    /// Both, on one device.
    #[serde(rename = "edge+node")]
    EdgeAndNode,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Up to the host.
    Pass,
    /// Dropped.
    Drop,
    /// Sent by the device that it came from.
    Tx,
}

impl Verdict {
    /// The word for it in fixtures and in `beeline simulate`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Tx => "tx",
        }
    }
}

/// The made-up next hop of all backends.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NextHop {
    /// Source MAC address.
    pub source_mac: Mac,
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

impl Default for NextHop {
    /// As `beeline simulate` has it.
    fn default() -> Self {
        Self { source_mac: Mac([2, 0, 0, 0, 0, 1]), destination_mac: Mac([2, 0, 0, 0, 0, 2]), mtu: 1500 }
    }
}

/// A file of fixtures.
#[derive(Debug)]
pub struct FixtureFile {
    /// Where it was read.
    pub path: PathBuf,
    /// What its packets are about.
    pub description: String,
    /// Which programs run.
    pub role: Role,
    /// The configuration, as YAML (its subset JSON).
    pub config: String,
    /// The host's own addresses as a node; empty for each backend's.
    pub node_addresses: Vec<IpAddr>,
    /// The made-up next hop.
    pub next_hop: NextHop,
    /// The fixtures, in order.
    pub fixtures: Vec<Fixture>,
}

/// One packet, or several that follow each other.
#[derive(Debug)]
pub struct Fixture {
    /// Its name, once in a file.
    pub name: String,
    /// What it shows.
    pub description: String,
    /// The packets.
    pub steps: Vec<Step>,
}

/// One packet and what is expected of it.
#[derive(Debug)]
pub struct Step {
    /// The frame that comes in.
    pub received: Frame,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why, by the reason's name.
    pub reason: String,
    /// The service's name, or `none`; not compared if absent.
    pub service: Option<String>,
    /// The backend's address, or `none`; not compared if absent.
    pub backend: Option<String>,
    /// The frame that comes out.
    pub expected: Frame,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it, in the words of `beeline simulate`.
    pub verdict: String,
    /// Why, by the reason's name.
    pub reason: String,
    /// The service that was chosen, if any.
    pub service: Option<String>,
    /// The backend that was chosen, if any.
    pub backend: Option<IpAddr>,
    /// The frame that came out; as it came in for a drop.
    pub bytes: Vec<u8>,
}

impl Step {
    /// What is not as expected, for people; nothing if all is.
    #[must_use]
    pub fn difference(&self, outcome: &Outcome) -> Option<String> {
        let Outcome { verdict, reason, service, backend, bytes } = outcome;
        let backend = backend.map(|address| address.to_string());
        let mut text = String::new();
        let mut compare = |what: &str, wanted: &str, got: &str| {
            if wanted != got {
                text.push_str(&format!("{what}: wanted {wanted}, got {got}\n"));
            }
        };
        compare("verdict", self.verdict.name(), verdict);
        compare("reason", &self.reason, reason);
        for (what, wanted, got) in [("service", &self.service, service), ("backend", &self.backend, &backend)] {
            if let Some(wanted) = wanted {
                compare(what, wanted, got.as_deref().unwrap_or(NONE));
            }
        }
        if let Some(difference) = describe::difference(&self.expected, bytes) {
            text.push_str(&difference);
        }
        (!text.is_empty()).then(|| format!("came in:\n{}{text}", describe::describe(&self.received.bytes)))
    }
}

impl FixtureFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When the file cannot be read or is not as the module says; the error names the file and the fixture.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        Self::parse(path, &text).with_context(|| format!("{}", path.display()))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let raw: RawFile = serde_saphyr::from_str(text)?;
        let mut names = HashSet::new();
        let fixture = |raw_fixture: RawFixture| {
            let name = raw_fixture.name.clone();
            ensure!(names.insert(name.clone()), "packet {name}: the file has this name twice");
            raw_fixture.check(&raw.next_hop).with_context(|| format!("packet {name}"))
        };
        let fixtures: Vec<_> = raw.packets.into_iter().map(fixture).collect::<Result<_, _>>()?;
        ensure!(!fixtures.is_empty(), "packets: there are none");
        Ok(Self {
            path: path.to_owned(),
            description: raw.description,
            role: raw.role,
            config: serde_json::to_string(&raw.config)?,
            node_addresses: raw.node_addresses,
            next_hop: raw.next_hop,
            fixtures,
        })
    }

    /// Reads each `*.yaml` of a folder, in the order of their names.
    ///
    /// # Errors
    /// When the folder or one of the files cannot be read.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>, Error> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, Error>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFile {
    description: String,
    role: Role,
    config: serde_json::Value,
    #[serde(default)]
    node_addresses: Vec<IpAddr>,
    #[serde(default)]
    next_hop: NextHop,
    packets: Vec<RawFixture>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFixture {
    name: String,
    description: String,
    sequence: Option<Vec<RawStep>>,
    #[serde(rename = "in")]
    received: Option<Vec<Layer>>,
    verdict: Option<Verdict>,
    reason: Option<String>,
    service: Option<String>,
    backend: Option<String>,
    out: Option<Vec<Layer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawStep {
    #[serde(rename = "in")]
    received: Vec<Layer>,
    verdict: Verdict,
    reason: String,
    service: Option<String>,
    backend: Option<String>,
    out: Option<Vec<Layer>>,
}

impl RawFixture {
    fn check(self, next_hop: &NextHop) -> Result<Fixture, Error> {
        let Self { name, description, sequence, received, verdict, reason, service, backend, out } = self;
        ensure!(!description.is_empty(), "description: say what the packet shows");
        let steps = match (sequence, received, verdict, reason) {
            (Some(steps), None, None, None) if service.is_none() && backend.is_none() && out.is_none() => steps,
            (None, Some(received), Some(verdict), Some(reason)) => {
                vec![RawStep { received, verdict, reason, service, backend, out }]
            }
            _ => anyhow::bail!("it has either in, verdict and reason, or a sequence of such steps"),
        };
        let check = |(index, step): (usize, RawStep)| step.check(next_hop).with_context(|| format!("step {index}"));
        let steps = steps.into_iter().enumerate().map(check).collect::<Result<_, _>>()?;
        Ok(Fixture { name, description, steps })
    }
}

/// What a fixture says where no service or backend may be chosen.
const NONE: &str = "none";
/// What is sent on to a backend; it names the service and the backend.
const SENT_ON: [&str; 3] = ["forwarded", "fragment_forwarded", "icmp_error_forwarded"];
/// What passes changed.
const PASSED_CHANGED: &str = "decapsulated";

impl RawStep {
    fn check(self, next_hop: &NextHop) -> Result<Step, Error> {
        let Self { received, verdict, reason, service, backend, out } = self;
        let received = build(&received, Link::Incoming).context("in")?;
        let sent_on = SENT_ON.contains(&reason.as_str());
        let changed = verdict == Verdict::Tx || reason == PASSED_CHANGED;
        ensure!(out.is_some() == changed, "out: {} has {}", reason, if changed { "one" } else { "none" });
        ensure!(!sent_on || service.is_some() && backend.is_some(), "{reason} needs service and backend");
        let expected = match out {
            None => received.clone(),
            Some(layers) => {
                let link = match verdict {
                    Verdict::Tx if sent_on => Link::NextHop {
                        received: &received,
                        source: next_hop.source_mac,
                        destination: next_hop.destination_mac,
                    },
                    Verdict::Tx => Link::Swapped(&received),
                    Verdict::Pass | Verdict::Drop => Link::AsReceived(&received),
                };
                build(&layers, link).context("out")?
            }
        };
        Ok(Step { received, verdict, reason, service, backend, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(packets: &str) -> Result<FixtureFile, Error> {
        let text = format!("description: d\nrole: edge\nconfig: {{a: 1}}\npackets:\n{packets}");
        FixtureFile::parse(Path::new("x.yaml"), &text)
    }

    #[test]
    fn one_packet_and_a_sequence() {
        let file = parse(
            "- {name: a, description: d, in: [arp: {}], verdict: pass, reason: not_ours}\n\
             - name: b\n  description: d\n  sequence:\n  \
             - {in: [ipv4: {}, tcp: {}], verdict: drop, reason: unknown_port}\n  \
             - {in: [ipv4: {}, tcp: {}], verdict: tx, reason: forwarded, service: s/p, backend: 10.0.0.11, \
                  out: [tunnel4: {}, received: {}]}\n",
        )
        .unwrap();
        assert_eq!(file.config, r#"{"a":1}"#);
        assert_eq!(file.fixtures.iter().map(|f| f.steps.len()).collect::<Vec<_>>(), [1, 2]);
        let sent = &file.fixtures[1].steps[1];
        assert_eq!(sent.expected.bytes[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(sent.expected.bytes[34..], sent.received.bytes[14..]);
        assert_eq!(file.fixtures[0].steps[0].expected, file.fixtures[0].steps[0].received);
    }

    #[test]
    fn an_outcome_is_compared_in_all_that_the_fixture_says() {
        let file = parse(
            "- {name: a, description: d, in: [ipv4: {}, tcp: {}], verdict: drop, reason: no_backend, service: s/p, \
                backend: none}\n\
             - {name: b, description: d, in: [ipv4: {}, tcp: {}], verdict: tx, reason: forwarded, service: s/p, \
                backend: 10.0.0.11, out: [tunnel4: {}, received: {}]}\n",
        )
        .unwrap();
        let outcome = |step: &Step, backend: Option<&str>| Outcome {
            verdict: step.verdict.name().into(),
            reason: step.reason.clone(),
            service: step.service.clone(),
            backend: backend.map(|address| address.parse().unwrap()),
            bytes: step.expected.bytes.clone(),
        };
        let dropped = &file.fixtures[0].steps[0];
        assert_eq!(dropped.difference(&outcome(dropped, None)), None);
        assert!(
            dropped.difference(&outcome(dropped, Some("10.0.0.11"))).unwrap().contains("wanted none, got 10.0.0.11")
        );

        let sent = &file.fixtures[1].steps[0];
        let good = outcome(sent, Some("10.0.0.11"));
        assert_eq!(sent.difference(&good), None);
        let texts = [
            ("verdict: wanted tx, got redirect", Outcome { verdict: "redirect".into(), ..good.clone() }),
            ("reason: wanted forwarded, got echo_reply", Outcome { reason: "echo_reply".into(), ..good.clone() }),
            ("service: wanted s/p, got none", Outcome { service: None, ..good.clone() }),
            ("backend: wanted 10.0.0.11, got none", Outcome { backend: None, ..good.clone() }),
            ("bytes differ", Outcome { bytes: sent.received.bytes.clone(), ..good }),
        ];
        for (text, outcome) in texts {
            let difference = sent.difference(&outcome).unwrap();
            assert!(difference.contains(text) && difference.starts_with("came in:"), "{difference}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let error = |packets: &str| format!("{:#}", parse(packets).unwrap_err());
        let pass = "- {name: a, description: d, in: [arp: {}], verdict: pass, reason: not_ours}\n";
        assert!(error(&format!("{pass}{pass}")).contains("packet a: the file has this name twice"));
        assert!(
            error("- {name: a, description: d, in: [arp: {}], verdict: tx, reason: echo_reply}").contains("has one")
        );
        assert!(
            error("- {name: a, description: d, in: [arp: {}], verdict: drop, reason: martian_source, out: [arp: {}]}")
                .contains("has none")
        );
        assert!(
            error("- {name: a, description: d, in: [arp: {}], verdict: tx, reason: forwarded, out: [arp: {}]}")
                .contains("needs service and backend")
        );
        assert!(error("- {name: a, description: d, in: [arp: {}], verdict: pass}").contains("either in, verdict"));
        assert!(error("- {name: a, description: d, in: [arp: {}], verdict: pas, reason: x}").contains("pas"));
    }
}
