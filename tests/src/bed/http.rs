//! A small HTTP client that sends from an address of its caller's choice.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::sockopt::{ReuseAddr, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The header field `name` (lower case).
    ///
    /// # Errors
    /// The answer has none.
    pub fn header(&self, name: &str) -> Result<&str> {
        self.headers.get(name).map(String::as_str).with_context(|| format!("no header {name} in {self:?}"))
    }
}

/// A connection that is kept open between requests.
pub struct Connection {
    reader: BufReader<TcpStream>,
    to: SocketAddr,
}

/// Connects from `source` (any port) to `to`, in the network namespace of the calling thread. Every later wait on the
/// stream is bounded by `timeout` too.
///
/// # Errors
/// Nobody answers in time, or the connection is refused: with both addresses.
pub fn connect(source: IpAddr, to: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    connect_from(SocketAddr::new(source, 0), to, timeout)
}

/// As [`connect`], from a port of the caller's choice (0 for any), which may serve for several connections to
/// different addresses.
///
/// # Errors
/// As [`connect`], or the port is taken.
pub fn connect_from(source: SocketAddr, to: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    let context = || format!("connecting from {source} to {to}");
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let descriptor = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).with_context(context)?;
    // connect(2) honours the time limit for sending.
    let limit = TimeVal::milliseconds(i64::try_from(timeout.as_millis()).context("a time limit beyond i64")?);
    setsockopt(&descriptor, SendTimeout, &limit).with_context(context)?;
    if source.port() != 0 {
        // Not where the kernel chooses the port: it would give one that is in use already, if to elsewhere.
        setsockopt(&descriptor, ReuseAddr, &true).with_context(context)?;
    }
    bind(descriptor.as_raw_fd(), &SockaddrStorage::from(source)).with_context(context)?;
    nix::sys::socket::connect(descriptor.as_raw_fd(), &SockaddrStorage::from(to)).with_context(context)?;
    let stream = TcpStream::from(descriptor);
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request on a connection of its own.
///
/// # Errors
/// As [`connect`] and [`Connection::get`].
pub fn get(source: IpAddr, to: SocketAddr, path: &str, timeout: Duration) -> Result<Response> {
    Connection::open(source, to, timeout)?.get(path)
}

impl Connection {
    /// Opens a connection: see [`connect`].
    ///
    /// # Errors
    /// As [`connect`].
    pub fn open(source: IpAddr, to: SocketAddr, timeout: Duration) -> Result<Self> {
        Self::open_from(SocketAddr::new(source, 0), to, timeout)
    }

    /// Opens a connection from a port of the caller's choice: see [`connect_from`].
    ///
    /// # Errors
    /// As [`connect_from`].
    pub fn open_from(source: SocketAddr, to: SocketAddr, timeout: Duration) -> Result<Self> {
        Ok(Self { reader: BufReader::new(connect_from(source, to, timeout)?), to })
    }

    /// The client's own address and port.
    ///
    /// # Errors
    /// The kernel will not say.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.reader.get_ref().local_addr()?)
    }

    /// Asks for `path`.
    ///
    /// # Errors
    /// The connection broke, was reset, ran into its time limit, or what came is not HTTP.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.request("GET", path, &[])
    }

    /// Sends a request with a body (none where it is empty) and reads the answer.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Response> {
        let to = self.to;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut message = head.into_bytes();
        message.extend_from_slice(body);
        self.reader.get_mut().write_all(&message).with_context(|| format!("sending {method} {path} to {to}"))?;
        self.read_response().with_context(|| format!("the answer of {to} to {method} {path}"))
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }

    fn read_response(&mut self) -> Result<Response> {
        let first = self.read_line()?;
        let status = first
            .split_whitespace()
            .nth(1)
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("not a status line: {first:?}"))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').with_context(|| format!("not a header field: {line:?}"))?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let body = match headers.get("content-length") {
            Some(length) => {
                let mut body = vec![0; length.parse().with_context(|| format!("content-length {length:?}"))?];
                self.reader.read_exact(&mut body)?;
                body
            }
            None if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") => self.read_chunks()?,
            // 204: no content, and so no length.
            None if status == 204 => Vec::new(),
            None => bail!("an answer whose length is unknown: {headers:?}"),
        };
        Ok(Response { status, headers, body })
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line()?;
            let length = usize::from_str_radix(&line, 16).with_context(|| format!("not a chunk's length: {line:?}"))?;
            let start = body.len();
            body.resize(start + length, 0);
            self.reader.read_exact(&mut body[start..])?;
            self.read_line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
}
