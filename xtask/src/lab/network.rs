//! What the lab is made of.

use anyhow::Result;
use beeline_tests::bed::{Bed, Beeline, Fabric, Rig, Shape};

/// Two edges, three nodes with nginx, a client with four addresses in each family.
const SHAPE: Shape = Shape { edges: 2, nodes: 3, clients: 4, ..Shape::PLAIN };

/// What the lab looks like.
pub(super) const PICTURE: &str = r"
  client                 router                    edge1  10.50.0.11  fd50::11   XDP: VIP to node, IPIP
  10.60.0.2 … .5  ────►  sends the VIPs  ─ECMP─┬─► edge2  10.50.0.12  fd50::12
  fd60::2 … ::5          198.51.100.10         │
        ▲                2001:db8:10::10       │   node1  10.50.0.21  fd50::21   XDP: out of IPIP
        │                      ▲               ╞═► node2  10.50.0.22  fd50::22   nginx on the VIPs
        │                      │               ╘═► node3  10.50.0.23  fd50::23
        └──────────────────────┴────────────────── replies come straight from the nodes
";

/// Builds all of it and waits until every agent is ready.
pub(super) fn build(bed: &Bed, beeline: &Beeline) -> Result<Rig> {
    Rig::start_with(bed, beeline, SHAPE, Fabric::web_services)
}
