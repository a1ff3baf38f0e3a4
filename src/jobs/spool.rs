//! A labelled set on its way to the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use facewise_evaluation::DatasetError;
use facewise_evaluation::archive::ArchiveError;
use facewise_evaluation::filter::FilterError;

use super::{Evaluations, JobsError, is_full};
use crate::evaluate::EvaluateError;

/// A set that is one zip.
pub(super) const DATASET: &str = "dataset.zip";

/// Everything that a set may consist of.
pub(super) const FILES: [&str; 3] = [DATASET, "manifest.csv", "images.zip"];

/// Part of a set as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One zip with everything.
    Dataset,
    /// The manifest alone.
    Manifest,
    /// The pictures of a manifest.
    Images,
}

impl Part {
    /// The part with this name in a form.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "dataset" => Some(Self::Dataset),
            "manifest" => Some(Self::Manifest),
            "images" => Some(Self::Images),
            _ => None,
        }
    }
}

/// Why a set was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It is not what it should be.
    #[error(transparent)]
    Set(#[from] EvaluateError),
    /// The filter is none.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// It cannot be written down.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// It was removed at once.
    #[error("the evaluation was removed")]
    Gone,
}

impl SpoolError {
    /// Whether the disk is full.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::Jobs(error) => error.is_storage_full(),
            Self::Set(EvaluateError::Dataset(DatasetError::Archive { source: ArchiveError::Io(error), .. })) => {
                is_full(error)
            }
            _ => false,
        }
    }

    /// Whether the set is larger than one may be.
    pub const fn is_too_large(&self) -> bool {
        use ArchiveError::{Bomb, TooLarge, TooManyEntries};
        matches!(
            self,
            Self::Set(EvaluateError::Dataset(
                DatasetError::TooManyRows { .. }
                    | DatasetError::ManifestTooLarge { .. }
                    | DatasetError::Archive { source: Bomb { .. } | TooLarge { .. } | TooManyEntries { .. }, .. }
            ))
        )
    }
}

/// Counts one of those that arrive, until it is dropped.
pub(super) struct Place(pub(super) Arc<Evaluations>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A folder that a set arrives in. It is removed when this is dropped before it is kept: what breaks off leaves nothing behind.
pub struct Spool {
    place: Option<Place>,
    id: String,
    folder: PathBuf,
}

impl Spool {
    pub(super) const fn new(place: Place, id: String, folder: PathBuf) -> Self {
        Self { place: Some(place), id, folder }
    }

    /// Id of the evaluation that this becomes.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a part goes.
    pub fn path(&self, part: Part) -> PathBuf {
        let [dataset, manifest, images] = FILES;
        self.folder.join(match part {
            Part::Dataset => dataset,
            Part::Manifest => manifest,
            Part::Images => images,
        })
    }

    /// Leaves the folder to the evaluation; its id.
    pub(super) fn keep(mut self) -> String {
        self.place = None;
        std::mem::take(&mut self.id)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Before the place: as long as something arrives, no folder is taken for one that nobody owns.
        if let Some(Place(evaluations)) = &self.place {
            evaluations.remove_folder(&self.id);
        }
    }
}
