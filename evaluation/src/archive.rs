//! A zip that many threads read at once: its directory is read and checked on opening, then each picture with positioned reads
//! of the one file, without a lock and without unpacking anything.
//!
//! The directory is read here and not by the crate `zip`, which reserves memory for as many entries as a file claims to have before
//! it has seen one, and keeps one of two entries with the same name in silence: a server opens what strangers send.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;

use flate2::Crc;
use flate2::read::DeflateDecoder;

/// A stretch of a file with a position of its own; clones share the file and nothing else.
#[derive(Clone, Debug)]
struct Window {
    file: Arc<File>,
    start: u64,
    length: u64,
    position: u64,
}

impl Window {
    /// A part of it; what of that lies outside is cut off.
    fn part(&self, start: u64, length: u64) -> Self {
        let start = start.min(self.length);
        Self {
            file: Arc::clone(&self.file),
            start: self.start + start,
            length: length.min(self.length - start),
            position: 0,
        }
    }

    /// All its bytes.
    fn bytes(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
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

/// What an archive may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries.
    pub max_entries: usize,
    /// Most bytes of all entries together, unpacked.
    pub max_unpacked_bytes: u64,
}

/// Why an archive, or an entry of it, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is no zip, or was cut.
    #[error("it is no zip, or not all of one: {0}")]
    Broken(&'static str),
    /// There is no such entry.
    #[error("it has no entry '{0}'")]
    Missing(String),
    /// Two entries have the same name.
    #[error("it has two entries named '{0}'")]
    Duplicate(String),
    /// The name of an entry is absolute or leads out of the archive.
    #[error("the entry '{0}' is not a path within the archive")]
    UnsafeName(String),
    /// An entry is encrypted.
    #[error("the entry '{0}' is encrypted")]
    Encrypted(String),
    /// An entry is compressed in a way that is not read here.
    #[error("the entry '{name}' is compressed by method {method}: only stored and deflated entries are read")]
    Method {
        /// The entry.
        name: String,
        /// Its method, by the number that zip gives it.
        method: u16,
    },
    /// There are more entries than allowed.
    #[error("it has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// All entries together unpack to more than allowed.
    #[error("its entries unpack to more than {limit} bytes together")]
    Bomb {
        /// The limit in bytes.
        limit: u64,
    },
    /// The entry unpacks to more bytes than allowed.
    #[error("larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes of an entry are not those that were packed.
    #[error("the entry '{0}' is damaged")]
    Damaged(String),
}

/// How an entry is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Stored,
    Deflated,
}

/// Where an entry is, and how large.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Of its local header.
    offset: u64,
    packed: u64,
    unpacked: u64,
    crc: u32,
    method: Method,
}

/// An open zip. Entries may be stored or deflated.
#[derive(Clone, Debug)]
pub struct Archive {
    window: Window,
    entries: Arc<HashMap<Box<str>, Entry>>,
}

impl Archive {
    /// Reads the directory of a zip, and checks every entry's name, size and method.
    ///
    /// # Errors
    /// When the file is no zip, cannot be read, or is not within the limits.
    pub fn open(file: File, limits: Limits) -> Result<Self, ArchiveError> {
        let length = file.metadata()?.len();
        Self::within(Window { file: Arc::new(file), start: 0, length, position: 0 }, limits)
    }

    fn within(window: Window, limits: Limits) -> Result<Self, ArchiveError> {
        let entries = directory::read(&window, limits)?;
        Ok(Self { window, entries: Arc::new(entries) })
    }

    /// Opens a zip that is an entry of this one: in place where it is stored, from a file without a name where it is compressed,
    /// which lies in `scratch` if that can be written, else where temporary files lie.
    ///
    /// # Errors
    /// When there is no such entry, it is no zip, or it is not within the limits.
    pub fn nested(&self, name: &str, scratch: &Path, limit: u64, limits: Limits) -> Result<Self, ArchiveError> {
        let entry = self.entry(name)?;
        if entry.method == Method::Stored {
            return Self::within(self.packed(name, &entry)?, limits);
        }
        let mut unpacked = tempfile::tempfile_in(scratch).or_else(|_| tempfile::tempfile())?;
        self.unpack(name, &entry, limit, &mut unpacked)?;
        Self::open(unpacked, limits)
    }

