//! Builds the BPF programs with the pinned stable toolchain and leaves the object where `lb_userspace::datapath`
//! embeds it from.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The linker that goes with the LLVM of the pinned rustc; `cargo xtask setup` installs it.
const BPF_LINKER_VERSION: &str = "0.10.3";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = manifest.parent().expect("the workspace is the parent folder");
    for path in ["lb-ebpf", "lb-common/src", "lb-common/Cargo.toml", ".cargo/config.toml", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-env-changed=BEELINE_BPF_LINKER");
    let linker = env::var_os("BEELINE_BPF_LINKER").map_or_else(default_linker, PathBuf::from);
    assert!(
        linker.exists(),
        "no bpf-linker {BPF_LINKER_VERSION} at {}: run `cargo xtask setup`, or set BEELINE_BPF_LINKER",
        linker.display()
    );
    // Shared by all profiles and features, so that the programs are built once.
    let target = out.ancestors().nth(4).expect("OUT_DIR lies in a target folder").join("bpf");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--package", "lb-ebpf", "--release", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&target)
        // The nightly-only -Z build-std on the pinned stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker);
    // The outer build's compiler settings are for the host.
    for name in ["RUSTC", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building lb-ebpf failed: {status}");
    let object = target.join("bpfel-unknown-none/release/lb-ebpf");
    std::fs::copy(&object, out.join("beeline.bpf.o")).unwrap_or_else(|e| panic!("{}: {e}", object.display()));
}

/// Where `cargo xtask setup` installs the linker: the user's cache folder, by version.
fn default_linker() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_default();
    cache.join(format!("beeline/bpf-linker-{BPF_LINKER_VERSION}/bin/bpf-linker"))
}
