//! Pods behind conntrack, and the NAT and filters that others set up on a node.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use beeline_tests::bed::policies::{self, ReversePath};
use beeline_tests::bed::{
    Agent, Bed, Beeline, Connection, Fabric, Host, Node, POD_HTTP, POD_UDP, Pod, Rig, SERVICE_UDP, Service, Shape,
    WebServer, ask_name, eventually, holds,
};
use lb_userspace::nat_exemption::NatExemption;

const PATIENCE: Duration = Duration::from_secs(20);

/// Time for an answer on an idle network, before it is tried anew.
const ANSWER: Duration = Duration::from_millis(500);

/// Time after which no answer is taken for none to come.
const SILENCE: Duration = Duration::from_millis(1500);

/// A pod on a node behind an edge: it is clear who answers.
const LONE_POD: Shape = Shape { nodes: 1, pods: 1, ..Shape::PLAIN };

/// The service's UDP port and HTTP at the first VIPs.
fn services(fabric: &Fabric) -> Vec<Service> {
    fabric.web_pod_services()
}

/// Everything on one pod, but for UDP in it; `exempt` as `node.natExemption`.
struct Scene {
    _agents: Vec<Agent>,
    _web: WebServer,
    fabric: Fabric,
}

impl Scene {
    fn start(bed: &Bed, exempt: bool) -> Result<Self> {
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, LONE_POD)?);
        let web = WebServer::start_on(bed, &fabric.pods[0].host, POD_HTTP)?;
        beeline.pass_program(&fabric.router, &["edge1", "node1"])?;
        let services = services(&fabric);
        let (edge, node) = (&fabric.edges[0], &fabric.nodes[0]);
        let mut config = fabric.node_config(node, &services);
        config.node = config.node.map(|role| Node { nat_exemption: exempt, ..role });
        let agents =
            vec![beeline.agent(bed, node, &config)?, beeline.agent(bed, edge, &fabric.edge_config(edge, &services))?];
        Ok(Self { _agents: agents, _web: web, fabric })
    }

    fn node(&self) -> &Host {
        &self.fabric.nodes[0]
    }

    fn pod(&self) -> &Pod {
        &self.fabric.pods[0]
    }

    /// Sockets of a UDP flow by `vip`, the client's and the pod's, that has begun; with what the pod takes for the
    /// client's.
    fn udp_flow(&self, vip: IpAddr) -> Result<(UdpSocket, UdpSocket, SocketAddr)> {
        let (client, pod) = (self.fabric.client_for(vip), SocketAddr::new(self.pod().address_for(vip), POD_UDP));
        let outside = bind(&self.fabric.client, SocketAddr::new(client, 0), SILENCE)?;
        let inside = bind(&self.pod().host, pod, ANSWER)?;
        let mut datagram = [0; 16];
        let (_, seen) = eventually("a datagram in the pod", PATIENCE, || {
            outside.send_to(b"question", SocketAddr::new(vip, SERVICE_UDP))?;
            Ok(inside.recv_from(&mut datagram)?)
        })?;
        ensure!(seen == outside.local_addr()?, "the pod saw {seen} as the client");
        Ok((outside, inside, seen))
    }
}

fn bind(host: &Host, address: SocketAddr, wait: Duration) -> Result<UdpSocket> {
    let socket = host.within(|| UdpSocket::bind(address).with_context(|| format!("binding {address}")))?;
    socket.set_read_timeout(Some(wait))?;
    Ok(socket)
}

/// Sends an answer from the pod and returns whose the client takes it for.
fn answerer(outside: &UdpSocket, inside: &UdpSocket, client: SocketAddr) -> Result<SocketAddr> {
    inside.send_to(b"answer", client)?;
    let (_, from) = outside.recv_from(&mut [0; 16]).context("no answer came to the client")?;
    Ok(from)
}

