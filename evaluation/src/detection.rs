//! Scoring found faces against labelled ones: average precision, precision and recall, and how far off the keypoints are.

use facewise_core::detection::Detection;
use facewise_core::geometry::{Landmarks, Rect};
use serde::{Deserialize, Serialize};

/// Share of a detection's own area that has to lie in an ignored region for the detection not to count.
const IGNORED_SHARE: f32 = 0.5;

/// A labelled face of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Face {
    /// The box, in the detections' frame of reference.
    pub area: Rect,
    /// The keypoints, in the same frame.
    pub landmarks: Landmarks,
}

/// The truth about one picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truth {
    /// The faces that should be found.
    pub faces: Vec<Face>,
    /// Regions where a detector may say what it wants: faces too small, blurred or hidden to judge.
    pub ignored: Vec<Rect>,
}

/// What a detector finds on a set of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectionMetrics {
    /// Pictures counted.
    pub pictures: u64,
    /// Faces labelled.
    pub faces: u64,
    /// Average precision: the area under the precision envelope over the recall, all points interpolated as in PASCAL VOC 2010 (Everingham
    /// et al., "The PASCAL Visual Object Classes Challenge 2010 Development Kit", section 3.4.1). 0 where no face is labelled.
    pub ap: f64,
    /// Share of the detections of at least the confidence asked for that are faces; 1 where there are none.
    pub precision: f64,
    /// Share of the faces that are found with at least that confidence; 1 where there are none.
    pub recall: f64,
    /// Mean, over the faces found with at least that confidence, of the mean distance of the four keypoints from the labelled ones, divided
    /// by the labelled distance between the eyes; not a number where no face is found.
    pub keypoint_error: f64,
}

/// Gathers [`DetectionMetrics`], picture by picture.
#[derive(Clone, Debug)]
pub struct DetectionScore {
    min_iou: f32,
    min_confidence: f32,
    pictures: u64,
    faces: u64,
    /// Confidence, and whether it is a face.
    detections: Vec<(f32, bool)>,
    /// Sum and number.
    keypoint_errors: (f64, u64),
}

impl DetectionScore {
    /// Nothing counted yet. A detection is a face from `min_iou` of intersection over union with it; precision, recall and the error of the
    /// keypoints are of detections from `min_confidence`.
    pub fn new(min_iou: f32, min_confidence: f32) -> Self {
        Self { min_iou, min_confidence, pictures: 0, faces: 0, detections: Vec::new(), keypoint_errors: (0.0, 0) }
    }

    /// Counts one picture. The average precision is of all detections given: they should go down to a small confidence.
    ///
    /// From the most confident on, each detection takes the face that it overlaps most among those not taken yet, as in COCO's evaluation (Lin
    /// et al. 2014, arXiv:1405.0312). One that takes none is wrong, unless half of it lies in an ignored region: then it does not count.
    pub fn add(&mut self, truth: &Truth, detections: &[Detection]) {
        self.pictures += 1;
        self.faces += truth.faces.len() as u64;
        let mut order: Vec<&Detection> = detections.iter().collect();
        order.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
        let mut left: Vec<&Face> = truth.faces.iter().collect();
        for detection in order {
            let overlap = |face: &Face| face.area.iou(&detection.area);
            let nearest = (0..left.len()).max_by(|a, b| overlap(left[*a]).total_cmp(&overlap(left[*b])));
            if let Some(index) = nearest.filter(|index| overlap(left[*index]) >= self.min_iou) {
                let face = left.swap_remove(index);
                self.detections.push((detection.confidence, true));
                if detection.confidence >= self.min_confidence {
                    self.keypoint_errors.0 += keypoint_error(&face.landmarks, &detection.landmarks);
                    self.keypoint_errors.1 += 1;
                }
            } else if !truth.ignored.iter().any(|region| covered(&detection.area, region) >= IGNORED_SHARE) {
                self.detections.push((detection.confidence, false));
            }
        }
    }

