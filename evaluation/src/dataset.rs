//! A labelled set on disk: a folder, a folder with `manifest.csv` and `images.zip`, or a zip of either.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use facewise_core::task::Task;

use crate::archive::{Archive, ArchiveError, Limits};
use crate::filter::Filter;
use crate::manifest::{self, Manifest, Row};

const MANIFEST: &str = "manifest.csv";
const PICTURES: &str = "images.zip";
/// Most bytes of a manifest: six times that of 200,000 rows with forty columns.
const MAX_MANIFEST_BYTES: u64 = 1 << 28;

/// What a set may be and cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether a set without any label column is an error.
    pub require_labels: bool,
    /// Most rows of a manifest.
    pub max_rows: usize,
    /// Most bytes of one picture.
    pub max_picture_bytes: u64,
    /// Most bytes of an `images.zip` that has to be unpacked because it was compressed into another zip.
    pub max_archive_bytes: u64,
    /// Most entries of a zip.
    pub max_entries: usize,
    /// Most bytes of all entries of a zip together, unpacked.
    pub max_unpacked_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            require_labels: true,
            max_rows: 200_000,
            max_picture_bytes: 25_000_000,
            max_archive_bytes: 2 << 30,
            max_entries: 400_000,
            max_unpacked_bytes: 64 << 30,
        }
    }
}

impl Options {
    const fn limits(&self) -> Limits {
        Limits { max_entries: self.max_entries, max_unpacked_bytes: self.max_unpacked_bytes }
    }
}

/// Why a set cannot be used. The texts are fit for whoever brought it.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The path does not exist or cannot be read.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A zip that cannot be read, or is not read.
    #[error("the zip {name} is refused: {source}")]
    Archive {
        /// File or entry.
        name: String,
        /// The reason.
        source: ArchiveError,
    },
    /// No `manifest.csv`.
    #[error("there is no manifest.csv in {name}")]
    NoManifest {
        /// Folder or zip.
        name: String,
    },
    /// `manifest.csv` is too large to be one.
    #[error("manifest.csv is larger than {limit} bytes")]
    ManifestTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The manifest is not CSV at this line.
    #[error("manifest.csv, line {line}: {reason}")]
    Malformed {
        /// The line, the header being 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Two columns have the same name.
    #[error("manifest.csv has two columns named '{column}'")]
    DuplicateColumn {
        /// The name.
        column: String,
    },
    /// A column is missing that must be there.
    #[error("manifest.csv has no column '{column}'; it has {}", known.join(", "))]
    MissingColumn {
        /// The column.
        column: String,
        /// The columns there are.
        known: Vec<String>,
    },
    /// No column holds a label.
    #[error("manifest.csv has no label column: none of age, gender, smile, emotion among {}", known.join(", "))]
    NoLabelColumn {
        /// The columns there are.
        known: Vec<String>,
    },
    /// A header and nothing below it.
    #[error("manifest.csv has no rows")]
    NoRows,
    /// More rows than allowed.
    #[error("manifest.csv has more than {limit} rows")]
    TooManyRows {
        /// The limit.
        limit: usize,
    },
    /// A cell that cannot be understood.
    #[error("manifest.csv, line {line}, column '{column}': '{value}' is {reason}")]
    Value {
        /// The line, the header being 1.
        line: u64,
        /// The column.
        column: String,
        /// The text of the cell.
        value: String,
        /// What it should be.
        reason: String,
    },
    /// A path that is empty, absolute or leads out of the set.
    #[error("manifest.csv, line {line}: '{path}' is not a path within the set")]
    UnsafePath {
        /// The line, the header being 1.
        line: u64,
        /// The path.
        path: String,
    },
    /// A row's picture is not there.
    #[error("manifest.csv, line {line}: there is no picture '{path}'")]
    MissingPicture {
        /// The line, the header being 1.
        line: u64,
        /// The path.
        path: String,
    },
    /// A filter or a grouping names a column that is not there.
    #[error("there is no column '{column}'; there are {}", known.join(", "))]
    UnknownColumn {
        /// The name.
        column: String,
        /// The columns there are.
        known: Vec<String>,
    },
    /// A grouping by a column with more different values than allowed.
    #[error("the column '{column}' has more than {limit} different values among these rows: group by another")]
    TooManyGroups {
        /// The column.
        column: String,
        /// The limit.
        limit: usize,
    },
    /// Groupings by more columns than allowed.
    #[error("groups can be made by {limit} columns at most")]
    TooManyGroupings {
        /// The limit.
        limit: usize,
    },
}

