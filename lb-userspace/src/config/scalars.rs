//! What the text of a field means. An error goes on after the value: `"10.0.0"` … `is not an IP address`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, PathBuf};
use std::time::Duration;

use super::MssClamp;
use crate::model::Prefix;

/// Longest name of a service: a Kubernetes namespace and name fit.
const MAX_SERVICE_NAME: usize = 253;
/// Longest name of a port, as of a DNS label (RFC 1035 §2.3.4) and of a port in Kubernetes.
const MAX_PORT_NAME: usize = 63;
/// Longest name of an interface: IFNAMSIZ less the NUL.
const MAX_INTERFACE_NAME: usize = 15;
/// Longest transition.
const MAX_TRANSITION: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bounds of an MSS: what every IPv4 host takes (RFC 9293 §3.7.1), and the largest IPv4 packet less its headers.
const MSS: std::ops::RangeInclusive<u16> = 536..=65_495;

/// The address of a VIP, a backend or a pod: one that a single host can have.
pub(super) fn unicast(text: &str) -> Result<IpAddr, String> {
    let address = ip(text)?;
    match kind(address) {
        Some(kind) => {
            Err(format!("is {kind} address; a VIP, a backend or a pod needs a unicast address that is routed"))
        }
        None => Ok(address),
    }
}

fn ip(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| match text.split_once('/') {
        Some((address, _)) if address.parse::<IpAddr>().is_ok() => {
            format!("is a prefix, not an IP address; write it as {address}")
        }
        _ => "is not an IP address".to_owned(),
    })?;
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(format!("is an IPv4-mapped IPv6 address; write it as {v4}")),
            None => Ok(address),
        },
        IpAddr::V4(_) => Ok(address),
    }
}

/// What makes an address unfit for a single host behind a router.
fn kind(address: IpAddr) -> Option<&'static str> {
    let (link_local, broadcast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if address.is_unspecified() {
        Some("the unspecified")
    } else if address.is_multicast() {
        Some("a multicast")
    } else if address.is_loopback() {
        Some("a loopback")
    } else if broadcast {
        Some("the broadcast")
    } else if link_local {
        Some("a link-local")
    } else {
        None
    }
}

/// A prefix; a bare address is the prefix of itself alone.
pub(super) fn prefix(text: &str) -> Result<Prefix, String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let parsed: IpAddr =
        address.parse().map_err(|_| "is not a prefix; write it as 10.0.0.0/16 or fd00::/64".to_owned())?;
    let bits = if parsed.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => bits,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|length| *length <= bits && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| format!("is not a prefix: its length must be a number from 0 to {bits}"))?,
    };
    if let IpAddr::V6(v6) = parsed
        && let (Some(v4), 96..) = (v6.to_ipv4_mapped(), length)
    {
        return Err(format!("is an IPv4-mapped IPv6 prefix; write it as {v4}/{}", length - 96));
    }
    let first = first_address(parsed, length);
    if first != parsed {
        return Err(format!("has bits set after its first {length}; write it as {first}/{length}"));
    }
    Ok(Prefix { address: parsed, length })
}

/// A prefix of one family that outer source addresses can be taken from.
pub(super) fn source_prefix(text: &str, ipv4: bool) -> Result<Prefix, String> {
    let prefix = prefix(text)?;
    if prefix.address.is_ipv4() != ipv4 {
        let (is, field) = if ipv4 { ("IPv6", "ipv6") } else { ("IPv4", "ipv4") };
        return Err(format!("is of the wrong family: write an {is} prefix under {field}"));
    }
    match kind(prefix.address) {
        Some(kind) => Err(format!("begins with {kind} address; packets need a source that answers can be routed to")),
        None => Ok(prefix),
    }
}

/// The address with the bits after its first `length` clear.
pub(super) fn first_address(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

/// Whether a prefix is all of its family.
pub(super) fn is_everyone(prefix: &Prefix) -> bool {
    prefix.length == 0
}

/// How people write a prefix.
pub(super) fn prefix_text(prefix: &Prefix) -> String {
    format!("{}/{}", prefix.address, prefix.length)
}

/// The name of a service: it stands in labels of metrics and in commands.
pub(super) fn service_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    if text.is_empty() || text.len() > MAX_SERVICE_NAME || !text.chars().all(fits) {
        return Err(format!("is not a name: 1 to {MAX_SERVICE_NAME} of the characters A-Z a-z 0-9 . _ / -"));
    }
    Ok(text.to_owned())
}

/// The name of a port; without a slash, because `service/port` names both.
pub(super) fn port_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > MAX_PORT_NAME || !text.chars().all(fits) {
        return Err(format!("is not a port's name: 1 to {MAX_PORT_NAME} of the characters A-Z a-z 0-9 . _ -"));
    }
    Ok(text.to_owned())
}

/// The name of an interface, as the kernel's `dev_valid_name` wants it.
pub(super) fn interface(text: &str) -> Result<String, String> {
    let refused = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    if text.is_empty() || text.len() > MAX_INTERFACE_NAME || matches!(text, "." | "..") || text.contains(refused) {
        return Err(format!(
            "is not an interface's name: 1 to {MAX_INTERFACE_NAME} bytes without space, slash or colon"
        ));
    }
    Ok(text.to_owned())
}

/// How long a transition may last: `24h`, `1h30m`.
pub(super) fn transition(text: &str) -> Result<Duration, String> {
    let duration = duration(text).ok_or("is not a time; write it as 24h, 90m, 1h30m or 30s")?;
    if !(Duration::from_secs(1)..=MAX_TRANSITION).contains(&duration) {
        return Err("is not a time from 1s to 30d".into());
    }
    Ok(duration)
}

fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0u64;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let (digits, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let unit = match tail.as_bytes().first()? {
            b'd' => 86_400,
            b'h' => 3_600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        // Each unit once, the larger first: 30m1h is a slip more often than a wish.
        if unit >= last_unit {
            return None;
        }
        last_unit = unit;
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = &tail[1..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(total))
}

/// `auto`, `off` or a number of bytes.
pub(super) fn mss_clamp(text: &str) -> Result<MssClamp, String> {
    match text {
        "auto" => Ok(MssClamp::Auto),
        "off" => Ok(MssClamp::Off),
        _ => match text.parse() {
            Ok(bytes) if MSS.contains(&bytes) => Ok(MssClamp::Bytes(bytes)),
            _ => Err(format!("is not auto, off or a number of bytes from {} to {}", MSS.start(), MSS.end())),
        },
    }
}

/// Where pins live.
pub(super) fn pin_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("is not an absolute path; write it as /sys/fs/bpf/beeline".into());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("has .. in it; write the path without".into());
    }
    let ours = |part: Component<'_>| part.as_os_str().to_string_lossy().starts_with("beeline");
    if !path.components().any(ours) {
        return Err(
            "is not under a folder named beeline*; write it as /sys/fs/bpf/beeline, or another name that begins so"
                .into(),
        );
    }
    Ok(path)
}

/// Where to listen.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "is not an address with a port; write it as \"127.0.0.1:9469\" or \"[::1]:9469\"".to_owned())
}
