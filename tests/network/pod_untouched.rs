//! What is not the VIP's stays as it is, into pods and out of them, while the VIP is served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use beeline_tests::bed::policies;
use beeline_tests::bed::{
    Bed, Beeline, Capture, Fabric, Host, Node, POD_HTTP, Pod, Rig, Service, Shape, Traffic, WebServer, eventually, get,
    holds,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Time after which no answer is taken for none to come.
const SILENCE: Duration = Duration::from_millis(700);

/// A port of pods that no service has.
const OTHER_PORT: u16 = 8000;

/// The first node's addresses towards its pods.
const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfd44, 1, 0, 0, 0, 0, 0, 1))];

/// `server` answers at `to`, and sees `seen` as its client.
fn answers(host: &Host, from: IpAddr, to: SocketAddr, server: &str, seen: IpAddr) -> Result<()> {
    let ask = || format!("{} asked {to} from {from}", host.name());
    let answer = host.within(|| get(from, to, "/", PATIENCE)).with_context(ask)?;
    let (name, saw) = (answer.header("x-node")?, answer.header("x-client")?);
    ensure!((name, saw) == (server, seen.to_string().as_str()), "{}: {name} saw {saw}, not {server} {seen}", ask());
    Ok(())
}

/// Pods behind VIPs with clients of every kind, and servers beside.
struct Scene {
    rig: Rig,
    _others: Vec<WebServer>,
}

impl Scene {
    fn start(bed: &Bed, direct: bool) -> Result<Self> {
        let rig = Rig::start_tuned(bed, &Beeline::find()?, Shape::PODS, Fabric::web_pod_services, |config| {
            config.node = config.node.take().map(|node| Node { direct_pod_access: direct, ..node });
        })?;
        let fabric = &rig.fabric;
        let mut others = vec![WebServer::start(bed, &fabric.client)?];
        for pod in [&fabric.pods[0], &fabric.pods[2]] {
            others.push(WebServer::start_on(bed, &pod.host, OTHER_PORT)?);
        }
        Ok(Self { rig, _others: others })
    }

    /// Everything that goes on in a cluster beside the VIPs, in the family of `client`.
    fn all_others(&self, client: IpAddr) -> Result<()> {
        let fabric = &self.rig.fabric;
        let nodes = fabric.node_addresses(client.is_ipv4());
        for pod in &fabric.pods {
            self.between_pods(pod, client)?;
            // Its own connections, with the node's address.
            let address = pod.address_for(client);
            answers(&pod.host, address, SocketAddr::new(client, 80), "client", nodes[pod.node])?;
            for (host, to) in [(&fabric.client, address), (&pod.host, client), (&fabric.nodes[1 - pod.node], address)] {
                host.run(&format!("ping -n -c 1 -W 5 {to}"))?;
            }
        }
        for pod in [&fabric.pods[0], &fabric.pods[2]] {
            let to = SocketAddr::new(pod.address_for(client), OTHER_PORT);
            answers(&fabric.client, client, to, pod.name(), client)?;
        }
        for (node, address) in fabric.nodes.iter().zip(&nodes) {
            answers(node, *address, SocketAddr::new(client, 80), "client", *address)?;
        }
        self.services_inside(client)
    }

    /// From each other pod and each node to `pod` by the port that the VIP leads to.
    fn between_pods(&self, pod: &Pod, client: IpAddr) -> Result<()> {
        let fabric = &self.rig.fabric;
        let to = SocketAddr::new(pod.address_for(client), POD_HTTP);
        for other in fabric.pods.iter().filter(|other| other.name() != pod.name()) {
            let from = other.address_for(client);
            answers(&other.host, from, to, pod.name(), from)?;
        }
        let other = 1 - pod.node;
        let from = fabric.node_addresses(client.is_ipv4())[other];
        answers(&fabric.nodes[other], from, to, pod.name(), from)
    }

