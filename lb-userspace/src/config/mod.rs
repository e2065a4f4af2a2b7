//! To come.

/// Sizes of the BPF maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// VIP:port pairs.
    pub services: u32,
    /// Backends.
    pub backends: u32,
    /// Slots.
    pub slots: u32,
    /// Recorded flows.
    pub flows: u32,
}
