//! Sets as their authors publish them, made into what everything here reads: a folder with `manifest.csv` and pictures.

pub mod chalearn;
pub mod fer2013;
pub mod imdb_wiki;
pub mod matlab;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Rows of the manifest.
    pub rows: usize,
    /// Rows of the source that are not among them.
    pub left_out: usize,
}

/// A new `manifest.csv` in a folder; an existing one is never written over.
fn manifest(folder: &Path, columns: &[&str]) -> Result<csv::Writer<File>> {
    let path = folder.join("manifest.csv");
    let file = File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut writer = csv::Writer::from_writer(file);
    writer.write_record(columns)?;
    Ok(writer)
}

/// The rows of a CSV file with the numbers of their lines; blanks around cells are cut off.
fn rows(path: &Path, delimiter: u8, header: bool) -> Result<Vec<(u64, csv::StringRecord)>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(header)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_path(path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.with_context(|| format!("in {}", path.display()))?;
        rows.push((record.position().map_or(0, csv::Position::line), record));
    }
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    Ok(rows)
}
