//! `manifest.csv`: one row per face, with its labels and, where known, its box and keypoints.

use std::path::{Component, Path};

use facewise_core::geometry::{Landmarks, Point, Rect};
use facewise_core::task::Task;

use crate::dataset::DatasetError;

/// What is known about a face; an empty cell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Labels {
    /// Years, 0..=150.
    pub age: Option<f32>,
    /// Index into the labels of [`Task::Gender`].
    pub gender: Option<usize>,
    /// Index into the labels of [`Task::Smile`].
    pub smile: Option<usize>,
    /// Index into the labels of [`Task::Emotion`].
    pub emotion: Option<usize>,
}

impl Labels {
    /// Index of the label of a task; `None` without one, and always for [`Task::Age`], which has years instead.
    pub const fn class(&self, task: Task) -> Option<usize> {
        match task {
            Task::Age => None,
            Task::Gender => self.gender,
            Task::Smile => self.smile,
            Task::Emotion => self.emotion,
        }
    }

    /// Whether there is a label for a task.
    pub const fn has(&self, task: Task) -> bool {
        match task {
            Task::Age => self.age.is_some(),
            _ => self.class(task).is_some(),
        }
    }
}

/// One face.
#[derive(Clone, Debug)]
pub struct Row {
    /// Line of the manifest, the header being line 1.
    pub line: u64,
    /// Name of the picture within the set, with `/` between folders. Several faces may share one.
    pub path: String,
    /// The labels.
    pub labels: Labels,
    /// The face in pixels of the stored picture.
    pub region: Option<Rect>,
    /// The keypoints in pixels of the stored picture.
    pub landmarks: Option<Landmarks>,
    cells: csv::StringRecord,
}

impl Row {
    /// The text of a column, by its position in [`Dataset::columns`](crate::Dataset::columns).
    pub fn cell(&self, column: usize) -> &str {
        self.cells.get(column).unwrap_or_default()
    }
}

/// How a column spells a label.
#[derive(Clone, Copy, Debug)]
enum Spelling {
    /// The label itself.
    Word,
    /// 0 for the first of two labels, 1 for the second.
    Binary,
    /// `CelebA`'s 0 or −1 for the first of two labels, 1 for the second.
    Attribute,
}

/// Where a label is found.
#[derive(Clone, Copy, Debug)]
struct LabelColumn {
    task: Task,
    column: usize,
    spelling: Spelling,
}

/// The header, understood.
#[derive(Debug)]
struct Header {
    names: Vec<String>,
    path: usize,
    age: Option<usize>,
    labels: Vec<LabelColumn>,
    region: Option<[usize; 4]>,
    landmarks: Option<[usize; 8]>,
}

const REGION: [&str; 4] = ["box_x", "box_y", "box_w", "box_h"];
const LANDMARKS: [&str; 8] = ["reye_x", "reye_y", "leye_x", "leye_y", "nose_x", "nose_y", "mouth_x", "mouth_y"];

/// The columns that may hold a label, in order of preference per task.
const LABELS: [(&str, Task, Spelling); 5] = [
    ("gender", Task::Gender, Spelling::Word),
    ("Male", Task::Gender, Spelling::Attribute),
    ("smile", Task::Smile, Spelling::Binary),
    ("Smiling", Task::Smile, Spelling::Attribute),
    ("emotion", Task::Emotion, Spelling::Word),
];

impl Header {
    fn read(names: &csv::StringRecord, require_labels: bool) -> Result<Self, DatasetError> {
        let names: Vec<String> = names.iter().map(|name| name.trim().to_owned()).collect();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(DatasetError::DuplicateColumn { column: name.clone() });
            }
        }
        let find = |name: &str| names.iter().position(|known| known == name);
        let missing = |name: &str| DatasetError::MissingColumn { column: name.to_owned(), known: names.clone() };

        let path = find("path").ok_or_else(|| missing("path"))?;
        let age = find("age");
        let mut labels: Vec<LabelColumn> = Vec::new();
        for (name, task, spelling) in LABELS {
            let known = labels.iter().any(|label| label.task == task);
            if let Some(column) = find(name).filter(|_| !known) {
                labels.push(LabelColumn { task, column, spelling });
            }
        }
        if require_labels && age.is_none() && labels.is_empty() {
            return Err(DatasetError::NoLabelColumn { known: names.clone() });
        }
        let region = group(REGION, find).map_err(missing)?;
        let landmarks = group(LANDMARKS, find).map_err(missing)?;
        Ok(Self { names, path, age, labels, region, landmarks })
    }

    fn tasks(&self) -> Vec<Task> {
        let labelled = |task| match task {
            Task::Age => self.age.is_some(),
            _ => self.labels.iter().any(|label| label.task == task),
        };
        Task::ALL.into_iter().filter(|task| labelled(*task)).collect()
    }

    fn row(&self, cells: csv::StringRecord) -> Result<Row, DatasetError> {
        let line = cells.position().map_or(0, csv::Position::line);
        let text = Text { header: self, cells: &cells, line };

        let path = text.cell(self.path);
        let path = relative(path).ok_or_else(|| DatasetError::UnsafePath { line, path: path.to_owned() })?;

        let mut labels =
            Labels { age: self.age.map(|column| text.age(column)).transpose()?.flatten(), ..Labels::default() };
        for label in &self.labels {
            let class = text.class(*label)?;
            match label.task {
                Task::Age => {}
                Task::Gender => labels.gender = class,
                Task::Smile => labels.smile = class,
                Task::Emotion => labels.emotion = class,
            }
        }

        let region = self.region.map(|columns| text.region(columns)).transpose()?.flatten();
        let landmarks =
            self.landmarks.map(|columns| text.numbers(columns)).transpose()?.flatten().map(|at| Landmarks {
                right_eye: Point::new(at[0], at[1]),
                left_eye: Point::new(at[2], at[3]),
                nose: Point::new(at[4], at[5]),
                mouth: Point::new(at[6], at[7]),
            });
        Ok(Row { line, path, labels, region, landmarks, cells })
    }
}

