//! Packet bytes: all pointer arithmetic of the programs.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use lb_common::address::Family;
use lb_common::packet::{Connection, Packet, QUOTE, Socket, ethernet};

use crate::sockets;

/// The frame that the program was called for.
///
/// Its bounds are read from the context at each access, never kept: the helpers that move them make the verifier forget
/// every packet pointer.
///
/// A program with functions of its own must be `SPLIT`: LLVM would read the bounds before a call and pass them as
/// numbers, which the verifier does not take for packet pointers. Volatile reads stay where they are.
pub(crate) struct Frame<const SPLIT: bool> {
    ctx: *mut xdp_md,
}

impl<const SPLIT: bool> Frame<SPLIT> {
    /// The frame of an XDP context, which the kernel hands to the program.
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let context = self.context();
        if !SPLIT {
            return (context.data as usize, context.data_end as usize);
        }
        // SAFETY: a valid reference.
        let data = unsafe { (&raw const context.data).read_volatile() };
        // SAFETY: a valid reference.
        let end = unsafe { (&raw const context.data_end).read_volatile() };
        (data as usize, end as usize)
    }

    /// The context, for helpers.
    #[inline(always)]
    pub(crate) const fn context_pointer(&self) -> *mut c_void {
        self.ctx.cast()
    }

    #[inline(always)]
    const fn context(&self) -> &xdp_md {
        // SAFETY: the kernel gives every XDP program a valid context for as long as it runs.
        unsafe { &*self.ctx }
    }

    /// A pointer to `N` bytes of the frame's linear part.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: u32) -> Option<*mut [u8; N]> {
        let (data, end) = self.bounds();
        let start = data + offset as usize;
        if start + N > end { None } else { Some(start as *mut [u8; N]) }
    }
}

impl<const SPLIT: bool> Packet for Frame<SPLIT> {
    const CAN_ANSWER: bool = true;

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let pointer = self.at::<N>(offset)?;
        // SAFETY: `at` has checked that the bytes lie in the packet; the array has alignment 1.
        Some(unsafe { *pointer })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool {
        let Some(pointer) = self.at::<N>(offset) else { return false };
        // SAFETY: as in `load`; nothing else refers to the packet while the program runs.
        unsafe { *pointer = *bytes };
        true
    }

    #[inline(always)]
    fn excess(&self, length: u32) -> Option<u32> {
        let (data, end) = self.bounds();
        let mut have = (end - data) as u32;
        if have == length {
            // Nearly every frame ends here. What else the kernel may hold of one in several pieces is left behind it.
            return Some(0);
        }
        if frags() {
            // SAFETY: the context is valid; the helper reads the length of linear part and fragments (kernel 5.18).
            have = unsafe { bpf_xdp_get_buff_len(self.ctx) } as u32;
        }
        (have >= length).then(|| have - length)
    }

    #[inline(always)]
    fn quote_sum(&self, offset: u32) -> Option<u32> {
        let pointer = self.at::<QUOTE>(offset)?;
        // SAFETY: the bytes lie in the packet, and the helper reads no others; no memory is given to compare with.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, pointer.cast(), QUOTE as u32, 0) };
        (sum >= 0).then_some(sum as u32)
    }

    #[inline(always)]
    fn grow<const N: usize>(&mut self) -> bool {
        // SAFETY: the context is valid; every packet pointer is made anew after this.
        unsafe { bpf_xdp_adjust_head(self.ctx, -(N as i32)) == 0 }
    }

    #[inline(always)]
    fn strip(&mut self, l3: u32, length: u32, family: Family) -> bool {
        let (Some(macs), Some(tags)) = (self.load::<12>(0), ethernet::tags(self, l3)) else { return false };
        // SAFETY: as in `grow`.
        let shrunk = unsafe { bpf_xdp_adjust_head(self.ctx, length as i32) == 0 };
        shrunk && ethernet::write(self, l3, &macs, &tags, family)
    }

    #[inline(always)]
    fn trim(&mut self, length: u32) -> bool {
        // SAFETY: as in `grow`.
        unsafe { bpf_xdp_adjust_tail(self.ctx, -(length as i32)) == 0 }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.context().ingress_ifindex
    }

    #[inline(always)]
    fn socket(&self, namespace: u32, connection: &Connection, l3: u32, l4: u32) -> Socket {
        sockets::ask(self, self.ctx.cast(), namespace, connection, l3, l4)
    }
}

/// Whether the kernel hands frames in several pieces to XDP programs; the loader says so (5.18).
#[unsafe(no_mangle)]
static XDP_FRAGS: u32 = 0;

#[inline(always)]
fn frags() -> bool {
    // SAFETY: a valid static; volatile, because the loader writes it and the verifier takes it for a constant.
    unsafe { core::ptr::read_volatile(&raw const XDP_FRAGS) != 0 }
}
