//! A bound that a figure of a report must keep, as in `age.mae<=5.5`.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::report::Report;

/// How a figure is compared with a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    AtMost,
    AtLeast,
    Below,
    Above,
}

/// In the order in which they are looked for: the longer ones begin with the shorter ones.
const COMPARISONS: [(&str, Comparison); 4] =
    [("<=", Comparison::AtMost), (">=", Comparison::AtLeast), ("<", Comparison::Below), (">", Comparison::Above)];

impl Comparison {
    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::AtMost => value <= bound,
            Self::AtLeast => value >= bound,
            Self::Below => value < bound,
            Self::Above => value > bound,
        }
    }
}

/// A bound on one figure: `age.mae<=5.5`, `gender.accuracy>0.9`, `age.cs.3>=0.4`, `age.mae_by_decade.60-69.mae<9`,
/// `groups.race.largest_gap.gender.accuracy<=0.05`. The path is that in the report, `tasks` left away.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    path: String,
    comparison: Comparison,
    bound: f64,
}

/// A text that is no requirement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no requirement: write a figure, one of <= >= < > and a number, as in age.mae<=5.5")]
pub struct NotARequirement(String);

/// The report has no such figure: the set is not labelled for it, or no row has that value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the report has no figure '{0}'")]
pub struct NoFigure(String);

impl Requirement {
    /// The figure's value, and whether that keeps to the bound.
    ///
    /// # Errors
    /// When the report has no such figure.
    pub fn check(&self, report: &Report) -> Result<(f64, bool), NoFigure> {
        let missing = || NoFigure(self.path.clone());
        let report = serde_json::to_value(report).map_err(|_| missing())?;
        let found = [&report["tasks"], &report].into_iter().find_map(|value| number(value, &self.path));
        let value = found.ok_or_else(missing)?;
        Ok((value, self.comparison.holds(value, self.bound)))
    }
}

/// The number under a path whose steps are parted by dots; names may hold dots themselves.
fn number(value: &Value, path: &str) -> Option<f64> {
    let Value::Object(fields) = value else { return None };
    let rest = |name: &str| path.strip_prefix(name)?.strip_prefix('.');
    fields.iter().find_map(|(name, value)| if name == path { value.as_f64() } else { number(value, rest(name)?) })
}

impl FromStr for Requirement {
    type Err = NotARequirement;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let split = |(sign, comparison): (&str, Comparison)| Some((text.split_once(sign)?, comparison));
        let parts = COMPARISONS.into_iter().find_map(split).and_then(|((path, bound), comparison)| {
            let bound = bound.trim().parse::<f64>().ok().filter(|bound| bound.is_finite())?;
            Some(Self { path: path.trim().to_owned(), comparison, bound })
        });
        parts.filter(|requirement| !requirement.path.is_empty()).ok_or_else(|| NotARequirement(text.to_owned()))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign =
            COMPARISONS.iter().find(|(_, comparison)| *comparison == self.comparison).map_or("", |(sign, _)| sign);
        write!(f, "{}{sign}{}", self.path, self.bound)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn requirements_are_read_and_written_alike() {
        for text in ["age.mae<=5.5", "gender.accuracy>=0.9", "smile.ece<0.1", "age.cs.3>0.25"] {
            assert_eq!(text.parse::<Requirement>().unwrap().to_string(), text);
        }
        assert_eq!(" age.mae <= 5 ".parse::<Requirement>().unwrap().to_string(), "age.mae<=5");
        for text in ["", "age.mae", "age.mae=5", "<=5", "age.mae<=", "age.mae<=five", "age.mae<=inf"] {
            assert_eq!(text.parse::<Requirement>(), Err(NotARequirement(text.into())));
        }
    }

    #[test]
    fn names_may_hold_dots() {
        let value = serde_json::json!({"a": {"b.c": 1.0, "b": {"d": 2}}, "a.b": {"e": 3.0}});
        for (path, found) in
            [("a.b.c", Some(1.0)), ("a.b.d", Some(2.0)), ("a.b.e", Some(3.0)), ("a.b", None), ("x", None)]
        {
            assert_eq!(number(&value, path), found, "{path}");
        }
    }
}
