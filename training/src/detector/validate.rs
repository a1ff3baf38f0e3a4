//! What a detector finds in photographs that it was not trained on, and in mosaics of them.

use anyhow::Result;
use facewise_core::crop::{self, PADDING};
use facewise_core::detection::{Decoder, Detection, Selection, detect};
use facewise_core::geometry::{Point, Rect, Similarity};
use facewise_core::picture::RgbImage;
use facewise_evaluation::detection::{DetectionMetrics, DetectionScore, Truth};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Device;

use super::canvas::{Canvas, Square, placed};
use super::data::{Photograph, side as side_of};
use crate::loader::Batch;
use crate::network::{Mode, Network};
use crate::validate::pixels;

/// Pictures in one pass.
const BATCH: usize = 32;

/// Intersection over union from which a face is found.
const MIN_IOU: f32 = 0.5;

/// Detections down to this confidence count for the average precision.
const LEAST_CONFIDENCE: f32 = 0.02;

/// Photographs across and down a mosaic.
const ACROSS: u32 = 4;

/// Sides of the largest face of each photograph in a mosaic, in pixels at 320 px a mosaic.
const MOSAIC_FACES: std::ops::Range<f32> = 20.0..40.0;

/// The side of a mosaic that those are meant for.
const MOSAIC_SIZE: f32 = 320.0;

/// Other faces of these photographs count from this side, in the same pixels.
const MOSAIC_LEAST: f32 = 19.0;

/// A picture to find faces in: a square of the network's input size.
#[derive(Clone, Debug)]
pub struct Exam {
    /// What the network sees.
    pub picture: RgbImage,
    /// From shares of its side to the frame of reference of the truth.
    pub to_truth: Similarity,
    /// What is in it.
    pub truth: Truth,
}

/// Held-out photographs, each as it is served, and mosaics of them.
#[derive(Clone, Debug)]
pub struct Exams {
    /// Whole photographs.
    pub photographs: Vec<Exam>,
    /// 4×4 photographs each.
    pub mosaics: Vec<Exam>,
}

/// The figures of both kinds of exams.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Figures {
    /// Whole photographs.
    pub photographs: DetectionMetrics,
    /// Mosaics.
    pub mosaics: DetectionMetrics,
}

/// Names of [`Figures::cells`].
pub const COLUMNS: [&str; 7] =
    ["ap", "precision", "recall", "keypoints", "mosaic_precision", "mosaic_recall", "mosaic_keypoints"];

impl Figures {
    /// The figures as cells of a table, named by [`COLUMNS`].
    pub fn cells(&self) -> Vec<String> {
        let Self { photographs: p, mosaics: m } = self;
        [p.ap, p.precision, p.recall, p.keypoint_error, m.precision, m.recall, m.keypoint_error]
            .map(|value| format!("{value:.4}"))
            .into()
    }
}

impl Exams {
    /// The exams of these photographs for an input of `size` × `size` pixels; always the same.
    pub fn new(photographs: &[Photograph], size: u32) -> Self {
        Self {
            photographs: photographs.iter().map(|photo| plain(photo, size)).collect(),
            mosaics: mosaics(photographs, size),
        }
    }

    /// The figures of what `find` finds in pictures, in shares of their sides, down to the confidence of [`thorough`].
    ///
    /// # Errors
    /// When `find` fails.
    pub fn score(&self, mut find: impl FnMut(&[&RgbImage]) -> Result<Vec<Vec<Detection>>>) -> Result<Figures> {
        let mut part = |exams: &[Exam]| -> Result<DetectionMetrics> {
            let pictures: Vec<&RgbImage> = exams.iter().map(|exam| &exam.picture).collect();
            Ok(metrics(exams, &find(&pictures)?))
        };
        Ok(Figures { photographs: part(&self.photographs)?, mosaics: part(&self.mosaics)? })
    }

    /// The figures of a network in libtorch.
    ///
    /// # Errors
    /// When its answers cannot be read.
    pub fn score_network(&self, network: &Network, device: Device) -> Result<Figures> {
        self.score(|pictures| found(pictures, network, &thorough(), device))
    }
}

/// All detections that count for the average precision.
pub fn thorough() -> Selection {
    Selection { min_confidence: LEAST_CONFIDENCE, ..Selection::default() }
}

/// The figures of what was found in each of these exams; precision, recall and keypoints at the confidence that is served.
pub fn metrics(exams: &[Exam], found: &[Vec<Detection>]) -> DetectionMetrics {
    let mut score = DetectionScore::new(MIN_IOU, Selection::default().min_confidence);
    for (exam, found) in exams.iter().zip(found) {
        let found: Vec<Detection> = found.iter().map(|detection| detection.map(&exam.to_truth)).collect();
        score.add(&exam.truth, &found);
    }
    score.finish()
}

