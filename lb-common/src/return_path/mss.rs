//! The MSS of a SYN-ACK: a client that heeds it sends nothing that is too long for the tunnels (RFC 9293 §3.7.1).

use crate::checksum::difference;
use crate::packet::{OFFSET_MASK, Packet};

/// Most bytes of options that a TCP header has.
const MAX_OPTIONS: u32 = 40;
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// Lower the MSS option of the SYN-ACK at `l4` to `limit`, if it has one that is greater. `false`: it could not be
/// written.
///
/// A function of its own in the program, so that its loop is verified once.
#[inline(never)]
pub fn clamp<P: Packet>(packet: &mut P, l4: u32, limit: u32) -> bool {
    let l4 = l4 & OFFSET_MASK;
    let Some([offset, _]) = packet.load::<2>(l4 + 12) else { return true };
    let end = l4 + u32::from(offset >> 4) * 4;
    let mut at = l4 + 20;
    for _ in 0..MAX_OPTIONS {
        at &= OFFSET_MASK;
        if at + u32::from(MSS_LEN) > end {
            return true;
        }
        // An option that the whole header has no room for is none of ours to mend.
        let Some([kind, length, a, b]) = packet.load::<4>(at) else { return true };
        if kind == NOTHING {
            at += 1;
            continue;
        }
        if kind == END || length < 2 {
            return true;
        }
        if kind == MSS && length == MSS_LEN {
            let value = u16::from_be_bytes([a, b]);
            return u32::from(value) <= limit || lower(packet, l4, at + 2, value, limit as u16);
        }
        at += u32::from(length);
    }
    true
}

/// Write another value at `at`. Where that is odd, the value's bytes lie in two words of the checksum, each in the
/// other half: a sum sees such a value with its bytes exchanged (RFC 1071 §2).
#[inline(always)]
fn lower<P: Packet>(packet: &mut P, l4: u32, at: u32, old: u16, new: u16) -> bool {
    let (mut before, mut after) = (old.to_be(), new.to_be());
    if (at - l4) & 1 == 1 {
        before = before.swap_bytes();
        after = after.swap_bytes();
    }
    let plain = difference(u32::from(before), u32::from(after));
    packet.store(at, &new.to_be_bytes()) && packet.amend_transport(l4 + 16, 0, plain, false)
}
