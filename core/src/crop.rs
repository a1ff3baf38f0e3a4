//! Cutting the canonical square of a face out of a picture, and turning it into a tensor.
//! Training, evaluation and serving all come through here.

use std::ops::Range;

use image::{Rgb, RgbImage};

use crate::geometry::{Point, Similarity};

/// Colour of what lies outside the picture: the middle gray, about 0 after normalisation.
pub const PADDING: Rgb<u8> = Rgb([128; 3]);

/// Most pixels across a block that is averaged: so many bytes can be added in 16 bits.
const LARGEST_BLOCK: u32 = 256;

/// Samples the square that `unit_to_picture` places in the picture at `size` × `size` pixels.
///
/// Where an output pixel covers two or more picture pixels across, the region is first averaged in whole blocks (a box
/// filter against aliasing); the rest is bilinear. What lies outside the picture is [`PADDING`].
pub fn crop(picture: &RgbImage, unit_to_picture: &Similarity, size: u32) -> RgbImage {
    let shrink = (unit_to_picture.scale() / size as f32).floor();
    if shrink < 2.0 {
        return bilinear(picture, unit_to_picture, size);
    }
    let Some(region) = Region::under(picture, unit_to_picture) else {
        return RgbImage::from_pixel(size, size, PADDING);
    };
    let block = (shrink as u32).min(region.width).min(region.height).clamp(1, LARGEST_BLOCK);
    let reduced = region.averaged(picture, block);
    let into_reduced = Similarity {
        a: 1.0 / block as f32,
        b: 0.0,
        tx: -(region.x as f32) / block as f32,
        ty: -(region.y as f32) / block as f32,
    };
    bilinear(&reduced, &unit_to_picture.then(&into_reduced), size)
}

/// Writes a crop into `tensor` as planes R, G, B of `(value / 255 − mean) / sd`.
///
/// # Panics
/// When `tensor` does not hold exactly 3 × width × height numbers: the caller sized it for this crop.
pub fn normalise(crop: &RgbImage, mean: [f32; 3], sd: [f32; 3], tensor: &mut [f32]) {
    let area = crop.as_raw().len() / 3;
    assert_eq!(tensor.len(), 3 * area, "a tensor of three planes of the crop's area");
    for (channel, plane) in tensor.chunks_exact_mut(area).enumerate() {
        let factor = 1.0 / (255.0 * sd[channel]);
        let offset = -mean[channel] / sd[channel];
        for (out, pixel) in plane.iter_mut().zip(crop.as_raw().chunks_exact(3)) {
            // Not `mul_add`: where the processor is not known to have it, each is a call of a function.
            *out = f32::from(pixel[channel]) * factor + offset;
        }
    }
}

/// A part of a picture in whole pixels.
struct Region {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Region {
    /// The part of the picture under the square; `None` when they do not meet.
    fn under(picture: &RgbImage, unit_to_picture: &Similarity) -> Option<Self> {
        let corners =
            [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)].map(|(x, y)| unit_to_picture.apply(Point::new(x, y)));
        let span = |values: [f32; 4], limit: u32| {
            let low = values.iter().copied().fold(f32::INFINITY, f32::min).floor().max(0.0);
            let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max).ceil().min(limit as f32);
            (low < high).then_some((low as u32, (high - low) as u32))
        };
        let (x, width) = span(corners.map(|p| p.x), picture.width())?;
        let (y, height) = span(corners.map(|p| p.y), picture.height())?;
        Some(Self { x, y, width, height })
    }

    /// Averages blocks of `block` × `block` pixels, at most [`LARGEST_BLOCK`]; blocks at the far edges may be smaller.
    fn averaged(&self, picture: &RgbImage, block: u32) -> RgbImage {
        let (width, height) = (self.width.div_ceil(block), self.height.div_ceil(block));
        let stride = picture.width() as usize * 3;
        let mut out = RgbImage::new(width, height);
        let mut columns = vec![0u16; self.width as usize * 3];
        for (row, line) in out.as_mut().chunks_exact_mut(width as usize * 3).enumerate() {
            let top = row as u32 * block;
            let rows = block.min(self.height - top);
            // Down the columns first: of a large picture nearly all the work, and whole rows are added many values at a time.
            columns.fill(0);
            for y in top..top + rows {
                let start = (self.y + y) as usize * stride + self.x as usize * 3;
                for (column, value) in columns.iter_mut().zip(&picture.as_raw()[start..]) {
                    *column += u16::from(*value);
                }
            }
            // Blocks of a length that the compiler knows are added without a loop.
            match block {
                2 => average::<2>(&columns, rows, line),
                3 => average::<3>(&columns, rows, line),
                4 => average::<4>(&columns, rows, line),
                5 => average::<5>(&columns, rows, line),
                6 => average::<6>(&columns, rows, line),
                7 => average::<7>(&columns, rows, line),
                8 => average::<8>(&columns, rows, line),
                _ => average_any(&columns, block as usize, rows, line),
            }
        }
        out
    }
}