/// Answers of a pod to a flow by each VIP, before and after conntrack forgets it: the ones after that come from the
/// node's address, or from the VIP.
fn late_answers(bed: &Bed, exempt: bool) -> Result<()> {
    let scene = Scene::start(bed, exempt)?;
    for vip in Fabric::VIPS {
        let (outside, inside, client) = scene.udp_flow(vip)?;
        let at_vip = SocketAddr::new(vip, SERVICE_UDP);
        assert_eq!(answerer(&outside, &inside, client)?, at_vip);
        policies::forget_flows(scene.node())?;
        let late = answerer(&outside, &inside, client)?;
        if exempt {
            assert_eq!(late, at_vip);
            // The flow goes on both ways, now that conntrack takes the pod for the one who began it.
            outside.send_to(b"question", at_vip)?;
            assert_eq!(inside.recv_from(&mut [0; 16])?.1, client);
            assert_eq!(answerer(&outside, &inside, client)?, at_vip);
        } else {
            assert_eq!(late.ip(), scene.fabric.node_addresses(vip.is_ipv4())[0], "the trap is gone");
        }
    }
    Ok(())
}

#[test]
fn a_forgotten_udp_reply_leaves_as_the_node_without_the_exemption() -> Result<()> {
    Bed::run("trap", |bed| late_answers(bed, false))
}

#[test]
fn a_forgotten_udp_reply_comes_from_the_vip_with_the_exemption() -> Result<()> {
    Bed::run("exempt", |bed| late_answers(bed, true))
}

#[test]
fn tcp_goes_on_when_conntrack_forgets_it() -> Result<()> {
    Bed::run("exempt-tcp", |bed| {
        let scene = Scene::start(bed, true)?;
        for vip in Fabric::VIPS {
            let client = scene.fabric.client_for(vip);
            let open = || Connection::open(client, SocketAddr::new(vip, 80), PATIENCE);
            let mut connection = scene.fabric.client.within(open)?;
            for _ in 0..3 {
                assert_eq!(connection.get("/")?.header("x-client")?, client.to_string());
                policies::forget_flows(scene.node())?;
            }
        }
        Ok(())
    })
}

/// The pod's other flows are hidden behind the node as before, and so is a reply that nobody asked us to exempt.
#[test]
fn what_is_no_reply_is_masqueraded_as_before() -> Result<()> {
    Bed::run("exempt-others", |bed| {
        let scene = Scene::start(bed, true)?;
        for vip in Fabric::VIPS {
            let client = SocketAddr::new(scene.fabric.client_for(vip), 0);
            let outside = bind(&scene.fabric.client, client, SILENCE)?;
            let inside = bind(&scene.pod().host, SocketAddr::new(scene.pod().address_for(vip), 0), ANSWER)?;
            let seen = answerer(&outside, &inside, outside.local_addr()?)?;
            assert_eq!(seen.ip(), scene.fabric.node_addresses(vip.is_ipv4())[0]);
        }
        Ok(())
    })
}

/// The table of the agent of `node`, where there is one.
fn table(node: &Host) -> Result<Option<String>> {
    let name = NatExemption::new(Path::new("/sys/fs/bpf/beeline-node1")).table().to_owned();
    let tables = node.run("nft list tables")?;
    let there = tables.lines().any(|line| line == format!("table inet {name}"));
    there.then(|| node.run(&format!("nft list table inet {name}"))).transpose()
}

