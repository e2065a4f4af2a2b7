//! Properties of the tables: balance, how little a change moves, and that all hosts agree.
//!
//! Cases are random but the same in every run: the bounds on moved slots are those of a distribution, and a run that
//! fails must fail again.

use std::cell::Cell;

use lb_common::flow::mix;
use lb_common::table::{Algorithm, MAX_WEIGHT, Member, Rendezvous, TableError};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Numbers of backends from 3 to 500, both sides of every power of two among them.
const COUNTS: [usize; 26] =
    [3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 100, 127, 128, 129, 163, 255, 256, 257, 327, 500];

/// How the weights of a set of backends are spread.
#[derive(Clone, Copy, Debug)]
enum Weights {
    Equal,
    Uniform,
    /// Powers of two, from 1 to 512.
    Steep,
    /// 1 and 1,000 by turns.
    Extremes,
    /// Sums of up to 250 pods' weights of 100.
    Nodes,
    /// Any, up to the largest that a table takes.
    Large,
}

const SPREADS: [Weights; 6] =
    [Weights::Equal, Weights::Uniform, Weights::Steep, Weights::Extremes, Weights::Nodes, Weights::Large];

fn members(salt: u64, count: usize, weights: Weights) -> Vec<Member> {
    (0..count as u64)
        .map(|i| {
            let random = mix(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(i));
            let weight = match weights {
                Weights::Equal => 100,
                Weights::Uniform => 1 + (random >> 32) as u32 % 1000,
                Weights::Steep => 1 << ((random >> 32) % 10),
                Weights::Extremes => [1, 1000][i as usize % 2],
                Weights::Nodes => 100 * (1 + (random >> 32) as u32 % 250),
                Weights::Large => 1 + (random >> 32) as u32 % MAX_WEIGHT,
            };
            Member { identity: random, rank: weight, share: weight }
        })
        .collect()
}

fn build(seed: u64, members: &[Member], slots: usize) -> Vec<u16> {
    let mut table = vec![u16::MAX; slots];
    Rendezvous.build(seed, members, &mut table).unwrap();
    table
}

fn owned(table: &[u16], members: &[Member]) -> Vec<u64> {
    let mut owned = vec![0; members.len()];
    table.iter().for_each(|owner| owned[usize::from(*owner)] += 1);
    owned
}

/// The size that the documentation advises: 400 slots a backend, and the next power of two.
fn advised(backends: usize) -> usize {
    (400 * backends).next_power_of_two()
}

/// No backend owns more than 1.05 of its weighted share and one slot, none without a share owns any.
fn balanced(table: &[u16], members: &[Member]) -> Result<(), TestCaseError> {
    let shares: u64 = members.iter().map(|member| u64::from(member.share)).sum();
    for (member, owned) in members.iter().zip(owned(table, members)) {
        let bound = 21 * u64::from(member.share) * table.len() as u64 + 20 * shares;
        prop_assert!(20 * shares * owned <= bound, "{member:?} of {shares} owns {owned} of {}", table.len());
        prop_assert!(member.share > 0 || owned == 0, "{member:?} owns {owned}");
    }
    Ok(())
}

/// What a change moved.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    slots: u64,
    /// Of those whose old owner is still there, the ones that do not have it in the top 3 of their new ranking.
    lost: u64,
}

/// Compare two tables by the owners' identities. At most 1,000 rankings are looked at, spread over what moved.
fn moved(seed: u64, before: (&[Member], &[u16]), after: (&[Member], &[u16])) -> Moved {
    let slots = after.1.len();
    let owner = |(members, table): (&[Member], &[u16]), slot: usize| members[usize::from(table[slot])].identity;
    let moved: Vec<usize> = (0..slots).filter(|slot| owner(before, *slot) != owner(after, *slot)).collect();
    let rankings = Rendezvous.rankings(seed, after.0, slots).unwrap();
    let lost = |slot: usize| {
        let old = owner(before, slot);
        let mut top = [0; 3];
        let found = rankings.of(slot as u32, &mut top);
        after.0.iter().any(|member| member.identity == old)
            && top[..found].iter().all(|index| after.0[usize::from(*index)].identity != old)
    };
    let step = moved.len().div_ceil(1000).max(1);
    let lost = moved.iter().step_by(step).filter(|slot| lost(**slot)).count() * step;
    Moved { slots: moved.len() as u64, lost: lost as u64 }
}

/// At most 1.15 times the minimum moves, and 98 % of it finds its old owner in the top 3.
///
/// The first is the bound of a distribution with a tail. With equal weights no case here passes it. With very unequal
/// ones a backend of 100 to 300 slots passes it once in about 1,500 changes, because caps are whole slots; `tail` allows
/// for that by half the square root of the minimum, and [`a_change_moves_little`] counts how often it is made use of.
fn small(moved: Moved, minimum: u64, tail: bool, what: &str) -> Result<(), TestCaseError> {
    let beyond = if tail { 50 * minimum.isqrt() } else { 0 };
    prop_assert!(moved.slots >= minimum, "{what}: {moved:?} is less than the minimum {minimum}");
    prop_assert!(100 * moved.slots <= 115 * minimum + beyond, "{what}: {moved:?}, minimum {minimum}");
    prop_assert!(100 * moved.lost <= 2 * moved.slots, "{what}: {moved:?}, minimum {minimum}");
    Ok(())
}

fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn spread() -> impl Strategy<Value = Weights> {
    proptest::sample::select(&SPREADS[..])
}

fn slots() -> impl Strategy<Value = usize> {
    (6u32..=14).prop_map(|bits| 1 << bits)
}

/// One backend drains, leaves, and comes back: whether more than 1.15 times the minimum moved.
fn one_backend_changes(seed: u64, count: usize, weights: Weights, pick: u64) -> Result<bool, TestCaseError> {
    let tail = !matches!(weights, Weights::Equal);
    let all = members(seed, count, weights);
    let slots = advised(count);
    let full = build(seed, &all, slots);
    balanced(&full, &all)?;
    let owned = owned(&full, &all);
    let large: Vec<usize> = (0..count).filter(|member| owned[*member] >= 100).collect();
    let one = large[pick as usize % large.len()];

    let mut draining = all.clone();
    draining[one].share = 0;
    let drained = build(seed, &draining, slots);
    balanced(&drained, &draining)?;
    let drain = moved(seed, (&all, &full), (&draining, &drained));
    small(drain, owned[one], tail, "drains")?;

    let mut others = all.clone();
    others.remove(one);
    let left = build(seed, &others, slots);
    small(moved(seed, (&all, &full), (&others, &left)), owned[one], tail, "leaves")?;
    prop_assert_eq!(moved(seed, (&draining, &drained), (&others, &left)).slots, 0, "the end of a drain moves nothing");
    small(moved(seed, (&others, &left), (&all, &full)), owned[one], tail, "comes")?;
    Ok(100 * drain.slots > 115 * owned[one])
}

#[test]
fn a_change_moves_little() {
    let (changes, beyond) = (Cell::new(0u32), Cell::new(0u32));
    for (count, weights) in COUNTS.iter().flat_map(|count| SPREADS.map(|weights| (*count, weights))) {
        let case = |(seed, pick): (u64, u64)| {
            let seed = mix(seed ^ count as u64);
            beyond.set(beyond.get() + u32::from(one_backend_changes(seed, count, weights, pick)?));
            changes.set(changes.get() + 1);
            Ok(())
        };
        runner(4)
            .run(&(any::<u64>(), any::<u64>()), case)
            .unwrap_or_else(|error| panic!("{count} backends, {weights:?} weights: {error}"));
    }
    let (changes, beyond) = (changes.get(), beyond.get());
    assert!(200 * beyond <= changes, "{beyond} of {changes} changes moved more than 1.15 times the minimum");
}

/// The number of slots is the service's and stays; a number of backends that crosses a power of two is like any other.
#[test]
fn growing_across_a_power_of_two_moves_little() {
    for power in [4, 8, 16, 32, 64, 128, 256] {
        let slots = advised(power + 2);
        let all = members(power as u64, power + 2, Weights::Equal);
        for count in power - 1..power + 2 {
            let (fewer, more) = (&all[..count], &all[..=count]);
            let (before, after) = (build(9, fewer, slots), build(9, more, slots));
            let came = owned(&after, more)[count];
            let moved = moved(9, (fewer, &before), (more, &after));
            small(moved, came, false, "comes").unwrap_or_else(|error| panic!("{count} backends and one: {error}"));
        }
    }
}

#[test]
fn no_backend_owns_more_than_its_bounded_share() {
    let cases = (any::<u64>(), 3usize..=500, spread(), slots(), any::<u64>());
    runner(200)
        .run(&cases, |(seed, count, weights, slots, draining)| {
            let mut members = members(seed, count, weights);
            // Some drain, and shares need not follow ranks: but one owner must be left.
            for (i, member) in members.iter_mut().enumerate().skip(1) {
                match mix(draining ^ i as u64) % 8 {
                    0 => member.share = 0,
                    1 => member.share = 1 + (mix(draining ^ !(i as u64)) % u64::from(MAX_WEIGHT)) as u32,
                    _ => {}
                }
            }
            balanced(&build(seed, &members, slots), &members)
        })
        .unwrap();
}

