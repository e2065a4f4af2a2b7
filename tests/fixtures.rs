//! The packet fixtures of `fixtures/*.yaml`, each through the decisions on the host and through the programs in the
//! kernel (needs the right to use BPF); and packets made from them at random, on which the two must agree.

mod runner;

use std::collections::BTreeSet;
use std::path::Path;

use beeline_tests::packet::describe::describe;
use beeline_tests::packet::fixture::{FixtureFile, Role, Step, Verdict};
use beeline_tests::packet::mutate::{Numbers, mutate};
use lb_common::verdict::{Action, Reason};
use runner::{Host, Kernel, Machine};

/// Reasons that no packet alone can have, and where each is tested: they need a host whose devices, sockets, next hops
/// or maps are in a state that no configuration makes.
const HOST_REASONS: [(Reason, &str); 9] = [
    (Reason::NoHeadroom, "a driver's frame without room before it"),
    (Reason::NoDevice, "a next hop's device that is gone"),
    (Reason::BackendUnreachable, "network/forwarding.rs"),
    (Reason::InconsistentMaps, "a fault of the agent"),
    (
        Reason::DeliveredToFormerPod,
        "network/pod_leaves.rs, network/pod_flows.rs; the host's decisions: tables/tests/choose.rs",
    ),
    (Reason::PodGone, "network/pod_devices.rs; the host's decisions: tables/tests/choose.rs"),
    (Reason::AnswerLimited, "network/pod_answers.rs"),
    (Reason::AnswerUnroutable, "network/pod_answers.rs"),
    (Reason::FlowNotRecorded, "lb-userspace/src/datapath/tables/tests/choose.rs: a full map of records"),
];

fn files() -> Vec<FixtureFile> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    FixtureFile::read_all(&folder).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Every step with a name that says where it stands.
fn steps(files: &[FixtureFile]) -> impl Iterator<Item = (String, &Step)> {
    files.iter().flat_map(|file| {
        let stem = file.path.file_stem().unwrap_or_default().display().to_string();
        file.fixtures.iter().flat_map(move |fixture| {
            let stem = stem.clone();
            fixture
                .steps
                .iter()
                .enumerate()
                .map(move |(index, step)| (format!("{stem}: {}: step {index}", fixture.name), step))
        })
    })
}

fn run_through<M: Machine>() {
    let mut faults = Vec::new();
    for file in files() {
        let mut machine = M::new(&file).unwrap_or_else(|error| panic!("{}: {error:#}", file.path.display()));
        let stem = file.path.file_stem().unwrap_or_default().display().to_string();
        for fixture in &file.fixtures {
            let mut pods = Vec::new();
            for (index, step) in fixture.steps.iter().enumerate() {
                let outcome = machine.run(step.role, &step.received.bytes);
                let difference = match &outcome {
                    Ok(outcome) => step.difference(outcome, &pods),
                    Err(error) => Some(format!("{error:#}\n")),
                };
                pods.push(outcome.ok().and_then(|outcome| outcome.pod));
                let name = format!("{stem}: {}: step {index}", fixture.name);
                faults.extend(difference.map(|difference| format!("{name}\n{difference}")));
            }
        }
    }
    assert!(faults.is_empty(), "{} packets fared otherwise:\n\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_decisions_on_the_host_do_as_the_fixtures_say() {
    run_through::<Host>();
}

#[test]
fn the_programs_in_the_kernel_do_as_the_fixtures_say() {
    run_through::<Kernel>();
}

/// Packets made of each fixture packet: some 17,000 in all, in seconds.
const MUTATIONS: usize = 40;

/// Nobody says what should become of these packets, but the host's decisions and the programs must agree.
#[test]
fn host_and_kernel_agree_on_packets_that_nobody_wrote() {
    let mut numbers = Numbers::new(3);
    let (mut faults, mut reasons) = (Vec::new(), BTreeSet::new());
    for file in files() {
        let (mut host, mut kernel) = (Host::new(&file).unwrap(), Kernel::new(&file).unwrap());
        for (name, step) in steps(std::slice::from_ref(&file)) {
            for _ in 0..MUTATIONS {
                let frame = mutate(&step.received.bytes, &mut numbers);
                match (host.run(step.role, &frame).unwrap(), kernel.run(step.role, &frame)) {
                    (host, Ok(kernel)) if host == kernel => {
                        reasons.insert(host.reason);
                    }
                    // On TC a test run takes no frame without the header that its EtherType speaks of (kernel 6.18).
                    (_, Err(_)) if step.role == Role::Return && frame.len() < 14 + 40 => {}
                    (host, kernel) => {
                        faults.push(format!("from {name}\n{}host {host:?}\nkernel {kernel:?}\n", describe(&frame)))
                    }
                }
            }
        }
    }
    assert!(reasons.len() >= 40, "the packets show too little: {reasons:?}");
    assert!(faults.is_empty(), "{} packets divide them:\n\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn all_programs_have_enough() {
    let files = files();
    let count =
        |role: Role| files.iter().filter(|file| file.role == role).map(|file| file.fixtures.len()).sum::<usize>();
    assert!(count(Role::Edge) >= 80 && count(Role::Node) >= 200);
    assert!(count(Role::EdgeAndNode) >= 15 && count(Role::Return) >= 100);
}

#[test]
fn verdicts_are_those_of_their_reasons() {
    for (name, step) in steps(&files()) {
        let reason = Reason::ALL.iter().find(|reason| reason.name() == step.reason);
        let reason = reason.unwrap_or_else(|| panic!("{name}: there is no reason {:?}", step.reason));
        let verdict = match reason.action() {
            Action::Pass => Verdict::Pass,
            Action::Send | Action::Answer => Verdict::Tx,
            Action::Drop => Verdict::Drop,
        };
        assert_eq!(step.verdict, verdict, "{name}: {}", step.reason);
    }
}

#[test]
fn every_reason_has_a_fixture() {
    let files = files();
    let shown: BTreeSet<&str> = steps(&files).map(|(_, step)| step.reason.as_str()).collect();
    let elsewhere = |reason: &Reason| HOST_REASONS.iter().any(|(other, _)| other == reason);
    let wanted = Reason::ALL.iter().filter(|reason| !elsewhere(reason));
    let missing: Vec<_> = wanted.map(|reason| reason.name()).filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "no fixture for {missing:?}");
}
