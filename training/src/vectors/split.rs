//! Which rows teach, which choose the best epoch, and which only measure.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::SplitConfig;
use super::rows::{Part, Rows};

/// Rows by what they are for, as indices into [`Rows`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Teach.
    pub train: Vec<usize>,
    /// Choose the best epoch.
    pub validation: Vec<usize>,
    /// Measure only; none where nothing is left for it.
    pub test: Vec<usize>,
}

/// Why rows cannot be split.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SplitError {
    /// There are too few to learn from or to validate on.
    #[error("{train} rows to learn from and {validation} to validate on are too few: at least 2 and 1 are needed")]
    TooFew {
        /// Rows to learn from.
        train: usize,
        /// Rows to validate on.
        validation: usize,
    },
    /// There is no such fold.
    #[error("fold {fold} is not one of {folds}, numbered from 0")]
    Fold {
        /// The fold.
        fold: usize,
        /// How many there are.
        folds: usize,
    },
    /// The data brings folds, and there are not as many as asked for.
    #[error("the data has {found} folds, {folds} are asked for")]
    Folds {
        /// Folds in the data.
        found: usize,
        /// Folds asked for.
        folds: usize,
    },
}

/// The split of a training: the data's own where it has one and the configuration keeps to it, else a random one without a test part.
///
/// # Errors
/// When too few rows are left for a part.
pub fn split(rows: &Rows, config: &SplitConfig, seed: u64) -> Result<Split, SplitError> {
    if config.given && !rows.parts.is_empty() {
        let of = |part: Part| (0..rows.len()).filter(|row| rows.parts[*row] == part).collect();
        return checked(Split { train: of(Part::Train), validation: of(Part::Validation), test: of(Part::Test) });
    }
    let (train, validation) = hold_out(rows, (0..rows.len()).collect(), config, seed);
    checked(Split { train, validation, test: Vec::new() })
}

/// The split of one fold of a cross-validation: it is tested on that fold, and validated on a share of the others that depends on the seed.
///
/// Folds are the data's own where it has them; else they are drawn once, the same for all seeds, by subject where the configuration says so.
///
/// # Errors
/// When there is no such fold, or too few rows are left for a part.
pub fn fold(rows: &Rows, config: &SplitConfig, folds: usize, fold: usize, seed: u64) -> Result<Split, SplitError> {
    if fold >= folds {
        return Err(SplitError::Fold { fold, folds });
    }
    let numbers = if rows.folds.is_empty() {
        drawn(rows, folds, config.by_subject)
    } else {
        let found = rows.folds.iter().max().map_or(0, |last| last + 1);
        if found != folds {
            return Err(SplitError::Folds { found, folds });
        }
        rows.folds.clone()
    };
    let (test, rest): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|row| numbers[*row] == fold);
    let (train, validation) = hold_out(rows, rest, config, seed);
    checked(Split { train, validation, test })
}

fn checked(split: Split) -> Result<Split, SplitError> {
    let (train, validation) = (split.train.len(), split.validation.len());
    if train < 2 || validation < 1 { Err(SplitError::TooFew { train, validation }) } else { Ok(split) }
}

/// Number of the fold of each row: whole groups, dealt out in random order to the fold that has fewest rows.
fn drawn(rows: &Rows, folds: usize, by_subject: bool) -> Vec<usize> {
    let mut numbers = vec![0; rows.len()];
    let mut sizes = vec![0; folds];
    for group in groups(rows, (0..rows.len()).collect(), by_subject, 0) {
        let smallest = (0..folds).min_by_key(|fold| sizes[*fold]).unwrap_or_default();
        sizes[smallest] += group.len();
        for row in group {
            numbers[row] = smallest;
        }
    }
    numbers
}

/// Takes the configured share of rows, in whole groups, for validation; at least one row. Returns what is left, and it.
fn hold_out(rows: &Rows, indices: Vec<usize>, config: &SplitConfig, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let wanted = ((indices.len() as f64 * config.validation) as usize).max(1);
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for group in groups(rows, indices, config.by_subject, seed) {
        if validation.len() < wanted { validation.extend(group) } else { train.extend(group) }
    }
    train.sort_unstable();
    validation.sort_unstable();
    (train, validation)
}

