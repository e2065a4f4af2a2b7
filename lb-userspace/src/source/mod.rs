//! Where the desired state comes from.

pub mod file;
