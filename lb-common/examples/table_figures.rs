//! Prints the figures of the rendezvous tables that the documentation shows: equal weights, ten seeds, ten backends of
//! each drained one at a time.

use lb_common::flow::mix;
use lb_common::table::{Algorithm as _, Member, Rendezvous};

/// Number of backends and of slots.
const ROWS: [(usize, usize); 6] =
    [(10, 1 << 12), (40, 1 << 12), (64, 1 << 14), (100, 1 << 16), (327, 1 << 17), (500, 1 << 16)];
const SEEDS: u64 = 10;
const DRAINED: usize = 10;

#[derive(Default)]
struct Figures {
    heaviest: f64,
    lightest: f64,
    ratios: Vec<f64>,
    moved: usize,
    lost: usize,
}

fn build(seed: u64, members: &[Member], slots: usize) -> Vec<u16> {
    let mut table = vec![0; slots];
    Rendezvous.build(seed, members, &mut table).expect("members and slots are within the limits");
    table
}

fn add(figures: &mut Figures, seed: u64, backends: usize, slots: usize) {
    let identity = |index: usize| mix(seed << 32 | index as u64);
    let members: Vec<_> =
        (0..backends).map(|index| Member { identity: identity(index), rank: 100, share: 100 }).collect();
    let full = build(seed, &members, slots);
    let mut owned = vec![0usize; backends];
    full.iter().for_each(|place| owned[usize::from(*place)] += 1);
    let mean = slots as f64 / backends as f64;
    for count in &owned {
        figures.heaviest = figures.heaviest.max(*count as f64 / mean);
        figures.lightest = figures.lightest.min(*count as f64 / mean);
    }
    for step in 0..DRAINED {
        let one = step * backends / DRAINED;
        let draining: Vec<_> = (0..backends)
            .map(|index| Member { identity: identity(index), rank: 100, share: if index == one { 0 } else { 100 } })
            .collect();
        let drained = build(seed, &draining, slots);
        let rankings = Rendezvous.rankings(seed, &draining, slots).expect("as above");
        let moved: Vec<usize> = (0..slots).filter(|slot| full[*slot] != drained[*slot]).collect();
        for slot in &moved {
            let mut top = [0; 3];
            let found = rankings.of(*slot as u32, &mut top);
            figures.lost += usize::from(!top[..found].contains(&full[*slot]));
        }
        figures.moved += moved.len();
        figures.ratios.push(moved.len() as f64 / owned[one] as f64);
    }
}

fn main() {
    println!("backends   slots  heaviest  lightest  moved: mean  worst  not in the top 3");
    for (backends, slots) in ROWS {
        let mut figures = Figures { lightest: f64::MAX, ..Figures::default() };
        (0..SEEDS).for_each(|seed| add(&mut figures, seed, backends, slots));
        let mean = figures.ratios.iter().sum::<f64>() / figures.ratios.len() as f64;
        let worst = figures.ratios.iter().copied().fold(0.0, f64::max);
        let lost = 100.0 * figures.lost as f64 / figures.moved as f64;
        let (heaviest, lightest) = (figures.heaviest, figures.lightest);
        println!("{backends:>8} {slots:>7} {heaviest:>9.3} {lightest:>9.3} {mean:>12.3} {worst:>6.3} {lost:>15.2} %");
    }
}
