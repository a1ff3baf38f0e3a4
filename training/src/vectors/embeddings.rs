//! Reads embeddings from a `NumPy` file and what is known of each from a CSV file: one line for each embedding, in their order.
//!
//! Columns: any of `age` (years), `gender` (female, male), `smile` (0, 1) and `emotion`; `split` (train, val, test), `subject` (any word
//! for a person) and `fold` (a number from 0) are used where they are there. An attribute of `CelebA` that is to be learned has a column of its
//! name (1, and 0 or -1). Others are ignored. An empty cell is an unknown label.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use facewise_core::npy::{self, NpyError};
use facewise_core::task::Task;
use facewise_evaluation::manifest::Labels;

use super::rows::{Part, Rows};
use super::target::Target;

/// Why embeddings and their labels cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file is missing or cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file of embeddings is no array of floats.
    #[error("{path}: {source}")]
    Npy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: NpyError,
    },
    /// The array has not two sides.
    #[error("{path} has the shape {shape:?}: one row of numbers for each face is needed, [faces, numbers]")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its sides.
        shape: Vec<usize>,
    },
    /// An embedding holds something that is not a number.
    #[error("{path}: a number of row {row}, counted from 0, is not finite")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The row, from 0.
        row: usize,
    },
    /// There are more labels than embeddings, or fewer.
    #[error(
        "{embeddings} has {rows} rows, but {labels} has {lines} lines below its header: each embedding needs its line"
    )]
    Count {
        /// The file of embeddings.
        embeddings: PathBuf,
        /// Its rows.
        rows: usize,
        /// The file of labels.
        labels: PathBuf,
        /// Its lines.
        lines: usize,
    },
    /// A line of labels is broken.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, the header being line 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The column that is to be learned is missing.
    #[error("{path} has no column '{column}', but {known}")]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Those that it has.
        known: String,
    },
    /// A cell holds what it must not.
    #[error("{path}, line {line}: {column} is '{value}', which is {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, the header being line 1.
        line: u64,
        /// The column.
        column: String,
        /// The cell.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No row has a label for the target.
    #[error("{path}: no line has a label for '{target}'")]
    Unlabelled {
        /// The file.
        path: PathBuf,
        /// What was to be learned.
        target: Target,
    },
}

/// Reads a file.
///
/// # Errors
/// When it is missing or cannot be read.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    fs::read(path).map_err(|source| DataError::Read { path: path.to_owned(), source })
}

/// Reads the embeddings and labels that have something to say about a target.
///
/// # Errors
/// When a file is missing or wrong, with its row or line, or the two do not belong together.
pub fn read(embeddings: &Path, labels: &Path, target: &Target) -> Result<Rows, DataError> {
    let array =
        npy::read(&bytes(embeddings)?).map_err(|source| DataError::Npy { path: embeddings.to_owned(), source })?;
    let &[count, features] = array.shape.as_slice() else {
        return Err(DataError::Shape { path: embeddings.to_owned(), shape: array.shape });
    };
    if count == 0 || features == 0 {
        return Err(DataError::Shape { path: embeddings.to_owned(), shape: array.shape });
    }
    if let Some(at) = array.values.iter().position(|value| !value.is_finite()) {
        return Err(DataError::NotFinite { path: embeddings.to_owned(), row: at / features });
    }
    let text = bytes(labels)?;
    let lines = Lines::new(labels, &text, target)?;
    let mut rows = Rows { features, ..Rows::default() };
    let mut known = Vec::new();
    for line in lines {
        known.push(line?);
    }
    if known.len() != count {
        let (embeddings, labels) = (embeddings.to_owned(), labels.to_owned());
        return Err(DataError::Count { embeddings, rows: count, labels, lines: known.len() });
    }
    let mut people: HashMap<String, usize> = HashMap::new();
    for (vector, line) in array.values.chunks_exact(features).zip(known) {
        let Some(class) = target.class(&line.labels).or(line.attribute) else {
            rows.unlabelled += 1;
            continue;
        };
        rows.values.extend_from_slice(vector);
        rows.classes.push(class as i64);
        if target.is_ordered() {
            rows.years.extend(line.labels.age);
        }
        rows.parts.extend(line.part);
        rows.folds.extend(line.fold);
        if let Some(subject) = line.subject {
            let number = people.len();
            rows.subjects.push(*people.entry(subject).or_insert(number));
        }
    }
    if rows.is_empty() {
        return Err(DataError::Unlabelled { path: labels.to_owned(), target: target.clone() });
    }
    Ok(rows)
}

