//! Photographs and crops with their faces, decoded once into memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use facewise_core::geometry::Rect;
use facewise_core::picture::{self, Limits, RgbImage};
use facewise_evaluation::corrections::Corrections;
use facewise_evaluation::detection::{Face, Truth};
use facewise_evaluation::{Dataset, Filter, Row};
use rayon::prelude::*;

use super::config::{Config, CropsConfig, PhotographsConfig};

/// A picture and its faces, in its pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Photograph {
    /// The picture.
    pub picture: RgbImage,
    /// The faces, and regions that are nobody's business.
    pub truth: Truth,
}

impl Photograph {
    /// The box of the largest face.
    pub fn largest(&self) -> Option<Rect> {
        let areas = self.truth.faces.iter().map(|face| face.area);
        areas.max_by(|a, b| side(a).total_cmp(&side(b)))
    }

    /// The same with these faces alone; others count neither way.
    #[must_use]
    pub fn only(mut self, wanted: impl Fn(&Face) -> bool) -> Self {
        let (faces, others) = self.truth.faces.into_iter().partition(wanted);
        self.truth.faces = faces;
        self.truth.ignored.extend(others.into_iter().map(|face: Face| face.area));
        self
    }
}

/// Side of a square as large as a box: the size of a face.
pub fn side(area: &Rect) -> f32 {
    (area.width * area.height).sqrt()
}

/// What scenes are composed of.
#[derive(Debug)]
pub struct Album {
    /// Whole photographs with every face labelled; each has at least one.
    pub photographs: Vec<Photograph>,
    /// Tight crops of one face each.
    pub crops: Vec<Photograph>,
}

impl Album {
    /// Reads what a configuration names: the album to compose from, and the photographs held out.
    ///
    /// # Errors
    /// When a set is missing or broken, or its filter leaves nothing.
    pub fn load(root: &Path, config: &Config) -> Result<(Self, Vec<Photograph>)> {
        let mut crops = Vec::new();
        for set in &config.crops {
            crops.extend(self::crops(root, set)?);
        }
        let PhotographsConfig { set, filter, validation, certain, corrections } = &config.photographs;
        let placed = self::corrections(corrections)?;
        let trust = Trust::From { least: *certain, placed: &placed };
        let album = Self { photographs: photographs(root, set, filter, trust)?, crops };
        Ok((album, photographs(root, set, validation, trust)?))
    }
}

/// Which boxes of a set are believed.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// All of them, as the labels stand.
    All,
    /// Of each photograph the one with the highest `box_score`, and others from this score on; the rest is ignored. For labels that a
    /// detector has made, whose second boxes are often no faces.
    From {
        /// The least score of a second box.
        least: f32,
        /// Where keypoints are that the set has elsewhere.
        placed: &'a Corrections,
    },
    /// As somebody who looked at them has mended them.
    Mended(&'a Corrections),
}

/// The corrections in some files.
///
/// # Errors
/// When one cannot be read.
pub fn corrections(paths: &[PathBuf]) -> Result<Corrections> {
    let mut all = Corrections::default();
    for path in paths {
        let context = || format!("cannot read {}", path.display());
        all.extend(Corrections::read(fs::File::open(path).with_context(context)?).with_context(context)?);
    }
    Ok(all)
}

/// The photographs of a set: rows that share a path are the faces of one. Those with a row that has no box or no keypoints, a face that
/// nobody has placed, are left out.
///
/// # Errors
/// When the set is missing or broken, its filter leaves nothing, or the corrections name a picture that the set does not have.
pub fn photographs(root: &Path, set: &str, filter: &str, trust: Trust<'_>) -> Result<Vec<Photograph>> {
    let context = || format!("set `{set}`");
    let dataset = Dataset::open(root.join(set)).with_context(context)?;
    let mut by_path: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in dataset.select(&Filter::parse(filter).with_context(context)?).with_context(context)? {
        by_path.entry(&row.path).or_default().push(row);
    }
    if let Trust::Mended(corrections) | Trust::From { placed: corrections, .. } = trust {
        corrections.check_paths(dataset.rows().iter().map(|row| row.path.as_str())).with_context(context)?;
    }
    let read = |(path, rows): (&str, Vec<&Row>)| -> Result<Option<Photograph>> {
        let Some(mut faces) = rows.iter().map(|row| face(row)).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let truth = match trust {
            Trust::All => Truth { faces, ignored: Vec::new() },
            Trust::From { least, placed } => {
                placed.place(path, &mut faces)?;
                believed(&faces, &scores(&dataset, &rows)?, least)
            }
            Trust::Mended(corrections) => corrections.apply(path, faces)?,
        };
        Ok(Some(Photograph { picture: decode(&dataset, rows[0])?, truth }))
    };
    let by_path: Vec<_> = by_path.into_iter().collect();
    let found: Vec<Photograph> = by_path
        .into_par_iter()
        .filter_map(|group| read(group).transpose())
        .collect::<Result<_>>()
        .with_context(context)?;
    ensure!(!found.is_empty(), "set `{set}`: no photograph has {filter} and its faces placed");
    Ok(found)
}

