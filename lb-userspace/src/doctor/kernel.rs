//! What the kernel can do, and whether it is allowed.

use super::{Facts, Finding, Level, delivers_to_pods};
use crate::config::Config;

const CHECK: &str = "kernel";

/// What is missing breaks something; what is old costs something.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![version(config, facts)];
    if !facts.root {
        let what = "not root: programs and packet filters cannot be looked at";
        findings.push(Finding::new(Level::Unseen, CHECK, what, "sudo beeline doctor --config FILE"));
    }
    match facts.number("net/core/bpf_jit_enable") {
        Some(0) => {
            let what = "the BPF JIT is off: packets are handled many times slower";
            findings.push(Finding::new(Level::Warning, CHECK, what, "sysctl -w net.core.bpf_jit_enable=1"));
        }
        Some(_) => findings.push(Finding::ok(CHECK, "BPF JIT on")),
        // Kernels that always compile, and network namespaces other than the first, do not show it.
        None => findings.push(Finding::new(Level::Unseen, CHECK, "net.core.bpf_jit_enable cannot be read here", "")),
    }
    findings.push(if facts.btf {
        Finding::ok(CHECK, "BTF at /sys/kernel/btf/vmlinux")
    } else {
        let what = "no /sys/kernel/btf/vmlinux: the kernel's own types are not known";
        Finding::new(Level::Warning, CHECK, what, "a kernel with CONFIG_DEBUG_INFO_BTF=y")
    });
    let pins = config.pin_path.display();
    findings.push(if facts.bpf_filesystem {
        Finding::ok(CHECK, format!("pinPath {pins} is on a BPF filesystem"))
    } else {
        let what = format!("pinPath {pins} is on no BPF filesystem");
        Finding::new(Level::Problem, CHECK, what, "mount -t bpf bpf /sys/fs/bpf, or choose another pinPath")
    });
    findings
}

/// First releases: BPF links for XDP 5.9, memory counted by cgroup and no memlock limit 5.11, managed neighbours 5.16,
/// XDP fragments 5.18, TCX 6.6.
fn version(config: &Config, facts: &Facts) -> Finding {
    let Some(version) = parse(&facts.release) else {
        return Finding::new(Level::Unseen, CHECK, format!("{:?} is no version of Linux", facts.release), "");
    };
    let release = &facts.release;
    if version < (5, 9) {
        let what = format!("Linux {release}: no BPF links for XDP, which 5.9 has");
        return Finding::new(Level::Problem, CHECK, what, "Linux 5.18 or later");
    }
    let mut lacks = Vec::new();
    if version < (5, 11) {
        lacks.push("maps need a memlock limit (ulimit -l unlimited)");
    }
    if version < (5, 16) {
        lacks.push("neighbours are probed by the agent alone");
    }
    if version < (5, 18) {
        lacks.push("no XDP on interfaces with frames over a page");
    }
    if version < (6, 6) && delivers_to_pods(config) {
        lacks.push("no TCX: replies are rewritten by way of clsact");
    }
    if lacks.is_empty() {
        return Finding::ok(CHECK, format!("Linux {release}"));
    }
    let newer = if delivers_to_pods(config) { "Linux 6.6 or later" } else { "Linux 5.18 or later" };
    Finding::new(Level::Warning, CHECK, format!("Linux {release}: {}", lacks.join("; ")), newer)
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
