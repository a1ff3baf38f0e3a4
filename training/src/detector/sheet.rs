//! A sheet of scenes with their labels drawn in: what a detector learns from, to be looked at.

use std::sync::Arc;

use facewise_core::geometry::{Point, Rect};
use facewise_core::picture::RgbImage;
use facewise_evaluation::detection::Truth;
use image::{Rgb, imageops};

use super::config::Config;
use super::data::Album;
use super::loader::Epoch;

const FACE: Rgb<u8> = Rgb([0, 255, 0]);
const IGNORED: Rgb<u8> = Rgb([255, 0, 0]);
/// Right eye, left eye, nose, mouth.
const KEYPOINTS: [Rgb<u8>; 4] = [Rgb([255, 255, 0]), Rgb([0, 255, 255]), Rgb([255, 0, 255]), Rgb([255, 128, 0])];

/// Scenes across a sheet.
const ACROSS: usize = 6;

/// The first scenes of a training, six to a row: boxes green, ignored regions red.
pub fn scenes(album: Album, config: &Config, count: usize) -> RgbImage {
    let size = config.stages[0].size;
    let epoch = Epoch { number: 0, size, skip: 0 };
    let batches = epoch.batches(&Arc::new(album), config).take(count.div_ceil(config.batch));
    let mut sheet = RgbImage::new(size * ACROSS as u32, size * count.div_ceil(ACROSS) as u32);
    let bytes = 3 * (size * size) as usize;
    let mut position = 0;
    for batch in batches {
        for (pixels, truth) in batch.pixels.chunks_exact(bytes).zip(&batch.labels).take(count - position) {
            let mut scene = RgbImage::from_raw(size, size, pixels.to_vec()).expect("the bytes of a scene");
            mark(&mut scene, truth);
            let (column, row) = (position % ACROSS, position / ACROSS);
            imageops::replace(&mut sheet, &scene, (column as u32 * size).into(), (row as u32 * size).into());
            position += 1;
        }
    }
    sheet
}

/// Draws what is known of a picture into it.
fn mark(picture: &mut RgbImage, truth: &Truth) {
    for region in &truth.ignored {
        outline(picture, region, IGNORED);
    }
    for face in &truth.faces {
        outline(picture, &face.area, FACE);
        let marks = face.landmarks;
        for (point, colour) in [marks.right_eye, marks.left_eye, marks.nose, marks.mouth].into_iter().zip(KEYPOINTS) {
            for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                dot(picture, point.x as i32 + dx, point.y as i32 + dy, colour);
            }
        }
    }
}

fn outline(picture: &mut RgbImage, area: &Rect, colour: Rgb<u8>) {
    let (left, top) = (area.x as i32, area.y as i32);
    let end = Point::new(area.x + area.width, area.y + area.height);
    let (right, bottom) = (end.x as i32, end.y as i32);
    for x in left..=right {
        dot(picture, x, top, colour);
        dot(picture, x, bottom, colour);
    }
    for y in top..=bottom {
        dot(picture, left, y, colour);
        dot(picture, right, y, colour);
    }
}

fn dot(picture: &mut RgbImage, x: i32, y: i32, colour: Rgb<u8>) {
    if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
        && x < picture.width()
        && y < picture.height()
    {
        picture.put_pixel(x, y, colour);
    }
}
