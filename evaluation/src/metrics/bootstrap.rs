//! Intervals of figures without keeping the rows: the Poisson bootstrap. A replicate of the plain bootstrap (Efron 1979) counts
//! each row about Poisson(1) times, so a row that streams past can be given its count in every replicate at once, and nothing but
//! the sums is kept (Chamandy, Muralidharan, Najmi and Naidu 2012, "Estimating Uncertainty for Massive Data Streams").

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Replicates behind the intervals of a whole set (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", ask for 1,000).
pub const REPLICATES: usize = 1000;

/// Lower and upper end of a 95 % interval.
pub type Interval = [f64; 2];

/// `P(X ≤ k)` of Poisson(1), `e⁻¹ Σ 1/i!`, as parts of 65,536: how often a row counts is the number of these that a random
/// 16-bit number reaches. More than seven times happens once in 100,000 and is left out.
const CUMULATIVE: [u16; 7] = [24_109, 48_219, 60_273, 64_291, 65_296, 65_497, 65_531];

/// How often each replicate counts a row.
#[derive(Clone, Debug)]
pub struct Weights {
    random: ChaCha8Rng,
    bytes: Vec<u8>,
    counts: Vec<u8>,
}

impl Weights {
    /// For this many replicates.
    pub fn new(replicates: usize) -> Self {
        let random = ChaCha8Rng::seed_from_u64(0);
        Self { random, bytes: vec![0; 2 * replicates], counts: vec![0; replicates] }
    }

    /// Draws the counts of a row. They follow from its number alone, so that the intervals of the same rows are the same, on any
    /// machine and after an interruption.
    pub fn draw(&mut self, row: u64) -> &[u8] {
        self.random.set_stream(row);
        self.random.set_word_pos(0);
        self.random.fill_bytes(&mut self.bytes);
        for (count, bytes) in self.counts.iter_mut().zip(self.bytes.chunks_exact(2)) {
            let number = u16::from_le_bytes([bytes[0], bytes[1]]);
            *count = CUMULATIVE.iter().map(|bound| u8::from(number >= *bound)).sum();
        }
        &self.counts
    }
}

/// A tally of the rows as they are, and one for each replicate. Those of the replicates come with the first row: a tally that
/// never gets one takes no memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Replicated<T> {
    whole: T,
    replicates: Vec<T>,
}

impl<T: Clone + Default> Replicated<T> {
    /// Counts a row once in the whole, and as often as `weights` say in the replicates.
    pub(super) fn count(&mut self, weights: &[u8], mut add: impl FnMut(&mut T, u32)) {
        add(&mut self.whole, 1);
        if self.replicates.is_empty() {
            self.replicates.resize(weights.len(), T::default());
        }
        for (replicate, weight) in self.replicates.iter_mut().zip(weights) {
            if *weight > 0 {
                add(replicate, u32::from(*weight));
            }
        }
    }

    /// The tally of the rows as they are.
    pub(super) const fn whole(&self) -> &T {
        &self.whole
    }

    /// The 95 % intervals of the figures that `figures` reads from a tally: from the 2.5th to the 97.5th percentile of the
    /// replicates (Efron and Tibshirani 1993, section 13.3). A replicate that counts no row has no figures, which are NaN.
    pub(super) fn intervals<const N: usize>(
        &self,
        names: [&str; N],
        figures: impl Fn(&T) -> [f64; N],
    ) -> BTreeMap<String, Interval> {
        let rows: Vec<[f64; N]> = self.replicates.iter().map(figures).collect();
        let interval = |(index, name): (usize, &str)| {
            let mut values: Vec<f64> = rows.iter().map(|row| row[index]).filter(|value| value.is_finite()).collect();
            values.sort_by(f64::total_cmp);
            Some((name.to_owned(), [percentile(&values, 0.025)?, percentile(&values, 0.975)?]))
        };
        names.into_iter().enumerate().filter_map(interval).collect()
    }
}

/// The percentile of sorted values, linear between neighbours as in numpy; `None` of no values.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let position = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    Some(below + (above - below) * position.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_a_poisson_distribution() {
        let mut weights = Weights::new(REPLICATES);
        let (mut rows, mut sum, mut squares, mut none) = (0.0, 0.0, 0.0, 0.0);
        for row in 0..200 {
            for count in weights.draw(row) {
                let count = f64::from(*count);
                (rows, sum, squares) = (rows + 1.0, sum + count, squares + count * count);
                none += f64::from(u8::from(count == 0.0));
            }
        }
        let mean: f64 = sum / rows;
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
        assert!((squares / rows - mean * mean - 1.0).abs() < 0.02, "variance");
        assert!((none / rows - (-1f64).exp()).abs() < 0.005, "share of rows that a replicate leaves out");
    }

    #[test]
    fn counts_follow_from_the_number_of_the_row() {
        let (mut there, mut back) = (Weights::new(50), Weights::new(50));
        let forwards: Vec<Vec<u8>> = (0..5).map(|row| there.draw(row).to_vec()).collect();
        let mut backwards: Vec<Vec<u8>> = (0..5).rev().map(|row| back.draw(row).to_vec()).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        assert_ne!(forwards[0], forwards[1]);
    }

    #[test]
    fn percentiles_are_linear_between_neighbours() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[3.0], 0.975), Some(3.0));
        assert_eq!(percentile(&[0.0, 10.0, 20.0, 30.0, 40.0], 0.025), Some(1.0));
    }
}
