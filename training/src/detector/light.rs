//! What happens to a scene as a whole before it reaches a detector: poor lenses and sensors, other light, compression.

use facewise_core::crop;
use facewise_core::geometry::Similarity;
use facewise_core::picture::{self, Limits, RgbImage};
use image::codecs::jpeg::JpegEncoder;
use rand::{Rng, RngCore};

use super::config::LightConfig;
use crate::augment;

/// Spoils a square picture at random. Returns which share of its resolution is left, 1 where it was not reduced.
pub fn spoil(picture: &mut RgbImage, config: &LightConfig, random: &mut impl Rng) -> f32 {
    let mut left = 1.0;
    if random.random::<f32>() < config.blur {
        let size = picture.width();
        let coarse = ((size as f32 * random.random_range(0.4..0.9)) as u32).max(8);
        let whole = Similarity::onto_square(0.0, 0.0, size as f32);
        *picture = augment::enlarged(&crop::crop(picture, &whole, coarse), size);
        left = coarse as f32 / size as f32;
    }
    if random.random::<f32>() < config.noise {
        noise(picture, random.random_range(3..25), random);
    }
    augment::recolour(picture, config.colour, config.gray, random);
    if random.random::<f32>() < config.jpeg {
        *picture = compressed(picture, random.random_range(20..=80));
    }
    left
}

/// Adds noise of at most `amplitude` either way, triangularly distributed.
fn noise(picture: &mut RgbImage, amplitude: i32, random: &mut impl RngCore) {
    let mut bytes = vec![0; 2 * picture.as_raw().len()];
    random.fill_bytes(&mut bytes);
    for (value, random) in picture.as_mut().iter_mut().zip(bytes.chunks_exact(2)) {
        let triangular = i32::from(random[0]) + i32::from(random[1]) - 255;
        *value = (i32::from(*value) + triangular * amplitude / 255).clamp(0, 255) as u8;
    }
}

/// The picture after a JPEG of this quality.
fn compressed(picture: &RgbImage, quality: u8) -> RgbImage {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(picture).expect("memory takes every byte");
    picture::decode(&bytes, Limits::default()).expect("just encoded")
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn still() -> LightConfig {
        LightConfig { colour: 0.0, gray: 0.0, blur: 0.0, noise: 0.0, jpeg: 0.0 }
    }

    fn checkerboard() -> RgbImage {
        RgbImage::from_fn(64, 64, |x, y| Rgb([if (x / 2 + y / 2) % 2 == 0 { 60 } else { 200 }, 100, 30]))
    }

    fn spoilt(config: &LightConfig) -> (RgbImage, f32) {
        let mut picture = checkerboard();
        let left = spoil(&mut picture, config, &mut ChaCha8Rng::seed_from_u64(4));
        (picture, left)
    }

    fn largest_change(picture: &RgbImage) -> u8 {
        let pairs = picture.as_raw().iter().zip(checkerboard().into_raw());
        pairs.map(|(a, b)| a.abs_diff(b)).max().unwrap_or_default()
    }

    #[test]
    fn each_knob_does_its_own() {
        let (picture, left) = spoilt(&still());
        assert!(largest_change(&picture) <= 1 && left >= 1.0);

        let (picture, left) = spoilt(&LightConfig { blur: 1.0, ..still() });
        assert!(largest_change(&picture) > 20 && left < 0.9);

        let (picture, _) = spoilt(&LightConfig { noise: 1.0, ..still() });
        assert!((1..=26).contains(&largest_change(&picture)));

        let (picture, _) = spoilt(&LightConfig { jpeg: 1.0, ..still() });
        assert!(largest_change(&picture) > 5);
        assert_eq!(picture.dimensions(), (64, 64));
    }
}
