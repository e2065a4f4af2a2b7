//! Path MTUs of tunnels, learned by the kernel.
//!
//! A router between edge and backend that has no room for a tunnel packet tells its outer source, which is this host
//! (RFC 2003 §4). The kernel takes such a message for a route only if some socket speaks the quoted protocol; XDP's
//! packets come from no socket. So one is kept for each tunnel protocol, which sends and receives nothing: with it the
//! kernel keeps the path's MTU as an exception of the route (ten minutes, `net.ipv4.route.mtu_expires`, never below
//! `min_pmtu`), as it would for its own tunnels, and the socket's error queue says that there is news.
//!
//! Linux 6.18, `net/ipv4/raw.c` (`raw_err`) and `net/ipv6/raw.c` (`rawv6_err`, which wants `IPV6_RECVERR`).

use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use futures_util::future::select_all;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{MsgFlags, recv, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Protocol numbers of the tunnels: IPv4 and IPv6 in IP.
const TUNNELS: [i32; 2] = [4, 41];

/// A socket for each tunnel protocol over each family.
pub(super) struct PathMtu {
    sockets: Vec<AsyncFd<Socket>>,
}

impl PathMtu {
    /// Opens the sockets, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The right to raw sockets (`CAP_NET_RAW`) is missing.
    pub(super) fn open() -> Result<Self> {
        let mut sockets = Vec::new();
        for domain in [Domain::IPV4, Domain::IPV6] {
            for protocol in TUNNELS {
                let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(protocol)));
                let socket = socket.with_context(|| format!("a raw socket of protocol {protocol}"))?;
                if domain == Domain::IPV4 {
                    setsockopt(&socket, Ipv4RecvErr, &true).context("IP_RECVERR")?;
                } else {
                    setsockopt(&socket, Ipv6RecvErr, &true).context("IPV6_RECVERR")?;
                }
                let interest = Interest::READABLE | Interest::ERROR;
                // SAFETY: the socket owns its descriptor, which stays open and the same until the socket is dropped,
                // together with its registration.
                sockets.push(unsafe { AsyncFd::register_with_interest(socket, interest) }?);
            }
        }
        Ok(Self { sockets })
    }

    /// No sockets, and so no news: a host where they cannot be had.
    pub(super) const fn without() -> Self {
        Self { sockets: Vec::new() }
    }

    /// Waits until the kernel was told something about a tunnel's path.
    pub(super) async fn news(&mut self) {
        if self.sockets.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let ready = self.sockets.iter().map(|socket| Box::pin(heard(socket)));
            let (news, _, _) = select_all(ready).await;
            if news {
                return;
            }
        }
    }
}

/// Waits for a socket, empties it, and says whether there was an error in its queue: packets are of no interest.
async fn heard(socket: &AsyncFd<Socket>) -> bool {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await;
    let Ok(mut ready) = ready else { return false };
    let mut news = false;
    let emptied = ready.try_io(|socket| {
        let mut byte = [0; 1];
        // Bounded: a flood of packets must not keep the loop here.
        for _ in 0..1024 {
            let error = recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT);
            news |= error.is_ok();
            let packet = recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT);
            if error == Err(Errno::EAGAIN) && packet == Err(Errno::EAGAIN) {
                return Err(std::io::Error::from(ErrorKind::WouldBlock));
            }
        }
        Ok(())
    });
    // Still readable, or not: either way it is waited for again.
    drop(emptied);
    news
}
