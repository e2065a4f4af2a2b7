//! Recorded flows, read from the pinned map: what the kernel has, with an agent or without one.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;
use lb_common::maps::{Record, RecordKey};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::datapath::batch;
use crate::datapath::pins::Pins;
use crate::model::protocol_name;

/// A recorded flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The VIP that it asked.
    pub vip: IpAddr,
    /// The VIP's port.
    pub vip_port: u16,
    /// The pod that it went to.
    pub pod: IpAddr,
    /// The port in the pod.
    pub pod_port: u16,
    /// `new`, `established` or `closing`.
    pub state: String,
    /// Seconds since it was recorded.
    pub age_seconds: u64,
    /// Seconds since its last packet, in or out.
    pub idle_seconds: u64,
    /// Whether its time is over: another VIP's flow may take its place.
    pub expired: bool,
}

impl Flow {
    /// What a key and its record say at a moment of the monotonic clock, in nanoseconds.
    #[must_use]
    pub fn new(key: &RecordKey, record: &Record, now: u64) -> Self {
        let family = key.family();
        let since = |then: u64| now.saturating_sub(then) / 1_000_000_000;
        Self {
            protocol: protocol_name(key.protocol()).to_owned(),
            client: key.client().ip(family),
            client_port: key.client_port(),
            vip: record.vip.ip(family),
            vip_port: record.port(),
            pod: key.pod().ip(family),
            pod_port: key.pod_port(),
            state: record.state().name().to_owned(),
            age_seconds: since(record.created),
            idle_seconds: since(record.seen()),
            expired: record.is_expired(now, key.protocol()),
        }
    }
}

/// Which flows are wanted; all that is said must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The VIP, and its port if that counts.
    pub vip: Option<(IpAddr, Option<u16>)>,
    /// The pod's address.
    pub pod: Option<IpAddr>,
}

impl Filter {
    /// Whether a flow is wanted.
    #[must_use]
    pub fn takes(&self, key: &RecordKey, record: &Record) -> bool {
        let family = key.family();
        self.client.is_none_or(|client| key.client().ip(family) == client)
            && self.pod.is_none_or(|pod| key.pod().ip(family) == pod)
            && self
                .vip
                .is_none_or(|(vip, port)| record.vip.ip(family) == vip && port.is_none_or(|port| record.port() == port))
    }
}

/// The pinned map of recorded flows.
#[derive(Debug)]
pub struct Flows {
    map: MapData,
}

impl Flows {
    /// The map under a `pinPath`.
    ///
    /// # Errors
    /// Not root, or nothing (of this version) is pinned there.
    pub fn open(pin_path: &Path) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("recorded flows are read from the pinned map, which only root may do: ask with sudo");
        }
        let pin = Pins::new(pin_path).maps().join("records");
        if !pin.exists() {
            bail!("no map of recorded flows at {}: no agent of this version has run with this pinPath", pin.display());
        }
        let map = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
        Ok(Self { map })
    }

    /// How many flows fit.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn capacity(&self) -> Result<u64> {
        Ok(u64::from(self.map.info().context("the map of recorded flows")?.max_entries()))
    }

    /// Shows every flow until `visit` breaks, a batch of the map at a time.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn walk(&self, mut visit: impl FnMut(&RecordKey, &Record) -> ControlFlow<()>) -> Result<()> {
        let shown = |key: &[u64; 5], value: &[u64; 6]| visit(&RecordKey::from_words(*key), &Record::from_words(*value));
        batch::walk(&self.map, shown).context("the map of recorded flows")
    }
}

/// The clock that records go by, in nanoseconds.
///
/// # Errors
/// The kernel has no such clock.
pub fn clock() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("the monotonic clock")?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use lb_common::address::Family;
    use lb_common::maps::RecordEvent;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn entry() -> (RecordKey, Record) {
        let (client, pod) = (address("10.60.0.2").into(), address("10.244.1.11").into());
        let key = RecordKey::new(client, pod, Family::V4, 6, 40_000 << 16 | 8080);
        let record = Record::new(address("198.51.100.11").into(), 80, 5_000_000_000);
        record.note(9_000_000_000, RecordEvent::CONTINUES);
        // As a map holds them.
        (key, Record::from_words(record.to_words()))
    }

    #[test]
    fn a_flow_as_people_read_it() {
        let (key, record) = entry();
        let flow = Flow::new(&key, &record, 69_500_000_000);
        let json = serde_json::to_value(&flow).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "protocol": "TCP", "client": "10.60.0.2", "client_port": 40000, "vip": "198.51.100.11", "vip_port": 80,
                "pod": "10.244.1.11", "pod_port": 8080, "state": "established", "age_seconds": 64, "idle_seconds": 60,
                "expired": false,
            })
        );
        record.note(9_000_000_000, RecordEvent::CLIENT_ENDS);
        assert!(Flow::new(&key, &record, 69_500_000_000).expired, "closing for more than a minute");
    }

    #[test]
    fn all_that_is_said_must_hold() {
        let (key, record) = entry();
        let takes = |filter: Filter| filter.takes(&key, &record);
        let vip = address("198.51.100.11");
        assert!(takes(Filter::default()));
        assert!(takes(Filter { client: Some(address("10.60.0.2")), vip: Some((vip, None)), pod: None }));
        assert!(takes(Filter { vip: Some((vip, Some(80))), pod: Some(address("10.244.1.11")), client: None }));
        assert!(!takes(Filter { vip: Some((vip, Some(443))), ..Filter::default() }));
        assert!(!takes(Filter { client: Some(address("10.60.0.3")), vip: Some((vip, None)), pod: None }));
        assert!(!takes(Filter { pod: Some(vip), ..Filter::default() }));
    }
}
