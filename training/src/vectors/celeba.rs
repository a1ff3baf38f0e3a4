//! Reads `CelebA`'s annotations: 40 attributes of each picture as −1 or 1, and beside them the official partition and who is on it.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use facewise_evaluation::archive::{Archive, ArchiveError, Limits};

use super::embeddings::{DataError, bytes};
use super::rows::{Part, Rows};

/// The attributes.
const ATTRIBUTES: &str = "list_attr_celeba.txt";

/// 0, 1 or 2 for train, validation and test.
const PARTITION: &str = "list_eval_partition.txt";

/// Who is on each picture.
const IDENTITIES: &str = "identity_CelebA.txt";

/// The zip that may hold them, as its name beside the folder's.
const ARCHIVE: &str = "annotations.zip";

/// Far more than the three files have.
const LIMIT: u64 = 256 << 20;

/// Why the annotations cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CelebaError {
    /// A file cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The archive, or a file in it, cannot be read.
    #[error("{path}: {source}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        source: ArchiveError,
    },
    /// A line is not what it should be.
    #[error("{file}, line {line}: {reason}")]
    Line {
        /// The file.
        file: &'static str,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There is no such attribute.
    #[error("{ATTRIBUTES} has no attribute '{target}', but {known}")]
    Unknown {
        /// What was asked for.
        target: String,
        /// Those that it has.
        known: String,
    },
}

fn wrong<T>(file: &'static str, line: usize, reason: impl Into<String>) -> Result<T, CelebaError> {
    Err(CelebaError::Line { file, line, reason: reason.into() })
}

/// The rows for learning one attribute from the others: its own column is 0 in them. The partition and identities are used where they are.
///
/// `folder` holds the text files, or them in `annotations.zip`.
///
/// # Errors
/// When a file is missing, a line of one is wrong, or there is no such attribute.
pub fn read(folder: &Path, attribute: &str) -> Result<Rows, CelebaError> {
    let archive = folder.join(ARCHIVE);
    if !archive.exists() {
        let text = |name: &str| bytes(&folder.join(name));
        let beside = |name: &str| if folder.join(name).exists() { text(name).map(Some) } else { Ok(None) };
        return rows(&text(ATTRIBUTES)?, beside(PARTITION)?.as_deref(), beside(IDENTITIES)?.as_deref(), attribute);
    }
    let broken = |source: ArchiveError| CelebaError::Archive { path: archive.clone(), source };
    let file = File::open(&archive).map_err(|source| broken(source.into()))?;
    let zip = Archive::open(file, Limits { max_entries: 100, max_unpacked_bytes: LIMIT }).map_err(broken)?;
    let text = |name: &str| zip.read(name, LIMIT).map_err(broken);
    let beside = |name: &str| if zip.contains(name) { text(name).map(Some) } else { Ok(None) };
    rows(&text(ATTRIBUTES)?, beside(PARTITION)?.as_deref(), beside(IDENTITIES)?.as_deref(), attribute)
}

/// The files that [`read`] reads.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let archive = folder.join(ARCHIVE);
    if archive.exists() {
        return vec![archive];
    }
    let beside = [PARTITION, IDENTITIES].map(|name| folder.join(name)).into_iter().filter(|path| path.exists());
    std::iter::once(folder.join(ATTRIBUTES)).chain(beside).collect()
}

fn rows(
    attributes: &[u8],
    partition: Option<&[u8]>,
    identities: Option<&[u8]>,
    target: &str,
) -> Result<Rows, CelebaError> {
    let text = text(ATTRIBUTES, attributes)?;
    let mut lines = (1..).zip(text.lines());
    let count: usize = match lines.next().map(|(_, line)| line.trim().parse()) {
        Some(Ok(count)) => count,
        _ => return wrong(ATTRIBUTES, 1, "the number of pictures is missing"),
    };
    let names: Vec<&str> = lines.next().map(|(_, line)| line.split_whitespace().collect()).unwrap_or_default();
    let Some(own) = names.iter().position(|name| *name == target) else {
        return Err(CelebaError::Unknown { target: target.to_owned(), known: names.join(", ") });
    };
    let features = names.len();
    let mut rows = Rows { features, ..Rows::default() };
    let mut pictures = Vec::new();
    for (number, line) in lines {
        let mut words = line.split_whitespace();
        let Some(picture) = words.next() else { return wrong(ATTRIBUTES, number, "it is empty") };
        let first = rows.values.len();
        for word in words {
            rows.values.push(match word {
                "1" => 1.0,
                "-1" => -1.0,
                other => return wrong(ATTRIBUTES, number, format!("'{other}' is neither 1 nor -1")),
            });
        }
        if rows.values.len() - first != features {
            let found = rows.values.len() - first;
            return wrong(ATTRIBUTES, number, format!("{found} attributes instead of {features}"));
        }
        rows.classes.push(i64::from(rows.values[first + own] > 0.0));
        rows.values[first + own] = 0.0;
        pictures.push(picture);
    }
    if rows.len() != count {
        return wrong(ATTRIBUTES, 1, format!("{count} pictures are announced, {} follow", rows.len()));
    }
    if let Some(partition) = partition {
        rows.parts = beside(PARTITION, partition, &pictures, |word| match word {
            "0" => Ok(Part::Train),
            "1" => Ok(Part::Validation),
            "2" => Ok(Part::Test),
            other => Err(format!("'{other}' is neither 0, 1 nor 2")),
        })?;
    }
    if let Some(identities) = identities {
        let mut people = HashMap::new();
        rows.subjects = beside(IDENTITIES, identities, &pictures, |word| {
            let number = people.len();
            Ok(*people.entry(word.to_owned()).or_insert(number))
        })?;
    }
    Ok(rows)
}

