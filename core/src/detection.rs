//! From the tensors of a face detector to faces: the layouts of three families of networks, the choice of the best boxes among overlapping
//! ones, and the way back from the detector's square to the picture.
//!
//! A detector looks at the square that [`Similarity::around`] places around a whole picture, so pictures of any shape share a batch.
//! Coordinates are shares of that square until [`Detection::map`] carries them into the picture.

use serde::{Deserialize, Serialize};

use crate::geometry::{Landmarks, Point, Rect, Similarity};

/// Sides of a detector's cells in pixels, finest first; each is one level of its outputs.
pub const STRIDES: [u32; 3] = [8, 16, 32];

/// Channels of a level of [`Decoder::Facewise`]: a score, four edges, four keypoints of two coordinates.
pub const CHANNELS: usize = 13;

/// Largest exponent that is believed: e⁸ strides is beyond every picture. (Clamping, unlike taking the minimum, leaves NaN what it is.)
const MAX_EXPONENT: f32 = 8.0;

/// A face that a detector found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// The box around the face; it may reach beyond the picture.
    pub area: Rect,
    /// How sure the detector is, 0..1.
    pub confidence: f32,
    /// Eyes, nose and mouth.
    pub landmarks: Landmarks,
}

impl Detection {
    /// The same face in another frame of reference; `transform` must not rotate, as [`Similarity::around`] does not.
    #[must_use]
    pub fn map(&self, transform: &Similarity) -> Self {
        let corner = transform.apply(Point::new(self.area.x, self.area.y));
        let scale = transform.scale();
        Self {
            area: Rect { x: corner.x, y: corner.y, width: self.area.width * scale, height: self.area.height * scale },
            confidence: self.confidence,
            landmarks: self.landmarks.map(transform),
        }
    }

    fn is_usable(&self) -> bool {
        let Rect { x, y, width, height } = self.area;
        let Landmarks { right_eye, left_eye, nose, mouth } = self.landmarks;
        let points = [right_eye, left_eye, nose, mouth];
        [x, y, width, height].iter().all(|value| value.is_finite())
            && width > 0.0
            && height > 0.0
            && points.iter().all(|point| point.x.is_finite() && point.y.is_finite())
    }
}

/// How a detector's tensors are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decoder {
    /// The detectors trained here. For each stride `s` a map `stride_<s>` of `[13, size/s, size/s]`: the logit of a face; the natural
    /// logarithm of the distances, in strides, from the cell's centre to the left, upper, right and lower edge; the offsets, in strides,
    /// from the cell's centre to right eye, left eye, nose and mouth.
    Facewise,
    /// `YuNet` as in the `OpenCV` Zoo (`face_detection_yunet_2023mar.onnx`): class and object scores, box and five keypoints for each cell;
    /// read as `OpenCV`'s `FaceDetectorYN` does. Input: B, G, R as 0..255.
    Yunet,
    /// SCRFD of `InsightFace`, the variants with keypoints (`scrfd_*_kps.onnx`, `det_10g.onnx`, `det_500m.onnx`): two anchors for each cell; read as
    /// `InsightFace`'s `scrfd.py` does.
    Scrfd,
}

/// A tensor that a detector answers for one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name of the tensor, where the network does not name it otherwise.
    pub name: String,
    /// Dimensions without the batch.
    pub shape: Vec<usize>,
}

impl Decoder {
    /// The tensors for an input of `size` × `size` pixels, in the order in which [`detect`] wants them.
    pub fn outputs(self, size: u32) -> Vec<Output> {
        let level = |name: &str, stride: u32, shape: &dyn Fn(usize) -> Vec<usize>| Output {
            name: format!("{name}_{stride}"),
            shape: shape((size / stride) as usize),
        };
        let parts = |names: &[(&str, usize)], anchors: usize| {
            let part = |&(name, numbers): &(&str, usize)| {
                STRIDES.map(|stride| level(name, stride, &|side| vec![anchors * side * side, numbers]))
            };
            names.iter().flat_map(part).collect()
        };
        match self {
            Self::Facewise => STRIDES.map(|stride| level("stride", stride, &|side| vec![CHANNELS, side, side])).into(),
            Self::Yunet => parts(&[("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)], 1),
            Self::Scrfd => parts(&[("score", 1), ("bbox", 4), ("kps", 10)], 2),
        }
    }
}

/// Which of the candidates are faces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Least confidence.
    pub min_confidence: f32,
    /// Of two boxes that overlap more than this (intersection over union), the less confident is dropped.
    pub max_iou: f32,
    /// Most candidates that are compared with each other, the most confident ones.
    pub candidates: usize,
    /// Most faces, the most confident ones.
    pub max_faces: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self { min_confidence: 0.5, max_iou: 0.4, candidates: 1000, max_faces: 100 }
    }
}

/// Tensors that are not those of the decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DetectionError {
    /// Too few or too many tensors.
    #[error("the detector answers {found} tensors instead of {expected}")]
    Count {
        /// How many there are.
        found: usize,
        /// How many the decoder reads.
        expected: usize,
    },
    /// A tensor of another length.
    #[error("the detector's '{name}' has {found} numbers instead of {expected}")]
    Length {
        /// The decoder's name of the tensor.
        name: String,
        /// Its length.
        found: usize,
        /// The length for this size of input.
        expected: usize,
    },
}

