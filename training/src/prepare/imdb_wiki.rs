//! IMDB-WIKI (`imdb.mat`, `wiki.mat` with the faces of `imdb_crop`, `wiki_crop`): ages from birth and the year of the picture.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use time::{Date, Month};

use super::matlab::{self, Value};
use super::{Prepared, manifest};

/// Around a face there are 40 % of its width and height on each side.
const MARGIN: f64 = 0.4;
/// The day 0 of MATLAB in Julian days.
const DAY_ZERO: f64 = 1_721_059.0;

/// Writes `manifest.csv` into the folder of the cropped pictures: those with an age from 0 to 100 years, one face, and a score of it of at
/// least `min_score`. Columns are path, age, gender, the score, and the face's box without the margin around it.
///
/// # Errors
/// When a file cannot be read or written, the `.mat` file is none of these sets, or a picture that is wanted is not there.
pub fn prepare(mat: &Path, pictures: &Path, min_score: f64) -> Result<Prepared> {
    let bytes = fs::read(mat).with_context(|| format!("cannot read {}", mat.display()))?;
    let variables = matlab::read(&bytes).with_context(|| format!("in {}", mat.display()))?;
    let set = variables.iter().find(|(name, _)| ["imdb", "wiki"].contains(&name.as_str()));
    let (_, set) = set.with_context(|| format!("{} has no variable imdb or wiki", mat.display()))?;
    let columns = Columns::read(set).with_context(|| format!("in {}", mat.display()))?;

    let mut table = manifest(pictures, &["path", "age", "gender", "face_score", "box_x", "box_y", "box_w", "box_h"])?;
    let mut rows = 0;
    for index in 0..columns.paths.len() {
        let Some(age) = columns.age(index) else { continue };
        if !(columns.score[index].is_finite() && columns.score[index] >= min_score && columns.second[index].is_nan()) {
            continue;
        }
        let gender = match columns.gender[index] {
            0.0 => "female",
            1.0 => "male",
            _ => "",
        };
        let path = columns.paths[index];
        let (width, height) = image::image_dimensions(pictures.join(path))
            .with_context(|| format!("{}, entry {}: no picture {path}", mat.display(), index + 1))?;
        let share = 1.0 / (1.0 + 2.0 * MARGIN);
        let (w, h) = (f64::from(width) * share, f64::from(height) * share);
        let region = [(f64::from(width) - w) / 2.0, (f64::from(height) - h) / 2.0, w, h];
        let cells = [path.to_owned(), age.to_string(), gender.to_owned(), format!("{:.3}", columns.score[index])];
        table.write_record(cells.into_iter().chain(region.map(|side| format!("{side:.1}"))))?;
        rows += 1;
    }
    table.flush()?;
    Ok(Prepared { rows, left_out: columns.paths.len() - rows })
}

/// The fields that are used, all of one length.
struct Columns<'a> {
    paths: Vec<&'a str>,
    birth: &'a [f64],
    taken: &'a [f64],
    gender: &'a [f64],
    score: &'a [f64],
    second: &'a [f64],
}

impl<'a> Columns<'a> {
    fn read(set: &'a Value) -> Result<Self> {
        let field = |name: &str| set.field(name).with_context(|| format!("the set has no field '{name}'"));
        let numbers = |name: &str| field(name)?.numbers().with_context(|| format!("field '{name}' has no numbers"));
        let paths: Option<Vec<&str>> =
            field("full_path")?.cells().map(|cells| cells.iter().map(Value::text).collect()).unwrap_or_default();
        let columns = Self {
            paths: paths.context("field 'full_path' has no texts")?,
            birth: numbers("dob")?,
            taken: numbers("photo_taken")?,
            gender: numbers("gender")?,
            score: numbers("face_score")?,
            second: numbers("second_face_score")?,
        };
        let Self { paths, birth, taken, gender, score, second } = &columns;
        for (name, field) in [
            ("dob", birth),
            ("photo_taken", taken),
            ("gender", gender),
            ("face_score", score),
            ("second_face_score", second),
        ] {
            ensure!(
                field.len() == paths.len(),
                "field '{name}' has {} entries, there are {}",
                field.len(),
                paths.len()
            );
        }
        Ok(columns)
    }