/// Why the bytes of one picture cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    File(#[from] io::Error),
    /// The entry cannot be read.
    #[error("cannot be read: {0}")]
    Entry(#[source] ArchiveError),
    /// More bytes than allowed.
    #[error("larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
}

impl From<ArchiveError> for ReadError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::TooLarge { limit } => Self::TooLarge { limit },
            other => Self::Entry(other),
        }
    }
}

/// Where the pictures are.
#[derive(Debug)]
enum Pictures {
    Folder(PathBuf),
    Zip { archive: Archive, prefix: String },
}

impl Pictures {
    fn contains(&self, path: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(path).is_file(),
            Self::Zip { archive, prefix } => archive.contains(&format!("{prefix}{path}")),
        }
    }
}

/// A labelled set, open for reading: the manifest is in memory, the pictures are where they were.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    manifest: Manifest,
    pictures: Pictures,
    max_picture_bytes: u64,
}

impl Dataset {
    /// Opens and validates a set with the default [`Options`]: every cell is understood and every picture there.
    ///
    /// # Errors
    /// Every [`DatasetError`] but [`DatasetError::UnknownColumn`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DatasetError> {
        Self::open_with(path, Options::default())
    }

    /// Opens and validates a set.
    ///
    /// A zip may hold everything in one top folder, as file managers write it.
    ///
    /// # Errors
    /// Every [`DatasetError`] but [`DatasetError::UnknownColumn`].
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self, DatasetError> {
        let path = path.as_ref();
        Self::open_at(path, &path.display().to_string(), options)
    }

    /// Opens and validates a set that is called `name`, also where it is said what is wrong with it: whoever sent it need not know
    /// where it lies.
    ///
    /// # Errors
    /// Every [`DatasetError`] but [`DatasetError::UnknownColumn`].
    pub fn open_named(path: impl AsRef<Path>, name: &str, options: Options) -> Result<Self, DatasetError> {
        Self::open_at(path.as_ref(), name, options).map(|dataset| Self { name: name.to_owned(), ..dataset })
    }

    /// `place` stands for the path in errors.
    fn open_at(path: &Path, place: &str, options: Options) -> Result<Self, DatasetError> {
        let cannot_open = |source| DatasetError::Open { path: path.to_owned(), source };
        let resolved = path.canonicalize().map_err(cannot_open)?;
        let label =
            |part: Option<&std::ffi::OsStr>| part.map_or_else(String::new, |p| p.to_string_lossy().into_owned());

        let (name, text, pictures) = if resolved.is_dir() {
            let (text, pictures) = open_folder(&resolved, place, options)?;
            (label(resolved.file_name()), text, pictures)
        } else {
            let file = File::open(&resolved).map_err(cannot_open)?;
            let (text, pictures) = open_zip(file, &resolved, place, options)?;
            (label(resolved.file_stem()), text, pictures)
        };
        let manifest = manifest::read(&text, options.require_labels, options.max_rows)?;
        if let Some(row) = manifest.rows.iter().find(|row| !pictures.contains(&row.path)) {
            return Err(DatasetError::MissingPicture { line: row.line, path: row.path.clone() });
        }
        Ok(Self { name, manifest, pictures, max_picture_bytes: options.max_picture_bytes })
    }

    /// Name of the folder, or of the zip without its extension.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All rows, in the manifest's order.
    pub fn rows(&self) -> &[Row] {
        &self.manifest.rows
    }

    /// Names of all columns, in the manifest's order.
    pub fn columns(&self) -> &[String] {
        &self.manifest.columns
    }

    /// The tasks that have a label column.
    pub fn tasks(&self) -> &[Task] {
        &self.manifest.tasks
    }

    /// Position of a column, for [`Row::cell`].
    ///
    /// # Errors
    /// [`DatasetError::UnknownColumn`], with the columns there are.
    pub fn column(&self, name: &str) -> Result<usize, DatasetError> {
        self.columns()
            .iter()
            .position(|known| known == name)
            .ok_or_else(|| DatasetError::UnknownColumn { column: name.to_owned(), known: self.columns().to_vec() })
    }

    /// The rows that a filter chooses, in the manifest's order.
    ///
    /// # Errors
    /// [`DatasetError::UnknownColumn`] for a filter on a column that is not there.
    pub fn select(&self, filter: &Filter) -> Result<Vec<&Row>, DatasetError> {
        let conditions: Vec<_> = filter
            .conditions
            .iter()
            .map(|condition| Ok((self.column(&condition.column)?, condition)))
            .collect::<Result<_, DatasetError>>()?;
        let chosen =
            |row: &&Row| conditions.iter().all(|(column, condition)| condition.holds(row.cell(*column).trim()));
        Ok(self.rows().iter().filter(chosen).collect())
    }

    /// The bytes of a row's picture, as they are in the set. Any number of threads may read at once.
    ///
    /// # Errors
    /// When the picture cannot be read or is larger than [`Options::max_picture_bytes`].
    pub fn read(&self, row: &Row) -> Result<Vec<u8>, ReadError> {
        match &self.pictures {
            Pictures::Folder(folder) => read_file(&folder.join(&row.path), self.max_picture_bytes),
            Pictures::Zip { archive, prefix } => {
                Ok(archive.read(&format!("{prefix}{}", row.path), self.max_picture_bytes)?)
            }
        }
    }
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge { limit });
    }
    Ok(bytes)
}

