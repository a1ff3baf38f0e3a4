//! Choosing rows by the text or the number in their columns, as in `split=test,race!=Asian,age>=10`.

use std::fmt;
use std::str::FromStr;

/// How a cell is compared with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Operator {
    /// Those that begin like another come before it.
    const ALL: [(&'static str, Self); 6] = [
        ("!=", Self::NotEqual),
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("=", Self::Equal),
        ("<", Self::Less),
        (">", Self::More),
    ];

    /// Takes the operator that a text begins with from it.
    fn read(text: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|(sign, operator)| Some((operator, text.strip_prefix(sign)?)))
    }

    fn sign(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, operator)| *operator == self).map_or("", |(sign, _)| sign)
    }

    /// Whether it compares texts; the others compare numbers.
    const fn is_of_texts(self) -> bool {
        matches!(self, Self::Equal | Self::NotEqual)
    }
}

/// One comparison of a cell with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) column: String,
    operator: Operator,
    value: String,
}

impl Condition {
    /// Whether it holds for a cell. A cell that is no number is neither less nor more than one.
    pub(crate) fn holds(&self, cell: &str) -> bool {
        let numbers = |compare: fn(&f64, &f64) -> bool| match (cell.parse(), self.value.parse()) {
            (Ok(cell), Ok(value)) => compare(&cell, &value),
            _ => false,
        };
        match self.operator {
            Operator::Equal => cell == self.value,
            Operator::NotEqual => cell != self.value,
            Operator::Less => numbers(f64::lt),
            Operator::AtMost => numbers(f64::le),
            Operator::More => numbers(f64::gt),
            Operator::AtLeast => numbers(f64::ge),
        }
    }
}

/// Conditions on columns, all of which must hold. The empty filter chooses every row.
///
/// Written as `column=value`, `column!=value`, or with a number `column<value`, `<=`, `>`, `>=`, several joined by commas; blanks around
/// names and values do not count, case does. An empty value stands for an empty cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub(crate) conditions: Vec<Condition>,
}

/// A part of a filter that is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no condition: write column=value, column!=value, or column<number (<=, >, >=), several joined by commas"
)]
pub struct FilterError(pub String);

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// When a part has no operator or no column, or compares the size of something with no number.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let conditions = text.split(',').map(|part| condition(part).ok_or_else(|| FilterError(part.trim().into())));
        Ok(Self { conditions: conditions.collect::<Result<_, _>>()? })
    }
}

fn condition(part: &str) -> Option<Condition> {
    let at = part.find(['=', '<', '>'])?;
    let at = if part[..at].ends_with('!') && part[at..].starts_with('=') { at - 1 } else { at };
    let (column, rest) = part.split_at(at);
    let (operator, value) = Operator::read(rest)?;
    let (column, value) = (column.trim(), value.trim());
    let is_condition = !column.is_empty() && (operator.is_of_texts() || value.parse::<f64>().is_ok());
    is_condition.then(|| Condition { column: column.into(), operator, value: value.into() })
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Condition { column, operator, value }) in self.conditions.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{column}{}{value}", operator.sign())?;
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
            ("note=a>b", "note=a>b"),
            ("age >= 10 , age<20.5", "age>=10,age<20.5"),
            ("age>-1,age<=1e2", "age>-1,age<=1e2"),
        ] {
            assert_eq!(Filter::parse(text).map(|filter| filter.to_string()), Ok(written.to_owned()));
        }
    }

    #[test]
    fn what_is_no_condition_is_named() {
        for (text, part) in
            [("split", "split"), ("=test", "=test"), ("!=test", "!=test"), ("a=b,,c=d", ""), ("a=b,c", "c")]
                .into_iter()
                .chain([("age>old", "age>old"), ("age<", "age<"), (">=3", ">=3"), ("age=>3,a<=", "a<=")])
        {
            assert_eq!(Filter::parse(text), Err(FilterError(part.into())));
        }
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let holds = |filter: &str, cell: &str| Filter::parse(filter).expect("a filter").conditions[0].holds(cell);
        for (filter, cells) in [
            ("age<10", ["9", "9.5", "-1e3"]),
            ("age<=10", ["10", "10.0", "9"]),
            ("age>10", ["100", "10.5", "1e2"]),
            ("age>=10", ["10", "+10", "11"]),
        ] {
            assert!(cells.iter().all(|cell| holds(filter, cell)), "{filter}");
            assert!(["", "old", "nan"].iter().all(|cell| !holds(filter, cell)), "{filter}");
        }
        assert!(
            !holds("age<10", "10") && !holds("age>10", "10") && !holds("age<=10", "10.1") && !holds("age>=10", "9")
        );
        assert!(holds("age=10", "10") && !holds("age=10", "10.0"), "texts are compared as texts");
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
