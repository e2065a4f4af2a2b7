//! The datapath: BPF maps and programs.

pub mod object;
