//! `predictions.csv`: what was answered to each row, for spreadsheets, and for going on where an evaluation was interrupted.
//!
//! Numbers are written such that they read back as themselves, and rows in the order of the manifest, so the figures of what is
//! written are the figures of what was answered.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use facewise_core::decode::LabelDistribution;
use facewise_core::task::Task;

use crate::manifest::Row;
use crate::metrics::{AgeReading, Prediction};

/// What became of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was answered.
    Answered(Prediction),
    /// It counts nowhere, for this reason: its picture is unreadable.
    Skipped(String),
}

/// The names of the columns, of a network that answers these tasks.
fn header(tasks: &[Task]) -> Vec<String> {
    let mut names = vec!["line".to_owned(), "path".to_owned()];
    for task in tasks {
        names.extend([task.to_string(), format!("{task}_predicted")]);
        if *task == Task::Age {
            names.extend(["age_low", "age_high", "age_error"].map(str::to_owned));
        }
        names.extend(task.labels().iter().map(|label| format!("{task}_{label}")));
    }
    names.push("skipped".to_owned());
    names
}

/// A text of somebody else's as a cell that no spreadsheet takes for a formula (OWASP, "CSV Injection"), on one line.
fn harmless(text: &str) -> Cow<'_, str> {
    let text: Cow<'_, str> =
        if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() };
    if text.starts_with(['=', '+', '-', '@', '\t']) { format!("'{text}").into() } else { text }
}

/// Writes `predictions.csv`.
pub struct Writer<W: Write> {
    csv: csv::Writer<W>,
    tasks: Vec<Task>,
}

impl<W: Write> Writer<W> {
    /// Begins with the header.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(file: W, tasks: &[Task]) -> io::Result<Self> {
        let mut writer = Self::resume(file, tasks);
        writer.csv.write_record(header(tasks))?;
        Ok(writer)
    }

    /// Goes on after rows that are already there.
    pub fn resume(file: W, tasks: &[Task]) -> Self {
        Self { csv: csv::Writer::from_writer(file), tasks: tasks.to_vec() }
    }

    /// Writes a row.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, row: &Row, outcome: &Outcome) -> io::Result<()> {
        let mut cells: Vec<Cow<'_, str>> = vec![row.line.to_string().into(), harmless(&row.path)];
        let nothing = Prediction::default();
        let (prediction, skipped) = match outcome {
            Outcome::Answered(prediction) => (prediction, ""),
            Outcome::Skipped(reason) => (&nothing, reason.as_str()),
        };
        for task in &self.tasks {
            match task {
                Task::Age => age_cells(&mut cells, row.labels.age, prediction.age),
                task => label_cells(&mut cells, *task, row.labels.class(*task), prediction.labelled(*task)),
            }
        }
        cells.push(harmless(skipped));
        self.csv.write_record(cells.iter().map(|cell| cell.as_bytes()))?;
        Ok(())
    }

    /// Hands what was written over to the system.
    ///
    /// # Errors
    /// When that fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.csv.flush()
    }
}

fn age_cells(cells: &mut Vec<Cow<'_, str>>, truth: Option<f32>, reading: Option<AgeReading>) {
    let word = |number: Option<f32>| number.map_or_else(String::new, |number| number.to_string());
    let error = truth.zip(reading).map(|(truth, reading)| reading.years - truth);
    let (low, high) = (reading.map(|reading| f32::from(reading.low)), reading.map(|reading| f32::from(reading.high)));
    let numbers = [truth, reading.map(|reading| reading.years), low, high, error];
    cells.extend(numbers.map(|number| Cow::from(word(number))));
}

fn label_cells(cells: &mut Vec<Cow<'_, str>>, task: Task, truth: Option<usize>, answer: Option<&LabelDistribution>) {
    cells.push(truth.map_or("", |truth| task.labels()[truth]).into());
    cells.push(answer.map_or("", LabelDistribution::label).into());
    match answer {
        Some(answer) => cells.extend(answer.probabilities().iter().map(|p| Cow::from(p.to_string()))),
        None => cells.extend(task.labels().iter().map(|_| Cow::from(""))),
    }
}

/// What was found in an interrupted `predictions.csv`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Rows that are complete.
    pub rows: usize,
    /// Bytes up to their end. What follows is torn and must go before anything is written; without any, the header is not there.
    pub bytes: u64,
}

/// Reads what was answered to the first of these rows, and tells `each` about them. It ends where the file does, or where that is
/// not what [`Writer`] wrote for the row.
///
/// # Errors
/// When the file cannot be read.
pub fn replay(
    mut file: impl Read,
    tasks: &[Task],
    rows: &[&Row],
    mut each: impl FnMut(&Row, Outcome),
) -> io::Result<Replayed> {
    // The last line is complete only with its end.
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let names = header(tasks);
    let mut reader = csv::Reader::from_reader(&text[..complete]);
    match reader.headers() {
        Ok(found) if found.iter().eq(&names) => {}
        _ => return Ok(Replayed::default()),
    }
    let mut replayed = Replayed { rows: 0, bytes: reader.position().byte() };
    let mut record = csv::StringRecord::new();
    while replayed.rows < rows.len() && reader.read_record(&mut record).unwrap_or(false) {
        let row = rows[replayed.rows];
        let Some(outcome) = outcome(&record, tasks, row) else { break };
        each(row, outcome);
        replayed = Replayed { rows: replayed.rows + 1, bytes: reader.position().byte() };
    }
    Ok(replayed)
}

/// What a record says about a row; `None` if it is not about it.
fn outcome(record: &csv::StringRecord, tasks: &[Task], row: &Row) -> Option<Outcome> {
    let mut cells = record.iter();
    if cells.next()?.parse() != Ok(row.line) || cells.next()? != harmless(&row.path) {
        return None;
    }
    let mut prediction = Prediction::default();
    for task in tasks {
        let (_truth, predicted) = (cells.next()?, cells.next()?);
        if *task == Task::Age {
            let (low, high, _error) = (cells.next()?, cells.next()?, cells.next()?);
            if !predicted.is_empty() {
                let reading =
                    AgeReading { years: predicted.parse().ok()?, low: low.parse().ok()?, high: high.parse().ok()? };
                prediction.age = Some(reading);
            }
        } else {
            let numbers: Vec<&str> = task.labels().iter().filter_map(|_| cells.next()).collect();
            if !predicted.is_empty() {
                let numbers = numbers.iter().map(|number| number.parse().ok()).collect::<Option<Vec<f32>>>()?;
                prediction.set(LabelDistribution::from_probabilities(*task, &numbers).ok()?);
            }
        }
    }
    let skipped = cells.next()?;
    if skipped.is_empty() { Some(Outcome::Answered(prediction)) } else { Some(Outcome::Skipped(skipped.to_owned())) }
}
