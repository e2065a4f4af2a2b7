//! `beeline doctor` on hosts that work, then with one thing broken at a time, its way out, and what is left.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use beeline_tests::bed::policies::{drop_invalid, masquerade, nft, no_masquerade};
use beeline_tests::bed::{Agent, Bed, Fabric, Host, Rig, Shape, eventually};
use lb_userspace::config;
use lb_userspace::datapath::Datapath;
use lb_userspace::datapath::links::tc::{self, Hook, Way};
use serde_json::Value;

/// How long an agent may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A host and its configuration file, looked at by `beeline doctor`.
struct Patient<'a> {
    rig: &'a Rig,
    host: Host,
    file: String,
}

/// What is wanted of a finding: level, and a part of what it says and of its way out.
type Wanted<'a> = (&'a str, &'a str, &'a str);

impl Patient<'_> {
    /// The findings and the exit status.
    fn look(&self) -> Result<(Value, bool)> {
        let output = self.host.within(|| {
            let mut command = Command::new(self.rig.beeline.path());
            Ok(command.args(["doctor", "--config", &self.file, "-o", "json"]).output()?)
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let findings = serde_json::from_str(&text)
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((findings, output.status.success()))
    }

    /// Nothing breaks traffic, in any case.
    fn is_well(&self) -> Result<()> {
        let (found, success) = self.look()?;
        let none = |level: &str| found[level] == 0;
        ensure!(success && none("problems") && none("warnings") && none("unseen"), "{}: {found:#}", self.host.name());
        Ok(())
    }

    /// The way out of the finding that is wanted.
    fn finds(&self, (level, what, way_out): Wanted<'_>) -> Result<String> {
        let (found, success) = self.look()?;
        let has = |one: &Value, field: &str, part: &str| one[field].as_str().unwrap_or_default().contains(part);
        let that = |one: &&Value| one["level"] == level && has(one, "what", what) && has(one, "wayOut", way_out);
        let one = found["findings"].as_array().and_then(|list| list.iter().find(that));
        let one = one.with_context(|| format!("no {level}: {what} -> {way_out} in {found:#}"))?;
        ensure!(success == (found["problems"] == 0), "exit status: {found:#}");
        ensure!(success || level == "problem" || found["problems"] != 0, "exit status: {found:#}");
        Ok(one["wayOut"].as_str().unwrap_or_default().to_owned())
    }

    /// Breaks something by a line of shell, wants a finding, follows its way out (up to a comma), and wants it to be
    /// gone; then puts back what the way out left.
    fn follows(&self, line: &str, wanted: Wanted<'_>, then: &str) -> Result<()> {
        self.shell(line)?;
        let way_out = self.finds(wanted).with_context(|| line.to_owned())?;
        self.shell(way_out.split(',').next().unwrap_or_default())?;
        ensure!(self.finds(wanted).is_err(), "{way_out} does not help against {line}");
        self.shell(then)?;
        self.is_well().with_context(|| format!("after {line}"))
    }

    /// As [`Patient::finds`], in time: a link ends a moment after its pin.
    fn comes_to(&self, wanted: Wanted<'_>) -> Result<()> {
        eventually("a finding", PATIENCE, || self.finds(wanted)).map(drop)
    }

    fn shell(&self, line: &str) -> Result<()> {
        self.host.run_args(&["sh", "-c", line]).map(drop)
    }
}

/// The pins of links of an agent on `eth0` whose names end so, or have no such end where it is empty.
fn pins(agent: &Agent, end: &str) -> Result<Vec<String>> {
    let config = config::load(agent.file())?;
    let links = fs::read_dir(lb_userspace::datapath::pins::Pins::new(&config.pin_path).links())?;
    let paths = links.map(|link| Ok(link?.path().display().to_string())).collect::<Result<Vec<_>>>()?;
    Ok(paths
        .into_iter()
        .filter(|path| if end.is_empty() { !path.contains('%') } else { path.ends_with(end) })
        .collect())
}

/// Puts the program for replies on `eth0` as an agent with these pins would.
fn attach_return(agent: &Agent, pin_path: &Path, way: Way) -> Result<()> {
    let config = config::load(agent.file())?;
    agent.host().within(|| {
        let mut datapath = Datapath::open(&config.maps, true, pin_path, false)?;
        let index = nix::net::if_::if_nametoindex("eth0")?;
        tc::attach(&mut datapath.object, &datapath.pins, "eth0", index, Hook::Out, way).map(drop)
    })
}

/// One edge and one node with two pods, which is where most traps are.
fn cluster(bed: &Bed) -> Result<Rig> {
    Rig::start(bed, Shape { nodes: 1, bridge: None, ..Shape::PODS }, Fabric::pod_services)
}

fn patient<'a>(rig: &'a Rig, agent: &Agent) -> Patient<'a> {
    Patient { rig, host: agent.host().clone(), file: agent.file().display().to_string() }
}

