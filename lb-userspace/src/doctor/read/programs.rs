//! The programs on an interface, and which of them are this agent's: those that its pins speak of.

use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifier;
use aya::programs::{ProgramInfo, TcAttachType, loaded_programs};
use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{LinkXdp, XdpAttached};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::Handle;

use crate::datapath::links::tc::{Hook, Way, clsact_pin, tcx_pin};
use crate::datapath::pins::Pins;

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name and id; of a filter of TC that is no BPF program, its kind.
    pub name: String,
    /// Whether a pin under pinPath is of it.
    pub ours: bool,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Which it is.
    pub program: Program,
    /// Whether it runs in generic mode.
    pub generic: bool,
}

/// The programs on one way of an interface through TC in their order, or why they cannot be listed.
pub type OnTc = Result<Vec<Program>, String>;

/// What XDP attributes of a link message say: id, and whether in generic mode.
pub(super) fn xdp_id(attributes: &[LinkXdp]) -> Option<(u32, bool)> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    Some((id, attributes.iter().any(|one| matches!(one, LinkXdp::Attached(XdpAttached::SocketBuffer)))))
}

/// The XDP program of this id on an interface.
pub(super) fn xdp(pins: &Pins, interface: &str, index: u32, (id, generic): (u32, bool)) -> Xdp {
    let pin = pins.link(interface, index);
    // An older agent's link has the same name in the folder of another ABI version.
    let all = pins.all_links().unwrap_or_default();
    let mut same = all.iter().filter(|link| link.file_name() == pin.file_name());
    let ours = same.any(|link| linked(link) == Some(id));
    Xdp { program: Program { name: named(id), ours }, generic }
}

/// The programs on a way of an interface: TCX's (Linux 6.6) run before filters of clsact.
pub(super) async fn on_tc(handle: &Handle, pins: &Pins, interface: &str, index: u32, hook: Hook) -> OnTc {
    let mut programs = match Way::of_this_kernel() {
        Way::Tcx => tcx(pins, interface, index, hook)?,
        Way::Clsact => Vec::new(),
    };
    let device = i32::try_from(index).map_err(|error| error.to_string())?;
    let filters = handle.clone().traffic_filter(device).get();
    let filters = match hook {
        Hook::Out => filters.egress(),
        Hook::In => filters.ingress(),
    };
    let mut filters: Vec<TcMessage> = filters.execute().try_collect().await.map_err(|error| error.to_string())?;
    // The upper half of `info` is the priority (include/uapi/linux/rtnetlink.h, `struct tcmsg`); the sort is stable.
    filters.sort_by_key(|filter| filter.header.info >> 16);
    let ours = pinned(&clsact_pin(pins, interface, index, hook));
    programs.extend(filters.iter().filter_map(|filter| classifier(filter, ours)));
    Ok(programs)
}

fn tcx(pins: &Pins, interface: &str, index: u32, hook: Hook) -> OnTc {
    let way = match hook {
        Hook::Out => TcAttachType::Egress,
        Hook::In => TcAttachType::Ingress,
    };
    let (_, infos) = SchedClassifier::query_tcx(interface, way).map_err(|error| error.to_string())?;
    let ours = linked(&tcx_pin(pins, interface, index, hook));
    Ok(infos.iter().map(|info| Program { name: shown(info), ours: ours == Some(info.id()) }).collect())
}

/// A filter by its program. Each priority is announced once more without a filter, and has no options then.
fn classifier(message: &TcMessage, ours: Option<u32>) -> Option<Program> {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let id = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    Some(match id {
        Some(id) => Program { name: named(id), ours: ours == Some(id) },
        None => Program { name: format!("a filter ({kind})"), ours: false },
    })
}

/// The program of a pinned link.
fn linked(pin: &Path) -> Option<u32> {
    let link: FdLink = PinnedLink::from_pin(pin).ok()?.into();
    Some(link.info().ok()?.program_id())
}

/// The id of a pinned program.
fn pinned(pin: &Path) -> Option<u32> {
    Some(ProgramInfo::from_pin(pin).ok()?.id())
}

/// To ask for a program by its id takes `CAP_SYS_ADMIN` (`bpf_prog_get_fd_by_id`, Linux 6.18): an id is all that is
/// known without.
fn named(id: u32) -> String {
    let mut programs = loaded_programs().filter_map(Result::ok);
    programs.find(|info| info.id() == id).map_or_else(|| format!("program {id}"), |info| shown(&info))
}

fn shown(info: &ProgramInfo) -> String {
    match info.name_as_str() {
        Some(name) if !name.is_empty() => format!("{name} (id {})", info.id()),
        _ => format!("program {}", info.id()),
    }
}
