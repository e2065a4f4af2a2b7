//! Pods of a node that come and go: their connections stay with them for as long as they serve.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use beeline_tests::bed::{Agent, Bed, Fabric, Fared, LongConnections, Pod, Rig, Service, Shape};

/// Connections of each pair of client and VIP.
const EACH: usize = 8;

/// One node: which node a flow goes to never changes.
const NODE: Shape = Shape { nodes: 1, pods: 3, bridge: None, ..Shape::PODS };

/// The services of all pods, without `removed`, and with `draining` draining.
fn services(fabric: &Fabric, draining: &[&Pod], removed: &[&Pod]) -> Result<Vec<Service>> {
    let mut services = fabric.web_pod_services();
    for service in &mut services {
        let of_family = |pod: &&Pod| pod.address_for(service.address);
        let (draining, removed): (Vec<_>, Vec<_>) =
            (draining.iter().map(of_family).collect(), removed.iter().map(of_family).collect());
        draining.into_iter().try_for_each(|pod| service.drain_pod(pod, true))?;
        removed.into_iter().try_for_each(|pod| service.remove_pod(pod))?;
    }
    Ok(services)
}

/// The pods that answer new connections.
fn serving(rig: &Rig) -> Result<BTreeSet<String>> {
    rig.fabric.request(&rig.fabric.pairs(), 8)
}

fn names<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeSet<String> {
    pods.into_iter().map(|pod| pod.name().to_owned()).collect()
}

/// Asks again on each connection, of which none may be broken.
fn all_go_on(long: &mut LongConnections, when: &str) -> Result<BTreeMap<String, Fared>> {
    let fared = long.ask_again();
    ensure!(fared.values().all(|fared| fared.broken == 0), "{when}: {fared:?}");
    Ok(fared)
}

/// Packets that a node has handed to pods that had owned their slots before.
fn to_formers(node: &Agent) -> Result<u64> {
    node.packets_with_reason("delivered_to_former_pod")
}

/// Slots move twice, from the first pod to the second and from there to the third: all connections stay where they
/// began, through a crash of the agent, until their own pod is taken out.
#[test]
fn connections_stay_with_pods_that_drain() -> Result<()> {
    Bed::run("pod-drains", |bed| {
        let mut rig = Rig::start(bed, NODE, Fabric::web_pod_services)?;
        let pods = rig.fabric.pods.clone();
        let [first, second, third] = &pods[..] else { unreachable!("three pods") };
        let open = |rig: &Rig| LongConnections::open(&rig.fabric.client, &rig.fabric.pairs(), EACH);
        let mut long = open(&rig)?;
        let fared = all_go_on(&mut long, "before")?;
        ensure!(fared.len() == 3, "32 connections, and none with one of the pods: {fared:?}");
        ensure!(to_formers(&rig.agents.nodes[0])? == 0, "former pods before anything has changed");
        rig.reconfigure(&services(&rig.fabric, &[first], &[])?)?;
        all_go_on(&mut long, "the first drains")?;
        let counted = to_formers(&rig.agents.nodes[0])?;
        // A question and the acknowledgment of its answer, at the least.
        let moved = 2 * fared[first.name()].alive as u64;
        ensure!(counted >= moved, "{counted} packets to the first as a former pod, not {moved}");
        assert_eq!(serving(&rig)?, names([second, third]));
        let mut later = open(&rig)?;
        rig.reconfigure(&services(&rig.fabric, &[first, second], &[])?)?;
        all_go_on(&mut long, "the second drains too")?;
        all_go_on(&mut later, "the second drains too, later ones")?;
        assert_eq!(serving(&rig)?, names([third]));
        rig.agents.nodes[0].process().kill()?;
        all_go_on(&mut long, "no agent")?;
        rig.agents.nodes[0].restart()?;
        all_go_on(&mut long, "another agent")?;
        all_go_on(&mut later, "another agent, later ones")?;
        assert_eq!(serving(&rig)?, names([third]));
        // Taken out, not only draining: nobody knows its connections any more.
        rig.reconfigure(&services(&rig.fabric, &[second], &[first])?)?;
        for (pod, Fared { alive, broken }) in long.ask_again() {
            ensure!((if pod == first.name() { alive } else { broken }) == 0, "{pod}: {alive} alive, {broken} broken");
        }
        all_go_on(&mut later, "the first is gone, later ones")?;
        Ok(())
    })
}

/// A pod that is added takes slots from pods that serve on: their connections stay with them.
#[test]
fn connections_stay_where_they_are_when_a_pod_is_added() -> Result<()> {
    Bed::run("pod-added", |bed| {
        let mut rig = Rig::start(bed, Shape { pods: 2, bridge: Some(0), ..NODE }, Fabric::web_pod_services)?;
        let mut long = LongConnections::open(&rig.fabric.client, &rig.fabric.pairs(), EACH)?;
        let new = rig.fabric.add_pod(bed, 0)?;
        rig.pods.push(new.serve(bed)?);
        rig.reconfigure(&rig.fabric.web_pod_services())?;
        all_go_on(&mut long, "a third pod")?;
        ensure!(to_formers(&rig.agents.nodes[0])? > 0, "no slot of a connection has moved");
        assert_eq!(serving(&rig)?, names(&rig.fabric.pods));
        let mut later = LongConnections::open(&rig.fabric.client, &rig.fabric.pairs(), EACH)?;
        // Slots go back to whom they came from.
        rig.reconfigure(&services(&rig.fabric, &[&new], &[])?)?;
        all_go_on(&mut long, "the third drains")?;
        all_go_on(&mut later, "the third drains, later ones")?;
        rig.reconfigure(&services(&rig.fabric, &[], &[&new])?)?;
        all_go_on(&mut long, "the third is gone")?;
        assert_eq!(serving(&rig)?, names(&rig.fabric.pods[..2]));
        Ok(())
    })
}
