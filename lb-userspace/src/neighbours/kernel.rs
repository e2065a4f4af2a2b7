//! Netlink: the sockets, and the questions and requests that go over them.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::stream::{BoxStream, StreamExt as _};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{AsyncSocket as _, TokioSocket};
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinSet;

use super::entries::{self, Entry, Key};
use super::pods::PodRoute;
use super::routes::{self, Answer};
use super::{Unreachable, egress};

/// What is watched. `RTNLGRP_NEXTHOP` is not: the kernel repeats what happens to a next-hop object as route messages
/// (`net.ipv4.nexthop_compat_mode`), and what it does not repeat the periodic reading finds.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// Wanted room for multicast messages, in bytes; the kernel gives at most `net.core.rmem_max`.
const RECEIVE_BUFFER: i32 = 4 << 20;

/// Longest wait for the kernel's answer. It answers while the request is being sent: silence means a lost message.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A multicast message, or word that some were lost.
pub(super) enum Event {
    /// Something changed.
    Message(RouteNetlinkMessage),
    /// Messages came faster than they were read: all tables have to be read again.
    Lost,
}

/// Why the kernel did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Error {
    /// It said no.
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// It said nothing.
    #[error("no answer by netlink within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    /// The socket is closed.
    #[error("the netlink socket is closed")]
    Closed,
}

impl Error {
    /// Whether it said that there is no such entry.
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(Errno::ENOENT | Errno::ENODEV))
    }
}

/// Netlink sockets of one network namespace: one for questions, so that a flood of multicast messages costs no answer,
/// and one for those messages.
pub(super) struct Sockets {
    /// Asks.
    pub(super) kernel: Kernel,
    /// What the kernel says unasked.
    pub(super) events: BoxStream<'static, Event>,
    /// The sockets' tasks. One ends when its socket fails; all are stopped when this is dropped.
    pub(super) tasks: JoinSet<()>,
}

impl Sockets {
    /// Opens the socket for questions in the calling thread's network namespace.
    pub(super) fn open() -> anyhow::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_connection().context("opening a netlink socket")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let events = messages.filter_map(|(message, _)| async { event(message) }).boxed();
        Ok(Self { kernel: Kernel { handle }, events, tasks })
    }

    /// Opens both sockets.
    pub(super) fn open_watching() -> anyhow::Result<Self> {
        let mut sockets = Self::open()?;
        let (mut connection, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).context("opening a netlink socket for multicast messages")?;
        let socket: &mut TokioSocket = connection.socket_mut();
        socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER).context("setting a netlink socket's receive buffer")?;
        sockets.tasks.spawn(connection);
        let messages = messages.filter_map(|(message, _)| async { event(message) });
        sockets.events = futures_util::stream::select(sockets.events, messages).boxed();
        Ok(sockets)
    }
}

