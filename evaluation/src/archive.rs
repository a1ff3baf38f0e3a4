//! A zip that many threads read at once: its directory is read on opening, then each picture with positioned
//! reads of the one file, without a lock and without unpacking anything.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// A stretch of a file with a position of its own; clones share the file and nothing else.
#[derive(Clone, Debug)]
struct Window {
    file: Arc<File>,
    start: u64,
    length: u64,
    position: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..wanted], self.start + self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

/// Why an entry of an archive cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive or the entry is broken, encrypted or compressed in a way that is not read here.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The entry unpacks to more bytes than allowed.
    #[error("larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
}

/// An open zip. Entries may be stored or deflated.
#[derive(Clone, Debug)]
pub struct Archive {
    zip: ZipArchive<Window>,
}

impl Archive {
    /// Reads the directory of a zip.
    ///
    /// # Errors
    /// When the file is no zip or cannot be read.
    pub fn open(file: File) -> Result<Self, ArchiveError> {
        let length = file.metadata()?.len();
        let window = Window { file: Arc::new(file), start: 0, length, position: 0 };
        Ok(Self { zip: ZipArchive::new(window)? })
    }

    /// Opens a zip that is an entry of this one: in place where it is stored, from an unnamed temporary file
    /// where it is compressed.
    ///
    /// # Errors
    /// When there is no such entry, it is no zip, or it unpacks to more than `limit` bytes.
    pub fn nested(&self, name: &str, limit: u64) -> Result<Self, ArchiveError> {
        let mut zip = self.zip.clone();
        let entry = zip.by_name(name)?;
        if entry.compression() == CompressionMethod::Stored && !entry.encrypted() {
            let (start, length) = (entry.data_start(), entry.compressed_size());
            drop(entry);
            let outer = zip.into_inner();
            let within = outer.length.saturating_sub(start).min(length);
            let window = Window { start: outer.start + start, length: within, position: 0, ..outer };
            return Ok(Self { zip: ZipArchive::new(window)? });
        }
        let mut unpacked = tempfile::tempfile()?;
        if io::copy(&mut entry.take(limit.saturating_add(1)), &mut unpacked)? > limit {
            return Err(ArchiveError::TooLarge { limit });
        }
        Self::open(unpacked)
    }

    /// Whether there is an entry of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.zip.index_for_name(name).is_some()
    }

    /// Names of all entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.zip.file_names()
    }

    /// The bytes of one entry, checked against its CRC-32.
    ///
    /// # Errors
    /// When there is no such entry, it is broken, or it unpacks to more than `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        // A clone is two counted references; the position of its window is its own.
        let mut zip = self.zip.clone();
        let entry = zip.by_name(name)?;
        if entry.size() > limit {
            return Err(ArchiveError::TooLarge { limit });
        }
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        // The announced size is not to be trusted with compressed data.
        entry.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(ArchiveError::TooLarge { limit });
        }
        Ok(bytes)
    }
}