/// The columns of a group, which are all there or none of them is; else the first that is missing.
fn group<const N: usize>(
    names: [&'static str; N],
    find: impl Fn(&str) -> Option<usize>,
) -> Result<Option<[usize; N]>, &'static str> {
    let found = names.map(find);
    if found.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut columns = [0; N];
    for ((column, found), name) in columns.iter_mut().zip(found).zip(names) {
        *column = found.ok_or(name)?;
    }
    Ok(Some(columns))
}

/// A row as text, on its way to types.
struct Text<'a> {
    header: &'a Header,
    cells: &'a csv::StringRecord,
    line: u64,
}

impl Text<'_> {
    fn cell(&self, column: usize) -> &str {
        self.cells.get(column).unwrap_or_default().trim()
    }

    fn wrong(&self, column: usize, reason: impl Into<String>) -> DatasetError {
        DatasetError::Value {
            line: self.line,
            column: self.header.names[column].clone(),
            value: self.cell(column).to_owned(),
            reason: reason.into(),
        }
    }

    fn number(&self, column: usize) -> Result<Option<f32>, DatasetError> {
        match self.cell(column) {
            "" => Ok(None),
            text => match text.parse::<f32>() {
                Ok(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(self.wrong(column, "not a number")),
            },
        }
    }

    fn age(&self, column: usize) -> Result<Option<f32>, DatasetError> {
        match self.number(column)? {
            Some(age) if !(0.0..=150.0).contains(&age) => Err(self.wrong(column, "not an age from 0 to 150 years")),
            age => Ok(age),
        }
    }

    fn class(&self, label: LabelColumn) -> Result<Option<usize>, DatasetError> {
        let text = self.cell(label.column);
        let class = match label.spelling {
            _ if text.is_empty() => return Ok(None),
            Spelling::Word => label.task.label_index(text),
            Spelling::Binary => ["0", "1"].iter().position(|known| *known == text),
            Spelling::Attribute => match text {
                "0" | "-1" => Some(0),
                "1" => Some(1),
                _ => None,
            },
        };
        let expected = || match label.spelling {
            Spelling::Word => label.task.labels().join(", "),
            Spelling::Binary => "0, 1".to_owned(),
            Spelling::Attribute => "-1, 0, 1".to_owned(),
        };
        class.map(Some).ok_or_else(|| self.wrong(label.column, format!("not one of {}", expected())))
    }

    /// Numbers that are all given or all empty.
    fn numbers<const N: usize>(&self, columns: [usize; N]) -> Result<Option<[f32; N]>, DatasetError> {
        let mut numbers = [0.0; N];
        let mut empty = None;
        for (number, column) in numbers.iter_mut().zip(columns) {
            match self.number(column)? {
                Some(value) => *number = value,
                None => empty = empty.or(Some(column)),
            }
        }
        match empty {
            None => Ok(Some(numbers)),
            Some(_) if columns.iter().all(|column| self.cell(*column).is_empty()) => Ok(None),
            Some(column) => Err(self.wrong(column, "empty, while its neighbours are not")),
        }
    }

    fn region(&self, columns: [usize; 4]) -> Result<Option<Rect>, DatasetError> {
        let Some([x, y, width, height]) = self.numbers(columns)? else {
            return Ok(None);
        };
        for (length, column) in [(width, columns[2]), (height, columns[3])] {
            if length <= 0.0 {
                return Err(self.wrong(column, "not a positive length"));
            }
        }
        Ok(Some(Rect { x, y, width, height }))
    }
}

/// The path without `.` steps, if it stays below where it starts.
fn relative(path: &str) -> Option<String> {
    let mut steps = Vec::new();
    for step in Path::new(path).components() {
        match step {
            Component::Normal(name) => steps.push(name.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!steps.is_empty() && !path.contains('\0')).then(|| steps.join("/"))
}

/// A manifest, read.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) columns: Vec<String>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) rows: Vec<Row>,
}

/// Reads a manifest. Without `require_labels` one that has no label column passes too.
pub(crate) fn read(text: &[u8], require_labels: bool, max_rows: usize) -> Result<Manifest, DatasetError> {
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let mut reader = csv::Reader::from_reader(text);
    let header = Header::read(reader.headers().map_err(|error| malformed(&error))?, require_labels)?;
    let mut rows = Vec::new();
    for record in reader.into_records() {
        if rows.len() == max_rows {
            return Err(DatasetError::TooManyRows { limit: max_rows });
        }
        rows.push(header.row(record.map_err(|error| malformed(&error))?)?);
    }
    if rows.is_empty() {
        return Err(DatasetError::NoRows);
    }
    Ok(Manifest { tasks: header.tasks(), columns: header.names, rows })
}

fn malformed(error: &csv::Error) -> DatasetError {
    let line = error.position().map_or(1, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} cells instead of the header's {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    DatasetError::Malformed { line, reason }
}
