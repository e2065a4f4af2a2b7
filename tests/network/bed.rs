//! The bed itself: what the other tests take for granted.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context as _, Result};
use beeline_tests::bed::{Bed, Fabric, Hit, Shape, WebServer, eventually, get, holds};

const PATIENCE: Duration = Duration::from_secs(10);

/// What beds left behind on the host: mounts of the names that they use, and those of `pids` that run.
fn traces(pids: &[u32]) -> Result<(Vec<String>, Vec<u32>)> {
    let names = ["client", "router", "edge1", "node1", "node2"].map(|name| format!("/run/netns/{name} "));
    let mounts = fs::read_to_string("/proc/mounts")?;
    let ours = |line: &&str| line.contains("/run/bed") || names.iter().any(|name| line.contains(name));
    let mounts = mounts.lines().filter(ours).map(ToOwned::to_owned).collect();
    // "PID (name) STATE …": a zombie has ended, and waits for whoever inherited it.
    let stat = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let runs = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
    let alive = pids.iter().copied().filter(|pid| runs(stat(pid))).collect();
    Ok((mounts, alive))
}

/// Fails where anything is left.
fn nothing_left(pids: &[u32]) -> Result<()> {
    let (mounts, alive) = traces(pids)?;
    holds(mounts.is_empty() && alive.is_empty(), || format!("mounts {mounts:?}, processes {alive:?}"))
}

#[test]
fn replies_come_straight_from_the_node_and_ecmp_uses_both_next_hops() -> Result<()> {
    Bed::run("plain", |bed| {
        // Without our programs: the router leads VIPs to the nodes, as if they were edges.
        let fabric = Fabric::build(bed, Shape { nodes: 2, clients: 3, ..Shape::default() })?;
        let servers = fabric.serve(bed)?;
        fabric.lead_vips_to(&["node1", "node2"])?;
        for vip in Fabric::VIPS {
            let mut served = BTreeSet::new();
            for client in fabric.clients_for(vip) {
                for _ in 0..16 {
                    let answer = fabric.client.within(|| get(client, SocketAddr::new(vip, 80), "/", PATIENCE))?;
                    assert_eq!(answer.status, 200);
                    assert_eq!(answer.header("x-client")?, client.to_string());
                    served.insert(answer.header("x-node")?.to_owned());
                }
            }
            assert_eq!(served.len(), 2, "48 flows to {vip} all went to {served:?}");
        }
        let hits = || -> Result<Vec<Hit>> {
            servers.iter().map(WebServer::hits).collect::<Result<Vec<_>>>().map(|all| all.concat())
        };
        eventually("all requests in the access logs", PATIENCE, || {
            let hits = hits()?;
            holds(hits.len() == 96, || format!("{} of 96", hits.len()))
        })?;
        let clients: BTreeSet<_> = hits()?.into_iter().map(|hit| hit.client).collect();
        assert_eq!(clients, fabric.client_addresses().into_iter().collect());
        Ok(())
    })
}

#[test]
fn beds_of_the_same_shape_live_side_by_side_and_leave_nothing() -> Result<()> {
    let together = Barrier::new(2);
    let build = || {
        Bed::run("twin", |bed| {
            let fabric = Fabric::build(bed, Shape::default())?;
            let mut servers = fabric.serve(bed)?;
            together.wait();
            Ok(servers.iter_mut().map(|server| server.process().pid()).collect::<Vec<_>>())
        })
    };
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(build);
        let second = scope.spawn(build);
        (first.join(), second.join())
    });
    let pids = [first.expect("no panic")?, second.expect("no panic")?].concat();
    assert_eq!(pids.len(), 4);
    nothing_left(&pids)
}

/// The other half of [`a_killed_bed_leaves_nothing`]: a bed in a process of its own, which waits to be killed.
#[test]
#[ignore = "run by a_killed_bed_leaves_nothing"]
fn a_bed_that_waits() -> Result<()> {
    let report = std::env::var("BED_REPORT").context("this test is run by a_killed_bed_leaves_nothing")?;
    Bed::run("doomed", |bed| {
        let fabric = Fabric::build(bed, Shape::default())?;
        let mut servers = fabric.serve(bed)?;
        let pids: Vec<_> = servers.iter_mut().map(|server| server.process().pid().to_string()).collect();
        fs::write(format!("{report}.new"), pids.join(" "))?;
        fs::rename(format!("{report}.new"), &report)?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    })
}

#[test]
fn a_killed_bed_leaves_nothing() -> Result<()> {
    let report = std::env::temp_dir().join(format!("bed-report-{}", std::process::id()));
    let mut doomed = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "a_bed_that_waits"])
        .env("BED_REPORT", &report)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let written = eventually("the other process's bed", PATIENCE, || Ok(fs::read_to_string(&report)?));
    doomed.kill()?;
    doomed.wait()?;
    let written = written?;
    fs::remove_file(&report)?;
    let pids: Vec<u32> = written.split(' ').map(|pid| Ok(pid.parse()?)).collect::<Result<_>>()?;
    eventually("the end of all that was in the bed", PATIENCE, || nothing_left(&pids))
}
