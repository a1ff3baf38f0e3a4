//! FER2013 (`fer2013.csv`: emotion, 2304 pixels, usage), with the votes of FER+ (`fer2013new.csv`) where they are there.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use facewise_core::task::Task;
use image::GrayImage;

use super::{Prepared, manifest, rows};

/// Side of a picture.
const SIDE: u32 = 48;
/// Columns of FER+ with votes, and the columns that they become.
const VOTES: [(&str, &str); 10] = [
    ("neutral", "fp_neutral"),
    ("happiness", "fp_happiness"),
    ("surprise", "fp_surprise"),
    ("sadness", "fp_sadness"),
    ("anger", "fp_anger"),
    ("disgust", "fp_disgust"),
    ("fear", "fp_fear"),
    ("contempt", "fp_contempt"),
    ("unknown", "fp_unknown"),
    ("NF", "fp_nf"),
];
const USAGES: [&str; 3] = ["Training", "PublicTest", "PrivateTest"];

struct Face {
    line: u64,
    emotion: usize,
    pixels: Vec<u8>,
    usage: String,
}

/// Writes `manifest.csv` and `images/00000.png` … into a folder that is made. Beside label and usage a row tells whether the picture is
/// `blank`, has a copy with another label (`label_conflict`), or a copy in another part of the set (`copy_in_other_split`).
///
/// # Errors
/// When a file cannot be read or written, a row is none of FER2013, or the votes are of another number of rows.
pub fn prepare(csv: &Path, votes: Option<&Path>, out: &Path) -> Result<Prepared> {
    let faces = rows(csv, b',', true)?
        .iter()
        .map(|(line, cells)| face(*line, cells).with_context(|| format!("{}, line {line}", csv.display())))
        .collect::<Result<Vec<_>>>()?;
    let votes = votes.map(read_votes).transpose()?;
    if let Some((path, votes)) = &votes {
        ensure!(votes.len() == faces.len(), "{path} has {} rows, {} has {}", votes.len(), csv.display(), faces.len());
    }
    let (mut labels, mut usages) = (HashMap::new(), HashMap::new());
    for face in &faces {
        labels.entry(&face.pixels).or_insert_with(HashSet::new).insert(face.emotion);
        usages.entry(&face.pixels).or_insert_with(HashSet::new).insert(&face.usage);
    }

    fs::create_dir_all(out.join("images")).with_context(|| format!("cannot make {}", out.display()))?;
    let mut columns = vec!["path", "emotion", "usage", "copy_in_other_split", "label_conflict", "blank"];
    if votes.is_some() {
        columns.extend(VOTES.map(|(_, column)| column));
    }
    let mut table = manifest(out, &columns)?;
    for (index, face) in faces.iter().enumerate() {
        let path = format!("images/{index:05}.png");
        let picture = GrayImage::from_raw(SIDE, SIDE, face.pixels.clone()).context("a picture of another size")?;
        picture.save(out.join(&path)).with_context(|| format!("cannot write {path} of line {}", face.line))?;
        let flag = |is: bool| u8::from(is).to_string();
        let mut cells = vec![
            path,
            Task::Emotion.labels()[face.emotion].to_owned(),
            face.usage.clone(),
            flag(usages[&face.pixels].len() > 1),
            flag(labels[&face.pixels].len() > 1),
            flag(face.pixels.iter().all(|pixel| *pixel == face.pixels[0])),
        ];
        if let Some((_, votes)) = &votes {
            cells.extend(votes[index].clone());
        }
        table.write_record(cells)?;
    }
    table.flush()?;
    Ok(Prepared { rows: faces.len(), left_out: 0 })
}

fn face(line: u64, cells: &csv::StringRecord) -> Result<Face> {
    let (Some(emotion), Some(pixels), Some(usage)) = (cells.get(0), cells.get(1), cells.get(2)) else {
        bail!("has {} cells instead of emotion, pixels and usage", cells.len());
    };
    let emotion: usize = emotion
        .parse()
        .ok()
        .filter(|label| *label < Task::Emotion.classes())
        .with_context(|| format!("'{emotion}' is no emotion from 0 to {}", Task::Emotion.classes() - 1))?;
    let pixels = pixels
        .split_ascii_whitespace()
        .map(|pixel| pixel.parse().with_context(|| format!("'{pixel}' is no pixel from 0 to 255")))
        .collect::<Result<Vec<u8>>>()?;
    ensure!(pixels.len() == (SIDE * SIDE) as usize, "has {} pixels instead of {}", pixels.len(), SIDE * SIDE);
    ensure!(USAGES.contains(&usage), "'{usage}' is no usage: they are {}", USAGES.join(", "));
    Ok(Face { line, emotion, pixels, usage: usage.to_owned() })
}

