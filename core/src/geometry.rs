//! Geometry of a face in a picture: points, boxes, landmarks, and the similarity
//! transform that carries a face onto the canonical square of a network.
//!
//! Coordinates are continuous pixels of the picture as displayed: the pixel in column
//! `i` covers `i..i+1`, so its centre lies at `i + 0.5`.

use serde::{Deserialize, Serialize};

/// A point in pixels, or in shares of a square's side where it says so. JSON: `[x, y]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f32; 2]", into = "[f32; 2]")]
pub struct Point {
    /// To the right.
    pub x: f32,
    /// Downwards.
    pub y: f32,
}

impl Point {
    /// A point from its coordinates.
    pub const fn new(x: f32, y: f32) -> Self {
        Self { x, y }
    }

    /// Euclidean distance to another point.
    pub fn distance(self, other: Self) -> f32 {
        (self.x - other.x).hypot(self.y - other.y)
    }
}

impl From<[f32; 2]> for Point {
    fn from([x, y]: [f32; 2]) -> Self {
        Self { x, y }
    }
}

impl From<Point> for [f32; 2] {
    fn from(point: Point) -> Self {
        [point.x, point.y]
    }
}

/// An upright rectangle in pixels; it may reach beyond the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rect {
    /// Left edge.
    pub x: f32,
    /// Upper edge.
    pub y: f32,
    /// Width, positive.
    pub width: f32,
    /// Height, positive.
    pub height: f32,
}

impl Rect {
    /// The centred square of a picture: its side is the shorter edge.
    pub fn centred_square(width: u32, height: u32) -> Self {
        let side = width.min(height);
        Self {
            x: ((width - side) / 2) as f32,
            y: ((height - side) / 2) as f32,
            width: side as f32,
            height: side as f32,
        }
    }

    /// Area of the intersection over area of the union: 0 for rectangles apart, 1 for equal ones.
    pub fn iou(&self, other: &Self) -> f32 {
        let shared = |low: f32, length: f32, other_low: f32, other_length: f32| {
            ((low + length).min(other_low + other_length) - low.max(other_low)).max(0.0)
        };
        let intersection =
            shared(self.x, self.width, other.x, other.width) * shared(self.y, self.height, other.y, other.height);
        let union = self.width * self.height + other.width * other.height - intersection;
        // Rounding may leave a hair more intersection than union.
        if union > 0.0 { (intersection / union).min(1.0) } else { 0.0 }
    }
}

/// Keypoints of a face. Right and left are the person's own: the right eye is to the left in the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Landmarks {
    /// Centre of the person's right eye.
    pub right_eye: Point,
    /// Centre of the person's left eye.
    pub left_eye: Point,
    /// Tip of the nose.
    pub nose: Point,
    /// Centre of the mouth.
    pub mouth: Point,
}

impl Landmarks {
    /// The same face in another frame of reference.
    #[must_use]
    pub fn map(&self, transform: &Similarity) -> Self {
        let Self { right_eye, left_eye, nose, mouth } = *self;
        let [right_eye, left_eye, nose, mouth] = [right_eye, left_eye, nose, mouth].map(|point| transform.apply(point));
        Self { right_eye, left_eye, nose, mouth }
    }
}

/// Where eyes and mouth come to lie on the canonical square, in shares of its side.
///
/// It is part of a model: one that was trained on another template answers wrongly without any error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The person's right eye.
    pub right_eye: Point,
    /// The person's left eye.
    pub left_eye: Point,
    /// Centre of the mouth.
    pub mouth: Point,
}

impl Template {
    /// The template of the networks trained here. Eyes 0.4 of the side apart: tight face crops (`FER2013`,
    /// `SMILEs`, `UTKFace`) fill the square with little padding, and forehead and chin stay inside.
    pub const FACE: Self =
        Self { right_eye: Point::new(0.30, 0.37), left_eye: Point::new(0.70, 0.37), mouth: Point::new(0.50, 0.77) };

