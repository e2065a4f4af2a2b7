//! Weighted rendezvous hashing with a bounded share.
//!
//! Every backend runs a race in every slot; the order in which they arrive is the slot's ranking. Slots are filled in
//! their order, each by the first of its ranking that is not yet at its cap. A backend that leaves frees its own slots
//! and they go to the next of their rankings; all others stay, but for those that the caps push on.
//!
//! **Weights.** With u even in (0, 1), −log(u)/rank is exponential with rate `rank`, and the least of several such times
//! belongs to each in proportion to its rank (Thaler and Ravishankar, 1998; Efraimidis and Spirakis, 2006).
//!
//! **Places, not hashes.** A u drawn for each slot by a hash leaves the share of a backend that expects 400 slots with a
//! deviation of 5 %: a sixth of all backends would hit their cap, and slots pushed on from cap to cap are moved slots
//! that nothing made necessary, beyond 1.15 times the minimum. So each backend has a
//! permutation of the slots, its places, and its u is stratified: the slot at place p of M has u in
//! (1 − (p + 1)/M, 1 − p/M], where inside is hashed. u is even as before, and depends on nothing but seed, backend,
//! slot and M; but much of the variance is gone, and with it most of what moved for nothing.
//!
//! Equal weights, ten seeds, ten backends of each drained one at a time, as
//! `cargo run --release -p lb-common --features alloc --example table_figures` prints it:
//!
//! | backends | slots | heaviest / mean | lightest / mean | moved / minimum: mean, worst | old owner not in the top 3 |
//! |---|---|---|---|---|---|
//! | 10 | 4,096 | 1.052 | 0.923 | 1.007, 1.039 | 0.00 % |
//! | 40 | 4,096 | 1.055 | 0.801 | 1.124, 1.222 | 0.68 % |
//! | 64 | 16,384 | 1.051 | 0.855 | 1.051, 1.092 | 0.05 % |
//! | 100 | 65,536 | 1.051 | 0.911 | 1.012, 1.048 | 0.00 % |
//! | 327 | 131,072 | 1.050 | 0.893 | 1.073, 1.121 | 0.04 % |
//! | 500 | 65,536 | 1.053 | 0.786 | 1.281, 1.407 | 0.04 % |
//!
//! **Speed.** Places can be walked from the best on, so a table costs a few steps a slot, not one for each backend and
//! slot: all backends walk as far as a common horizon, chosen so that six backends are expected in each slot. What came
//! in below the horizon is the exact head of the slot's ranking; where that is spent, all open backends are asked. One
//! backend with most of the ranks and little of the shares (a large node, all of whose pods drain but one) sends most
//! slots there, and its table takes several times as long as one of equal backends.

use alloc::vec;
use alloc::vec::Vec;

use super::log2::{FRACTION_BITS, minus_log2};
use super::{Algorithm, Member, TableError, check, check_size};
use crate::flow::mix;

/// Weighted rendezvous hashing with a bounded share: no backend owns more than 1.05 of its weighted share, rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rendezvous;

/// Steps of a permutation.
const ROUNDS: usize = 3;
/// How much of a slot's ranking is kept while a table is built.
const KEPT: usize = 4;
/// Backends expected below the horizon in a slot: more cost time, fewer send more slots to the long way.
const CANDIDATES: u64 = 6;
/// log2(e) in 1/1024.
const LOG2_E: u64 = 1477;
/// Fractional bits of a score. A logarithm with 20 bits more, divided by a rank: 54, the largest logarithm, fits.
///
/// What the 20 bits tell apart: of one rank, up to 2²⁰, every two logarithms. Of two ranks a and b, unequal quotients
/// lie at least 1/(a · b) of the logarithm's last bit apart: up to 1,000 they never fall together. Larger ranks are sums
/// of weights, and there two quotients that differ by less than 2⁻⁵⁸ may give one score. That is a draw like that of two
/// equal quotients, and goes the same way everywhere: to the lower identity. How often one wins does not change by what
/// can be measured; a logarithm itself is right to 2⁻²² alone.
const SCORE_BITS: u32 = FRACTION_BITS + 20;
const _: () = assert!(super::MAX_WEIGHT <= 1 << (SCORE_BITS - FRACTION_BITS));
/// SplitMix64's increment.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The slots of a table, and what the arithmetic modulo their number needs.
#[derive(Clone, Copy)]
struct Slots {
    mask: u32,
    bits: u32,
    half: u32,
}

impl Slots {
    /// `slots` has passed [`check_size`].
    const fn new(slots: usize) -> Self {
        let bits = slots.trailing_zeros();
        Self { mask: (slots - 1) as u32, bits, half: bits.div_ceil(2) }
    }
}

