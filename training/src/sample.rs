//! A labelled face in memory, and `pack`: many of them in compact binary parts, which load in seconds
//! and can be carried to another machine.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use facewise_core::geometry::{Landmarks, Point, Similarity, Template};
use facewise_core::picture::RgbImage;
use facewise_core::task::{AGES, Task};
use image::imageops::{self, FilterType};

/// Numbers in the answers of a network to all tasks.
pub const ANSWERS: usize = AGES + 2 + 2 + 7;

/// A network's probabilities for all tasks, one task after the other in the order of [`Task::ALL`].
pub type Answers = [f32; ANSWERS];

/// The part of a task in [`Answers`].
pub fn answer(answers: &Answers, task: Task) -> &[f32] {
    let first: usize = Task::ALL.iter().take_while(|other| **other != task).map(|other| other.classes()).sum();
    &answers[first..first + task.classes()]
}

/// What is known of a face; a task without a label is not trained on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Labels {
    /// Age in years, at most 100.
    pub age: Option<f32>,
    /// Index among the labels of [`Task::Gender`].
    pub gender: Option<u8>,
    /// Index among the labels of [`Task::Smile`].
    pub smile: Option<u8>,
    /// Index among the labels of [`Task::Emotion`].
    pub emotion: Option<u8>,
    /// Votes of several people over the labels of [`Task::Emotion`], summing to 1.
    pub emotion_votes: Option<[f32; 7]>,
    /// What a teacher says of it.
    pub answers: Option<Answers>,
}

impl Labels {
    /// Removes the labels of tasks that are not listed.
    #[must_use]
    pub fn only(mut self, tasks: &[Task]) -> Self {
        for task in Task::ALL.into_iter().filter(|task| !tasks.contains(task)) {
            match task {
                Task::Age => self.age = None,
                Task::Gender => self.gender = None,
                Task::Smile => self.smile = None,
                Task::Emotion => (self.emotion, self.emotion_votes) = (None, None),
            }
        }
        self
    }
}

/// A picture of one face with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The picture, reduced to the resolution that training needs.
    pub picture: RgbImage,
    /// Where eyes, nose and mouth are in it, when a detector found them.
    pub landmarks: Option<Landmarks>,
    /// What is known of the face.
    pub labels: Labels,
}

impl Sample {
    /// Reduces a picture so that the canonical square of its face measures at most `resolution` pixels.
    pub fn new(picture: RgbImage, landmarks: Option<Landmarks>, labels: Labels, resolution: u32) -> Self {
        let whole = Self { picture, landmarks, labels };
        let factor = resolution as f32 / whole.place().scale();
        if factor >= 1.0 {
            return whole;
        }
        let reduced = |side: u32| ((side as f32 * factor).round() as u32).max(1);
        let (width, height) = (reduced(whole.picture.width()), reduced(whole.picture.height()));
        let (x, y) = (width as f32 / whole.picture.width() as f32, height as f32 / whole.picture.height() as f32);
        let moved = |p: Point| Point::new(p.x * x, p.y * y);
        Self {
            landmarks: whole.landmarks.map(|points| Landmarks {
                right_eye: moved(points.right_eye),
                left_eye: moved(points.left_eye),
                nose: moved(points.nose),
                mouth: moved(points.mouth),
            }),
            // A triangle filter as wide as the reduction: no aliasing.
            picture: imageops::resize(&whole.picture, width, height, FilterType::Triangle),
            labels,
        }
    }

    /// The canonical square of the face by its keypoints; without any, the centred square.
    pub fn place(&self) -> Similarity {
        Template::FACE.place(self.landmarks.as_ref(), self.picture.width(), self.picture.height())
    }

    /// Whether the picture is one of this face, at least half as wide as its shorter side, and not of a scene.
    pub fn is_crop(&self) -> bool {
        2.0 * self.place().scale() >= self.picture.width().min(self.picture.height()) as f32
    }

    /// The centred square of the picture.
    pub fn square(&self) -> Similarity {
        Template::FACE.place(None, self.picture.width(), self.picture.height())
    }
}

const MAGIC: &[u8; 8] = b"FWPACK01";
/// Absent number in a record.
const NONE: u8 = 255;

/// Writes samples as parts `NAME-000.pack`, `NAME-001.pack` … of at most `part_bytes` each (a single sample may be larger). Without samples
/// there is one empty part.
#[derive(Debug)]
pub struct PackWriter {
    folder: PathBuf,
    name: String,
    part_bytes: usize,
    /// Parts begun.
    parts: usize,
    /// The last of them, and its bytes so far.
    part: BufWriter<File>,
    written: usize,
}

