//! Corrections of labels that a program made: a small CSV of coordinates beside a set, for faces it missed, faces it imagined, keypoints
//! it misplaced and regions that nobody can judge.

use std::collections::BTreeMap;
use std::io::Read;

use facewise_core::geometry::{Landmarks, Point, Rect};
use serde::Deserialize;

use crate::detection::{Face, Truth};

/// Intersection over union from which a row is the one that a correction removes.
const SAME_BOX: f32 = 0.5;

/// What a row of the file does to the faces of its picture.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Correction {
    /// A face that was missed.
    Add(Face),
    /// No face there; the box identifies the row.
    Remove(Rect),
    /// Where the keypoints of a labelled face are; its box identifies the row.
    Place(Face),
    /// A region where a detector may say what it wants.
    Ignore(Rect),
}

/// Corrections of a set's labels, by path of the picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corrections {
    by_path: BTreeMap<String, Vec<Correction>>,
}

/// Why corrections cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CorrectionsError {
    /// A row that is not CSV of the columns `path`, `action`, `box_x` … `mouth_y`.
    #[error("corrections: {0}")]
    Csv(#[from] csv::Error),
    /// An action that is none of `add`, `remove`, `place`, `ignore`.
    #[error("corrections of {path}: '{action}' is none of add, remove, place, ignore")]
    Action {
        /// The picture.
        path: String,
        /// The word.
        action: String,
    },
    /// A box without size.
    #[error("corrections of {path}: a box must have a width and a height")]
    Box {
        /// The picture.
        path: String,
    },
    /// A face to add or to place needs all its keypoints.
    #[error("corrections of {path}: a face to add or to place needs four keypoints")]
    Keypoints {
        /// The picture.
        path: String,
    },
    /// A row that meets no face: the file belongs to other labels.
    #[error("corrections of {path}: no labelled face is at the box of a row to remove or to place")]
    NoSuchFace {
        /// The picture.
        path: String,
    },
    /// The file names pictures that the set has not.
    #[error("corrections of {path}: the set has no such picture")]
    NoSuchPicture {
        /// The picture.
        path: String,
    },
}

#[derive(Deserialize)]
struct Record {
    path: String,
    action: String,
    box_x: f32,
    box_y: f32,
    box_w: f32,
    box_h: f32,
    reye_x: Option<f32>,
    reye_y: Option<f32>,
    leye_x: Option<f32>,
    leye_y: Option<f32>,
    nose_x: Option<f32>,
    nose_y: Option<f32>,
    mouth_x: Option<f32>,
    mouth_y: Option<f32>,
}

impl Record {
    fn landmarks(&self) -> Option<Landmarks> {
        let point = |x: Option<f32>, y: Option<f32>| Some(Point::new(x?, y?));
        Some(Landmarks {
            right_eye: point(self.reye_x, self.reye_y)?,
            left_eye: point(self.leye_x, self.leye_y)?,
            nose: point(self.nose_x, self.nose_y)?,
            mouth: point(self.mouth_x, self.mouth_y)?,
        })
    }

    fn correction(&self) -> Result<Correction, CorrectionsError> {
        let path = || self.path.clone();
        let area = Rect { x: self.box_x, y: self.box_y, width: self.box_w, height: self.box_h };
        if !(area.width > 0.0 && area.height > 0.0) {
            return Err(CorrectionsError::Box { path: path() });
        }
        let face = || {
            let landmarks = self.landmarks().ok_or_else(|| CorrectionsError::Keypoints { path: path() })?;
            Ok(Face { area, landmarks })
        };
        match self.action.as_str() {
            "add" => face().map(Correction::Add),
            "place" => face().map(Correction::Place),
            "remove" => Ok(Correction::Remove(area)),
            "ignore" => Ok(Correction::Ignore(area)),
            action => Err(CorrectionsError::Action { path: path(), action: action.to_owned() }),
        }
    }
}

impl Corrections {
    /// Reads the columns `path,action,box_x,box_y,box_w,box_h,reye_x,reye_y,leye_x,leye_y,nose_x,nose_y,mouth_x,mouth_y`, in pixels of the
    /// stored picture. `action` is `add`, `remove`, `place` or `ignore`; only faces to add or to place have keypoints.
    ///
    /// # Errors
    /// When the text is not such a CSV.
    pub fn read(text: impl Read) -> Result<Self, CorrectionsError> {
        let mut corrections = Self::default();
        for record in csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text).deserialize() {
            let record: Record = record?;
            let correction = record.correction()?;
            corrections.by_path.entry(record.path).or_default().push(correction);
        }
        Ok(corrections)
    }

    /// Adds the corrections of another file.
    pub fn extend(&mut self, other: Self) {
        for (path, corrections) in other.by_path {
            self.by_path.entry(path).or_default().extend(corrections);
        }
    }

    fn of(&self, path: &str) -> &[Correction] {
        self.by_path.get(path).map(Vec::as_slice).unwrap_or_default()
    }

    /// Puts the keypoints of one picture's faces where they are; nothing else is corrected.
    ///
    /// # Errors
    /// [`CorrectionsError::NoSuchFace`] when a row meets none of the faces.
    pub fn place(&self, path: &str, faces: &mut [Face]) -> Result<(), CorrectionsError> {
        for correction in self.of(path) {
            if let Correction::Place(Face { area, landmarks }) = correction {
                faces[at(area, faces, path)?].landmarks = *landmarks;
            }
        }
        Ok(())
    }

    /// The faces of one picture, corrected: those labelled without the removed ones, then the added ones.
    ///
    /// # Errors
    /// [`CorrectionsError::NoSuchFace`] when a row meets none of the faces.
    pub fn apply(&self, path: &str, faces: Vec<Face>) -> Result<Truth, CorrectionsError> {
        let mut truth = Truth { faces, ignored: Vec::new() };
        self.place(path, &mut truth.faces)?;
        // Removals before additions, so that a face may be replaced by one in the same place.
        for correction in self.of(path) {
            if let Correction::Remove(area) = correction {
                truth.faces.remove(at(area, &truth.faces, path)?);
            }
        }
        for correction in self.of(path) {
            match correction {
                Correction::Add(face) => truth.faces.push(*face),
                Correction::Ignore(area) => truth.ignored.push(*area),
                Correction::Remove(_) | Correction::Place(_) => {}
            }
        }
        Ok(truth)
    }

    /// Checks that every picture named is one of these.
    ///
    /// # Errors
    /// [`CorrectionsError::NoSuchPicture`] with the first that is not.
    pub fn check_paths<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> Result<(), CorrectionsError> {
        let known: std::collections::BTreeSet<&str> = paths.into_iter().collect();
        match self.by_path.keys().find(|path| !known.contains(path.as_str())) {
            Some(path) => Err(CorrectionsError::NoSuchPicture { path: path.clone() }),
            None => Ok(()),
        }
    }
}

