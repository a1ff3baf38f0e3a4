//! Choosing rows by the text of their columns, as in `split=test,race!=Asian`.

use std::fmt;
use std::str::FromStr;

/// One comparison of a cell with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) column: String,
    pub(crate) equal: bool,
    pub(crate) value: String,
}

/// Conditions on columns, all of which must hold. The empty filter chooses every row.
///
/// Written as `column=value` or `column!=value`, several joined by commas; blanks around names and values do not
/// count, case does. An empty value stands for an empty cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub(crate) conditions: Vec<Condition>,
}

/// A part of a filter that is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no condition: write column=value or column!=value, several joined by commas")]
pub struct FilterError(pub String);

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// When a part has no operator or no column.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let conditions = text.split(',').map(|part| condition(part).ok_or_else(|| FilterError(part.trim().into())));
        Ok(Self { conditions: conditions.collect::<Result<_, _>>()? })
    }
}

fn condition(part: &str) -> Option<Condition> {
    let (left, value) = part.split_once('=')?;
    let (column, equal) = left.strip_suffix('!').map_or((left, true), |column| (column, false));
    let column = column.trim();
    (!column.is_empty()).then(|| Condition { column: column.into(), equal, value: value.trim().into() })
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Condition { column, equal, value }) in self.conditions.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let operator = if *equal { "=" } else { "!=" };
            write!(f, "{comma}{column}{operator}{value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_are_read_and_written_alike() {
        for (text, written) in [
            ("", ""),
            ("split=test", "split=test"),
            (" split = test , race != Asian ", "split=test,race!=Asian"),
            ("name=a=b", "name=a=b"),
            ("note=", "note="),
            ("note!=", "note!="),
        ] {
            assert_eq!(Filter::parse(text).map(|filter| filter.to_string()), Ok(written.to_owned()));
        }
    }

    #[test]
    fn what_is_no_condition_is_named() {
        for (text, part) in
            [("split", "split"), ("=test", "=test"), ("!=test", "!=test"), ("a=b,,c=d", ""), ("a=b,c", "c")]
        {
            assert_eq!(Filter::parse(text), Err(FilterError(part.into())));
        }
    }

    proptest! {
        #[test]
        fn what_was_written_reads_the_same(text in ".{0,40}") {
            if let Ok(filter) = Filter::parse(&text) {
                prop_assert_eq!(Filter::parse(&filter.to_string()), Ok(filter));
            }
        }
    }
}
