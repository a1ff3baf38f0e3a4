//! Evaluations of labelled sets that were sent to the server: one at a time, behind all predictions, kept in a folder with a
//! database, so that they outlive the server.
//!
//! A set lies in the folder of its evaluation until that has ended, beside `predictions.csv`, which grows row by row; after a
//! sudden end of the server the evaluation goes on behind the last row in it.

mod runner;
mod spool;
mod store;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use facewise_evaluation::filter::FilterError;
use facewise_evaluation::report::Geometry;
use facewise_evaluation::{Dataset, Options};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use ulid::Ulid;
use utoipa::ToSchema;

pub(crate) use self::runner::start;
pub use self::spool::{Part, Spool, SpoolError};
use self::store::Store;
use crate::config;
use crate::evaluate::{Crops, EvaluateError, Plan};
use crate::telemetry::Metrics;

/// The database.
const DATABASE: &str = "evaluations.db";
/// Held by the server whose folder it is.
const LOCK: &str = "lock";
/// The folder with one folder for each evaluation.
const FOLDERS: &str = "evaluations";
/// The page of a report.
const PAGE: &str = "report.html";
/// What was answered to each row.
const PREDICTIONS: &str = "predictions.csv";

/// Where an evaluation is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It waits for its turn.
    Queued,
    /// It is at work.
    Running,
    /// It has a report.
    Succeeded,
    /// It ended without one; `error` says why.
    Failed,
    /// Somebody ended it.
    Cancelled,
    /// The server ended, and it cannot go on where it was; it can be restarted.
    Interrupted,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Interrupted];

    /// The name in JSON and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether nothing happens to it any more by itself.
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// What is to be evaluated, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Order {
    /// Name of the set: that of the file that was sent, without its extension.
    #[schema(example = "utkface")]
    pub dataset: String,
    /// The model that is scored.
    #[schema(example = "face-attributes")]
    pub model: String,
    /// Where faces are taken from: `manifest`, the set's keypoints, and rows without them as with `crop`; `crop`, the best face that
    /// the detector finds, else the centred square; `false`, the centred square.
    #[schema(value_type = String, example = "manifest")]
    pub detect: Geometry,
    /// Which rows count.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "split=test")]
    pub filter: Option<String>,
    /// Columns whose values divide the rows into groups.
    #[serde(default)]
    #[schema(example = json!(["race"]))]
    pub group_by: Vec<String>,
    /// Only the first so many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Whether the page shows small pictures of the rows that were answered worst.
    #[serde(default)]
    pub thumbnails: bool,
}

impl Order {
    /// Whether its filter is one, which can be told before any of the set has arrived.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self) -> Result<(), FilterError> {
        self.plan(1).map(drop)
    }

    /// The plan that this asks for.
    fn plan(&self, parallel: usize) -> Result<Plan, FilterError> {
        Ok(Plan {
            filter: self.filter.as_deref().unwrap_or_default().parse()?,
            limit: self.limit,
            group_by: self.group_by.clone(),
            crops: match self.detect {
                Geometry::Manifest => Crops::Keypoints,
                Geometry::Crop => Crops::Detected,
                Geometry::Square => Crops::Square,
            },
            thumbnails: self.thumbnails,
            parallel,
        })
    }
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Progress {
    /// Rows that are done.
    pub done: u64,
    /// Rows in all.
    pub total: u64,
}

/// An evaluation of a labelled set.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Evaluation {
    /// Its id; those of later ones are greater.
    #[schema(example = "01M7Z496531PDNRFTP1PD70XMQ")]
    pub id: String,
    /// Where it is on its way.
    pub status: Status,
    /// What was asked for.
    #[serde(flatten)]
    pub order: Order,
    /// Version of the model, once it runs.
    pub version: Option<String>,
    /// When it was asked for: RFC 3339, UTC.
    pub created: String,
    /// When it began.
    pub started: Option<String>,
    /// When it ended.
    pub finished: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// Why it has no report, where it ended without one.
    pub error: Option<String>,
    /// The report, once it has succeeded; the same as `report.json`.
    #[schema(value_type = Option<Object>)]
    pub report: Option<serde_json::Value>,
}