/// Reads a file with a picture and one word a line, in the order of the attributes.
fn beside<T>(
    file: &'static str,
    content: &[u8],
    pictures: &[&str],
    mut read: impl FnMut(&str) -> Result<T, String>,
) -> Result<Vec<T>, CelebaError> {
    let mut values = Vec::with_capacity(pictures.len());
    for (number, line) in (1..).zip(text(file, content)?.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Some copies of these files have a header.
        if number == 1 && words.first().is_some_and(|word| ["image", "image_id"].contains(word)) {
            continue;
        }
        let expected = pictures.get(values.len());
        match words[..] {
            [picture, word] if Some(&picture) == expected => match read(word) {
                Ok(value) => values.push(value),
                Err(reason) => return wrong(file, number, reason),
            },
            _ => {
                let picture = expected.copied().unwrap_or("the end");
                return wrong(file, number, format!("'{line:.40}' is there, where {ATTRIBUTES} has {picture}"));
            }
        }
    }
    if values.len() < pictures.len() {
        let last = text(file, content)?.lines().count();
        return wrong(file, last, format!("the lines end here, after {} of {}", values.len(), pictures.len()));
    }
    Ok(values)
}

fn text<'a>(file: &'static str, content: &'a [u8]) -> Result<&'a str, CelebaError> {
    match str::from_utf8(content) {
        Ok(text) => Ok(text),
        Err(error) => {
            let line = content[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
            wrong(file, line, "not UTF-8")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    const THREE: &str = "3\nBald Male Smiling \na.jpg -1  1  1\nb.jpg  1  1 -1\nc.jpg -1 -1  1\n";
    const PARTS: &str = "a.jpg 0\nb.jpg 2\nc.jpg 1\n";
    const PEOPLE: &str = "a.jpg 77\nb.jpg 5\nc.jpg 77\n";

    fn all(attributes: &str, parts: &str, people: &str, target: &str) -> Result<Rows, String> {
        rows(attributes.as_bytes(), Some(parts.as_bytes()), Some(people.as_bytes()), target)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_attribute_is_taken_out_of_its_row() {
        let expected = Rows {
            features: 3,
            values: vec![-1.0, 0.0, 1.0, 1.0, 0.0, -1.0, -1.0, 0.0, 1.0],
            classes: vec![1, 1, 0],
            parts: vec![Part::Train, Part::Test, Part::Validation],
            subjects: vec![0, 1, 0],
            ..Rows::default()
        };
        assert_eq!(all(THREE, PARTS, PEOPLE, "Male").unwrap(), expected);

        assert_eq!(all(THREE, PARTS, &format!("image identity\n{PEOPLE}"), "Male").unwrap(), expected);

        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(ATTRIBUTES), THREE).unwrap();
        let alone = read(folder.path(), "Male").unwrap();
        assert_eq!(alone, Rows { parts: Vec::new(), subjects: Vec::new(), ..expected });
        let error = read(&folder.path().join("no"), "Male").unwrap_err().to_string();
        assert!(error.contains(ATTRIBUTES), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (attributes, parts, people, target, message) in [
            (THREE, PARTS, PEOPLE, "Kind", "has no attribute 'Kind', but Bald, Male, Smiling"),
            ("Bald\n", PARTS, PEOPLE, "Bald", "line 1: the number of pictures is missing"),
            (&THREE.replace('3', "4"), PARTS, PEOPLE, "Bald", "line 1: 4 pictures are announced, 3 follow"),
            (&THREE.replace("b.jpg  1", "b.jpg  0"), PARTS, PEOPLE, "Bald", "line 4: '0' is neither 1 nor -1"),
            (&THREE.replace("b.jpg  1", "b.jpg "), PARTS, PEOPLE, "Bald", "line 4: 2 attributes instead of 3"),
            (THREE, &PARTS.replace('2', "3"), PEOPLE, "Bald", "list_eval_partition.txt, line 2: '3' is neither"),
            (
                THREE,
                &PARTS.replace('b', "x"),
                PEOPLE,
                "Bald",
                "line 2: 'x.jpg 2' is there, where list_attr_celeba.txt has b.jpg",
            ),
            (THREE, PARTS, "a.jpg 77\n", "Bald", "identity_CelebA.txt, line 1: the lines end here, after 1 of 3"),
            (THREE, PARTS, &format!("{PEOPLE}d.jpg 1\n"), "Bald", "line 4: 'd.jpg 1' is there"),
        ] {
            let error = all(attributes, parts, people, target).unwrap_err();
            assert!(error.contains(message), "{error}\nshould have: {message}");
        }
    }
}
