//! Figures of a whole set and of the groups that its columns divide it into, gathered row by row.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, DatasetError};
use crate::manifest::Row;
use crate::metrics::{Prediction, REPLICATES, Scores, TaskMetrics, Weights};
use crate::worst::{Worst, WorstErrors};

/// Most values of a column that groups are made of: each keeps sums of its own.
pub const MAX_VALUES: usize = 50;

/// Most columns that groups are made of.
pub const MAX_COLUMNS: usize = 4;

/// Replicates behind the intervals of a group. There may be many groups, and their intervals are wide anyway.
const GROUP_REPLICATES: usize = 400;

/// Figures of the rows with one value in a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupMetrics {
    /// Rows that were answered.
    pub n: u64,
    /// Their figures.
    pub tasks: TaskMetrics,
}

/// Figures of the groups that a column divides a set into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupedMetrics {
    /// By the text of the column; that of an empty cell is empty.
    pub values: BTreeMap<String, GroupMetrics>,
    /// For each figure, by task and name, the difference between the group where it is highest and the one where it is lowest. The
    /// smaller a group, the more of its gap is chance: its intervals tell.
    pub largest_gap: BTreeMap<String, f64>,
}

/// Columns that divide a set into groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, usize)>);

impl Columns {
    /// The columns of a set with these names, for grouping these of its rows.
    ///
    /// # Errors
    /// When there is no such column, there are too many, or one has too many different values.
    pub fn of(dataset: &Dataset, names: &[String], rows: &[&Row]) -> Result<Self, DatasetError> {
        if names.len() > MAX_COLUMNS {
            return Err(DatasetError::TooManyGroupings { limit: MAX_COLUMNS });
        }
        let mut columns = Vec::new();
        for name in names {
            let column = dataset.column(name)?;
            let mut values = BTreeSet::new();
            for row in rows {
                values.insert(row.cell(column).trim());
                if values.len() > MAX_VALUES {
                    return Err(DatasetError::TooManyGroups { column: name.clone(), limit: MAX_VALUES });
                }
            }
            columns.push((name.clone(), column));
        }
        Ok(Self(columns))
    }
}

#[derive(Clone, Debug, Default)]
struct Group {
    rows: u64,
    scores: Scores,
}

/// Everything that a report says about rows, kept in a memory that does not grow with their number.
#[derive(Clone, Debug)]
pub struct Gathered {
    columns: Columns,
    whole: Scores,
    groups: Vec<BTreeMap<String, Group>>,
    worst: Worst,
    weights: Weights,
    rows: u64,
}

impl Gathered {
    /// Nothing counted yet.
    pub fn new(columns: Columns) -> Self {
        let groups = vec![BTreeMap::new(); columns.0.len()];
        Self {
            columns,
            whole: Scores::default(),
            groups,
            worst: Worst::default(),
            weights: Weights::new(REPLICATES),
            rows: 0,
        }
    }

    /// Counts a row that was answered. The same rows in the same order give the same figures and intervals.
    pub fn add(&mut self, row: &Row, prediction: &Prediction) {
        let weights = self.weights.draw(self.rows);
        self.rows += 1;
        self.whole.add_weighted(&row.labels, prediction, weights);
        for ((_, column), groups) in self.columns.0.iter().zip(&mut self.groups) {
            let group = groups.entry(row.cell(*column).trim().to_owned()).or_default();
            group.rows += 1;
            group.scores.add_weighted(&row.labels, prediction, &weights[..GROUP_REPLICATES]);
        }
        self.worst.add(row, prediction);
    }

    /// The figures of all rows so far.
    pub fn tasks(&self) -> TaskMetrics {
        self.whole.finish()
    }

    /// The rows so far that were answered worst.
    pub fn worst(&self) -> WorstErrors {
        self.worst.finish()
    }

    /// The figures of the groups so far, by column.
    pub fn groups(&self) -> BTreeMap<String, GroupedMetrics> {
        let finish = |groups: &BTreeMap<String, Group>| {
            let metrics = |group: &Group| GroupMetrics { n: group.rows, tasks: group.scores.finish() };
            let values = groups.iter().map(|(value, group)| (value.clone(), metrics(group))).collect();
            GroupedMetrics { largest_gap: largest_gap(&values), values }
        };
        self.columns.0.iter().zip(&self.groups).map(|((name, _), groups)| (name.clone(), finish(groups))).collect()
    }
}

/// Highest minus lowest of every figure that at least two groups have.
fn largest_gap(values: &BTreeMap<String, GroupMetrics>) -> BTreeMap<String, f64> {
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for figure in values.values().flat_map(|group| group.tasks.figures()) {
        found.entry(figure.path()).or_default().push(figure.value);
    }
    let gap = |values: Vec<f64>| {
        let (low, high) =
            values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
        (values.len() > 1).then_some(high - low)
    };
    found.into_iter().filter_map(|(path, values)| Some((path, gap(values)?))).collect()
}
