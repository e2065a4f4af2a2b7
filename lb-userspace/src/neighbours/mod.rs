//! Next hops from the kernel's own routes and neighbours, kept fresh.
//!
//! The datapath copies MAC addresses and an interface out of a map. This module is where they come from: for each
//! destination the kernel is asked for its route (so that rules, preferred sources and metrics count), and the
//! neighbour of that route for its MAC address. Four things are done that the kernel does not do for XDP:
//!
//! - Packets that XDP sends do not refresh a neighbour, so each one in use is entered as *managed*
//!   (`NTF_EXT_MANAGED`, Linux 5.16), which makes the kernel resolve it again by itself. Older kernels are asked to
//!   probe (`NTF_USE`) as often as it takes. Entries carry [`ENTRY_PROTOCOL`], so that [`release`] knows them.
//! - Entries that somebody set on purpose (permanent, learned from a control plane, of another protocol) are used and
//!   never touched.
//! - A neighbour that does not answer is asked again with growing pauses.
//! - What does not work has a reason that an operator can read: [`Unreachable`].
//!
//! Changes are followed by netlink's multicast messages; everything is read again every 30 s and after lost messages.
//!
//! Of a node's pods it finds the device that leads to each (`pods`), and of the host its uplinks (`egress`).
//!
//! The files: `links`, `addresses`, `routes`, `entries`, `forwarding` and `tables` turn messages into state and decide,
//! `resolve` merges, all without a kernel; `kernel` talks netlink; `watch` is the loop.

mod addresses;
mod egress;
mod entries;
mod forwarding;
mod kernel;
mod links;
mod path_mtu;
mod pods;
mod resolve;
mod routes;
mod tables;
mod unreachable;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::JoinHandle;

pub use self::entries::ENTRY_PROTOCOL;
pub use self::links::Link;
pub use self::pods::{PodPath, PodUnreachable};
pub use self::routes::Refusal;
pub use self::unreachable::Unreachable;

/// How a packet gets to a destination, or why it does not.
pub type Resolution = Result<Path, Unreachable>;

/// A way to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where packets leave.
    pub via: Via,
    /// The address that the kernel would use as the source of a packet to this destination: the route's preferred
    /// source, or the one chosen by address selection.
    pub source: IpAddr,
}

/// Where packets to a destination leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// The destination is an address of this host.
    Local,
    /// By a device, to a neighbour that answers.
    Device {
        /// Index of the interface.
        interface: u32,
        /// Name of the interface.
        name: String,
        /// The interface's MAC address.
        source_mac: [u8; 6],
        /// MAC address of the gateway, or of the destination itself where it is on the link.
        destination_mac: [u8; 6],
        /// Largest IP packet, in bytes: the smaller of the route's MTU (learned path MTUs included) and the device's.
        mtu: u32,
        /// The gateway; `None` where the destination is on the link. Of the other family in a route "via inet6".
        gateway: Option<IpAddr>,
    },
}

/// What the kernel knew at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The way to each destination that was asked for. One that is missing has not been looked up yet.
    pub paths: BTreeMap<IpAddr, Resolution>,
    /// The live local device that leads to each pod that was asked for, or why there is none. One that is missing has
    /// not been looked up yet.
    pub pods: BTreeMap<IpAddr, Result<PodPath, PodUnreachable>>,
    /// Indexes of the devices that carry a default route, of either family and any table: replies to outside may leave
    /// by them.
    pub uplinks: BTreeSet<u32>,
    /// This host's interfaces, by name. One that is deleted and created again is back with another index.
    pub links: BTreeMap<String, Link>,
    /// All addresses of this host, on all interfaces.
    pub addresses: BTreeSet<IpAddr>,
}

/// Addresses that are asked for; other ones at any time.
pub type Addresses = tokio::sync::watch::Receiver<BTreeSet<IpAddr>>;

/// A watch that was started: where its snapshots come, and its task.
pub type Watching = (tokio::sync::watch::Receiver<Arc<Snapshot>>, JoinHandle<anyhow::Result<()>>);

/// Watches the kernel's links, addresses, routes and neighbours.
#[derive(Debug)]
pub struct Neighbours;

impl Neighbours {
    /// Starts to watch, in the network namespace of the calling thread.
    ///
    /// `destinations` get a way there, `pods` of this host the device that leads to each; an address may be both.
    ///
    /// The receiver's first value is empty; the first real snapshot follows in milliseconds, and a new one only when
    /// something differs. The task ends with `Ok` when `destinations` has no sender or the snapshot no receiver any
    /// more (a `pods` without one stays as it is), with an error when the netlink sockets fail. Managed entries stay when it ends: see [`release`].
    ///
    /// # Errors
    ///
    /// When a netlink socket cannot be opened or bound.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time enabled.
    pub fn spawn(destinations: Addresses, pods: Addresses) -> anyhow::Result<Watching> {
        let sockets = kernel::Sockets::open_watching().context("watching routes and neighbours")?;
        let path_mtu = path_mtu::PathMtu::open().unwrap_or_else(|error| {
            tracing::warn!("path MTUs towards backends are not learned from the network: {error:#}");
            path_mtu::PathMtu::without()
        });
        let (publisher, snapshots) = tokio::sync::watch::channel(Arc::default());
        let task = tokio::spawn(watch::Watch::new(sockets, path_mtu, destinations, pods, publisher).run());
        Ok((snapshots, task))
    }
}

/// Indexes of the devices that carry a default route now, of IPv4 and of IPv6, in any table: one look at what
/// [`Snapshot::uplinks`] follows.
///
/// # Errors
///
/// When netlink cannot be used.
///
/// # Panics
///
/// Outside a tokio runtime with I/O and time enabled.
pub async fn uplinks() -> anyhow::Result<[BTreeSet<u32>; 2]> {
    let sockets = kernel::Sockets::open().context("looking for default routes")?;
    let routes = sockets.kernel.default_routes().await.context("reading the default routes")?;
    Ok(egress::by_family(&routes))
}

/// Makes every neighbour that was entered as managed an ordinary one again, in the network namespace of the calling
/// thread, and returns how many there were. For a clean detach, by this process or another; not for the agent's exit,
/// after which the datapath goes on.
///
/// The entries themselves stay, for the kernel to keep or forget as it does with its own.
///
/// # Errors
///
/// When netlink cannot be used, or the kernel refuses (without `CAP_NET_ADMIN`).
///
/// # Panics
///
/// Outside a tokio runtime with I/O and time enabled.
pub async fn release() -> anyhow::Result<usize> {
    let sockets = kernel::Sockets::open().context("releasing managed neighbours")?;
    let mut released = 0;
    for entry in sockets.kernel.neighbours().await.context("reading the neighbour tables")? {
        let Some((key, entry)) = entries::parse(&entry) else { continue };
        if entry.is_kept_here() {
            let (interface, address) = key;
            let done = sockets.kernel.unmanage(key).await;
            released += usize::from(done.with_context(|| format!("neighbour {address} of interface {interface}"))?);
        }
    }
    Ok(released)
}