/// Reads a detector's tensors for one picture, given in the order of [`Decoder::outputs`] for an input of `size` × `size` pixels, and
/// selects the faces, most confident first, in shares of the input's side.
///
/// What is not finite is no face.
///
/// # Errors
/// When number or lengths of the tensors are not those of the decoder.
pub fn detect(
    decoder: Decoder,
    size: u32,
    outputs: &[&[f32]],
    selection: &Selection,
) -> Result<Vec<Detection>, DetectionError> {
    let expected = decoder.outputs(size);
    if outputs.len() != expected.len() {
        return Err(DetectionError::Count { found: outputs.len(), expected: expected.len() });
    }
    for (output, Output { name, shape }) in outputs.iter().zip(expected) {
        let expected = shape.iter().product();
        if output.len() != expected {
            return Err(DetectionError::Length { name, found: output.len(), expected });
        }
    }
    let mut found = Vec::new();
    for (level, stride) in STRIDES.into_iter().enumerate() {
        let grid = Grid { side: (size / stride) as usize, unit: stride as f32 / size as f32 };
        let part = |index: usize| outputs[index * STRIDES.len() + level];
        let least = selection.min_confidence;
        match decoder {
            Decoder::Facewise => facewise(outputs[level], grid, least, &mut found),
            Decoder::Yunet => yunet([part(0), part(1), part(2), part(3)], grid, least, &mut found),
            Decoder::Scrfd => scrfd([part(0), part(1), part(2)], grid, least, &mut found),
        }
    }
    found.retain(Detection::is_usable);
    Ok(suppress(found, selection))
}

/// The cells of one level; positions are shares of the input's side.
#[derive(Clone, Copy)]
struct Grid {
    side: usize,
    /// Side of a cell.
    unit: f32,
}

impl Grid {
    /// The point `right` and `down` cells from the upper left corner of a cell.
    fn point(self, cell: usize, right: f32, down: f32) -> Point {
        let (column, row) = (cell % self.side, cell / self.side);
        Point::new((column as f32 + right) * self.unit, (row as f32 + down) * self.unit)
    }

    /// The box from edges given as distances, in cells, from a point.
    fn area(self, at: Point, [left, top, right, bottom]: [f32; 4]) -> Rect {
        let unit = self.unit;
        Rect {
            x: at.x - left * unit,
            y: at.y - top * unit,
            width: (left + right) * unit,
            height: (top + bottom) * unit,
        }
    }
}

fn facewise(map: &[f32], grid: Grid, least: f32, found: &mut Vec<Detection>) {
    let cells = grid.side * grid.side;
    // The logit that belongs to the least confidence: only the few cells above it are worth an exponential.
    let least = (least / (1.0 - least)).ln();
    for (cell, &logit) in map[..cells].iter().enumerate().filter(|(_, logit)| **logit >= least) {
        let value = |channel: usize| map[channel * cells + cell];
        let distance = |channel| value(channel).clamp(-MAX_EXPONENT, MAX_EXPONENT).exp();
        let keypoint = |index: usize| grid.point(cell, 0.5 + value(5 + 2 * index), 0.5 + value(6 + 2 * index));
        found.push(Detection {
            area: grid.area(grid.point(cell, 0.5, 0.5), [1, 2, 3, 4].map(distance)),
            confidence: 1.0 / (1.0 + (-logit).exp()),
            landmarks: Landmarks {
                right_eye: keypoint(0),
                left_eye: keypoint(1),
                nose: keypoint(2),
                mouth: keypoint(3),
            },
        });
    }
}

/// Five keypoints, the mouth as two corners.
fn landmarks(points: [Point; 5]) -> Landmarks {
    let [right_eye, left_eye, nose, right_corner, left_corner] = points;
    let mouth = Point::new(f32::midpoint(right_corner.x, left_corner.x), f32::midpoint(right_corner.y, left_corner.y));
    Landmarks { right_eye, left_eye, nose, mouth }
}

