//! The agent of Beeline, in one direction: source → model → plan → datapath → status.
//!
//! - [`cli`]: the commands of the binary.
//! - [`config`]: the configuration file, read strictly.
//! - [`model`]: what should be, made from a configuration by a pure function.

pub mod cli;
pub mod config;
pub mod datapath;
pub mod model;
