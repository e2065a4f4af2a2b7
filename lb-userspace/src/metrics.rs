//! The agent's picture of itself as Prometheus metrics.
//!
//! The page is in Prometheus' own text format, version 0.0.4, which every Prometheus and `promtool check metrics` read.
//! The client library writes OpenMetrics, which differs for counters alone: it describes `x` and counts `x_total`.
//! Here both are called `x_total`, so each sample is written by the call that adds nothing to a name.

use std::fmt::{self, Write as _};

use lb_common::verdict::{Action, Reason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::status::{BackendStatus, PodStatus, ReplyStatus, ServiceStatus, Status};

/// The media type of what [`render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics page of a moment. Takes time in proportion to the backends of all services: about 2 µs each.
///
/// # Errors
/// None of its own: a `String` takes all that is written to it.
pub fn render(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("beeline");
    // A registry owns what it collects from.
    registry.register_collector(Box::new(Scrape(status.clone())));
    let mut page = String::new();
    encode_registry(&mut page, &registry)?;
    Ok(page)
}

/// What an action is called in the label `verdict`.
#[must_use]
pub const fn verdict(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Send => "send",
        Action::Answer => "answer",
        Action::Drop => "drop",
    }
}

/// The reasons that are counted: all but `not_ours`, which most packets of a shared host have.
pub fn counted() -> impl Iterator<Item = Reason> {
    Reason::ALL.iter().copied().filter(|reason| *reason != Reason::NotOurs)
}

#[derive(Debug)]
struct Scrape(Status);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(status) = self;
        let mut page = Page(encoder);
        page.agent(status)?;
        page.config(status)?;
        page.datapath(status)?;
        page.services(&status.services)?;
        page.backends(&status.services)?;
        page.pods(&status.services)?;
        page.replies(&status.replies)
    }
}

/// The page while it is written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A metric without labels.
    fn one(&mut self, kind: MetricType, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, kind)?.encode_gauge(&value)
    }

    /// A metric with labels.
    fn each<L: EncodeLabelSet>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn agent(&mut self, status: &Status) -> fmt::Result {
        use MetricType::Gauge;
        let build = [("version", status.version.clone()), ("abi", status.abi.to_string())];
        let built = std::iter::once((build, 1));
        self.each(
            Gauge,
            "build_info",
            "Version of the agent and of the layout of its maps, as labels; always 1.",
            built,
        )?;
        self.one(Gauge, "agent_start_time_seconds", "When the agent started, in seconds since 1970.", status.started)?;
        let help = "Whether the configuration is applied and every interface has its program.";
        self.one(Gauge, "ready", help, status.ready.into())?;
        let help = "Number of things that an operator should look at; the status command names them.";
        self.one(Gauge, "problems", help, status.problems.len() as u64)?;
        let attached = status.interfaces.iter().map(|i| ([("interface", i.name.as_str())], i.attached.into()));
        self.each(Gauge, "interface_attached", "Whether the interface has the program.", attached)
    }

    fn config(&mut self, status: &Status) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let config = &status.config;
        let help = "Counts up with each configuration that was applied; 0 before the first.";
        self.one(Gauge, "config_generation", help, config.generation)?;
        let help = "Versions of the configuration that were refused since the agent started.";
        self.one(Counter, "config_errors_total", help, config.errors)?;
        let help = "When the configuration in force was applied, in seconds since 1970; 0 before the first.";
        self.one(Gauge, "config_last_applied_timestamp_seconds", help, config.applied)?;
        let help = "Whether the newest version of the configuration is the one in force.";
        self.one(Gauge, "config_newest_in_force", help, config.error.is_none().into())
    }

    fn datapath(&mut self, status: &Status) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let reasons = counted().map(|reason| {
            let labels = [("reason", reason.name()), ("verdict", verdict(reason.action()))];
            (labels, status.reasons.get(reason.name()).copied().unwrap_or(0))
        });
        self.each(Counter, "packets_by_reason_total", "Packets by what became of them, and why.", reasons)?;
        let used = status.maps.iter().filter_map(|map| Some(([("map", map.name.as_str())], map.used?)));
        self.each(Gauge, "map_used_entries", "Entries of the map that are in use.", used)?;
        let capacity = status.maps.iter().map(|map| ([("map", map.name.as_str())], map.capacity));
        self.each(Gauge, "map_capacity_entries", "Entries that the map has room for.", capacity)?;
        let help = "Flows that were recorded, those included whose records are gone.";
        self.one(Counter, "flows_recorded_total", help, status.flows_recorded)?;
        self.one(Counter, "tables_built_total", "Tables built since the agent started.", status.tables_built)
    }

    fn services(&mut self, services: &[ServiceStatus]) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let each = |value: fn(&ServiceStatus) -> u64| services.iter().map(move |s| (OfService(s), value(s)));
        self.each(Gauge, "service_installed", "Whether the service is in the maps.", each(|s| s.installed.into()))?;
        self.each(Counter, "service_packets_total", "Packets sent to the service's backends.", each(|s| s.packets))?;
        let help = "Bytes sent to the service's backends, from the clients' IP headers on.";
        self.each(Counter, "service_bytes_total", help, each(|s| s.bytes))?;
        let of_pods = services.iter().filter(|s| s.delivery == "pod");
        let each = |value: fn(&ServiceStatus) -> u64| of_pods.clone().map(move |s| (OfService(s), value(s)));
        let help = "Packets handed to the service's pods on this host.";
        self.each(Counter, "service_pod_packets_total", help, each(|s| s.pod_packets))?;
        let help = "Bytes handed to the service's pods on this host, from the clients' IP headers on.";
        self.each(Counter, "service_pod_bytes_total", help, each(|s| s.pod_bytes))
    }

    fn backends(&mut self, services: &[ServiceStatus]) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let each = |value: fn(&BackendStatus) -> u64| {
            services.iter().flat_map(move |s| s.backends.iter().map(move |b| (OfBackend(s, b), value(b))))
        };
        self.each(Counter, "backend_packets_total", "Packets sent to the backend.", each(|b| b.packets))?;
        let help = "Bytes sent to the backend, from the clients' IP headers on.";
        self.each(Counter, "backend_bytes_total", help, each(|b| b.bytes))?;
        let help = "Slots of the service's table that the backend owns.";
        self.each(Gauge, "backend_slots", help, each(|b| b.slots.into()))?;
        let help = "Whether the backend drains: no new flows.";
        self.each(Gauge, "backend_draining", help, each(|b| b.draining().into()))?;
        let help = "Whether there is a way to the backend; absent where this host does not send to it.";
        let known = |b: &&BackendStatus| b.reachable || b.unreachable();
        let reachable = services
            .iter()
            .flat_map(|s| s.backends.iter().filter(known).map(move |b| (OfBackend(s, b), b.reachable.into())));
        self.each(Gauge, "backend_reachable", help, reachable)
    }
}

