//! Fixture files: packets with what is expected of them.
//!
//! ```yaml
//! description: What the packets of this file are about.
//! role: edge                      # edge | node | edge+node | return
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
//! - name: replies                 # a step may be another role's, through the same maps: a pod's replies after requests
//!   description: …
//!   sequence: [{role: node, in: […], pod: 10.244.1.10, …}, {role: return, in: […], …}]
//! ```
//!
//! All packets of a file run in order through the same maps. `out` may be left out where the frame comes out as it
//! came in. Its link layer is implied: the next hop's addresses in what is sent on, swapped in an answer, as it came in
//! what is passed; VLAN tags stay.
//!
//! `pod` is an address, `none`, or `any` of the file's pods. Which one of several a packet goes to is known by the tables
//! alone: with `any` the destination of the first IP header of `out` is the pod that was chosen, whichever it is, and
//! `samePodAs: 0` and `otherPodThan: 0` compare it with that of a step of the same fixture, by its number.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, ensure};
use serde::Deserialize;

use raw::{NONE, RawFile, RawFixture};

use super::build::{Frame, Link, build};
use super::describe;
use super::layer::{Layer, Mac};

mod raw;

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
    /// The replies of a node's pods, on their way out.
    Return,
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

/// The pod that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodWanted {
    /// None.
    None,
    /// This one.
    Address(IpAddr),
    /// One of several.
    Any,
}

/// One packet and what is expected of it.
#[derive(Debug)]
pub struct Step {
    /// Which programs run.
    pub role: Role,
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
    /// The pod; not compared if absent.
    pub pod: Option<PodWanted>,
    /// The number of a step of the fixture that has the same pod.
    pub same_pod_as: Option<usize>,
    /// The number of a step of the fixture that has another pod.
    pub other_pod_than: Option<usize>,
    /// The frame that comes out; where any pod may be chosen, with the destination that `out` has.
    pub expected: Frame,
    /// What comes out, where any pod may be chosen.
    out: Option<Vec<Layer>>,
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
    /// The pod that was chosen, if any.
    pub pod: Option<IpAddr>,
    /// The frame that came out; as it came in for a drop.
    pub bytes: Vec<u8>,
}

impl Step {
    /// What is not as expected, for people; nothing if all is. `pods` are those of the fixture's steps before.
    #[must_use]
    pub fn difference(&self, outcome: &Outcome, pods: &[Option<IpAddr>]) -> Option<String> {
        let Outcome { verdict, reason, service, backend, pod, bytes } = outcome;
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
        text.extend(self.pod_difference(*pod, pods));
        match self.expected_with(*pod) {
            Ok(expected) => text.extend(describe::difference(&expected, bytes)),
            Err(error) => text.push_str(&format!("{error:#}\n")),
        }
        (!text.is_empty()).then(|| format!("came in:\n{}{text}", describe::describe(&self.received.bytes)))
    }

    fn pod_difference(&self, pod: Option<IpAddr>, pods: &[Option<IpAddr>]) -> Option<String> {
        let wanted = match (self.pod, pod) {
            (Some(PodWanted::None), Some(_)) => NONE.to_owned(),
            (Some(PodWanted::Any), None) => "any".to_owned(),
            (Some(PodWanted::Address(wanted)), pod) if pod != Some(wanted) => wanted.to_string(),
            _ => match (self.same_pod_as.map(|step| pods[step]), self.other_pod_than.map(|step| pods[step])) {
                (Some(same), _) if same != pod => format!("the same as before, {same:?}"),
                (_, Some(other)) if other == pod => "another than before".to_owned(),
                _ => return None,
            },
        };
        let got = pod.map_or_else(|| NONE.to_owned(), |pod| pod.to_string());
        Some(format!("pod: wanted {wanted}, got {got}\n"))
    }

    /// What should come out if this pod was chosen.
    fn expected_with(&self, pod: Option<IpAddr>) -> Result<Frame, Error> {
        let (Some(out), Some(pod)) = (&self.out, pod) else { return Ok(self.expected.clone()) };
        let mut out = out.clone();
        let turned = out.iter_mut().any(|layer| match (layer, pod) {
            (Layer::Ipv4(header), IpAddr::V4(pod)) => header.dst.replace(pod).is_some(),
            (Layer::Ipv6(header), IpAddr::V6(pod)) => header.dst.replace(pod).is_some(),
            _ => false,
        });
        ensure!(turned, "out: no IP header with `dst` for pod {pod}");
        build(&out, Link::AsReceived(&self.received)).context("out")
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
            raw_fixture.check(raw.role, &raw.next_hop).with_context(|| format!("packet {name}"))
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

#[cfg(test)]
mod tests;
