//! Asking the sockets of a pod's network namespace for a connection.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie};
use lb_common::address::Family;
use lb_common::maps::{NO_NAMESPACE, OWN_NAMESPACE};
use lb_common::packet::{Connection, Packet, Socket};

/// State of a listener in Linux (`TCP_LISTEN`).
const LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`: the namespace of the device that the packet came by.
const CURRENT_NAMESPACE: u64 = u64::MAX;

/// The start of `bpf_sock_tuple` for IPv4, as 32-bit words: addresses, then both ports.
#[repr(C, align(8))]
struct Tuple4([u32; 3]);
/// The same for IPv6.
#[repr(C, align(8))]
struct Tuple6([u32; 9]);

/// A header as the pod would get it, in words as it stands in a packet: what a SYN cookie is checked against.
#[repr(C, align(8))]
struct Words<const N: usize>([u32; N]);

/// A TCP header, likewise. What follows its ports lies at a multiple of 8, because LLVM copies it by words of 64 bits.
#[repr(C, align(8))]
struct Tcp {
    padding: u32,
    words: [u32; 5],
}

/// Ask. For programs on XDP and TC alike (bpf_skc_lookup_tcp: kernel 5.2, of another namespace by its id 4.20).
#[inline(always)]
pub(crate) fn ask<P: Packet>(
    packet: &P,
    ctx: *mut c_void,
    namespace: u32,
    connection: &Connection,
    l3: u32,
    l4: u32,
) -> Socket {
    let namespace = match namespace {
        NO_NAMESPACE => return Socket::None,
        OWN_NAMESPACE => CURRENT_NAMESPACE,
        id => u64::from(id),
    };
    let ports = ports(connection);
    match connection.family {
        Family::V4 => {
            let (client, pod) = (connection.client.words()[0], connection.pod.words()[0]);
            let mut tuple = Tuple4([client, pod, ports]);
            let sock = look(ctx, (&raw mut tuple).cast(), 12, namespace);
            conclude(sock, |sock| cookie_v4(packet, sock, pod, ports, l3, l4))
        }
        Family::V6 => {
            let (client, pod) = (connection.client.words(), connection.pod.words());
            let mut tuple = Tuple6([client[0], client[1], client[2], client[3], pod[0], pod[1], pod[2], pod[3], ports]);
            let sock = look(ctx, (&raw mut tuple).cast(), 36, namespace);
            conclude(sock, |sock| cookie_v6(packet, sock, pod, ports, l3, l4))
        }
    }
}

/// Both ports as they stand in a header.
#[inline(always)]
fn ports(connection: &Connection) -> u32 {
    connection.ports.to_be()
}

#[inline(always)]
fn look(ctx: *mut c_void, tuple: *mut bpf_sock_tuple, size: u32, namespace: u64) -> *mut bpf_sock {
    // SAFETY: the program's own context, and a tuple of that size; what comes back is released in `conclude`.
    unsafe { bpf_skc_lookup_tcp(ctx, tuple, size, namespace, 0) }
}

/// What a socket says, which is released then.
#[inline(always)]
fn conclude(sock: *mut bpf_sock, cookie: impl FnOnce(*mut bpf_sock) -> bool) -> Socket {
    if sock.is_null() {
        return Socket::None;
    }
    // SAFETY: a socket that was looked up and is not released yet.
    let state = unsafe { (*sock).state };
    let answer = if state != LISTEN || cookie(sock) { Socket::Connected } else { Socket::Listens };
    // SAFETY: once, on every path.
    unsafe { bpf_sk_release(sock.cast()) };
    answer
}

/// Whether the packet brings a valid cookie, with the pod's address and port in it.
#[inline(always)]
fn cookie_v4<P: Packet>(packet: &P, sock: *mut bpf_sock, pod: u32, ports: u32, l3: u32, l4: u32) -> bool {
    let (Some(ip), Some(tcp)) = (packet.load::<20>(l3), packet.load::<20>(l4)) else { return false };
    let (mut ip, mut tcp) = (Words(words::<20, 5>(ip)), Tcp { padding: 0, words: words::<20, 5>(tcp) });
    ip.0[4] = pod;
    tcp.words[0] = ports;
    // SAFETY: a listening socket, and two headers of these lengths (kernel 5.2; a looked-up `sock_common` 5.8).
    let checked =
        unsafe { bpf_tcp_check_syncookie(sock.cast(), (&raw mut ip).cast(), 20, (&raw mut tcp.words).cast(), 20) };
    checked == 0
}

#[inline(always)]
fn cookie_v6<P: Packet>(packet: &P, sock: *mut bpf_sock, pod: [u32; 4], ports: u32, l3: u32, l4: u32) -> bool {
    let (Some(ip), Some(tcp)) = (packet.load::<40>(l3), packet.load::<20>(l4)) else { return false };
    let (mut ip, mut tcp) = (Words(words::<40, 10>(ip)), Tcp { padding: 0, words: words::<20, 5>(tcp) });
    ip.0[6] = pod[0];
    ip.0[7] = pod[1];
    ip.0[8] = pod[2];
    ip.0[9] = pod[3];
    tcp.words[0] = ports;
    // SAFETY: as in `cookie_v4`.
    let checked =
        unsafe { bpf_tcp_check_syncookie(sock.cast(), (&raw mut ip).cast(), 40, (&raw mut tcp.words).cast(), 20) };
    checked == 0
}

/// Bytes of a packet as aligned words of the machine's order.
#[inline(always)]
fn words<const N: usize, const WORDS: usize>(bytes: [u8; N]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        if let [a, b, c, d] = four {
            *word = u32::from_ne_bytes([*a, *b, *c, *d]);
        }
    }
    words
}
