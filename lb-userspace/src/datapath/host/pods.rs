//! The pods' part of the store on the host.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use lb_common::address::family_of;
use lb_common::maps::{
    Counter, Maps, Pod, PodCell, PodWord, Record, RecordKey, ReplyId, ReplyTarget, ReplyWord, ServiceId, ServiceKey,
};

use super::HostMaps;
use crate::datapath::look::Look;
use crate::datapath::store::PodStore;
use crate::model::Prefix;

impl HostMaps {
    /// A pod's counter.
    #[must_use]
    pub fn pod_counter(&self, counter: u32) -> Counter {
        self.pod_counters.borrow().get(counter as usize).copied().unwrap_or_default()
    }

    /// The counter of a pod's replies.
    #[must_use]
    pub fn reply_counter(&self, id: ReplyId) -> Counter {
        self.reply_counters.borrow().get(id as usize).copied().unwrap_or_default()
    }

    /// Let an interface be gone: as the kernel does, every number that stood for it stands for none.
    pub fn remove_interface(&mut self, interface: u32) {
        for device in self.pod_devices.iter_mut().filter(|device| **device == Some(interface)) {
            *device = None;
        }
    }
}

impl Look for HostMaps {
    fn flow_record(&self, key: &RecordKey) -> Result<Option<Record>> {
        Ok(Maps::record(self, key, |record| Record::from_words(record.to_words())))
    }

    fn internal_flags(&self, address: IpAddr) -> Result<u32> {
        Ok(Maps::internal(self, &address.into(), family_of(&address)))
    }
}

impl PodStore for HostMaps {
    fn clock(&self) -> u64 {
        self.now
    }

    fn pod_word(&self, id: ServiceId) -> PodWord {
        self.pod_words[id as usize]
    }

    fn set_pod_word(&mut self, id: ServiceId, word: PodWord) {
        self.pod_words[id as usize] = word;
    }

    fn read_pod_cells(&self, base: u64, cells: &mut [PodCell]) {
        cells.copy_from_slice(&self.pod_cells[base as usize..base as usize + cells.len()]);
    }

    fn write_pod_cells(&mut self, base: u64, cells: &[PodCell]) {
        self.pod_cells[base as usize..base as usize + cells.len()].copy_from_slice(cells);
    }

    fn set_pod_cell(&mut self, index: u64, cell: PodCell) {
        self.pod_cells[index as usize] = cell;
    }

    fn pod(&self, index: u32) -> Pod {
        self.pods[index as usize]
    }

    fn write_pod(&mut self, index: u32, pod: &Pod) {
        self.pods[index as usize] = *pod;
    }

    fn set_pod_device(&mut self, index: u32, device: u32, namespace: u32) {
        let pod = &mut self.pods[index as usize];
        (pod.device, pod.namespace) = (device, namespace);
    }

    fn reset_pod_counter(&mut self, counter: u32) -> Result<()> {
        self.pod_counters.get_mut()[counter as usize] = Counter::default();
        Ok(())
    }

    fn pod_device(&self, number: u32) -> Option<u32> {
        self.pod_devices[number as usize]
    }

    fn write_pod_device(&mut self, number: u32, interface: u32) -> Result<()> {
        self.pod_devices[number as usize] = Some(interface);
        Ok(())
    }

    fn internal(&self) -> Result<Vec<(Prefix, u32)>> {
        Ok(self.internal.iter().map(|(prefix, flags)| (*prefix, *flags)).collect())
    }

    fn set_internal(&mut self, prefix: Prefix, flags: Option<u32>) -> Result<()> {
        match flags {
            Some(flags) => {
                self.internal.insert(prefix, flags);
            }
            None => ensure!(self.internal.remove(&prefix).is_some(), "no such internal network"),
        }
        Ok(())
    }

    fn mss(&self) -> Result<[u32; 2]> {
        Ok(self.settings.mss)
    }

    fn set_mss(&mut self, mss: [u32; 2]) -> Result<()> {
        self.settings.mss = mss;
        Ok(())
    }

    fn replies(&self) -> Result<Vec<(ServiceKey, ReplyId)>> {
        Ok(self.replies.iter().map(|(key, id)| (*key, *id)).collect())
    }

    fn insert_reply(&mut self, key: ServiceKey, id: ReplyId) -> Result<()> {
        self.replies.insert(key, id);
        Ok(())
    }

    fn remove_reply(&mut self, key: ServiceKey) -> Result<()> {
        ensure!(self.replies.remove(&key).is_some(), "no such reply");
        Ok(())
    }

    fn reply_word(&self, id: ReplyId) -> ReplyWord {
        self.reply_words[id as usize]
    }

    fn set_reply_word(&mut self, id: ReplyId, word: ReplyWord) {
        self.reply_words[id as usize] = word;
    }

    fn reply_target(&self, index: u32) -> ReplyTarget {
        self.reply_targets[index as usize]
    }

    fn write_reply_target(&mut self, index: u32, target: &ReplyTarget) {
        self.reply_targets[index as usize] = *target;
    }

    fn reset_reply_counter(&mut self, id: ReplyId) -> Result<()> {
        self.reply_counters.get_mut()[id as usize] = Counter::default();
        Ok(())
    }
}
