//! Pins that do not fit, and a second agent: refused with a word, while packets flow on.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use beeline_tests::bed::{Bed, Fabric, Rig, Shape};

const PATIENCE: Duration = Duration::from_secs(10);

/// The edge's agent cannot be started with its file changed so; what it says.
fn refused(rig: &mut Rig, change: impl Fn(&str) -> String) -> Result<String> {
    let agent = rig.agents.all().find(|agent| agent.host().name() == "edge1").context("no agent on edge1")?;
    let (host, file) = (agent.host().clone(), agent.file().to_owned());
    let text = fs::read_to_string(&file)?;
    let changed = file.with_file_name("changed.yaml");
    fs::write(&changed, change(&text))?;
    let arguments = ["agent", "--config", &changed.display().to_string()];
    match rig.beeline.run(&host, &arguments) {
        Ok(_) => bail!("an agent has run with {}", fs::read_to_string(&changed)?),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn served(rig: &Rig) -> Result<()> {
    let pairs: Vec<_> = Fabric::VIPS.into_iter().map(|vip| (rig.fabric.client_for(vip), vip)).collect();
    rig.fabric.request(&pairs, 4)?;
    Ok(())
}

#[test]
fn pins_that_do_not_fit_are_refused_and_left() -> Result<()> {
    Bed::run("pins", |bed| {
        let mut rig = Rig::start(bed, Shape { edges: 1, ..Shape::default() }, Fabric::web_services)?;
        // While an agent runs, a second one with its pins is not let in.
        let error = refused(&mut rig, |text| text.to_owned())?;
        ensure!(error.contains("another agent"), "{error}");
        for agent in rig.agents.all() {
            agent.process().stop(PATIENCE)?;
        }
        // Maps of another size than those that are pinned.
        let error = refused(&mut rig, |text| format!("{text}\nmaps: {{slots: 1048576}}\n"))?;
        ensure!(error.contains("slots") && error.contains("beeline detach"), "{error}");
        served(&rig)?;
        // A folder that is on no BPF filesystem.
        let error = refused(&mut rig, |text| text.replace("/sys/fs/bpf/beeline", "/run/beeline/beeline"))?;
        ensure!(error.contains("BPF filesystem"), "{error}");
        served(&rig)?;
        // With its own file it takes over what is there.
        for agent in rig.agents.all() {
            agent.restart()?;
        }
        served(&rig)
    })
}
