//! What others do to pods' packets on a node: NAT as CNIs and kube-proxy set it up, filters, conntrack.
//!
//! Each is a table (nftables) of its own, so that they stand side by side in any choice, and a second call of the same
//! replaces the first. Tables that do NAT or look at the state of a flow switch conntrack on in their namespace.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::pods::{POD_NETWORK_V4, POD_NETWORK_V6};
use super::{FILES, Host};

/// How a host checks that a packet's source is reached by the device that the packet came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReversePath {
    /// Not at all.
    Off,
    /// By any device: what distributions set (`rp_filter` 2). IPv6 is not checked.
    Loose,
    /// By that device alone (`rp_filter` 1). IPv6 has no such setting: a `fib` rule does it, as firewalld's does.
    Strict,
}

/// Pods' packets that leave the pods' network get the node's address, as CNIs do it.
///
/// # Errors
/// nft is missing, or the kernel refuses.
pub fn masquerade(node: &Host) -> Result<()> {
    let rules = format!(
        "chain postrouting {{ type nat hook postrouting priority srcnat;\n\
         ip saddr {POD_NETWORK_V4} ip daddr != {POD_NETWORK_V4} masquerade\n\
         ip6 saddr {POD_NETWORK_V6} ip6 daddr != {POD_NETWORK_V6} masquerade\n}}"
    );
    table(node, "cni-masquerade", &rules)
}

/// Takes away what [`masquerade`] did; flows that it has changed already stay so.
///
/// # Errors
/// As [`masquerade`].
pub fn no_masquerade(node: &Host) -> Result<()> {
    no_table(node, "cni-masquerade")
}

/// Forwards no packet whose flow conntrack does not know and that begins none, as kube-proxy and firewalls do.
///
/// # Errors
/// As [`masquerade`].
pub fn drop_invalid(node: &Host) -> Result<()> {
    table(
        node,
        "drop-invalid",
        "chain forward { type filter hook forward priority filter;\nct state invalid counter drop\n}",
    )
}

/// Packets that [`drop_invalid`] has dropped on `node`.
///
/// # Errors
/// It was not called, or nft lists no counter.
pub fn dropped_as_invalid(node: &Host) -> Result<u64> {
    let listed = node.run("nft list table inet drop-invalid")?;
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let packets = words.next().with_context(|| format!("no counter in {listed}"))?;
    packets.parse().with_context(|| format!("not a count of packets in {listed}"))
}

/// Conntrack follows no flow of `node` any more, and so nothing is NATed or known as invalid, whatever tables say.
///
/// # Errors
/// As [`masquerade`].
pub fn conntrack_off(node: &Host) -> Result<()> {
    table(
        node,
        "no-conntrack",
        "chain in { type filter hook prerouting priority raw;\nnotrack\n}\n\
         chain out { type filter hook output priority raw;\nnotrack\n}",
    )
}

/// Takes [`conntrack_off`] back.
///
/// # Errors
/// As [`masquerade`].
pub fn conntrack_on(node: &Host) -> Result<()> {
    no_table(node, "no-conntrack")
}

/// Conntrack forgets every flow of `node` (`conntrack -F`).
///
/// # Errors
/// conntrack is missing, or the kernel refuses.
pub fn forget_flows(node: &Host) -> Result<()> {
    node.run("conntrack -F").map(drop)
}

/// Addresses of a Service inside the cluster, of both families: 10.96.0.`index` and fd96::`index`.
pub fn cluster_ips(index: u8) -> [IpAddr; 2] {
    [IpAddr::from([10, 96, 0, index]), IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, u16::from(index)])]
}

/// Leads `address`:`port` (of [`cluster_ips`]) to `pod`, for the pods of `node` and for itself, as kube-proxy does.
///
/// # Errors
/// As [`masquerade`].
pub fn cluster_ip(node: &Host, protocol: &str, address: SocketAddr, pod: SocketAddr) -> Result<()> {
    let (family, to) = (family(pod), pod);
    let rule = format!("{family} daddr {} {protocol} dport {} dnat {family} to {to}", address.ip(), address.port());
    let rules = format!(
        "chain prerouting {{ type nat hook prerouting priority dstnat;\n{rule}\n}}\n\
         chain output {{ type nat hook output priority -100;\n{rule}\n}}"
    );
    let name = format!("cluster-{protocol}-{family}-{}", table_name(address));
    table(node, &name, &rules)
}