    /// Whether there is an entry of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Names of all entries, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(|name| &**name)
    }

    /// The bytes of one entry, checked against its CRC-32.
    ///
    /// # Errors
    /// When there is no such entry, it is damaged, or it unpacks to more than `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let entry = self.entry(name)?;
        if entry.unpacked > limit {
            return Err(ArchiveError::TooLarge { limit });
        }
        // What is announced need not be there.
        let mut bytes = Vec::with_capacity(entry.unpacked.min(1 << 20) as usize);
        self.unpack(name, &entry, limit, &mut bytes)?;
        Ok(bytes)
    }

    fn entry(&self, name: &str) -> Result<Entry, ArchiveError> {
        self.entries.get(name).copied().ok_or_else(|| ArchiveError::Missing(name.to_owned()))
    }

    /// An entry as it is packed.
    fn packed(&self, name: &str, entry: &Entry) -> Result<Window, ArchiveError> {
        let head = self.window.part(entry.offset, directory::LOCAL_HEADER).bytes()?;
        let length = directory::local_header_length(&head).ok_or_else(|| ArchiveError::Damaged(name.to_owned()))?;
        Ok(self.window.part(entry.offset.saturating_add(length), entry.packed))
    }

    /// Writes an entry unpacked. It may not be larger than it says, which the limits on the whole archive rely on.
    fn unpack(&self, name: &str, entry: &Entry, limit: u64, to: &mut impl io::Write) -> Result<(), ArchiveError> {
        if entry.unpacked > limit {
            return Err(ArchiveError::TooLarge { limit });
        }
        let packed = self.packed(name, entry)?;
        let unpacked: &mut dyn Read = match entry.method {
            Method::Stored => &mut { packed },
            Method::Deflated => &mut DeflateDecoder::new(BufReader::new(packed)),
        };
        let mut unpacked = unpacked.take(entry.unpacked + 1);
        let damaged = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                ArchiveError::Damaged(name.to_owned())
            }
            _ => error.into(),
        };
        let (mut crc, mut buffer) = (Crc::new(), vec![0; 64 << 10]);
        loop {
            let count = unpacked.read(&mut buffer).map_err(damaged)?;
            if count == 0 {
                break;
            }
            crc.update(&buffer[..count]);
            to.write_all(&buffer[..count])?;
        }
        let as_announced = (u64::from(crc.amount()), crc.sum()) == (entry.unpacked & 0xFFFF_FFFF, entry.crc);
        if as_announced { Ok(()) } else { Err(ArchiveError::Damaged(name.to_owned())) }
    }
}

/// Whether a name stays below where it is unpacked.
fn is_safe(name: &str) -> bool {
    let within = |step| matches!(step, Component::Normal(_) | Component::CurDir);
    !name.contains(['\0', '\\']) && !name.is_empty() && Path::new(name).components().all(within)
}

/// The directory at the end of a zip, as PKWARE's APPNOTE.TXT 6.3.10 describes it (sections 4.3.12 to 4.3.16 and 4.5.3).
mod directory {
    use super::{ArchiveError, Entry, HashMap, Limits, Method, Slot, Window, is_safe};

    /// Bytes of a local header before the name.
    pub(super) const LOCAL_HEADER: u64 = 30;
    const LOCAL: u32 = 0x0403_4b50;
    const CENTRAL: u32 = 0x0201_4b50;
    const END: u32 = 0x0605_4b50;
    const END_64: u32 = 0x0606_4b50;
    const LOCATOR_64: u32 = 0x0706_4b50;
    const END_BYTES: usize = 22;
    const END_64_BYTES: u64 = 56;
    const LOCATOR_64_BYTES: u64 = 20;
    const CENTRAL_BYTES: usize = 46;
    /// Longest comment at the end of a zip.
    const MAX_COMMENT: u64 = 0xFFFF;
    /// Most bytes of the directory for each entry that may be there: names of a few hundred bytes.
    const MAX_BYTES_OF_ENTRY: u64 = 1024;
    /// Characters 128 to 255 of code page 437, in which names are written that are not UTF-8.
    const CODE_PAGE_437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

    fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
        bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
        bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
        bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// Bytes from the begin of a local header to those of its entry.
    pub(super) fn local_header_length(head: &[u8]) -> Option<u64> {
        let names = u64::from(u16_at(head, 26)?) + u64::from(u16_at(head, 28)?);
        (u32_at(head, 0)? == LOCAL).then_some(LOCAL_HEADER + names)
    }

    /// Where the directory is, and what it should hold.
    struct Place {
        start: u64,
        length: u64,
        entries: u64,
        /// Bytes before the zip, which its offsets do not count.
        shift: u64,
    }

    /// Reads the entries, without the folders among them.
    pub(super) fn read(window: &Window, limits: Limits) -> Result<HashMap<Box<str>, Entry>, ArchiveError> {
        let place = find(window)?;
        if place.entries > limits.max_entries as u64 {
            return Err(ArchiveError::TooManyEntries { limit: limits.max_entries });
        }
        if place.length > MAX_BYTES_OF_ENTRY.saturating_mul(place.entries + 64) {
            return Err(ArchiveError::Broken("its directory is larger than its entries"));
        }
        let bytes = window.part(place.start, place.length).bytes()?;
        let mut rest = bytes.as_slice();
        let (mut entries, mut unpacked) = (HashMap::new(), 0u64);
        for _ in 0..place.entries {
            let (name, entry, after) = central(rest, place.shift)?;
            rest = after;
            unpacked = unpacked.saturating_add(entry.unpacked);
            if unpacked > limits.max_unpacked_bytes {
                return Err(ArchiveError::Bomb { limit: limits.max_unpacked_bytes });
            }
            match entries.entry(name.into_boxed_str()) {
                Slot::Occupied(slot) => return Err(ArchiveError::Duplicate(slot.key().to_string())),
                Slot::Vacant(slot) => slot.insert(entry),
            };
        }
        entries.retain(|name, _| !name.ends_with('/'));
        Ok(entries)
    }

