//! Ways with a second router and a narrow link in them.

use std::net::IpAddr;

use anyhow::Result;

use super::{Bed, Fabric, Host};

impl Fabric {
    /// Adds a host behind a second router and a link of the given MTU, narrower than its own: only by ICMP errors do
    /// both ends learn of it. Its addresses are [`Fabric::BRANCH`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn branch(&self, bed: &Bed, mtu: u32) -> Result<Host> {
        let (branch, access) = (bed.host("branch")?, bed.host("access")?);
        access.forward()?;
        self.router.cable("access", &access, "trunk")?;
        access.cable("branch", &branch, "eth0")?;
        self.router.addresses("access", &["10.62.0.1/24", "fd62::1/64"])?;
        access.addresses("trunk", &["10.62.0.2/24", "fd62::2/64"])?;
        access.addresses("branch", &["10.61.0.1/24", "fd61::1/64"])?;
        branch.addresses("eth0", &["10.61.0.2/24", "fd61::2/64"])?;
        branch.ip(&["route add default via 10.61.0.1", "route add default via fd61::1"])?;
        access.ip(&["route add default via 10.62.0.1", "route add default via fd62::1"])?;
        self.router.ip(&["route add 10.61.0.0/24 via 10.62.0.2", "route add fd61::/64 via fd62::2"])?;
        self.router.ip(&[format!("link set access mtu {mtu}")])?;
        access.ip(&[format!("link set trunk mtu {mtu}")])?;
        Ok(branch)
    }

    /// Puts `node` (counted from 1) behind a router of its own, `hopN`, whose link to the router of all has the given
    /// MTU. The node's own device is wider: by ICMP errors alone do edges and node learn of it.
    pub(super) fn join_behind_hop(&mut self, bed: &Bed, node: &Host, number: u8, mtu: u32) -> Result<()> {
        let hop = bed.host(&format!("hop{number}"))?;
        hop.forward()?;
        self.router.cable(node.name(), &hop, "trunk")?;
        hop.cable(node.name(), node, "eth0")?;
        self.router.addresses(node.name(), &[format!("10.63.{number}.1/24"), format!("fd63:{number}::1/64")])?;
        let [v4, v6] = Self::hop_addresses(usize::from(number) - 1);
        hop.addresses("trunk", &[format!("{v4}/24"), format!("{v6}/64")])?;
        hop.ip(&[
            format!("route add default via 10.63.{number}.1"),
            format!("route add default via fd63:{number}::1"),
        ])?;
        self.router.ip(&[
            format!("route add 10.50.2{number}.0/24 via {v4}"),
            format!("route add fd50:2{number}::/64 via {v6}"),
            format!("link set {} mtu {mtu}", node.name()),
        ])?;
        hop.ip(&[format!("link set trunk mtu {mtu}")])?;
        Self::address_routed(&hop, node, number)?;
        self.hops.push(hop);
        Ok(())
    }

    /// The addresses of the hop before a node (from 0) on its narrow link.
    pub(super) fn hop_addresses(node: usize) -> [IpAddr; 2] {
        // At most nine nodes: see `Shape`.
        let number = u8::try_from(node + 1).unwrap_or(u8::MAX);
        [IpAddr::from([10, 63, number, 2]), IpAddr::from([0xfd63, u16::from(number), 0, 0, 0, 0, 0, 2])]
    }
}
