//! The flow hash: which slot of its service's table a packet picks.

use crate::address::{Address, Family};

/// Keys of the flow hash, derived from the cluster's seed.
///
/// The hash is the multilinear family over 32-bit words with 64-bit keys (Lemire and Kaser, "Strongly universal string
/// hashing is fast", 2014): its products do not wait for each other, and without the keys nobody can aim flows at one
/// slot. A last mixing step spreads the regular patterns of ports and addresses over all 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HashKeys(pub [u64; 12]);

impl HashKeys {
    /// Keys from the configuration's `hashSeed`, by SplitMix64 (Steele, Lea and Flood, 2014); odd, so that no word is lost.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut state = seed;
        Self(core::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state) | 1
        }))
    }
}

/// The finalizer of SplitMix64: a bijection in which each bit depends on all.
#[inline(always)]
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What tells a flow from others: as its client's packets have it, whichever direction was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client's address.
    pub source: Address,
    /// The VIP.
    pub destination: Address,
    /// The client's port in the upper half, the VIP's in the lower, each in host order.
    pub ports: u32,
    /// The protocol number.
    pub protocol: u8,
    /// The family of both addresses.
    pub family: Family,
}

impl FlowKey {
    /// Ports joined as the key holds them.
    #[inline(always)]
    #[must_use]
    pub const fn join(source: u16, destination: u16) -> u32 {
        (source as u32) << 16 | destination as u32
    }

    /// The VIP's port, in host order.
    #[inline(always)]
    #[must_use]
    pub const fn service_port(&self) -> u16 {
        self.ports as u16
    }

    /// The flow's hash. The low bits pick the slot; the high 32 are for entropy in the outer header.
    ///
    /// With `source_only` (session affinity) the client's address alone counts.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, keys: &HashKeys, source_only: bool) -> u64 {
        let k = &keys.0;
        let term = |key: u64, word: u32| key.wrapping_mul(u64::from(word));
        let source = self.source.numbers();
        let mut h = k[0].wrapping_add(term(k[1], source[0]));
        if self.family == Family::V6 {
            h = h
                .wrapping_add(term(k[2], source[1]))
                .wrapping_add(term(k[3], source[2]))
                .wrapping_add(term(k[4], source[3]));
        }
        if !source_only {
            let destination = self.destination.numbers();
            h = h
                .wrapping_add(term(k[5], self.ports))
                .wrapping_add(term(k[6], destination[0]))
                .wrapping_add(term(k[10], u32::from(self.protocol)));
            if self.family == Family::V6 {
                h = h
                    .wrapping_add(term(k[7], destination[1]))
                    .wrapping_add(term(k[8], destination[2]))
                    .wrapping_add(term(k[9], destination[3]));
            }
        }
        h ^= h >> 32;
        h = h.wrapping_mul(k[11]);
        h ^ (h >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn key(source: &str, port: u16) -> FlowKey {
        let source: IpAddr = source.parse().unwrap();
        let destination: IpAddr = if source.is_ipv4() { "198.51.100.10" } else { "2001:db8::10" }.parse().unwrap();
        FlowKey {
            source: source.into(),
            destination: destination.into(),
            ports: FlowKey::join(port, 80),
            protocol: 6,
            family: crate::address::family_of(&source),
        }
    }

    /// Consecutive ports of one client are the usual load: 4,096 slots must fill evenly under any seed.
    #[test]
    fn neighbouring_flows_spread_over_the_slots() {
        for seed in 0..20 {
            let keys = HashKeys::from_seed(seed);
            for source in ["10.60.0.2", "2001:db8:60::2"] {
                let mut slots = std::vec![0u32; 256];
                for port in 1024..=u16::MAX {
                    slots[(key(source, port).hash(&keys, false) & 255) as usize] += 1;
                }
                let mean = (65536.0 - 1024.0) / 256.0;
                let (low, high) = (slots.iter().min().unwrap(), slots.iter().max().unwrap());
                assert!(
                    f64::from(*low) > 0.5 * mean && f64::from(*high) < 1.5 * mean,
                    "seed {seed} {source}: {low}..{high} around {mean}"
                );
            }
        }
    }

    #[test]
    fn affinity_ignores_ports() {
        let keys = HashKeys::from_seed(7);
        assert_eq!(key("10.60.0.2", 1).hash(&keys, true), key("10.60.0.2", 2).hash(&keys, true));
        assert_ne!(key("10.60.0.2", 1).hash(&keys, true), key("10.60.0.3", 1).hash(&keys, true));
        assert_ne!(key("10.60.0.2", 1).hash(&keys, false), key("10.60.0.2", 2).hash(&keys, false));
    }

    #[test]
    fn seeds_give_other_hashes() {
        let flow = key("10.60.0.2", 40000);
        assert_ne!(flow.hash(&HashKeys::from_seed(1), false), flow.hash(&HashKeys::from_seed(2), false));
    }
}
