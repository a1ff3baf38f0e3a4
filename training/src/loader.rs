//! Batches: a fixed order for every seed and epoch, made by threads beside the one that trains.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use facewise_core::picture::RgbImage;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::augment;
use crate::config::AugmentationConfig;
use crate::sample::{Labels, Sample};

/// Square pictures and labels of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<L = Labels> {
    /// Side of the pictures in pixels.
    pub size: u32,
    /// Bytes `[n, size, size, 3]`.
    pub pixels: Vec<u8>,
    /// Labels of the `n` pictures.
    pub labels: Vec<L>,
}

impl<L> Batch<L> {
    /// An empty batch of pictures of one size.
    pub fn new(size: u32, capacity: usize) -> Self {
        let bytes = capacity * 3 * (size * size) as usize;
        Self { size, pixels: Vec::with_capacity(bytes), labels: Vec::with_capacity(capacity) }
    }

    /// Adds a picture of that size.
    pub fn push(&mut self, picture: &RgbImage, labels: L) {
        self.pixels.extend_from_slice(picture.as_raw());
        self.labels.push(labels);
    }
}

impl Batch<()> {
    /// Pictures of one size without labels.
    ///
    /// # Panics
    /// Without pictures.
    pub fn unlabelled(pictures: &[&RgbImage]) -> Self {
        let mut batch = Self::new(pictures[0].width(), pictures.len());
        for picture in pictures {
            batch.push(picture, ());
        }
        batch
    }
}

/// Several sets with the number of passes over each in one epoch.
#[derive(Debug)]
pub struct Mix {
    /// The samples of all sets.
    pub samples: Vec<Sample>,
    /// Per set: the range of its samples and its passes an epoch.
    pub sets: Vec<(Range<usize>, f64)>,
}

impl Mix {
    /// Samples an epoch shows.
    pub fn epoch_len(&self) -> usize {
        self.sets.iter().map(|(range, repeat)| quota(range.len(), *repeat)).sum()
    }

    /// The order of an epoch: every set shuffled as often as it is repeated, all of them mixed.
    pub fn order(&self, seed: u64, epoch: u32) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(u64::from(epoch));
        let mut order = Vec::with_capacity(self.epoch_len());
        for (range, repeat) in &self.sets {
            let mut left = quota(range.len(), *repeat);
            while left > 0 {
                let mut pass: Vec<usize> = range.clone().collect();
                pass.shuffle(&mut random);
                pass.truncate(left);
                left -= pass.len();
                order.append(&mut pass);
            }
        }
        order.shuffle(&mut random);
        order
    }
}

fn quota(samples: usize, repeat: f64) -> usize {
    (samples as f64 * repeat).round() as usize
}

/// What an epoch's batches depend on.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the epoch, from 0.
    pub number: u32,
    /// Samples a batch; what remains at the end is left out.
    pub batch: usize,
    /// Side of the crops in pixels.
    pub size: u32,
    /// Batches to skip, after a resumed run.
    pub skip: usize,
    /// How samples are varied.
    pub augmentation: AugmentationConfig,
}

impl Epoch {
    /// Makes the epoch's batches on `threads` threads, a few ahead of their use; the order does not depend on the threads.
    pub fn batches(self, mix: &Arc<Mix>, threads: usize) -> impl Iterator<Item = Batch> + use<> {
        let order = mix.order(self.seed, self.number);
        let (mix, count) = (Arc::clone(mix), order.len() / self.batch);
        ahead(self.skip..count, threads, move |index| self.batch(&mix, &order, index))
    }

    fn batch(&self, mix: &Mix, order: &[usize], index: usize) -> Batch {
        let mut batch = Batch::new(self.size, self.batch);
        let first = index * self.batch;
        for (position, sample) in order[first..first + self.batch].iter().enumerate() {
            let (position, sample) = (first + position, &mix.samples[*sample]);
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream((u64::from(self.number) << 32) | position as u64);
            let crop = augment::augmented(sample, self.size, &self.augmentation, &mut random);
            batch.push(&crop, sample.labels);
        }
        batch
    }
}

/// Makes an item for each index on `threads` threads, a few ahead of their use, and gives them in order.
pub fn ahead<T: Send + 'static>(
    indices: Range<usize>,
    threads: usize,
    make: impl Fn(usize) -> T + Send + Sync + 'static,
) -> impl Iterator<Item = T> {
    let make = Arc::new(make);
    let receivers: Vec<Receiver<T>> = (0..threads)
        .map(|thread| {
            // Two ahead per thread: enough to hide the jitter, little memory.
            let (sender, receiver) = sync_channel(2);
            let (make, indices) = (Arc::clone(&make), indices.clone());
            thread::spawn(move || {
                for index in indices.skip(thread).step_by(threads) {
                    if sender.send(make(index)).is_err() {
                        return;
                    }
                }
            });
            receiver
        })
        .collect();
    (0..indices.len()).map_while(move |index| receivers[index % receivers.len()].recv().ok())
}

/// Random pictures without labels, for measuring the speed of the network alone.
pub fn random_batch(size: u32, n: usize, seed: u64) -> Batch {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut pixels = vec![0; n * 3 * (size * size) as usize];
    random.fill(&mut pixels[..]);
    let labels = (0..n)
        .map(|index| Labels {
            age: Some((index % 101) as f32),
            gender: Some((index % 2) as u8),
            smile: Some((index % 2) as u8),
            emotion: Some((index % 7) as u8),
            emotion_votes: None,
            answers: None,
        })
        .collect();
    Batch { size, pixels, labels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix() -> Arc<Mix> {
        let samples = (0..20u8)
            .map(|value| Sample {
                picture: RgbImage::from_pixel(16, 16, image::Rgb([value; 3])),
                landmarks: None,
                labels: Labels { age: Some(f32::from(value)), ..Labels::default() },
            })
            .collect();
        Arc::new(Mix { samples, sets: vec![(0..12, 1.0), (12..20, 1.5)] })
    }

    fn epoch(number: u32, skip: usize) -> Epoch {
        let augmentation = AugmentationConfig {
            square: 0.0,
            rotation: 10.0,
            scale: 1.2,
            shift: 0.1,
            colour: 0.2,
            gray: 0.1,
            blur: 0.2,
            erase: 0.2,
        };
        Epoch { seed: 5, number, batch: 4, size: 16, skip, augmentation }
    }

    #[test]
    fn an_epoch_shows_every_sample_as_often_as_its_set_is_repeated() {
        let mut order = mix().order(1, 0);
        assert_eq!(order.len(), 24);
        assert_ne!(order, mix().order(1, 1));
        order.sort_unstable();
        let times = |sample: usize| order.iter().filter(|index| **index == sample).count();
        assert!((0..12).all(|sample| times(sample) == 1));
        assert!((12..20).all(|sample| (1..=2).contains(&times(sample))));
    }

    #[test]
    fn batches_do_not_depend_on_the_threads_and_resume_where_they_stopped() {
        let one: Vec<Batch> = epoch(2, 0).batches(&mix(), 1).collect();
        let three: Vec<Batch> = epoch(2, 0).batches(&mix(), 3).collect();
        assert_eq!(one.len(), 6);
        assert!(one == three, "the same batches in the same order");
        let resumed: Vec<Batch> = epoch(2, 4).batches(&mix(), 2).collect();
        assert!(resumed == one[4..], "the last two batches");
        assert!(epoch(3, 0).batches(&mix(), 1).next() != one.first().cloned(), "another epoch differs");
    }
}
