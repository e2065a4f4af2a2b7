//! What the lab is made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use beeline_tests::bed::{Bed, Beeline, Config, Fabric, Pod, Rig, Service, Shape, WebServer};

/// Two edges, two nodes with two pods each, those of the second on a bridge; a client with two addresses in each family.
const SHAPE: Shape = Shape { edges: 2, ..Shape::PODS };

/// VIPs of both families that the nodes themselves hold, of the services `plain` and `plain6`.
const PLAIN_VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 12)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0x12))];

/// What the lab looks like.
pub(super) const PICTURE: &str = r"
  client                 router                     edge1  10.50.0.11  fd50::11   XDP: VIP to node, IPIP
  10.60.0.2, .3   ────►  sends the VIPs ─ECMP──┬──► edge2  10.50.0.12  fd50::12
  fd60::2, ::3           to the edges          │
        ▲                      ▲               │    node1  10.50.0.21  fd50::21 ─┬─ pod1-1  10.244.1.11  fd44:1::b
        │                      │               ╞══► XDP: out of IPIP, VIP to pod └─ pod1-2  10.244.1.12  fd44:1::c
        │                      │               │    node2  10.50.0.22  fd50::22 ─┬─ pod2-1  10.244.2.11  fd44:2::b
        │                      │               ╘══► the same, a bridge to pods   └─ pod2-2  10.244.2.12  fd44:2::c
        └──────────────────────┴─────────────────── TC: replies leave the nodes as the VIP's, past the edges

  web    198.51.100.10  2001:db8:10::10   port 80 to nginx on 8080, UDP 53 to 9000, in all pods
  shop   198.51.100.11  2001:db8:10::11   port 80 to nginx on 8080 in pod1-1 and pod2-1, which web leads to as well
  plain  198.51.100.12  2001:db8:10::12   port 80 to nginx of the nodes themselves, which hold this VIP
";

/// Builds all of it and waits until every agent is ready.
pub(super) fn build(bed: &Bed, beeline: &Beeline) -> Result<Rig> {
    let fabric = Fabric::build(bed, SHAPE)?;
    fabric.nodes.iter().try_for_each(|node| Fabric::hold_vips(node, &PLAIN_VIPS))?;
    let (pods, servers) = (fabric.serve_pods(bed)?, fabric.serve(bed)?);
    let agents = fabric.start_agents(bed, beeline, &services(&fabric))?;
    Ok(Rig { agents, servers, pods, fabric, beeline: beeline.clone() })
}

/// What every host's file says is balanced.
fn services(fabric: &Fabric) -> Vec<Service> {
    let plain = |(name, vip): (&str, IpAddr)| Service::new(name, vip, "TCP", 80, &fabric.node_addresses(vip.is_ipv4()));
    let mut services = fabric.pod_services();
    services.extend(["plain", "plain6"].into_iter().zip(PLAIN_VIPS).map(plain));
    services
}

/// Every VIP.
pub(super) fn vips() -> impl Iterator<Item = IpAddr> {
    [Fabric::VIPS, Fabric::SECOND_VIPS, PLAIN_VIPS].into_iter().flatten()
}

/// Every address of the client with every VIP of its family.
pub(super) fn pairs(fabric: &Fabric) -> Vec<(IpAddr, IpAddr)> {
    vips().flat_map(|vip| fabric.clients_for(vip).map(move |client| (client, vip))).collect()
}

/// Every nginx, those of the pods first.
pub(super) fn servers(lab: &Rig) -> impl Iterator<Item = &WebServer> {
    lab.pods.iter().map(|pod| &pod.web).chain(&lab.servers)
}

/// The second pod of each node, which `shop` does not have.
pub(super) fn second_pods(fabric: &Fabric) -> Vec<Pod> {
    (0..fabric.nodes.len()).filter_map(|node| fabric.pods_of(node).nth(1)).cloned().collect()
}

/// Replaces the edges' files by what they said at first, with a change.
pub(super) fn change_edges(lab: &Rig, change: impl Fn(&mut Config) -> Result<()>) -> Result<()> {
    let services = services(&lab.fabric);
    for agent in &lab.agents.edges {
        let mut config = lab.fabric.edge_config(agent.host(), &services);
        change(&mut config)?;
        config.write(agent.file())?;
    }
    Ok(())
}

/// As [`change_edges`], of the nodes.
pub(super) fn change_nodes(lab: &Rig, change: impl Fn(&mut Config) -> Result<()>) -> Result<()> {
    let services = services(&lab.fabric);
    for agent in &lab.agents.nodes {
        let mut config = lab.fabric.node_config(agent.host(), &services);
        change(&mut config)?;
        config.write(agent.file())?;
    }
    Ok(())
}