/// A backend in the race. A step of its permutation is x → x · odd + any modulo the number of slots, then the upper half
/// of the bits on the lower: both can be undone.
struct Racer {
    multiply: [u32; ROUNDS],
    divide: [u32; ROUNDS],
    add: [u32; ROUNDS],
    within: u64,
    rank: u64,
    member: u16,
}

impl Racer {
    fn new(seed: u64, member: &Member, index: u16) -> Self {
        let mut state = mix(mix(seed.wrapping_add(GOLDEN)) ^ member.identity);
        let mut next = || {
            state = state.wrapping_add(GOLDEN);
            mix(state)
        };
        let within = next();
        let words: [u64; ROUNDS] = core::array::from_fn(|_| next());
        let multiply = words.map(|word| word as u32 | 1);
        Self {
            multiply,
            divide: multiply.map(inverse),
            add: words.map(|word| (word >> 32) as u32),
            within,
            rank: u64::from(member.rank),
            member: index,
        }
    }

    /// The slot at a place.
    #[inline]
    fn slot(&self, place: u32, slots: Slots) -> u32 {
        let mut x = place;
        for round in 0..ROUNDS {
            x = x.wrapping_mul(self.multiply[round]).wrapping_add(self.add[round]) & slots.mask;
            x ^= x >> slots.half;
        }
        x
    }

    /// The place of a slot.
    #[inline]
    fn place(&self, slot: u32, slots: Slots) -> u32 {
        let mut x = slot;
        for round in (0..ROUNDS).rev() {
            x ^= x >> slots.half;
            x = x.wrapping_sub(self.add[round]).wrapping_mul(self.divide[round]) & slots.mask;
        }
        x
    }

    /// The time at which this backend arrives at a place: lower is better.
    #[inline]
    fn score(&self, place: u32, slots: Slots) -> u64 {
        self.time(place, mix(self.within ^ u64::from(place)) as u32, slots)
    }

    /// No score at this place or a later one is lower.
    #[inline]
    fn earliest(&self, place: u32, slots: Slots) -> u64 {
        self.time(place, 0, slots)
    }

    #[inline]
    fn time(&self, place: u32, within: u32, slots: Slots) -> u64 {
        let below_one = (u64::from(place) << 32 | u64::from(within)) << (32 - slots.bits);
        (minus_log2(!below_one) << (SCORE_BITS - FRACTION_BITS)) / self.rank
    }
}

/// The inverse of an odd number modulo 2³², by Newton's method: 3, 6, 12, 24, 48 bits are right.
const fn inverse(odd: u32) -> u32 {
    let mut x = odd;
    let mut step = 0;
    while step < 4 {
        x = x.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(x)));
        step += 1;
    }
    x
}

/// The head of a slot's ranking.
#[derive(Clone, Copy)]
struct Head {
    scores: [u64; KEPT],
    racers: [u16; KEPT],
}

impl Head {
    const EMPTY: Self = Self { scores: [u64::MAX; KEPT], racers: [0; KEPT] };

    /// Of equal scores the one that came first stays ahead: racers come in the order of their identities.
    #[inline]
    fn insert(&mut self, score: u64, racer: u16) {
        if score >= self.scores[KEPT - 1] {
            return;
        }
        let mut at = KEPT - 1;
        while at > 0 && self.scores[at - 1] > score {
            self.scores[at] = self.scores[at - 1];
            self.racers[at] = self.racers[at - 1];
            at -= 1;
        }
        self.scores[at] = score;
        self.racers[at] = racer;
    }

    fn first(&self, open: impl Fn(u16) -> bool) -> Option<u16> {
        let known = self.scores.iter().take_while(|score| **score != u64::MAX).count();
        self.racers[..known].iter().copied().find(|racer| open(*racer))
    }
}

/// The members in the order of their identities, so that the caller's order plays no part.
fn racers(seed: u64, members: &[Member], owners_only: bool) -> Result<Vec<Racer>, TableError> {
    let mut order: Vec<u16> = (0..members.len() as u16).collect();
    order.sort_unstable_by_key(|index| members[usize::from(*index)].identity);
    for pair in order.windows(2) {
        let (first, second) = (usize::from(pair[0].min(pair[1])), usize::from(pair[0].max(pair[1])));
        if members[first].identity == members[second].identity {
            return Err(TableError::SameIdentity { first, second });
        }
    }
    let member = |index: u16| &members[usize::from(index)];
    let taking_part = order.into_iter().filter(|index| !owners_only || member(*index).share > 0);
    Ok(taking_part.map(|index| Racer::new(seed, member(index), index)).collect())
}

