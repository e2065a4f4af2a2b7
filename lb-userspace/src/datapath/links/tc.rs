//! Programs on TC: on a device's way out for pods' replies, and on its way in for tunnel packets where XDP cannot be had.
//!
//! With kernel 6.6 and later by a TCX link, pinned as XDP links are, at the head: no program before ours sees a reply as the
//! pod's and decides about it. Below, by a filter of the qdisc clsact, which stays by itself; a pin of the program says that
//! it is there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use nix::errno::Errno;

use super::Attached;
use crate::datapath::object::{self, Program};
use crate::datapath::pins::{Pins, unpin};

/// Which way of a device a program stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Out, for pods' replies.
    Out,
    /// In, for tunnel packets.
    In,
}

impl Hook {
    const fn program(self) -> Program {
        match self {
            Self::Out => Program::Return,
            Self::In => Program::NodeTc,
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Out => TcAttachType::Egress,
            Self::In => TcAttachType::Ingress,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// By which of the kernel's two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// TCX: kernel 6.6.
    Tcx,
    /// A filter of the qdisc clsact: kernel 4.5.
    Clsact,
}

impl Way {
    /// The better one that this kernel has.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => Self::Tcx,
            _ => Self::Clsact,
        }
    }
}

/// Priority of the filter: before all others that leave the choice to the kernel, which begins at 49152.
const PRIORITY: u16 = 1;
/// Handle of the filter, by which it is found again.
const HANDLE: TcHandle = TcHandle::new(0, 0xbee);

/// Put the program at the head of a device's way, in place of our own older one if there is one. A packet that both
/// see meanwhile is rewritten once: it is the VIP's then.
///
/// # Errors
/// The device is gone, the verifier refuses the program, or another filter has our place.
pub fn attach(object: &mut Ebpf, pins: &Pins, interface: &str, index: u32, hook: Hook, way: Way) -> Result<Attached> {
    object::link_tc_stages(object)?;
    match way {
        Way::Tcx => attach_tcx(object, &tcx_pin(pins, interface, index, hook), interface, index, hook),
        Way::Clsact => attach_clsact(object, &clsact_pin(pins, interface, index, hook), interface, hook),
    }
}

fn attach_tcx(object: &mut Ebpf, pin: &Path, interface: &str, index: u32, hook: Hook) -> Result<Attached> {
    let program = object::classifier(object, hook.program())?;
    let old = if pin.exists() { Some(open(pin)?) } else { None };
    if let Some(old) = old
        && heads(&old, interface, hook)?
    {
        let link = SchedClassifierLink::try_from(old).context("the pin is no link of TCX")?;
        let id = program.attach_to_link(link).with_context(|| format!("replacing the program on {interface}"))?;
        // The pin holds the link; the program's own handle on it would end it.
        drop(FdLink::try_from(program.take_link(id)?).context("no BPF link")?);
        return Ok(Attached::Replaced);
    }
    let first = |program: &mut SchedClassifier| {
        program.attach_with_options(interface, hook.attach_type(), TcAttachOptions::TcxOrder(LinkOrder::first()))
    };
    let id = match first(program) {
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(Errno::EEXIST as i32) => {
            // A device takes a program once. The older link has this one: another of the same kind goes to the head.
            program.unload()?;
            program.load()?;
            first(program)
        }
        attached => attached,
    };
    let id = id.with_context(|| format!("attaching to {interface} ({index}) on its way {}", hook.name()))?;
    let link = FdLink::try_from(program.take_link(id)?).context("no BPF link")?;
    let existed = pin.exists();
    let beside = with(pin.to_owned(), "%new");
    if beside.exists() {
        unpin(&beside)?;
    }
    drop(link.pin(&beside).with_context(|| format!("pinning the link at {}", beside.display()))?);
    // The older link ends with its pin.
    fs::rename(&beside, pin).with_context(|| format!("moving the pin {}", beside.display()))?;
    Ok(if existed { Attached::Replaced } else { Attached::New })
}

