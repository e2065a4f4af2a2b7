//! The agent's life under traffic: changes, crashes, restarts, and an environment that misbehaves.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Result, ensure};
use beeline_tests::bed::{
    Agent, BPF_FILESYSTEM, Bed, Beeline, Config, Fabric, Host, LongConnections, Outcome, Rig, Shape, Traffic,
    eventually, holds,
};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

/// Requests that must go by before and after an event.
const AROUND: usize = 200;

/// Changes of the configuration under traffic.
const CHANGES: usize = 10;

/// Fails if any answer is missing or wrong, or took a second connection.
fn all_right(outcomes: &[Outcome]) -> Result<()> {
    let wrong: Vec<String> = outcomes.iter().filter_map(Outcome::wrong).collect();
    ensure!(wrong.is_empty(), "{} of {} requests went wrong: {:#?}", wrong.len(), outcomes.len(), &wrong[..1]);
    Ok(())
}

/// The nodes that answer new connections.
fn serving(fabric: &Fabric) -> Result<Vec<String>> {
    Ok(fabric.request(&fabric.pairs(), 12)?.into_iter().collect())
}

/// Drains the first node, in both families.
fn drain_first(fabric: &Fabric, config: &mut Config) {
    for v4 in [true, false] {
        config.drain(fabric.node_addresses(v4)[0], true);
    }
}

/// Waits until exactly `nodes` answer new connections.
fn eventually_serving(fabric: &Fabric, nodes: &[&str]) -> Result<()> {
    eventually("a change to show", PATIENCE, || {
        let found = serving(fabric)?;
        holds(found == nodes, || format!("{found:?} serve, not {nodes:?}"))
    })
}

#[test]
fn new_requests_are_answered_through_reloads() -> Result<()> {
    Bed::run("reload", |bed| {
        let rig = Rig::start(bed, Shape { nodes: 3, ..Shape::default() }, Fabric::web_services)?;
        let traffic = Traffic::start(&rig.fabric.client, &rig.fabric.pairs())?;
        traffic.wait_for(AROUND)?;
        let edge = &rig.agents.edges[0];
        let services = rig.fabric.web_services();
        for round in 0..CHANGES {
            // Each node in turn drains, the others change their weights.
            let mut config = rig.fabric.edge_config(edge.host(), &services);
            for service in &mut config.services {
                for (index, backend) in service.backends.iter_mut().enumerate() {
                    backend.weight = 50 + 25 * u32::try_from((index + round) % 4)?;
                    backend.draining = index == round % 3;
                }
            }
            config.write(edge.file())?;
            traffic.wait_for(40)?;
        }
        rig.fabric.edge_config(edge.host(), &services).write(edge.file())?;
        traffic.wait_for(AROUND)?;
        let outcomes = traffic.finish();
        let wrong: Vec<String> = outcomes.iter().filter_map(Outcome::wrong_in_the_end).collect();
        assert!(wrong.is_empty(), "{} of {} requests went wrong: {:#?}", wrong.len(), outcomes.len(), &wrong[..1]);
        // Of each worker at most the one connection that was open when a table changed.
        let cut = outcomes.iter().filter(|outcome| outcome.cut.is_some()).count();
        assert!(cut <= (CHANGES + 1) * rig.fabric.pairs().len(), "{cut} of {} were cut off", outcomes.len());
        eventually_serving(&rig.fabric, &["node1", "node2", "node3"])
    })
}

#[test]
fn a_file_behind_a_swapped_symlink_is_followed() -> Result<()> {
    Bed::run("symlink", |bed| {
        // As the kubelet publishes a ConfigMap: beeline.yaml → ..data/beeline.yaml, ..data → a folder by version.
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, Shape::default())?);
        let _servers = fabric.serve(bed)?;
        beeline.pass_program(&fabric.router, &["edge1"])?;
        let services = fabric.web_services();
        let _nodes = fabric.start_nodes(bed, &beeline, &services)?;
        let volume = bed.folder("volume")?;
        let mut config = fabric.edge_config(&fabric.edges[0], &services);
        let publish = |version: &str, config: &Config| -> Result<()> {
            fs::create_dir(volume.join(version))?;
            config.write(&volume.join(version).join("beeline.yaml"))?;
            symlink(version, volume.join("..data_tmp"))?;
            Ok(fs::rename(volume.join("..data_tmp"), volume.join("..data"))?)
        };
        publish("..1", &config)?;
        symlink("..data/beeline.yaml", volume.join("beeline.yaml"))?;
        let mut edge = beeline.start_with(&fabric.edges[0], &volume.join("beeline.yaml"), &config)?;
        edge.wait_ready()?;
        eventually_serving(&fabric, &["node1", "node2"])?;
        drain_first(&fabric, &mut config);
        publish("..2", &config)?;
        fs::remove_dir_all(volume.join("..1"))?;
        eventually_serving(&fabric, &["node2"])
    })
}