/// Averages sums of so many rows over `BLOCK` columns each.
fn average<const BLOCK: usize>(columns: &[u16], rows: u32, line: &mut [u8]) {
    let whole = columns.len() / (3 * BLOCK);
    let share = 1.0 / (rows as usize * BLOCK) as f32;
    let (inner, edge) = line.split_at_mut(whole * 3);
    for (pixel, columns) in inner.chunks_exact_mut(3).zip(columns.chunks_exact(3 * BLOCK)) {
        let mut totals = [0; 3];
        for column in 0..BLOCK {
            for (channel, total) in totals.iter_mut().enumerate() {
                *total += u32::from(columns[3 * column + channel]);
            }
        }
        for (value, total) in pixel.iter_mut().zip(totals) {
            *value = (total as f32 * share + 0.5) as u8;
        }
    }
    average_any(&columns[whole * 3 * BLOCK..], BLOCK, rows, edge);
}

/// Averages sums of so many rows over `block` columns each, and over what is left at the end.
fn average_any(columns: &[u16], block: usize, rows: u32, line: &mut [u8]) {
    for (pixel, columns) in line.chunks_exact_mut(3).zip(columns.chunks(block * 3)) {
        let share = 3.0 / (rows as usize * columns.len()) as f32;
        for (channel, value) in pixel.iter_mut().enumerate() {
            let total: u32 = columns.iter().skip(channel).step_by(3).map(|column| u32::from(*column)).sum();
            *value = (total as f32 * share + 0.5) as u8;
        }
    }
}

/// Bilinear sampling at the centres of the output's pixels; inside the picture the edge pixels are continued.
fn bilinear(picture: &RgbImage, unit_to_picture: &Similarity, size: u32) -> RgbImage {
    let across = Axis { length: picture.width(), step: 3 };
    let down = Axis { length: picture.height(), step: picture.width() as usize * 3 };
    let centres: Vec<f32> = (0..size).map(|position| (position as f32 + 0.5) / size as f32).collect();
    let mut out = RgbImage::from_pixel(size, size, PADDING);
    let rows = out.as_mut().chunks_exact_mut(size as usize * 3).zip(&centres);
    if unit_to_picture.b == 0.0 {
        // Upright, as every picture before a detector is: the columns are the same in each row, and two rows are blended as
        // wholes before anything is taken from them.
        let columns: Vec<Option<Between>> =
            centres.iter().map(|x| across.between(unit_to_picture.apply(Point::new(*x, 0.0)).x)).collect();
        let Some(span) = span(&columns) else { return out };
        let mut blended = vec![0.0; span.len()];
        for (line, y) in rows {
            let Some(row) = down.between(unit_to_picture.apply(Point::new(0.0, *y)).y) else { continue };
            let of = |start: usize| &picture.as_raw()[start + span.start..start + span.end];
            for (value, (upper, lower)) in blended.iter_mut().zip(of(row.first).iter().zip(of(row.second))) {
                let (upper, lower) = (f32::from(*upper), f32::from(*lower));
                *value = upper + (lower - upper) * row.share;
            }
            for (pixel, column) in line.chunks_exact_mut(3).zip(&columns) {
                let Some(column) = column else { continue };
                let at = |start: usize| &blended[start - span.start..][..3];
                let (left, right) = (at(column.first), at(column.second));
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value = (left[channel] + (right[channel] - left[channel]) * column.share + 0.5) as u8;
                }
            }
        }
        return out;
    }
    for (line, y) in rows {
        for (pixel, x) in line.chunks_exact_mut(3).zip(&centres) {
            let at = unit_to_picture.apply(Point::new(*x, *y));
            if let (Some(column), Some(row)) = (across.between(at.x), down.between(at.y)) {
                blend(picture.as_raw(), &column, &row, pixel);
            }
        }
    }
    out
}

/// The bytes of a row that the columns take something from.
fn span(columns: &[Option<Between>]) -> Option<Range<usize>> {
    let ends = columns.iter().flatten().flat_map(|column| [column.first, column.second]);
    Some(ends.clone().min()?..ends.max()? + 3)
}

/// One direction of a picture.
struct Axis {
    /// Pixels.
    length: u32,
    /// Bytes from one pixel to the next.
    step: usize,
}

/// A place between two neighbours.
struct Between {
    /// Where the bytes of the two begin.
    first: usize,
    second: usize,
    /// Weight of the second.
    share: f32,
}

