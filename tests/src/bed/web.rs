//! A real nginx on a host of the bed.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Bed, Host, Process, eventually, get};

/// How long nginx may take to answer its first request.
const START: Duration = Duration::from_secs(10);

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Whom nginx took for the client.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The address and port that the packets had when nginx got them.
    pub server: SocketAddr,
    /// Method, path and protocol.
    pub request: String,
    /// Status code of the answer.
    pub status: u16,
}

/// A running nginx: `/` names the host (header `x-node`) and the client that it saw (headers `x-client` and
/// `x-client-port`); `/files/` takes PUT and GET.
pub struct WebServer {
    name: String,
    process: Process,
    folder: PathBuf,
}

impl WebServer {
    /// Starts nginx on port 80 of every address of `host`, both families.
    ///
    /// # Errors
    /// nginx is missing or does not answer on the loopback: with its log.
    pub fn start(bed: &Bed, host: &Host) -> Result<Self> {
        Self::start_on(bed, host, 80)
    }

    /// As [`WebServer::start`], on another port.
    ///
    /// # Errors
    /// As [`WebServer::start`].
    pub fn start_on(bed: &Bed, host: &Host, port: u16) -> Result<Self> {
        let name = host.name();
        let folder = bed.folder(&format!("{name}-nginx-{port}"))?;
        fs::create_dir(folder.join("files"))?;
        let root = folder.display();
        let configuration = format!(
            r#"daemon off; master_process off; user root; pid {root}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  log_format bed '$remote_addr $remote_port $server_addr $server_port $status $request';
  access_log {root}/access.log bed;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  client_max_body_size 1g; keepalive_requests 1000000; keepalive_timeout 1h; lingering_close off;
  server {{
    listen {port} backlog=4096; listen [::]:{port} ipv6only=on backlog=4096;
    add_header X-Node {name} always; add_header X-Client $remote_addr always;
    add_header X-Client-Port $remote_port always;
    location / {{ return 200 "{name} saw $remote_addr at $server_addr\n"; }}
    location /files/ {{ root {root}; dav_methods PUT; }}
  }}
}}
"#
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, configuration).with_context(|| format!("cannot write {root}/nginx.conf"))?;
        let argv = ["nginx", "-p", &root.to_string(), "-e", "stderr", "-c", &path.display().to_string()];
        let mut process = host.spawn(&format!("nginx-{port}"), &argv)?;
        eventually("nginx to answer", START, || {
            if let Some(status) = process.ended()? {
                anyhow::bail!("nginx on {name} ended ({status}): {}", process.log()?);
            }
            host.within(|| get([127, 0, 0, 1].into(), ([127, 0, 0, 1], port).into(), "/", START))
        })?;
        Ok(Self { name: name.to_owned(), process, folder })
    }

    /// The host that it runs on, as its answers say.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The running nginx.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// All requests from elsewhere than the loopback, oldest first. nginx writes a line when a request is done,
    /// after the answer: a client may be ahead of it.
    ///
    /// # Errors
    /// The log cannot be read, or holds a line that nginx was not told to write.
    pub fn hits(&self) -> Result<Vec<Hit>> {
        let log = fs::read_to_string(self.folder.join("access.log")).context("cannot read nginx's access log")?;
        let hits: Vec<Hit> = log.lines().map(parse_hit).collect::<Result<_>>()?;
        Ok(hits.into_iter().filter(|hit| !hit.client.is_loopback()).collect())
    }

    /// Puts a file to be had at `/files/NAME`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn publish(&self, name: &str, contents: &[u8]) -> Result<()> {
        fs::write(self.file(name), contents).with_context(|| format!("cannot write {name} for nginx"))
    }

    /// Where a file of `/files/` is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join("files").join(name)
    }
}

fn parse_hit(line: &str) -> Result<Hit> {
    let not_ours = || format!("not a line of the bed's log format: {line:?}");
    let mut words = line.splitn(6, ' ');
    let mut word = || words.next().with_context(not_ours);
    Ok(Hit {
        client: word()?.parse().with_context(not_ours)?,
        client_port: word()?.parse().with_context(not_ours)?,
        server: SocketAddr::new(word()?.parse().with_context(not_ours)?, word()?.parse().with_context(not_ours)?),
        status: word()?.parse().with_context(not_ours)?,
        request: word()?.to_owned(),
    })
}
