//! Interfaces, addresses and routes by netlink; programs by the BPF system call.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use aya::programs::tc::TcAttachType;
use aya::programs::{SchedClassifier, loaded_programs};
use futures_util::TryStreamExt as _;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::RouteMessageBuilder;

use super::offloads::{self, Offloads};
use crate::model::Prefix;

/// An interface.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// The kernel's name for what it is; empty where it has none.
    pub kind: String,
    /// The interface that it is a VLAN of.
    pub vlan_of: Option<u32>,
    /// What its card does by itself; `None` where it does not tell.
    pub offloads: Option<Offloads>,
    /// Its XDP program.
    pub xdp: Option<Xdp>,
    /// Names of its TCX programs on egress, in their order; looked at on uplinks of nodes only.
    pub egress: Result<Vec<String>, String>,
}

/// An XDP program on an interface.
#[derive(Clone, Debug)]
pub struct Xdp {
    /// Its id.
    pub id: u32,
    /// Its name, at most 15 bytes, or why it is not known.
    pub name: Result<String, String>,
    /// Whether it runs in generic mode.
    pub generic: bool,
}

/// A next hop of a route.
#[derive(Clone, Debug)]
pub struct Route {
    /// What it is for.
    pub prefix: Prefix,
    /// Index of the interface that it leads to.
    pub interface: Option<u32>,
    /// Whether packets go on by it, as opposed to local, blackhole and the like.
    pub unicast: bool,
}

/// All of them.
pub(super) struct Network {
    pub(super) devices: Vec<Device>,
    pub(super) routes: Vec<Route>,
    pub(super) addresses: BTreeSet<IpAddr>,
}

pub(super) async fn read() -> Result<Network> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let links: Vec<_> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await?;
    let v4 = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let v6 = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
    let mut routes: Vec<_> = v4.try_collect().await?;
    routes.extend(v6.try_collect::<Vec<_>>().await?);
    connection.abort();
    let own = addresses.into_iter().flat_map(|message| message.attributes).filter_map(|attribute| match attribute {
        // Local is the own one where the two ends of a point-to-point link differ; IPv6 has Address alone.
        AddressAttribute::Local(address) => Some(address),
        AddressAttribute::Address(address) if address.is_ipv6() => Some(address),
        _ => None,
    });
    Ok(Network {
        addresses: own.collect(),
        devices: links.into_iter().filter_map(device).collect(),
        routes: routes.iter().flat_map(route).collect(),
    })
}

fn device(message: LinkMessage) -> Option<Device> {
    let (mut name, mut mtu, mut kind, mut parent, mut xdp) = (None, None, String::new(), None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value),
            LinkAttribute::Mtu(value) => mtu = Some(value),
            LinkAttribute::Link(value) => parent = Some(value),
            LinkAttribute::Xdp(list) => xdp = program(&list),
            LinkAttribute::LinkInfo(infos) => {
                let named = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
                kind = named.map(InfoKind::to_string).unwrap_or_default();
            }
            _ => {}
        }
    }
    let name = name?;
    Some(Device {
        index: message.header.index,
        offloads: offloads::read(&name),
        mtu: mtu?,
        vlan_of: parent.filter(|_| kind == "vlan"),
        kind,
        xdp,
        egress: Err("not looked at".to_owned()),
        name,
    })
}

fn program(attributes: &[LinkXdp]) -> Option<Xdp> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    let generic = attributes.iter().any(|one| matches!(one, LinkXdp::Attached(XdpAttached::SocketBuffer)));
    let found = loaded_programs().find_map(|info| match info {
        Ok(info) if info.id() == id => Some(Ok(info.name_as_str().unwrap_or_default().to_owned())),
        Ok(_) => None,
        Err(error) => Some(Err(error.to_string())),
    });
    Some(Xdp { id, name: found.unwrap_or_else(|| Err("it is gone".to_owned())), generic })
}

/// Names of the TCX programs on egress (Linux 6.6).
pub(super) fn egress(interface: &str) -> Result<Vec<String>, String> {
    let (_, programs) =
        SchedClassifier::query_tcx(interface, TcAttachType::Egress).map_err(|error| error.to_string())?;
    Ok(programs.iter().map(|info| info.name_as_str().unwrap_or_default().to_owned()).collect())
}

/// One for each next hop.
fn route(message: &RouteMessage) -> Vec<Route> {
    let mut address = None;
    let mut interfaces = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(value)) => address = Some(IpAddr::V4(*value)),
            RouteAttribute::Destination(RouteAddress::Inet6(value)) => address = Some(IpAddr::V6(*value)),
            RouteAttribute::Oif(index) => interfaces.push(Some(*index)),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| Some(hop.interface_index))),
            _ => {}
        }
    }
    if interfaces.is_empty() {
        interfaces.push(None);
    }
    let any = if message.header.address_family == netlink_packet_route::AddressFamily::Inet {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let prefix = Prefix { address: address.unwrap_or(any), length: message.header.destination_prefix_length };
    let unicast = message.header.kind == RouteType::Unicast;
    interfaces.into_iter().map(|interface| Route { prefix, interface, unicast }).collect()
}