/// The rows of each subject, or each row alone, in an order that depends on the seed.
fn groups(rows: &Rows, indices: Vec<usize>, by_subject: bool, seed: u64) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = if by_subject && !rows.subjects.is_empty() {
        let mut people: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for row in indices {
            people.entry(rows.subjects[row]).or_default().push(row);
        }
        people.into_values().collect()
    } else {
        indices.into_iter().map(|row| vec![row]).collect()
    };
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    groups
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    const CONFIG: SplitConfig = SplitConfig { given: true, validation: 0.1, by_subject: true };

    /// A hundred rows of 25 people, four rows each.
    fn rows() -> Rows {
        Rows {
            features: 1,
            values: vec![0.0; 100],
            classes: vec![0; 100],
            subjects: (0..100).map(|row| row / 4).collect(),
            ..Rows::default()
        }
    }

    fn people(rows: &Rows, indices: &[usize]) -> BTreeSet<usize> {
        indices.iter().map(|row| rows.subjects[*row]).collect()
    }

    #[test]
    fn nobody_is_on_two_sides() {
        let rows = rows();
        let by_subject = split(&rows, &CONFIG, 42).unwrap();
        assert_eq!((by_subject.train.len(), by_subject.validation.len()), (88, 12));
        assert!(people(&rows, &by_subject.train).is_disjoint(&people(&rows, &by_subject.validation)));
        assert_eq!(split(&rows, &CONFIG, 42).unwrap(), by_subject);
        assert_ne!(split(&rows, &CONFIG, 43).unwrap(), by_subject);

        let mixed = split(&rows, &SplitConfig { by_subject: false, ..CONFIG }, 42).unwrap();
        assert_eq!((mixed.train.len(), mixed.validation.len()), (90, 10));
        assert!(!people(&rows, &mixed.train).is_disjoint(&people(&rows, &mixed.validation)));
    }

    #[test]
    fn the_datas_own_split_is_kept_where_the_recipe_says_so() {
        let parts = (0..100).map(|row| [Part::Train, Part::Train, Part::Validation, Part::Test][row % 4]).collect();
        let rows = Rows { parts, ..rows() };
        let given = split(&rows, &CONFIG, 1).unwrap();
        assert_eq!((given.train.len(), given.validation.len(), given.test.len()), (50, 25, 25));
        assert!(given.test.iter().all(|row| row % 4 == 3));
        let random = split(&rows, &SplitConfig { given: false, ..CONFIG }, 1).unwrap();
        assert_eq!(random.test.len(), 0);
    }

    #[test]
    fn folds_cover_every_row_once_and_keep_people_together() {
        let rows = rows();
        let mut seen = Vec::new();
        for number in 0..5 {
            let one = fold(&rows, &CONFIG, 5, number, 7).unwrap();
            assert_eq!((one.train.len(), one.validation.len(), one.test.len()), (72, 8, 20));
            let rest: Vec<usize> = one.train.iter().chain(&one.validation).copied().collect();
            assert!(people(&rows, &rest).is_disjoint(&people(&rows, &one.test)));
            assert_eq!(fold(&rows, &CONFIG, 5, number, 8).unwrap().test, one.test, "seeds share their folds");
            seen.extend(one.test);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn folds_of_the_data_are_its_own() {
        let rows = Rows { folds: (0..100).map(|row| row % 3).collect(), ..rows() };
        assert!(fold(&rows, &CONFIG, 3, 2, 0).unwrap().test.iter().all(|row| row % 3 == 2));
        assert_eq!(fold(&rows, &CONFIG, 5, 2, 0), Err(SplitError::Folds { found: 3, folds: 5 }));
        assert_eq!(fold(&rows, &CONFIG, 3, 3, 0), Err(SplitError::Fold { fold: 3, folds: 3 }));
    }

    #[test]
    fn too_few_rows_are_an_error() {
        let few = Rows { classes: vec![0; 2], values: vec![0.0; 2], features: 1, ..Rows::default() };
        let error = split(&few, &CONFIG, 0).unwrap_err();
        assert_eq!(error, SplitError::TooFew { train: 1, validation: 1 });
    }
}
