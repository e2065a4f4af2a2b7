//! `beeline services`: one line a service.

use anyhow::Result;

use super::client;
use super::table::{Side, Table};
use crate::status::ServiceStatus;

/// Asks the agent and prints its services.
///
/// # Errors
/// No agent answers, or standard output cannot be written.
pub fn run(asked: &client::Asked) -> Result<()> {
    let status = asked.fetch()?;
    asked.print(&status.services, || render(&status.services))
}

fn render(services: &[ServiceStatus]) -> String {
    if services.is_empty() {
        return "no services\n".to_owned();
    }
    let mut table = Table::new([
        ("VIP", Side::Left),
        ("SERVICE", Side::Left),
        ("READY", Side::Right),
        ("UNREACHABLE", Side::Right),
        ("SLOTS", Side::Right),
        ("PACKETS", Side::Right),
        ("BYTES", Side::Right),
        ("PROBLEM", Side::Left),
    ]);
    for service in services {
        let ready = service.backends.iter().filter(|backend| !backend.draining()).count();
        let unreachable = service.backends.iter().filter(|backend| backend.unreachable()).count();
        table.row([
            frontend(service),
            service.label.clone(),
            format!("{ready}/{}", service.backends.len()),
            unreachable.to_string(),
            service.slots.to_string(),
            service.packets.to_string(),
            service.bytes.to_string(),
            problem(service),
        ]);
    }
    table.render()
}

/// Where clients find the service: `198.51.100.10:80/TCP`, with `*` for all ports.
fn frontend(service: &ServiceStatus) -> String {
    let vip = match service.address {
        Some(address) if address.is_ipv6() => format!("[{address}]"),
        _ => service.vip().to_string(),
    };
    let port = if service.port == 0 { "*".to_owned() } else { service.port.to_string() };
    format!("{vip}:{port}/{}", service.protocol)
}

fn problem(service: &ServiceStatus) -> String {
    match (&service.problem, service.installed) {
        (Some(problem), true) => problem.clone(),
        (Some(problem), false) => format!("not installed: {problem}"),
        (None, true) => String::new(),
        (None, false) => "not installed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn the_documentation_shows_them() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
        assert!(page.contains(&render(&sample().services)));
    }

    #[test]
    fn services_line_up() {
        let mut services = sample().services;
        services[1].port = 0;
        assert_eq!(
            render(&services),
            "\
VIP                   SERVICE     READY  UNREACHABLE  SLOTS  PACKETS   BYTES  PROBLEM
198.51.100.10:80/TCP  web/http      2/3            1   4096     1500  600000
[2001:db8::53]:*/UDP  dns/UDP/53    0/0            0     64        0       0  not installed: no room for more slots: the map holds 4096; raise maps.slots and restart after `beeline detach`
"
        );
        assert_eq!(render(&[]), "no services\n");
    }
}
