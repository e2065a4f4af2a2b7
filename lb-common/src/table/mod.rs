//! Tables: which backend owns which slot of a service, and where the slots lie.
//!
//! A table is a pure function of a seed, a set of backends with their weights, and a number of slots. It knows no
//! history: every edge, and one that has just started, computes the same, and none has to ask another. Three things
//! follow for whoever writes an algorithm.
//!
//! - Integers only. A float's logarithm may differ in its last bit between two libraries, and then one flow has two owners.
//! - No order but that of identities. Hosts learn of backends in any order.
//! - A change of a backend changes little else. Each slot that moves without need is a slot whose flows need a second
//!   chance at their old owner; how many do is measured in `tests/table.rs`.
//!
//! A backend has two weights. Its *rank* orders it in every slot and stays while it drains, so that the rankings still
//! tell where its flows are; its *share* is how much it may own. A backend that drains and one that has left give the
//! same table: the end of a drain moves nothing.
//!
//! The number of slots is the service's configuration and never follows the number of backends: places of slots depend
//! on it, and another number is another table from the ground up.

mod log2;
pub mod region;
pub mod rendezvous;

use core::fmt;

use crate::address::{Address, Family};
use crate::flow::mix;

pub use region::Regions;
pub use rendezvous::{Rankings, Rendezvous};

/// Fewest slots of a table.
pub const MIN_SLOTS: usize = crate::maps::SLOTS_UNIT as usize;
/// Most slots of a table: 400 for each of 10,000 backends.
pub const MAX_SLOTS: usize = 1 << 22;
/// Most backends of a table: a slot names one by 16 bits.
pub const MAX_MEMBERS: usize = u16::MAX as usize;
/// Largest rank and largest share: 1,000 for each of 262 pods of a node, or 1 for each of 262,144.
pub const MAX_WEIGHT: u32 = 1 << 18;

/// One backend as a table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Tells it from the others, the same on every host: [`identity`] of its address.
    pub identity: u64,
    /// Orders it in every slot, and stays while it drains: 1 to [`MAX_WEIGHT`].
    pub rank: u32,
    /// How much it may own: 1 to [`MAX_WEIGHT`], or 0 while it drains.
    pub share: u32,
}

/// A backend's identity: its address in a form that is the same on every host. Backends with other addresses have other
/// identities but for one chance in 2⁶⁴.
#[must_use]
pub const fn identity(address: Address, family: Family) -> u64 {
    let [high, low] = [u64::from_be(address.0[0]), u64::from_be(address.0[1])];
    mix(mix(high.wrapping_add(family as u64)) ^ low)
}

/// Why there is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The number of slots is not a power of two between [`MIN_SLOTS`] and [`MAX_SLOTS`].
    Slots {
        /// What it is.
        slots: usize,
    },
    /// There are more than [`MAX_MEMBERS`] backends.
    Members {
        /// How many there are.
        members: usize,
    },
    /// A rank is not between 1 and [`MAX_WEIGHT`].
    Rank {
        /// Index of the backend.
        member: usize,
        /// Its rank.
        rank: u32,
    },
    /// A share is above [`MAX_WEIGHT`].
    Share {
        /// Index of the backend.
        member: usize,
        /// Its share.
        share: u32,
    },
    /// Two backends have the same identity.
    SameIdentity {
        /// Index of one.
        first: usize,
        /// Index of the other.
        second: usize,
    },
    /// No backend has a share: none may own a slot.
    NoOwner,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Slots { slots } => {
                write!(f, "a table of {slots} slots: the number must be a power of two from {MIN_SLOTS} to {MAX_SLOTS}")
            }
            Self::Members { members } => {
                write!(f, "{members} backends: a table holds at most {MAX_MEMBERS}; split the service")
            }
            Self::Rank { member, rank } => {
                write!(f, "backend {member}: rank {rank} is not from 1 to {MAX_WEIGHT}")
            }
            Self::Share { member, share } => {
                write!(f, "backend {member}: share {share} is not from 0 to {MAX_WEIGHT}")
            }
            Self::SameIdentity { first, second } => {
                write!(f, "backends {first} and {second} are the same: name each address once")
            }
            Self::NoOwner => write!(f, "no backend has a share above 0: the service has nobody to own a slot"),
        }
    }
}

impl core::error::Error for TableError {}