    /// Years between birth and the middle of the year of the picture; none where they are not 0 to 100, or the day of birth is no day.
    fn age(&self, index: usize) -> Option<i32> {
        let (birth, taken) = (self.birth[index], self.taken[index]);
        let day = (birth.is_finite() && taken.is_finite()).then(|| (birth + DAY_ZERO).floor() as i32)?;
        let birth = Date::from_julian_day(day).ok()?;
        let late = u8::from(birth.month()) >= u8::from(Month::July);
        let age = taken as i32 - birth.year() - i32::from(late);
        (0..=100).contains(&age).then_some(age)
    }
}

#[cfg(test)]
mod tests {
    use facewise_evaluation::Dataset;
    use image::RgbImage;

    use super::super::matlab::writing::file;
    use super::*;

    /// Fields of five entries: a face, two faces, a face of low score, an impossible age, and a face without gender.
    fn set(taken: Vec<f64>) -> Value {
        let nan = f64::NAN;
        let numbers = |name: &str, numbers: Vec<f64>| (name.to_owned(), Value::Numbers(numbers));
        // 30 June and 1 July 1970.
        let (june, july) = (719_529.0 + 180.0, 719_529.0 + 181.0);
        let paths = ["01/a.png", "b.png", "c.png", "d.png", "e.png"].map(|path| Value::Text(path.to_owned()));
        Value::Struct(vec![
            numbers("dob", vec![june, june, june, june, july]),
            numbers("photo_taken", taken),
            ("full_path".to_owned(), Value::Cells(paths.into())),
            numbers("gender", vec![1.0, 0.0, 0.0, 0.0, nan]),
            numbers("face_score", vec![4.5, 4.0, 0.5, 3.0, 2.0]),
            numbers("second_face_score", vec![nan, 3.0, nan, nan, nan]),
        ])
    }

    #[test]
    fn single_faces_with_an_age_become_rows() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("01")).expect("made");
        for name in ["01/a.png", "e.png"] {
            RgbImage::new(90, 180).save(path(name)).expect("written");
        }
        let taken = vec![2000.0, 2000.0, 2000.0, 1950.0, 2000.0];
        fs::write(path("imdb.mat"), file("imdb", &set(taken), true)).expect("written");
        assert_eq!(prepare(&path("imdb.mat"), folder.path(), 1.0).expect("whole"), Prepared { rows: 2, left_out: 3 });
        let text = fs::read_to_string(path("manifest.csv")).expect("written");
        let expected = "path,age,gender,face_score,box_x,box_y,box_w,box_h\n\
            01/a.png,30,male,4.500,20.0,40.0,50.0,100.0\n\
            e.png,29,,2.000,20.0,40.0,50.0,100.0\n";
        assert_eq!(text, expected, "who is born after June is a year younger");
        assert_eq!(Dataset::open(folder.path()).expect("a set").rows().len(), 2);
    }

    #[test]
    fn what_is_missing_is_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mat = folder.path().join("wiki.mat");
        let error = |name: &str, value: &Value| {
            fs::write(&mat, file(name, value, false)).expect("written");
            let _ = fs::remove_file(folder.path().join("manifest.csv"));
            format!("{:#}", prepare(&mat, folder.path(), 1.0).expect_err(name))
        };
        assert!(error("faces", &set(vec![2000.0; 5])).contains("no variable imdb or wiki"));
        assert!(error("wiki", &set(vec![2000.0; 4])).contains("field 'photo_taken' has 4 entries, there are 5"));
        assert!(error("wiki", &Value::Struct(vec![])).contains("no field 'full_path'"));
        assert!(error("wiki", &set(vec![2000.0; 5])).contains("entry 1: no picture 01/a.png"));
    }
}
