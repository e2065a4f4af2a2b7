//! Replies of a pod, packet by packet, against maps of plain collections.

use std::cell::RefCell;
use std::collections::HashMap;
use std::vec::Vec;

use super::*;
use crate::flow::{FlowKey, HashKeys};
use crate::maps::{
    Backend, FragmentKey, FragmentPorts, NextHop, Pod, PodCell, PodWord, RECORD_SHORT_NS, Record, RecordState,
    ReplyTarget, ReplyWord, ServiceId, ServiceWord, Settings,
};
use crate::packet::bytes::Bytes;
use crate::stage::{Trail, run_return, run_return_slow};

const POD: [u8; 4] = [10, 244, 1, 7];
const CLIENT: [u8; 4] = [192, 0, 2, 9];
const INSIDE: [u8; 4] = [10, 0, 0, 9];
const VIP: [u8; 4] = [198, 51, 100, 10];
const OTHER_VIP: [u8; 4] = [198, 51, 100, 11];
const NODE: [u8; 4] = [10, 0, 0, 1];

struct Tables {
    word: ReplyWord,
    target: ReplyTarget,
    settings: Settings,
    records: HashMap<RecordKey, Record>,
    fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    counted: RefCell<Vec<(ReplyId, u32)>>,
    now: u64,
}

/// A pod that serves TCP and UDP 8080 for the VIP's 80.
fn tables(recorded: bool, direct: bool) -> Tables {
    Tables {
        word: ReplyWord::new(3, recorded, direct),
        target: ReplyTarget { vip: Address::from_v4(VIP), port: 80, ..ReplyTarget::default() },
        settings: Settings { hash_keys: HashKeys::from_seed(1), mss: [1400, 1380] },
        records: HashMap::new(),
        fragments: RefCell::default(),
        counted: RefCell::default(),
        now: 1_000,
    }
}

impl Maps for Tables {
    fn prefilter(&self, _: u32) -> u64 {
        0
    }
    fn service(&self, _: &ServiceKey) -> Option<ServiceId> {
        None
    }
    fn word(&self, _: ServiceId) -> Option<ServiceWord> {
        None
    }
    fn slot(&self, _: u64) -> Option<u16> {
        None
    }
    fn backend(&self, _: u32) -> Option<&Backend> {
        None
    }
    fn next_hop(&self, _: u32) -> Option<&NextHop> {
        None
    }
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn is_tunnel_address(&self, address: &Address, _: Family) -> bool {
        *address == Address::from_v4(NODE)
    }
    fn is_trusted(&self, _: &Address, _: Family) -> bool {
        false
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }
    fn remember_fragment(&self, key: &FragmentKey, ports: FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, ports);
    }
    fn count_backend(&self, _: u32, _: u32) {}
    fn now(&self) -> u64 {
        2_000
    }
    fn now_coarse(&self) -> u64 {
        self.now
    }
    fn pod_word(&self, _: ServiceId) -> Option<PodWord> {
        None
    }
    fn pod_cell(&self, _: u64) -> Option<PodCell> {
        None
    }
    fn pod(&self, _: u32) -> Option<&Pod> {
        None
    }
    fn has_pod_device(&self, _: u32) -> bool {
        false
    }
    fn internal(&self, address: &Address, _: Family) -> u32 {
        u32::from(*address == Address::from_v4(INSIDE))
    }
    fn record<R>(&self, key: &RecordKey, look: impl FnOnce(&Record) -> R) -> Option<R> {
        self.records.get(key).map(look)
    }
    fn remember_flow(&self, _: &RecordKey, _: Record, _: bool) -> bool {
        false
    }
    fn count_pod(&self, _: u32, _: u32) {}
    fn may_answer(&self) -> bool {
        false
    }
    fn reply(&self, key: &ServiceKey) -> Option<ReplyId> {
        let ours = [TCP, UDP].map(|p| ServiceKey::new(Address::from_v4(POD), Family::V4, p, 8080));
        ours.contains(key).then_some(5)
    }
    fn reply_word(&self, id: ReplyId) -> Option<ReplyWord> {
        (id == 5).then_some(self.word)
    }
    fn reply_target(&self, index: u32) -> Option<&ReplyTarget> {
        (index == 3).then_some(&self.target)
    }
    fn count_reply(&self, id: ReplyId, bytes: u32) {
        self.counted.borrow_mut().push((id, bytes));
    }
}

fn fold(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A frame of IPv4; `fragment` is the header's field of flags and offset.
fn frame(source: [u8; 4], destination: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Bytes {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let fragment = fragment.to_be_bytes();
    let mut ip = std::vec![0x45, 0, length[0], length[1], 0, 7, fragment[0], fragment[1], 64, protocol, 0, 0];
    ip.extend([source, destination].concat());
    let check = (!fold(&ip)).to_be_bytes();
    ip[10..12].copy_from_slice(&check);
    Bytes([&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &ip, payload].concat())
}

/// A TCP header with options, from port 8080 to 40000, and its checksum.
fn tcp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], flags: u8, options: &[u8]) -> Vec<u8> {
    let ports = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    let words = (5 + options.len() / 4) as u8;
    let mut bytes = [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 2, words << 4, flags, 1, 0, 0, 0, 0, 0], options].concat();
    let pseudo = [&source[..], &destination, &[0, TCP, 0, bytes.len() as u8]].concat();
    let check = (!fold(&[&pseudo[..], &bytes].concat())).to_be_bytes();
    bytes[16..18].copy_from_slice(&check);
    bytes
}

