//! Packet bytes on TC: what the stack already holds, of many segments perhaps, with a checksum that may not be finished.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_pull_data,
    bpf_skb_store_bytes,
};
use lb_common::address::Family;
use lb_common::packet::{Connection, Packet, QUOTE, Socket, ethernet};

use crate::sockets;

/// The packet that a program on TC was called for.
///
/// Bytes are read where they lie, within bounds that are read anew at each access, and written by helpers, which see to
/// it that nobody else's copy of the packet changes. `SPLIT` as for [`crate::access::Frame`].
///
/// *Checksums.* A packet on its way out may have `CHECKSUM_PARTIAL`: its transport header holds the sum of the
/// pseudo-header alone, and the device adds the rest. `bpf_l4_csum_replace` knows, and takes a difference as such (size 0).
/// One on its way in may have `CHECKSUM_COMPLETE`: the device has summed up the whole frame. What changes with no
/// checksum in the frame to make up for it has to change that sum too. An address in an IPv6 header is such a change only
/// where no transport checksum follows it, but until kernel 6.16 `bpf_l4_csum_replace` changed the sum for it all the same
/// (BPF_F_IPV6 is the remedy of that version). Addresses of IPv6 headers are therefore stored with BPF_F_RECOMPUTE_CSUM:
/// the two changes cancel each other on every kernel, and where the transport's checksum stays as it is (later
/// fragments), the one that is left is right.
pub(crate) struct Skb<const SPLIT: bool> {
    skb: *mut __sk_buff,
}

impl<const SPLIT: bool> Skb<SPLIT> {
    /// The packet of a TC context, with `linear` bytes where they can be read if it has so many. The kernel moves them there
    /// if they are not, which is rare: it has read the headers itself.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff, linear: u32) -> Self {
        let packet = Self { skb };
        let (data, end) = packet.bounds();
        let want = packet.context().len.min(linear);
        if data + (want as usize) > end {
            // SAFETY: the context is valid. If memory is short, the accesses fail and the packet is left as it is.
            unsafe { bpf_skb_pull_data(skb, want) };
        }
        packet
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

    #[inline(always)]
    const fn context(&self) -> &__sk_buff {
        // SAFETY: the kernel gives every program on TC a valid context for as long as it runs.
        unsafe { &*self.skb }
    }

    /// A pointer to `N` bytes of the packet's linear part.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: u32) -> Option<*const [u8; N]> {
        let (data, end) = self.bounds();
        let start = data + offset as usize;
        if start + N > end { None } else { Some(start as *const [u8; N]) }
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], flags: u32) -> bool {
        // SAFETY: the context is valid, and `N` bytes are there; every packet pointer is made anew after this.
        unsafe { bpf_skb_store_bytes(self.skb, offset, bytes.as_ptr().cast(), N as u32, u64::from(flags)) == 0 }
    }

    /// Amend a transport's checksum by a difference; one that changes nothing is left out.
    #[inline(always)]
    fn amend(&mut self, at: u32, difference: u32, flags: u32) -> bool {
        if difference == 0 || difference == UNCHANGED {
            return true;
        }
        // SAFETY: as in `write`. Size 0 in the flags: `to` is a difference.
        unsafe { bpf_l4_csum_replace(self.skb, at, 0, u64::from(difference), u64::from(flags)) == 0 }
    }
}

/// What [`lb_common::checksum::difference`] makes of nothing new: zero, in ones' complement.
const UNCHANGED: u32 = 0xffff;

impl<const SPLIT: bool> Packet for Skb<SPLIT> {
    const CAN_ANSWER: bool = false;

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let pointer = self.at::<N>(offset)?;
        // SAFETY: `at` has checked that the bytes lie in the packet; the array has alignment 1.
        Some(unsafe { *pointer })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool {
        self.write(offset, bytes, 0)
    }

    #[inline(always)]
    fn store_address<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool {
        self.write(offset, bytes, BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn excess(&self, length: u32) -> Option<u32> {
        let have = self.context().len;
        (have >= length).then(|| have - length)
    }

    #[inline(always)]
    fn quote_sum(&self, offset: u32) -> Option<u32> {
        let pointer = self.at::<QUOTE>(offset)?;
        // SAFETY: the bytes lie in the packet, and the helper reads no others; no memory is given to compare with.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, pointer.cast_mut().cast(), QUOTE as u32, 0) };
        (sum >= 0).then_some(sum as u32)
    }

    /// No answer is made here, so that there is nothing to grow for.
    #[inline(always)]
    fn grow<const N: usize>(&mut self) -> bool {
        false
    }

    /// Between families the stack has to be told of the new one: kernel 6.3 and later (BPF_F_ADJ_ROOM_DECAP_L3_*). A
    /// second VLAN tag, which the stack leaves in the frame, is not looked behind.
    ///
    /// The outer header had no checksum of a transport, so that what the device says of checksums stays true of what is
    /// left.
    #[inline(always)]
    fn strip(&mut self, l3: u32, length: u32, family: Family) -> bool {
        if l3 != ethernet::LEN {
            return false;
        }
        let (ethertype, told) = match family {
            Family::V4 => (ethernet::IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV4),
            Family::V6 => (ethernet::IPV6, BPF_F_ADJ_ROOM_DECAP_L3_IPV6),
        };
        let changes = self.context().protocol != u32::from(ethertype);
        // Segments keep the size that they came with.
        let mut flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
        if changes {
            flags |= told;
        }
        // SAFETY: as in `write`.
        let shrunk =
            unsafe { bpf_skb_adjust_room(self.skb, -(length as i32), BPF_ADJ_ROOM_MAC, u64::from(flags)) == 0 };
        shrunk && (!changes || self.store(l3 - 2, &ethertype.to_ne_bytes()))
    }

    /// The stack takes padding off itself, as soon as it has read the IP header.
    #[inline(always)]
    fn trim(&mut self, _length: u32) -> bool {
        true
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.context().ifindex
    }

    #[inline(always)]
    fn socket(&self, namespace: u32, connection: &Connection, l3: u32, l4: u32) -> Socket {
        sockets::ask(self, self.skb.cast(), namespace, connection, l3, l4)
    }

    #[inline(always)]
    fn amend_header(&mut self, at: u32, difference: u32) -> bool {
        // SAFETY: as in `write`. Size 0: `to` is a difference.
        unsafe { bpf_l3_csum_replace(self.skb, at, 0, u64::from(difference), 0) == 0 }
    }

    #[inline(always)]
    fn amend_transport(&mut self, at: u32, pseudo: u32, plain: u32, zero_is_none: bool) -> bool {
        let zero = if zero_is_none { BPF_F_MARK_MANGLED_0 } else { 0 };
        self.amend(at, pseudo, BPF_F_PSEUDO_HDR | zero) && self.amend(at, plain, zero)
    }
}