    /// A ClusterIP from inside, and ports of nodes from outside, that lead to pods of this node and the other one.
    fn services_inside(&self, client: IpAddr) -> Result<()> {
        let fabric = &self.rig.fabric;
        let family = usize::from(client.is_ipv6());
        let (here, address) = (&fabric.nodes[0], fabric.node_addresses(client.is_ipv4())[0]);
        for (index, pod) in (7..).zip([&fabric.pods[0], &fabric.pods[2]]) {
            let to = SocketAddr::new(pod.address_for(client), POD_HTTP);
            let service = SocketAddr::new(policies::cluster_ips(index)[family], 80);
            policies::cluster_ip(here, "tcp", service, to)?;
            let asking = &fabric.pods[1];
            let from = asking.address_for(client);
            answers(&asking.host, from, service, pod.name(), from)?;
            // Any node's traffic policy: the pod sees the node, by the address that is nearest to the pod.
            policies::node_port(here, "tcp", 30_000 + u16::from(index), to)?;
            let port = SocketAddr::new(address, 30_000 + u16::from(index));
            let seen = if pod.node == 0 { GATEWAYS[family] } else { address };
            answers(&fabric.client, client, port, pod.name(), seen)?;
        }
        // The local one: the pod of this node sees the client, and conntrack gives the reply the node's address and port.
        let pod = &fabric.pods[0];
        let port = SocketAddr::new(address, 30_100);
        policies::cluster_ip(here, "tcp", port, SocketAddr::new(pod.address_for(client), POD_HTTP))?;
        answers(&fabric.client, client, port, pod.name(), client)
    }

