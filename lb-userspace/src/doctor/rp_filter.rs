//! The reverse path filter of IPv4 (RFC 3704; Documentation/networking/ip-sysctl.rst): it drops packets whose source
//! would be answered by another interface, and sees decapsulated packets.

use super::{Facts, Finding, Level, node_interfaces};
use crate::config::Config;

const CHECK: &str = "rp_filter";

/// The larger of an interface's value and that of `all` counts.
pub(super) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    node_interfaces(config).iter().map(|name| one(name, facts)).collect()
}

fn one(name: &str, facts: &Facts) -> Finding {
    let of = |name: &str| facts.number(&format!("net/ipv4/conf/{name}/rp_filter"));
    let (Some(own), Some(all)) = (of(name), of("all")) else {
        return Finding::new(
            Level::Unseen,
            CHECK,
            format!("{name}: net.ipv4.conf.{name}.rp_filter cannot be read"),
            "",
        );
    };
    if own.max(all) != 1 {
        return Finding::ok(CHECK, format!("{name}: {}", own.max(all)));
    }
    let index = facts.device(name).map(|device| device.index);
    let mut ways = facts.default_routes(true).peekable();
    if ways.peek().is_some() && ways.all(|way| way.interface == index) {
        return Finding::ok(
            CHECK,
            format!("{name}: 1, which is fine while every client is answered by {name}, where the default route goes"),
        );
    }
    // Loose mode (2) wins over `all` = 1, since the larger of both counts; 0 does not.
    Finding::new(
        Level::Problem,
        CHECK,
        format!("{name}: 1 (all: {all}): decapsulated packets of clients that are not answered by {name} are dropped"),
        format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", name.replace('.', "/")),
    )
}
