//! The programs of Beeline, on XDP and TC: the entry points, and nothing else.
//!
//! One program an interface: a device takes one native XDP program, and a host may be edge and node on the same one.
//! Which roles an interface has is a constant of its program, so that the verifier removes the other role's code.
//! lb-common decides; [`access`] and [`skb`] touch packets, [`maps`] the BPF maps, [`exit`] and [`exit_tc`] turn a reason
//! into an action.

#![no_std]
#![no_main]

mod access;
mod exit;
mod exit_tc;
mod maps;
mod routes;
mod skb;
mod sockets;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::stage::Roles;

/// For an interface that VIPs' packets come by.
#[xdp(frags)]
fn beeline_edge(ctx: XdpContext) -> u32 {
    exit::run(&ctx, Roles { edge: true, node: false })
}

/// For an interface that tunnel packets come by.
#[xdp(frags)]
fn beeline_node(ctx: XdpContext) -> u32 {
    exit::run(&ctx, Roles { edge: false, node: true })
}

/// For an interface that both come by.
#[xdp(frags)]
fn beeline_edge_node(ctx: XdpContext) -> u32 {
    exit::run(&ctx, Roles { edge: true, node: true })
}

/// The edge's longer way; the others call it by a tail call.
#[xdp(frags)]
fn beeline_slow(ctx: XdpContext) -> u32 {
    exit::run_slow(&ctx)
}

/// The node's longer way, likewise.
#[xdp(frags)]
fn beeline_node_slow(ctx: XdpContext) -> u32 {
    exit::run_node(&ctx)
}

/// For a device that pods' replies may leave by; on its way out.
#[classifier]
fn beeline_return(ctx: TcContext) -> i32 {
    exit_tc::run_return(&ctx)
}

/// The longer way of replies.
#[classifier]
fn beeline_return_slow(ctx: TcContext) -> i32 {
    exit_tc::run_return_slow(&ctx)
}

/// As [`beeline_node`], on the way in of a device that has no room for an XDP program.
#[classifier]
fn beeline_node_tc(ctx: TcContext) -> i32 {
    exit_tc::run_node(&ctx)
}

/// Its longer way.
#[classifier]
fn beeline_node_tc_slow(ctx: TcContext) -> i32 {
    exit_tc::run_node_slow(&ctx)
}

/// Passes everything. XDP_TX out of one end of a veth pair arrives only if the other end has a program (kernel 6.18
/// and before): test beds put this one there.
#[xdp(frags)]
fn beeline_pass(_ctx: XdpContext) -> u32 {
    aya_ebpf::bindings::xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics: the verifier would refuse a program with this loop in it.
    loop {}
}

/// The kernel gives some helpers to programs under the GPL alone.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