#[test]
fn the_table_is_kept_and_goes_when_it_is_not_wanted() -> Result<()> {
    Bed::run("exempt-table", |bed| {
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, LONE_POD)?);
        let node = &fabric.nodes[0];
        let mut config = fabric.node_config(node, &services(&fabric));
        let exempt = |config: &mut beeline_tests::bed::Config, nat_exemption| {
            config.node = config.node.take().map(|role| Node { nat_exemption, ..role });
        };
        exempt(&mut config, true);
        let mut agent = beeline.agent(bed, node, &config)?;
        let wanted = table(node)?.context("no table was made")?;
        for pod in fabric.pods[0].addresses() {
            for port in [format!("tcp . {POD_HTTP}"), format!("udp . {POD_UDP}")] {
                assert!(wanted.contains(&format!("{pod} . {port} : {pod}")), "{wanted}");
            }
        }
        let back = || {
            eventually("the table as it was", PATIENCE, || {
                let there = table(node)?;
                holds(there.as_ref() == Some(&wanted), || format!("{there:?}"))
            })
        };
        // All is gone, or a part.
        node.run("nft flush ruleset")?;
        back()?;
        let name = wanted.split_whitespace().nth(2).context("a name")?;
        node.run(&format!("nft flush chain inet {name} postrouting"))?;
        back()?;
        // Others' changes are none of our business.
        policies::masquerade(node)?;
        agent.process().stop(PATIENCE)?;
        assert_eq!(table(node)?, Some(wanted.clone()), "the table went with the agent");
        agent.restart()?;
        assert_eq!(table(node)?, Some(wanted.clone()));
        exempt(&mut config, false);
        config.write(agent.file())?;
        let gone = || {
            eventually("the end of the table", PATIENCE, || {
                let there = table(node)?;
                holds(there.is_none(), || format!("{there:?}"))
            })
        };
        gone()?;
        exempt(&mut config, true);
        config.write(agent.file())?;
        back()?;
        agent.process().stop(PATIENCE)?;
        let said = beeline.run(node, &["detach", "--pin-path", "/sys/fs/bpf/beeline-node1"])?;
        assert!(said.contains(name), "{said}");
        assert_eq!(table(node)?, None);
        policies::no_masquerade(node)
    })
}

#[test]
fn pods_serve_where_conntrack_is_off() -> Result<()> {
    Bed::run("untracked", |bed| {
        let rig = Rig::start(bed, Shape::PODS, services)?;
        rig.fabric.nodes.iter().try_for_each(policies::conntrack_off)?;
        rig.fabric.nodes.iter().try_for_each(policies::drop_invalid)?;
        rig.fabric.request(&rig.fabric.pairs(), 8)?;
        udp_is_answered(&rig.fabric)
    })
}

#[test]
fn filters_that_drop_what_conntrack_calls_invalid_find_nothing() -> Result<()> {
    Bed::run("not-invalid", |bed| {
        let rig = Rig::start(bed, Shape::PODS, services)?;
        for node in &rig.fabric.nodes {
            // Nothing is picked up in the middle: what belongs to no flow from its SYN on is invalid.
            node.sysctl(&[("net.netfilter.nf_conntrack_tcp_loose", "0")])?;
            policies::drop_invalid(node)?;
        }
        rig.fabric.request(&rig.fabric.pairs(), 8)?;
        udp_is_answered(&rig.fabric)?;
        for node in &rig.fabric.nodes {
            assert_eq!(policies::dropped_as_invalid(node)?, 0, "{}", node.name());
        }
        Ok(())
    })
}

#[test]
fn a_strict_reverse_path_lets_clients_through() -> Result<()> {
    Bed::run("strict", |bed| {
        let rig = Rig::start(bed, Shape::PODS, services)?;
        for node in &rig.fabric.nodes {
            policies::reverse_path(node, ReversePath::Strict)?;
        }
        rig.fabric.request(&rig.fabric.pairs(), 8)?;
        udp_is_answered(&rig.fabric)
    })
}

/// A pod answers UDP at each VIP, from it, and sees the client.
fn udp_is_answered(fabric: &Fabric) -> Result<()> {
    for vip in Fabric::VIPS {
        let socket = bind(&fabric.client, SocketAddr::new(fabric.client_for(vip), 0), ANSWER)?;
        let to = SocketAddr::new(vip, SERVICE_UDP);
        let said = eventually("an answer from the VIP", PATIENCE, || ask_name(&socket, to, b"who", ANSWER))?;
        ensure!(said.saw == socket.local_addr()?, "{} saw {}", said.name, said.saw);
    }
    Ok(())
}
