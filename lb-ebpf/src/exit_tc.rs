//! As [`crate::exit`], on TC. What passes goes on to the programs and filters behind ours, never past them.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use lb_common::maps::Trace;
use lb_common::packet::{OFFSET_MASK, Packet};
use lb_common::stage::{self, Roles, Trail};
use lb_common::verdict::{Action, Reason};

use crate::exit::debugging;
use crate::maps::{self, Tables};
use crate::skb::Skb;

/// How much of a packet the way of nearly all packets reads: Ethernet with two tags, IPv6 and TCP.
const HEADERS: u32 = 22 + 40 + 20;
/// The same for a packet in a tunnel.
const TUNNEL_HEADERS: u32 = HEADERS + 40;

/// Run a packet that leaves this host through the stages.
#[inline(always)]
pub(crate) fn run_return(ctx: &TcContext) -> i32 {
    let mut packet = Skb::<false>::new(ctx.skb.skb, HEADERS);
    let mut trail = Trail::default();
    match stage::run_return(&mut packet, &Tables, &mut trail) {
        Some(reason) => finish(ctx, &packet, reason, trail),
        None => {
            maps::longer_way_out(ctx);
            // The agent puts the program there before it attaches this one.
            finish(ctx, &packet, Reason::InconsistentMaps, trail)
        }
    }
}

/// Run a packet that leaves this host through the stages of the longer way.
#[inline(always)]
pub(crate) fn run_return_slow(ctx: &TcContext) -> i32 {
    let mut packet = Skb::<true>::new(ctx.skb.skb, OFFSET_MASK + 1);
    let mut trail = Trail::default();
    let reason = stage::run_return_slow(&mut packet, &Tables, &mut trail);
    finish_slow(ctx, &packet, reason, &trail)
}

/// Run a packet that comes in by a device without an XDP program through the node's stages.
#[inline(always)]
pub(crate) fn run_node(ctx: &TcContext) -> i32 {
    let mut packet = Skb::<false>::new(ctx.skb.skb, TUNNEL_HEADERS);
    let mut trail = Trail::default();
    match stage::run(Roles { edge: false, node: true }, &mut packet, &Tables, &mut trail) {
        Some(reason) => finish(ctx, &packet, reason, trail),
        None => {
            maps::longer_way_of_node_tc(ctx);
            finish(ctx, &packet, Reason::InconsistentMaps, trail)
        }
    }
}

/// Run a packet that comes in by such a device through the stages of the node's longer way.
#[inline(always)]
pub(crate) fn run_node_slow(ctx: &TcContext) -> i32 {
    let mut packet = Skb::<true>::new(ctx.skb.skb, OFFSET_MASK + 1);
    let mut trail = Trail::default();
    let Some(visit) = maps::visit() else { return TC_ACT_SHOT };
    let reason = stage::run_node(&mut packet, &Tables, &mut trail, visit);
    finish_slow(ctx, &packet, reason, &trail)
}

/// As [`finish`], with a stack of its own.
#[inline(never)]
fn finish_slow(ctx: &TcContext, packet: &Skb<true>, reason: Reason, trail: &Trail) -> i32 {
    finish(ctx, packet, reason, *trail)
}

/// Count, and tell the kernel.
#[inline(always)]
fn finish<P: Packet>(ctx: &TcContext, packet: &P, mut reason: Reason, trail: Trail) -> i32 {
    let action = match reason.action() {
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
        // Neither the node nor a reply is sent anywhere from here, and nothing is answered (`Packet::CAN_ANSWER`).
        Action::Answer | Action::Send => {
            reason = Reason::InconsistentMaps;
            TC_ACT_SHOT
        }
    };
    // What is not ours costs nothing more.
    if reason != Reason::NotOurs {
        maps::count(reason);
    }
    if debugging() {
        let Trail { service, backend, slot, interface: _, message: _, mtu: _, pod, stage: _ } = trail;
        maps::trace(Trace { reason: reason as u64, service, backend, slot, pod });
        debug!(ctx, "at {} action {} reason {} pod {}", packet.interface(), action, reason as u32, pod);
    }
    action
}