impl Page<'_> {
    fn pods(&mut self, services: &[ServiceStatus]) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let each = |value: fn(&PodStatus) -> u64| {
            services.iter().flat_map(move |s| s.pods.iter().map(move |p| (OfPod(s, p), value(p))))
        };
        self.each(Counter, "pod_packets_total", "Packets handed to the pod.", each(|p| p.packets))?;
        let help = "Bytes handed to the pod, from the clients' IP headers on.";
        self.each(Counter, "pod_bytes_total", help, each(|p| p.bytes))?;
        let help = "Slots of the service's table on this host that the pod owns.";
        self.each(Gauge, "pod_slots", help, each(|p| p.slots.into()))?;
        self.each(Gauge, "pod_draining", "Whether the pod drains: no new flows.", each(|p| p.draining().into()))?;
        let help = "Whether a live device of this host leads to the pod.";
        self.each(Gauge, "pod_live", help, each(|p| p.live.into()))
    }

    fn replies(&mut self, replies: &[ReplyStatus]) -> fmt::Result {
        use MetricType::Counter;
        let each = |value: fn(&ReplyStatus) -> u64| replies.iter().map(move |r| (OfReply(r), value(r)));
        let help = "Packets of the pod's port that left as a VIP's.";
        self.each(Counter, "reply_packets_total", help, each(|r| r.packets))?;
        let help = "Bytes of the pod's port that left as a VIP's, from the IP header on.";
        self.each(Counter, "reply_bytes_total", help, each(|r| r.bytes))
    }
}

/// The labels of a service.
struct OfService<'a>(&'a ServiceStatus);

impl EncodeLabelSet for OfService<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(service) = self;
        ("service", service.label.as_str()).encode(encoder.encode_label())?;
        shown(encoder, "vip", format_args!("{}", service.vip()))?;
        shown(encoder, "port", format_args!("{}", service.port))?;
        ("protocol", service.protocol.as_str()).encode(encoder.encode_label())
    }
}

/// The labels of a backend of a service.
struct OfBackend<'a>(&'a ServiceStatus, &'a BackendStatus);

impl EncodeLabelSet for OfBackend<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(service, backend) = self;
        OfService(service).encode(encoder)?;
        shown(encoder, "backend", format_args!("{}", backend.address))
    }
}

/// The labels of a pod of a service.
struct OfPod<'a>(&'a ServiceStatus, &'a PodStatus);

impl EncodeLabelSet for OfPod<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(service, pod) = self;
        OfService(service).encode(encoder)?;
        shown(encoder, "pod", format_args!("{}", pod.address))?;
        shown(encoder, "pod_port", format_args!("{}", pod.port))
    }
}

/// The labels of a pod's port.
struct OfReply<'a>(&'a ReplyStatus);

impl EncodeLabelSet for OfReply<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(reply) = self;
        shown(encoder, "pod", format_args!("{}", reply.pod))?;
        shown(encoder, "pod_port", format_args!("{}", reply.port))?;
        ("protocol", reply.protocol.as_str()).encode(encoder.encode_label())
    }
}

