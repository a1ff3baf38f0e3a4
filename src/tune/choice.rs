//! Which of the measured settings are taken.

use super::{Cell, Layout, Measured, Subject};

/// What is nearer than this share to the best counts as good as it: less is hard to tell from noise.
pub const NEAR: f64 = 0.03;

/// The settings that are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Threads, of every network.
    pub layout: Layout,
    /// Most faces in a run.
    pub max_batch: usize,
    /// Most pictures in a run of the detector, where there is one.
    pub max_detector_batch: Option<usize>,
    /// Throughput beside the best that was measured of each network, the geometric mean of both shares.
    pub share: f64,
    /// Time for one picture with one face, in seconds, in networks.
    alone: f64,
}

impl Choice {
    /// The settings by their names in `facewise.toml`.
    pub fn settings(&self) -> Vec<(&'static str, usize)> {
        let mut settings = vec![
            ("workers", self.layout.workers),
            ("intra-threads", self.layout.threads),
            ("max-batch", self.max_batch),
        ];
        settings.extend(self.max_detector_batch.map(|batch| ("max-detector-batch", batch)));
        settings
    }

    fn new(faces: &Cell, pictures: Option<&Cell>, best: &Best) -> Self {
        let share = |cell: &Cell, best: f64| cell.rate / best;
        let faces_share = share(faces, best.faces);
        Self {
            layout: faces.layout,
            max_batch: faces.max_batch,
            max_detector_batch: pictures.map(|cell| cell.max_batch),
            share: pictures.map_or(faces_share, |cell| (faces_share * share(cell, best.pictures)).sqrt()),
            alone: faces.alone + pictures.map_or(0.0, |cell| cell.alone),
        }
    }

    /// Less is preferred among what is equally fast.
    fn size(&self) -> (usize, usize, usize) {
        (self.layout.cpus(), self.layout.threads, self.max_batch + self.max_detector_batch.unwrap_or(0))
    }
}

/// The highest throughput of each network.
struct Best {
    faces: f64,
    pictures: f64,
}

impl Best {
    fn of(subject: &Subject) -> f64 {
        subject.cells.iter().map(|cell| cell.rate).fold(0.0, f64::max)
    }
}

impl Measured {
    /// The settings with the highest throughput. All networks run on the same number of workers and threads, so they are
    /// judged together, by the geometric mean of the shares that each reaches of its own best: neither the slow one nor the
    /// one with the large figures outweighs the other. Of those within [`NEAR`] of the highest, it is the one where a picture
    /// alone is answered soonest; of those within the same distance of that, the one with the fewest threads and the smallest
    /// batches. `None` when nothing was measured.
    pub fn choose(&self) -> Option<Choice> {
        let mut choices = self.choices();
        let highest = choices.iter().map(|choice| choice.share).fold(0.0, f64::max);
        choices.retain(|choice| choice.share >= (1.0 - NEAR) * highest);
        let soonest = choices.iter().map(|choice| choice.alone).fold(f64::INFINITY, f64::min);
        choices.retain(|choice| choice.alone <= (1.0 + NEAR) * soonest);
        choices.into_iter().min_by(|a, b| a.size().cmp(&b.size()).then(b.share.total_cmp(&a.share)))
    }

