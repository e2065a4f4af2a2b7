//! Devices that lead to pods: each has one number, however many pods are behind it, and one store turns a pod to another.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Error, Result, anyhow};
use lb_common::maps::NO_NAMESPACE;

use super::pods::namespace;
use super::{Freed, Installed, Tables};
use crate::datapath::store::Store;
use crate::model::PodKey;
use crate::plan::PodSpec;

impl<S: Store> Tables<S> {
    /// The number of a pod's device: 0 for none; `None` while the device has no number, or has lost it.
    pub(super) fn device_number(&self, pod: &PodSpec) -> Option<u32> {
        let Some(device) = pod.device else { return Some(0) };
        let (number, _) = self.pods.devices.get(&device.interface)?;
        (self.store.pod_device(*number) == Some(device.interface)).then_some(*number)
    }

    /// Numbers for pods' devices: 0 for one that cannot be had, of which the last one's error says why.
    pub(super) fn take_devices(
        &mut self,
        pods: &BTreeMap<PodKey, PodSpec>,
        now: Instant,
    ) -> (BTreeMap<PodKey, u32>, Option<Error>) {
        let mut failure = None;
        let mut numbers = BTreeMap::new();
        for (key, pod) in pods {
            let number = pod.device.map_or(Ok(0), |device| self.take_device(device.interface, now));
            numbers.insert(
                *key,
                number.unwrap_or_else(|error| {
                    failure = Some(error);
                    0
                }),
            );
        }
        (numbers, failure)
    }

    fn take_device(&mut self, interface: u32, now: Instant) -> Result<u32> {
        if let Some((number, _)) = self.pods.devices.get(&interface).copied() {
            if self.store.pod_device(number) != Some(interface) {
                // The interface was gone, and one with the same index is there.
                self.store.write_pod_device(number, interface)?;
            }
            if let Some((_, users)) = self.pods.devices.get_mut(&interface) {
                *users += 1;
            }
            return Ok(number);
        }
        let capacity = self.store.capacity().pod_devices;
        let number = self.pods.numbers.take();
        let number = number.ok_or_else(|| anyhow!("no room for more pods' devices: the map holds {capacity}"))?;
        // A refused number may have been another interface's a moment ago: it waits again.
        self.store
            .write_pod_device(number, interface)
            .inspect_err(|_| self.freed.add(now, Freed::PodDevice(number)))?;
        self.pods.devices.insert(interface, (number, 1));
        Ok(number)
    }

    /// Numbers whose place the kernel has emptied, with the interfaces that they should stand for: an interface was gone,
    /// and one with the same index may be there, which nobody has to be told about otherwise.
    fn lost_devices(&self) -> impl Iterator<Item = (u32, u32)> {
        let devices = self.pods.devices.iter().map(|(&interface, &(number, _))| (number, interface));
        devices.filter(|&(number, interface)| self.store.pod_device(number) != Some(interface))
    }

    /// Whether the kernel has emptied the place of a device that leads to pods.
    #[must_use]
    pub fn lost_a_device(&self) -> bool {
        self.lost_devices().next().is_some()
    }

    /// Put devices back whose place the kernel has emptied, as far as they are there again. Those that are not wait for
    /// the kernel's word on where their pods are.
    pub fn restore_devices(&mut self) {
        for (number, interface) in self.lost_devices().collect::<Vec<_>>() {
            match self.store.write_pod_device(number, interface) {
                Ok(()) => tracing::info!(interface, "a device that leads to pods is there again"),
                Err(error) => tracing::debug!(interface, "not there again: {error:#}"),
            }
        }
    }

    /// One pod less has a number.
    pub(super) fn give_device(&mut self, number: u32, now: Instant) {
        let found = self.pods.devices.iter_mut().find(|(_, (there, _))| *there == number);
        let Some((&interface, (_, users))) = found else { return };
        *users -= 1;
        if *users == 0 {
            self.pods.devices.remove(&interface);
            self.freed.add(now, Freed::PodDevice(number));
        }
    }

    /// Turn a service's pods, which packets may be using, to their devices; the error of one that could not be had.
    pub(super) fn turn_pods(
        &mut self,
        pods: &BTreeMap<PodKey, PodSpec>,
        new: &mut Installed,
        now: Instant,
    ) -> Option<Error> {
        let regions = new.pod_regions?;
        let (numbers, failure) = self.take_devices(pods, now);
        for (index, (key, installed)) in (regions.entries.base..).zip(&mut new.pods) {
            let (Some(number), Some(pod)) = (numbers.get(key), pods.get(key)) else { continue };
            let entry = self.store.pod(index);
            let namespace = if *number == 0 { NO_NAMESPACE } else { namespace(pod) };
            if (entry.device, entry.namespace) != (*number, namespace) {
                self.store.set_pod_device(index, *number, namespace);
            }
            self.give_device(installed.device, now);
            installed.device = *number;
        }
        failure
    }
}