/// Why the folder of evaluations cannot be used. Each text is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// It cannot be made or read.
    #[error("the folder of evaluations '{}' cannot be used ({source}): name another with --data-dir, or none", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server uses it.
    #[error("the folder of evaluations '{}' is used by another server: name another with --data-dir, or none", .0.display())]
    Taken(PathBuf),
    /// The database is broken, or cannot be written.
    #[error("the database of evaluations: {0}")]
    Database(#[from] rusqlite::Error),
    /// A file of an evaluation cannot be read or written.
    #[error("a file of an evaluation: {0}")]
    File(#[from] io::Error),
}

impl JobsError {
    /// Whether the disk is full.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::Database(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Self::Folder { source, .. } | Self::File(source) => is_full(source),
            Self::Taken(_) => false,
        }
    }
}

/// Whether the disk, or what of it may be used, is full.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The evaluation at work.
struct Current {
    id: String,
    progress: Progress,
    /// Ends it.
    stop: Arc<Notify>,
    /// Whether somebody wants it ended, and not only the server to stop.
    is_cancelled: bool,
}

/// The evaluations of a server. Its functions block: they wait for the disk.
pub struct Evaluations {
    settings: config::Evaluations,
    folder: PathBuf,
    store: Store,
    metrics: Arc<Metrics>,
    current: Mutex<Option<Current>>,
    /// Sets that are on their way here.
    arriving: AtomicUsize,
    stopping: AtomicBool,
    /// Counts changes, so that whoever watches looks again.
    changes: watch::Sender<u64>,
    /// Wakes the runner.
    wake: mpsc::Sender<()>,
    woken: Mutex<Option<mpsc::Receiver<()>>>,
    _lock: File,
}

