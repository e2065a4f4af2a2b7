//! The way of an answer that is the node's own: the kernel's routing table says it, because the tunnel that the question
//! came by leads nowhere but to the edge.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::helpers::generated::bpf_fib_lookup as lookup;
use lb_common::node::visit::Visit;
use lb_common::packet::Packet;
use lb_common::stage::Trail;
use lb_common::verdict::Reason;

use crate::access::Frame;

/// Whether there is a host with routes around: the loader says so. Without, an answer goes back where the question came
/// from.
#[unsafe(no_mangle)]
static ROUTES: u32 = 0;

#[inline(always)]
pub(crate) fn are_known() -> bool {
    // SAFETY: a valid static; volatile, because the loader writes it and the verifier takes it for a constant.
    unsafe { core::ptr::read_volatile(&raw const ROUTES) != 0 }
}

/// Length of `struct bpf_fib_lookup` in words.
const WORDS: usize = 8;
/// `AF_INET` and `AF_INET6` of Linux.
const FAMILIES: [u8; 2] = [2, 10];

/// Give the answer in the frame its link addresses and its interface. The kernel's table for packets that this host
/// forwards counts (bpf_fib_lookup: kernel 4.18); where it has no way, or no neighbour yet, there is no answer.
#[inline(never)]
pub(crate) fn send(frame: &mut Frame<true>, reason: Reason, trail: &mut Trail, visit: &Visit) -> Reason {
    // As words: the fields lie at 0 family, 12 tos or flow, 16 source, 32 destination, 52 source MAC, 58 destination MAC;
    // 8 holds the interface, before and after.
    let mut query = [0u64; WORDS];
    let (family, interface) = (FAMILIES[usize::from(visit.ipv6 != 0)], frame.interface());
    query[0] = u64::from(family);
    query[1] = u64::from(interface);
    let (source, destination) = (visit.vip.0, visit.client.0);
    query[2] = source[0];
    query[4] = destination[0];
    if visit.ipv6 != 0 {
        query[3] = source[1];
        query[5] = destination[1];
    }
    // SAFETY: the program's context, and a buffer of the structure's size and alignment.
    let found = unsafe {
        lookup(
            frame.context_pointer(),
            (&raw mut query).cast::<bpf_fib_lookup>(),
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    };
    if found != 0 {
        return Reason::AnswerUnroutable;
    }
    let [_, _, _, _, e, f, g, h] = query[6].to_ne_bytes();
    let [i, j, k, l, m, n, o, p] = query[7].to_ne_bytes();
    // Source, then destination there; in a frame the destination comes first.
    let macs = [k, l, m, n, o, p, e, f, g, h, i, j];
    trail.interface = query[1] & 0xffff_ffff;
    if frame.store(0, &macs) { reason } else { Reason::InconsistentMaps }
}

const _: () = assert!(size_of::<bpf_fib_lookup>() == 8 * WORDS);