fn attach_clsact(object: &mut Ebpf, pin: &Path, interface: &str, hook: Hook) -> Result<Attached> {
    let program = object::classifier(object, hook.program())?;
    // Fails where it is already: then the filter can be added, or says why not.
    let _ = qdisc_add_clsact(interface);
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let (id, how) = if pin.exists() {
        match program.attach_to_link(filter(interface, hook)?) {
            Ok(id) => (Some(id), Attached::Replaced),
            // Somebody removed it.
            Err(_) => (None, Attached::New),
        }
    } else {
        (None, Attached::New)
    };
    let id = match id {
        Some(id) => id,
        None => program
            .attach_with_options(interface, hook.attach_type(), TcAttachOptions::Netlink(options))
            .with_context(|| format!("adding the filter {PRIORITY} to {interface} on its way {}", hook.name()))?,
    };
    // Dropped, it would remove the filter.
    std::mem::forget(program.take_link(id)?);
    if pin.exists() {
        unpin(pin)?;
    }
    program.pin(pin).with_context(|| format!("pinning the program at {}", pin.display()))?;
    Ok(how)
}

/// Whether our program is there, before all others.
///
/// # Errors
/// The device is gone, or its programs cannot be asked for.
pub fn is_first(pins: &Pins, interface: &str, index: u32, hook: Hook) -> Result<bool> {
    let pin = tcx_pin(pins, interface, index, hook);
    if pin.exists() {
        return heads(&open(&pin)?, interface, hook);
    }
    // A filter's priority keeps its place.
    Ok(clsact_pin(pins, interface, index, hook).exists())
}

fn open(pin: &Path) -> Result<FdLink> {
    let link = PinnedLink::from_pin(pin).with_context(|| format!("opening the pin {}", pin.display()))?;
    Ok(link.into())
}

fn heads(link: &FdLink, interface: &str, hook: Hook) -> Result<bool> {
    let info = link.info().context("asking for a link")?;
    let (_, programs) = SchedClassifier::query_tcx(interface, hook.attach_type())
        .with_context(|| format!("asking for the programs on {interface}"))?;
    Ok(programs.first().is_some_and(|first| first.id() == info.program_id()))
}

/// Take the program from a device's way; nothing if it is not there.
///
/// # Errors
/// A pin or the filter cannot be removed.
pub fn detach(pins: &Pins, interface: &str, index: u32, hook: Hook) -> Result<()> {
    let tcx = tcx_pin(pins, interface, index, hook);
    if tcx.exists() {
        unpin(&tcx)?;
    }
    let clsact = clsact_pin(pins, interface, index, hook);
    if clsact.exists() {
        release(&clsact)?;
        unpin(&clsact)?;
    }
    Ok(())
}

/// The filter, which is removed when this is dropped.
fn filter(interface: &str, hook: Hook) -> Result<SchedClassifierLink> {
    match SchedClassifierLink::attached(interface, hook.attach_type(), PRIORITY, HANDLE, None) {
        Ok(link) => Ok(link),
        Err(error) => bail!("{interface}: {error}"),
    }
}

/// The filter that a pin speaks of is removed, if the pin is one of a filter: removing the pin alone would leave it.
///
/// # Errors
/// The filter cannot be removed.
pub fn release(pin: &Path) -> Result<()> {
    let name = pin.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for hook in [Hook::Out, Hook::In] {
        let Some(device) = name.strip_suffix(&format!("%clsact-{}", hook.name())) else { continue };
        let Some((index, interface)) = device.split_once('-') else { continue };
        let interface = interface.replace("%2e", ".").replace("%25", "%");
        // A device that is gone took its filter along.
        let now = nix::net::if_::if_nametoindex(interface.as_str());
        if now.is_ok_and(|now| now.to_string() == index) {
            drop(filter(&interface, hook)?);
        }
    }
    Ok(())
}

/// The pin of the TCX link of a device's way.
#[must_use]
pub fn tcx_pin(pins: &Pins, interface: &str, index: u32, hook: Hook) -> PathBuf {
    with(pins.link(interface, index), &format!("%{}", hook.name()))
}

/// The pin that says that a device's way has our filter.
#[must_use]
pub fn clsact_pin(pins: &Pins, interface: &str, index: u32, hook: Hook) -> PathBuf {
    with(pins.link(interface, index), &format!("%clsact-{}", hook.name()))
}

/// Names of devices have their `%` escaped.
fn with(pin: PathBuf, end: &str) -> PathBuf {
    let mut name = pin.into_os_string();
    name.push(end);
    name.into()
}