#[test]
fn the_order_of_the_members_plays_no_part() {
    let cases = (any::<u64>(), 1usize..=500, spread(), slots(), any::<u64>());
    runner(100)
        .run(&cases, |(seed, count, weights, slots, shuffle)| {
            let members = members(seed, count, weights);
            let mut shuffled = members.clone();
            shuffled.sort_by_key(|member| mix(member.identity ^ shuffle));
            let (one, other) = (build(seed, &members, slots), build(seed, &shuffled, slots));
            prop_assert_eq!(moved(seed, (&members, &one), (&shuffled, &other)).slots, 0);
            let rankings = [&members, &shuffled].map(|members| Rendezvous.rankings(seed, members, slots).unwrap());
            for slot in 0..16 {
                let mut top = [[0; 3]; 2];
                let found = [rankings[0].of(slot, &mut top[0]), rankings[1].of(slot, &mut top[1])];
                prop_assert_eq!(found, [count.min(3); 2]);
                for (one, other) in top[0].iter().zip(&top[1]).take(found[0]) {
                    prop_assert_eq!(members[usize::from(*one)], shuffled[usize::from(*other)]);
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn another_seed_is_another_table() {
    let members = members(1, 10, Weights::Equal);
    let (one, other) = (build(1, &members, 4096), build(2, &members, 4096));
    let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
    assert!((300..=520).contains(&same), "{same} of 4096 slots are the same, a tenth is due");
}

#[test]
fn weights_of_1_and_1000_side_by_side() {
    for seed in 0..20 {
        let members = members(seed, 20, Weights::Extremes);
        let owned = owned(&build(seed, &members, 1 << 18), &members);
        for (member, owned) in members.iter().zip(&owned) {
            let due = f64::from(member.share) * f64::from(1 << 18) / 10010.0;
            let bound = if member.share == 1 { 5.0 * due.sqrt() } else { 0.05 * due + 1.0 };
            assert!((*owned as f64 - due).abs() <= bound, "seed {seed}: {member:?} owns {owned}, {due:.1} are due");
        }
    }
}

#[test]
fn the_largest_weights_share_as_they_say() {
    for seed in 0..5 {
        let weights = [MAX_WEIGHT, MAX_WEIGHT / 2, MAX_WEIGHT / 4, MAX_WEIGHT - 1, 1, 1000];
        let member =
            |(index, weight): (u64, &u32)| Member { identity: mix(seed ^ index), rank: *weight, share: *weight };
        let members: Vec<_> = (100..).zip(&weights).map(member).collect();
        let owned = owned(&build(seed, &members, 1 << 18), &members);
        let total: u32 = weights.iter().sum();
        for (member, owned) in members.iter().zip(&owned) {
            let due = f64::from(member.share) * f64::from(1 << 18) / f64::from(total);
            let bound = 0.01 * due + 4.0 * due.sqrt() + 1.0;
            assert!((*owned as f64 - due).abs() <= bound, "seed {seed}: {member:?} owns {owned}, {due:.1} are due");
        }
    }
}

/// Weights are proportions: with all of them 256 times as large, all but a few places go to the same owners.
#[test]
fn larger_weights_of_the_same_proportions_give_nearly_the_same_table() {
    let members = members(3, 100, Weights::Uniform);
    let larger: Vec<_> =
        members.iter().map(|member| Member { rank: member.rank * 256, share: member.share * 256, ..*member }).collect();
    let (one, other) = (build(3, &members, 1 << 15), build(3, &larger, 1 << 15));
    let differing = one.iter().zip(&other).filter(|(one, other)| one != other).count();
    assert!(differing <= 3, "{differing} of 32768 slots differ");
}

#[test]
fn nobody_to_own_is_an_error() {
    let mut members = members(1, 5, Weights::Uniform);
    members.iter_mut().for_each(|member| member.share = 0);
    assert_eq!(Rendezvous.build(1, &members, &mut [0; 64]), Err(TableError::NoOwner));
    members[3].share = 1;
    assert_eq!(build(1, &members, 64), [3; 64]);
}

/// FNV-1a over a table's slots.
fn digest(table: &[u16]) -> u64 {
    let step = |hash: u64, slot: &u16| (hash ^ u64::from(*slot)).wrapping_mul(0x0100_0000_01b3);
    table.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Edges of one version agree for ever. Whoever has to change a number here raises the algorithm's version.
#[test]
fn golden_tables_pin_the_version() {
    assert_eq!((Rendezvous.name(), Rendezvous.version()), ("rendezvous", 1));
    let member = |identity, rank, share| Member { identity, rank, share };
    let small = [member(1, 100, 100), member(2, 100, 100), member(3, 50, 50), member(4, 1000, 0), member(5, 1, 1)];
    assert_eq!(build(42, &small, 64), GOLDEN_SMALL);
    assert_eq!(digest(&build(42, &members(42, 327, Weights::Equal), 1 << 17)), GOLDEN_EQUAL);
    assert_eq!(digest(&build(7, &members(7, 500, Weights::Uniform), 1 << 16)), GOLDEN_UNIFORM);
    assert_eq!(digest(&build(9, &members(9, 200, Weights::Large), 1 << 16)), GOLDEN_LARGE);
}

const GOLDEN_SMALL: [u16; 64] = [
    1, 0, 2, 0, 1, 1, 0, 0, 0, 2, 0, 0, 2, 1, 1, 0, 0, 0, 1, 1, 2, 0, 1, 2, 1, 1, 1, 0, 1, 2, 1, 1, 1, 0, 2, 0, 0, 2,
    0, 0, 1, 2, 2, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 2, 1, 2, 2, 0, 0, 1, 1, 1, 0,
];
const GOLDEN_EQUAL: u64 = 0x6410_da97_8384_0ea8;
const GOLDEN_UNIFORM: u64 = 0x3346_1a26_e57b_cd79;
const GOLDEN_LARGE: u64 = 0x7730_31c2_5037_c81f;
