//! Has a file changed?

use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// When a file was written, and its length: another file under the same name differs in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Option<(SystemTime, u64)>);

impl Stamp {
    /// The stamp of a file; one that is not there has a stamp of its own.
    pub(crate) fn of(path: &Path) -> Self {
        let look = || {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Self(look())
    }
}
