//! Programs on interfaces, by BPF links (XDP: kernel 5.9) that are pinned: they stay when the agent goes.

pub mod tc;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use nix::errno::Errno;

use crate::datapath::object::{self, Program};
use crate::datapath::pins::{Pins, unpin};

/// How a program came to be on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It was not there before.
    New,
    /// It took the place of our older one, without a gap.
    Replaced,
}

/// Somebody else's program is in the one place that an interface has for XDP.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "another XDP program is on {interface} (`bpftool net show dev {interface}`): an interface takes one; remove that one, \
     or leave {interface} out of the configuration"
)]
pub struct Taken {
    /// The interface's name.
    pub interface: String,
}

/// Put a program on an interface, in place of our own older one if there is one, and pin the link.
///
/// # Errors
/// Somebody else's program is there, the interface is gone, or the kernel has no links for it.
pub fn attach(object: &mut Ebpf, which: Program, pins: &Pins, interface: &str, index: u32) -> Result<Attached> {
    let program = object::program(object, which)?;
    let pin = pins.link(interface, index);
    for old in pins.all_links()? {
        if old.file_name() != pin.file_name() {
            continue;
        }
        if replace(program, &old).with_context(|| format!("replacing the program on {interface}"))? {
            if old != pin {
                fs::rename(&old, &pin).with_context(|| format!("moving the pin {}", old.display()))?;
            }
            return Ok(Attached::Replaced);
        }
        unpin(&old)?;
    }
    let link = match program.attach_to_if_index(index, XdpMode::Default) {
        Ok(id) => program.take_link(id)?,
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(Errno::EBUSY as i32)
                || error.io_error.raw_os_error() == Some(Errno::EEXIST as i32) =>
        {
            bail!(Taken { interface: interface.to_owned() })
        }
        Err(error) => return Err(error).with_context(|| format!("attaching to {interface}")),
    };
    let Ok(link) = FdLink::try_from(link) else {
        bail!(
            "the kernel has no BPF links for XDP programs on {interface} (5.9 and later have), and without one the \
             datapath would end with the agent"
        )
    };
    link.pin(&pin).with_context(|| format!("pinning the link of {interface} at {}", pin.display()))?;
    Ok(Attached::New)
}

/// Let a pinned link have another program; `false` if its interface is gone.
fn replace(program: &mut Xdp, pin: &Path) -> Result<bool> {
    let link = PinnedLink::from_pin(pin).with_context(|| format!("opening the pin {}", pin.display()))?;
    let link = XdpLink::try_from(FdLink::from(link)).context("the pin is no link of an XDP program")?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin holds the link; the program's own handle on it would end it.
            drop(program.take_link(id)?);
            Ok(true)
        }
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(Errno::ENOLINK as i32) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// The pins of interfaces that are not among these, which are pins themselves.
///
/// # Errors
/// The pins cannot be read.
pub fn others(pins: &Pins, wanted: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let names: Vec<_> = wanted.iter().filter_map(|pin| pin.file_name()).collect();
    Ok(pins.all_links()?.into_iter().filter(|pin| !pin.file_name().is_some_and(|n| names.contains(&n))).collect())
}
