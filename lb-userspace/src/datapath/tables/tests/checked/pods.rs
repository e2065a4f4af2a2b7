//! The pods' part of the store that looks at everything.

use std::collections::BTreeSet;

use anyhow::Result;
use lb_common::maps::{
    INTERNAL_NETWORK, NO_NAMESPACE, Pod, PodCell, PodWord, ReplyId, ReplyTarget, ReplyWord, SLOTS_UNIT, ServiceId,
    ServiceKey,
};

use super::{Checked, Thing};
use crate::datapath::store::PodStore;
use crate::model::Prefix;

impl Checked {
    /// Follow a service's pods as a node's packets do.
    pub(super) fn follow_pods(&self, word: PodWord, followed: &mut BTreeSet<Thing>) {
        let Some(word) = word.pods() else { return };
        let mut once = |thing| assert!(followed.insert(thing), "{thing:?} is of two services");
        let mut cells = vec![PodCell(0); 1 << word.log2_slots()];
        self.maps.read_pod_cells(word.slots(), &mut cells);
        let unit = (word.slots() / u64::from(SLOTS_UNIT)) as u32;
        (unit..unit + cells.len() as u32 / SLOTS_UNIT).for_each(|unit| once(Thing::PodSlots(unit)));
        let size = 1u32 << self.maps.pod(word.backends()).log2_region;
        let mut devices = BTreeSet::new();
        for index in word.backends()..word.backends() + size {
            once(Thing::Pod(index));
            let entry = self.maps.pod(index);
            if entry.port == 0 {
                assert_eq!(entry, Pod::default(), "an entry that is not in use");
                continue;
            }
            once(Thing::PodCounter(entry.counter));
            assert_eq!(1 << entry.log2_region, size, "entries of one region do not agree");
            if entry.device == 0 {
                assert_eq!(entry.namespace, NO_NAMESPACE, "a namespace without a way there");
            } else {
                devices.insert(Thing::PodDevice(entry.device));
            }
        }
        followed.extend(devices);
        for cell in cells {
            let [last, first] = cell.formers();
            assert_eq!(cell.0 >> 48, 0, "the upper bits of a slot");
            assert!(last != PodCell::NONE || first == PodCell::NONE, "the formers have a gap");
            assert!(last == PodCell::NONE || last != first, "a former pod stands twice");
            for place in [cell.owner(), last, first].into_iter().filter(|place| *place != PodCell::NONE) {
                assert!(u32::from(place) < size, "a slot names pod {place} of {size}");
                let entry = self.maps.pod(word.backends() + u32::from(place));
                assert_ne!(entry.port, 0, "a slot names the unused pod {place}");
            }
            assert!(cell.owner() != last && cell.owner() != first, "an owner is its own former");
        }
    }

    pub(super) fn follow_replies(&self, followed: &mut BTreeSet<Thing>) {
        for (key, id) in self.maps.replies().expect("host maps can be read") {
            assert!(followed.insert(Thing::Reply(id)), "id {id} is of two pods");
            let target = self.maps.reply_word(id).target();
            assert!(followed.insert(Thing::ReplyTarget(target)), "target {target} is of two pods");
            let target = self.maps.reply_target(target);
            assert!((1..=0xffff).contains(&target.port), "replies from port {}", target.port);
            assert_eq!(target.ipv6 == 0, key.family() == lb_common::address::Family::V4, "replies of another family");
        }
        for (prefix, flags) in self.maps.internal().expect("host maps can be read") {
            assert_ne!(flags & INTERNAL_NETWORK, 0, "{prefix:?} is in the trie and says nothing");
        }
    }
}

impl PodStore for Checked {
    fn clock(&self) -> u64 {
        self.maps.clock()
    }

    fn pod_word(&self, id: ServiceId) -> PodWord {
        PodStore::pod_word(&self.maps, id)
    }

    fn set_pod_word(&mut self, id: ServiceId, word: PodWord) {
        let thing = Some(Thing::Id(id)).filter(|thing| !self.followed.contains(thing));
        self.set("set_pod_word", thing.as_slice(), |maps| maps.set_pod_word(id, word));
    }

    fn read_pod_cells(&self, base: u64, cells: &mut [PodCell]) {
        self.maps.read_pod_cells(base, cells);
    }