fn reply(source: [u8; 4], port: u16, client: [u8; 4], flags: u8, options: &[u8]) -> Bytes {
    frame(source, client, TCP, 0, &tcp(source, client, [port, 40000], flags, options))
}

/// Through both ways as the programs do it.
fn run(packet: &mut Bytes, maps: &Tables) -> Reason {
    let mut trail = Trail::default();
    run_return(packet, maps, &mut trail).unwrap_or_else(|| run_return_slow(packet, maps, &mut Trail::default()))
}

#[track_caller]
fn stays(mut packet: Bytes, maps: &Tables, want: Reason) {
    let before = packet.clone();
    assert_eq!(run(&mut packet, maps), want);
    assert_eq!(packet, before);
    assert!(maps.counted.borrow().is_empty());
}

fn recorded(maps: &mut Tables, client: [u8; 4]) -> RecordKey {
    let ports = FlowKey::join(40000, 8080);
    let key = RecordKey::new(Address::from_v4(client), Address::from_v4(POD), Family::V4, TCP, ports);
    maps.records.insert(key, Record::new(Address::from_v4(OTHER_VIP), 443, 1));
    key
}

#[test]
fn a_reply_leaves_as_the_vips() {
    let maps = tables(false, false);
    let mut packet = reply(POD, 8080, CLIENT, ACK, &[]);
    assert_eq!(run(&mut packet, &maps), Reason::ReplyRewritten);
    assert_eq!(packet, reply(VIP, 80, CLIENT, ACK, &[]));
    assert_eq!(*maps.counted.borrow(), [(5, 40)]);
}

#[test]
fn what_is_not_a_services_stays() {
    let maps = tables(false, false);
    stays(reply(POD, 8081, CLIENT, ACK, &[]), &maps, Reason::NotOurs);
    stays(reply(NODE, 8080, CLIENT, ACK, &[]), &maps, Reason::NotOurs);
    stays(frame(POD, CLIENT, 47, 0, &[0; 40]), &maps, Reason::NotOurs);
    stays(reply(POD, 8080, INSIDE, ACK, &[]), &maps, Reason::NotOurs);
}

#[test]
fn a_record_decides_where_it_has_to() {
    for (recorded_word, client) in [(true, CLIENT), (true, INSIDE), (false, INSIDE)] {
        let mut maps = tables(recorded_word, false);
        let key = recorded(&mut maps, client);
        let mut packet = reply(POD, 8080, client, ACK, &[]);
        assert_eq!(run(&mut packet, &maps), Reason::ReplyRewritten);
        assert_eq!(packet, reply(OTHER_VIP, 443, client, ACK, &[]));
        assert_eq!((maps.records[&key].seen(), maps.records[&key].state()), (1_000, RecordState::New));
        let ends = [
            (FIN | ACK, RecordState::PodClosing),
            (ACK, RecordState::PodClosing),
            (RST, RecordState::Closed),
            (ACK, RecordState::Closed),
        ];
        for (flags, state) in ends {
            assert_eq!(run(&mut reply(POD, 8080, client, flags, &[]), &maps), Reason::ReplyRewritten);
            assert_eq!(maps.records[&key].state(), state, "an end is not taken back");
        }
    }
    stays(reply(POD, 8080, CLIENT, ACK, &[]), &tables(true, false), Reason::ReplyWithoutRecord);
    stays(reply(POD, 8080, INSIDE, ACK, &[]), &tables(true, false), Reason::NotOurs);
    stays(reply(POD, 8080, CLIENT, ACK, &[]), &tables(true, true), Reason::NotOurs);
}

/// Once a flow is closed, its ports may be those of a connection to the pod itself: the pod's answer to a SYN that made no
/// new record says so, for all that follows.
#[test]
fn a_closed_flow_decides_nothing_for_the_next_one() {
    let mut maps = tables(false, false);
    let key = recorded(&mut maps, INSIDE);
    for event in [RecordEvent::CLIENT_ENDS, RecordEvent::POD_ENDS] {
        maps.records[&key].note(1_000, event);
    }
    let mut last = reply(POD, 8080, INSIDE, ACK, &[]);
    assert_eq!(run(&mut last, &maps), Reason::ReplyRewritten, "the last packets of the old flow are the VIP's");
    maps.counted.borrow_mut().clear();
    for flags in [SYN | ACK, ACK, FIN | ACK] {
        stays(reply(POD, 8080, INSIDE, flags, &[]), &maps, Reason::NotOurs);
    }
    maps.records[&key].note(1_000, RecordEvent::BEGINS);
    assert_eq!(run(&mut reply(POD, 8080, INSIDE, SYN | ACK, &[]), &maps), Reason::ReplyRewritten);
}