impl PackWriter {
    /// Starts a set of parts in a folder that is made if need be; older parts of the same name are removed.
    ///
    /// # Errors
    /// When the folder cannot be made, read or cleaned, or the first part not be written.
    pub fn new(folder: &Path, name: &str, part_bytes: usize) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for part in parts(folder, name)? {
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        let part = begin_part(folder, name, 0)?;
        Ok(Self { folder: folder.to_owned(), name: name.to_owned(), part_bytes, parts: 1, part, written: MAGIC.len() })
    }

    /// Adds a sample.
    ///
    /// # Errors
    /// When a part cannot be written, or the picture is wider or higher than 65,535 pixels.
    pub fn push(&mut self, sample: &Sample) -> Result<()> {
        let record = encode(sample)?;
        if self.written > MAGIC.len() && self.written + record.len() > self.part_bytes {
            self.part.flush()?;
            self.part = begin_part(&self.folder, &self.name, self.parts)?;
            self.parts += 1;
            self.written = MAGIC.len();
        }
        self.part.write_all(&record)?;
        self.written += record.len();
        Ok(())
    }

    /// Finishes the last part; the number of parts written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<usize> {
        self.part.flush()?;
        Ok(self.parts)
    }
}

fn begin_part(folder: &Path, name: &str, number: usize) -> Result<BufWriter<File>> {
    let path = folder.join(format!("{name}-{number:03}.pack"));
    let mut file = BufWriter::new(File::create(&path).with_context(|| format!("cannot write {}", path.display()))?);
    file.write_all(MAGIC)?;
    Ok(file)
}

/// Reads all parts of a name in their order.
///
/// # Errors
/// When there are none, or one is not a whole pack.
pub fn read_pack(folder: &Path, name: &str) -> Result<Vec<Sample>> {
    let parts = parts(folder, name)?;
    ensure!(!parts.is_empty(), "no part {name}-000.pack in {}", folder.display());
    let mut samples = Vec::new();
    for part in parts {
        let mut file = BufReader::new(File::open(&part).with_context(|| format!("cannot read {}", part.display()))?);
        let mut magic = [0; 8];
        file.read_exact(&mut magic).with_context(|| format!("{} is too short for a pack", part.display()))?;
        ensure!(&magic == MAGIC, "{} is not a pack", part.display());
        while let Some(sample) = decode(&mut file).with_context(|| format!("{} is broken", part.display()))? {
            samples.push(sample);
        }
    }
    Ok(samples)
}

fn parts(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".pack"));
        if number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit())) {
            parts.push(path);
        }
    }
    parts.sort();
    Ok(parts)
}

/// Record: width, height (u16), planes (u8, 1 for gray), gender, smile, emotion (u8), age, votes, keypoints (f32, NaN for absent), pixels.
fn encode(sample: &Sample) -> Result<Vec<u8>> {
    let raw = sample.picture.as_raw();
    let gray = raw.chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]);
    // A teacher's answers belong to a run, not to the data.
    let Labels { age, gender, smile, emotion, emotion_votes, answers: _ } = sample.labels;
    let side = |side: u32| u16::try_from(side).context("a picture of more than 65,535 pixels a side");
    let mut record = Vec::with_capacity(raw.len() + 80);
    record.extend(side(sample.picture.width())?.to_le_bytes());
    record.extend(side(sample.picture.height())?.to_le_bytes());
    record.push(if gray { 1 } else { 3 });
    record.extend([gender, smile, emotion].map(|label| label.unwrap_or(NONE)));
    let points = sample.landmarks.map_or([Point::new(f32::NAN, f32::NAN); 4], |landmarks| {
        [landmarks.right_eye, landmarks.left_eye, landmarks.nose, landmarks.mouth]
    });
    let numbers = std::iter::once(age.unwrap_or(f32::NAN))
        .chain(emotion_votes.unwrap_or([f32::NAN; 7]))
        .chain(points.into_iter().flat_map(|p| [p.x, p.y]));
    record.extend(numbers.flat_map(f32::to_le_bytes));
    if gray {
        record.extend(raw.chunks_exact(3).map(|pixel| pixel[0]));
    } else {
        record.extend_from_slice(raw);
    }
    Ok(record)
}

