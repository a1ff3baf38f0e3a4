//! Figures of the age.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use facewise_core::decode::{AgeDistribution, AgePoint};
use facewise_core::task::{AGES, AgeGroup};
use serde::{Deserialize, Serialize};

use super::bootstrap::{Interval, Replicated};

/// Largest tolerance of the cumulative score, in years.
const TOLERANCES: usize = 10;

/// Number of Adience groups.
const GROUPS: usize = AgeGroup::NAMES.len();

/// What the figures need of the posterior of an age.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AgeReading {
    /// The age in years that is answered.
    pub years: f32,
    /// Lower end of the 68 % interval, in whole years.
    pub low: u8,
    /// Upper end of the 68 % interval, in whole years.
    pub high: u8,
}

impl AgeReading {
    /// Reads a posterior, the years as `point` says.
    pub fn of(posterior: &AgeDistribution, point: AgePoint) -> Self {
        let (low, high) = posterior.interval();
        Self { years: posterior.years(point), low, high }
    }

    /// The Adience group of the years.
    pub fn group(&self) -> AgeGroup {
        AgeGroup::from_years(self.years)
    }

    /// Whether the interval holds the true age in whole years, its ends included; an age over 100 counts as 100.
    pub fn covers(&self, truth: f32) -> bool {
        let whole_years = truth.round().min((AGES - 1) as f32);
        (f32::from(self.low)..=f32::from(self.high)).contains(&whole_years)
    }
}

/// Ten years of age by their first, a multiple of ten; written `30-39`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Decade(u16);

impl Decade {
    /// The decade of an age in years, which is not negative.
    pub fn of(years: f32) -> Self {
        Self((years / 10.0) as u16 * 10)
    }

    /// Its first year of age.
    pub const fn first(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Decade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.0 + 9)
    }
}

impl From<Decade> for String {
    fn from(decade: Decade) -> Self {
        decade.to_string()
    }
}

/// A text that is no decade.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no decade of age such as 30-39")]
pub struct NotADecade(String);

impl FromStr for Decade {
    type Err = NotADecade;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let first = text.split_once('-').and_then(|(first, _)| first.parse::<u16>().ok());
        let decade = first.filter(|first| *first < 1000).map(Self);
        decade.filter(|decade| decade.0 % 10 == 0 && decade.to_string() == text).ok_or_else(|| NotADecade(text.into()))
    }
}

impl TryFrom<String> for Decade {
    type Error = NotADecade;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Figures of the faces of one decade.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecadeMetrics {
    /// Rows counted.
    pub n: u64,
    /// Mean absolute error in years.
    pub mae: f64,
    /// Mean error in years.
    #[serde(default)]
    pub mean_error: f64,
}

/// Figures of the age. Errors are prediction minus truth in years.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgeMetrics {
    /// Rows counted.
    pub n: u64,
    /// Mean absolute error.
    pub mae: f64,
    /// Mean error; positive where faces are taken for older than they are.
    pub mean_error: f64,
    /// Share of rows with an absolute error of at most 5 years: the cumulative score CS(5) of Geng et al. 2007,
    /// "Automatic Age Estimation Based on Facial Aging Patterns".
    pub cs5: f64,
    /// The cumulative score for tolerances of 1 to 10 years (the same).
    #[serde(default)]
    pub cs: BTreeMap<u8, f64>,
    /// Share of rows whose Adience group ([`AgeGroup::from_years`]) is the true one (Eidinger et al. 2014, "Age and
    /// Gender Estimation of Unfiltered Faces").
    pub accuracy_8: f64,
    /// Share of rows whose Adience group is the true one or next to it (the same).
    pub accuracy_8_one_off: f64,
    /// Counts of the Adience groups: row by truth, column by prediction.
    #[serde(default)]
    pub confusion_8: Vec<Vec<u64>>,
    /// Share of rows whose age in whole years lies in the 68 % interval, its ends included; ages over 100 count as 100,
    /// the highest that a network distinguishes. As both ends are whole years, calibrated intervals give a little more
    /// than 0.68.
    pub interval_coverage: f64,
    /// Mean absolute error by decade of the true age.
    pub mae_by_decade: BTreeMap<Decade, DecadeMetrics>,
    /// 95 % intervals of the figures above, by name: [`REPLICATES`](super::REPLICATES) of the Poisson bootstrap, see
    /// [`Weights`](super::Weights).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub intervals: BTreeMap<String, Interval>,
}

