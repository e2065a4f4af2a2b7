//! Where the pods of this host are, in the plan's terms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::neighbours::Snapshot;
use crate::plan::PodDevice;

/// The device of each pod, with a memory of the last one.
#[derive(Debug, Default)]
pub(super) struct Devices {
    known: BTreeMap<IpAddr, PodDevice>,
}

impl Devices {
    /// The live device of each pod that has one. A pod that the kernel has not looked up yet, or whose neighbour is being
    /// asked, keeps the device that it had: one that goes away takes its place in the map of devices with it.
    pub(super) fn resolve(&mut self, pods: &BTreeSet<IpAddr>, snapshot: &Snapshot) -> BTreeMap<IpAddr, PodDevice> {
        self.known.retain(|pod, _| pods.contains(pod));
        for pod in pods {
            match snapshot.pods.get(pod) {
                Some(Ok(path)) => {
                    self.known.insert(*pod, PodDevice { interface: path.interface, namespace: path.namespace });
                }
                Some(Err(unreachable)) if !unreachable.is_pending() => {
                    self.known.remove(pod);
                }
                Some(Err(_)) | None => {}
            }
        }
        self.known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::{PodPath, PodUnreachable};

    #[test]
    fn a_pod_keeps_its_device_until_it_is_known_to_have_none() {
        let pod: IpAddr = "10.244.1.10".parse().expect("an address");
        let pods = BTreeSet::from([pod]);
        let at = |found| Snapshot { pods: BTreeMap::from([(pod, found)]), ..Snapshot::default() };
        let path = PodPath { interface: 7, name: "veth1".into(), namespace: Some(3) };
        let device = PodDevice { interface: 7, namespace: Some(3) };
        let mut devices = Devices::default();
        assert_eq!(devices.resolve(&pods, &Snapshot::default()), BTreeMap::new());
        assert_eq!(devices.resolve(&pods, &at(Ok(path))), BTreeMap::from([(pod, device)]));
        assert_eq!(devices.resolve(&pods, &Snapshot::default()), BTreeMap::from([(pod, device)]));
        assert_eq!(devices.resolve(&pods, &at(Err(PodUnreachable::NoRoute { pod }))), BTreeMap::new());
        assert_eq!(devices.resolve(&BTreeSet::new(), &Snapshot::default()), BTreeMap::new());
    }
}