/// Leads `port` of every address of `node` to `pod`, which sees the node as its client, as kube-proxy does
/// (`externalTrafficPolicy: Cluster`). One pod for each family, protocol and port.
///
/// # Errors
/// As [`masquerade`].
pub fn node_port(node: &Host, protocol: &str, port: u16, pod: SocketAddr) -> Result<()> {
    let (family, to) = (family(pod), pod);
    let nfproto = if pod.is_ipv4() { "ipv4" } else { "ipv6" };
    // The mark is kube-proxy's own.
    let rule = format!(
        "meta nfproto {nfproto} fib daddr type local {protocol} dport {port} \
         meta mark set mark or 0x4000 dnat {family} to {to}"
    );
    let rules = format!(
        "chain prerouting {{ type nat hook prerouting priority dstnat;\n{rule}\n}}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat;\n\
         meta nfproto {nfproto} meta mark & 0x4000 == 0x4000 masquerade\n}}"
    );
    table(node, &format!("node-port-{protocol}-{family}-{port}"), &rules)
}

/// Makes connections to `port` of `pod` end at its port `to`, inside the pod, as a sidecar does: whoever looks for a
/// socket at `port` from outside finds none.
///
/// # Errors
/// As [`masquerade`].
pub fn redirect(pod: &Host, port: u16, to: u16) -> Result<()> {
    let rule = format!("tcp dport {port} redirect to :{to}");
    table(
        pod,
        &format!("sidecar-{port}"),
        &format!("chain prerouting {{ type nat hook prerouting priority dstnat;\n{rule}\n}}"),
    )
}

/// Takes [`redirect`] back, for new connections.
///
/// # Errors
/// As [`masquerade`].
pub fn no_redirect(pod: &Host, port: u16) -> Result<()> {
    no_table(pod, &format!("sidecar-{port}"))
}

/// Sets how `host` checks sources, on all devices that it has and those to come.
///
/// # Errors
/// The kernel refuses.
pub fn reverse_path(host: &Host, check: ReversePath) -> Result<()> {
    let value = match check {
        ReversePath::Off => "0",
        ReversePath::Strict => "1",
        ReversePath::Loose => "2",
    };
    host.within(|| {
        // The larger of `all` and the device's own counts: strict is strict only where no 2 is left.
        for entry in fs::read_dir("/proc/sys/net/ipv4/conf").context("reading the devices' settings")? {
            let path = entry?.path().join("rp_filter");
            fs::write(&path, value).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    })?;
    match check {
        ReversePath::Off | ReversePath::Loose => no_table(host, "reverse-path"),
        ReversePath::Strict => table(
            host,
            "reverse-path",
            "chain in { type filter hook prerouting priority raw;\n\
             meta nfproto ipv6 ip6 saddr != fe80::/10 ip6 daddr != ff00::/8 fib saddr . iif oif missing drop\n}",
        ),
    }
}

/// The table `inet NAME` with these chains, in place of one of that name.
fn table(host: &Host, name: &str, chains: &str) -> Result<()> {
    ensure!(name.len() <= 63, "{name} is too long for a table's name");
    let rules = format!("table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{chains}\n}}\n");
    nft(host, &rules)
}

fn no_table(host: &Host, name: &str) -> Result<()> {
    nft(host, &format!("table inet {name}\ndelete table inet {name}\n"))
}

/// Runs nftables rules on `host`, all or none.
///
/// # Errors
/// nft is missing, or refuses them: with its own words.
pub fn nft(host: &Host, rules: &str) -> Result<()> {
    let file = Path::new(FILES).join(format!("{}.nft", host.name()));
    fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    host.run(&format!("nft -f {}", file.display())).with_context(|| format!("rules:\n{rules}")).map(drop)
}

fn family(address: SocketAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// An address in letters that a table's name may have.
fn table_name(address: SocketAddr) -> String {
    let word = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    format!("{}-{}", address.ip(), address.port()).chars().map(word).collect()
}