#[test]
fn settings_and_rules_of_a_node_with_pods() -> Result<()> {
    Bed::run("doctor-settings", |bed| {
        let rig = cluster(bed)?;
        patient(&rig, &rig.agents.edges[0]).is_well()?;
        let node = patient(&rig, &rig.agents.nodes[0]);
        node.is_well()?;
        node.finds(("remark", "masquerading", "node.natExemption: true"))?;
        no_masquerade(&node.host)?;
        ensure!(node.finds(("remark", "masquerading", "")).is_err(), "no rule masquerades");
        masquerade(&node.host)?;

        let off = |all: &'static str| ("problem", "off: no packet reaches a pod", all);
        node.follows("sysctl -qw net.ipv4.ip_forward=0", off("net.ipv4.ip_forward=1"), "")?;
        node.follows("sysctl -qw net.ipv4.conf.eth0.forwarding=0", off("net.ipv4.conf.eth0.forwarding=1"), "")?;
        node.follows("sysctl -qw net.ipv6.conf.all.forwarding=0", off("net.ipv6.conf.all.forwarding=1"), "")?;

        let strict = "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1";
        node.shell(strict)?;
        node.is_well()?;
        node.follows(
            &format!("{strict}; ip route replace default dev pod1-1"),
            ("problem", "eth0: strict", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"),
            "ip route replace default via 10.50.0.1",
        )?;

        let wanted = ("warning", "`ct state invalid` is dropped", "nf_conntrack_tcp_be_liberal=1");
        drop_invalid(&node.host)?;
        node.follows(
            "true",
            wanted,
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0; nft delete table inet drop-invalid",
        )?;
        let elsewhere = "chain c { type filter hook forward priority 0;\niifname \"wg0\" ct state invalid drop\n}";
        nft(&node.host, &format!("table inet elsewhere {{\n{elsewhere}\n}}\n"))?;
        node.is_well()?;
        node.shell("nft delete table inet elsewhere")?;
        let reverse = "chain c { type filter hook prerouting priority -300; fib saddr . iif oif missing drop\n}";
        nft(&node.host, &format!("table inet reverse {{\n{reverse}\n}}\n"))?;
        node.finds(("warning", "answered by another interface", "fib saddr oif"))?;
        node.shell("nft delete table inet reverse")?;
        node.is_well()?;

        node.shell("ip link add eth1 type veth peer name eth1p && ip link set eth1 up && ip link set eth1p up")?;
        node.is_well()?;
        node.shell("ip route add default dev eth1 metric 100")?;
        node.finds(("warning", "eth1: a default route leaves by it", "add eth1 to node.interfaces"))?;
        node.shell("ip link del eth1")?;
        node.is_well()
    })
}

#[test]
fn a_device_with_a_dot_in_its_name() -> Result<()> {
    Bed::run("doctor-dot", |bed| {
        let mut rig = cluster(bed)?;
        let agent = &mut rig.agents.nodes[0];
        let (host, file) = (agent.host().clone(), bed.folder("dotted")?.join("lb.yaml"));
        let text = fs::read_to_string(agent.file())?.replacen("interfaces: [\"eth0\"]", "interfaces: [\"eth0.5\"]", 1);
        fs::write(&file, text)?;
        let node = Patient { rig: &rig, host, file: file.display().to_string() };
        let wanted = ("problem", "there is no interface eth0.5", "ip link");
        node.finds(wanted)?;
        node.shell("ip link add eth0.5 type veth peer name far && ip link set eth0.5 up && ip link set far up")?;
        ensure!(node.finds(wanted).is_err(), "it is there now");
        // Both ends are here: what the other one does can be seen.
        let checksums = node.finds(("warning", "does not finish checksums", "ethtool -K far tx off"))?;
        node.shell(&checksums)?;
        ensure!(node.finds(("warning", "does not finish checksums", "")).is_err(), "{checksums} does not help");
        node.shell("sysctl -qw net.ipv4.conf.all.rp_filter=1 net/ipv4/conf/eth0.5/rp_filter=1 net/ipv4/conf/eth0.5/forwarding=0")?;
        for wanted in [
            ("problem", "eth0.5: strict", "sysctl -w net/ipv4/conf/eth0.5/rp_filter=2"),
            ("problem", "eth0.5: IPv4 off", "sysctl -w net/ipv4/conf/eth0.5/forwarding=1"),
        ] {
            let way_out = node.finds(wanted)?;
            node.shell(&way_out)?;
            ensure!(node.finds(wanted).is_err(), "{way_out} does not help");
        }
        Ok(())
    })
}

#[test]
fn programs_that_are_gone_late_or_of_others() -> Result<()> {
    Bed::run("doctor-programs", |bed| {
        let mut rig = cluster(bed)?;
        let mut agent = rig.agents.nodes.pop().context("no node")?;
        let node = patient(&rig, &agent);
        let stop = |agent: &mut Agent| agent.process().stop(PATIENCE).map(drop);
        let alone = ("warning", "no agent answers", "beeline agent --config FILE");

        // The datapath goes on without the agent; then it goes.
        stop(&mut agent)?;
        node.finds(alone)?;
        ensure!(node.look()?.1, "what is pinned keeps forwarding");
        for (end, what) in [("%out", "no program of ours on TC egress"), ("", "no program of ours on the way in")] {
            let found = pins(&agent, end)?;
            ensure!(found.len() == 1, "{end}: {found:?}");
            fs::remove_file(&found[0])?;
            node.comes_to(("problem", what, "start the agent"))?;
        }
        agent.restart()?;
        node.is_well()?;

        // Another agent's program goes to the head while this one is away.
        stop(&mut agent)?;
        let other = Path::new("/sys/fs/bpf/beeline-other");
        attach_return(&agent, other, Way::Tcx)?;
        let late = ("warning", "runs before ours", "restart the agent");
        node.finds(late)?;
        agent.restart()?;
        node.is_well()?;
        rig.beeline.run(&node.host, &["detach", "--pin-path", &other.display().to_string()])?;
        node.is_well()?;

        // Below Linux 6.6 the program is a filter of clsact.
        stop(&mut agent)?;
        let own = config::load(agent.file())?.pin_path;
        pins(&agent, "%out")?.iter().try_for_each(fs::remove_file)?;
        attach_return(&agent, &own, Way::Clsact)?;
        ensure!(pins(&agent, "%clsact-out")?.len() == 1, "no pin of a filter");
        node.comes_to(("ok", "first on TC egress", ""))?;
        node.shell("tc filter del dev eth0 egress")?;
        node.finds(("problem", "no program of ours on TC egress", "start the agent"))?;
        node.shell("tc qdisc del dev eth0 clsact")?;
        pins(&agent, "%clsact-out")?.iter().try_for_each(fs::remove_file)?;
        agent.restart()?;
        node.is_well()?;

        // Somebody else has XDP: a node makes do with TC ingress.
        stop(&mut agent)?;
        pins(&agent, "")?.iter().try_for_each(fs::remove_file)?;
        eventually("XDP to be free", PATIENCE, || rig.beeline.pass_program(&node.host, &["eth0"]))?;
        node.finds(("problem", "no program of ours is on TC ingress", "start the agent"))?;
        agent.restart()?;
        node.finds(("remark", "on TC ingress, which is slower: XDP is taken by", ""))?;
        node.is_well()
    })
}

#[test]
fn what_an_agent_says_and_what_it_may_not_see() -> Result<()> {
    Bed::run("doctor-agent", |bed| {
        let rig = Rig::start(bed, Shape { nodes: 1, ..Shape::PLAIN }, Fabric::web_services)?;
        rig.agents.edges.iter().try_for_each(|agent| patient(&rig, agent).is_well())?;
        let agent = &rig.agents.nodes[0];
        let node = patient(&rig, agent);
        node.is_well()?;
        for (vip, bits) in Fabric::VIPS.into_iter().zip([32, 128]) {
            let wanted = format!("ip address add {vip}/{bits} dev lo");
            let line = format!("ip address del {vip}/{bits} dev lo");
            node.follows(&line, ("problem", "is no address of this host", &wanted), "")?;
        }

        // The agent has read a file that is broken since; the doctor is given one that is not.
        let good = bed.folder("good")?.join("lb.yaml");
        fs::copy(agent.file(), &good)?;
        let checked = Patient { rig: &rig, host: node.host.clone(), file: good.display().to_string() };
        fs::write(agent.file(), "apiVersion: nonsense\n")?;
        let wanted = ("problem", "apiVersion", "beeline status");
        checked.comes_to(wanted)?;
        ensure!(node.look().is_err(), "a file that is not valid is refused");
        let new = good.with_extension("copy");
        fs::copy(&good, &new)?;
        fs::copy(&new, agent.file())?;
        eventually("the agent to read its file again", PATIENCE, || node.is_well())?;

        // Without capabilities there is one line about it, and no false alarm.
        let output = node.host.within(|| {
            let mut command = Command::new("setpriv");
            command.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(rig.beeline.path());
            Ok(command.args(["doctor", "--config", &node.file]).output()?)
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let unseen: Vec<_> = text.lines().filter(|line| line.starts_with("unseen")).collect();
        if !output.status.success() || unseen.len() != 1 || !unseen[0].contains("CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON") {
            bail!("{text}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    })
}
