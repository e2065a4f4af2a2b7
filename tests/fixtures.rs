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

/// Reasons that no packet alone can have: they need a host whose device, next hop or maps are not as they should be.
const HOST_REASONS: [Reason; 4] =
    [Reason::NoHeadroom, Reason::NoDevice, Reason::BackendUnreachable, Reason::InconsistentMaps];

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
        for (name, step) in steps(std::slice::from_ref(&file)) {
            let outcome = machine.run(&step.received.bytes);
            let difference = match outcome {
                Ok(outcome) => step.difference(&outcome),
                Err(error) => Some(format!("{error:#}\n")),
            };
            faults.extend(difference.map(|difference| format!("{name}\n{difference}")));
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
                match (host.run(&frame).unwrap(), kernel.run(&frame)) {
                    (host, Ok(kernel)) if host == kernel => {
                        reasons.insert(host.reason);
                    }
                    (host, kernel) => {
                        faults.push(format!("from {name}\n{}host {host:?}\nkernel {kernel:?}\n", describe(&frame)))
                    }
                }
            }
        }
    }
    assert!(reasons.len() >= 25, "the packets show too little: {reasons:?}");
    assert!(faults.is_empty(), "{} packets divide them:\n\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn both_programs_have_enough() {
    let files = files();
    let count =
        |role: Role| files.iter().filter(|file| file.role == role).map(|file| file.fixtures.len()).sum::<usize>();
    assert!(count(Role::Edge) >= 80 && count(Role::Node) >= 40 && count(Role::EdgeAndNode) >= 1);
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
    let wanted = Reason::ALL.iter().filter(|reason| !HOST_REASONS.contains(reason));
    let missing: Vec<_> = wanted.map(|reason| reason.name()).filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "no fixture for {missing:?}");
}