    /// The transform from the unit square to the picture for a face with these landmarks: the least
    /// squares fit to eyes and mouth. `None` when the points coincide or are not finite.
    pub fn locate(&self, landmarks: &Landmarks) -> Option<Similarity> {
        Similarity::fit(&[
            (self.right_eye, landmarks.right_eye),
            (self.left_eye, landmarks.left_eye),
            (self.mouth, landmarks.mouth),
        ])
    }

    /// The transform from the unit square to a picture of this size: by keypoints where there are some that place a square
    /// ([`Template::locate`]), else onto the centred square.
    pub fn place(&self, landmarks: Option<&Landmarks>, width: u32, height: u32) -> Similarity {
        landmarks.and_then(|landmarks| self.locate(landmarks)).unwrap_or_else(|| {
            let square = Rect::centred_square(width, height);
            Similarity::onto_square(square.x, square.y, square.width)
        })
    }
}

/// A similarity transform: rotation, uniform scale and shift, never a reflection.
///
/// `(x, y) ↦ (a·x − b·y + tx, b·x + a·y + ty)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similarity {
    /// Scale times cosine of the rotation.
    pub a: f32,
    /// Scale times sine of the rotation (clockwise in the picture, whose y axis points down).
    pub b: f32,
    /// Shift to the right.
    pub tx: f32,
    /// Shift downwards.
    pub ty: f32,
}

impl Similarity {
    /// Scale, then rotation by `radians`, then shift.
    pub fn new(scale: f32, radians: f32, tx: f32, ty: f32) -> Self {
        Self { a: scale * radians.cos(), b: scale * radians.sin(), tx, ty }
    }

    /// The transform from the unit square onto an upright square of the picture.
    pub const fn onto_square(x: f32, y: f32, side: f32) -> Self {
        Self { a: side, b: 0.0, tx: x, ty: y }
    }

    /// Makes everything smaller or larger about the origin.
    pub const fn scaling(factor: f32) -> Self {
        Self { a: factor, b: 0.0, tx: 0.0, ty: 0.0 }
    }

    /// The transform from the unit square onto the smallest centred square that covers a whole picture of this size.
    pub fn around(width: u32, height: u32) -> Self {
        let side = width.max(height) as f32;
        Self::onto_square((width as f32 - side) / 2.0, (height as f32 - side) / 2.0, side)
    }

    /// Applies the transform to a point.
    pub fn apply(&self, p: Point) -> Point {
        Point::new(self.a * p.x - self.b * p.y + self.tx, self.b * p.x + self.a * p.y + self.ty)
    }