/// The heads of all slots' rankings: whoever arrives before the horizon.
fn heads(racers: &[Racer], slots: Slots) -> Vec<Head> {
    let ranks: u64 = racers.iter().map(|racer| racer.rank).sum();
    let horizon = ((CANDIDATES * LOG2_E) << (SCORE_BITS - 10)) / ranks;
    let mut heads = vec![Head::EMPTY; slots.mask as usize + 1];
    for (index, racer) in racers.iter().enumerate() {
        for place in 0..=slots.mask {
            let score = racer.score(place, slots);
            if score < horizon {
                heads[racer.slot(place, slots) as usize].insert(score, index as u16);
            } else if racer.earliest(place, slots) >= horizon {
                break;
            }
        }
    }
    heads
}

impl Algorithm for Rendezvous {
    fn name(&self) -> &'static str {
        "rendezvous"
    }

    fn version(&self) -> u32 {
        1
    }

    fn build(&self, seed: u64, members: &[Member], table: &mut [u16]) -> Result<(), TableError> {
        check(members, table.len())?;
        let slots = Slots::new(table.len());
        let racers = racers(seed, members, true)?;
        let shares: u64 = members.iter().map(|member| u64::from(member.share)).sum();
        let cap = |racer: &Racer| {
            let share = u64::from(members[usize::from(racer.member)].share);
            (21 * share * table.len() as u64).div_ceil(20 * shares)
        };
        let mut room: Vec<u64> = racers.iter().map(cap).collect();
        let mut open: Vec<u16> = (0..racers.len() as u16).collect();
        for (slot, (head, owner)) in heads(&racers, slots).iter().zip(table).enumerate() {
            let time = |racer: &u16| {
                let runner = &racers[usize::from(*racer)];
                (runner.score(runner.place(slot as u32, slots), slots), *racer)
            };
            // The caps' sum is above the number of slots, so somebody is open.
            let Some(winner) =
                head.first(|racer| room[usize::from(racer)] > 0).or_else(|| open.iter().copied().min_by_key(time))
            else {
                return Err(TableError::NoOwner);
            };
            *owner = racers[usize::from(winner)].member;
            room[usize::from(winner)] -= 1;
            if room[usize::from(winner)] == 0 {
                open.retain(|racer| *racer != winner);
            }
        }
        Ok(())
    }
}

/// The rankings of a table's slots, draining backends included.
pub struct Rankings {
    racers: Vec<Racer>,
    slots: Slots,
}

impl Rankings {
    /// Fill `top` with the indexes of the best members of `slot`, the best first, and say how many there are: the lesser
    /// of their number and `top`'s length. `slot` counts modulo the number of slots.
    pub fn of(&self, slot: u32, top: &mut [u16]) -> usize {
        let mut best: Vec<(u64, u16)> = Vec::with_capacity(top.len() + 1);
        for racer in &self.racers {
            let score = racer.score(racer.place(slot & self.slots.mask, self.slots), self.slots);
            if best.len() < top.len() || best.last().is_some_and(|last| score < last.0) {
                best.insert(best.partition_point(|other| other.0 <= score), (score, racer.member));
                best.truncate(top.len());
            }
        }
        for (place, (_, member)) in top.iter_mut().zip(&best) {
            *place = *member;
        }
        best.len()
    }
}

