//! The embedded BPF object: loaded with the sizes of a configuration, pinned or not.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::ProgramArray;
use aya::programs::{ProgramFd, ProgramInfo, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::maps::{NODE_STAGE, SLOTS_PER_WORD, SLOTS_UNIT, SLOW_STAGE};

use crate::config::MapSizes;

/// The object that the build script made of lb-ebpf. Aligned as ELF readers want it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/beeline.bpf.o"));

/// The programs, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// VIPs' packets.
    Edge,
    /// Tunnel packets.
    Node,
    /// Both.
    EdgeNode,
    /// The edge's longer way, for the two with an edge in them.
    Slow,
    /// The node's longer way, for the two with a node in them.
    NodeSlow,
    /// Passes everything: the other end of a veth pair in a test bed.
    Pass,
    /// Pods' replies, on TC.
    Return,
    /// The longer way of replies.
    ReturnSlow,
    /// Tunnel packets, on TC.
    NodeTc,
    /// The node's longer way, on TC.
    NodeTcSlow,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Edge,
        Self::Node,
        Self::EdgeNode,
        Self::Slow,
        Self::NodeSlow,
        Self::Pass,
        Self::Return,
        Self::ReturnSlow,
        Self::NodeTc,
        Self::NodeTcSlow,
    ];

    /// The program's name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "beeline_edge",
            Self::Node => "beeline_node",
            Self::EdgeNode => "beeline_edge_node",
            Self::Slow => "beeline_slow",
            Self::NodeSlow => "beeline_node_slow",
            Self::Pass => "beeline_pass",
            Self::Return => "beeline_return",
            Self::ReturnSlow => "beeline_return_slow",
            Self::NodeTc => "beeline_node_tc",
            Self::NodeTcSlow => "beeline_node_tc_slow",
        }
    }

    /// Whether it runs on TC, not on XDP.
    #[must_use]
    pub const fn is_classifier(self) -> bool {
        match self {
            Self::Edge | Self::Node | Self::EdgeNode | Self::Slow | Self::NodeSlow | Self::Pass => false,
            Self::Return | Self::ReturnSlow | Self::NodeTc | Self::NodeTcSlow => true,
        }
    }

    /// The XDP program for an interface with these roles; `None` without a role.
    #[must_use]
    pub const fn for_roles(edge: bool, node: bool) -> Option<Self> {
        match (edge, node) {
            (true, true) => Some(Self::EdgeNode),
            (true, false) => Some(Self::Edge),
            (false, true) => Some(Self::Node),
            (false, false) => None,
        }
    }
}

/// Names of the maps and the number of entries that a configuration asks for. On a host without `pods`, which is no
/// node, the maps for them are as small as can be.
#[must_use]
pub fn map_entries(sizes: &MapSizes, pods: bool) -> [(&'static str, u32); 17] {
    // Room to write a service's new backends beside its old ones, each region rounded up to a power of two.
    let backends = (sizes.backends.max(64).saturating_mul(2)).next_power_of_two();
    let of_node = |entries: u32, least: u32| if pods { entries.max(least) } else { least };
    let replies = of_node(sizes.services.saturating_mul(2), 64);
    [
        ("SERVICES", sizes.services.saturating_mul(2).max(64)),
        ("SERVICE_WORDS", sizes.services.max(64)),
        ("SLOTS", sizes.slots.next_power_of_two() / SLOTS_PER_WORD),
        ("BACKENDS", backends),
        ("NEXT_HOPS", sizes.backends.max(64).next_power_of_two().min(1 << 16)),
        ("BACKEND_COUNTERS", sizes.backends.max(64)),
        ("FRAGMENTS", 16_384),
        // A word for each service on every host: it says that its packets are the host's.
        ("POD_WORDS", sizes.services.max(64)),
        // 8 bytes a slot: a node's table has at most 1024.
        ("POD_CELLS", of_node(1 << (sizes.slots / 2).max(1).ilog2(), SLOTS_UNIT)),
        ("PODS", of_node(backends.min(MAX_PODS), 1)),
        ("POD_COUNTERS", of_node(sizes.backends.min(MAX_PODS / 2), 1)),
        ("POD_DEVICES", of_node(4096, 1)),
        ("RECORDS", of_node(sizes.flows, 64)),
        ("REPLIES", replies),
        ("REPLY_WORDS", replies),
        ("REPLY_TARGETS", replies),
        ("REPLY_COUNTERS", replies),
    ]
}

/// How many internal networks fit: the size in the object, for which memory is taken only as they come.
pub const INTERNAL_NETWORKS: u32 = 1 << 18;

/// Most entries for the pods of one node, each of 64 bytes: kubelets take 110 pods unless told otherwise.
const MAX_PODS: u32 = 1 << 17;

/// Whether a map may hold more than this host asks for: those for pods, on a host that is no node any more.
#[must_use]
pub fn may_be_larger(name: &str, pods: bool) -> bool {
    const OF_NODES: [&str; 9] = [
        "POD_CELLS",
        "PODS",
        "POD_COUNTERS",
        "POD_DEVICES",
        "RECORDS",
        "REPLIES",
        "REPLY_WORDS",
        "REPLY_TARGETS",
        "REPLY_COUNTERS",
    ];
    !pods && OF_NODES.contains(&name)
}

/// Load the object. Maps are found or made under `pins`, if given; for `pods` as [`map_entries`] says.
///
/// # Errors
/// The kernel refuses the object or a map: not root, no BPF, or maps pinned with other sizes.
pub fn load(sizes: &MapSizes, pods: bool, pins: Option<&Path>, debug: bool) -> Result<Ebpf> {
    let entries = map_entries(sizes, pods);
    let debug = u32::from(debug);
    let frags = u32::from(kernel_has_frags());
    let mut loader = EbpfLoader::new();
    for (name, entries) in &entries {
        loader.map_max_entries(name, *entries);
    }
    if let Some(pins) = pins {
        for name in MAPS {
            loader.map_pin_path(name, pins.join(name.to_lowercase()));
        }
    }
    loader.override_global("DEBUG", &debug, true);
    loader.override_global("XDP_FRAGS", &frags, true);
    // A simulation is no host with routes: its answers go back where the questions came from.
    let routes = u32::from(pins.is_some());
    loader.override_global("ROUTES", &routes, true);
    loader.load(OBJECT).with_context(|| {
        if nix::unistd::geteuid().is_root() {
            "the kernel refuses the BPF maps"
        } else {
            "BPF needs root (or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"
        }
    })
}

/// Every map of the object that is pinned.
pub const MAPS: [&str; 29] = [
    "PREFILTER",
    "SERVICES",
    "SERVICE_WORDS",
    "SLOTS",
    "BACKENDS",
    "NEXT_HOPS",
    "SETTINGS",
    "TUNNEL_ADDRESSES",
    "TRUSTED",
    "FRAGMENTS",
    "BACKEND_COUNTERS",
    "REASONS",
    "DEVICES",
    "STAGES",
    "RETURN_STAGES",
    "TRACE",
    "POD_WORDS",
    "POD_CELLS",
    "PODS",
    "POD_DEVICES",
    "POD_COUNTERS",
    "INTERNAL",
    "RECORDS",
    "REPLIES",
    "REPLY_WORDS",
    "REPLY_TARGETS",
    "REPLY_COUNTERS",
    "RECORDED",
    "ANSWERS",
];

/// An XDP program of the object, verified and loaded.
///
/// # Errors
/// The verifier refuses it.
pub fn program(object: &mut Ebpf, which: Program) -> Result<&mut Xdp> {
    let program: &mut Xdp =
        any(object, which)?.try_into().with_context(|| format!("{} is not an XDP program", which.name()))?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("the verifier refuses {}", which.name()))?;
    }
    Ok(program)
}