    /// The figures so far.
    pub fn finish(&self) -> DetectionMetrics {
        let share = |part: u64, whole: u64| if whole == 0 { 1.0 } else { part as f64 / whole as f64 };
        let confident = self.detections.iter().filter(|(confidence, _)| *confidence >= self.min_confidence);
        let (found, all) = confident.fold((0, 0), |(found, all), (_, is_face)| (found + u64::from(*is_face), all + 1));
        DetectionMetrics {
            pictures: self.pictures,
            faces: self.faces,
            ap: average_precision(&self.detections, self.faces),
            precision: share(found, all),
            recall: share(found, self.faces),
            keypoint_error: self.keypoint_errors.0 / self.keypoint_errors.1 as f64,
        }
    }
}

/// Area under the precision envelope: at each recall the highest precision at this recall or a higher one.
fn average_precision(detections: &[(f32, bool)], faces: u64) -> f64 {
    if faces == 0 {
        return 0.0;
    }
    let mut sorted = detections.to_vec();
    // At equal confidence wrong ones first: their order must not flatter.
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut found = 0u64;
    let precision_at_faces: Vec<f64> = (1..)
        .zip(&sorted)
        .filter_map(|(n, (_, is_face))| {
            found += u64::from(*is_face);
            is_face.then_some(found as f64 / f64::from(n))
        })
        .collect();
    let envelope = precision_at_faces.iter().rev().scan(0.0, |highest: &mut f64, precision| {
        *highest = highest.max(*precision);
        Some(*highest)
    });
    // Each face found raises the recall by the same step.
    envelope.sum::<f64>() / faces as f64
}

/// Mean distance of the four keypoints in units of the distance between the labelled eyes.
fn keypoint_error(truth: &Landmarks, found: &Landmarks) -> f64 {
    let distances = [
        truth.right_eye.distance(found.right_eye),
        truth.left_eye.distance(found.left_eye),
        truth.nose.distance(found.nose),
        truth.mouth.distance(found.mouth),
    ];
    let mean = distances.iter().map(|distance| f64::from(*distance)).sum::<f64>() / 4.0;
    mean / f64::from(truth.right_eye.distance(truth.left_eye))
}

/// Share of a box that lies in a region.
fn covered(area: &Rect, region: &Rect) -> f32 {
    let shared = |low: f32, length: f32, other_low: f32, other_length: f32| {
        ((low + length).min(other_low + other_length) - low.max(other_low)).max(0.0)
    };
    let intersection =
        shared(area.x, area.width, region.x, region.width) * shared(area.y, area.height, region.y, region.height);
    intersection / (area.width * area.height)
}

#[cfg(test)]
mod tests {
    use facewise_core::geometry::Point;

    use super::*;

    fn square(x: f32, side: f32) -> Rect {
        Rect { x, y: 0.0, width: side, height: side }
    }

    /// Eyes 4 apart in a box of side 10.
    fn landmarks(x: f32) -> Landmarks {
        Landmarks {
            right_eye: Point::new(x + 3.0, 3.0),
            left_eye: Point::new(x + 7.0, 3.0),
            nose: Point::new(x + 5.0, 5.0),
            mouth: Point::new(x + 5.0, 7.0),
        }
    }

    fn face(x: f32) -> Face {
        Face { area: square(x, 10.0), landmarks: landmarks(x) }
    }

    fn found(x: f32, confidence: f32) -> Detection {
        Detection { area: square(x, 10.0), confidence, landmarks: landmarks(x) }
    }

