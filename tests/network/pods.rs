//! Into unmodified pods and back: client, edge, tunnel, node, pod, and straight home.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use beeline_tests::bed::{Bed, Fabric, Rig, SERVICE_UDP, Shape, ask_name, eventually, holds};

const PATIENCE: Duration = Duration::from_secs(20);

/// HTTP and UDP to pods behind veths and behind a bridge, both families.
#[test]
fn pods_serve_at_the_vip() -> Result<()> {
    Bed::run("pods_serve", |bed| {
        let rig = Rig::start(bed, Shape { edges: 2, clients: 3, ..Shape::PODS }, Fabric::web_pod_services)?;
        let pods = rig.fabric.request(&rig.fabric.pairs(), 16)?;
        let all: Vec<&str> = rig.fabric.pods.iter().map(|pod| pod.name()).collect();
        ensure!(pods.len() == all.len(), "96 flows all went to {pods:?} of {all:?}");
        eventually("the clients in the pods' logs", PATIENCE, || {
            let hits = rig.pods.iter().map(|pod| pod.web.hits()).collect::<Result<Vec<_>>>()?.concat();
            let known = hits.iter().all(|hit| rig.fabric.client_addresses().contains(&hit.client));
            holds(known && hits.len() == 96, || format!("{} of 96 logged: {hits:?}", hits.len()))
        })?;
        for vip in Fabric::VIPS {
            for client in rig.fabric.clients_for(vip) {
                let said = rig.fabric.client.within(|| {
                    let socket = std::net::UdpSocket::bind((client, 0))?;
                    ask_name(&socket, SocketAddr::new(vip, SERVICE_UDP), b"hello", PATIENCE)
                })?;
                ensure!(all.contains(&said.name.as_str()), "{} answered", said.name);
                ensure!(said.saw.ip() == client, "the pod saw {}", said.saw);
            }
        }
        Ok(())
    })
}
