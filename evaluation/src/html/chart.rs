//! The charts of a report as inline SVG. Colours and type come from the page's style; each chart tells in its title what a
//! reader sees.

use maud::{Markup, html};

use crate::metrics::{Interval, Reliability};

/// A share in percent, with one digit.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A whole number with commas between thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A coordinate, short.
fn at(number: f64) -> String {
    format!("{number:.1}")
}

/// A step between lines of a grid: 1, 2 or 5 times a power of ten, so that there are about five.
fn step(range: f64) -> f64 {
    let raw = (range / 5.0).max(1e-9);
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= raw).unwrap_or(10.0 * power)
}

/// The frame of a chart with numbers upwards: from a value to its height.
struct Frame {
    width: f64,
    left: f64,
    top: f64,
    bottom: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn y(&self, value: f64) -> f64 {
        self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)
    }

    fn grid(&self, label: impl Fn(f64) -> String) -> Markup {
        let step = step(self.high - self.low);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        html! {
            @for index in first..=last {
                @let value = index as f64 * step;
                line class=(if index == 0 { "axis" } else { "grid" }) x1=(at(self.left)) x2=(at(self.width)) y1=(at(self.y(value))) y2=(at(self.y(value))) {}
                text x=(at(self.left - 8.0)) y=(at(self.y(value) + 4.0)) text-anchor="end" { (label(value)) }
            }
        }
    }
}

/// A bar for each decade with its mean absolute error, and a mark at the mean error.
pub(super) fn errors_by_age(decades: &[(u16, u64, f64, f64)]) -> Markup {
    let highest = decades.iter().map(|(_, _, mae, _)| *mae).fold(1.0, f64::max) * 1.12;
    let lowest = decades.iter().map(|(_, _, _, error)| *error).fold(0.0, f64::min) * 1.1;
    let frame = Frame { width: 520.0, left: 36.0, top: 14.0, bottom: 246.0, low: lowest, high: highest };
    let room = (frame.width - frame.left) / decades.len().max(1) as f64;
    html! {
        svg viewBox="0 0 520 290" role="img" {
            title { "Mean absolute error and mean error in years, by decade of the true age" }
            (frame.grid(|value| format!("{value}")))
            @for (index, (first, n, mae, error)) in decades.iter().enumerate() {
                @let x = frame.left + room * (index as f64 + 0.5);
                rect class="pale" x=(at(x - room * 0.34)) width=(at(room * 0.68)) y=(at(frame.y(*mae))) height=(at(frame.y(0.0) - frame.y(*mae))) rx="3" {
                    title { (first) "-" (first + 9) " years: mean absolute error " (format!("{mae:.2}")) ", mean error " (format!("{error:+.2}")) ", " (count(*n)) " rows" }
                }
                text class="strong" x=(at(x)) y=(at(frame.y(*mae) - 5.0)) text-anchor="middle" { (format!("{mae:.1}")) }
                circle class="mark" cx=(at(x)) cy=(at(frame.y(*error))) r="5" {}
                text x=(at(x)) y="266" text-anchor="middle" { (first) }
                text x=(at(x)) y="282" text-anchor="middle" { (count(*n)) }
            }
        }
    }
}

/// The share of rows within each tolerance.
pub(super) fn cumulative_score(points: &[(u8, f64)]) -> Markup {
    let frame = Frame { width: 520.0, left: 44.0, top: 14.0, bottom: 246.0, low: 0.0, high: 1.0 };
    let last = points.last().map_or(1.0, |(years, _)| f64::from(*years));
    let x = |years: f64| frame.left + 16.0 + (years - 1.0) / (last - 1.0).max(1.0) * (frame.width - frame.left - 40.0);
    let line: Vec<String> =
        points.iter().map(|(years, share)| format!("{},{}", at(x(f64::from(*years))), at(frame.y(*share)))).collect();
    html! {
        svg viewBox="0 0 520 290" role="img" {
            title { "Share of rows whose age is off by no more than so many years" }
            (frame.grid(|value| format!("{:.0} %", value * 100.0)))
            polyline class="line" points=(line.join(" ")) {}
            @for (years, share) in points {
                circle class="dot" cx=(at(x(f64::from(*years)))) cy=(at(frame.y(*share))) r="5" {
                    title { (percent(*share)) " within " (years) " years" }
                }
                @if matches!(years, 1 | 3 | 5 | 10) {
                    text class="strong" x=(at(x(f64::from(*years)))) y=(at(frame.y(*share) - 10.0)) text-anchor="middle" { (percent(*share)) }
                }
                text x=(at(x(f64::from(*years)))) y="266" text-anchor="middle" { (years) }
            }
            text x="282" y="284" text-anchor="middle" { "years" }
        }
    }
}

