//! A run as a page: its figures, the curves of its epochs and its configuration in one file without script or link.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::lesson::{CONFIG, EPOCHS, SCORES};

const STYLE: &str = include_str!("report.css");

/// Sides of a chart.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
/// Room for the labels left of and below a chart.
const LEFT: f64 = 56.0;
const BELOW: f64 = 28.0;

/// The page of a run's folder.
///
/// # Errors
/// When the folder holds no run, or one of its files is broken.
pub fn render(run: &Path) -> Result<String> {
    let text = |name: &str| {
        let path = run.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}: is this a run's folder?", path.display()))
    };
    let config = text(CONFIG)?;
    let curves = Curves::parse(&text(EPOCHS)?).with_context(|| format!("in {}", run.join(EPOCHS).display()))?;
    let scores = if run.join(SCORES).exists() {
        let json = serde_json::from_str(&text(SCORES)?);
        flat(&json.with_context(|| format!("in {}", run.join(SCORES).display()))?)
    } else {
        Vec::new()
    };
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Training run " (name) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Training run " (name) }
                p { (curves.epochs()) " epochs" @if let Some(minutes) = curves.minutes() { ", " (format!("{minutes:.0}")) " minutes" } }
                @if !scores.is_empty() {
                    h2 { "Figures of the weights it left" }
                    table { @for (name, figure) in &scores { tr { th scope="row" { (name) } td { (figure) } } } }
                }
                h2 { "Curves" }
                div class="charts" { @for (title, lines) in curves.charts() { (chart(&title, &lines)) } }
                h2 { "Epochs" }
                div class="wide" { table {
                    tr { @for column in &curves.columns { th scope="col" { (column) } } }
                    @for row in &curves.rows { tr { @for cell in row { td { (cell) } } } }
                } }
                h2 { "Configuration" }
                pre { (config) }
            }
        }
    };
    Ok(page.into_string())
}

/// The figures of each epoch.
struct Curves {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A line of a chart: its name, and its points as epoch, counted from 1, and value.
type Line = (String, Vec<(f64, f64)>);

impl Curves {
    fn parse(text: &str) -> Result<Self> {
        let cells = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        let mut lines = text.lines();
        let columns = lines.next().map(cells).unwrap_or_default();
        ensure!(columns.first().is_some_and(|column| column == "epoch"), "the first column is not `epoch`");
        let rows: Vec<Vec<String>> = lines.map(cells).collect();
        for (number, row) in (2..).zip(&rows) {
            ensure!(row.len() == columns.len(), "line {number} has {} cells, not {}", row.len(), columns.len());
        }
        Ok(Self { columns, rows })
    }

    fn epochs(&self) -> usize {
        self.rows.len()
    }

    fn minutes(&self) -> Option<f64> {
        let column = self.columns.iter().position(|column| column == "seconds")?;
        Some(self.rows.iter().filter_map(|row| row[column].parse::<f64>().ok()).sum::<f64>() / 60.0)
    }