fn event(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Event> {
    match message.payload {
        NetlinkPayload::InnerMessage(message) => Some(Event::Message(message)),
        NetlinkPayload::Overrun(_) => Some(Event::Lost),
        _ => None,
    }
}

/// Asks the kernel.
#[derive(Clone)]
pub(super) struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// All interfaces.
    pub(super) async fn links(&self) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.exchange(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP).await
    }

    /// All addresses.
    pub(super) async fn addresses(&self) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.exchange(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP).await
    }

    /// All neighbours.
    pub(super) async fn neighbours(&self) -> Result<Vec<NeighbourMessage>, Error> {
        let messages =
            self.exchange(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), NLM_F_DUMP).await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(message) => Some(message),
                _ => None,
            })
            .collect())
    }

    /// What all bridges have learned.
    pub(super) async fn forwarding(&self) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        self.exchange(RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP).await
    }

    /// The default routes of all tables.
    pub(super) async fn default_routes(&self) -> Result<Vec<RouteMessage>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let keep = |message| match message {
                RouteNetlinkMessage::NewRoute(route) if egress::is_default(&route) => Some(route),
                _ => None,
            };
            routes.extend(self.collect(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP, keep).await?);
        }
        Ok(routes)
    }

    /// What the kernel's routing says of a pod.
    ///
    /// # Errors
    ///
    /// Only when the socket is closed; all else is an answer.
    pub(super) async fn pod_route(&self, pod: IpAddr) -> Result<PodRoute, Error> {
        let answer = self.route(pod).await?;
        if !matches!(answer, Answer::Unicast(_)) {
            return Ok(PodRoute { answer, length: 0 });
        }
        let entry = match self.exchange(RouteNetlinkMessage::GetRoute(routes::entry_question(pod)), 0).await {
            Ok(messages) => messages,
            Err(Error::Closed) => return Err(Error::Closed),
            Err(Error::Refused(errno)) => return Ok(PodRoute { answer: routes::refusal(pod, errno), length: 0 }),
            Err(Error::Silent) => return Ok(PodRoute { answer: lookup_failed(pod, "it did not answer"), length: 0 }),
        };
        Ok(match entry.first() {
            Some(RouteNetlinkMessage::NewRoute(entry)) => {
                PodRoute { answer, length: entry.header.destination_prefix_length }
            }
            _ => PodRoute { answer: lookup_failed(pod, "it answered without a route"), length: 0 },
        })
    }

    /// How the kernel would send to a destination.
    ///
    /// # Errors
    ///
    /// Only when the socket is closed; all else is an answer.
    pub(super) async fn route(&self, destination: IpAddr) -> Result<Answer, Error> {
        match self.exchange(RouteNetlinkMessage::GetRoute(routes::question(destination)), 0).await {
            Ok(messages) => match messages.first() {
                Some(RouteNetlinkMessage::NewRoute(message)) => Ok(routes::answer(destination, message)),
                _ => Ok(lookup_failed(destination, "it answered without a route")),
            },
            Err(Error::Refused(errno)) => Ok(routes::refusal(destination, errno)),
            Err(Error::Silent) => Ok(lookup_failed(destination, "it did not answer")),
            Err(Error::Closed) => Err(Error::Closed),
        }
    }

    /// One neighbour; `None` where there is no entry.
    pub(super) async fn neighbour(&self, key: Key) -> Result<Option<Entry>, Error> {
        let messages = match self.exchange(RouteNetlinkMessage::GetNeighbour(entries::question(key)), 0).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        Ok(messages.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => entries::parse(message).map(|(_, entry)| entry),
            _ => None,
        }))
    }

    /// Makes the kernel resolve a neighbour, as a managed entry if wanted, unless somebody set the entry on purpose.
    /// Returns the entry as it is then.
    pub(super) async fn resolve(&self, key: Key, managed: bool) -> Result<Option<Entry>, Error> {
        // A request would turn a permanent entry into an ordinary one. What was read earlier may be out of date.
        let before = self.neighbour(key).await?;
        let flags = match before {
            Some(entry) if entry.foreign => return Ok(before),
            Some(_) => 0,
            None => NLM_F_CREATE | NLM_F_EXCL,
        };
        match self.exchange(entries::ask(key, managed), NLM_F_ACK | flags).await {
            // Created or deleted in this moment: the next look will tell.
            Ok(_) | Err(Error::Refused(Errno::EEXIST | Errno::ENOENT)) => self.neighbour(key).await,
            Err(error) => Err(error),
        }
    }

    /// Makes an entry that was managed here an ordinary one; whether it was one.
    pub(super) async fn unmanage(&self, key: Key) -> Result<bool, Error> {
        if !self.neighbour(key).await?.is_some_and(|entry| entry.is_kept_here()) {
            return Ok(false);
        }
        match self.exchange(entries::ask(key, false), NLM_F_ACK).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a request and collects what comes back.
    async fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.collect(message, flags, Some).await
    }

    /// Sends a request and collects of what comes back that which is to be kept.
    async fn collect<T>(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        keep: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut replies = self.handle.clone().request(request).map_err(|_| Error::Closed)?;
        let collect = async {
            let mut messages = Vec::new();
            while let Some(reply) = replies.next().await {
                match reply.payload {
                    NetlinkPayload::InnerMessage(message) => messages.extend(keep(message)),
                    NetlinkPayload::Error(error) => {
                        return Err(Error::Refused(Errno::from_raw(error.raw_code().saturating_abs())));
                    }
                    _ => {}
                }
            }
            Ok(messages)
        };
        tokio::time::timeout(ANSWER_WITHIN, collect).await.unwrap_or(Err(Error::Silent))
    }
}

fn lookup_failed(destination: IpAddr, reason: &str) -> Answer {
    Answer::Unreachable(Unreachable::LookupFailed { destination, reason: reason.into() })
}