/// The `box_score` of each row.
fn scores(dataset: &Dataset, rows: &[&Row]) -> Result<Vec<f32>> {
    let column = dataset.columns().iter().position(|name| name == "box_score").context("no column `box_score`")?;
    let score = |row: &&Row| {
        let cell = row.cell(column);
        cell.parse().with_context(|| format!("line {}: box_score `{cell}` is not a number", row.line))
    };
    rows.iter().map(score).collect()
}

fn believed(faces: &[Face], scores: &[f32], least: f32) -> Truth {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut truth = Truth::default();
    for (face, &score) in faces.iter().zip(scores) {
        if score >= least.min(best) {
            truth.faces.push(*face);
        } else {
            truth.ignored.push(face.area);
        }
    }
    truth
}

/// The crops of a set that have box and keypoints, taken evenly.
fn crops(root: &Path, config: &CropsConfig) -> Result<Vec<Photograph>> {
    let context = || format!("set `{}`", config.set);
    let dataset = Dataset::open(root.join(&config.set)).with_context(context)?;
    let rows = dataset.select(&Filter::parse(&config.filter).with_context(context)?).with_context(context)?;
    let placed: Vec<(&Row, Face)> = rows.into_iter().filter_map(|row| Some((row, face(row)?))).collect();
    ensure!(!placed.is_empty(), "set `{}`: no row has {} and a face placed", config.set, config.filter);
    let wanted = placed.len().min(config.rows);
    let even: Vec<(&Row, Face)> = (0..wanted).map(|index| placed[index * placed.len() / wanted]).collect();
    let read = |(row, face): (&Row, Face)| {
        let truth = Truth { faces: vec![face], ignored: Vec::new() };
        Ok(Photograph { picture: decode(&dataset, row)?, truth })
    };
    even.into_par_iter().map(read).collect::<Result<_>>().with_context(context)
}

fn face(row: &Row) -> Option<Face> {
    Some(Face { area: row.region?, landmarks: row.landmarks? })
}

