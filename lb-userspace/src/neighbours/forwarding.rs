//! What bridges have learned: behind which port a MAC address is.

use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

/// An entry of a bridge's forwarding database: the bridge's index, the MAC address and the VLAN, 0 where there is none.
pub(super) type Key = (u32, [u8; 6], u16);

/// Reads a message of the family `AF_BRIDGE`: the entry, and the index of its port.
///
/// `None` for what no bridge has learned: addresses that a device filters for itself (no `NDA_MASTER`), and those of the
/// bridge and its ports (permanent).
pub(super) fn parse(message: &NeighbourMessage) -> Option<(Key, u32)> {
    if message.header.state == NeighbourState::Permanent {
        return None;
    }
    let mut mac = None;
    let mut bridge = None;
    let mut vlan = 0;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Controller(index) => bridge = Some(*index),
            NeighbourAttribute::Vlan(id) => vlan = *id,
            _ => {}
        }
    }
    let (bridge, port) = (bridge?, message.header.ifindex);
    (port != bridge).then_some(((bridge, mac?, vlan), port))
}

#[cfg(test)]
pub(super) mod tests {
    use netlink_packet_route::AddressFamily;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// An entry that bridge 20 has learned.
    pub(in crate::neighbours) fn message(port: u32, mac: [u8; 6]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port;
        message.header.state = NeighbourState::Reachable;
        message.attributes =
            vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec()), NeighbourAttribute::Controller(20)];
        message
    }

    #[test]
    fn a_learned_address_has_bridge_port_and_vlan() {
        let mut learned = message(5, MAC);
        assert_eq!(parse(&learned), Some(((20, MAC, 0), 5)));
        learned.attributes.push(NeighbourAttribute::Vlan(100));
        assert_eq!(parse(&learned), Some(((20, MAC, 100), 5)));
    }

    #[test]
    fn a_ports_own_address_and_a_devices_filter_are_not_learned() {
        let mut own = message(5, MAC);
        own.header.state = NeighbourState::Permanent;
        assert_eq!(parse(&own), None);
        assert_eq!(parse(&message(20, MAC)), None);
        let mut filter = message(5, MAC);
        filter.attributes.retain(|attribute| !matches!(attribute, NeighbourAttribute::Controller(_)));
        assert_eq!(parse(&filter), None);
    }
}
