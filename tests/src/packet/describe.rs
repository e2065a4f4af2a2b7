//! Bytes → text for people: what a frame says, layer by layer, and what differs between two frames.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::build::{Frame, checksum};
use super::layer::Mac;

/// A frame in words, one layer a line. Never fails: what cannot be read is shown as bytes.
#[must_use]
pub fn describe(frame: &[u8]) -> String {
    let mut text = Description { out: String::new(), depth: 0 };
    text.ethernet(frame);
    text.out
}

/// What differs between the frame that was wanted and these bytes, for people; nothing if they match.
#[must_use]
pub fn difference(wanted: &Frame, got: &[u8]) -> Option<String> {
    if wanted.matches(got) {
        return None;
    }
    let differs = |at: &usize| {
        let (a, b, mask) = (wanted.bytes.get(*at), got.get(*at), wanted.mask.get(*at).copied().unwrap_or(0xff));
        a.zip(b).is_none_or(|(a, b)| (a ^ b) & mask != 0)
    };
    let places: Vec<usize> = (0..wanted.bytes.len().max(got.len())).filter(differs).collect();
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} bytes differ, the first at {} (wanted {} bytes, got {})",
        places.len(),
        places.first().copied().unwrap_or_default(),
        wanted.bytes.len(),
        got.len()
    );
    for (title, frame) in [("wanted", &wanted.bytes[..]), ("got", got)] {
        let _ = write!(out, "{title}:\n{}{}", describe(frame), dump(frame, &places));
    }
    Some(out)
}

/// Bytes in hexadecimal, sixteen a line; those at `marked` places in brackets.
fn dump(bytes: &[u8], marked: &[usize]) -> String {
    let mut out = String::new();
    for (line, chunk) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "  {:4} ", line * 16);
        for (column, byte) in chunk.iter().enumerate() {
            let differs = marked.binary_search(&(line * 16 + column)).is_ok();
            let _ = if differs { write!(out, "[{byte:02x}]") } else { write!(out, " {byte:02x} ") };
        }
        out.push('\n');
    }
    out
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn mac(bytes: &[u8], at: usize) -> Mac {
    Mac(std::array::from_fn(|i| bytes[at + i]))
}

fn ecn(class: u8) -> &'static str {
    ["notEct", "ect1", "ect0", "ce"][usize::from(class & 3)]
}

/// The pseudo-header's addresses, as they stand in the IP header.
type Addresses<'a> = &'a [u8];

struct Description {
    out: String,
    depth: usize,
}

