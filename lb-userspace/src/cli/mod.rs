//! The commands of the `beeline` binary, one file each.

pub mod agent;
pub mod check;
pub mod simulate;
