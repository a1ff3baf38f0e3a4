//! `ChaLearn`'s faces of 2016: apparent ages (picture, mean, standard deviation), and Faces of the World with gender and smile (picture, box of
//! the face, gender, smile).

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Prepared, manifest, rows};

/// A part of the set: its name in the column `split`, and its labels.
pub type Part<'a> = (&'a str, &'a Path);

/// Writes `manifest.csv` with `age`, `age_sd` and `split` into the folder of the pictures, which lie in it or in a folder named after
/// their part. Labels are `picture, mean, deviation`, divided by commas or semicolons, with a header or without.
///
/// # Errors
/// When a file cannot be read or written, a row is no such row, or its picture is not there.
pub fn ages(parts: &[Part], pictures: &Path) -> Result<Prepared> {
    let mut table = manifest_rows(parts, pictures, |cells, row| {
        let number = |index: usize| {
            let cell = cells.get(index).unwrap_or_default();
            cell.parse::<f32>().ok().filter(|number| *number >= 0.0).with_context(|| format!("'{cell}' is no number"))
        };
        let (age, sd) = (number(1)?, number(2)?);
        ensure!(age <= 150.0, "{age} is no age from 0 to 150 years");
        row.extend([age.to_string(), sd.to_string()]);
        Ok(())
    })?;
    write(&mut table, pictures, &["path", "split", "age", "age_sd"])
}

/// The same with `gender`, `smile` and the face's box. Labels are `picture, x, y, width, height, gender, smile`: gender 0 male, 1 female, 2
/// not sure, which becomes an empty cell; smile 0 or 1.
///
/// # Errors
/// As for [`ages`].
pub fn faces(parts: &[Part], pictures: &Path) -> Result<Prepared> {
    let mut table = manifest_rows(parts, pictures, |cells, row| {
        let cell = |index: usize| cells.get(index).unwrap_or_default();
        let gender = match cell(5) {
            "0" => "male",
            "1" => "female",
            "2" => "",
            other => bail!("'{other}' is no gender: 0 is male, 1 female, 2 not sure"),
        };
        ensure!(["0", "1"].contains(&cell(6)), "'{}' is no smile: it is 0 or 1", cell(6));
        row.extend([gender.to_owned(), cell(6).to_owned()]);
        for index in 1..5 {
            let side = cell(index);
            ensure!(side.parse::<f32>().is_ok_and(f32::is_finite), "'{side}' is no side of a box");
            row.push(side.to_owned());
        }
        Ok(())
    })?;
    write(&mut table, pictures, &["path", "split", "gender", "smile", "box_x", "box_y", "box_w", "box_h"])
}

fn write(table: &mut Vec<Vec<String>>, pictures: &Path, columns: &[&str]) -> Result<Prepared> {
    let mut writer = manifest(pictures, columns)?;
    let rows = table.len();
    for row in table.drain(..) {
        writer.write_record(row)?;
    }
    writer.flush()?;
    Ok(Prepared { rows, left_out: 0 })
}

/// The rows of all parts: path and part, then what `labels` adds.
fn manifest_rows(
    parts: &[Part],
    pictures: &Path,
    labels: impl Fn(&csv::StringRecord, &mut Vec<String>) -> Result<()>,
) -> Result<Vec<Vec<String>>> {
    let mut table = Vec::new();
    for (part, file) in parts {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let delimiter = if text.lines().next().is_some_and(|line| line.contains(';')) { b';' } else { b',' };
        for (index, (line, cells)) in rows(file, delimiter, false)?.into_iter().enumerate() {
            let at = || format!("{}, line {line}", file.display());
            let name = cells.get(0).unwrap_or_default();
            let inside = format!("{part}/{name}");
            let mut row = Vec::new();
            let labelled = labels(&cells, &mut row);
            // A header has no numbers where rows have them.
            if index == 0 && labelled.is_err() && cells.iter().skip(1).all(|cell| cell.parse::<f32>().is_err()) {
                continue;
            }
            labelled.with_context(at)?;
            let found = [name, &inside].into_iter().find(|path| !path.is_empty() && pictures.join(path).is_file());
            let path =
                found.with_context(|| format!("no picture {name} in {}", pictures.display())).with_context(at)?;
            table.push([vec![path.to_owned(), (*part).to_owned()], row].concat());
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use facewise_evaluation::Dataset;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("valid")).expect("made");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("written");
        }
        folder
    }

    #[test]
    fn apparent_ages_with_a_header_and_without() {
        let files = [("a.jpg", ""), ("valid/b.jpg", ""), ("train.csv", "image,mean,stdv\na.jpg, 31.5 ,4.2\n")];
        let folder = folder(&files);
        let path = |name: &str| folder.path().join(name);
        fs::write(path("valid.csv"), "b.jpg;7;1.25\n").expect("written");
        let parts = [("train", &*path("train.csv")), ("valid", &*path("valid.csv"))];
        assert_eq!(ages(&parts, folder.path()).expect("whole").rows, 2);
        let text = fs::read_to_string(path("manifest.csv")).expect("written");
        assert_eq!(text, "path,split,age,age_sd\na.jpg,train,31.5,4.2\nvalid/b.jpg,valid,7,1.25\n");
        assert_eq!(Dataset::open(folder.path()).expect("a set").rows()[0].labels.age, Some(31.5));
    }

    #[test]
    fn gender_smile_and_the_box() {
        let labels = "image_name,bbox_x,bbox_y,bbox_width,bbox_height,gender,smile\n\
            a.jpg,10,20,64,64,0,1\na.jpg,1,2,3,4,2,0\n";
        let folder = folder(&[("a.jpg", ""), ("train.csv", labels)]);
        let train = folder.path().join("train.csv");
        faces(&[("train", &train)], folder.path()).expect("whole");
        let set = Dataset::open(folder.path()).expect("a set");
        let first = &set.rows()[0];
        assert_eq!((first.labels.gender, first.labels.smile), (Some(1), Some(1)));
        assert!(first.region.is_some_and(|region| region.width > 63.0));
        assert_eq!(set.rows()[1].labels.gender, None, "not sure");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, message) in [
            ("a.jpg,31,4\na.jpg,old,4\n", "train.csv, line 2: 'old' is no number"),
            ("a.jpg,31,4\nb.jpg,31,4\n", "train.csv, line 2: no picture b.jpg"),
            ("a.jpg,310,4\n", "train.csv, line 1: 310 is no age"),
            ("a.jpg,31\n", "train.csv, line 1: '' is no number"),
        ] {
            let folder = folder(&[("a.jpg", ""), ("train.csv", text)]);
            let train = folder.path().join("train.csv");
            let error = format!("{:#}", ages(&[("train", &train)], folder.path()).expect_err(text));
            assert!(error.contains(message), "{error}");
        }
    }
}