/// What one line says.
struct Line {
    labels: Labels,
    /// Whether the face has the attribute that is to be learned.
    attribute: Option<usize>,
    part: Option<Part>,
    subject: Option<String>,
    fold: Option<usize>,
}

/// The lines of a file of labels.
struct Lines<'a> {
    path: &'a Path,
    records: csv::StringRecordsIntoIter<&'a [u8]>,
    columns: HashMap<String, usize>,
    target: &'a Target,
}

impl<'a> Lines<'a> {
    fn new(path: &'a Path, text: &'a [u8], target: &'a Target) -> Result<Self, DataError> {
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        let mut reader = csv::Reader::from_reader(text);
        let header = reader.headers().map_err(|error| malformed(path, &error))?.clone();
        let mut columns = HashMap::new();
        for (index, name) in header.iter().enumerate() {
            if columns.insert(name.trim().to_owned(), index).is_some() {
                let reason = format!("two columns are called '{}'", name.trim());
                return Err(DataError::Line { path: path.to_owned(), line: 1, reason });
            }
        }
        let column = match target {
            Target::Age | Target::AgeGroups | Target::AgeGroupsByCentre => Task::Age.name(),
            Target::Labels(task) => task.name(),
            Target::Attribute(name) => name,
        };
        if !columns.contains_key(column) {
            let known = header.iter().map(|name| format!("'{}'", name.trim())).collect::<Vec<_>>().join(", ");
            return Err(DataError::Column { path: path.to_owned(), column: column.to_owned(), known });
        }
        Ok(Self { path, records: reader.into_records(), columns, target })
    }

    fn line(&self, record: &csv::StringRecord) -> Result<Line, DataError> {
        let number = record.position().map_or(0, csv::Position::line);
        // The cell of a column, if there is the column and something in it.
        let cell = |column: &str| {
            let text = self.columns.get(column).and_then(|index| record.get(*index)).unwrap_or_default().trim();
            (!text.is_empty()).then_some(text)
        };
        let wrong = |column: &str, reason: String| DataError::Value {
            path: self.path.to_owned(),
            line: number,
            column: column.to_owned(),
            value: cell(column).unwrap_or_default().to_owned(),
            reason,
        };
        let one_of = |column: &str, words: &[&str]| match cell(column) {
            None => Ok(None),
            Some(text) => match words.iter().position(|word| *word == text) {
                Some(index) => Ok(Some(index)),
                None => Err(wrong(column, format!("not one of {}", words.join(", ")))),
            },
        };
        // A column that says where a row belongs says it of every row.
        let needed = |column: &str| self.columns.contains_key(column) && cell(column).is_none();
        for column in ["split", "subject", "fold"] {
            if needed(column) {
                return Err(wrong(column, "empty, while the column is there".into()));
            }
        }
        let age = match cell("age").map(str::parse::<f32>) {
            None => None,
            Some(Ok(years)) if (0.0..=150.0).contains(&years) => Some(years),
            Some(_) => return Err(wrong("age", "not an age from 0 to 150 years".into())),
        };
        let fold = match cell("fold").map(str::parse::<usize>) {
            None => None,
            Some(Ok(fold)) => Some(fold),
            Some(Err(_)) => return Err(wrong("fold", "not a number from 0".into())),
        };
        let attribute = match self.target {
            Target::Attribute(name) => one_of(name, &["0", "1", "-1"])?.map(|index| [0, 1, 0][index]),
            _ => None,
        };
        Ok(Line {
            attribute,
            labels: Labels {
                age,
                gender: one_of("gender", Task::Gender.labels())?,
                smile: one_of("smile", &["0", "1"])?,
                emotion: one_of("emotion", Task::Emotion.labels())?,
            },
            part: one_of("split", &["train", "val", "test"])?
                .map(|index| [Part::Train, Part::Validation, Part::Test][index]),
            subject: cell("subject").map(str::to_owned),
            fold,
        })
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.records.next()?.map_err(|error| malformed(self.path, &error));
        Some(record.and_then(|record| self.line(&record)))
    }
}