fn decode(file: &mut impl Read) -> Result<Option<Sample>> {
    let mut head = [0; 8];
    let got = file.read(&mut head)?;
    if got == 0 {
        return Ok(None);
    }
    file.read_exact(&mut head[got..])?;
    let side = |bytes: [u8; 2]| u32::from(u16::from_le_bytes(bytes));
    let (width, height) = (side([head[0], head[1]]), side([head[2], head[3]]));
    let mut numbers = [0.0f32; 16];
    for number in &mut numbers {
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes)?;
        *number = f32::from_le_bytes(bytes);
    }
    let label = |byte: u8, task: Task| match byte {
        NONE => Ok(None),
        known if usize::from(known) < task.classes() => Ok(Some(known)),
        unknown => bail!("{unknown} is not a label of {task}"),
    };
    let age = (!numbers[0].is_nan()).then_some(numbers[0]);
    ensure!(age.is_none_or(|age| (0.0..AGES as f32).contains(&age)), "{age:?} is not an age");
    let mut votes = [0.0; 7];
    votes.copy_from_slice(&numbers[1..8]);
    let point = |index: usize| Point::new(numbers[8 + 2 * index], numbers[9 + 2 * index]);
    let landmarks = Landmarks { right_eye: point(0), left_eye: point(1), nose: point(2), mouth: point(3) };
    let area = width as usize * height as usize;
    ensure!(area > 0, "an empty picture");
    let pixels = match head[4] {
        1 => {
            let mut gray = vec![0; area];
            file.read_exact(&mut gray)?;
            gray.into_iter().flat_map(|value| [value; 3]).collect()
        }
        3 => {
            let mut rgb = vec![0; 3 * area];
            file.read_exact(&mut rgb)?;
            rgb
        }
        planes => bail!("{planes} planes"),
    };
    Ok(Some(Sample {
        picture: RgbImage::from_raw(width, height, pixels).context("the pixels do not fit the size")?,
        landmarks: (!numbers[8].is_nan()).then_some(landmarks),
        labels: Labels {
            age,
            gender: label(head[5], Task::Gender)?,
            smile: label(head[6], Task::Smile)?,
            emotion: label(head[7], Task::Emotion)?,
            emotion_votes: (!votes[0].is_nan()).then_some(votes),
            answers: None,
        },
    }))
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn samples() -> Vec<Sample> {
        let landmarks = Landmarks {
            right_eye: Point::new(70.0, 80.0),
            left_eye: Point::new(130.0, 80.5),
            nose: Point::new(100.0, 110.0),
            mouth: Point::new(100.0, 140.0),
        };
        let colour = RgbImage::from_fn(200, 180, |x, y| Rgb([x as u8, y as u8, 9]));
        let gray = RgbImage::from_fn(48, 48, |x, y| Rgb([(x + y) as u8; 3]));
        let known = Labels { age: Some(31.0), gender: Some(1), ..Labels::default() };
        let voted =
            Labels { emotion: Some(3), emotion_votes: Some([0.0, 0.0, 0.1, 0.6, 0.1, 0.1, 0.1]), ..Labels::default() };
        vec![Sample::new(colour, Some(landmarks), known, 100), Sample::new(gray, None, voted, 100)]
    }

    #[test]
    fn a_face_in_a_scene_is_no_crop() {
        let crop = &samples()[0];
        let scene = Sample { picture: RgbImage::new(400, 400), ..crop.clone() };
        assert!(crop.is_crop() && samples()[1].is_crop() && !scene.is_crop());
    }

    #[test]
    fn packs_round_trip_over_several_parts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let samples = samples();
        let mut writer = PackWriter::new(folder.path(), "set", 1).expect("a writer");
        for sample in &samples {
            writer.push(sample).expect("written");
        }
        assert_eq!(writer.finish().expect("written"), 2);
        assert_eq!(read_pack(folder.path(), "set").expect("whole"), samples);
    }

    #[test]
    fn a_cut_pack_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut writer = PackWriter::new(folder.path(), "set", 1 << 20).expect("a writer");
        writer.push(&samples()[0]).expect("written");
        writer.finish().expect("written");
        let path = folder.path().join("set-000.pack");
        let whole = fs::read(&path).expect("there");
        fs::write(&path, &whole[..whole.len() - 1]).expect("cut");
        let error = read_pack(folder.path(), "set").expect_err("cut");
        assert!(error.to_string().contains("set-000.pack"), "{error:#}");
        assert!(read_pack(folder.path(), "other").is_err());
    }

    #[test]
    fn reduction_keeps_the_face_where_it_is() {
        let sample = &samples()[0];
        let square = sample.place();
        assert!((square.scale() - 100.0).abs() < 1.0, "{}", square.scale());
        // The ramp of the picture still tells where a point came from: the right eye was at (70, 80).
        let eye = sample.landmarks.expect("has keypoints").right_eye;
        let pixel = sample.picture.get_pixel(eye.x as u32, eye.y as u32);
        assert!(pixel[0].abs_diff(70) <= 2 && pixel[1].abs_diff(80) <= 2, "{pixel:?}");
    }

    #[test]
    fn labels_of_other_tasks_are_dropped() {
        let labels = Labels { age: Some(3.0), gender: Some(0), smile: Some(1), ..Labels::default() };
        assert_eq!(labels.only(&[Task::Smile]), Labels { smile: Some(1), ..Labels::default() });
    }
}
