//! Drawing pictures onto a larger one, together with their faces.

use facewise_core::crop;
use facewise_core::geometry::{Point, Rect, Similarity};
use facewise_core::picture::RgbImage;
use facewise_evaluation::detection::{Face, Truth};

use super::data::Photograph;

/// A face of which less than this share is visible is none.
const HIDDEN: f32 = 0.25;

/// A face of which less than this share is visible is neither asked for nor denied.
const HALF_HIDDEN: f32 = 0.6;

/// A square of whole pixels of a canvas; it may reach beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Square {
    /// Left column.
    pub x: i32,
    /// Upper row.
    pub y: i32,
    /// Columns and rows.
    pub side: u32,
}

impl Square {
    /// All of a canvas of this side.
    pub fn whole(side: u32) -> Self {
        Self { x: 0, y: 0, side }
    }

    /// The square as a box.
    pub fn rect(self) -> Rect {
        Rect { x: self.x as f32, y: self.y as f32, width: self.side as f32, height: self.side as f32 }
    }

    /// The transform from the unit square onto it.
    pub fn from_unit(self) -> Similarity {
        Similarity::onto_square(self.x as f32, self.y as f32, self.side as f32)
    }
}

/// A square picture under construction, with what is known of its faces.
#[derive(Clone, Debug)]
pub struct Canvas {
    /// The pixels.
    pub picture: RgbImage,
    /// The faces drawn.
    pub truth: Truth,
    /// A face whose box has less than this side is ignored.
    pub too_small: f32,
}

impl Canvas {
    /// A canvas of one colour.
    pub fn new(size: u32, colour: image::Rgb<u8>, too_small: f32) -> Self {
        Self { picture: RgbImage::from_pixel(size, size, colour), truth: Truth::default(), too_small }
    }

    /// Columns and rows.
    pub fn size(&self) -> u32 {
        self.picture.width()
    }

    /// Draws, within `square`, the part of a photograph that `place` puts there (from the unit square to the photograph), with its faces.
    /// What lies outside the photograph leaves the canvas as it is; over `feather` pixels of the canvas its border fades in.
    pub fn show(&mut self, photograph: &Photograph, square: Square, place: &Similarity, feather: f32) {
        self.draw(&photograph.picture, square, place, feather);
        let Some(back) = place.inverse() else { return };
        let to_canvas = back.then(&square.from_unit());
        let visible = intersection(&square.rect(), &Square::whole(self.size()).rect());
        for face in &photograph.truth.faces {
            self.add(carried(face, &to_canvas), &visible);
        }
        for region in &photograph.truth.ignored {
            let region = intersection(&carried_area(region, &to_canvas), &visible);
            if region.width > 0.0 && region.height > 0.0 {
                self.truth.ignored.push(region);
            }
        }
    }