/// A program of the object for TC, verified and loaded.
///
/// # Errors
/// The verifier refuses it.
pub fn classifier(object: &mut Ebpf, which: Program) -> Result<&mut SchedClassifier> {
    let program: &mut SchedClassifier =
        any(object, which)?.try_into().with_context(|| format!("{} is not a program for TC", which.name()))?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("the verifier refuses {}", which.name()))?;
    }
    Ok(program)
}

/// What the kernel says of a program, which is loaded for it.
///
/// # Errors
/// The verifier refuses it.
pub fn info(object: &mut Ebpf, which: Program) -> Result<ProgramInfo> {
    let info = if which.is_classifier() { classifier(object, which)?.info() } else { program(object, which)?.info() };
    info.with_context(|| format!("asking the kernel for {}", which.name()))
}

fn any(object: &mut Ebpf, which: Program) -> Result<&mut aya::programs::Program> {
    object.program_mut(which.name()).with_context(|| format!("the BPF object has no program {}", which.name()))
}

/// Put the programs of the longer ways where the others find them.
///
/// # Errors
/// The verifier refuses one, or the map cannot be written.
pub fn link_stages(object: &mut Ebpf) -> Result<()> {
    for (stage, which) in [(SLOW_STAGE, Program::Slow), (NODE_STAGE, Program::NodeSlow)] {
        let slow = program(object, which)?.fd().with_context(|| which.name())?.try_clone()?;
        link(object, "STAGES", stage, &slow)?;
    }
    Ok(())
}

/// As [`link_stages`], for the programs on TC.
///
/// # Errors
/// As there.
pub fn link_tc_stages(object: &mut Ebpf) -> Result<()> {
    for (stage, which) in [(SLOW_STAGE, Program::ReturnSlow), (NODE_STAGE, Program::NodeTcSlow)] {
        let slow = classifier(object, which)?.fd().with_context(|| which.name())?.try_clone()?;
        link(object, "RETURN_STAGES", stage, &slow)?;
    }
    Ok(())
}

fn link(object: &mut Ebpf, map: &str, stage: u32, program: &ProgramFd) -> Result<()> {
    let stages = object.map_mut(map).with_context(|| format!("no map {map}"))?;
    let mut stages = ProgramArray::try_from(stages).with_context(|| map.to_owned())?;
    stages.set(stage, program, 0).context("linking the programs")
}

/// Whether the kernel takes XDP programs for frames in several pieces: 5.18 and later.
fn kernel_has_frags() -> bool {
    aya::util::KernelVersion::current().is_ok_and(|version| version >= aya::util::KernelVersion::new(5, 18, 0))
}
