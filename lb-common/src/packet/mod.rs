//! Packets as the decisions see them: bytes behind a few bounded operations, and one file for each header.
//!
//! In the kernel a packet is an XDP buffer, on the host a `Vec<u8>`. Every access names its size at compile time, so
//! that the verifier can follow it, and says by `None` or `false` when the packet is not that long. No access is of one byte alone:
//! LLVM turns its check into a comparison from which the verifier learns nothing (kernel 6.18, LLVM 22).

pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod transport;

/// How much of a packet an ICMP error of ours quotes, in bytes from its IP header on: within the 576 bytes of RFC 1812
/// §4.3.2.3 and the 1,280 of RFC 4443 §3.2, and as much as one call of the kernel's checksum helper takes.
pub const QUOTE: usize = 512;

/// A frame that can be read, written, and made longer or shorter.
pub trait Packet {
    /// `N` bytes from `offset` on, if the frame has them.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Write bytes at `offset`; `false` if the frame does not reach that far.
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool;
    /// Whether the frame has at least `length` bytes, and how many it has more.
    fn excess(&self, length: u32) -> Option<u32>;
    /// The sum of [`QUOTE`] bytes from `offset` on, for a checksum.
    fn quote_sum(&self, offset: u32) -> Option<u32>;
    /// Make room for `N` bytes before the frame; what they hold is not defined.
    fn grow<const N: usize>(&mut self) -> bool;
    /// Take the first `length` bytes away.
    fn shrink(&mut self, length: u32) -> bool;
    /// Take `length` bytes away from the end.
    fn trim(&mut self, length: u32) -> bool;
    /// Index of the interface that the frame came by.
    fn interface(&self) -> u32;
}

/// A header of a fixed size, made of its bytes.
pub trait Header: Sized {
    /// Read it.
    fn read<P: Packet>(packet: &P, offset: u32) -> Option<Self>;
}