/// What a network in libtorch finds in square pictures of one size, in shares of their sides.
///
/// # Errors
/// When its answers cannot be read.
pub fn found(
    pictures: &[&RgbImage],
    network: &Network,
    selection: &Selection,
    device: Device,
) -> Result<Vec<Vec<Detection>>> {
    let mut found = Vec::with_capacity(pictures.len());
    for chunk in pictures.chunks(BATCH) {
        let batch = Batch::unlabelled(chunk);
        let maps: Vec<Vec<f32>> = network
            .forward(&pixels(&batch, device), Mode::Eval)
            .iter()
            .map(|map| Vec::try_from(map.to_device(Device::Cpu).contiguous().flatten(0, -1)))
            .collect::<Result<_, _>>()?;
        for index in 0..chunk.len() {
            found.push(detect(Decoder::Facewise, batch.size, &own(&maps, index, chunk.len()), selection)?);
        }
    }
    Ok(found)
}

/// The part of the picture at `index` in the maps of `count` pictures.
fn own(maps: &[Vec<f32>], index: usize, count: usize) -> Vec<&[f32]> {
    let part = |map: &'_ Vec<f32>| map.len() / count * index..map.len() / count * (index + 1);
    maps.iter().map(|map| &map[part(map)]).collect()
}

/// A photograph as it is served: on the smallest square around it.
fn plain(photograph: &Photograph, size: u32) -> Exam {
    let around = Similarity::around(photograph.picture.width(), photograph.picture.height());
    Exam { picture: crop::crop(&photograph.picture, &around, size), to_truth: around, truth: photograph.truth.clone() }
}

/// Mosaics of 4×4 photographs in a fixed random order; what does not fill one is left out. Each photograph is drawn upright so that its
/// largest face has a side of 20 to 40 pixels at 320 px a mosaic, evenly, and lies within the photograph's square, anywhere.
fn mosaics(photographs: &[Photograph], size: u32) -> Vec<Exam> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut order: Vec<(&Photograph, Rect)> =
        photographs.iter().filter_map(|photograph| Some((photograph, photograph.largest()?))).collect();
    order.shuffle(&mut random);
    let side = size / ACROSS;
    let unit = size as f32 / MOSAIC_SIZE;
    let tiles = (ACROSS * ACROSS) as usize;
    let mosaic = |photographs: &[(&Photograph, Rect)]| {
        let mut canvas = Canvas::new(size, PADDING, MOSAIC_LEAST * unit);
        for (tile, (photograph, area)) in (0..).zip(photographs) {
            let square = Square { x: (tile % ACROSS * side) as i32, y: (tile / ACROSS * side) as i32, side };
            let wanted = random.random_range(MOSAIC_FACES) * unit;
            let room = side as f32 - wanted;
            let mut within = |low: i32| low as f32 + wanted / 2.0 + random.random_range(0.0..1.0) * room;
            let at = Point::new(within(square.x), within(square.y));
            let centre = Point::new(area.x + area.width / 2.0, area.y + area.height / 2.0);
            canvas.show(photograph, square, &placed(square, centre, at, wanted / side_of(area), 0.0), 0.0);
        }
        Exam { picture: canvas.picture, to_truth: Square::whole(size).from_unit(), truth: canvas.truth }
    };
    order.chunks_exact(tiles).map(mosaic).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{drawn, face};
    use super::*;

    /// Photographs of several shapes and sizes of face.
    fn photographs(n: usize) -> Vec<Photograph> {
        let side = |index: usize| 24.0 + 4.0 * (index % 9) as f32;
        (0..n).map(|index| drawn(150, 100 + 10 * (index % 7) as u32, vec![face(30.0, 20.0, side(index))])).collect()
    }

    #[test]
    fn mosaics_hold_every_face_at_the_sizes_promised() {
        let exams = Exams::new(&photographs(35), 320);
        assert_eq!((exams.photographs.len(), exams.mosaics.len()), (35, 2));
        for exam in &exams.mosaics {
            assert_eq!(exam.truth.faces.len(), 16);
            for face in &exam.truth.faces {
                assert!((19.9..40.1).contains(&face.area.width));
                let tile = (face.area.x / 80.0).floor();
                assert!(
                    (tile * 80.0 - 0.01..).contains(&face.area.x)
                        && face.area.x + face.area.width <= tile * 80.0 + 80.01
                );
            }
        }
        let again = Exams::new(&photographs(35), 320);
        assert!(exams.mosaics.iter().zip(&again.mosaics).all(|(a, b)| a.picture == b.picture));
    }

    #[test]
    fn the_truth_found_again_is_perfect() {
        let exams = Exams::new(&photographs(17), 320);
        for part in [&exams.photographs, &exams.mosaics] {
            let back = |exam: &Exam| exam.to_truth.inverse().expect("a square has a side");
            let told = |exam: &Exam| {
                let tell = |face: &facewise_evaluation::detection::Face| {
                    let detection = Detection { area: face.area, confidence: 0.9, landmarks: face.landmarks };
                    detection.map(&back(exam))
                };
                exam.truth.faces.iter().map(tell).collect::<Vec<_>>()
            };
            let found: Vec<Vec<Detection>> = part.iter().map(told).collect();
            let figures = metrics(part, &found);
            assert!(figures.ap > 0.999 && figures.recall > 0.999 && figures.precision > 0.999);
            assert!(figures.keypoint_error < 1e-3);
        }
    }

    #[test]
    fn maps_are_taken_apart_picture_by_picture() {
        let maps = [vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], vec![6.0, 7.0, 8.0]];
        assert_eq!(own(&maps, 1, 3), [&[2.0, 3.0][..], &[7.0]]);
    }
}
