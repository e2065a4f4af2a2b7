//! The agent of Beeline, in one direction: source → model → plan → datapath → status.
//!
//! - [`cli`]: the commands of the binary.
//! - [`config`]: the configuration file, read strictly.
//! - [`model`]: what should be, made from a configuration by a pure function.
//! - [`neighbours`]: next hops from the kernel's routes and neighbours.
//! - [`plan`]: the changes between what is there and what is wanted, in a safe order.
//! - [`datapath`]: BPF maps and programs.
//! - [`nat_exemption`]: a table of nftables that keeps pods' replies out of the node's NAT.
//! - [`status`]: what the agent says of itself.
//! - [`metrics`]: the same as Prometheus metrics.
//! - [`server`]: where both can be asked for.
//! - [`flows`]: the flows that a node has recorded.
//! - [`trace`]: where a flow goes, and why.
//! - [`doctor`]: what is wrong with this host, and the way out.
//! - [`simulate`]: the real programs on the packets of a capture.

pub mod agent;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod doctor;
pub mod flows;
pub mod metrics;
pub mod model;
pub mod nat_exemption;
pub mod neighbours;
pub mod plan;
pub mod server;
pub mod simulate;
pub mod source;
pub mod status;
pub mod trace;