impl Evaluations {
    /// Opens the folder, and makes it where it is not there yet. What was running when the last server ended waits for its turn
    /// again; sets that had not quite arrived are removed.
    ///
    /// # Errors
    /// When the folder cannot be used, or another server uses it.
    pub fn open(folder: &Path, settings: &config::Evaluations, metrics: &Arc<Metrics>) -> Result<Self, JobsError> {
        let unusable = |source| JobsError::Folder { path: folder.to_owned(), source };
        private_folder(&folder.join(FOLDERS)).map_err(unusable)?;
        let folder = folder.canonicalize().map_err(unusable)?;
        let lock =
            OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(LOCK)).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(JobsError::Taken(folder)),
            Err(fs::TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // SQLite gives its other files the rights of this one.
        OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(DATABASE)).map_err(unusable)?;
        let store = Store::open(&folder.join(DATABASE))?;
        let resumed = store.resume()?;
        if resumed > 0 {
            tracing::info!(evaluations = resumed, "evaluations that were interrupted go on");
        }
        let (wake, woken) = mpsc::channel();
        let evaluations = Self {
            settings: settings.clone(),
            folder,
            store,
            metrics: Arc::clone(metrics),
            current: Mutex::new(None),
            arriving: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            changes: watch::channel(0).0,
            wake,
            woken: Mutex::new(Some(woken)),
            _lock: lock,
        };
        evaluations.sweep()?;
        evaluations.changed();
        Ok(evaluations)
    }

    /// The settings.
    pub const fn settings(&self) -> &config::Evaluations {
        &self.settings
    }

    fn folder_of(&self, id: &str) -> PathBuf {
        self.folder.join(FOLDERS).join(id)
    }

    /// Removes what nobody needs any more: evaluations that are kept long enough, and folders of none.
    fn sweep(&self) -> Result<(), JobsError> {
        let (_, now) = now();
        let kept = Duration::from(self.settings.evaluations_retention).as_secs();
        let mut old = self.store.remove_finished_before(now.saturating_sub(kept))?;
        let folders = fs::read_dir(self.folder.join(FOLDERS))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        // After the list, and before the database is asked: what was listed as it arrived is known by then.
        if self.arriving.load(Ordering::SeqCst) == 0 {
            for name in folders {
                if !self.store.has(&name)? {
                    old.push(name);
                }
            }
        }
        for id in old {
            self.remove_folder(&id);
        }
        Ok(())
    }

    fn remove_folder(&self, id: &str) {
        match fs::remove_dir_all(self.folder_of(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, id, "the files of an evaluation cannot be removed");
            }
            _ => {}
        }
    }

    /// Removes the set of an evaluation that has ended.
    fn remove_set(&self, id: &str) {
        for file in spool::FILES {
            // What was not sent is not there.
            let _ = fs::remove_file(self.folder_of(id).join(file));
        }
    }

    /// Takes a set in, which arrives in the folder that is returned.
    ///
    /// # Errors
    /// `None` when as many wait as may; else when the folder cannot be made.
    pub fn receive(self: &Arc<Self>) -> Result<Option<Spool>, JobsError> {
        let arriving = self.arriving.fetch_add(1, Ordering::SeqCst);
        let place = spool::Place(Arc::clone(self));
        if self.store.count(Status::Queued)? + arriving as u64 >= self.settings.max_evaluations as u64 {
            return Ok(None);
        }
        let id = Ulid::generate().to_string();
        let folder = self.folder_of(&id);
        private_folder(&folder)?;
        Ok(Some(Spool::new(place, id, folder)))
    }

    /// What a set may be.
    fn options(&self) -> Options {
        let size = |size: bytesize::ByteSize| size.as_u64();
        Options {
            require_labels: true,
            max_rows: self.settings.max_dataset_rows,
            max_picture_bytes: size(self.settings.max_dataset_picture),
            max_archive_bytes: size(self.settings.max_dataset),
            // Pictures may lie in a zip that no row names, and folders do.
            max_entries: self.settings.max_dataset_rows.saturating_mul(2).saturating_add(1000),
            max_unpacked_bytes: size(self.settings.max_dataset_unpacked),
        }
    }

    /// Opens the set in a folder, under the name that it was sent with.
    fn dataset(&self, folder: &Path, name: &str) -> Result<Dataset, facewise_evaluation::DatasetError> {
        let zip = folder.join(spool::DATASET);
        let path = if zip.is_file() { zip } else { folder.to_owned() };
        Dataset::open_named(path, name, self.options())
    }

    /// Checks a set that has arrived, and puts it at the end of the line.
    ///
    /// # Errors
    /// When the set is not what it should be, or it cannot be written down.
    pub fn enqueue(&self, spool: Spool, order: &Order) -> Result<Evaluation, SpoolError> {
        let dataset = self.dataset(spool.folder(), &order.dataset).map_err(EvaluateError::Dataset)?;
        let (rows, _) = order.plan(1)?.rows(&dataset)?;
        let (now, _) = now();
        self.store.add(spool.id(), order, rows.len() as u64, &now).map_err(JobsError::from)?;
        let id = spool.keep();
        self.changed();
        // Without a runner, the server is ending, and the next one takes it up.
        let _ = self.wake.send(());
        let evaluation = self.get(&id)?;
        evaluation.ok_or(SpoolError::Gone)
    }

    /// One evaluation, as far as it is now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, id: &str) -> Result<Option<Evaluation>, JobsError> {
        Ok(self.store.get(id)?.map(|evaluation| self.live(evaluation)))
    }

    /// The newest evaluations, the newest first; only those before one with this id, if it is given.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self, before: Option<&str>, limit: usize) -> Result<Vec<Evaluation>, JobsError> {
        Ok(self.store.list(before, limit)?.into_iter().map(|evaluation| self.live(evaluation)).collect())
    }

    /// With the progress of this moment, which the database does not hold.
    fn live(&self, mut evaluation: Evaluation) -> Evaluation {
        match &*self.current.lock() {
            Some(current) if current.id == evaluation.id && evaluation.status == Status::Running => {
                evaluation.progress.done = current.progress.done;
            }
            _ => {}
        }
        evaluation
    }

    /// The report as JSON, of an evaluation that has one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn report(&self, id: &str) -> Result<Option<String>, JobsError> {
        Ok(self.store.report(id)?)
    }

    /// The page of the report, of an evaluation that has one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn page(&self, id: &str) -> Result<Option<Vec<u8>>, JobsError> {
        match self.store.report(id)? {
            Some(_) => Ok(Some(fs::read(self.folder_of(id).join(PAGE))?)),
            None => Ok(None),
        }
    }

    /// What was answered to each row, of an evaluation that has a report.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn predictions(&self, id: &str) -> Result<Option<File>, JobsError> {
        match self.store.report(id)? {
            Some(_) => Ok(Some(File::open(self.folder_of(id).join(PREDICTIONS))?)),
            None => Ok(None),
        }
    }

    /// Ends an evaluation without a report, if it has not ended; as it is then. `None` when there is none.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn cancel(&self, id: &str) -> Result<Option<Evaluation>, JobsError> {
        {
            let mut current = self.current.lock();
            match &mut *current {
                Some(current) if current.id == id => {
                    let (now, unix) = now();
                    let end = store::End {
                        status: Status::Cancelled,
                        now: &now,
                        unix,
                        done: current.progress.done,
                        error: None,
                        report: None,
                    };
                    // It may have ended by itself a moment ago.
                    if self.store.finish(id, &end)? {
                        current.is_cancelled = true;
                        current.stop.notify_one();
                    }
                }
                _ => {
                    let (now, unix) = now();
                    if self.store.cancel_queued(id, &now, unix)? {
                        self.remove_folder(id);
                    }
                }
            }
        }
        self.changed();
        self.get(id)
    }

    /// Puts an interrupted evaluation back into the line, from its beginning; as it is then. `None` when there is none.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn restart(&self, id: &str) -> Result<Option<Evaluation>, JobsError> {
        // The folder first: what is in the line may begin at once.
        let is_interrupted = self.store.get(id)?.is_some_and(|evaluation| evaluation.status == Status::Interrupted);
        if is_interrupted {
            match fs::remove_file(self.folder_of(id).join(PREDICTIONS)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            self.store.restart(id)?;
            self.changed();
            let _ = self.wake.send(());
        }
        self.get(id)
    }

    /// Ends an evaluation and removes everything about it; whether there was one.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn remove(&self, id: &str) -> Result<bool, JobsError> {
        let is_there = {
            let mut current = self.current.lock();
            let is_there = self.store.remove(id)?;
            match &mut *current {
                // Whoever is at work there removes the folder.
                Some(current) if current.id == id => {
                    current.is_cancelled = true;
                    current.stop.notify_one();
                }
                _ if is_there => self.remove_folder(id),
                _ => {}
            }
            is_there
        };
        self.changed();
        Ok(is_there)
    }

    /// Tells of changes: the number behind it is another after each.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ends the work, and whoever watches; the next server goes on with it.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(current) = &*self.current.lock() {
            current.stop.notify_one();
        }
        self.changes.send_modify(|changes| *changes += 1);
        let _ = self.wake.send(());
    }

    /// Whether the server is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Tells whoever watches, and counts anew.
    fn changed(&self) {
        for status in Status::ALL {
            match self.store.count(status) {
                Ok(count) => self.metrics.evaluations.with_label_values(&[status.name()]).set(count as i64),
                Err(error) => tracing::error!(%error, "evaluations cannot be counted"),
            }
        }
        self.changes.send_modify(|changes| *changes += 1);
    }
}

/// Makes a folder that nobody else may look into, and those above it.
fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// This moment: RFC 3339, UTC, and in seconds since 1970.
fn now() -> (String, u64) {
    let now = SystemTime::now();
    let unix = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    (humantime::format_rfc3339_millis(now).to_string(), unix)
}
