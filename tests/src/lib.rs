//! Test bed.

pub mod packet;
