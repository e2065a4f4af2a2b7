//! UDP servers of the bed.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Host;

/// Largest datagram that is echoed, bytes.
const LARGEST: usize = 65_536;

/// How often a server looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// Sends every datagram back to where it came from.
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Serves `address` on `host`. Bound to that one address, so that it is what answers come from.
    ///
    /// # Errors
    /// The address is not there or taken.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        Self::start_with(host, address, |_, datagram| datagram.to_vec())
    }

    /// As [`UdpEcho::start`], but puts the host's name and the client's address in front of each answer: see
    /// [`ask_name`].
    ///
    /// # Errors
    /// As [`UdpEcho::start`].
    pub fn start_naming(host: &Host, address: SocketAddr) -> Result<Self> {
        let name = host.name().to_owned();
        Self::start_with(host, address, move |from, datagram| {
            [format!("{name} {from}\n").as_bytes(), datagram].concat()
        })
    }

    fn start_with(
        host: &Host,
        address: SocketAddr,
        answer: impl Fn(SocketAddr, &[u8]) -> Vec<u8> + Send + 'static,
    ) -> Result<Self> {
        let socket = host.within(|| UdpSocket::bind(address).with_context(|| format!("serving {address}")))?;
        socket.set_read_timeout(Some(LOOK))?;
        let (stop, echoed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&echoed));
        let serve = move || {
            let mut datagram = vec![0; LARGEST];
            while !stopped.load(Ordering::Relaxed) {
                // A time-out, or an ICMP error about an earlier answer: neither ends the service.
                let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
                // Counted first: whoever has the echo finds it counted.
                counter.fetch_add(1, Ordering::SeqCst);
                // Fails where the client is gone, which is the client's affair.
                drop(socket.send_to(&answer(from, &datagram[..length]), from));
            }
        };
        let thread = thread::Builder::new().name(format!("{}-udp", host.name())).spawn(serve)?;
        Ok(Self { stop, echoed, thread: Some(thread) })
    }

    /// Number of datagrams taken in so far.
    pub fn echoed(&self) -> usize {
        self.echoed.load(Ordering::SeqCst)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has printed itself.
            drop(thread.join());
        }
    }
}

/// What a server of [`UdpEcho::start_naming`] said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The host that answered.
    pub name: String,
    /// Whom it took for the client.
    pub saw: SocketAddr,
}

/// Sends `datagram` from `socket` to `to`, served by [`UdpEcho::start_naming`], and waits for the answer, `wait` long.
///
/// # Errors
/// Nothing came, or something else.
pub fn ask_name(socket: &UdpSocket, to: SocketAddr, datagram: &[u8], wait: Duration) -> Result<Said> {
    let answer = exchange(socket, to, datagram, wait)?;
    let end = answer.iter().position(|byte| *byte == b'\n').context("an answer without a first line")?;
    let (line, rest) = (String::from_utf8_lossy(&answer[..end]), &answer[end + 1..]);
    anyhow::ensure!(rest == datagram, "{} bytes came back for {}, or others", rest.len(), datagram.len());
    let (name, saw) = line.split_once(' ').with_context(|| format!("not a name and an address: {line:?}"))?;
    Ok(Said { name: name.to_owned(), saw: saw.parse().with_context(|| format!("not an address: {saw:?}"))? })
}

/// Sends `datagram` from `socket` to `to` and waits for its echo, `wait` long.
///
/// # Errors
/// Nothing came, or something else.
pub fn echo(socket: &UdpSocket, to: SocketAddr, datagram: &[u8], wait: Duration) -> Result<()> {
    let answer = exchange(socket, to, datagram, wait)?;
    anyhow::ensure!(answer == datagram, "{} bytes came back for {}, or others", answer.len(), datagram.len());
    Ok(())
}

/// Sends a datagram and returns what `to` answers.
fn exchange(socket: &UdpSocket, to: SocketAddr, datagram: &[u8], wait: Duration) -> Result<Vec<u8>> {
    socket.set_read_timeout(Some(wait))?;
    socket.send_to(datagram, to).with_context(|| format!("sending {} bytes to {to}", datagram.len()))?;
    let mut answer = vec![0; LARGEST];
    let (length, from) =
        socket.recv_from(&mut answer).with_context(|| format!("the echo of {} bytes from {to}", datagram.len()))?;
    anyhow::ensure!(from == to, "{from} answered for {to}");
    answer.truncate(length);
    Ok(answer)
}