    fn choices(&self) -> Vec<Choice> {
        let pictures = self.detector.as_ref();
        let best = Best { faces: Best::of(&self.attributes), pictures: pictures.map_or(0.0, Best::of) };
        let mut choices = Vec::new();
        for faces in &self.attributes.cells {
            match pictures {
                None => choices.push(Choice::new(faces, None, &best)),
                Some(detector) => {
                    let cells = detector.cells.iter().filter(|cell| cell.layout == faces.layout);
                    choices.extend(cells.map(|cell| Choice::new(faces, Some(cell), &best)));
                }
            }
        }
        choices
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ONE: Layout = Layout { workers: 1, threads: 1 };
    const WORKERS: Layout = Layout { workers: 2, threads: 1 };
    const THREADS: Layout = Layout { workers: 1, threads: 2 };

    /// Batches of 1, 4 and 8 in each layout, and the time of one alone.
    fn subject(rows: &[(Layout, [f64; 3], f64)]) -> Subject {
        let cells = rows.iter().flat_map(|(layout, rates, alone)| {
            rates.iter().zip([1, 4, 8]).map(|(rate, max_batch)| Cell {
                layout: *layout,
                max_batch,
                rate: *rate,
                alone: *alone,
            })
        });
        Subject { name: "m".into(), version: "1".into(), cells: cells.collect(), spread: 0.0 }
    }

    #[track_caller]
    fn chosen(attributes: &[(Layout, [f64; 3], f64)], detector: &[(Layout, [f64; 3], f64)]) -> (Layout, usize, usize) {
        let detector = (!detector.is_empty()).then(|| subject(detector));
        let choice = Measured { attributes: subject(attributes), detector }.choose().unwrap();
        (choice.layout, choice.max_batch, choice.max_detector_batch.unwrap_or(0))
    }

    #[test]
    fn the_highest_throughput_wins() {
        let table = [(ONE, [50.0, 60.0, 70.0], 1.0), (WORKERS, [90.0, 100.0, 120.0], 1.0), (THREADS, [80.0; 3], 0.6)];
        assert_eq!(chosen(&table, &[]), (WORKERS, 8, 0));
    }

    #[test]
    fn what_is_within_three_percent_is_told_apart_by_the_latency_then_by_the_size() {
        let table = |threads: f64| [(WORKERS, [100.0, 99.0, 96.9], 1.0), (THREADS, [90.0, threads, 96.9], 0.6)];
        assert_eq!(chosen(&table(97.0), &[]), (THREADS, 4, 0), "as fast, and sooner for one alone");
        assert_eq!(chosen(&table(96.9), &[]), (WORKERS, 1, 0), "not as fast");
        let alike = [(WORKERS, [98.0, 99.0, 100.0], 1.0), (ONE, [90.0, 97.5, 98.0], 1.02)];
        assert_eq!(chosen(&alike, &[]), (ONE, 4, 0), "fewer threads, then smaller batches");
        let later = [(WORKERS, [98.0, 99.0, 100.0], 1.0), (ONE, [90.0, 97.5, 98.0], 1.04)];
        assert_eq!(chosen(&later, &[]), (WORKERS, 1, 0), "fewer threads do not make up for a later answer");
    }

    #[test]
    fn both_networks_are_judged_together_whatever_the_size_of_their_figures() {
        // The detector loses a half with two threads a run, the other network a fifth with two workers.
        let attributes = [(WORKERS, [8000.0, 8000.0, 8000.0], 1.0), (THREADS, [9000.0, 10_000.0, 9000.0], 0.6)];
        let detector = [(WORKERS, [70.0, 80.0, 100.0], 20.0), (THREADS, [50.0; 3], 12.0)];
        assert_eq!(chosen(&attributes, &detector), (WORKERS, 1, 8));
        assert_eq!(chosen(&attributes, &[]), (THREADS, 4, 0));
        let measured = Measured { attributes: subject(&attributes), detector: Some(subject(&detector)) };
        let choice = measured.choose().unwrap();
        assert!((choice.share - 0.8f64.sqrt()).abs() < 1e-9, "{}", choice.share);
        assert_eq!(
            choice.settings(),
            [("workers", 2), ("intra-threads", 1), ("max-batch", 1), ("max-detector-batch", 8)]
        );
    }

    #[test]
    fn of_nothing_nothing_is_chosen() {
        assert_eq!(Measured { attributes: subject(&[]), detector: None }.choose(), None);
        assert_eq!(
            Measured { attributes: subject(&[(ONE, [1.0; 3], 1.0)]), detector: Some(subject(&[])) }.choose(),
            None
        );
    }
}