fn malformed(path: &Path, error: &csv::Error) -> DataError {
    let line = error.position().map_or(1, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} cells instead of the header's {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    DataError::Line { path: path.to_owned(), line, reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tempfile::TempDir;

    use super::*;

    fn npy(shape: &str, numbers: &[f32]) -> Vec<u8> {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        [npy::MAGIC, &[1, 0][..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), &numbers].concat()
    }

    fn read_both(embeddings: &[u8], labels: &str, target: &str) -> Result<Rows, String> {
        let folder = TempDir::new().unwrap();
        let (npy, csv) = (folder.path().join("faces.npy"), folder.path().join("labels.csv"));
        fs::write(&npy, embeddings).unwrap();
        fs::write(&csv, labels).unwrap();
        let place = format!("{}/", folder.path().display());
        read(&npy, &csv, &target.parse().unwrap()).map_err(|error| error.to_string().replace(&place, ""))
    }

    const LABELS: &str = "path,age,gender,split,subject,fold\n\
        a.jpg,31,male,train,ann,0\n\
        b.jpg,,female,val,bob,1\n\
        c.jpg,4.5,female,test,ann,0\n";

    #[test]
    fn rows_keep_their_labels_and_unlabelled_ones_are_counted() {
        let file = npy("(3, 2)", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let ages = read_both(&file, LABELS, "age").unwrap();
        let expected = Rows {
            features: 2,
            values: vec![1.0, 2.0, 5.0, 6.0],
            classes: vec![31, 5],
            years: vec![31.0, 4.5],
            parts: vec![Part::Train, Part::Test],
            subjects: vec![0, 0],
            folds: vec![0, 0],
            unlabelled: 1,
        };
        assert_eq!(ages, expected);
        let genders = read_both(&file, LABELS, "gender").unwrap();
        assert_eq!((&genders.classes[..], &genders.subjects[..]), (&[1, 0, 0][..], &[0, 1, 0][..]));
        assert!(genders.years.is_empty());
        let smiling = read_both(&file, "Smiling\n1\n-1\n0\n", "Smiling").unwrap();
        assert_eq!(smiling.classes, [1, 0, 0]);
        assert_eq!(read_both(&file, &format!("\u{feff}{LABELS}"), "age").unwrap(), ages, "as Excel writes it");
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_place() {
        let good = npy("(3, 2)", &[1.0; 6]);
        let short = LABELS.lines().take(3).collect::<Vec<_>>().join("\n");
        for (file, labels, target, message) in [
            (&b"PK"[..], LABELS, "age", "faces.npy: not a .npy file"),
            (&npy("(6,)", &[1.0; 6]), LABELS, "age", "faces.npy has the shape [6]: one row of numbers for each face"),
            (&npy("(0, 2)", &[]), LABELS, "age", "faces.npy has the shape [0, 2]"),
            (&npy("(2, 2)", &[0.0, 0.0, f32::NAN, 0.0]), LABELS, "age", "faces.npy: a number of row 1, counted from 0"),
            (&good, &short, "age", "faces.npy has 3 rows, but labels.csv has 2 lines below its header"),
            (&good, LABELS, "smile", "labels.csv has no column 'smile', but 'path', 'age', 'gender'"),
            (&good, &LABELS.replace("4.5", "old"), "age", "labels.csv, line 4: age is 'old', which is not an age"),
            (&good, &LABELS.replace("31", "-1"), "age", "line 2: age is '-1', which is not an age from 0 to 150 years"),
            (&good, &LABELS.replace("31", "NaN"), "age", "line 2: age is 'NaN'"),
            (
                &good,
                &LABELS.replace(",male", ",m"),
                "gender",
                "line 2: gender is 'm', which is not one of female, male",
            ),
            (
                &good,
                &LABELS.replace(",val", ",dev"),
                "age",
                "line 3: split is 'dev', which is not one of train, val, test",
            ),
            (
                &good,
                &LABELS.replace(",val", ","),
                "age",
                "line 3: split is '', which is empty, while the column is there",
            ),
            (&good, &LABELS.replace("bob,1", "bob,one"), "age", "line 3: fold is 'one'"),
            (&good, &LABELS.replace("bob,1", "bob"), "age", "line 3: 5 cells instead of the header's 6"),
            (&good, &LABELS.replace("gender", "age"), "age", "line 1: two columns are called 'age'"),
            (&good, "age\n,\n,\n,\n", "age", "line 2: 2 cells instead of the header's 1"),
            (&good, "age,x\n,\n,\n,\n", "age", "labels.csv: no line has a label for 'age'"),
            (&good, LABELS, "Smiling", "labels.csv has no column 'Smiling'"),
            (&good, "Smiling\n1\n0\nyes\n", "Smiling", "line 4: Smiling is 'yes', which is not one of 0, 1, -1"),
        ] {
            let error = read_both(file, labels, target).unwrap_err();
            assert!(error.contains(message), "{error}\nshould have: {message}");
        }
        let error = read(Path::new("no.npy"), Path::new("no.csv"), &Target::Age).unwrap_err().to_string();
        assert!(error.starts_with("cannot read no.npy: "), "{error}");
    }
}
