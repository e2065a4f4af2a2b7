//! The commands of the `beeline` binary, one file each; [`client`] asks the agent, `table` lines up what it says.

mod age;
pub mod agent;
pub mod backends;
pub mod check;
pub mod client;
pub mod doctor;
pub mod flows;
pub mod pods;
pub mod services;
pub mod simulate;
pub mod status;
mod table;
pub mod trace;
pub mod which;