    fn score(truths: &[(Truth, Vec<Detection>)]) -> DetectionMetrics {
        let mut score = DetectionScore::new(0.5, 0.5);
        for (truth, detections) in truths {
            score.add(truth, detections);
        }
        score.finish()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn figures_by_hand() {
        // By falling confidence: right, wrong, right, wrong, right; one of four faces is never found.
        let faces = |xs: &[f32]| Truth { faces: xs.iter().map(|x| face(*x)).collect(), ignored: Vec::new() };
        let metrics = score(&[
            (faces(&[0.0, 100.0]), vec![found(0.0, 0.9), found(50.0, 0.8), found(100.0, 0.7)]),
            (faces(&[0.0, 100.0]), vec![found(50.0, 0.6), found(100.0, 0.4)]),
        ]);
        assert_eq!((metrics.pictures, metrics.faces), (2, 4));
        // Precision at each face found: 1, 2/3, 3/5; it is its own envelope.
        close(metrics.ap, (1.0 + 2.0 / 3.0 + 3.0 / 5.0) / 4.0);
        close(metrics.precision, 0.5);
        close(metrics.recall, 0.5);
        close(metrics.keypoint_error, 0.0);
    }

    #[test]
    fn the_envelope_lifts_a_dip() {
        // Wrong, right, right: precision 1/2, then 2/3, which counts for both.
        let truth = Truth { faces: vec![face(0.0), face(100.0)], ignored: Vec::new() };
        let metrics = score(&[(truth, vec![found(50.0, 0.9), found(0.0, 0.8), found(100.0, 0.7)])]);
        close(metrics.ap, 2.0 / 3.0);
    }

    #[test]
    fn a_face_is_found_once_and_only_with_enough_overlap() {
        let truth = Truth { faces: vec![face(0.0)], ignored: Vec::new() };
        // 10 wide boxes: 3 apart overlap by 7/13, 4 apart by 6/14.
        let metrics = score(&[(truth.clone(), vec![found(3.0, 0.8), found(0.0, 0.9)])]);
        close(metrics.precision, 0.5);
        close(score(&[(truth.clone(), vec![found(3.0, 0.8)])]).recall, 1.0);
        close(score(&[(truth, vec![found(4.0, 0.8)])]).recall, 0.0);
    }

    #[test]
    fn a_second_face_is_taken_when_the_nearest_is_gone() {
        let truth = Truth { faces: vec![face(0.0), face(3.0)], ignored: Vec::new() };
        let metrics = score(&[(truth, vec![found(0.5, 0.9), found(1.0, 0.8)])]);
        close(metrics.recall, 1.0);
        close(metrics.ap, 1.0);
    }

    #[test]
    fn ignored_regions_count_neither_way() {
        let truth = Truth { faces: vec![face(0.0)], ignored: vec![square(48.0, 8.0)] };
        let inside = found(50.0, 0.9);
        let beside = found(54.0, 0.8);
        let metrics = score(&[(truth, vec![inside, beside, found(0.0, 0.7)])]);
        // `inside` has 6/10 × 8/10 = 0.48 in the region: not enough.
        close(metrics.precision, 1.0 / 3.0);
        let truth = Truth { faces: vec![face(0.0)], ignored: vec![square(48.0, 9.0)] };
        // 7/10 × 9/10 = 0.63.
        close(score(&[(truth, vec![inside, found(0.0, 0.7)])]).precision, 1.0);
    }

    #[test]
    fn a_labelled_face_counts_even_in_an_ignored_region() {
        let truth = Truth { faces: vec![face(0.0)], ignored: vec![square(0.0, 10.0)] };
        let metrics = score(&[(truth, vec![found(0.0, 0.9)])]);
        close(metrics.recall, 1.0);
    }

    #[test]
    fn keypoints_are_measured_between_the_eyes() {
        let truth = Truth { faces: vec![face(0.0)], ignored: Vec::new() };
        let mut detection = found(0.0, 0.9);
        detection.landmarks.nose.y += 2.0;
        detection.landmarks.mouth.x -= 1.0;
        // (0 + 0 + 2 + 1) / 4 over an eye distance of 4.
        close(score(&[(truth.clone(), vec![detection])]).keypoint_error, 3.0 / 16.0);
        let unsure = Detection { confidence: 0.3, ..detection };
        assert!(score(&[(truth, vec![unsure])]).keypoint_error.is_nan(), "only detections of enough confidence");
    }

    #[test]
    fn without_faces_every_detection_is_wrong() {
        let metrics = score(&[(Truth::default(), vec![found(0.0, 0.9)])]);
        assert_eq!((metrics.precision, metrics.recall, metrics.ap), (0.0, 1.0, 0.0));
        let metrics = score(&[(Truth::default(), Vec::new())]);
        assert_eq!((metrics.precision, metrics.recall), (1.0, 1.0));
    }
}
