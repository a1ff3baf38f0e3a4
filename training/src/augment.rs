//! Random changes of a sample on its way into a batch. The crop itself comes from `facewise-core`, the same that serves.

use facewise_core::crop::{self, PADDING};
use facewise_core::geometry::Similarity;
use facewise_core::picture::RgbImage;
use rand::Rng;

use crate::config::AugmentationConfig;
use crate::sample::Sample;

/// The crop without any change: by keypoints where there are some, else the centred square.
pub fn plain(sample: &Sample, size: u32) -> RgbImage {
    crop::crop(&sample.picture, &sample.place(), size)
}

/// A crop of `size` × `size` pixels, varied at random in place, light and detail.
pub fn augmented(sample: &Sample, size: u32, config: &AugmentationConfig, random: &mut impl Rng) -> RgbImage {
    let by_square = random.random::<f32>() < config.square;
    let place = if by_square && sample.is_crop() { sample.square() } else { sample.place() };
    let place = jitter(config, random).then(&place);
    let mut picture = if random.random::<f32>() < config.blur {
        let coarse = ((size as f32 * random.random_range(0.3..0.8)) as u32).max(8);
        enlarged(&crop::crop(&sample.picture, &place, coarse), size)
    } else {
        crop::crop(&sample.picture, &place, size)
    };
    if random.random() {
        image::imageops::flip_horizontal_in_place(&mut picture);
    }
    recolour(&mut picture, config.colour, config.gray, random);
    if random.random::<f32>() < config.erase {
        erase(&mut picture, random);
    }
    picture
}

/// A square picture resampled to another size.
pub fn enlarged(square: &RgbImage, size: u32) -> RgbImage {
    crop::crop(square, &Similarity::onto_square(0.0, 0.0, square.width() as f32), size)
}

/// A small rotation, scaling and shift of the unit square about its centre.
fn jitter(config: &AugmentationConfig, random: &mut impl Rng) -> Similarity {
    let mut within = |limit: f32| if limit > 0.0 { random.random_range(-limit..limit) } else { 0.0 };
    let turn = Similarity::new(within(config.scale.ln()).exp(), within(config.rotation.to_radians()), 0.0, 0.0);
    let (x, y) = (within(config.shift), within(config.shift));
    Similarity { a: 1.0, b: 0.0, tx: -0.5, ty: -0.5 }.then(&turn).then(&Similarity {
        a: 1.0,
        b: 0.0,
        tx: 0.5 + x,
        ty: 0.5 + y,
    })
}

/// Brightness, contrast and saturation by random factors at most `colour` away from 1, or gray altogether with the probability `gray`.
pub fn recolour(picture: &mut RgbImage, colour: f32, gray: f32, random: &mut impl Rng) {
    let mut factor = || if colour > 0.0 { 1.0 + random.random_range(-colour..colour) } else { 1.0 };
    let (brightness, contrast, saturation) = (factor(), factor(), factor());
    let saturation = if random.random::<f32>() < gray { 0.0 } else { saturation };
    for pixel in picture.as_mut().chunks_exact_mut(3) {
        // Luma of ITU-R BT.601.
        let gray = 0.299 * f32::from(pixel[0]) + 0.587 * f32::from(pixel[1]) + 0.114 * f32::from(pixel[2]);
        for value in pixel {
            let coloured = gray + (f32::from(*value) - gray) * saturation;
            *value = ((coloured * brightness - 128.0) * contrast + 128.5).clamp(0.0, 255.0) as u8;
        }
    }
}

/// Paints a rectangle of 2 to 15 % of the area over (Zhong et al. 2020, random erasing).
fn erase(picture: &mut RgbImage, random: &mut impl Rng) {
    let size = picture.width() as f32;
    let (area, aspect) = (random.random_range(0.02..0.15f32), random.random_range(-0.9..0.9f32).exp());
    let side = |share: f32| ((share.sqrt() * size) as u32).clamp(1, picture.width());
    let (width, height) = (side(area * aspect), side(area / aspect));
    let (left, top) =
        (random.random_range(0..=picture.width() - width), random.random_range(0..=picture.height() - height));
    let colour = if random.random() { PADDING } else { image::Rgb(random.random()) };
    for y in top..top + height {
        for x in left..left + width {
            picture.put_pixel(x, y, colour);
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::sample::Labels;

    fn still() -> AugmentationConfig {
        AugmentationConfig {
            square: 0.0,
            rotation: 0.0,
            scale: 1.0,
            shift: 0.0,
            colour: 0.0,
            gray: 0.0,
            blur: 0.0,
            erase: 0.0,
        }
    }

    fn sample() -> Sample {
        let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([4 * x as u8, 4 * y as u8, 60]));
        Sample { picture, landmarks: None, labels: Labels::default() }
    }

    #[test]
    fn with_everything_off_only_the_flip_remains() {
        let (sample, plain) = (sample(), plain(&sample(), 64));
        let mirrored = image::imageops::flip_horizontal(&plain);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut seen = [0; 2];
        for _ in 0..20 {
            let picture = augmented(&sample, 64, &still(), &mut random);
            let near = |other: &RgbImage| picture.as_raw().iter().zip(other.as_raw()).all(|(a, b)| a.abs_diff(*b) <= 1);
            match (near(&plain), near(&mirrored)) {
                (true, false) => seen[0] += 1,
                (false, true) => seen[1] += 1,
                _ => panic!("neither the crop nor its mirror image"),
            }
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_crop_and_another_seed_another() {
        let all = AugmentationConfig {
            square: 0.5,
            rotation: 20.0,
            scale: 1.3,
            shift: 0.1,
            colour: 0.4,
            gray: 0.3,
            blur: 0.5,
            erase: 0.5,
        };
        let draw = |seed| augmented(&sample(), 48, &all, &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn gray_is_gray() {
        let config = AugmentationConfig { gray: 1.0, ..still() };
        let picture = augmented(&sample(), 32, &config, &mut ChaCha8Rng::seed_from_u64(3));
        assert!(picture.pixels().all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    }
}
