//! Where things are: the workspace, what it builds, and what set-up leaves in the user's cache.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

/// The linker that goes with the LLVM of the pinned compiler. Later ones need LLVM's development files.
/// lb-userspace/build.rs looks for this version in [`bpf_linker_root`].
pub(crate) const BPF_LINKER_VERSION: &str = "0.10.3";

/// The folder of the workspace's Cargo.toml.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo's target folder for this workspace, whatever variable or configuration chose it: xtask runs out of it.
///
/// # Errors
/// When the running program's own path cannot be read.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("the path of the running xtask cannot be read")?;
    exe.ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is in no target folder: start it as `cargo xtask`", exe.display()))
}

/// Where a build leaves the `beeline` binary.
///
/// # Errors
/// Those of [`target_dir`].
pub(crate) fn beeline_binary(debug: bool) -> Result<PathBuf> {
    Ok(target_dir()?.join(if debug { "debug" } else { "release" }).join("beeline"))
}

/// The folder that set-up owns in the user's cache.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor a home folder is known.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("no folder for what set-up builds: set HOME or XDG_CACHE_HOME")?;
    Ok(cache.join("beeline"))
}

/// The root that `cargo install` puts the pinned bpf-linker under.
///
/// # Errors
/// Those of [`cache`].
pub(crate) fn bpf_linker_root() -> Result<PathBuf> {
    Ok(cache()?.join(format!("bpf-linker-{BPF_LINKER_VERSION}")))
}

/// The linker for BPF programs: `BEELINE_BPF_LINKER`, or what set-up installs.
///
/// # Errors
/// Those of [`cache`].
pub(crate) fn bpf_linker() -> Result<PathBuf> {
    match env::var_os("BEELINE_BPF_LINKER") {
        Some(path) => Ok(PathBuf::from(path)),
        None => Ok(bpf_linker_root()?.join("bin/bpf-linker")),
    }
}

/// Cargo, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The compiler that `rust-toolchain.toml` pins.
pub(crate) fn rustc() -> Command {
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(root());
    command
}

/// The target triple of this machine, as rustc names it.
///
/// # Errors
/// When rustc cannot be started or says no host.
pub(crate) fn host_triple() -> Result<String> {
    let version = process::output(rustc().arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// Whether this process may do what needs root.
pub(crate) fn is_root() -> bool {
    // The owner of a process's folder is its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0)
}
