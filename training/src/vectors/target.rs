//! What a network on vectors tells, and which class a label belongs to.

use std::fmt;
use std::str::FromStr;

use facewise_core::decode::AgePoint;
use facewise_core::manifest::{Head, Values};
use facewise_core::task::{AgeGroup, Task};
use facewise_evaluation::manifest::Labels;
use serde::{Deserialize, Serialize};

/// Middles of the eight age groups in years, as the published experiments had them.
const CENTRES: [f32; 8] = [1.0, 5.0, 10.0, 17.5, 28.5, 40.5, 50.5, 80.0];

/// What is learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Years, 101 classes.
    Age,
    /// The eight age groups, by their ranges ([`AgeGroup::from_years`]).
    AgeGroups,
    /// The eight age groups, by the nearest of their middles; ties go to the lower. A recipe says so where it uses this rule.
    AgeGroupsByCentre,
    /// The labels of a task: gender, smile or emotion.
    Labels(Task),
    /// One of `CelebA`'s attributes, as in `Attractive`: without it or with it.
    Attribute(String),
}

/// A word that names no target.
#[derive(Debug, thiserror::Error)]
#[error(
    "unknown target '{0}': age, age-groups, age-groups-by-centre, gender, smile and emotion are known, and CelebA's attributes, as in Smiling"
)]
pub struct UnknownTarget(String);

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(word: &str) -> Result<Self, UnknownTarget> {
        match word {
            "age" => Ok(Self::Age),
            "age-groups" => Ok(Self::AgeGroups),
            "age-groups-by-centre" => Ok(Self::AgeGroupsByCentre),
            "gender" => Ok(Self::Labels(Task::Gender)),
            "smile" => Ok(Self::Labels(Task::Smile)),
            "emotion" => Ok(Self::Labels(Task::Emotion)),
            // CelebA writes its attributes with a capital or, one of them, a digit.
            name if name.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit()) => {
                Ok(Self::Attribute(name.to_owned()))
            }
            _ => Err(UnknownTarget(word.to_owned())),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = UnknownTarget;

    fn try_from(word: String) -> Result<Self, UnknownTarget> {
        word.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Age => "age",
            Self::AgeGroups => "age-groups",
            Self::AgeGroupsByCentre => "age-groups-by-centre",
            Self::Labels(task) => task.name(),
            Self::Attribute(name) => name,
        })
    }
}

impl Target {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        match self {
            Self::Age => Task::Age.classes(),
            Self::AgeGroups | Self::AgeGroupsByCentre => AgeGroup::NAMES.len(),
            Self::Labels(task) => task.classes(),
            Self::Attribute(_) => 2,
        }
    }

    /// The class of a face; nothing where it is not labelled for this, and always for attributes, which are no labels.
    pub fn class(&self, labels: &Labels) -> Option<usize> {
        match self {
            Self::Age => labels.age.map(|years| (years.round() as usize).min(self.classes() - 1)),
            Self::AgeGroups => labels.age.map(|years| AgeGroup::from_years(years).index()),
            Self::AgeGroupsByCentre => labels.age.map(nearest_centre),
            Self::Labels(task) => labels.class(*task),
            Self::Attribute(_) => None,
        }
    }

    /// Whether neighbouring classes are alike, so that being off by one is half a success.
    pub fn is_ordered(&self) -> bool {
        matches!(self, Self::Age | Self::AgeGroups | Self::AgeGroupsByCentre)
    }

    /// Name of the network's head: its task where a server knows one, else the attribute.
    pub fn head(&self) -> &str {
        match (self.served(), self) {
            (Some(head), _) => head.task.name(),
            (None, Self::Attribute(name)) => name,
            (None, _) => unreachable!("only attributes are unknown to servers"),
        }
    }

    /// The head as a manifest describes it; nothing of attributes that a server has no task for.
    pub fn served(&self) -> Option<Head> {
        let (task, labels) = match self {
            Self::Age => (Task::Age, &[][..]),
            Self::AgeGroups | Self::AgeGroupsByCentre => (Task::Age, &AgeGroup::NAMES[..]),
            Self::Labels(task) => (*task, task.labels()),
            Self::Attribute(name) => {
                let task = match name.as_str() {
                    "Male" => Task::Gender,
                    "Smiling" => Task::Smile,
                    _ => return None,
                };
                (task, task.labels())
            }
        };
        Some(Head {
            task,
            output: task.name().to_owned(),
            values: Values::Probabilities,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            point: (*self == Self::Age).then_some(AgePoint::Median),
            votes: None,
        })
    }
}

/// The group with the nearest middle; of two the lower.
fn nearest_centre(years: f32) -> usize {
    let mut best = 0;
    for (group, centre) in CENTRES.iter().enumerate() {
        if (years - centre).abs() < (years - CENTRES[best]).abs() {
            best = group;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["age", "age-groups", "age-groups-by-centre", "gender", "smile", "emotion", "5_o_Clock_Shadow"] {
            assert_eq!(name.parse::<Target>().unwrap().to_string(), name);
        }
        assert!("years".parse::<Target>().unwrap_err().to_string().starts_with("unknown target 'years'"));
    }

    #[test]
    fn ages_become_classes_by_the_rule_of_the_target() {
        let classes = |years: f32| {
            let labels = Labels { age: Some(years), ..Labels::default() };
            [Target::Age, Target::AgeGroups, Target::AgeGroupsByCentre].map(|target| target.class(&labels).unwrap())
        };
        assert_eq!(classes(0.4), [0, 0, 0]);
        // Three years are as far from one as from five; both rules let ties fall.
        assert_eq!(classes(3.0), [3, 0, 0]);
        // Between 17.5 and 28.5, and between the ranges 15-20 and 25-32.
        assert_eq!(classes(23.0), [23, 4, 3]);
        // Nearer to the middle of 48-53 than to 80, but nearer to 60-100 by its edge.
        assert_eq!(classes(58.0), [58, 7, 6]);
        assert_eq!(classes(116.0), [100, 7, 7]);
        assert_eq!(Target::Age.class(&Labels::default()), None);
    }

    #[test]
    fn only_what_a_server_knows_has_a_head_in_a_manifest() {
        let served = |name: &str| name.parse::<Target>().unwrap().served().map(|head| (head.task, head.classes()));
        assert_eq!(served("age"), Some((Task::Age, 101)));
        assert_eq!(served("age-groups"), Some((Task::Age, 8)));
        assert_eq!(served("Male"), Some((Task::Gender, 2)));
        assert_eq!(served("Attractive"), None);
        assert_eq!("Attractive".parse::<Target>().unwrap().head(), "Attractive");
    }
}