/// Sums over rows.
#[derive(Clone, Debug, Default)]
struct Tally {
    rows: u32,
    absolute: f64,
    error: f64,
    /// Rows with an error within 1, 2, … years.
    within: [u32; TOLERANCES],
    same_group: u32,
    near_group: u32,
    covered: u32,
}

impl Tally {
    /// Mean absolute error, mean error, CS(5), accuracy in groups, the same one off, and coverage; NaN of no rows.
    fn figures(&self) -> [f64; 6] {
        let share = |sum: f64| sum / f64::from(self.rows);
        let [same, near, covered, within_5] =
            [self.same_group, self.near_group, self.covered, self.within[4]].map(|rows| share(f64::from(rows)));
        [share(self.absolute), share(self.error), within_5, same, near, covered]
    }
}

/// Gathers [`AgeMetrics`].
#[derive(Clone, Debug, Default)]
pub struct AgeScore {
    tally: Replicated<Tally>,
    /// Rows, summed absolute error, summed error.
    decades: BTreeMap<Decade, (u64, f64, f64)>,
    confusion: [[u64; GROUPS]; GROUPS],
}

impl AgeScore {
    /// Counts one row: the true age in years, and the prediction.
    pub fn add(&mut self, truth: f32, prediction: AgeReading) {
        self.add_weighted(truth, prediction, &[]);
    }

    /// The same, and in each replicate as often as `weights` say.
    pub fn add_weighted(&mut self, truth: f32, prediction: AgeReading, weights: &[u8]) {
        let error = f64::from(prediction.years) - f64::from(truth);
        let (group, true_group) = (prediction.group().index(), AgeGroup::from_years(truth).index());
        let steps = group.abs_diff(true_group);
        let covered = prediction.covers(truth);
        self.tally.count(weights, |tally, times| {
            tally.rows += times;
            tally.absolute += f64::from(times) * error.abs();
            tally.error += f64::from(times) * error;
            for (years, within) in (1u8..).zip(&mut tally.within) {
                *within += times * u32::from(error.abs() <= f64::from(years));
            }
            tally.same_group += times * u32::from(steps == 0);
            tally.near_group += times * u32::from(steps <= 1);
            tally.covered += times * u32::from(covered);
        });

        self.confusion[true_group][group] += 1;
        let (rows, absolute, sum) = self.decades.entry(Decade::of(truth)).or_default();
        *rows += 1;
        *absolute += error.abs();
        *sum += error;
    }

    /// The figures so far.
    pub fn finish(&self) -> Option<AgeMetrics> {
        let whole = self.tally.whole();
        let [mae, mean_error, cs5, accuracy_8, accuracy_8_one_off, interval_coverage] = whole.figures();
        let names = ["mae", "mean_error", "cs5", "accuracy_8", "accuracy_8_one_off", "interval_coverage"];
        let decade = |(decade, (n, absolute, error)): (&Decade, &(u64, f64, f64))| {
            (*decade, DecadeMetrics { n: *n, mae: absolute / *n as f64, mean_error: error / *n as f64 })
        };
        (whole.rows > 0).then(|| AgeMetrics {
            n: u64::from(whole.rows),
            mae,
            mean_error,
            cs5,
            cs: (1..).zip(whole.within.map(|rows| f64::from(rows) / f64::from(whole.rows))).collect(),
            accuracy_8,
            accuracy_8_one_off,
            confusion_8: self.confusion.iter().map(|row| row.to_vec()).collect(),
            interval_coverage,
            mae_by_decade: self.decades.iter().map(decade).collect(),
            intervals: self.tally.intervals(names, Tally::figures),
        })
    }
}