    fn write_pod_cells(&mut self, base: u64, cells: &[PodCell]) {
        let unit = (base / u64::from(SLOTS_UNIT)) as u32;
        let units: Vec<_> = (unit..unit + cells.len() as u32 / SLOTS_UNIT).map(Thing::PodSlots).collect();
        self.set("write_pod_cells", &units, |maps| maps.write_pod_cells(base, cells));
    }

    fn set_pod_cell(&mut self, index: u64, cell: PodCell) {
        let mut before = [PodCell(0)];
        self.maps.read_pod_cells(index, &mut before);
        assert_eq!(before[0].owner(), cell.owner(), "an owner changes in place");
        self.set("set_pod_cell", &[], |maps| maps.set_pod_cell(index, cell));
    }

    fn pod(&self, index: u32) -> Pod {
        PodStore::pod(&self.maps, index)
    }

    fn write_pod(&mut self, index: u32, pod: &Pod) {
        self.set("write_pod", &[Thing::Pod(index)], |maps| maps.write_pod(index, pod));
    }

    fn set_pod_device(&mut self, index: u32, device: u32, namespace: u32) {
        self.set("set_pod_device", &[], |maps| maps.set_pod_device(index, device, namespace));
    }

    fn reset_pod_counter(&mut self, counter: u32) -> Result<()> {
        self.write("reset_pod_counter", &[Thing::PodCounter(counter)], |maps| maps.reset_pod_counter(counter))
    }

    fn pod_device(&self, number: u32) -> Option<u32> {
        self.maps.pod_device(number)
    }

    fn write_pod_device(&mut self, number: u32, interface: u32) -> Result<()> {
        assert_ne!(number, 0, "0 stands for none");
        if self.missing.contains(&interface) {
            anyhow::bail!("there is no interface {interface}");
        }
        // One that the kernel has emptied leads nowhere: whoever follows it may be led to where it led before.
        let new = Some(Thing::PodDevice(number)).filter(|_| self.maps.pod_device(number).is_some());
        self.write("write_pod_device", new.as_slice(), |maps| maps.write_pod_device(number, interface))
    }

    fn internal(&self) -> Result<Vec<(Prefix, u32)>> {
        PodStore::internal(&self.maps)
    }

    fn set_internal(&mut self, prefix: Prefix, flags: Option<u32>) -> Result<()> {
        self.write("set_internal", &[], |maps| maps.set_internal(prefix, flags))
    }

    fn mss(&self) -> Result<[u32; 2]> {
        self.maps.mss()
    }

    fn set_mss(&mut self, mss: [u32; 2]) -> Result<()> {
        self.write("set_mss", &[], |maps| maps.set_mss(mss))
    }

    fn replies(&self) -> Result<Vec<(ServiceKey, ReplyId)>> {
        self.maps.replies()
    }

    fn insert_reply(&mut self, key: ServiceKey, id: ReplyId) -> Result<()> {
        self.write("insert_reply", &[Thing::Reply(id)], |maps| {
            assert!(!maps.replies()?.iter().any(|(other, _)| *other == key), "a key is written over");
            maps.insert_reply(key, id)
        })
    }

    fn remove_reply(&mut self, key: ServiceKey) -> Result<()> {
        self.write("remove_reply", &[], |maps| maps.remove_reply(key))
    }

    fn reply_word(&self, id: ReplyId) -> ReplyWord {
        PodStore::reply_word(&self.maps, id)
    }

    fn set_reply_word(&mut self, id: ReplyId, word: ReplyWord) {
        let thing = Some(Thing::Reply(id)).filter(|thing| !self.followed.contains(thing));
        self.set("set_reply_word", thing.as_slice(), |maps| maps.set_reply_word(id, word));
    }

    fn reply_target(&self, index: u32) -> ReplyTarget {
        PodStore::reply_target(&self.maps, index)
    }

    fn write_reply_target(&mut self, index: u32, target: &ReplyTarget) {
        self.set("write_reply_target", &[Thing::ReplyTarget(index)], |maps| maps.write_reply_target(index, target));
    }

    fn reset_reply_counter(&mut self, id: ReplyId) -> Result<()> {
        self.write("reset_reply_counter", &[Thing::Reply(id)], |maps| maps.reset_reply_counter(id))
    }
}
