//! The tasks and their label lists. The order of a list is the order in tensors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of ages a network distinguishes: 0, 1, … 100 years; older counts as 100.
pub const AGES: usize = 101;

/// One question about a face.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Age in years, as a distribution over 0..=100.
    Age,
    /// Perceived gender, binary as in the data the networks learn from.
    Gender,
    /// Neutral or smiling.
    Smile,
    /// Seven emotions in the order of FER2013.
    Emotion,
}

impl Task {
    /// Every task, in the order of answers.
    pub const ALL: [Self; 4] = [Self::Age, Self::Gender, Self::Smile, Self::Emotion];

    /// The name in JSON, in queries and of the network's output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Gender => "gender",
            Self::Smile => "smile",
            Self::Emotion => "emotion",
        }
    }

    /// Labels in tensor order. Age has none: its classes are the years themselves.
    pub const fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Age => &[],
            Self::Gender => &["female", "male"],
            Self::Smile => &["neutral", "smiling"],
            Self::Emotion => &["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"],
        }
    }

    /// Number of classes of the network's head.
    pub const fn classes(self) -> usize {
        match self {
            Self::Age => AGES,
            _ => self.labels().len(),
        }
    }

    /// Index of a label in tensor order, `None` for a word that is not a label of this task.
    pub fn label_index(self, label: &str) -> Option<usize> {
        self.labels().iter().position(|known| *known == label)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown task '{0}': the tasks are age, gender, smile and emotion")]
pub struct UnknownTask(pub String);

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|task| task.name() == word).ok_or_else(|| UnknownTask(word.to_owned()))
    }
}

/// The eight age groups of Adience, with gaps between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgeGroup(usize);

impl AgeGroup {
    /// Names in ascending order.
    pub const NAMES: [&'static str; 8] = ["0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100"];
    const EDGES: [(f32, f32); 8] =
        [(0.0, 2.0), (4.0, 6.0), (8.0, 12.0), (15.0, 20.0), (25.0, 32.0), (38.0, 43.0), (48.0, 53.0), (60.0, 100.0)];

    /// The group of an age: the one whose range holds it; between two groups the one with the nearer
    /// edge, ties to the lower. Ages over 100 count as 100, negative ones as 0.
    pub fn from_years(years: f32) -> Self {
        let next = Self::EDGES.iter().position(|(_, high)| years <= *high).unwrap_or(Self::EDGES.len() - 1);
        let (low, _) = Self::EDGES[next];
        if next > 0 && years < low && years - Self::EDGES[next - 1].1 <= low - years {
            return Self(next - 1);
        }
        Self(next)
    }

    /// The group at a position among the eight, 0 for the youngest; `None` beyond them.
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < Self::NAMES.len() { Some(Self(index)) } else { None }
    }

    /// Position among the eight, 0 for the youngest.
    pub const fn index(self) -> usize {
        self.0
    }

    /// The name, as in `25-32`.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for task in Task::ALL {
            assert_eq!(task.name().parse(), Ok(task));
        }
        assert_eq!("Age".parse::<Task>(), Err(UnknownTask("Age".into())));
    }

    #[test]
    fn ages_between_groups_go_to_the_nearer_edge_and_ties_to_the_lower() {
        for (years, group) in [
            (-1.0, "0-2"),
            (0.0, "0-2"),
            (2.0, "0-2"),
            (2.9, "0-2"),
            (3.0, "0-2"),
            (3.1, "4-6"),
            (7.0, "4-6"),
            (12.0, "8-12"),
            (13.5, "8-12"),
            (13.6, "15-20"),
            (22.0, "15-20"),
            (22.5, "15-20"),
            (23.0, "25-32"),
            (35.0, "25-32"),
            (36.0, "38-43"),
            (45.5, "38-43"),
            (56.5, "48-53"),
            (57.0, "60-100"),
            (100.0, "60-100"),
            (116.0, "60-100"),
        ] {
            assert_eq!(AgeGroup::from_years(years).name(), group, "{years} years");
        }
    }
}
