//! Two reports side by side.

use crate::metrics::{Figure, Interval};
use crate::report::Report;

/// A figure that two reports have.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The figure of the one.
    pub this: Figure,
    /// Its value in the other.
    pub other: f64,
    /// Its 95 % interval in the other.
    pub other_interval: Option<Interval>,
    /// What the one is more than the other.
    pub difference: f64,
    /// 95 % interval of the difference, where both have one: each half has the length `√(a² + b²)` of those of the two intervals, as
    /// of independent errors (Newcombe 1998, "Interval estimation for the difference between independent proportions: comparison of
    /// eleven methods", method 10). Of the same rows, errors go together, and the true interval is shorter.
    pub interval: Option<Interval>,
}

impl Difference {
    /// Whether the two differ by more than chance explains, as far as the intervals tell.
    pub fn is_clear(&self) -> bool {
        self.interval.is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }
}

/// The figures that both reports have, in the order of tasks.
pub fn compare(this: &Report, other: &Report) -> Vec<Difference> {
    let others = other.tasks.figures();
    let difference = |this: Figure| {
        let other = others.iter().find(|other| (other.task, other.name) == (this.task, this.name))?;
        let difference = this.value - other.value;
        let interval = this.interval.zip(other.interval).map(|([low, high], [other_low, other_high])| {
            let down = (this.value - low).hypot(other_high - other.value);
            let up = (high - this.value).hypot(other.value - other_low);
            [difference - down, difference + up]
        });
        Some(Difference { other: other.value, other_interval: other.interval, this, difference, interval })
    };
    this.tasks.figures().into_iter().filter_map(difference).collect()
}