    /// The losses in one chart, and a chart for each other figure of validation. A column without a number has none.
    fn charts(&self) -> Vec<(String, Vec<Line>)> {
        let (mut losses, mut others) = (Vec::new(), Vec::new());
        for (index, column) in self.columns.iter().enumerate() {
            let number = |row: &Vec<String>| row[index].parse().ok().filter(|value: &f64| value.is_finite());
            let points: Vec<(f64, f64)> =
                (1..).zip(&self.rows).filter_map(|(epoch, row)| Some((f64::from(epoch), number(row)?))).collect();
            if points.is_empty() {
                continue;
            }
            if column.starts_with("loss_") || column == "validation_loss" {
                losses.push((column.clone(), points));
            } else if column.starts_with("validation_") {
                others.push((column.clone(), vec![(column.clone(), points)]));
            }
        }
        let losses = if losses.is_empty() { None } else { Some(("losses".to_owned(), losses)) };
        losses.into_iter().chain(others).collect()
    }
}

fn chart(title: &str, lines: &[Line]) -> Markup {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let bound = |pick: fn(f64, f64) -> f64, start: f64| points().map(|(_, value)| *value).fold(start, pick);
    let (low, high) = (bound(f64::min, f64::INFINITY), bound(f64::max, f64::NEG_INFINITY));
    let (room, last) = ((high - low).max(1e-6), points().map(|(epoch, _)| *epoch).fold(2.0, f64::max));
    let x = |epoch: f64| LEFT + (epoch - 1.0) / (last - 1.0) * (WIDTH - LEFT - 12.0);
    let y = |value: f64| 12.0 + (high - value) / room * (HEIGHT - BELOW - 24.0);
    let path = |points: &[(f64, f64)]| {
        points.iter().map(|(epoch, value)| format!("{:.1},{:.1}", x(*epoch), y(*value))).collect::<Vec<_>>().join(" ")
    };
    html! {
        figure {
            figcaption {
                b { (title) }
                @if lines.len() > 1 { @for (index, (name, _)) in lines.iter().enumerate() { span class=(format!("key line-{}", index % 6)) { (name) } } }
            }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" {
                title { (title) " by epoch, from " (format!("{low:.4}")) " to " (format!("{high:.4}")) }
                @for value in [low, f64::midpoint(low, high), high] {
                    line class="grid" x1=(LEFT) x2=(WIDTH) y1=(format!("{:.1}", y(value))) y2=(format!("{:.1}", y(value))) {}
                    text x=(LEFT - 6.0) y=(format!("{:.1}", y(value) + 4.0)) text-anchor="end" { (format!("{value:.3}")) }
                }
                @for (index, (name, points)) in lines.iter().enumerate() {
                    g class=(format!("line-{}", index % 6)) {
                        title { (name) }
                        polyline points=(path(points)) {}
                        @if let Some((epoch, value)) = points.last() { circle cx=(format!("{:.1}", x(*epoch))) cy=(format!("{:.1}", y(*value))) r="3" {} }
                    }
                }
                text x=(LEFT) y=(HEIGHT - 8.0) { "epoch 1" }
                text x=(WIDTH - 12.0) y=(HEIGHT - 8.0) text-anchor="end" { (last) }
            }
        }
    }
}

/// The numbers of nested objects, by the names on the way to them.
fn flat(value: &Value) -> Vec<(String, String)> {
    let Value::Object(fields) = value else { return Vec::new() };
    let mut figures = Vec::new();
    for (name, value) in fields {
        match value {
            Value::Object(_) => {
                figures.extend(flat(value).into_iter().map(|(rest, figure)| (format!("{name} {rest}"), figure)));
            }
            Value::Number(number) => {
                let text = number.as_u64().map(|whole| whole.to_string());
                let short = || number.as_f64().map(|number| format!("{number:.4}"));
                figures.extend(text.or_else(short).map(|text| (name.clone(), text)));
            }
            _ => {}
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HEADER: &str = "epoch,size,loss_age,validation_loss,validation_accuracy,validation_age_mae,seconds";

    #[test]
    fn a_run_becomes_a_page_with_its_curves() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let error = format!("{:#}", render(folder.path()).unwrap_err());
        assert!(error.contains("is this a run's folder?"), "{error}");

        write(CONFIG, "name = \"<b>\"\n");
        write(EPOCHS, &format!("{HEADER}\n0,64,3.5,3.0,0.5,NaN,90\n1,64,3.25,2.5,0.75,NaN,30\n"));
        write(SCORES, r#"{"train": {"n": 7, "loss": 0.125}, "validation": {"mae": {"mean": 4.5}}}"#);
        let page = render(folder.path()).unwrap();
        for part in [
            "2 epochs, 2 minutes",
            "name = &quot;&lt;b&gt;&quot;",
            "<th scope=\"row\">train loss</th><td>0.1250</td>",
            "<th scope=\"row\">train n</th><td>7</td>",
            "<th scope=\"row\">validation mae mean</th><td>4.5000</td>",
            // Losses from 3.5 at the top down to 2.5, over the whole width.
            "<title>losses by epoch, from 2.5000 to 3.5000</title>",
            "<title>loss_age</title><polyline points=\"56.0,12.0 548.0,64.0\">",
            "<title>validation_loss</title><polyline points=\"56.0,116.0 548.0,220.0\">",
            "<title>validation_accuracy by epoch, from 0.5000 to 0.7500</title>",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("validation_age_mae by epoch"), "there is no number in it");
        assert!(!page.contains("http"), "nothing is linked");

        write(EPOCHS, &format!("{HEADER}\n0,64\n"));
        let error = format!("{:#}", render(folder.path()).unwrap_err());
        assert!(error.contains("line 2 has 2 cells, not 7"), "{error}");
    }
}