    /// Runs `body` while clients ask the VIPs, and wants all of them to be served.
    fn under_way(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let fabric = &self.rig.fabric;
        let traffic = Traffic::start(&fabric.client, &fabric.pairs())?;
        traffic.wait_for(8)?;
        body()?;
        traffic.wait_for(8)?;
        match traffic.finish().iter().find_map(|outcome| outcome.wrong()) {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }
}

#[test]
fn others_traffic_stays_as_it_is() -> Result<()> {
    Bed::run("pod_untouched", |bed| {
        let scene = Scene::start(bed, false)?;
        let fabric = &scene.rig.fabric;
        scene.under_way(|| Fabric::VIPS.into_iter().try_for_each(|vip| scene.all_others(fabric.client_for(vip))))?;
        // Who asks a pod itself by the VIP's port gets the VIP's answer, which is not what it asked: as documented.
        for vip in Fabric::VIPS {
            let (pod, client) = (&fabric.pods[0], fabric.client_for(vip));
            let to = SocketAddr::new(pod.address_for(vip), POD_HTTP);
            let filter = format!("src host {vip} and src port 80 and tcp[13] == 0x12");
            let filter = if vip.is_ipv4() { filter } else { filter.replace("tcp[13]", "ip6[53]") };
            let answers = Capture::start(&fabric.client, if vip.is_ipv4() { "v4" } else { "v6" }, "eth0", &filter)?;
            ensure!(
                fabric.client.within(|| get(client, to, "/", SILENCE)).is_err(),
                "{to} answers without directPodAccess"
            );
            eventually("a SYN-ACK of the VIP", PATIENCE, || {
                let packets = answers.packets()?;
                holds(!packets.is_empty(), || "none".to_owned())
            })?;
        }
        Ok(())
    })
}

#[test]
fn with_direct_access_clients_reach_pods_by_both_addresses() -> Result<()> {
    Bed::run("pod_direct", |bed| {
        let scene = Scene::start(bed, true)?;
        let fabric = &scene.rig.fabric;
        scene.under_way(|| {
            Fabric::VIPS.into_iter().try_for_each(|vip| {
                let client = fabric.client_for(vip);
                for pod in &fabric.pods {
                    let to = SocketAddr::new(pod.address_for(vip), POD_HTTP);
                    answers(&fabric.client, client, to, pod.name(), client)?;
                }
                scene.all_others(client)
            })
        })
    })
}

/// HTTP at the first VIPs to the first pod of the first node alone, and at the second ones to the pod beside it.
fn a_vip_each(fabric: &Fabric) -> Vec<Service> {
    let service = |(name, vip, pod): (&str, IpAddr, usize)| {
        fabric.pod_service(name, vip, vip.is_ipv4(), [&fabric.pods[pod]]).port_to("TCP", 80, POD_HTTP)
    };
    let [web, web6] = Fabric::VIPS;
    let [shop, shop6] = Fabric::SECOND_VIPS;
    [("web", web, 0), ("web6", web6, 0), ("shop", shop, 1), ("shop6", shop6, 1)].into_iter().map(service).collect()
}

#[test]
fn clients_inside_are_served_and_those_of_the_pods_node_refused() -> Result<()> {
    Bed::run("pod_inside", |bed| {
        let rig = Rig::start(bed, Shape::PODS, a_vip_each)?;
        let (fabric, agent) = (&rig.fabric, &rig.agents.nodes[0]);
        let [pod, neighbour, elsewhere] = [0, 1, 2].map(|index| &fabric.pods[index]);
        for (vip, masqueraded) in Fabric::VIPS.into_iter().flat_map(|vip| [(vip, true), (vip, false)]) {
            let set = if masqueraded { policies::masquerade } else { policies::no_masquerade };
            fabric.nodes.iter().try_for_each(set)?;
            let nodes = fabric.node_addresses(vip.is_ipv4());
            let to = SocketAddr::new(vip, 80);
            let from = elsewhere.address_for(vip);
            let seen = if masqueraded { nodes[1] } else { from };
            answers(&elsewhere.host, from, to, pod.name(), seen)?;
            answers(&fabric.nodes[1], nodes[1], to, pod.name(), nodes[1])?;
            // Still the pod's own address for who asks by it.
            answers(&elsewhere.host, from, SocketAddr::new(pod.address_for(vip), POD_HTTP), pod.name(), from)?;
            // What comes back in a tunnel from this host or a pod of its own is refused: its reply would not go out.
            let own = [(&pod.host, pod.address_for(vip)), (&neighbour.host, neighbour.address_for(vip))];
            for (host, from) in own.into_iter().chain([(&fabric.nodes[0], nodes[0])]) {
                let before = agent.packets_with_reason("hairpin")?;
                let refused = host.within(|| get(from, to, "/", SILENCE)).is_err();
                let counted = agent.packets_with_reason("hairpin")? - before;
                ensure!(refused && counted > 0, "{from} asked {to}: refused {refused}, counted {counted}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_pod_in_the_nodes_network_serves_at_the_vip_and_at_the_nodes_address() -> Result<()> {
    Bed::run("pod_host_network", |bed| {
        let (beeline, fabric) = (Beeline::find()?, Fabric::build(bed, Shape::PODS)?);
        let _servers =
            fabric.nodes.iter().map(|node| WebServer::start_on(bed, node, POD_HTTP)).collect::<Result<Vec<_>>>()?;
        let service = |(name, vip): (&str, IpAddr)| {
            let nodes: Vec<_> =
                fabric.node_addresses(vip.is_ipv4()).into_iter().map(|node| (node, vec![node])).collect();
            Service::of_pods(name, vip, &nodes).port_to("TCP", 80, POD_HTTP)
        };
        let services: Vec<Service> = ["web", "web6"].into_iter().zip(Fabric::VIPS).map(service).collect();
        let agents = fabric.start_agents(bed, &beeline, &services)?;
        let served = fabric.request(&fabric.pairs(), 8)?;
        ensure!(served.len() == 2, "32 flows all went to {served:?}");
        for vip in Fabric::VIPS {
            let (client, nodes) = (fabric.client_for(vip), fabric.node_addresses(vip.is_ipv4()));
            for (index, (host, address)) in fabric.nodes.iter().zip(&nodes).enumerate() {
                let to = SocketAddr::new(*address, POD_HTTP);
                answers(&fabric.client, client, to, host.name(), client)?;
                answers(&fabric.nodes[1 - index], nodes[1 - index], to, host.name(), nodes[1 - index])?;
                answers(host, *address, to, host.name(), *address)?;
            }
        }
        fabric.request(&fabric.pairs(), 8)?;
        for agent in &agents.nodes {
            let rewritten = agent.packets_with_reason("reply_rewritten")?;
            ensure!(rewritten > 0, "{}: no reply was rewritten", agent.host().name());
            let lost = agent.packets_with_reason("reply_without_record")?;
            ensure!(lost == 0, "{}: {lost} replies without a record", agent.host().name());
        }
        Ok(())
    })
}
