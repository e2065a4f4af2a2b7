//! Interfaces, addresses and routes, by netlink.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::offloads::{self, Offloads};
use super::programs::{self, OnTc, Xdp};
use crate::config::Config;
use crate::datapath::links::tc::Hook;
use crate::datapath::pins::Pins;
use crate::doctor::{interfaces, node_interfaces};
use crate::model::Prefix;
use crate::neighbours;

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
    /// Of a veth, the other end, where that is in this network namespace too.
    pub peer: Option<u32>,
    /// What its card does by itself; `None` where it does not tell.
    pub offloads: Option<Offloads>,
    /// Its XDP program; looked at on interfaces of the configuration only.
    pub xdp: Option<Xdp>,
    /// What it runs on TC ingress; looked at on interfaces of a node only.
    pub ingress: OnTc,
    /// What it runs on TC egress; looked at on interfaces of a node only.
    pub egress: OnTc,
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
    /// Whether its destinations are on that interface's own network: it has no gateway.
    pub on_link: bool,
}

/// All of them.
pub(super) struct Network {
    pub(super) devices: Vec<Device>,
    pub(super) routes: Vec<Route>,
    pub(super) uplinks: [BTreeSet<u32>; 2],
    pub(super) addresses: BTreeSet<IpAddr>,
}

pub(super) async fn read(config: &Config) -> Result<Network> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let links: Vec<_> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await?;
    let mut routes = Vec::new();
    let v4 = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let v6 = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
    // A host with all of the Internet's routes has a million: no message is kept.
    let mut messages = v4.chain(v6);
    while let Some(message) = messages.try_next().await? {
        routes.extend(route(&message));
    }
    let mut devices = Vec::new();
    for message in links {
        devices.extend(device(message, config, &handle).await);
    }
    connection.abort();
    let own = addresses.into_iter().flat_map(|message| message.attributes).filter_map(|attribute| match attribute {
        // Local is the own one where the two ends of a point-to-point link differ; IPv6 has Address alone.
        AddressAttribute::Local(address) => Some(address),
        AddressAttribute::Address(address) if address.is_ipv6() => Some(address),
        _ => None,
    });
    Ok(Network { addresses: own.collect(), devices, routes, uplinks: neighbours::uplinks().await? })
}

async fn device(message: LinkMessage, config: &Config, handle: &Handle) -> Option<Device> {
    let (mut name, mut mtu, mut kind, mut parent, mut far, mut xdp) = (None, None, String::new(), None, false, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value),
            LinkAttribute::Mtu(value) => mtu = Some(value),
            LinkAttribute::Link(value) => parent = Some(value),
            LinkAttribute::LinkNetNsId(_) => far = true,
            LinkAttribute::Xdp(list) => xdp = programs::xdp_id(&list),
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
    let (name, index, pins) = (name?, message.header.index, Pins::new(&config.pin_path));
    let (mut ingress, mut egress) = (Ok(Vec::new()), Ok(Vec::new()));
    if node_interfaces(config).contains(&name) {
        ingress = programs::on_tc(handle, &pins, &name, index, Hook::In).await;
        egress = programs::on_tc(handle, &pins, &name, index, Hook::Out).await;
    }
    let xdp = xdp.filter(|_| interfaces(config).contains(&name.as_str()));
    Some(Device {
        index,
        offloads: offloads::read(&name),
        mtu: mtu?,
        vlan_of: parent.filter(|_| kind == "vlan"),
        peer: parent.filter(|_| kind == "veth" && !far),
        kind,
        xdp: xdp.map(|found| programs::xdp(&pins, &name, index, found)),
        ingress,
        egress,
        name,
    })
}

/// One for each next hop.
fn route(message: &RouteMessage) -> Vec<Route> {
    let mut address = None;
    let mut interfaces = Vec::new();
    let mut on_link = true;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(value)) => address = Some(IpAddr::V4(*value)),
            RouteAttribute::Destination(RouteAddress::Inet6(value)) => address = Some(IpAddr::V6(*value)),
            RouteAttribute::Oif(index) => interfaces.push(Some(*index)),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => on_link = false,
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
    interfaces.into_iter().map(|interface| Route { prefix, interface, unicast, on_link }).collect()
}
