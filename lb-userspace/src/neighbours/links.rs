//! This host's interfaces, as the kernel's link messages tell of them.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index: another one each time it is created.
    pub index: u32,
    /// Its MAC address; `None` where the device has no Ethernet header.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Set up by the administrator, with or without carrier.
    pub enabled: bool,
    /// Has carrier (`IFF_LOWER_UP`, which the kernel sets only on devices that are set up).
    pub carrier: bool,
    /// Set up and with carrier.
    pub up: bool,
    /// The kernel's name for what it is (veth, vlan, bond, wireguard, …), else the kind of its link layer (ethernet,
    /// loopback, …).
    pub kind: String,
    /// Id that this network namespace has for the one of its other end, of a veth or netkit, or of its lower device
    /// (`IFLA_LINK_NETNSID`, Linux 4.0); `None` where that is in this namespace, or there is none.
    pub namespace: Option<u32>,
    /// Index of the device that it is a port of: a bridge, bond, VRF, …
    pub master: Option<u32>,
}

/// Reads a link message: the interface's index, name and state.
///
/// `None` for what comes by the same group and is about something else: a bridge's messages about its ports, of which
/// one that says that a port left would look like a deleted interface, and events that describe no interface.
pub(super) fn parse(message: &LinkMessage) -> Option<(u32, String, Link)> {
    let header = &message.header;
    if header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let ethernet = header.link_layer_type == LinkLayerType::Ether;
    let enabled = header.flags.contains(LinkFlags::Up);
    let carrier = header.flags.contains(LinkFlags::LowerUp);
    let mut name = None;
    let mut mtu = None;
    let mut link = Link {
        index: header.index,
        mac: None,
        mtu: 0,
        enabled,
        carrier,
        up: enabled && carrier,
        kind: layer_name(header.link_layer_type),
        namespace: None,
        master: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Mtu(value) => mtu = Some(*value),
            LinkAttribute::Address(bytes) if ethernet => link.mac = bytes.as_slice().try_into().ok(),
            // Negative: the other namespace has no id here.
            LinkAttribute::LinkNetNsId(id) => link.namespace = u32::try_from(*id).ok(),
            LinkAttribute::Controller(index) => link.master = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link.mtu = mtu?;
    Some((header.index, name?, link))
}

/// What the link layer is called where the kernel names no kind.
fn layer_name(layer: LinkLayerType) -> String {
    match layer {
        LinkLayerType::Ether => "ethernet".into(),
        LinkLayerType::Loopback => "loopback".into(),
        LinkLayerType::None => "point-to-point".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    /// A link message as the kernel would send it.
    pub(in crate::neighbours) fn message(
        index: u32,
        name: &str,
        layer: LinkLayerType,
        flags: LinkFlags,
    ) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = layer;
        message.header.flags = flags;
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
        ];
        message
    }

    #[test]
    fn a_device_without_carrier_is_enabled_but_not_up() {
        let (index, name, link) = parse(&message(4, "eth0", LinkLayerType::Ether, LinkFlags::Up)).unwrap();
        assert_eq!((index, name.as_str()), (4, "eth0"));
        assert!(link.enabled && !link.carrier && !link.up);
        let flags = LinkFlags::Up | LinkFlags::LowerUp;
        let (_, _, link) = parse(&message(4, "eth0", LinkLayerType::Ether, flags)).unwrap();
        assert!(link.enabled && link.carrier && link.up);
        assert_eq!((link.mac, link.mtu, link.kind.as_str()), (Some([2, 0, 0, 0, 0, 4]), 1500, "ethernet"));
    }

    #[test]
    fn the_kind_of_a_device_is_the_kernels_where_it_has_one() {
        let mut wireguard = message(5, "wg0", LinkLayerType::None, LinkFlags::Up | LinkFlags::LowerUp);
        wireguard.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
        let (_, _, link) = parse(&wireguard).unwrap();
        assert_eq!((link.mac, link.kind.as_str()), (None, "wireguard"));
        let (_, _, link) = parse(&message(1, "lo", LinkLayerType::Loopback, LinkFlags::Up)).unwrap();
        assert_eq!(link.kind, "loopback");
    }

    #[test]
    fn a_device_names_its_other_ends_namespace_and_its_master() {
        let mut veth = message(7, "veth0", LinkLayerType::Ether, LinkFlags::Up);
        let (_, _, link) = parse(&veth).unwrap();
        assert_eq!((link.namespace, link.master), (None, None));
        veth.attributes.extend([LinkAttribute::LinkNetNsId(3), LinkAttribute::Controller(9)]);
        let (_, _, link) = parse(&veth).unwrap();
        assert_eq!((link.namespace, link.master), (Some(3), Some(9)));
        veth.attributes.push(LinkAttribute::LinkNetNsId(-1));
        let (_, _, link) = parse(&veth).unwrap();
        assert_eq!(link.namespace, None, "a namespace without an id cannot be named");
    }

    #[test]
    fn a_bridges_word_about_a_port_is_not_about_the_interface() {
        let mut port = message(6, "eth1", LinkLayerType::Ether, LinkFlags::Up);
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(parse(&port), None);
    }

    #[test]
    fn an_event_that_describes_no_interface_changes_none() {
        let mut event = message(6, "wlan0", LinkLayerType::Ether, LinkFlags::Up);
        event.attributes.retain(|attribute| matches!(attribute, LinkAttribute::IfName(_)));
        assert_eq!(parse(&event), None);
    }
}