/// A label whose value needs no escaping and no `String` of its own.
fn shown(encoder: &mut LabelSetEncoder<'_>, key: &str, value: fmt::Arguments<'_>) -> fmt::Result {
    let mut label = encoder.encode_label();
    let mut label = label.encode_label_key()?;
    label.write_str(key)?;
    let mut label = label.encode_label_value()?;
    label.write_fmt(value)?;
    label.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn a_page() {
        let page = render(&sample()).expect("a String takes it");
        for line in [
            "# HELP beeline_service_packets_total Packets sent to the service's backends.",
            "# TYPE beeline_service_packets_total counter",
            r#"beeline_build_info{version="0.1.0",abi="1"} 1"#,
            "beeline_ready 0",
            "beeline_problems 5",
            "beeline_flows_recorded_total 321",
            r#"beeline_service_pod_packets_total{service="web/http",vip="198.51.100.10",port="80",protocol="TCP"} 700"#,
            r#"beeline_pod_packets_total{service="web/http",vip="198.51.100.10",port="80",protocol="TCP",pod="10.244.1.11",pod_port="8080"} 384"#,
            r#"beeline_pod_live{service="web/http",vip="198.51.100.10",port="80",protocol="TCP",pod="10.244.1.12",pod_port="8080"} 0"#,
            r#"beeline_reply_packets_total{pod="10.244.1.11",pod_port="8080",protocol="TCP"} 400"#,
            r#"beeline_interface_attached{interface="eth0"} 1"#,
            r#"beeline_interface_attached{interface="eth1"} 0"#,
            "beeline_config_newest_in_force 0",
            "beeline_config_errors_total 2",
            r#"beeline_packets_by_reason_total{reason="unknown_port",verdict="drop"} 12"#,
            r#"beeline_packets_by_reason_total{reason="hairpin",verdict="drop"} 0"#,
            r#"beeline_map_used_entries{map="slots"} 4096"#,
            r#"beeline_service_packets_total{service="web/http",vip="198.51.100.10",port="80",protocol="TCP"} 1500"#,
            r#"beeline_backend_reachable{service="web/http",vip="198.51.100.10",port="80",protocol="TCP",backend="10.0.0.12"} 0"#,
            r#"beeline_backend_draining{service="web/http",vip="198.51.100.10",port="80",protocol="TCP",backend="10.0.0.13"} 1"#,
        ] {
            assert!(page.lines().any(|l| l == line), "no line {line}\n{page}");
        }
        assert!(!page.contains("not_ours"), "{page}");
    }

    #[test]
    fn every_counted_reason_is_there_from_the_start() {
        let page = render(&Status::default()).expect("a String takes it");
        let lines = page.lines().filter(|line| line.starts_with("beeline_packets_by_reason_total{"));
        assert_eq!(lines.filter(|line| line.ends_with("\"} 0")).count(), Reason::ALL.len() - 1);
    }

    const OPERATIONS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md"));

    #[test]
    fn the_documentation_lists_every_metric() {
        let page = render(&sample()).expect("a String takes it");
        let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
        let mut lines = page.lines();
        while let Some(described) = lines.next() {
            // The samples of a metric follow its two lines of description.
            let Some((name, help)) = described.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) else {
                continue;
            };
            let (_, kind) = lines.next().and_then(|line| line.rsplit_once(' ')).expect("a type");
            let sample = lines.next().expect("a sample");
            let labels = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(l, _)| l);
            let keys: Vec<_> =
                labels.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key).collect();
            writeln!(table, "| `{name}` | {kind} | {} | {help} |", keys.join(", ")).expect("a String takes it");
        }
        assert!(OPERATIONS.contains(&table), "docs/operations.md lacks this table:\n{table}");
    }

    #[test]
    fn the_documentation_lists_every_reason() {
        let mut table = "| reason | verdict | meaning |\n|---|---|---|\n".to_owned();
        for reason in Reason::ALL {
            let (verdict, meaning) = (verdict(reason.action()), reason.description().trim());
            writeln!(table, "| `{}` | {verdict} | {meaning} |", reason.name()).expect("a String takes it");
        }
        assert!(OPERATIONS.contains(&table), "docs/operations.md lacks this table:\n{table}");
    }

    #[test]
    fn the_documentation_names_no_metric_that_is_not_there() {
        let page = render(&sample()).expect("a String takes it");
        let words = OPERATIONS.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let program = |name: &str| crate::datapath::object::Program::ALL.iter().any(|program| program.name() == name);
        let names: Vec<_> = words.filter(|word| word.starts_with("beeline_") && !program(word)).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(page.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }

    #[test]
    fn a_node_has_no_unreachable_backends() {
        let mut status = sample();
        for backend in &mut status.services[0].backends {
            (backend.reachable, backend.via, backend.problem) = (false, None, None);
        }
        let page = render(&status).expect("a String takes it");
        assert!(!page.contains("beeline_backend_reachable{"), "{page}");
        assert!(page.contains("beeline_backend_draining{"), "{page}");
    }

    #[test]
    fn names_from_outside_cannot_forge_lines() {
        let mut status = sample();
        status.services[0].label = "a\"} 1\nforged 1".to_owned();
        let page = render(&status).expect("a String takes it");
        assert!(page.contains(r#"{service="a\"} 1\nforged 1","#), "{page}");
        assert!(!page.lines().any(|line| line.starts_with("forged")), "{page}");
    }
}
