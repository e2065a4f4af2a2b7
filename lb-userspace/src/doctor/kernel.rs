//! What the kernel can do, and whether it is allowed.

use super::read::{BpfFilesystem, capability};
use super::{Facts, Finding, Level, delivers_to_pods, sysctl};
use crate::config::Config;
use crate::datapath::pins::BPF_FS;

const CHECK: &str = "kernel";

/// What is missing breaks something; what is old costs something.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![version(config, facts)];
    findings.extend(rights(facts));
    match facts.number("net/core/bpf_jit_enable") {
        Some(0) => {
            let what = "the BPF JIT is off: packets are handled many times slower";
            findings.push(Finding::new(Level::Warning, CHECK, what, sysctl(&["net", "core", "bpf_jit_enable"], 1)));
        }
        Some(_) => findings.push(Finding::ok(CHECK, "JIT on")),
        // Only the first network namespace shows it (net/core/sysctl_net_core.c, Linux 6.18).
        None => {}
    }
    findings.push(if facts.btf {
        Finding::ok(CHECK, "BTF")
    } else {
        let what = "no /sys/kernel/btf/vmlinux: the kernel does not tell its types";
        Finding::new(Level::Warning, CHECK, what, "a kernel with CONFIG_DEBUG_INFO_BTF=y")
    });
    let pins = config.pin_path.display();
    findings.push(match facts.bpf_filesystem {
        BpfFilesystem::There => Finding::ok(CHECK, format!("pins under {pins}")),
        BpfFilesystem::Mountable => {
            Finding::ok(CHECK, format!("no BPF filesystem at {BPF_FS} yet: the agent mounts it"))
        }
        BpfFilesystem::Missing => {
            let what = format!("pinPath {pins} is on no BPF filesystem");
            Finding::new(Level::Problem, CHECK, what, format!("mount -t bpf bpf {BPF_FS}, or choose another pinPath"))
        }
    });
    findings
}

/// What this process may not do, it does not look at.
fn rights(facts: &Facts) -> Option<Finding> {
    let needed =
        [(capability::BPF, "CAP_BPF"), (capability::NET_ADMIN, "CAP_NET_ADMIN"), (capability::PERFMON, "CAP_PERFMON")];
    let lacks: Vec<_> = needed.into_iter().filter(|(number, _)| !facts.may(*number)).map(|(_, name)| name).collect();
    if lacks.is_empty() {
        return None;
    }
    let what = format!("without {}: whose programs there are, and packet filters, are not looked at", lacks.join(", "));
    Some(Finding::new(Level::Unseen, CHECK, what, "sudo beeline doctor --config FILE"))
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
