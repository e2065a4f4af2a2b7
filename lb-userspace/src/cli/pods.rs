//! `beeline pods [SERVICE]…`: one line a pod of a service on this node.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::backends::{check_names, share};
use super::client;
use super::table::{Side, Table};
use crate::status::{PodStatus, ServiceStatus};

/// Arguments of `pods`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only those of these services: `web/http`, `web`, a VIP, or VIP:port.
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    asked: client::Asked,
}

/// A pod and the service that it belongs to.
#[derive(Serialize)]
struct Row<'a> {
    service: &'a str,
    vip: Option<IpAddr>,
    protocol: &'a str,
    vip_port: u16,
    /// Slots of the whole table on this node.
    #[serde(skip)]
    table: u32,
    #[serde(flatten)]
    pod: &'a PodStatus,
}

/// Asks the agent and prints the pods.
///
/// # Errors
/// No agent answers, no service has a name that was asked for, or standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let status = arguments.asked.fetch()?;
    let rows = rows(&status.services, &arguments.services)?;
    arguments.asked.print(&rows, || render(&rows))
}

fn rows<'a>(services: &'a [ServiceStatus], names: &[String]) -> Result<Vec<Row<'a>>> {
    check_names(services, names)?;
    let wanted = |service: &&ServiceStatus| names.is_empty() || names.iter().any(|name| service.is_called(name));
    let rows = services.iter().filter(wanted).flat_map(|service| {
        let table = service.pods.iter().map(|pod| pod.slots).sum();
        service.pods.iter().map(move |pod| Row {
            service: &service.label,
            vip: service.address,
            protocol: &service.protocol,
            vip_port: service.port,
            table,
            pod,
        })
    });
    Ok(rows.collect())
}

fn render(rows: &[Row<'_>]) -> String {
    if rows.is_empty() {
        return "no pods on this host\n".to_owned();
    }
    let mut table = Table::new([
        ("SERVICE", Side::Left),
        ("POD", Side::Left),
        ("STATE", Side::Left),
        ("WEIGHT", Side::Right),
        ("SLOTS", Side::Right),
        ("SHARE", Side::Right),
        ("PACKETS", Side::Right),
        ("BYTES", Side::Right),
        ("RECORDED", Side::Left),
        ("DEVICE", Side::Left),
    ]);
    for Row { service, table: slots, pod, .. } in rows {
        table.row([
            (*service).to_owned(),
            SocketAddr::new(pod.address, pod.port).to_string(),
            pod.state.clone(),
            pod.weight.to_string(),
            pod.slots.to_string(),
            share(pod.slots, *slots),
            pod.packets.to_string(),
            pod.bytes.to_string(),
            if pod.recorded { "yes" } else { "no" }.to_owned(),
            device(pod),
        ]);
    }
    table.render()
}

/// The device that leads to a pod, or why there is none.
pub(super) fn device(pod: &PodStatus) -> String {
    match (&pod.device, &pod.problem) {
        (Some(device), _) => device.clone(),
        (None, Some(problem)) => format!("NO DEVICE: {problem}"),
        (None, None) => "NO DEVICE: the kernel has not said yet which leads there".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn pods_line_up() {
        let services = sample().services;
        let text = render(&rows(&services, &["web".to_owned()]).expect("a service"));
        assert_eq!(
            text,
            "\
SERVICE   POD               STATE     WEIGHT  SLOTS  SHARE  PACKETS  BYTES  RECORDED  DEVICE
web/http  10.244.1.11:8080  ready        100    768  75.0%      384  76800  yes       veth11
web/http  10.244.1.12:8080  ready        100    256  25.0%      128  25600  no        NO DEVICE: no route leads to 10.244.1.12: the pod is not on this host (any more), or its network is not set up
web/http  10.244.1.13:8080  draining     100      0   0.0%        0      0  no        veth13
"
        );
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));
        assert!(page.contains(&text), "docs/operations.md lacks this:\n{text}");
    }

    #[test]
    fn a_row_has_its_service_and_its_pod() {
        let services = sample().services;
        let json = serde_json::to_value(rows(&services, &[]).expect("all")).expect("JSON");
        assert_eq!(json.as_array().map(Vec::len), Some(3));
        assert_eq!((&json[1]["service"], &json[1]["vip_port"]), (&"web/http".into(), &80.into()));
        assert_eq!((&json[1]["address"], &json[1]["port"]), (&"10.244.1.12".into(), &8080.into()));
        assert_eq!(json[1]["live"], false);
    }

    #[test]
    fn a_host_without_pods_says_so() {
        let services = sample().services;
        assert_eq!(render(&rows(&services, &["dns".to_owned()]).expect("a service")), "no pods on this host\n");
        assert!(rows(&services, &["wbe".to_owned()]).is_err());
    }
}