/// A way of giving slots to backends.
///
/// What it gives depends on nothing but its arguments, and not on the order of the members: every host must come to
/// the same table, whatever it has seen before.
pub trait Algorithm {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;
    /// Raised with every change that gives other tables: edges of different versions send one flow to two backends.
    fn version(&self) -> u32;
    /// Fill `table`: each slot gets the index of its owner among `members`.
    ///
    /// # Errors
    /// As [`TableError`] says; the table's content is then unspecified.
    fn build(&self, seed: u64, members: &[Member], table: &mut [u16]) -> Result<(), TableError>;
}

/// Check what all algorithms ask of the members and of the number of slots.
fn check_size(members: &[Member], slots: usize) -> Result<(), TableError> {
    if !slots.is_power_of_two() || !(MIN_SLOTS..=MAX_SLOTS).contains(&slots) {
        return Err(TableError::Slots { slots });
    }
    if members.len() > MAX_MEMBERS {
        return Err(TableError::Members { members: members.len() });
    }
    for (member, &Member { identity: _, rank, share }) in members.iter().enumerate() {
        if !(1..=MAX_WEIGHT).contains(&rank) {
            return Err(TableError::Rank { member, rank });
        }
        if share > MAX_WEIGHT {
            return Err(TableError::Share { member, share });
        }
    }
    Ok(())
}

/// As [`check_size`], and that somebody may own a slot.
fn check(members: &[Member], slots: usize) -> Result<(), TableError> {
    check_size(members, slots)?;
    if members.iter().all(|member| member.share == 0) { Err(TableError::NoOwner) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    fn members(weights: &[(u32, u32)]) -> Vec<Member> {
        weights.iter().zip(1..).map(|(&(rank, share), identity)| Member { identity, rank, share }).collect()
    }

    fn error(members: &[Member], slots: usize) -> TableError {
        Rendezvous.build(1, members, &mut vec![0; slots]).unwrap_err()
    }

    #[test]
    fn bad_input_is_named() {
        let good = members(&[(1, 1), (MAX_WEIGHT, MAX_WEIGHT)]);
        for slots in [0, 1, 32, 63, 65, 96, 1 << 23] {
            assert_eq!(error(&good, slots), TableError::Slots { slots });
        }
        assert_eq!(error(&members(&[(1, 1), (0, 1)]), 64), TableError::Rank { member: 1, rank: 0 });
        assert_eq!(error(&members(&[(262_145, 1)]), 64), TableError::Rank { member: 0, rank: 262_145 });
        assert_eq!(error(&members(&[(1, 262_145)]), 64), TableError::Share { member: 0, share: 262_145 });
        assert_eq!(error(&members(&[(1, 0), (5, 0)]), 64), TableError::NoOwner);
        assert_eq!(error(&[], 64), TableError::NoOwner);
        assert_eq!(error(&[good[1], good[0], good[1]], 64), TableError::SameIdentity { first: 0, second: 2 });
        let many: Vec<Member> =
            (0..=MAX_MEMBERS as u64).map(|identity| Member { identity, rank: 1, share: 1 }).collect();
        assert_eq!(error(&many, 64), TableError::Members { members: MAX_MEMBERS + 1 });
        assert_eq!(
            error(&good, 96).to_string(),
            "a table of 96 slots: the number must be a power of two from 64 to 4194304"
        );
    }

    #[test]
    fn as_many_members_as_fit_share_fewer_slots() {
        let many: Vec<Member> =
            (0..MAX_MEMBERS as u64).map(|identity| Member { identity, rank: 1, share: 1 }).collect();
        let mut table = vec![0; 64];
        Rendezvous.build(1, &many, &mut table).unwrap();
        table.sort_unstable();
        table.dedup();
        assert_eq!(table.len(), 64);
    }

    #[test]
    fn identities_are_the_same_on_every_host() {
        let of = |text: &str| {
            let ip: core::net::IpAddr = text.parse().unwrap();
            identity(ip.into(), crate::address::family_of(&ip))
        };
        assert_eq!(of("10.0.0.11"), 0xd61b_610f_3425_7dc8);
        assert_eq!(of("2001:db8::1"), 0xcba2_4efe_30d8_c756);
        // The same words, another family.
        assert_ne!(of("0.0.0.0"), of("::"));
    }
}
