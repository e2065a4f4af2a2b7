//! What the programs and the agent of Beeline must agree on, and every decision that needs no map.
//!
//! The crate is `no_std` and without `unsafe`. The same code runs in the kernel (lb-ebpf gives it packets and BPF maps
//! through [`packet::Packet`] and [`maps::Maps`]) and on the host, where it is unit-tested, property-tested and fuzzed.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "alloc"))]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod checksum;
pub mod edge;
pub mod encap;
pub mod flow;
pub mod maps;
pub mod nat;
pub mod node;
pub mod packet;
mod piece;
pub mod return_path;
pub mod stage;
#[cfg(any(test, feature = "alloc"))]
pub mod table;
pub mod verdict;
