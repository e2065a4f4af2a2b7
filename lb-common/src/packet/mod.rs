//! Packets as the decisions see them: bytes behind a few bounded operations, and one file for each header.
//!
//! In the kernel a packet is an XDP buffer, on the host a `Vec<u8>`. Every access names its size at compile time, so
//! that the verifier can follow it, and says by `None` or `false` when the packet is not that long. No access is of one byte alone:
//! LLVM turns its check into a comparison from which the verifier learns nothing (kernel 6.18, LLVM 22).

#[cfg(test)]
pub(crate) mod bytes;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod transport;

use crate::address::{Address, Family};
use crate::checksum;

/// How much of a packet an ICMP error of ours quotes, in bytes from its IP header on: within the 576 bytes of RFC 1812
/// §4.3.2.3 and the 1,280 of RFC 4443 §3.2, and as much as one call of the kernel's checksum helper takes.
pub const QUOTE: usize = 512;

/// Offsets of headers are below this, which the verifier forgets of an offset that was kept in memory: a link header,
/// and twice (a message, and what it quotes) the longest IPv4 header, or an IPv6 header and all extension headers that
/// are followed.
pub const OFFSET_MASK: u32 = 0x3ff;

/// A frame that can be read, written, and made longer or shorter.
pub trait Packet {
    /// Whether an answer can be made of the packet: the frame can grow, and be sent back.
    const CAN_ANSWER: bool;

    /// `N` bytes from `offset` on, if the frame has them.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Write bytes at `offset`; `false` if the frame does not reach that far.
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool;
    /// As [`Packet::store`], for an address in the packet's own IPv6 header. No checksum there makes up for what changes:
    /// a checksum of the whole frame that goes with it has to follow.
    #[inline(always)]
    fn store_address<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool {
        self.store(offset, bytes)
    }
    /// Whether the frame has at least `length` bytes, and how many it has more.
    fn excess(&self, length: u32) -> Option<u32>;
    /// The sum of [`QUOTE`] bytes from `offset` on, for a checksum.
    fn quote_sum(&self, offset: u32) -> Option<u32>;
    /// Make room for `N` bytes before the frame; what they hold is not defined.
    fn grow<const N: usize>(&mut self) -> bool;
    /// Take `length` bytes out from between the link header, which ends at `l3`, and a packet of this family.
    fn strip(&mut self, l3: u32, length: u32, family: Family) -> bool;
    /// Take `length` bytes away from the end.
    fn trim(&mut self, length: u32) -> bool;
    /// Index of the interface that the frame came by.
    fn interface(&self) -> u32;
    /// What the sockets of a network namespace ([`crate::maps::Pod::namespace`]) know of the connection that this packet,
    /// with its headers at `l3` and `l4`, would belong to at a pod. Under SYN cookies there may be none yet: the packet that
    /// brings a valid cookie counts as the connection's (RFC 4987 §3.6).
    fn socket(&self, namespace: u32, connection: &Connection, l3: u32, l4: u32) -> Socket;

    /// Bring an IPv4 header's checksum at `at` up to date after words under it have changed by a
    /// [`checksum::difference`].
    #[inline(always)]
    fn amend_header(&mut self, at: u32, difference: u32) -> bool {
        let Some(check) = self.load::<2>(at) else { return false };
        self.store(at, &checksum::amend(u16::from_ne_bytes(check), difference).to_ne_bytes())
    }

    /// Bring a transport header's checksum at `at` up to date: `pseudo` is the difference of the addresses, which stand in
    /// the pseudo-header, `plain` that of what the checksum covers in the packet itself. With `zero_is_none` (UDP) a
    /// checksum of zero stays, and one that becomes zero is written as its complement (RFC 768).
    #[inline(always)]
    fn amend_transport(&mut self, at: u32, pseudo: u32, plain: u32, zero_is_none: bool) -> bool {
        let Some(check) = self.load::<2>(at) else { return false };
        let before = u16::from_ne_bytes(check);
        if zero_is_none && before == 0 {
            return true;
        }
        let after = match checksum::amend(before, checksum::halves(pseudo) + checksum::halves(plain)) {
            0 if zero_is_none => 0xffff,
            after => after,
        };
        self.store(at, &after.to_ne_bytes())
    }
}

/// A TCP connection, as a pod's sockets have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Connection {
    /// The client's address.
    pub client: Address,
    /// The pod's address.
    pub pod: Address,
    /// The client's port in the upper half, the pod's in the lower, in host order.
    pub ports: u32,
    /// The family of both addresses.
    pub family: Family,
}

/// What sockets know of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nothing: none listens there either.
    None,
    /// Somebody listens there, and has no such connection.
    Listens,
    /// The connection itself.
    Connected,
}

/// A header of a fixed size, made of its bytes.
pub trait Header: Sized {
    /// Read it.
    fn read<P: Packet>(packet: &P, offset: u32) -> Option<Self>;
}
