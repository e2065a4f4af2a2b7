//! This host's addresses, as the kernel's address messages tell of them.

use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};

/// One address of an interface: its index, the address and the length of its prefix. The kernel allows the same
/// address twice with different prefixes.
pub(super) type Key = (u32, IpAddr, u8);

/// What decides whether an address may be a source: its flags (tentative, deprecated, …).
pub(super) type Flags = u32;

/// Reads an address message.
pub(super) fn parse(message: &AddressMessage) -> Option<(Key, Flags)> {
    let mut local = None;
    let mut address = None;
    let mut flags = u32::from(message.header.flags.bits());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Flags(value) => flags = value.bits(),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the peer's; without IFA_LOCAL it is this host's.
    Some(((message.header.index, local.or(address)?, message.header.prefix_len), flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_to_point_address_is_the_local_end() {
        let local: IpAddr = "192.0.2.1".parse().unwrap();
        let peer: IpAddr = "192.0.2.2".parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.index = 3;
        message.header.prefix_len = 32;
        message.attributes = vec![AddressAttribute::Address(peer), AddressAttribute::Local(local)];
        assert_eq!(parse(&message), Some(((3, local, 32), 0)));
        message.attributes.pop();
        assert_eq!(parse(&message), Some(((3, peer, 32), 0)));
        message.attributes.clear();
        assert_eq!(parse(&message), None);
    }
}