/// Counts by truth and prediction; a cell is the darker the larger its share of its row.
pub(super) fn confusion(labels: &[&str], counts: &[Vec<u64>]) -> Markup {
    let side = labels.len() as f64;
    let (left, top, cell) = (78.0, 34.0, (436.0 / side).min(110.0));
    let (width, height) = (left + cell * side + 4.0, top + cell.min(56.0) * side + 4.0);
    let high = cell.min(56.0);
    html! {
        svg viewBox={"0 0 " (at(width)) " " (at(height))} role="img" {
            title { "How often each label was taken for which: a row for each true label, a column for each answer" }
            @for (index, label) in labels.iter().enumerate() {
                @let along = index as f64;
                text x=(at(left + cell * (along + 0.5))) y=(at(top - 10.0)) text-anchor="middle" { (label) }
                text x=(at(left - 8.0)) y=(at(top + high * (along + 0.5) + 4.0)) text-anchor="end" { (label) }
            }
            @for (truth, row) in counts.iter().enumerate() {
                @let sum = row.iter().sum::<u64>().max(1) as f64;
                @for (predicted, number) in row.iter().enumerate() {
                    @let share = *number as f64 / sum;
                    @let (x, y) = (left + cell * predicted as f64, top + high * truth as f64);
                    rect class="cell" x=(at(x + 1.0)) y=(at(y + 1.0)) width=(at(cell - 2.0)) height=(at(high - 2.0)) rx="3" fill-opacity=(format!("{:.2}", 0.05 + 0.95 * share)) {
                        title { (labels.get(truth).unwrap_or(&"")) " taken for " (labels.get(predicted).unwrap_or(&"")) ": " (count(*number)) ", " (percent(share)) }
                    }
                    text class=(if share > 0.55 { "on" } else { "strong" }) x=(at(x + cell / 2.0)) y=(at(y + high / 2.0 + 4.0)) text-anchor="middle" { (count(*number)) }
                }
            }
        }
    }
}

/// Confidence against how often it is right; below, how many rows are that confident.
pub(super) fn reliability(bins: &[Reliability]) -> Markup {
    let frame = Frame { width: 520.0, left: 48.0, top: 12.0, bottom: 222.0, low: 0.0, high: 1.0 };
    let x = |share: f64| frame.left + share * (frame.width - frame.left - 8.0);
    let most = bins.iter().map(|bin| bin.n).max().unwrap_or(1).max(1) as f64;
    let line: Vec<String> =
        bins.iter().map(|bin| format!("{},{}", at(x(bin.confidence)), at(frame.y(bin.accuracy)))).collect();
    html! {
        svg viewBox="0 0 520 320" role="img" {
            title { "Reliability: how often answers of a confidence are right; on the dashed line they are as often right as they are confident" }
            (frame.grid(|value| format!("{:.0} %", value * 100.0)))
            line class="dashed" x1=(at(x(0.0))) y1=(at(frame.y(0.0))) x2=(at(x(1.0))) y2=(at(frame.y(1.0))) {}
            polyline class="line" points=(line.join(" ")) {}
            @for bin in bins {
                circle class="dot" cx=(at(x(bin.confidence))) cy=(at(frame.y(bin.accuracy))) r=(at(4.0 + 4.0 * (bin.n as f64 / most).sqrt())) {
                    title { "confidence " (percent(bin.confidence)) ", right " (percent(bin.accuracy)) ", " (count(bin.n)) " rows" }
                }
                @let height = 48.0 * bin.n as f64 / most;
                rect class="pale" x=(at(x(bin.low) + 1.0)) width=(at(x(bin.high) - x(bin.low) - 2.0)) y=(at(286.0 - height)) height=(at(height)) {}
            }
            line class="axis" x1=(at(x(0.0))) x2=(at(x(1.0))) y1="286" y2="286" {}
            @for tenth in [0, 2, 4, 6, 8, 10] {
                text x=(at(x(f64::from(tenth) / 10.0))) y="303" text-anchor=(if tenth == 10 { "end" } else { "middle" }) { (tenth * 10) " %" }
            }
            text x="280" y="318" text-anchor="middle" { "confidence; the bars count rows" }
        }
    }
}

/// A line for each group: its figure, with its interval, on one scale.
pub(super) fn forest(title: &str, rows: &[(String, f64, Option<Interval>)], word: impl Fn(f64) -> String) -> Markup {
    let ends = rows.iter().flat_map(|(_, value, interval)| interval.map_or([*value; 2], |interval| interval));
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| (low.min(end), high.max(end)));
    let room = (high - low).max(1e-6) * 0.06;
    let (low, high) = (low - room, high + room);
    let (left, right) = (120.0, 450.0);
    let x = |value: f64| left + (value - low) / (high - low) * (right - left);
    let bottom = 12.0 + 30.0 * rows.len() as f64;
    let step = step(high - low);
    let marks = (low / step).ceil() as i64..=(high / step).floor() as i64;
    html! {
        svg viewBox={"0 0 520 " (at(bottom + 26.0))} role="img" {
            title { (title) }
            @for mark in marks {
                @let value = mark as f64 * step;
                line class="grid" x1=(at(x(value))) x2=(at(x(value))) y1="4" y2=(at(bottom)) {}
                text x=(at(x(value))) y=(at(bottom + 18.0)) text-anchor="middle" { (word(value)) }
            }
            @for (index, (name, value, interval)) in rows.iter().enumerate() {
                @let y = 24.0 + 30.0 * index as f64;
                text class="strong" x=(at(left - 12.0)) y=(at(y + 4.0)) text-anchor="end" { (shortened(name)) }
                @if let Some([from, to]) = interval {
                    line class="whisker" x1=(at(x(*from))) x2=(at(x(*to))) y1=(at(y)) y2=(at(y)) {}
                }
                circle class="dot" cx=(at(x(*value))) cy=(at(y)) r="5.5" {
                    title { (name) ": " (word(*value)) }
                }
                text class="strong" x="516" y=(at(y + 4.0)) text-anchor="end" { (word(*value)) }
            }
        }
    }
}

/// A name that fits beside a chart.
fn shortened(name: &str) -> String {
    match name.chars().count() {
        0 => "(empty)".to_owned(),
        1..=16 => name.to_owned(),
        _ => name.chars().take(15).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_parted() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn grids_have_round_steps() {
        for (range, expected) in [(1.0, 0.2), (9.0, 2.0), (12.0, 5.0), (0.04, 0.01), (100.0, 20.0)] {
            assert!((step(range) - expected).abs() < 1e-9, "{range}: {}", step(range));
        }
    }
}