    /// Draws as [`Canvas::show`] does, without faces.
    pub fn draw(&mut self, picture: &RgbImage, square: Square, place: &Similarity, feather: f32) {
        let patch = crop::crop(picture, place, square.side);
        let (width, height) = (picture.width() as f32, picture.height() as f32);
        let size = self.size() as i32;
        let inside = |low: i32| low.clamp(0, size) as u32..(low + square.side as i32).clamp(0, size) as u32;
        // Canvas pixels a picture pixel covers.
        let pixels = square.side as f32 / place.scale();
        for y in inside(square.y) {
            let v = y.wrapping_add_signed(-square.y);
            for x in inside(square.x) {
                let u = x.wrapping_add_signed(-square.x);
                let share = |position: u32| (position as f32 + 0.5) / square.side as f32;
                let at = place.apply(Point::new(share(u), share(v)));
                let margin = at.x.min(width - at.x).min(at.y).min(height - at.y);
                if margin < 0.0 {
                    continue;
                }
                let new = *patch.get_pixel(u, v);
                let pixel = self.picture.get_pixel_mut(x, y);
                let weight = if feather > 0.0 { (margin * pixels / feather).min(1.0) } else { 1.0 };
                if weight >= 1.0 {
                    *pixel = new;
                } else {
                    for (old, new) in pixel.0.iter_mut().zip(new.0) {
                        *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * weight + 0.5) as u8;
                    }
                }
            }
        }
    }

    /// Notes a face of which only the part in `visible` can be seen.
    fn add(&mut self, face: Face, visible: &Rect) {
        let seen = intersection(&face.area, visible);
        let share = seen.width.max(0.0) * seen.height.max(0.0) / (face.area.width * face.area.height);
        if share < HIDDEN || seen.width <= 0.0 {
            return;
        }
        if share < HALF_HIDDEN || face.area.width.min(face.area.height) < self.too_small {
            self.truth.ignored.push(seen);
        } else {
            self.truth.faces.push(face);
        }
    }

    /// Turns the canvas into its mirror image; the person's right eye becomes the left one.
    pub fn mirror(&mut self) {
        image::imageops::flip_horizontal_in_place(&mut self.picture);
        let size = self.size() as f32;
        let area = |area: &mut Rect| area.x = size - area.x - area.width;
        let point = |point: Point| Point::new(size - point.x, point.y);
        self.truth.ignored.iter_mut().for_each(area);
        for face in &mut self.truth.faces {
            area(&mut face.area);
            let landmarks = &mut face.landmarks;
            (landmarks.right_eye, landmarks.left_eye) = (point(landmarks.left_eye), point(landmarks.right_eye));
            (landmarks.nose, landmarks.mouth) = (point(landmarks.nose), point(landmarks.mouth));
        }
    }
}

/// A face under a similarity transform. Its box stays upright and keeps its centre: boxes are nearly square and say how large a face is.
pub fn carried(face: &Face, transform: &Similarity) -> Face {
    Face { area: carried_area(&face.area, transform), landmarks: face.landmarks.map(transform) }
}

fn carried_area(area: &Rect, transform: &Similarity) -> Rect {
    let centre = transform.apply(Point::new(area.x + area.width / 2.0, area.y + area.height / 2.0));
    let (width, height) = (area.width * transform.scale(), area.height * transform.scale());
    Rect { x: centre.x - width / 2.0, y: centre.y - height / 2.0, width, height }
}

/// What two boxes share; width or height are not positive when they do not meet.
pub fn intersection(a: &Rect, b: &Rect) -> Rect {
    let (x, y) = (a.x.max(b.x), a.y.max(b.y));
    let (right, bottom) = ((a.x + a.width).min(b.x + b.width), (a.y + a.height).min(b.y + b.height));
    Rect { x, y, width: right - x, height: bottom - y }
}

/// The transform from the unit square of `square` to a picture, so that the picture's point `anchor` comes to lie on the canvas's point
/// `at`, turned by `radians` and `scale` canvas pixels to a picture pixel.
pub fn placed(square: Square, anchor: Point, at: Point, scale: f32, radians: f32) -> Similarity {
    let from_at = Similarity { a: square.side as f32, b: 0.0, tx: square.x as f32 - at.x, ty: square.y as f32 - at.y };
    from_at.then(&Similarity::new(1.0 / scale, radians, anchor.x, anchor.y))
}

#[cfg(test)]
mod tests {
    use facewise_core::geometry::Landmarks;
    use image::Rgb;

    use super::*;

    const GRAY: Rgb<u8> = Rgb([128; 3]);

    /// A picture whose colours tell the place, with a face of side 20 at (30, 20), eyes and so on in its corners.
    fn photograph() -> Photograph {
        let area = Rect { x: 30.0, y: 20.0, width: 20.0, height: 20.0 };
        let landmarks = Landmarks {
            right_eye: Point::new(35.0, 25.0),
            left_eye: Point::new(45.0, 25.0),
            nose: Point::new(40.0, 30.0),
            mouth: Point::new(40.0, 36.0),
        };
        let faces = vec![Face { area, landmarks }];
        let picture = RgbImage::from_fn(80, 60, |x, y| Rgb([3 * x as u8, 4 * y as u8, 9]));
        Photograph { picture, truth: Truth { faces, ignored: Vec::new() } }
    }