/// The votes of each row in the order of [`VOTES`].
fn read_votes(path: &Path) -> Result<(String, Vec<Vec<String>>)> {
    let name = path.display().to_string();
    let all = rows(path, b',', false)?;
    let header = &all[0].1;
    let columns = VOTES.map(|(column, _)| header.iter().position(|known| known == column).ok_or(column));
    let mut votes = Vec::with_capacity(all.len() - 1);
    for (line, cells) in &all[1..] {
        let mut row = Vec::with_capacity(columns.len());
        for column in columns {
            let column = column.map_err(|missing| anyhow::anyhow!("{name} has no column '{missing}'"))?;
            let cell = cells.get(column).unwrap_or_default();
            ensure!(cell.parse::<u8>().is_ok(), "{name}, line {line}: '{cell}' is no number of votes");
            row.push(cell.to_owned());
        }
        votes.push(row);
    }
    Ok((name, votes))
}

#[cfg(test)]
mod tests {
    use facewise_evaluation::Dataset;

    use super::*;

    fn pixels(value: impl Fn(u32) -> u32) -> String {
        (0..SIDE * SIDE).map(|index| (value(index) % 256).to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_table_becomes_pictures_with_labels_and_votes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (csv, plus, out) =
            (folder.path().join("fer2013.csv"), folder.path().join("fer2013new.csv"), folder.path().join("out"));
        let (ramp, other, blank) = (pixels(|i| i), pixels(|i| i * 7), pixels(|_| 9));
        let text = format!(
            "emotion,pixels,Usage\n0,{ramp},Training\n3,{other},Training\n6,{blank},PublicTest\n4,{ramp},PrivateTest\n"
        );
        fs::write(&csv, text).expect("written");
        let votes = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n\
            Training,fer0.png,1,0,0,0,9,0,0,0,0,0\nTraining,,0,10,0,0,0,0,0,0,0,0\n\
            PublicTest,,0,0,0,0,0,0,0,0,0,10\nPrivateTest,,0,0,0,4,6,0,0,0,0,0\n";
        fs::write(&plus, votes).expect("written");
        assert_eq!(prepare(&csv, Some(&plus), &out).expect("whole"), Prepared { rows: 4, left_out: 0 });

        let set = Dataset::open(&out).expect("a set");
        let column = |name: &str| {
            let column = set.column(name).expect("there");
            set.rows().iter().map(|row| row.cell(column).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(column("emotion"), ["angry", "happy", "neutral", "sad"]);
        assert_eq!(column("copy_in_other_split"), ["1", "0", "0", "1"]);
        assert_eq!(column("label_conflict"), ["1", "0", "0", "1"]);
        assert_eq!(column("blank"), ["0", "0", "1", "0"]);
        assert_eq!(
            (column("fp_anger"), column("fp_happiness")),
            (["9", "0", "0", "6"].map(str::to_owned).into(), ["0", "10", "0", "0"].map(str::to_owned).into())
        );
        let picture = image::load_from_memory(&set.read(&set.rows()[1]).expect("there")).expect("a picture").to_luma8();
        assert_eq!((picture.dimensions(), picture.get_pixel(1, 1)[0]), ((48, 48), (49 * 7 % 256) as u8));

        assert!(prepare(&csv, None, &out).is_err(), "a manifest is never written over");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let csv = folder.path().join("fer2013.csv");
        let error = |row: &str| {
            fs::write(&csv, format!("emotion,pixels,Usage\n0,{},Training\n{row}\n", pixels(|i| i))).expect("written");
            format!("{:#}", prepare(&csv, None, &folder.path().join("out")).expect_err(row))
        };
        for (row, message) in [
            (format!("7,{},Training", pixels(|i| i)), "fer2013.csv, line 3: '7' is no emotion from 0 to 6"),
            ("1,1 2 3,Training".to_owned(), "line 3: has 3 pixels instead of 2304"),
            ("1,1 256,Training".to_owned(), "line 3: '256' is no pixel"),
            (format!("1,{},Test", pixels(|i| i)), "line 3: 'Test' is no usage"),
            ("1".to_owned(), "line 3: has 1 cells"),
        ] {
            assert!(error(&row).contains(message), "{}", error(&row));
        }
    }
}
