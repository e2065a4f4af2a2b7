//! `beeline doctor` on a host that works, then with one thing broken at a time.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::{Bed, Fabric, Host, Rig, Shape};
use serde_json::Value;

/// The findings of `host`, whose agent has the file `config`, and the exit status.
fn doctor(rig: &Rig, host: &Host, config: &str) -> Result<(Value, bool)> {
    let output = host.within(|| {
        Ok(Command::new(rig.beeline.path()).args(["doctor", "--config", config, "-o", "json"]).output()?)
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let findings =
        serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((findings, output.status.success()))
}

/// Breaks something on a host, wants a finding of `level` with this way out, and repairs it.
fn broken(rig: &Rig, host: &Host, config: &str, lines: [&str; 2], level: &str, way_out: &str) -> Result<()> {
    let says = |doctor: &Value| {
        doctor["findings"].as_array().is_some_and(|findings| {
            let that = |one: &Value| one["wayOut"].as_str().is_some_and(|found| found.contains(way_out));
            findings.iter().any(|one| one["level"] == level && that(one))
        })
    };
    let (before, _) = doctor(rig, host, config)?;
    ensure!(!says(&before), "found before it is broken: {before:#}");
    host.run_args(&["sh", "-c", lines[0]])?;
    let (found, success) = doctor(rig, host, config)?;
    ensure!(says(&found), "{} and nobody says {way_out}: {found:#}", lines[0]);
    ensure!(success == (level != "problem"), "exit status: {found:#}");
    host.run_args(&["sh", "-c", lines[1]])?;
    let (after, success) = doctor(rig, host, config)?;
    ensure!(success && !says(&after), "found after it is repaired: {after:#}");
    Ok(())
}

#[test]
fn what_is_broken_is_found() -> Result<()> {
    Bed::run("doctor", |bed| {
        let mut rig = Rig::start(bed, Shape { edges: 1, nodes: 1, ..Shape::default() }, Fabric::web_services)?;
        let hosts: Vec<_> =
            rig.agents.all().map(|agent| (agent.host().clone(), agent.file().display().to_string())).collect();
        for (host, config) in &hosts {
            let (found, success) = doctor(&rig, host, config)?;
            ensure!(success && found["problems"] == 0, "{}: {found:#}", host.name());
        }
        let (node, config) = hosts.iter().find(|(host, _)| host.name() == "node1").context("no agent on node1")?;
        let rule = "nft add table inet t && nft 'add chain inet t c {type filter hook forward priority 0;}' && nft add rule \
                    inet t c ct state invalid drop";
        broken(&rig, node, config, [rule, "nft delete table inet t"], "warning", "nf_conntrack_tcp_be_liberal=1")?;
        let vip = Fabric::VIPS.into_iter().find(std::net::IpAddr::is_ipv4).context("no IPv4 VIP")?;
        let [delete, add] = ["del", "add"].map(|verb| format!("ip address {verb} {vip}/32 dev lo"));
        broken(&rig, node, config, [&delete, &add], "problem", &add)?;
        let filter = |value| format!("sysctl -qw net.ipv4.conf.eth0.rp_filter={value}");
        let asymmetric = format!("ip route add default dev lo metric 5 && {}", filter(1));
        let repaired = format!("ip route del default dev lo metric 5 && {}", filter(0));
        broken(&rig, node, config, [&asymmetric, &repaired], "problem", "rp_filter=2")
    })
}