    /// Finds the directory by the record at the end, behind which there may be a comment.
    fn find(window: &Window) -> Result<Place, ArchiveError> {
        const NO_END: ArchiveError = ArchiveError::Broken("its directory is missing");
        let tail_start = window.length.saturating_sub(MAX_COMMENT + END_BYTES as u64);
        let tail = window.part(tail_start, window.length).bytes()?;
        let is_end = |at: &usize| {
            u32_at(&tail, *at) == Some(END)
                && u16_at(&tail, *at + 20).is_some_and(|comment| at + END_BYTES + usize::from(comment) <= tail.len())
        };
        let at = (0..=tail.len().saturating_sub(END_BYTES)).rev().find(is_end).ok_or(NO_END)?;
        let end = tail_start + at as u64;
        let (entries, length, offset) =
            (|| Some((u16_at(&tail, at + 10)?, u32_at(&tail, at + 12)?, u32_at(&tail, at + 16)?)))().ok_or(NO_END)?;
        let (mut end, mut entries, mut length, mut offset) =
            (end, u64::from(entries), u64::from(length), u64::from(offset));
        if entries == 0xFFFF || length == 0xFFFF_FFFF || offset == 0xFFFF_FFFF {
            // Its 64-bit sibling lies before it, behind a record that leads there.
            let begin = end.saturating_sub(LOCATOR_64_BYTES + END_64_BYTES);
            let records = window.part(begin, LOCATOR_64_BYTES + END_64_BYTES).bytes()?;
            let sibling = (u32_at(&records, 0), u32_at(&records, END_64_BYTES as usize));
            if sibling == (Some(END_64), Some(LOCATOR_64)) {
                let numbers = (u64_at(&records, 32), u64_at(&records, 40), u64_at(&records, 48));
                let (Some(e), Some(l), Some(o)) = numbers else { return Err(NO_END) };
                (end, entries, length, offset) = (begin, e, l, o);
            }
        }
        let start = end.checked_sub(length).ok_or(ArchiveError::Broken("its directory is cut"))?;
        let shift = start.checked_sub(offset).ok_or(ArchiveError::Broken("its directory is cut"))?;
        Ok(Place { start, length, entries, shift })
    }

    /// The first entry of a directory, and what is behind it.
    fn central(bytes: &[u8], shift: u64) -> Result<(String, Entry, &[u8]), ArchiveError> {
        const CUT: ArchiveError = ArchiveError::Broken("its directory is damaged");
        let word = |at| u16_at(bytes, at).ok_or(CUT);
        let long = |at| u32_at(bytes, at).ok_or(CUT);
        if long(0)? != CENTRAL {
            return Err(CUT);
        }
        let (flags, method, crc) = (word(8)?, word(10)?, long(16)?);
        let (name, extra, comment) = (word(28)?, word(30)?, word(32)?);
        let name_end = CENTRAL_BYTES + usize::from(name);
        let extra_end = name_end + usize::from(extra);
        let end = extra_end + usize::from(comment);
        let name = self::name(bytes.get(CENTRAL_BYTES..name_end).ok_or(CUT)?);
        let extra = bytes.get(name_end..extra_end).ok_or(CUT)?;
        let after = bytes.get(end..).ok_or(CUT)?;

        let mut sizes = [long(24)?, long(20)?, long(42)?].map(u64::from);
        wide(&mut sizes, extra).ok_or(CUT)?;
        let [unpacked, packed, offset] = sizes;
        if !is_safe(&name) {
            return Err(ArchiveError::UnsafeName(name));
        }
        // Bit 0: encrypted; bit 13: so is the directory; method 99: by AES.
        if flags & 0x2001 != 0 || method == 99 {
            return Err(ArchiveError::Encrypted(name));
        }
        let method = match method {
            0 if packed == unpacked => Method::Stored,
            0 => return Err(ArchiveError::Damaged(name)),
            8 => Method::Deflated,
            method => return Err(ArchiveError::Method { name, method }),
        };
        let offset = offset.saturating_add(shift);
        Ok((name, Entry { offset, packed, unpacked, crc, method }, after))
    }

    /// Puts in the 64-bit numbers of an extra field for those that do not fit into 32 bits, in the field's order.
    fn wide(sizes: &mut [u64; 3], mut extra: &[u8]) -> Option<()> {
        while sizes.contains(&0xFFFF_FFFF) && extra.len() >= 4 {
            let (id, length) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
            let field = extra.get(4..4 + length)?;
            if id == 1 {
                for (index, size) in sizes.iter_mut().filter(|size| **size == 0xFFFF_FFFF).enumerate() {
                    *size = u64_at(field, 8 * index)?;
                }
                break;
            }
            extra = &extra[4 + length..];
        }
        Some(())
    }

    /// A name is UTF-8, or of the days before.
    fn name(bytes: &[u8]) -> String {
        let character = |byte: &u8| match byte {
            0..128 => char::from(*byte),
            _ => CODE_PAGE_437.chars().nth(usize::from(*byte) - 128).unwrap_or(char::REPLACEMENT_CHARACTER),
        };
        std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(character).collect(), str::to_owned)
    }
}
