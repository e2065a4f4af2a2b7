//! What passes by a device, as tcpdump sees it.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Host, Process, eventually, holds};

/// How long tcpdump may take to begin.
const START: Duration = Duration::from_secs(10);

/// A tcpdump that runs until it is dropped. It sees what XDP has passed, and not what XDP sends or drops.
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Watches `device` of `host` for packets that match `filter` (pcap-filter(7)). `name` tells it from the host's
    /// others. It watches when this returns.
    ///
    /// # Errors
    /// tcpdump is missing, or refuses the filter: with its own words.
    pub fn start(host: &Host, name: &str, device: &str, filter: &str) -> Result<Self> {
        let argv = ["tcpdump", "-Z", "root", "-n", "-l", "--immediate-mode", "-i", device, filter];
        let mut process = host.spawn(&format!("tcpdump-{name}"), &argv)?;
        eventually("tcpdump to watch", START, || {
            if let Some(status) = process.ended()? {
                bail!("tcpdump ended ({status}): {}", process.log()?);
            }
            let log = process.log()?;
            holds(log.contains("listening on"), || log)
        })?;
        Ok(Self { process })
    }

    /// The packets so far, a line each.
    ///
    /// # Errors
    /// tcpdump's output cannot be read.
    pub fn packets(&self) -> Result<Vec<String>> {
        let log = self.process.log()?;
        Ok(log.lines().filter(|line| line.contains(" IP")).map(ToOwned::to_owned).collect())
    }
}