    /// The place in the photograph that a colour of it comes from.
    fn source(pixel: Rgb<u8>) -> Point {
        Point::new(f32::from(pixel[0]) / 3.0 + 0.5, f32::from(pixel[1]) / 4.0 + 0.5)
    }

    #[test]
    fn keypoints_follow_the_pixels() {
        for mirrored in [false, true] {
            let mut canvas = Canvas::new(96, GRAY, 5.0);
            let square = Square { x: 10, y: 20, side: 70 };
            let photograph = photograph();
            canvas.show(
                &photograph,
                square,
                &placed(square, Point::new(40.0, 30.0), Point::new(50.0, 55.0), 1.5, 0.4),
                0.0,
            );
            if mirrored {
                canvas.mirror();
            }
            let (face, original) = (canvas.truth.faces[0], photograph.truth.faces[0].landmarks);
            assert!((face.area.width - 30.0).abs() < 1e-3);
            let eyes = if mirrored {
                [original.left_eye, original.right_eye]
            } else {
                [original.right_eye, original.left_eye]
            };
            for (found, expected) in [
                (face.landmarks.right_eye, eyes[0]),
                (face.landmarks.left_eye, eyes[1]),
                (face.landmarks.nose, original.nose),
                (face.landmarks.mouth, original.mouth),
            ] {
                let pixel = *canvas.picture.get_pixel(found.x as u32, found.y as u32);
                assert!(source(pixel).distance(expected) < 1.2, "{pixel:?} is not from {expected:?}");
            }
        }
    }

    #[test]
    fn what_is_outside_the_photograph_or_the_square_stays() {
        let mut canvas = Canvas::new(64, GRAY, 5.0);
        let square = Square { x: 8, y: 8, side: 32 };
        canvas.show(
            &photograph(),
            square,
            &placed(square, Point::new(0.0, 0.0), Point::new(24.0, 24.0), 1.0, 0.0),
            0.0,
        );
        assert_eq!(*canvas.picture.get_pixel(23, 30), GRAY, "left of the photograph");
        assert_ne!(*canvas.picture.get_pixel(30, 30), GRAY);
        assert_eq!(*canvas.picture.get_pixel(45, 30), GRAY, "right of the square");
    }

    #[test]
    fn a_border_fades_in() {
        let white = RgbImage::from_pixel(20, 20, Rgb([255; 3]));
        let mut canvas = Canvas::new(20, Rgb([0; 3]), 5.0);
        canvas.draw(&white, Square::whole(20), &Similarity::onto_square(0.0, 0.0, 20.0), 5.0);
        let row: Vec<u8> = (0..6).map(|x| canvas.picture.get_pixel(x, 10)[0]).collect();
        assert_eq!(row, [26, 77, 128, 179, 230, 255]);
    }

    #[test]
    fn faces_cut_off_are_ignored_or_dropped() {
        let show = |left: f32, too_small: f32| {
            let mut canvas = Canvas::new(100, GRAY, too_small);
            let square = Square::whole(100);
            canvas.show(
                &photograph(),
                square,
                &placed(square, Point::new(30.0, 20.0), Point::new(left, 40.0), 1.0, 0.0),
                0.0,
            );
            (canvas.truth.faces.len(), canvas.truth.ignored.len())
        };
        assert_eq!(show(0.0, 5.0), (1, 0));
        assert_eq!(show(-7.0, 5.0), (1, 0), "13 of 20 columns are visible");
        assert_eq!(show(-9.0, 5.0), (0, 1), "11 of 20");
        assert_eq!(show(-16.0, 5.0), (0, 0), "4 of 20");
        assert_eq!(show(0.0, 21.0), (0, 1), "too small");
    }
}
