//! The datapath: BPF maps and programs, and the tables in them.
//!
//! [`tables`] carries out the plan's steps on a [`store`]: BPF maps ([`kernel`]) or plain collections ([`host`]).
//! [`object`] loads the programs, [`pins`] keeps maps and links alive without the agent.

mod adopt;
mod build;
pub mod host;
pub mod kernel;
mod mapped;
pub mod object;
mod quarantine;
pub mod store;
pub mod tables;

pub use quarantine::QUARANTINE;
