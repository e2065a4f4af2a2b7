//! `beeline backends [SERVICE]…`: one line a backend of a service.

use std::net::IpAddr;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::client;
use super::table::{Side, Table};
use crate::status::{BackendStatus, ServiceStatus};

/// Names that are listed where one was not found.
const LISTED: usize = 10;

/// Arguments of `backends`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only those of these services: `web/http`, `web`, a VIP, or VIP:port.
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    asked: client::Asked,
}

/// A backend and the service that it belongs to.
#[derive(Serialize)]
struct Row<'a> {
    service: &'a str,
    vip: Option<IpAddr>,
    protocol: &'a str,
    port: u16,
    /// Slots of the whole table.
    #[serde(skip)]
    table: u32,
    #[serde(flatten)]
    backend: &'a BackendStatus,
}

/// Asks the agent and prints the backends.
///
/// # Errors
/// No agent answers, no service has a name that was asked for, or standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let status = arguments.asked.fetch()?;
    let rows = rows(&status.services, &arguments.services)?;
    arguments.asked.print(&rows, || render(&rows))
}

/// Whether every name is a service's.
///
/// # Errors
/// One is not.
pub(super) fn check_names(services: &[ServiceStatus], names: &[String]) -> Result<()> {
    for name in names {
        if !services.iter().any(|service| service.is_called(name)) {
            let known: Vec<_> = services.iter().take(LISTED).map(|service| service.label.as_str()).collect();
            let more = if services.len() > LISTED { ", and more" } else { "" };
            match known[..] {
                [] => bail!("no service is called {name:?}; there are none"),
                _ => bail!("no service is called {name:?}; there are {}{more}", known.join(", ")),
            }
        }
    }
    Ok(())
}

fn rows<'a>(services: &'a [ServiceStatus], names: &[String]) -> Result<Vec<Row<'a>>> {
    check_names(services, names)?;
    let wanted = |service: &&ServiceStatus| names.is_empty() || names.iter().any(|name| service.is_called(name));
    let rows = services.iter().filter(wanted).flat_map(|service| {
        service.backends.iter().map(|backend| Row {
            service: &service.label,
            vip: service.address,
            protocol: &service.protocol,
            port: service.port,
            table: service.slots,
            backend,
        })
    });
    Ok(rows.collect())
}

fn render(rows: &[Row<'_>]) -> String {
    if rows.is_empty() {
        return "no backends\n".to_owned();
    }
    let mut table = Table::new([
        ("SERVICE", Side::Left),
        ("BACKEND", Side::Left),
        ("STATE", Side::Left),
        ("WEIGHT", Side::Right),
        ("SLOTS", Side::Right),
        ("SHARE", Side::Right),
        ("PACKETS", Side::Right),
        ("BYTES", Side::Right),
        ("WAY", Side::Left),
    ]);
    for Row { service, table: slots, backend, .. } in rows {
        table.row([
            (*service).to_owned(),
            backend.address.to_string(),
            backend.state.clone(),
            backend.weight.to_string(),
            backend.slots.to_string(),
            share(backend.slots, *slots),
            backend.packets.to_string(),
            backend.bytes.to_string(),
            way(backend),
        ]);
    }
    table.render()
}

/// The part of the table in percent.
pub(super) fn share(owned: u32, slots: u32) -> String {
    match (u64::from(owned) * 1000).checked_div(u64::from(slots)) {
        Some(thousandths) => format!("{}.{}%", thousandths / 10, thousandths % 10),
        None => "-".to_owned(),
    }
}

fn way(backend: &BackendStatus) -> String {
    let via = backend.via.as_deref().unwrap_or("reachable");
    match (&backend.problem, backend.reachable) {
        (None, true) => via.to_owned(),
        (Some(problem), true) => format!("{via}; {problem}"),
        (None, false) => "-".to_owned(),
        (Some(problem), false) => format!("unreachable: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn the_documentation_shows_them() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
        let services = sample().services;
        assert!(page.contains(&render(&rows(&services, &[]).expect("all"))));
    }

    #[test]
    fn backends_line_up() {
        let services = sample().services;
        let rows = rows(&services, &["web".to_owned()]).expect("a service");
        assert_eq!(
            render(&rows),
            "\
SERVICE   BACKEND    STATE     WEIGHT  SLOTS  SHARE  PACKETS   BYTES  WAY
web/http  10.0.0.11  ready        100   3072  75.0%      768  307200  eth0 02:00:00:00:00:02 mtu 1500
web/http  10.0.0.12  ready        100   1024  25.0%      256  102400  unreachable: 10.0.0.12 does not answer on eth0 (ARP): is that host up, and on this network?
web/http  10.0.0.13  draining     100      0   0.0%        0       0  eth0 02:00:00:00:00:02 mtu 1500
"
        );
        let json = serde_json::to_value(&rows).expect("JSON");
        assert_eq!(json[1]["service"], "web/http");
        assert_eq!(json[1]["vip"], "198.51.100.10");
        assert_eq!(json[1]["address"], "10.0.0.12");
        assert_eq!(json[1]["reachable"], false);
    }

    #[test]
    fn a_node_sends_to_no_backend() {
        let services = sample().services;
        let node = BackendStatus { reachable: false, via: None, problem: None, ..services[0].backends[0].clone() };
        assert_eq!(way(&node), "-");
    }

    #[test]
    fn a_service_that_is_not_there_is_named() {
        let services = sample().services;
        let error = rows(&services, &["web".to_owned(), "wbe".to_owned()]).err().expect("no such service");
        assert_eq!(error.to_string(), "no service is called \"wbe\"; there are web/http, dns/UDP/53");
        assert_eq!(
            rows(&services, &["dns".to_owned()]).map(|rows| render(&rows)).expect("it is there"),
            "no backends\n"
        );
        assert_eq!(rows(&services, &[]).expect("all").len(), 3);
    }
}
