//! Drawn faces for tests.

use facewise_core::geometry::{Landmarks, Point, Rect};
use facewise_core::picture::RgbImage;
use facewise_evaluation::detection::{Face, Truth};
use image::Rgb;

use super::data::{Album, Photograph};

/// A face with this box: eyes, nose and mouth at fixed shares of it.
pub(super) fn face(x: f32, y: f32, side: f32) -> Face {
    let at = |dx: f32, dy: f32| Point::new(x + dx * side, y + dy * side);
    Face {
        area: Rect { x, y, width: side, height: side },
        landmarks: Landmarks {
            right_eye: at(0.3, 0.3),
            left_eye: at(0.7, 0.3),
            nose: at(0.5, 0.5),
            mouth: at(0.5, 0.75),
        },
    }
}

/// A gray picture with these faces drawn as bright discs with dark eyes and a red mouth.
pub(super) fn drawn(width: u32, height: u32, faces: Vec<Face>) -> Photograph {
    let mut picture = RgbImage::from_fn(width, height, |x, y| Rgb([(40 + (x * 7 + y * 3) % 30) as u8; 3]));
    for face in &faces {
        let Rect { x, y, width: side, .. } = face.area;
        disc(&mut picture, Point::new(x + side / 2.0, y + side / 2.0), side / 2.0, Rgb([220, 180, 150]));
        disc(&mut picture, face.landmarks.right_eye, side / 9.0, Rgb([20; 3]));
        disc(&mut picture, face.landmarks.left_eye, side / 9.0, Rgb([20; 3]));
        disc(&mut picture, face.landmarks.mouth, side / 7.0, Rgb([200, 30, 30]));
    }
    Photograph { picture, truth: Truth { faces, ignored: Vec::new() } }
}

/// Two photographs and a crop.
pub(super) fn album() -> Album {
    Album {
        photographs: vec![
            drawn(120, 160, vec![face(30.0, 20.0, 50.0)]),
            drawn(160, 100, vec![face(20.0, 20.0, 36.0), face(100.0, 30.0, 40.0)]),
        ],
        crops: vec![drawn(48, 48, vec![face(4.0, 4.0, 40.0)])],
    }
}

fn disc(picture: &mut RgbImage, centre: Point, radius: f32, colour: Rgb<u8>) {
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        if Point::new(x as f32 + 0.5, y as f32 + 0.5).distance(centre) <= radius {
            *pixel = colour;
        }
    }
}