#[test]
fn an_old_record_decides_only_where_nobody_else_may_be_meant() {
    for (client, direct, reason) in
        [(INSIDE, false, Reason::NotOurs), (CLIENT, true, Reason::NotOurs), (CLIENT, false, Reason::ReplyRewritten)]
    {
        let mut maps = tables(true, direct);
        let key = recorded(&mut maps, client);
        maps.now = RECORD_SHORT_NS + 2;
        let mut packet = reply(POD, 8080, client, ACK, &[]);
        assert_eq!(run(&mut packet, &maps), reason, "{client:?} {direct}");
        assert_eq!(maps.records[&key].seen(), RECORD_SHORT_NS + 2);
    }
}

#[test]
fn the_mss_of_a_syn_ack_is_lowered_wherever_it_stands() {
    let with = |mss: u16, place: usize| {
        let mut options = std::vec![1u8; 12];
        let [a, b] = mss.to_be_bytes();
        options[place..place + 4].copy_from_slice(&[2, 4, a, b]);
        options
    };
    for place in 0..=8 {
        for (mss, want) in [(1460, 1400), (1400, 1400), (536, 536)] {
            let maps = tables(false, false);
            let mut packet = reply(POD, 8080, CLIENT, SYN | ACK, &with(mss, place));
            assert_eq!(run(&mut packet, &maps), Reason::ReplyRewritten);
            assert_eq!(packet, reply(VIP, 80, CLIENT, SYN | ACK, &with(want, place)), "at {place}");
        }
    }
    // Neither without an option, nor behind the end of the list, nor where it is off, nor in any other packet.
    let mut off = tables(false, false);
    off.settings.mss = [0, 0];
    let behind_end = [0, 2, 4, 5, 180, 1, 1, 1];
    for (maps, flags, options) in [
        (tables(false, false), SYN | ACK, &[][..]),
        (tables(false, false), SYN | ACK, &behind_end),
        (tables(false, false), SYN | ACK, &[3, 0, 2, 4, 5, 180, 1, 1]),
        (off, SYN | ACK, &[2, 4, 5, 180]),
        (tables(false, false), SYN, &[2, 4, 5, 180]),
    ] {
        let mut packet = reply(POD, 8080, CLIENT, flags, options);
        assert_eq!(run(&mut packet, &maps), Reason::ReplyRewritten);
        assert_eq!(packet, reply(VIP, 80, CLIENT, flags, options), "{options:?}");
    }
}

#[test]
fn fragments_follow_their_first() {
    let maps = tables(false, false);
    let later = |source| frame(source, CLIENT, UDP, 1, &[7; 16]);
    stays(later(POD), &maps, Reason::NotOurs);
    // UDP from 8080 to 40000, without a checksum.
    let first =
        |source, port: [u8; 2]| frame(source, CLIENT, UDP, 0x2000, &[port[0], port[1], 0x9c, 0x40, 0, 24, 0, 0]);
    let mut packet = first(POD, [0x1f, 0x90]);
    assert_eq!(run(&mut packet, &maps), Reason::ReplyFragmentRewritten);
    assert_eq!(packet, first(VIP, [0, 80]));
    let mut packet = later(POD);
    assert_eq!(run(&mut packet, &maps), Reason::ReplyFragmentRewritten);
    assert_eq!(packet, later(VIP));
    // What is not ours leaves nothing behind.
    let maps = tables(false, false);
    stays(first(NODE, [0x1f, 0x90]), &maps, Reason::NotOurs);
    assert!(maps.fragments.borrow().is_empty());
}

#[test]
fn an_error_about_a_clients_packet_leaves_as_the_vips() {
    // Port unreachable, quoting a packet from the client to one of these.
    let error = |source: [u8; 4], quoted: [u8; 4], port: u16| {
        let quote = frame(CLIENT, quoted, TCP, 0, &tcp(CLIENT, quoted, [40000, port], ACK, &[]));
        let mut message = [&[3u8, 3, 0, 0, 0, 0, 0, 0][..], &quote.0[14..]].concat();
        let check = (!fold(&message)).to_be_bytes();
        message[2..4].copy_from_slice(&check);
        frame(source, CLIENT, ICMP, 0, &message)
    };
    for source in [POD, NODE] {
        let maps = tables(false, false);
        let mut packet = error(source, POD, 8080);
        assert_eq!(run(&mut packet, &maps), Reason::ReplyIcmpRewritten);
        assert_eq!(packet, error(VIP, VIP, 80));
        assert_eq!(maps.counted.borrow().len(), 1);
    }
    let maps = tables(false, false);
    stays(error(POD, POD, 8081), &maps, Reason::NotOurs);
    stays(error([10, 244, 1, 8], POD, 8080), &maps, Reason::NotOurs);
    let mut echo = error(POD, POD, 8080);
    echo.0[34] = 8;
    stays(echo, &maps, Reason::NotOurs);
}