/// The number of the face that a row means by its box.
fn at(area: &Rect, faces: &[Face], path: &str) -> Result<usize, CorrectionsError> {
    let same = |index: &usize| faces[*index].area.iou(area);
    (0..faces.len())
        .max_by(|a, b| same(a).total_cmp(&same(b)))
        .filter(|index| same(index) >= SAME_BOX)
        .ok_or_else(|| CorrectionsError::NoSuchFace { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str =
        "path,action,box_x,box_y,box_w,box_h,reye_x,reye_y,leye_x,leye_y,nose_x,nose_y,mouth_x,mouth_y\n";

    fn read(rows: &str) -> Result<Corrections, CorrectionsError> {
        Corrections::read(format!("{HEADER}{rows}").as_bytes())
    }

    fn face(x: f32) -> Face {
        let point = Point::new(x, 0.0);
        Face {
            area: Rect { x, y: 0.0, width: 10.0, height: 10.0 },
            landmarks: Landmarks { right_eye: point, left_eye: point, nose: point, mouth: point },
        }
    }

    #[test]
    fn faces_are_added_removed_and_ignored() {
        let corrections = read(
            "a.jpg,add,30,0,10,10,30,0,30,0,30,0,30,0\na.jpg,remove,1,0,10,10,,,,,,,,\na.jpg,ignore,5,6,7,8,,,,,,,,\n",
        )
        .expect("readable");
        let truth = corrections.apply("a.jpg", vec![face(0.0), face(20.0)]).expect("one is at the box");
        assert_eq!(truth.faces, [face(20.0), face(30.0)]);
        assert_eq!(truth.ignored, [Rect { x: 5.0, y: 6.0, width: 7.0, height: 8.0 }]);
        let untouched = corrections.apply("b.jpg", vec![face(0.0)]).expect("nothing to do");
        assert_eq!(untouched, Truth { faces: vec![face(0.0)], ignored: Vec::new() });
    }

    #[test]
    fn a_face_can_be_replaced_in_place() {
        let corrections =
            read("a.jpg,add,1,0,10,10,1,0,1,0,1,0,1,0\na.jpg,remove,0,0,10,10,,,,,,,,\n").expect("readable");
        assert_eq!(corrections.apply("a.jpg", vec![face(0.0)]).expect("it is there").faces, [face(1.0)]);
    }

    #[test]
    fn keypoints_are_placed_and_the_box_stays() {
        let mut corrections = read("a.jpg,place,21,0,10,10,7,0,7,0,7,0,7,0\n").expect("readable");
        corrections.extend(read("a.jpg,remove,0,0,10,10,,,,,,,,\nb.jpg,ignore,0,0,1,1,,,,,,,,\n").expect("readable"));
        let placed = Face { landmarks: face(7.0).landmarks, ..face(20.0) };
        let mut faces = vec![face(0.0), face(20.0)];
        corrections.place("a.jpg", &mut faces).expect("it is there");
        assert_eq!(faces, [face(0.0), placed]);
        assert_eq!(corrections.apply("a.jpg", vec![face(0.0), face(20.0)]).expect("both are there").faces, [placed]);
        assert_eq!(corrections.apply("b.jpg", Vec::new()).expect("nothing to find").ignored.len(), 1);
        assert!(matches!(corrections.place("a.jpg", &mut [face(0.0)]), Err(CorrectionsError::NoSuchFace { .. })));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let error = |rows: &str| read(rows).expect_err("refused").to_string();
        assert_eq!(
            error("a.jpg,move,0,0,1,1,,,,,,,,\n"),
            "corrections of a.jpg: 'move' is none of add, remove, place, ignore"
        );
        for action in ["add", "place"] {
            assert_eq!(
                error(&format!("a.jpg,{action},0,0,1,1,,,,,,,,\n")),
                "corrections of a.jpg: a face to add or to place needs four keypoints"
            );
        }
        assert_eq!(
            error("a.jpg,ignore,0,0,0,1,,,,,,,,\n"),
            "corrections of a.jpg: a box must have a width and a height"
        );
        let stale = read("a.jpg,remove,100,0,10,10,,,,,,,,\n").expect("readable");
        assert!(matches!(stale.apply("a.jpg", vec![face(0.0)]), Err(CorrectionsError::NoSuchFace { .. })));
        assert!(stale.check_paths(["a.jpg", "b.jpg"]).is_ok());
        assert!(matches!(stale.check_paths(["b.jpg"]), Err(CorrectionsError::NoSuchPicture { .. })));
    }
}