impl Description {
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "  {:indent$}{text}", "", indent = self.depth * 2);
    }

    fn rest(&mut self, name: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            let start = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
            let more = if bytes.len() > 16 { " …" } else { "" };
            self.line(&format!("{name}: {} bytes: {start}{more}", bytes.len()));
        }
    }

    fn ethernet(&mut self, frame: &[u8]) {
        if frame.len() < 14 {
            return self.rest("cut Ethernet header", frame);
        }
        let (src, dst) = (mac(frame, 6), mac(frame, 0));
        let mut ethertype = be16(frame, 12);
        self.line(&format!("ethernet: {src} > {dst} ethertype {ethertype:#06x}"));
        let mut at = 14;
        while matches!(ethertype, 0x8100 | 0x88a8) && frame.len() >= at + 4 {
            let control = be16(frame, at);
            ethertype = be16(frame, at + 2);
            let (id, pcp, dei) = (control & 0xfff, control >> 13, control >> 12 & 1);
            self.line(&format!("vlan: id {id} pcp {pcp} dei {dei} ethertype {ethertype:#06x}"));
            at += 4;
        }
        let rest = &frame[at..];
        let read = match ethertype {
            0x0800 => self.ipv4(rest),
            0x86dd => self.ipv6(rest),
            0x0806 => self.arp(rest),
            _ => 0,
        };
        self.rest("after it", &rest[read..]);
    }

    /// Gives the number of bytes read; so do the other layers that may be padded.
    fn arp(&mut self, bytes: &[u8]) -> usize {
        if bytes.len() < 28 {
            return 0;
        }
        let address = |at: usize| Ipv4Addr::from(be32(bytes, at));
        let (operation, sender_mac, target_mac) = (be16(bytes, 6), mac(bytes, 8), mac(bytes, 18));
        self.line(&format!(
            "arp: operation {operation} sender {} {sender_mac} target {} {target_mac}",
            address(14),
            address(24)
        ));
        28
    }

    fn ipv4(&mut self, bytes: &[u8]) -> usize {
        if bytes.len() < 20 {
            return 0;
        }
        let (length, total) = (usize::from(bytes[0] & 15) * 4, usize::from(be16(bytes, 2)));
        let flags = be16(bytes, 6);
        let set = [(0x8000, " reserved"), (0x4000, " DF"), (0x2000, " MF")];
        let names: String = set.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
        let sum = match bytes.get(..length.max(20)).map(|header| checksum(&[header])) {
            Some(0) => "ok",
            _ => "WRONG",
        };
        self.line(&format!(
            "ipv4: {} > {} version {} ihl {} dscp {} ecn {} totalLength {total} id {:#06x}{names} offset {} ttl {} \
             protocol {} checksum {:#06x} {sum}",
            Ipv4Addr::from(be32(bytes, 12)),
            Ipv4Addr::from(be32(bytes, 16)),
            bytes[0] >> 4,
            bytes[0] & 15,
            bytes[1] >> 2,
            ecn(bytes[1]),
            be16(bytes, 4),
            (flags & 0x1fff) * 8,
            bytes[8],
            bytes[9],
            be16(bytes, 10),
        ));
        if length < 20 || total < length || bytes.len() < length {
            return 20;
        }
        let end = total.min(bytes.len());
        self.rest("options", &bytes[20..length]);
        let whole = flags & 0x3fff & !0x4000 == 0 && total <= bytes.len();
        let first = flags & 0x1fff == 0;
        self.layer(bytes[9], &bytes[length.min(end)..end], &bytes[12..20], whole, first);
        end
    }

    fn ipv6(&mut self, bytes: &[u8]) -> usize {
        if bytes.len() < 40 {
            return 0;
        }
        let address = |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| bytes[at + i]));
        let first = be32(bytes, 0);
        let class = (first >> 20) as u8;
        let length = usize::from(be16(bytes, 4));
        self.line(&format!(
            "ipv6: {} > {} version {} dscp {} ecn {} flowLabel {:#07x} payloadLength {length} nextHeader {} \
             hopLimit {}",
            address(8),
            address(24),
            first >> 28,
            class >> 2,
            ecn(class),
            first & 0xf_ffff,
            bytes[6],
            bytes[7],
        ));
        let end = (40 + length).min(bytes.len());
        self.extensions(bytes[6], &bytes[40..end], &bytes[8..40], 40 + length <= bytes.len());
        end
    }

    fn extensions(&mut self, mut protocol: u8, mut bytes: &[u8], addresses: Addresses<'_>, mut whole: bool) {
        let mut first = true;
        while matches!(protocol, 0 | 43 | 44 | 51 | 60) && bytes.len() >= 8 && first {
            let length = match protocol {
                44 => 8,
                51 => (usize::from(bytes[1]) + 2) * 4,
                _ => (usize::from(bytes[1]) + 1) * 8,
            };
            let name = match protocol {
                0 => "hopByHop",
                43 => "routing",
                44 => "fragment",
                51 => "auth",
                _ => "destinationOptions",
            };
            if protocol == 44 {
                let offset = be16(bytes, 2);
                (whole, first) = (whole && offset & !6 == 0, offset & !7 == 0);
                let (id, more) = (be32(bytes, 4), offset & 1);
                self.line(&format!("fragment: nextHeader {} offset {} more {more} id {id:#x}", bytes[0], offset & !7));
            } else {
                self.line(&format!("{name}: nextHeader {} {length} bytes", bytes[0]));
            }
            protocol = bytes[0];
            bytes = bytes.get(length..).unwrap_or_default();
        }
        self.layer(protocol, bytes, addresses, whole, first);
    }

    /// What an IP header carries. The checksum is judged when the message is `whole`.
    fn layer(&mut self, protocol: u8, bytes: &[u8], addresses: Addresses<'_>, whole: bool, first: bool) {
        let pseudo = |sum_at: usize| {
            let length = (bytes.len() as u32).to_be_bytes();
            match (whole, be16(bytes, sum_at)) {
                (false, sum) => format!("{sum:#06x}"),
                (true, 0) if protocol == 17 => "none".into(),
                (true, sum) if checksum(&[addresses, &length, &[0, 0, 0, protocol], bytes]) == 0 => {
                    format!("{sum:#06x} ok")
                }
                (true, sum) => format!("{sum:#06x} WRONG"),
            }
        };
        match protocol {
            _ if !first => self.rest("payload", bytes),
            4 => {
                let read = self.ipv4(bytes);
                self.rest("after it", &bytes[read..]);
            }
            41 => {
                let read = self.ipv6(bytes);
                self.rest("after it", &bytes[read..]);
            }
            6 if bytes.len() >= 20 => {
                let sum = pseudo(16);
                self.tcp(bytes, &sum);
            }
            17 if bytes.len() >= 8 => {
                let sum = pseudo(6);
                let (src, dst, length) = (be16(bytes, 0), be16(bytes, 2), be16(bytes, 4));
                self.line(&format!("udp: {src} > {dst} length {length} checksum {sum}"));
                self.rest("payload", &bytes[8..]);
            }
            1 if bytes.len() >= 8 => {
                let verdict = if !whole {
                    ""
                } else if checksum(&[bytes]) == 0 {
                    " ok"
                } else {
                    " WRONG"
                };
                let sum = format!("{:#06x}{verdict}", be16(bytes, 2));
                self.icmp("icmp", bytes, &sum, matches!(bytes[0], 3 | 4 | 5 | 11 | 12));
            }
            58 if bytes.len() >= 8 => {
                let sum = pseudo(2);
                self.icmp("icmpv6", bytes, &sum, bytes[0] < 128);
            }
            _ => self.rest(&format!("protocol {protocol}"), bytes),
        }
    }

    fn tcp(&mut self, bytes: &[u8], sum: &str) {
        let flags: String =
            "FSRPAUEC".chars().enumerate().filter(|(bit, _)| bytes[13] >> bit & 1 == 1).map(|(_, c)| c).collect();
        self.line(&format!(
            "tcp: {} > {} flags {flags} seq {} ack {} dataOffset {} window {:#06x} checksum {sum}",
            be16(bytes, 0),
            be16(bytes, 2),
            be32(bytes, 4),
            be32(bytes, 8),
            bytes[12] >> 4,
            be16(bytes, 14),
        ));
        let header = (usize::from(bytes[12] >> 4) * 4).clamp(20, bytes.len());
        self.rest("options", &bytes[20..header]);
        self.rest("payload", &bytes[header..]);
    }

    fn icmp(&mut self, name: &str, bytes: &[u8], sum: &str, is_error: bool) {
        let (kind, code, rest) = (bytes[0], bytes[1], be32(bytes, 4));
        self.line(&format!("{name}: type {kind} code {code} rest {rest:#x} checksum {sum}"));
        let data = &bytes[8..];
        if !is_error {
            return self.rest("payload", data);
        }
        self.line(&format!("quotes {} bytes:", data.len()));
        self.depth += 1;
        let read = match data.first().map(|byte| byte >> 4) {
            Some(4) => self.ipv4(data),
            Some(6) => self.ipv6(data),
            _ => 0,
        };
        self.rest("after it", &data[read..]);
        self.depth -= 1;
    }
}

#[cfg(test)]
mod tests;