#[test]
fn a_killed_agent_loses_no_request_and_its_successor_adopts() -> Result<()> {
    Bed::run("crash", |bed| {
        let mut rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        let pairs = rig.fabric.pairs();
        let mut long = LongConnections::open(&rig.fabric.client, &pairs, 8)?;
        let traffic = Traffic::start(&rig.fabric.client, &pairs)?;
        traffic.wait_for(AROUND)?;
        let before = packets(&rig.agents.edges[0])?;
        for agent in rig.agents.all() {
            agent.process().kill()?;
        }
        traffic.wait_for(AROUND)?;
        for agent in rig.agents.all() {
            agent.restart()?;
        }
        // A request is four packets at the least: those of the time without an agent are counted too.
        let after = packets(&rig.agents.edges[0])?;
        let least = before + 4 * u64::try_from(AROUND)?;
        ensure!(after >= least, "{before} packets before the crash, {after} after it, not {least}");
        traffic.wait_for(AROUND)?;
        all_right(&traffic.finish())?;
        for (node, fared) in long.ask_again() {
            assert_eq!(fared.broken, 0, "long connections with {node}: {fared:?}");
        }
        Ok(())
    })
}

/// Packets that an edge has forwarded.
fn packets(agent: &Agent) -> Result<u64> {
    Ok(agent.packets_by_backend()?.values().sum())
}

#[test]
fn a_successor_applies_what_changed_meanwhile() -> Result<()> {
    Bed::run("successor", |bed| {
        let mut rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        let edge = &mut rig.agents.edges[0];
        let ended = edge.process().stop(PATIENCE)?;
        ensure!(ended.success(), "SIGTERM is an orderly end, not {ended}: {}", edge.process().log()?);
        let mut config = rig.fabric.edge_config(edge.host(), &rig.fabric.web_services());
        drain_first(&rig.fabric, &mut config);
        config.write(edge.file())?;
        // Nobody there to read it.
        assert_eq!(serving(&rig.fabric)?, ["node1", "node2"]);
        edge.restart()?;
        assert_eq!(serving(&rig.fabric)?, ["node2"]);
        Ok(())
    })
}

#[test]
fn a_broken_file_leaves_the_last_good_state() -> Result<()> {
    Bed::run("broken-file", |bed| {
        let mut rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        let edge = &mut rig.agents.edges[0];
        let mut config = rig.fabric.edge_config(edge.host(), &rig.fabric.web_services());
        let broken = config.to_string().replace("hashSeed: 42", "hashSeed: 42\nhashSede: 43");
        fs::write(edge.file(), broken)?;
        eventually("a word about the broken file", PATIENCE, || {
            let log = edge.process().log()?;
            holds(log.contains("hashSede"), || format!("the log says\n{log}"))
        })?;
        assert_eq!(serving(&rig.fabric)?, ["node1", "node2"]);
        let status = edge.json("status")?.to_string();
        assert!(status.contains("hashSede"), "status is silent about the broken file: {status}");
        drain_first(&rig.fabric, &mut config);
        config.write(edge.file())?;
        eventually_serving(&rig.fabric, &["node2"])?;
        let status = edge.json("status")?.to_string();
        assert!(!status.contains("hashSede"), "status still speaks of the broken file: {status}");
        Ok(())
    })
}

#[test]
fn sighup_reloads() -> Result<()> {
    Bed::run("sighup", |bed| {
        let mut rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        let edge = &mut rig.agents.edges[0];
        let pid = edge.process().pid();
        let mut config = rig.fabric.edge_config(edge.host(), &rig.fabric.web_services());
        drain_first(&rig.fabric, &mut config);
        config.write(edge.file())?;
        edge.process().signal(Signal::SIGHUP)?;
        eventually_serving(&rig.fabric, &["node2"])?;
        assert_eq!(edge.process().ended()?, None, "SIGHUP ended the agent {pid}");
        Ok(())
    })
}

#[test]
fn a_changed_mac_is_noticed() -> Result<()> {
    Bed::run("neighbour", |bed| {
        let rig = Rig::start(bed, Shape { nodes: 1, ..Shape::default() }, Fabric::web_services)?;
        let (node, pairs) = (&rig.fabric.nodes[0], rig.fabric.pairs());
        rig.fabric.request(&pairs, 4)?;
        // A replaced network card announces itself.
        node.sysctl(&[("net.ipv4.conf.eth0.arp_notify", "1"), ("net.ipv6.conf.eth0.ndisc_notify", "1")])?;
        node.ip(&["link set eth0 address 02:00:00:00:be:ee"])?;
        eventually("traffic to the new MAC", PATIENCE, || rig.fabric.request(&pairs[..1], 1))?;
        eventually("traffic to the new MAC, IPv6", PATIENCE, || rig.fabric.request(&pairs[pairs.len() - 1..], 1))?;
        rig.fabric.request(&pairs, 8)?;
        Ok(())
    })
}

