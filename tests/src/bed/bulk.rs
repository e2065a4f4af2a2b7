//! Much data, up and down.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Connection, Host, WebServer};

/// 100 MB.
pub const BULK: usize = 100_000_000;

/// How long nothing may come before a transfer counts as dead.
const SILENCE: Duration = Duration::from_secs(20);

/// What is looked at in one go, bytes.
const PIECE: usize = 1 << 20;

/// Contents in which no two places are alike, so that a piece that is lost, doubled or misplaced shows.
pub struct Bulk {
    contents: Vec<u8>,
}

impl Bulk {
    /// `length` bytes.
    pub fn new(length: usize) -> Self {
        let mut contents: Vec<u8> = (0..=length as u64 / 8).flat_map(u64::to_be_bytes).collect();
        contents.truncate(length);
        Self { contents }
    }

    /// Offers the contents at `/files/bulk` of each server. They are kept once, whatever their number.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish<'a>(&self, servers: impl IntoIterator<Item = &'a WebServer>) -> Result<()> {
        let mut first = None;
        for server in servers {
            let file = server.file("bulk");
            match &first {
                None => {
                    server.publish("bulk", &self.contents)?;
                    first = Some(file);
                }
                Some(first) => {
                    fs::hard_link(first, &file).with_context(|| format!("linking {}", file.display()))?;
                }
            }
        }
        Ok(())
    }

    /// Fetches what [`Bulk::publish`] offers on a new connection from `from` on `host`, and compares it; returns who
    /// served it.
    ///
    /// # Errors
    /// It does not come whole and unchanged.
    pub fn download(&self, host: &Host, from: IpAddr, to: SocketAddr) -> Result<String> {
        let mut connection = host.within(|| Connection::open(from, to, SILENCE))?;
        let answer = connection.get("/files/bulk").with_context(|| format!("{} bytes down", self.contents.len()))?;
        ensure!(answer.status == 200, "status {} from {to}", answer.status);
        let (came, wanted) = (answer.body.len(), self.contents.len());
        ensure!(answer.body == self.contents, "{came} bytes of {wanted} came down from {to}, or others");
        Ok(answer.header("x-node")?.to_owned())
    }

    /// Sends the contents on a new connection from `from` on `host`, looks at what the server of `servers` that
    /// answered has got, and removes it; returns who it was.
    ///
    /// # Errors
    /// They do not arrive whole and unchanged.
    pub fn upload<'a>(
        &self,
        host: &Host,
        from: IpAddr,
        to: SocketAddr,
        servers: impl IntoIterator<Item = &'a WebServer>,
    ) -> Result<String> {
        let mut connection = host.within(|| Connection::open(from, to, SILENCE))?;
        let name = format!("up-{}", connection.local_addr()?.port());
        let answer = connection.request("PUT", &format!("/files/{name}"), &self.contents)?;
        ensure!(answer.status == 201, "status {} from {to}", answer.status);
        let served = answer.header("x-node")?.to_owned();
        let server = servers.into_iter().find(|server| server.name() == served);
        let file = server.with_context(|| format!("{served} is none of the servers"))?.file(&name);
        self.compare(&file).with_context(|| format!("what {served} got"))?;
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        Ok(served)
    }

    fn compare(&self, file: &Path) -> Result<()> {
        let length = fs::metadata(file)?.len();
        ensure!(length == self.contents.len() as u64, "{length} bytes of {}", self.contents.len());
        let (mut reader, mut piece) = (File::open(file)?, vec![0; PIECE]);
        for (index, wanted) in self.contents.chunks(PIECE).enumerate() {
            reader.read_exact(&mut piece[..wanted.len()])?;
            ensure!(piece[..wanted.len()] == *wanted, "other bytes in the MiB from byte {}", index * PIECE);
        }
        Ok(())
    }
}