impl Axis {
    /// The neighbours of a place; `None` outside the picture.
    fn between(&self, at: f32) -> Option<Between> {
        if !(0.0..=self.length as f32).contains(&at) {
            return None;
        }
        let (place, last) = ((at - 0.5).max(0.0), self.length as usize - 1);
        let first = (place as usize).min(last);
        let second = (first + 1).min(last);
        let share = (place - first as f32).min(1.0);
        Some(Between { first: first * self.step, second: second * self.step, share })
    }
}

fn blend(raw: &[u8], column: &Between, row: &Between, pixel: &mut [u8]) {
    let at = |start: usize| &raw[start..start + 3];
    let (a, b) = (at(row.first + column.first), at(row.first + column.second));
    let (c, d) = (at(row.second + column.first), at(row.second + column.second));
    for (channel, value) in pixel.iter_mut().enumerate() {
        let [a, b, c, d] = [a, b, c, d].map(|corner| f32::from(corner[channel]));
        let (upper, lower) = (a + (b - a) * column.share, c + (d - c) * column.share);
        *value = (upper + (lower - upper) * row.share + 0.5) as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Red grows to the right, green downwards, so that a sampled colour tells its place.
    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 7]))
    }

    #[test]
    fn an_upright_square_of_equal_size_is_copied() {
        let picture = ramp(80, 60);
        let square = crop(&picture, &Similarity::onto_square(10.0, 5.0, 32.0), 32);
        for (x, y, pixel) in square.enumerate_pixels() {
            assert_eq!(pixel, picture.get_pixel(x + 10, y + 5));
        }
    }

    #[test]
    fn outside_the_picture_is_padding() {
        let square = crop(&ramp(20, 20), &Similarity::onto_square(10.0, 10.0, 20.0), 20);
        assert_eq!(*square.get_pixel(0, 0), Rgb([10, 10, 7]));
        assert_eq!(*square.get_pixel(15, 3), PADDING);
        assert_eq!(*square.get_pixel(3, 15), PADDING);
        let beyond = crop(&ramp(20, 20), &Similarity::onto_square(500.0, 0.0, 300.0), 20);
        assert!(beyond.pixels().all(|pixel| *pixel == PADDING));
    }

    #[test]
    fn shrinking_averages_instead_of_skipping() {
        let checkerboard = RgbImage::from_fn(256, 256, |x, y| Rgb([255 * ((x + y) % 2) as u8; 3]));
        let square = crop(&checkerboard, &Similarity::onto_square(0.0, 0.0, 256.0), 32);
        assert!(square.pixels().all(|pixel| (127..=128).contains(&pixel[0])));
    }

    #[test]
    fn normalisation_writes_planes() {
        let picture = RgbImage::from_pixel(2, 1, Rgb([255, 0, 51]));
        let mut tensor = [f32::NAN; 6];
        normalise(&picture, [0.5, 0.5, 0.2], [0.5, 0.25, 1.0], &mut tensor);
        for (value, expected) in tensor.iter().zip([1.0, 1.0, -2.0, -2.0, 0.0, 0.0]) {
            assert!((value - expected).abs() < 1e-6, "{tensor:?}");
        }
    }

    proptest! {
        /// A linear ramp stays a linear ramp under any similarity, shrinking or growing.
        #[test]
        fn a_sampled_colour_tells_the_place_it_came_from(
            scale in 20f32..250.0, radians in -3.1f32..3.1, x in 40f32..200.0, y in 40f32..200.0, column in 0u32..48, row in 0u32..48,
        ) {
            let picture = ramp(250, 250);
            let transform = Similarity::new(scale, radians, x, y);
            let place = transform.apply(Point::new((column as f32 + 0.5) / 48.0, (row as f32 + 0.5) / 48.0));
            let pixel = *crop(&picture, &transform, 48).get_pixel(column, row);
            let margin = 6.0;
            if (margin..250.0 - margin).contains(&place.x) && (margin..250.0 - margin).contains(&place.y) {
                prop_assert!((f32::from(pixel[0]) - (place.x - 0.5)).abs() <= 1.6, "{pixel:?} at {place:?}");
                prop_assert!((f32::from(pixel[1]) - (place.y - 0.5)).abs() <= 1.6, "{pixel:?} at {place:?}");
            } else if !(-margin..250.0 + margin).contains(&place.x) || !(-margin..250.0 + margin).contains(&place.y) {
                prop_assert_eq!(pixel, PADDING);
            }
        }

        #[test]
        fn any_transform_and_any_picture_give_a_crop(
            width in 1u32..40, height in 1u32..40, a in prop::num::f32::ANY, b in prop::num::f32::ANY, tx in prop::num::f32::ANY, ty in prop::num::f32::ANY,
        ) {
            let square = crop(&ramp(width, height), &Similarity { a, b, tx, ty }, 8);
            prop_assert_eq!(square.dimensions(), (8, 8));
        }
    }
}
