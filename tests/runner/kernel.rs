//! The real programs, by BPF_PROG_TEST_RUN, as `beeline simulate` runs them.

use anyhow::Error;
use beeline_tests::packet::fixture::{FixtureFile, Outcome, Role};
use lb_userspace::simulate::Simulator;

use super::{Machine, config, surroundings};

/// The programs and maps of one host.
pub(crate) struct Kernel(Simulator);

impl Machine for Kernel {
    fn new(file: &FixtureFile) -> Result<Self, Error> {
        Ok(Self(Simulator::new(&config(file)?, &surroundings(file))?))
    }

    fn run(&mut self, role: Role, frame: &[u8]) -> Result<Outcome, Error> {
        let outcome = if role == Role::Return { self.0.run_return(frame)? } else { self.0.run(frame)? };
        Ok(Outcome {
            verdict: outcome.verdict.into(),
            reason: outcome.reason.name().into(),
            service: outcome.service,
            backend: outcome.backend,
            pod: outcome.pod,
            bytes: outcome.bytes,
        })
    }
}