fn open_folder(folder: &Path, place: &str, options: Options) -> Result<(Vec<u8>, Pictures), DatasetError> {
    let path = folder.join(MANIFEST);
    if !path.is_file() {
        return Err(DatasetError::NoManifest { name: place.to_owned() });
    }
    let text = read_file(&path, MAX_MANIFEST_BYTES).map_err(|error| match error {
        ReadError::File(source) => DatasetError::Open { path, source },
        _ => DatasetError::ManifestTooLarge { limit: MAX_MANIFEST_BYTES },
    })?;
    let zip = folder.join(PICTURES);
    if !zip.is_file() {
        return Ok((text, Pictures::Folder(folder.to_owned())));
    }
    let file = File::open(&zip).map_err(|source| DatasetError::Open { path: zip.clone(), source })?;
    let broken = |source| DatasetError::Archive { name: format!("{place}/{PICTURES}"), source };
    let archive = Archive::open(file, options.limits()).map_err(broken)?;
    Ok((text, Pictures::Zip { archive, prefix: String::new() }))
}

fn open_zip(file: File, path: &Path, name: &str, options: Options) -> Result<(Vec<u8>, Pictures), DatasetError> {
    let broken = |name: &str, source| DatasetError::Archive { name: name.to_owned(), source };
    let archive = Archive::open(file, options.limits()).map_err(|source| broken(name, source))?;
    let prefix = top_folder(&archive).ok_or_else(|| DatasetError::NoManifest { name: name.to_owned() })?;

    let text = archive.read(&format!("{prefix}{MANIFEST}"), MAX_MANIFEST_BYTES).map_err(|error| match error {
        ArchiveError::TooLarge { limit } => DatasetError::ManifestTooLarge { limit },
        source => broken(MANIFEST, source),
    })?;
    let nested = format!("{prefix}{PICTURES}");
    if !archive.contains(&nested) {
        return Ok((text, Pictures::Zip { archive, prefix }));
    }
    let beside = path.parent().unwrap_or(path);
    let archive = archive
        .nested(&nested, beside, options.max_archive_bytes, options.limits())
        .map_err(|source| broken(&nested, source))?;
    Ok((text, Pictures::Zip { archive, prefix: String::new() }))
}

/// The folder within a zip that holds the manifest: the root, or the only top folder with one.
fn top_folder(archive: &Archive) -> Option<String> {
    if archive.contains(MANIFEST) {
        return Some(String::new());
    }
    let mut candidates = archive
        .names()
        .filter_map(|name| name.strip_suffix(MANIFEST))
        .filter(|folder| folder.ends_with('/') && folder.matches('/').count() == 1);
    let only = candidates.next()?.to_owned();
    candidates.next().is_none().then_some(only)
}
