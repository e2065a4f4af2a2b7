//! A fabric with everything running on it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, bail};

use super::{Agents, Bed, Beeline, Config, Fabric, PodServer, Service, Shape, WebServer, ask};

/// nginx on every node, or in every pod where there are pods, an agent on every node and edge. Goes down in the order of the fields.
pub struct Rig {
    /// The agents, all ready.
    pub agents: Agents,
    /// nginx of each node, in order; none where there are pods.
    pub servers: Vec<WebServer>,
    /// What runs in each pod, in the order of [`Fabric::pods`].
    pub pods: Vec<PodServer>,
    /// The hosts.
    pub fabric: Fabric,
    /// The binary.
    pub beeline: Beeline,
}

impl Rig {
    /// Builds and starts all of it, serving what `services` makes of the fabric.
    ///
    /// # Errors
    /// There is no binary, or something does not start: with its log.
    pub fn start(bed: &Bed, shape: Shape, services: impl FnOnce(&Fabric) -> Vec<Service>) -> Result<Self> {
        Self::start_with(bed, &Beeline::find()?, shape, services)
    }

    /// As [`Rig::start`], with this binary.
    ///
    /// # Errors
    /// Something does not start: with its log.
    pub fn start_with(
        bed: &Bed,
        beeline: &Beeline,
        shape: Shape,
        services: impl FnOnce(&Fabric) -> Vec<Service>,
    ) -> Result<Self> {
        Self::start_tuned(bed, beeline, shape, services, |_| ())
    }

    /// As [`Rig::start_with`], with configurations that `tune` changes before they are used.
    ///
    /// # Errors
    /// As [`Rig::start_with`].
    pub fn start_tuned(
        bed: &Bed,
        beeline: &Beeline,
        shape: Shape,
        services: impl FnOnce(&Fabric) -> Vec<Service>,
        tune: impl Fn(&mut Config),
    ) -> Result<Self> {
        let fabric = Fabric::build(bed, shape)?;
        let pods = fabric.serve_pods(bed)?;
        let servers = if pods.is_empty() { fabric.serve(bed)? } else { Vec::new() };
        let agents = fabric.start_agents_tuned(bed, beeline, &services(&fabric), tune)?;
        Ok(Self { agents, servers, pods, fabric, beeline: beeline.clone() })
    }

    /// Gives every agent a file with these services, and waits until it is in force.
    ///
    /// # Errors
    /// A file cannot be written, or an agent does not apply it.
    pub fn reconfigure(&self, services: &[Service]) -> Result<()> {
        let Self { agents, fabric, .. } = self;
        let nodes = agents.nodes.iter().map(|node| (node, fabric.node_config(node.host(), services)));
        let edges = agents.edges.iter().map(|edge| (edge, fabric.edge_config(edge.host(), services)));
        // Nodes first: an edge that is behind sends to pods that its nodes know.
        nodes.chain(edges).try_for_each(|(agent, config)| agent.apply(&config))
    }

    /// The process ids of all that was started.
    pub fn pids(&mut self) -> Vec<u32> {
        let agents = self.agents.all().map(|agent| agent.process().pid());
        let servers = self.servers.iter_mut().chain(self.pods.iter_mut().map(|pod| &mut pod.web));
        agents.chain(servers.map(|server| server.process().pid())).collect()
    }
}

impl Fabric {
    /// Sends `each` requests for every pair of client address and VIP; returns the nodes, or pods, that answered.
    ///
    /// # Errors
    /// At the first answer that is missing, or shows that nginx saw another client.
    pub fn request(&self, pairs: &[(IpAddr, IpAddr)], each: usize) -> Result<BTreeSet<String>> {
        self.client.within(|| {
            let mut nodes = BTreeSet::new();
            for (client, vip) in pairs.iter().flat_map(|pair| std::iter::repeat_n(pair, each)) {
                let outcome = ask(*client, *vip);
                if let Some(wrong) = outcome.wrong() {
                    bail!("{wrong}");
                }
                nodes.extend(outcome.result.map(|served| served.node));
            }
            Ok(nodes)
        })
    }
}
