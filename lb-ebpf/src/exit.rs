//! From the context to the verdict: run the stages, count, send.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use lb_common::maps::Trace;
use lb_common::packet::Packet as _;
use lb_common::stage::{self, Roles, Trail};
use lb_common::verdict::{Action, Reason};

use crate::access::Frame;
use crate::maps::{self, Tables};

/// Not 0: every packet leaves a trace and a line in the log. The loader sets it; where it is 0, the verifier removes
/// what hangs on it.
#[unsafe(no_mangle)]
static DEBUG: u32 = 0;

#[inline(always)]
fn debugging() -> bool {
    // SAFETY: a valid static; volatile, because the loader writes it and the verifier takes it for a constant.
    unsafe { core::ptr::read_volatile(&raw const DEBUG) != 0 }
}

/// Run one frame through the stages.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext, roles: Roles) -> u32 {
    let mut frame = Frame::new(ctx.ctx);
    let mut trail = Trail::default();
    let mut reason = stage::run(roles, &mut frame, &Tables, &mut trail);
    let action = match reason.action() {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        Action::Answer => XDP_TX,
        Action::Send if trail.interface == frame.interface() => XDP_TX,
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
        let Trail { service, backend, slot, interface } = trail;
        maps::trace(Trace { reason: reason as u32, service, backend, slot });
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
