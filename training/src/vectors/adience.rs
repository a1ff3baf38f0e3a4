//! Reads Adience's fold files (`fold_0_data.txt` to `fold_4_data.txt`, Eidinger et al. 2014): who is on which picture, in which of five folds that
//! share nobody, how old, and of which gender.

use std::path::Path;

use facewise_core::task::Task;

use super::embeddings::{DataError, bytes};

/// Folds of the set.
pub const FOLDS: usize = 5;

/// Columns that are read, by their names in the files.
const COLUMNS: [&str; 5] = ["user_id", "original_image", "face_id", "age", "gender"];

/// One face.
#[derive(Clone, Debug, PartialEq)]
pub struct Face {
    /// Path of the aligned picture below the set's folder `aligned`.
    pub path: String,
    /// Age in years: the middle of the range that the set gives, or the single age; good for age groups, too rough for errors in years.
    pub age: Option<f32>,
    /// Index into the labels of [`Task::Gender`]; none where people could not tell.
    pub gender: Option<usize>,
    /// Owner of the album, who counts as the subject.
    pub subject: String,
    /// Number of the fold.
    pub fold: usize,
}

/// Reads all folds of a folder, one after the other, each in its own order.
///
/// # Errors
/// When a file is missing, a column is, or a line holds what it must not.
pub fn read(folder: &Path) -> Result<Vec<Face>, DataError> {
    let mut faces = Vec::new();
    for fold in 0..FOLDS {
        let path = folder.join(format!("fold_{fold}_data.txt"));
        faces.extend(read_fold(&bytes(&path)?, &path, fold)?);
    }
    Ok(faces)
}

fn read_fold(content: &[u8], path: &Path, fold: usize) -> Result<Vec<Face>, DataError> {
    let line = |line: u64, reason: String| DataError::Line { path: path.to_owned(), line, reason };
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').quoting(false).from_reader(content);
    let header = reader.headers().map_err(|error| line(1, error.to_string()))?.clone();
    let mut columns = [0; COLUMNS.len()];
    for (column, name) in columns.iter_mut().zip(COLUMNS) {
        *column = header.iter().position(|known| known.trim() == name).ok_or_else(|| DataError::Column {
            path: path.to_owned(),
            column: name.to_owned(),
            known: header.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", "),
        })?;
    }
    let mut faces = Vec::new();
    for record in reader.records() {
        let record =
            record.map_err(|error| line(error.position().map_or(1, csv::Position::line), error.to_string()))?;
        let number = record.position().map_or(0, csv::Position::line);
        let [subject, image, face, age, gender] = columns.map(|column| record.get(column).unwrap_or_default().trim());
        let wrong = |column: &str, value: &str, reason: &str| DataError::Value {
            path: path.to_owned(),
            line: number,
            column: column.to_owned(),
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        let gender = match gender {
            "" | "u" => None,
            "f" => Task::Gender.label_index("female"),
            "m" => Task::Gender.label_index("male"),
            other => return Err(wrong("gender", other, "neither f, m nor u")),
        };
        let age = match age {
            "" | "None" => None,
            text => Some(
                middle(text).ok_or_else(|| wrong("age", text, "neither an age, a range as in (25, 32), nor None"))?,
            ),
        };
        let path = format!("{subject}/landmark_aligned_face.{face}.{image}");
        faces.push(Face { path, age, gender, subject: subject.to_owned(), fold });
    }
    Ok(faces)
}

/// The middle of a range as in `(25, 32)`, or the age as in `35`.
fn middle(text: &str) -> Option<f32> {
    let within = |age: &f32| (0.0..=150.0).contains(age);
    let number = |text: &str| text.trim().parse::<f32>().ok().filter(within);
    match text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        Some(range) => {
            let (low, high) = range.split_once(',')?;
            let (low, high) = (number(low)?, number(high)?);
            (low <= high).then(|| f32::midpoint(low, high))
        }
        None => number(text),
    }
}

/// Writes faces as labels of embeddings, one line a face, to which the embeddings must be in order.
///
/// # Errors
/// When the file cannot be written.
pub fn write(faces: &[Face], path: &Path) -> Result<(), csv::Error> {
    let mut file = csv::Writer::from_path(path)?;
    file.write_record(["path", "age", "gender", "fold", "subject"])?;
    for face in faces {
        let age = face.age.map_or_else(String::new, |years| years.to_string());
        let gender = face.gender.map_or("", |class| Task::Gender.labels()[class]);
        file.write_record([face.path.as_str(), &age, gender, &face.fold.to_string(), &face.subject])?;
    }
    file.flush().map_err(csv::Error::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use facewise_core::npy;

    use super::*;
    use crate::vectors::embeddings;
    use crate::vectors::target::Target;

    /// A file as the set has it.
    const FOLD: &str = "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy\ttilt_ang\tfiducial_yaw_angle\tfiducial_score\n\
        30601258@N03\t10399646885_67c7d20df9_o.jpg\t1\t(25, 32)\tf\t0\t414\t1086\t1383\t-115\t30\t17\n\
        30601258@N03\t10424815813_e94629b1ec_o.jpg\t2\tNone\tu\t301\t105\t640\t641\t0\t0\t94\n\
        7285955@N06\t9504.jpg\t3\t35\tm\t2395\t876\t771\t771\t175\t-30\t74\n";

    #[test]
    fn the_folds_become_labels_of_embeddings() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for fold in 0..FOLDS {
            fs::write(path(&format!("fold_{fold}_data.txt")), FOLD).unwrap();
        }
        let faces = read(folder.path()).unwrap();
        assert_eq!(faces.len(), 15);
        let first = Face {
            path: "30601258@N03/landmark_aligned_face.1.10399646885_67c7d20df9_o.jpg".into(),
            age: Some(28.5),
            gender: Some(0),
            subject: "30601258@N03".into(),
            fold: 0,
        };
        assert_eq!(faces[0], first);
        assert_eq!((faces[4].age, faces[4].gender, faces[4].fold), (None, None, 1));

        write(&faces, &path("labels.csv")).unwrap();
        fs::write(path("faces.npy"), npy::write(2, &[0.5; 30])).unwrap();
        let rows = embeddings::read(&path("faces.npy"), &path("labels.csv"), &Target::AgeGroups).unwrap();
        assert_eq!((rows.len(), rows.unlabelled), (10, 5));
        assert_eq!(
            (&rows.classes[..2], &rows.subjects[..2], &rows.folds[..3]),
            (&[4, 4][..], &[0, 1][..], &[0, 0, 1][..])
        );
    }

    #[test]
    fn ages_are_ranges_or_numbers() {
        for (text, years) in
            [("(0, 2)", Some(1.0)), ("(60, 100)", Some(80.0)), ("13", Some(13.0)), ("(8,23)", Some(15.5))]
        {
            assert_eq!(middle(text), years, "{text}");
        }
        for text in ["(25; 32)", "(32, 25)", "old", "-3", "(1, 2", "NaN"] {
            assert_eq!(middle(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let path = Path::new("fold_3_data.txt");
        for (from, to, message) in [
            ("\tf\t", "\tx\t", "fold_3_data.txt, line 2: gender is 'x', which is neither f, m nor u"),
            ("35", "(35)", "line 4: age is '(35)'"),
            ("face_id", "face", "fold_3_data.txt has no column 'face_id'"),
            ("\t175\t", "\t", "line: 4"),
        ] {
            let text = FOLD.replace(from, to);
            assert_ne!(text, FOLD);
            let error = read_fold(text.as_bytes(), path, 3).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(read(Path::new("nowhere")).unwrap_err().to_string().contains("fold_0_data.txt"));
    }
}