    /// The transform that applies `self` first, then `next`.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let shift = next.apply(Point::new(self.tx, self.ty));
        Self { a: next.a * self.a - next.b * self.b, b: next.b * self.a + next.a * self.b, tx: shift.x, ty: shift.y }
    }

    /// Factor by which lengths grow.
    pub fn scale(&self) -> f32 {
        self.a.hypot(self.b)
    }

    /// The transform back; `None` when the scale is zero or not finite.
    pub fn inverse(&self) -> Option<Self> {
        let squared = self.a * self.a + self.b * self.b;
        if !squared.is_normal() {
            return None;
        }
        let (a, b) = (self.a / squared, -self.b / squared);
        Some(Self { a, b, tx: -(a * self.tx - b * self.ty), ty: -(b * self.tx + a * self.ty) })
    }

    /// Least squares fit to pairs `(from, to)`, without reflection; the closed form of
    /// Umeyama (1991), "Least-squares estimation of transformation parameters between two point
    /// patterns", in two dimensions. `None` when the points coincide or a coordinate is not finite.
    pub fn fit(pairs: &[(Point, Point)]) -> Option<Self> {
        let n = pairs.len() as f32;
        let mean = |pick: fn(&(Point, Point)) -> Point| {
            let (x, y) = pairs.iter().map(pick).fold((0.0, 0.0), |(x, y), p| (x + p.x, y + p.y));
            Point::new(x / n, y / n)
        };
        let (from, to) = (mean(|pair| pair.0), mean(|pair| pair.1));
        let (mut dot, mut cross, mut variance) = (0.0, 0.0, 0.0);
        for (p, q) in pairs {
            let (px, py) = (p.x - from.x, p.y - from.y);
            let (qx, qy) = (q.x - to.x, q.y - to.y);
            dot += px * qx + py * qy;
            cross += px * qy - py * qx;
            variance += px * px + py * py;
        }
        let (a, b) = (dot / variance, cross / variance);
        let fit = Self { a, b, tx: to.x - (a * from.x - b * from.y), ty: to.y - (b * from.x + a * from.y) };
        let usable = fit.scale().is_normal() && fit.tx.is_finite() && fit.ty.is_finite();
        usable.then_some(fit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn similarity() -> impl Strategy<Value = Similarity> {
        (0.1f32..20.0, -3.1f32..3.1, -500f32..500.0, -500f32..500.0)
            .prop_map(|(scale, radians, tx, ty)| Similarity::new(scale, radians, tx, ty))
    }

    fn point() -> impl Strategy<Value = Point> {
        (-100f32..100.0, -100f32..100.0).prop_map(|(x, y)| Point::new(x, y))
    }

    proptest! {
        #[test]
        fn inverse_undoes(transform in similarity(), p in point()) {
            let back = transform.inverse().expect("scale is positive").apply(transform.apply(p));
            prop_assert!(back.distance(p) < 0.05, "{p:?} came back as {back:?}");
        }

        #[test]
        fn composition_is_application_in_order(first in similarity(), second in similarity(), p in point()) {
            let (composed, in_order) = (first.then(&second).apply(p), second.apply(first.apply(p)));
            prop_assert!(composed.distance(in_order) < 0.5, "{composed:?} is not {in_order:?}");
        }

        #[test]
        fn fit_recovers_the_transform_of_a_template(transform in similarity()) {
            let template = Template::FACE;
            let landmarks = Landmarks {
                right_eye: transform.apply(template.right_eye),
                left_eye: transform.apply(template.left_eye),
                nose: Point::new(0.0, 0.0),
                mouth: transform.apply(template.mouth),
            };
            let found = template.locate(&landmarks).expect("three distinct points");
            for corner in [Point::new(0.0, 0.0), Point::new(1.0, 0.0), Point::new(0.0, 1.0)] {
                prop_assert!(found.apply(corner).distance(transform.apply(corner)) < 0.01);
            }
        }

        #[test]
        fn fit_is_not_worse_than_its_neighbours(
            pairs in prop::collection::vec((point(), point()), 3),
            nudge in (-0.01f32..0.01, -0.01f32..0.01, -0.1f32..0.1, -0.1f32..0.1),
        ) {
            let error = |t: &Similarity| pairs.iter().map(|(p, q)| t.apply(*p).distance(*q).powi(2)).sum::<f32>();
            if let Some(best) = Similarity::fit(&pairs) {
                let other = Similarity { a: best.a + nudge.0, b: best.b + nudge.1, tx: best.tx + nudge.2, ty: best.ty + nudge.3 };
                prop_assert!(error(&best) <= error(&other) * 1.001 + 0.1);
            }
        }
    }

    #[test]
    fn points_that_coincide_have_no_fit() {
        let p = Point::new(3.0, 4.0);
        let landmarks = Landmarks { right_eye: p, left_eye: p, nose: p, mouth: p };
        assert_eq!(Template::FACE.locate(&landmarks), None);
        let broken = Landmarks { right_eye: Point::new(f32::NAN, 0.0), ..landmarks };
        assert_eq!(Template::FACE.locate(&broken), None);
        let centred = Similarity::onto_square(50.0, 0.0, 100.0);
        for nowhere in [None, Some(&landmarks), Some(&broken)] {
            assert_eq!(Template::FACE.place(nowhere, 200, 100), centred);
        }
    }

    #[test]
    fn the_centred_square_has_the_shorter_edge() {
        let square = Rect::centred_square(200, 101);
        assert_eq!((square.x, square.y, square.width, square.height), (49.0, 0.0, 101.0, 101.0));
    }

    #[test]
    fn points_are_pairs_in_json() {
        let json = serde_json::to_string(&Point::new(1.5, 2.0)).expect("a point is plain data");
        assert_eq!(json, "[1.5,2.0]");
    }
}
