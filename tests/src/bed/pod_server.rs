//! What runs in a pod.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Bed, POD_HTTP, POD_UDP, Pod, UdpEcho, WebServer};

/// nginx and a UDP service in a pod, both families.
pub struct PodServer {
    /// nginx on [`POD_HTTP`].
    pub web: WebServer,
    /// UDP on [`POD_UDP`], IPv4 and IPv6: echoes with the pod's name and the client's address
    /// ([`UdpEcho::start_naming`]).
    pub udp: [UdpEcho; 2],
}

impl PodServer {
    /// Starts both in `pod`.
    ///
    /// # Errors
    /// As [`WebServer::start`] and [`UdpEcho::start`].
    pub fn start(bed: &Bed, pod: &Pod) -> Result<Self> {
        let [v4, v6] = pod.addresses().map(|address| SocketAddr::new(address, POD_UDP));
        let udp = [UdpEcho::start_naming(&pod.host, v4)?, UdpEcho::start_naming(&pod.host, v6)?];
        Ok(Self { web: WebServer::start_on(bed, &pod.host, POD_HTTP)?, udp })
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        self.web.name()
    }
}
