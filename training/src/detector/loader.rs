//! Batches of scenes: what an epoch shows depends on its seed and number alone, made by threads beside the one that trains.

use std::sync::Arc;

use facewise_evaluation::detection::Truth;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::config::Config;
use super::data::Album;
use super::light;
use super::scene;
use crate::loader::{Batch, ahead};

/// A face that has lost resolution to less than this side in pixels is neither asked for nor denied.
const BLURRED_AWAY: f32 = 8.0;

/// What an epoch's batches depend on.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Number of the epoch, from 0.
    pub number: u32,
    /// Side of the scenes in pixels.
    pub size: u32,
    /// Batches to skip, after a resumed run.
    pub skip: usize,
}

impl Epoch {
    /// Makes the epoch's batches, a few ahead of their use; the order does not depend on the threads.
    pub fn batches(self, album: &Arc<Album>, config: &Config) -> impl Iterator<Item = Batch<Truth>> + use<> {
        let (album, config) = (Arc::clone(album), config.clone());
        let (count, threads) = (config.scenes / config.batch, config.loaders);
        ahead(self.skip..count, threads, move |index| self.batch(&album, &config, index))
    }

    fn batch(&self, album: &Album, config: &Config, index: usize) -> Batch<Truth> {
        let mut batch = Batch::new(self.size, config.batch);
        for position in index * config.batch..(index + 1) * config.batch {
            let mut random = ChaCha8Rng::seed_from_u64(config.seed);
            random.set_stream((u64::from(self.number) << 32) | position as u64);
            let mut canvas = scene::compose(album, self.size, &config.scene, &mut random);
            let left = light::spoil(&mut canvas.picture, &config.light, &mut random);
            batch.push(&canvas.picture, without_blurred(canvas.truth, left));
        }
        batch
    }
}

/// Faces that have become too small to see, at this share of the resolution, are ignored.
fn without_blurred(truth: Truth, left: f32) -> Truth {
    let Truth { faces, mut ignored } = truth;
    let (sharp, blurred): (Vec<_>, Vec<_>) =
        faces.into_iter().partition(|face| face.area.width.min(face.area.height) * left >= BLURRED_AWAY);
    ignored.extend(blurred.into_iter().map(|face| face.area));
    Truth { faces: sharp, ignored }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{album, face};
    use super::*;

    fn batches(number: u32, skip: usize, threads: usize) -> Vec<Batch<Truth>> {
        let mut config = Config::parse(include_str!("../../configs/detector.toml")).expect("valid");
        (config.scenes, config.batch, config.loaders) = (8, 2, threads);
        Epoch { number, size: 64, skip }.batches(&Arc::new(album()), &config).collect()
    }

    #[test]
    fn batches_do_not_depend_on_the_threads_and_resume_where_they_stopped() {
        let one = batches(1, 0, 1);
        assert_eq!(one.len(), 4);
        assert!(one == batches(1, 0, 3), "the same batches in the same order");
        assert!(one[3..] == batches(1, 3, 2), "the last batch");
        assert!(one[0] != batches(2, 0, 1)[0], "another epoch differs");
    }

    #[test]
    fn a_face_that_is_blurred_away_is_ignored() {
        let truth = Truth { faces: vec![face(0.0, 0.0, 12.0), face(20.0, 0.0, 20.0)], ignored: Vec::new() };
        assert_eq!(without_blurred(truth.clone(), 1.0), truth);
        let left = without_blurred(truth.clone(), 0.5);
        assert_eq!(left.faces, truth.faces[1..]);
        assert_eq!(left.ignored, [truth.faces[0].area]);
    }
}