impl Rendezvous {
    /// The rankings behind the table of `slots` slots that [`Algorithm::build`] makes. Shares play no part in them: a
    /// draining backend stands where it stood.
    ///
    /// # Errors
    /// As [`Algorithm::build`], but that nobody needs a share.
    pub fn rankings(&self, seed: u64, members: &[Member], slots: usize) -> Result<Rankings, TableError> {
        check_size(members, slots)?;
        Ok(Rankings { racers: racers(seed, members, false)?, slots: Slots::new(slots) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{MAX_MEMBERS, MAX_SLOTS, MAX_WEIGHT};

    fn racer(seed: u64, rank: u32) -> Racer {
        Racer::new(seed, &Member { identity: mix(seed), rank, share: rank }, 0)
    }

    #[test]
    fn places_are_a_permutation_that_can_be_undone() {
        for bits in 6..=13 {
            let slots = Slots::new(1 << bits);
            for seed in 0..50 {
                let racer = racer(seed, 1);
                let mut seen = vec![false; 1 << bits];
                for place in 0..=slots.mask {
                    let slot = racer.slot(place, slots);
                    assert_eq!(racer.place(slot, slots), place);
                    assert!(!core::mem::replace(&mut seen[slot as usize], true), "{bits} bits: slot {slot} twice");
                }
            }
        }
    }

    #[test]
    fn later_places_never_score_better() {
        for (bits, rank) in [(6, 1), (12, 1), (12, 1000), (18, 1000), (22, 999), (6, MAX_WEIGHT), (22, MAX_WEIGHT)] {
            let (slots, racer) = (Slots::new(1 << bits), racer(3, rank));
            for place in (0..slots.mask).step_by(1 << (bits - 6)) {
                assert!(racer.earliest(place, slots) <= racer.score(place, slots));
                assert!(racer.score(place, slots) <= racer.earliest(place + 1, slots));
            }
        }
    }

    #[test]
    fn scores_tell_apart_what_differs_in_the_last_bit() {
        let logarithm = |units: u64, rank: u64| (units << (SCORE_BITS - FRACTION_BITS)) / rank;
        // 999/1000 and 998/999 are as near as two quotients of a logarithm and a rank come.
        assert!(logarithm(998, 999) < logarithm(999, 1000));
        assert!(logarithm(1, 1000) < logarithm(1, 999));
        assert_eq!(logarithm(1, 1), logarithm(1000, 1000));
        // Of the largest rank each two logarithms.
        for units in [1, 2, 1 << 16, 54 << FRACTION_BITS] {
            assert!(logarithm(units - 1, MAX_WEIGHT.into()) < logarithm(units, MAX_WEIGHT.into()));
        }
    }

    /// Quotients of large ranks may fall together. Whoever has the lower identity then comes first, in a head as in a
    /// ranking: racers stand in the order of their identities.
    #[test]
    fn a_draw_goes_to_the_lower_identity() {
        let logarithm = |units: u64, rank: u64| (units << (SCORE_BITS - FRACTION_BITS)) / rank;
        let (one, other) = (logarithm(1, 262_143), logarithm(1, 262_144));
        assert_eq!(one, other, "1/262143 and 1/262144 differ by less than a score tells");
        let mut head = Head::EMPTY;
        head.insert(one + 1, 0);
        for racer in 1..=5 {
            head.insert([one, other][usize::from(racer) % 2], racer);
        }
        assert_eq!(head.racers, [1, 2, 3, 4]);
        assert_eq!(head.first(|racer| racer > 2), Some(3));
        assert_eq!([(other, 1u16), (one, 0)].iter().min(), Some(&(one, 0)), "the long way");
    }

    /// Every sum and product at the limits, which overflow checks see in a build with them.
    #[test]
    fn the_largest_numbers_fit() {
        let slots = Slots::new(MAX_SLOTS);
        let racer = racer(1, 1);
        for place in [0, slots.mask / 2, slots.mask] {
            let longest = u128::from(minus_log2(!(u64::from(place) << 42))) << (SCORE_BITS - FRACTION_BITS);
            assert!(longest < u128::from(u64::MAX), "place {place}");
            assert!(u128::from(racer.score(place, slots)) < 54 << SCORE_BITS);
        }
        let all = MAX_MEMBERS as u64 * u64::from(MAX_WEIGHT);
        assert!(((CANDIDATES * LOG2_E) << (SCORE_BITS - 10)) / all > 0, "a horizon");
        assert!((21 * u64::from(MAX_WEIGHT)).checked_mul(MAX_SLOTS as u64).is_some());
        assert!(all.checked_mul(20).is_some());
        assert_eq!((CANDIDATES * LOG2_E) << (SCORE_BITS - 10) >> (SCORE_BITS - 10), CANDIDATES * LOG2_E);
    }

    /// The head is a short cut: the long way alone gives the same table.
    #[test]
    fn the_horizon_changes_nothing() {
        let weighed = |rank: fn(u32) -> u32, share: fn(u32) -> u32| -> Vec<Member> {
            (0..60).map(|i| Member { identity: mix(i.into()), rank: rank(i), share: share(i) }).collect()
        };
        the_long_way_gives_the_same(&weighed(|i| 1 + (i * 37) % 1000, |i| i % 7));
        the_long_way_gives_the_same(&weighed(|i| 1 + (i * 37_987) % MAX_WEIGHT, |i| i % 7 * 40_000));
        the_long_way_gives_the_same(&weighed(|i| if i % 2 == 0 { MAX_WEIGHT } else { 1 }, |i| i + 1));
    }

    fn the_long_way_gives_the_same(members: &[Member]) {
        let mut table = vec![0; 1024];
        Rendezvous.build(5, members, &mut table).unwrap();
        let rankings = Rendezvous.rankings(5, members, 1024).unwrap();
        let shares: u64 = members.iter().map(|member| u64::from(member.share)).sum();
        let mut owned = vec![0u64; members.len()];
        for (slot, owner) in table.iter().enumerate() {
            let mut ranking = vec![0; members.len()];
            assert_eq!(rankings.of(slot as u32, &mut ranking), members.len());
            let cap = |i: u16| (21 * u64::from(members[usize::from(i)].share) * 1024).div_ceil(20 * shares);
            let first = ranking.iter().find(|i| owned[usize::from(**i)] < cap(**i)).unwrap();
            assert_eq!(owner, first, "slot {slot}");
            owned[usize::from(*owner)] += 1;
        }
    }
}
