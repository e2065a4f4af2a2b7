//! From the context to the verdict: run the stages, count, send.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use lb_common::maps::Trace;
use lb_common::packet::Packet;
use lb_common::stage::{self, Roles, Trail};
use lb_common::verdict::{Action, Reason};

use crate::access::Frame;
use crate::maps::{self, Tables};
use crate::routes;

/// Not 0: every packet leaves a trace and a line in the log. The loader sets it; where it is 0, the verifier removes
/// what hangs on it.
#[unsafe(no_mangle)]
static DEBUG: u32 = 0;

/// Whether packets leave traces.
#[inline(always)]
pub(crate) fn debugging() -> bool {
    // SAFETY: a valid static; volatile, because the loader writes it and the verifier takes it for a constant.
    unsafe { core::ptr::read_volatile(&raw const DEBUG) != 0 }
}

/// Run one frame through the stages.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext, roles: Roles) -> u32 {
    let mut frame = Frame::<false>::new(ctx.ctx);
    let mut trail = Trail::default();
    match stage::run(roles, &mut frame, &Tables, &mut trail) {
        Some(reason) => finish(ctx, &frame, reason, trail),
        None => {
            if trail.stage == 0 {
                maps::longer_way(ctx);
            } else {
                go_on_as_node(ctx, &trail);
            }
            // The agent puts the programs there before it attaches this one.
            finish(ctx, &frame, Reason::InconsistentMaps, trail)
        }
    }
}

/// Go on in the program of the node's longer way; returns only if there is none.
#[inline(always)]
fn go_on_as_node(ctx: &XdpContext, trail: &Trail) {
    if debugging() {
        note_backend(trail);
    }
    maps::longer_way_of_node(ctx);
}

/// Note the edge's choice, for the trace that the next program completes. A stack of its own.
#[inline(never)]
fn note_backend(trail: &Trail) {
    maps::trace(Trace { backend: trail.backend, ..Trace::default() });
}

/// Run one frame through the stages of the longer way.
#[inline(always)]
pub(crate) fn run_slow(ctx: &XdpContext) -> u32 {
    let mut frame = Frame::<true>::new(ctx.ctx);
    let mut trail = Trail::default();
    let mut reason = stage::run_slow(&mut frame, &Tables, &mut trail);
    if trail.stage != 0 {
        go_on_as_node(ctx, &trail);
        reason = Reason::InconsistentMaps;
    }
    finish_slow(ctx, &frame, reason, &trail)
}

/// Run one frame through the stages of the node's longer way.
#[inline(always)]
pub(crate) fn run_node(ctx: &XdpContext) -> u32 {
    let mut frame = Frame::<true>::new(ctx.ctx);
    let mut trail = Trail::default();
    let Some(visit) = maps::visit() else { return XDP_DROP };
    let mut reason = stage::run_node(&mut frame, &Tables, &mut trail, visit);
    if reason.action() == Action::Answer && routes::are_known() {
        reason = routes::send(&mut frame, reason, &mut trail, visit);
    }
    if debugging() {
        trail.backend = maps::last_trace().backend;
    }
    finish_slow(ctx, &frame, reason, &trail)
}

/// As [`finish`], with a stack of its own.
#[inline(never)]
fn finish_slow(ctx: &XdpContext, frame: &Frame<true>, reason: Reason, trail: &Trail) -> u32 {
    finish(ctx, frame, reason, *trail)
}

/// Send, count, and tell the kernel.
#[inline(always)]
fn finish<P: Packet>(ctx: &XdpContext, frame: &P, mut reason: Reason, trail: Trail) -> u32 {
    let action = match reason.action() {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        Action::Answer if trail.interface == 0 => XDP_TX,
        Action::Send | Action::Answer if trail.interface == u64::from(frame.interface()) => XDP_TX,
        Action::Send | Action::Answer => match maps::redirect(trail.interface) {
            Some(action) => action,
            None => {
                reason = Reason::NoDevice;
                XDP_DROP
            }
        },
    };
    // What is not ours costs nothing more; what is forwarded is counted for its backend already.
    if reason != Reason::NotOurs && reason != Reason::Forwarded {
        maps::count(reason);
    }
    if debugging() {
        let Trail { service, backend, slot, interface, message: _, mtu: _, pod, stage: _ } = trail;
        maps::trace(Trace { reason: reason as u64, service, backend, slot, pod });
        debug!(
            ctx,
            "in {} action {} reason {} service {} backend {} slot {} out {}",
            frame.interface(),
            action,
            reason as u32,
            service,
            backend,
            slot,
            interface
        );
    }
    action
}