fn yunet([classes, objects, boxes, points]: [&[f32]; 4], grid: Grid, least: f32, found: &mut Vec<Detection>) {
    for (cell, (class, object)) in classes.iter().zip(objects).enumerate() {
        let confidence = (class.clamp(0.0, 1.0) * object.clamp(0.0, 1.0)).sqrt();
        if confidence >= least {
            let [x, y, width, height] = [0, 1, 2, 3].map(|index| boxes[4 * cell + index]);
            let half = [width, height].map(|side| side.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp() / 2.0);
            let point =
                |index: usize| grid.point(cell, points[10 * cell + 2 * index], points[10 * cell + 2 * index + 1]);
            found.push(Detection {
                area: grid.area(grid.point(cell, x, y), [half[0], half[1], half[0], half[1]]),
                confidence,
                landmarks: landmarks([0, 1, 2, 3, 4].map(point)),
            });
        }
    }
}

fn scrfd([scores, boxes, points]: [&[f32]; 3], grid: Grid, least: f32, found: &mut Vec<Detection>) {
    for (anchor, &confidence) in scores.iter().enumerate().filter(|(_, score)| **score >= least) {
        // Both anchors of a cell lie on its upper left corner.
        let cell = anchor / 2;
        let edges = [0, 1, 2, 3].map(|index| boxes[4 * anchor + index]);
        let point =
            |index: usize| grid.point(cell, points[10 * anchor + 2 * index], points[10 * anchor + 2 * index + 1]);
        found.push(Detection {
            area: grid.area(grid.point(cell, 0.0, 0.0), edges),
            confidence,
            landmarks: landmarks([0, 1, 2, 3, 4].map(point)),
        });
    }
}

/// Greedy non-maximum suppression: the most confident face stays and drops those that overlap it too much, then the next.
fn suppress(mut candidates: Vec<Detection>, selection: &Selection) -> Vec<Detection> {
    candidates.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    candidates.truncate(selection.candidates);
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in candidates {
        if kept.len() == selection.max_faces {
            break;
        }
        if kept.iter().all(|face| face.area.iou(&candidate.area) <= selection.max_iou) {
            kept.push(candidate);
        }
    }
    kept
}

