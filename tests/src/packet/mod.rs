//! Packets as people write them, as bytes, and as bytes explained.
//!
//! A packet is a list of layers in YAML, the outermost first:
//!
//! ```yaml
//! [vlan: {id: 10}, ipv4: {ttl: 57, ecn: ect0}, tcp: {flags: S}, payload: 20]
//! ```
//!
//! Lengths, checksums and next-protocol fields are filled in; each of them can be set instead, to make a packet that
//! is wrong. The builder knows nothing of the load balancer and shares no code with it, so that what it computes
//! checks what the project computes.
//!
//! What is left out has a default, chosen so that a mistake shows:
//!
//! | layer | defaults |
//! |---|---|
//! | `ethernet` (implied) | 02:00:00:00:00:0a → 02:00:00:00:00:0e |
//! | `ipv4` | client 203.0.113.7 → VIP 198.51.100.10, TTL 57, identification 0x1234, DF |
//! | `ipv6` | client 2001:db8:60::7 → VIP 2001:db8:10::10, hop limit 57, flow label 0x12345 |
//! | `tunnel4` | edge 192.0.2.1 → backend 10.0.0.11, TTL 64, identification 0, DF |
//! | `tunnel6` | edge 2001:db8::1 → backend fd00::11, hop limit 64, flow label `any` |
//! | `tcp`, `udp` | port 40000 → 80 (TCP), 53 (UDP); TCP flags A |
//!
//! - [`layer`]: the layers and their fields.
//! - [`build`]: layers → bytes.
//! - [`describe`](mod@describe): bytes → text for people, and what differs between two frames.
//! - [`fixture`]: files of packets with what is expected of them.
//! - [`mutate`](mod@mutate): packets that nobody wrote.

pub mod build;
mod build_ip;
mod build_transport;
pub mod describe;
pub mod fixture;
pub mod layer;
pub mod mutate;
mod text;