fn decode(dataset: &Dataset, row: &Row) -> Result<RgbImage> {
    let context = || format!("line {}: {}", row.line, row.path);
    let bytes = dataset.read(row).with_context(context)?;
    picture::decode(&bytes, Limits::default()).with_context(context)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fmt::Write as _;

    use facewise_core::geometry::Point;

    use super::*;

    const COLUMNS: &str = "box_x,box_y,box_w,box_h,reye_x,reye_y,leye_x,leye_y,nose_x,nose_y,mouth_x,mouth_y";
    const FACE: &str = "2,2,8,8,4,4,8,4,6,6,6,8";

    fn set(root: &Path, rows: &[(&str, &str, &str)]) {
        let folder = root.join("set");
        fs::create_dir(&folder).unwrap();
        let mut manifest = format!("path,split,smile,{COLUMNS}\n");
        for (path, split, face) in rows {
            RgbImage::new(20, 16).save(folder.join(path)).unwrap();
            writeln!(manifest, "{path},{split},,{face}").unwrap();
        }
        fs::write(folder.join("manifest.csv"), manifest).unwrap();
    }

    #[test]
    fn rows_of_a_path_are_the_faces_of_one_photograph() {
        let root = tempfile::tempdir().unwrap();
        let nowhere = ",,,,,,,,,,,";
        let other = FACE.replace("2,2,8,8", "10,2,8,8");
        set(
            root.path(),
            &[
                ("a.png", "val", FACE),
                ("a.png", "val", &other),
                ("b.png", "val", FACE),
                ("b.png", "val", nowhere),
                ("c.png", "train", FACE),
            ],
        );
        let found = photographs(root.path(), "set", "split=val", Trust::All).unwrap();
        assert_eq!(found.len(), 1, "b has a face that nobody has placed");
        assert_eq!(found[0].truth.faces.iter().map(|face| face.area.x).collect::<Vec<_>>(), [2.0, 10.0]);

        let csv = format!("path,action,{COLUMNS}\na.png,remove,{FACE}\na.png,ignore,0,0,3,3,,,,,,,,\n");
        let corrections = Corrections::read(csv.as_bytes()).unwrap();
        let found = photographs(root.path(), "set", "split=val", Trust::Mended(&corrections)).unwrap();
        assert_eq!((found[0].truth.faces.len(), found[0].truth.ignored.len()), (1, 1));
        let others = photographs(root.path(), "set", "split=train", Trust::Mended(&corrections)).unwrap();
        assert_eq!(others[0].truth.faces.len(), 1, "a part of the set has its own corrections, here none");
        let elsewhere = Corrections::read(csv.replace("a.png", "z.png").as_bytes()).unwrap();
        let error = photographs(root.path(), "set", "split=val", Trust::Mended(&elsewhere)).unwrap_err();
        assert!(format!("{error:#}").contains("no such picture"), "{error:#}");
    }

    #[test]
    fn what_is_learned_has_its_keypoints_placed() {
        let root = tempfile::tempdir().unwrap();
        set(root.path(), &[("a.png", "train", FACE)]);
        let manifest = root.path().join("set/manifest.csv");
        let labels = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, labels.replace("smile,", "smile,box_score,").replace("train,,", "train,,0.9,")).unwrap();
        let places = root.path().join("places.csv");
        let moved = FACE.replace("4,4,8,4", "3,5,9,4");
        fs::write(&places, format!("path,action,{COLUMNS}\na.png,place,{moved}\na.png,remove,{FACE}\n")).unwrap();
        let placed = corrections(&[places]).unwrap();
        let trust = Trust::From { least: 0.5, placed: &placed };
        let found = photographs(root.path(), "set", "split=train", trust).unwrap();
        let faces: Vec<Point> = found[0].truth.faces.iter().map(|face| face.landmarks.right_eye).collect();
        assert_eq!(faces, [Point::new(3.0, 5.0)], "placed, and not removed: that is for measuring");
        let error = corrections(&[root.path().join("nowhere.csv")]).unwrap_err();
        assert!(error.to_string().contains("nowhere.csv"), "{error:#}");
    }

    #[test]
    fn a_second_box_must_be_certain() {
        let at = |x: f32| super::super::testing::face(x, 0.0, 8.0);
        let faces = [at(0.0), at(10.0), at(20.0)];
        let kept = |scores: [f32; 3]| -> (Vec<f32>, Vec<f32>) {
            let truth = believed(&faces, &scores, 0.8);
            (truth.faces.iter().map(|face| face.area.x).collect(), truth.ignored.iter().map(|area| area.x).collect())
        };
        assert_eq!(kept([0.7, 0.95, 0.85]), (vec![10.0, 20.0], vec![0.0]));
        assert_eq!(kept([0.6, 0.5, 0.7]), (vec![20.0], vec![0.0, 10.0]));
    }

    #[test]
    fn faces_that_are_not_wanted_count_neither_way() {
        let at = |x: f32| super::super::testing::face(x, 0.0, 8.0);
        let picture = RgbImage::new(40, 20);
        let truth = Truth { faces: vec![at(0.0), at(10.0), at(20.0)], ignored: vec![at(30.0).area] };
        let Truth { faces, ignored } = Photograph { picture, truth }.only(|face| *face == at(10.0)).truth;
        assert_eq!(faces, [at(10.0)]);
        assert_eq!(ignored, [at(30.0).area, at(0.0).area, at(20.0).area]);
    }

    #[test]
    fn crops_are_taken_evenly() {
        let root = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..6).map(|index| format!("{index}.png")).collect();
        set(root.path(), &names.iter().map(|name| (name.as_str(), "train", FACE)).collect::<Vec<_>>());
        let config = |rows| CropsConfig { set: "set".into(), filter: "split=train".into(), rows };
        assert_eq!(crops(root.path(), &config(3)).unwrap().len(), 3);
        assert_eq!(crops(root.path(), &config(100)).unwrap().len(), 6);
        let none = CropsConfig { filter: "split=test".into(), ..config(3) };
        assert!(crops(root.path(), &none).unwrap_err().to_string().contains("no row has split=test"));
    }
}
