//! `cargo xtask setup`: what a fresh machine lacks to build the programs and to run the tests and the lab.
//!
//! Looking is cheap and takes no lock, so every other command begins with it. Whatever is missing is installed under
//! a lock of the user's cache, each piece so that an interrupted half does not pass for the whole.

mod apt;
mod bpf_linker;
mod packages;
mod rust_src;

use std::fs::{self, File, TryLockError};

use anyhow::{Context as _, Result};

use crate::workspace;
use packages::Packages;
use rust_src::Toolchain;

/// What set-up says when nothing is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// One line a piece.
    Full,
    /// Nothing: another command begins with set-up.
    Quiet,
}

/// Looks for every piece and installs those that are missing.
///
/// # Errors
/// When a piece is missing and cannot be installed; says what to do by hand.
pub(crate) fn run(report: Report) -> Result<()> {
    let toolchain = Toolchain::pinned()?;
    let mut packages = Packages::look()?;
    if !toolchain.has_source() || !bpf_linker::works()? || !packages.complete() {
        let cache = workspace::cache()?;
        let _lock = lock(&cache)?;
        if !toolchain.has_source() {
            toolchain.install_source(&cache)?;
        }
        if !bpf_linker::works()? {
            bpf_linker::install()?;
        }
        // Somebody else's set-up may have installed them while this one waited.
        packages = Packages::look()?;
        if !packages.complete() {
            packages.install()?;
        }
    }
    if report == Report::Full {
        eprintln!("rust-src     {} in {}", toolchain.channel(), toolchain.sysroot().display());
        eprintln!("bpf-linker   {}", workspace::bpf_linker()?.display());
        eprintln!("programs     {}", packages.summary());
        eprintln!("/sys/fs/bpf  {}", bpf_filesystem()?);
    }
    Ok(())
}

/// One set-up at a time for a user: two would compile the same linker, or clear away each other's halves.
fn lock(cache: &std::path::Path) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| {
        format!("{} cannot be made: set XDG_CACHE_HOME to a folder that can be written", cache.display())
    })?;
    let path = cache.join("setup.lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("setup: another set-up is at work, waiting for it"),
        Err(TryLockError::Error(error)) => return Err(error).context(format!("{} cannot be locked", path.display())),
    }
    file.lock().with_context(|| format!("{} cannot be locked", path.display()))?;
    Ok(file)
}

/// Whether there is a place to pin maps; the agent and the tests mount it themselves, so its absence is no error.
fn bpf_filesystem() -> Result<&'static str> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts cannot be read")?;
    Ok(if has_bpf_filesystem(&mounts) {
        "mounted"
    } else {
        "not mounted; pins need it: `mount -t bpf bpf /sys/fs/bpf` as root"
    })
}

fn has_bpf_filesystem(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some("/sys/fs/bpf") && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_filesystem_in_its_place_counts() {
        assert!(has_bpf_filesystem("proc /proc proc rw 0 0\nnone /sys/fs/bpf bpf rw,mode=700 0 0\n"));
        assert!(!has_bpf_filesystem("tmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
        assert!(!has_bpf_filesystem("bpf /run/elsewhere bpf rw 0 0\n"));
    }
}