#[test]
fn an_interface_may_appear_later() -> Result<()> {
    Bed::run("late-interface", |bed| {
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, Shape::default())?);
        let _servers = fabric.serve(bed)?;
        beeline.pass_program(&fabric.router, &["edge1"])?;
        let services = fabric.web_services();
        let _nodes = fabric.start_nodes(bed, &beeline, &services)?;
        let host = &fabric.edges[0];
        let mut config = fabric.edge_config(host, &services);
        config.edge.as_mut().expect("an edge's configuration").interfaces.push("late0".to_owned());
        let mut edge = beeline.start(bed, host, &config)?;
        // What is there works.
        eventually_serving(&fabric, &["node1", "node2"])?;
        eventually("a word about the missing interface", PATIENCE, || {
            let log = edge.process().log()?;
            holds(log.contains("late0"), || format!("the log says\n{log}"))
        })?;
        // Clients' packets now come in by the new one, and leave by the old one: another device.
        plug_in_late(&fabric, host)?;
        eventually_serving(&fabric, &["node1", "node2"])?;
        edge.wait_ready()?;
        // Gone and back again under the same name.
        fabric.router.ip(&["link del late"])?;
        plug_in_late(&fabric, host)?;
        eventually_serving(&fabric, &["node1", "node2"])
    })
}

/// Gives `host` a second device, by which the router sends VIPs.
fn plug_in_late(fabric: &Fabric, host: &Host) -> Result<()> {
    fabric.router.cable("late", host, "late0")?;
    fabric.router.addresses("late", &["10.70.0.1/24", "fd70::1/64"])?;
    host.addresses("late0", &["10.70.0.2/24", "fd70::2/64"])?;
    let vips = ["route replace 198.51.100.0/24 via 10.70.0.2", "route replace 2001:db8:10::/64 via fd70::2"];
    fabric.router.ip(&vips)
}

/// What `ip link` says of the XDP program on a device.
fn xdp_program(agent: &Agent) -> Result<String> {
    let link = agent.host().run("ip link show dev eth0")?;
    Ok(link.split_once("prog/xdp").map_or_else(|| "none".to_owned(), |(_, rest)| rest.trim().to_owned()))
}

#[test]
fn a_foreign_program_is_left_alone() -> Result<()> {
    Bed::run("foreign", |bed| {
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, Shape::default())?);
        let host = &fabric.edges[0];
        beeline.pass_program(host, &["eth0"])?;
        let mut edge = beeline.start(bed, host, &fabric.edge_config(host, &fabric.web_services()))?;
        let foreign = xdp_program(&edge)?;
        ensure!(foreign.starts_with("id "), "no program on the device: {foreign}");
        eventually("a word about the foreign program", PATIENCE, || {
            let log = edge.process().log()?;
            holds(log.contains("eth0") && log.contains("XDP"), || format!("the log says\n{log}"))
        })?;
        assert_eq!(xdp_program(&edge)?, foreign);
        // The other program goes away: nothing is in the way any more.
        fs::remove_dir_all(format!("{BPF_FILESYSTEM}/beeline-pass-{}", host.name()))?;
        if edge.process().ended()?.is_some() {
            edge.restart()?;
        } else {
            edge.wait_ready()?;
        }
        let ours = xdp_program(&edge)?;
        assert!(ours.starts_with("id ") && ours != foreign, "{ours} where {foreign} was");
        Ok(())
    })
}

#[test]
fn detach_takes_everything_away() -> Result<()> {
    Bed::run("detach", |bed| {
        let mut rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        for agent in rig.agents.all() {
            agent.process().stop(PATIENCE)?;
            ensure!(xdp_program(agent)? != "none", "{}: stopping took the program away", agent.host().name());
            let file = agent.file().display().to_string();
            let pins = format!("{BPF_FILESYSTEM}/beeline-{}", agent.host().name());
            ensure!(fs::exists(&pins)?, "no pins at {pins}");
            rig.beeline.run(agent.host(), &["detach", "--config", &file])?;
            // The kernel lets go of an unpinned link in its own time (a work queue).
            eventually("the interface to be free", PATIENCE, || {
                let program = xdp_program(agent)?;
                holds(program == "none", || format!("{program} is still there"))
            })?;
            assert!(!fs::exists(&pins)?, "{pins} is still there");
            // Nothing to take away any more, and no error.
            rig.beeline.run(agent.host(), &["detach", "--config", &file])?;
        }
        Ok(())
    })
}

#[test]
fn metrics_are_well_formed() -> Result<()> {
    Bed::run("metrics", |bed| {
        let mut rig = Rig::start(bed, Shape::default(), Fabric::web_services)?;
        rig.fabric.request(&rig.fabric.pairs(), 4)?;
        for agent in rig.agents.all() {
            let text = agent.http("/metrics")?.text();
            let file = agent.file().with_extension("metrics");
            fs::write(&file, &text)?;
            let check = format!("promtool check metrics < {}", file.display());
            agent.host().run_args(&["sh", "-c", &check])?;
            let names = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
            for line in names {
                assert!(line.starts_with("beeline_"), "{line}");
            }
            assert_eq!(agent.http("/healthz")?.status, 200);
        }
        Ok(())
    })
}