/// The face that a crop of one face is about: the one with the largest product of confidence and area.
pub fn best(detections: &[Detection]) -> Option<&Detection> {
    let weight = |face: &Detection| face.confidence * face.area.width * face.area.height;
    detections.iter().max_by(|a, b| weight(a).total_cmp(&weight(b)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 64;

    fn face(x: f32, y: f32, side: f32, confidence: f32) -> Detection {
        let at = |u: f32, v: f32| Point::new(x + u * side, y + v * side);
        Detection {
            area: Rect { x, y, width: side, height: side },
            confidence,
            landmarks: Landmarks {
                right_eye: at(0.3, 0.3),
                left_eye: at(0.7, 0.3),
                nose: at(0.5, 0.5),
                mouth: at(0.5, 0.8),
            },
        }
    }

    fn close(a: &Detection, b: &Detection) -> bool {
        let numbers = |d: &Detection| {
            let Landmarks { right_eye, left_eye, nose, mouth } = d.landmarks;
            let points = [right_eye, left_eye, nose, mouth].map(|p| [p.x, p.y]).concat();
            [vec![d.area.x, d.area.y, d.area.width, d.area.height, d.confidence], points].concat()
        };
        numbers(a).iter().zip(numbers(b)).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    /// Tensors of zeros, and scores that say no.
    fn empty(decoder: Decoder) -> Vec<Vec<f32>> {
        let mut tensors: Vec<Vec<f32>> =
            decoder.outputs(SIZE).iter().map(|output| vec![0.0; output.shape.iter().product()]).collect();
        if decoder == Decoder::Facewise {
            for (tensor, stride) in tensors.iter_mut().zip(STRIDES) {
                tensor[..(SIZE / stride).pow(2) as usize].fill(-20.0);
            }
        }
        tensors
    }

    /// Writes a face, given in shares of the square, into the cell of a level as each network would.
    fn write(decoder: Decoder, tensors: &mut [Vec<f32>], level: usize, cell: usize, face: &Detection) {
        let stride = STRIDES[level];
        let side = (SIZE / stride) as usize;
        let unit = stride as f32 / SIZE as f32;
        let in_cells = |p: Point| Point::new(p.x / unit - (cell % side) as f32, p.y / unit - (cell / side) as f32);
        let Landmarks { right_eye, left_eye, nose, mouth } = face.landmarks;
        let corners = [
            in_cells(Point::new(face.area.x, face.area.y)),
            in_cells(Point::new(face.area.x + face.area.width, face.area.y + face.area.height)),
        ];
        // Corners of the mouth on both sides of its centre.
        let five =
            [right_eye, left_eye, nose, Point::new(mouth.x - 0.05, mouth.y), Point::new(mouth.x + 0.05, mouth.y)]
                .map(in_cells);
        match decoder {
            Decoder::Facewise => {
                let [low, high] = corners;
                let mut values = vec![(face.confidence / (1.0 - face.confidence)).ln()];
                values.extend([0.5 - low.x, 0.5 - low.y, high.x - 0.5, high.y - 0.5].map(f32::ln));
                for point in [right_eye, left_eye, nose, mouth].map(in_cells) {
                    values.extend([point.x - 0.5, point.y - 0.5]);
                }
                for (channel, value) in values.into_iter().enumerate() {
                    tensors[level][channel * side * side + cell] = value;
                }
            }
            Decoder::Yunet => {
                let [low, high] = corners;
                tensors[level][cell] = face.confidence;
                tensors[3 + level][cell] = face.confidence;
                let centre = [f32::midpoint(low.x, high.x), f32::midpoint(low.y, high.y)];
                let values = [centre[0], centre[1], (high.x - low.x).ln(), (high.y - low.y).ln()];
                tensors[6 + level][4 * cell..4 * cell + 4].copy_from_slice(&values);
                tensors[9 + level][10 * cell..10 * cell + 10].copy_from_slice(&five.map(|p| [p.x, p.y]).concat());
            }
            Decoder::Scrfd => {
                // The second of the two anchors.
                let anchor = 2 * cell + 1;
                let [low, high] = corners;
                tensors[level][anchor] = face.confidence;
                let values = [-low.x, -low.y, high.x, high.y];
                tensors[3 + level][4 * anchor..4 * anchor + 4].copy_from_slice(&values);
                tensors[6 + level][10 * anchor..10 * anchor + 10].copy_from_slice(&five.map(|p| [p.x, p.y]).concat());
            }
        }
    }

    fn read(decoder: Decoder, tensors: &[Vec<f32>], selection: &Selection) -> Vec<Detection> {
        let slices: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
        detect(decoder, SIZE, &slices, selection).unwrap()
    }

    const DECODERS: [Decoder; 3] = [Decoder::Facewise, Decoder::Yunet, Decoder::Scrfd];

    #[test]
    fn every_layout_is_read_at_every_level() {
        for decoder in DECODERS {
            for (level, cell) in [(0, 27), (1, 5), (2, 3)] {
                let stride = STRIDES[level];
                let (side, unit) = ((SIZE / stride) as usize, stride as f32 / SIZE as f32);
                let corner = Point::new((cell % side) as f32 * unit, (cell / side) as f32 * unit);
                let wanted = face(corner.x - 0.6 * unit, corner.y - 0.4 * unit, 2.0 * unit, 0.9);
                let mut tensors = empty(decoder);
                assert_eq!(read(decoder, &tensors, &Selection::default()), []);
                write(decoder, &mut tensors, level, cell, &wanted);
                let found = read(decoder, &tensors, &Selection::default());
                assert!(found.len() == 1 && close(&found[0], &wanted), "{decoder:?} level {level}: {found:?}");
            }
        }
    }

    #[test]
    fn of_overlapping_boxes_the_most_confident_stays() {
        let mut tensors = empty(Decoder::Facewise);
        for (cell, confidence) in [(18, 0.6), (19, 0.9), (20, 0.7), (60, 0.8)] {
            let (x, y) = ((cell % 8) as f32 / 8.0 - 0.1, (cell / 8) as f32 / 8.0 - 0.1);
            // The first three are shifted by less than their overlap allows.
            let x = if cell == 60 { x } else { 0.01 * cell as f32 };
            write(Decoder::Facewise, &mut tensors, 0, cell, &face(x, y, 0.4, confidence));
        }
        let confidences = |selection: &Selection| -> Vec<f32> {
            let found = read(Decoder::Facewise, &tensors, selection);
            found.iter().map(|face| (face.confidence * 100.0).round() / 100.0).collect()
        };
        let all = Selection::default();
        assert_eq!(confidences(&all), [0.9, 0.8]);
        assert_eq!(confidences(&Selection { max_faces: 1, ..all }), [0.9]);
        assert_eq!(confidences(&Selection { min_confidence: 0.85, ..all }), [0.9]);
        assert_eq!(confidences(&Selection { max_iou: 1.0, ..all }), [0.9, 0.8, 0.7, 0.6]);
        assert_eq!(confidences(&Selection { max_iou: 1.0, candidates: 3, ..all }), [0.9, 0.8, 0.7]);
    }

    #[test]
    fn what_is_not_finite_is_no_face() {
        for decoder in DECODERS {
            for index in 0..decoder.outputs(SIZE).len() {
                let mut tensors = empty(decoder);
                write(decoder, &mut tensors, 0, 27, &face(0.3, 0.3, 0.3, 0.9));
                tensors[index].fill(f32::NAN);
                let found = read(decoder, &tensors, &Selection::default());
                assert!(found.iter().all(Detection::is_usable), "{decoder:?} {index}");
            }
        }
    }

    #[test]
    fn tensors_of_another_network_are_refused() {
        let tensors = empty(Decoder::Facewise);
        let slices: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
        let selection = Selection::default();
        let error = detect(Decoder::Yunet, SIZE, &slices, &selection).unwrap_err().to_string();
        assert_eq!(error, "the detector answers 3 tensors instead of 12");
        let error = detect(Decoder::Facewise, 2 * SIZE, &slices, &selection).unwrap_err().to_string();
        assert_eq!(error, "the detector's 'stride_8' has 832 numbers instead of 3328");
    }

    #[test]
    fn names_are_those_of_the_files_people_have() {
        let names = |decoder: Decoder| -> Vec<String> { decoder.outputs(SIZE).into_iter().map(|o| o.name).collect() };
        assert_eq!(names(Decoder::Facewise), ["stride_8", "stride_16", "stride_32"]);
        assert_eq!(names(Decoder::Yunet)[..4], ["cls_8", "cls_16", "cls_32", "obj_8"]);
        assert_eq!(Decoder::Scrfd.outputs(640)[3].shape, [12_800, 4]);
    }

    #[test]
    fn a_crop_is_about_its_large_and_certain_face() {
        let faces = [face(0.0, 0.0, 0.2, 0.99), face(0.1, 0.1, 0.6, 0.8), face(0.0, 0.0, 0.5, 0.9)];
        assert_eq!(best(&faces), Some(&faces[1]));
        assert_eq!(best(&[]), None);
    }

    fn any_face() -> impl Strategy<Value = Detection> {
        (-0.2f32..1.0, -0.2f32..1.0, 0.01f32..1.0, 0.0f32..1.0).prop_map(|(x, y, side, c)| face(x, y, side, c))
    }

    proptest! {
        #[test]
        fn selected_faces_are_sorted_few_and_apart(
            candidates in prop::collection::vec(any_face(), 0..60), max_iou in 0.0f32..1.0, max_faces in 0usize..20,
        ) {
            let selection = Selection { min_confidence: 0.0, max_iou, candidates: 1000, max_faces };
            let kept = suppress(candidates.clone(), &selection);
            prop_assert!(kept.len() <= max_faces);
            prop_assert!(kept.is_sorted_by(|a, b| a.confidence >= b.confidence));
            for (index, a) in kept.iter().enumerate() {
                prop_assert!(candidates.contains(a));
                prop_assert!(kept[..index].iter().all(|b| a.area.iou(&b.area) <= max_iou));
            }
            // Nobody was dropped without a reason.
            for candidate in candidates.iter().filter(|_| kept.len() < max_faces) {
                let better = |face: &Detection| face.confidence >= candidate.confidence;
                prop_assert!(kept.contains(candidate)
                    || kept.iter().any(|face| better(face) && face.area.iou(&candidate.area) > max_iou));
            }
        }

        #[test]
        fn a_face_in_the_picture_survives_the_square_and_back(
            width in 1u32..5000, height in 1u32..5000, face in any_face(),
        ) {
            let around = Similarity::around(width, height);
            let there = face.map(&around);
            let back = there.map(&around.inverse().unwrap());
            prop_assert!(close(&face, &back), "{face:?} came back as {back:?}");
            let side = width.max(height) as f32;
            prop_assert!((there.area.width - face.area.width * side).abs() < 0.01 * side.max(1.0));
        }

        #[test]
        fn overlap_is_symmetric_and_between_none_and_all(a in any_face(), b in any_face()) {
            let iou = a.area.iou(&b.area);
            prop_assert!((0.0..=1.0).contains(&iou));
            prop_assert!((iou - b.area.iou(&a.area)).abs() < 1e-6);
            prop_assert!((a.area.iou(&a.area) - 1.0).abs() < 1e-5);
        }
    }
}
