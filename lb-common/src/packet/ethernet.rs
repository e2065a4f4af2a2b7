//! Ethernet and VLAN tags (IEEE 802.3, 802.1Q).

use super::Packet;
use crate::address::Family;

/// EtherType of IPv4, in the machine's order as it stands in the frame.
pub const IPV4: u16 = 0x0800u16.to_be();
/// EtherType of IPv6, likewise.
pub const IPV6: u16 = 0x86ddu16.to_be();
/// TPID of a customer VLAN tag (802.1Q), likewise.
pub const VLAN: u16 = 0x8100u16.to_be();
/// TPID of a service VLAN tag (802.1ad), likewise.
pub const SERVICE_VLAN: u16 = 0x88a8u16.to_be();

/// Length of a header without tags.
pub const LEN: u32 = 14;
/// Length of a VLAN tag.
pub const TAG_LEN: u32 = 4;

/// Where the IP header begins, and of which family it is; `None` for what is not IP, is not for one host, or has more
/// than two tags.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<(Family, u32)> {
    let header: [u8; 14] = packet.load(0)?;
    // A group address (802.3 §3.2.3): broadcast and multicast frames are the host's.
    if header[0] & 1 == 1 {
        return None;
    }
    let mut ethertype = u16::from_ne_bytes([header[12], header[13]]);
    let mut l3 = LEN;
    if ethertype == VLAN || ethertype == SERVICE_VLAN {
        ethertype = u16::from_ne_bytes(packet.load::<2>(LEN + 2)?);
        l3 = LEN + TAG_LEN;
        if ethertype == VLAN || ethertype == SERVICE_VLAN {
            ethertype = u16::from_ne_bytes(packet.load::<2>(LEN + TAG_LEN + 2)?);
            l3 = LEN + 2 * TAG_LEN;
        }
    }
    match ethertype {
        IPV4 => Some((Family::V4, l3)),
        IPV6 => Some((Family::V6, l3)),
        _ => None,
    }
}

/// The VLAN tags of a frame whose IP header is at `l3`; what is beyond them is zero.
#[inline(always)]
pub fn tags<P: Packet>(packet: &P, l3: u32) -> Option<[u8; 8]> {
    if l3 == LEN {
        Some([0; 8])
    } else if l3 == LEN + TAG_LEN {
        let [a, b, c, d]: [u8; 4] = packet.load(12)?;
        Some([a, b, c, d, 0, 0, 0, 0])
    } else {
        packet.load(12)
    }
}

/// Write the whole link header before an IP header at `l3`.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, l3: u32, macs: &[u8; 12], tags: &[u8; 8], family: Family) -> bool {
    let ethertype = match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
    .to_ne_bytes();
    if !packet.store(0, macs) {
        return false;
    }
    if l3 == LEN {
        packet.store(12, &ethertype)
    } else if l3 == LEN + TAG_LEN {
        let [a, b, c, d, ..] = *tags;
        packet.store(12, &[a, b, c, d]) && packet.store(16, &ethertype)
    } else {
        packet.store(12, tags) && packet.store(20, &ethertype)
    }
}

/// Source and destination exchanged.
#[inline(always)]
pub fn swapped(macs: [u8; 12]) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
    [g, h, i, j, k, l, a, b, c, d, e, f]
}
