//! The pinned bpf-linker, compiled into a folder of its own version.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::{self, BPF_LINKER_VERSION};

/// Whether the linker is there and starts. Cargo renames a finished program into its place, so what is there is whole.
///
/// # Errors
/// When `BEELINE_BPF_LINKER` names something that does not start: nothing that set-up could install changes that.
pub(super) fn works() -> Result<bool> {
    let linker = workspace::bpf_linker()?;
    let mut command = Command::new(&linker);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let works = command.status().is_ok_and(|status| status.success());
    if !works && std::env::var_os("BEELINE_BPF_LINKER").is_some() {
        bail!("BEELINE_BPF_LINKER={} does not start: unset it to let set-up install one", linker.display());
    }
    Ok(works)
}

/// Compiles and installs the linker: about a minute on two cores.
///
/// # Errors
/// When cargo fails, or the linker it built does not start.
pub(super) fn install() -> Result<()> {
    eprintln!("setup: bpf-linker {BPF_LINKER_VERSION} is missing; compiling it takes about a minute");
    let root = workspace::bpf_linker_root()?;
    let mut command = workspace::cargo();
    command.args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force", "--root"]);
    command.arg(&root).stdin(Stdio::null()).stdout(std::io::stderr());
    // The workspace's target folder would keep two hundred megabytes that nothing needs again.
    command.env_remove("CARGO_TARGET_DIR");
    process::run(&mut command).with_context(|| {
        format!(
            "bpf-linker {BPF_LINKER_VERSION} could not be installed: see above, \
             or set BEELINE_BPF_LINKER to one of this version"
        )
    })?;
    if !works()? {
        bail!("{} was built but does not start", workspace::bpf_linker()?.display());
    }
    Ok(())
}
