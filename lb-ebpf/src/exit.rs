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
            maps::longer_way(ctx);
            // The agent puts the program there before it attaches this one.
            finish(ctx, &frame, Reason::InconsistentMaps, trail)
        }
    }
}

/// Run one frame through the stages of the longer way.
#[inline(always)]
pub(crate) fn run_slow(ctx: &XdpContext) -> u32 {
    let mut frame = Frame::<true>::new(ctx.ctx);
    let mut trail = Trail::default();
    let reason = stage::run_slow(&mut frame, &Tables, &mut trail);
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
        Action::Answer => XDP_TX,
        Action::Send if trail.interface == u64::from(frame.interface()) => XDP_TX,
        Action::Send => match maps::redirect(trail.interface) {
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
