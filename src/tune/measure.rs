//! The measurement: models are started as for serving, and asked without end.

use std::collections::BTreeMap;
use std::future::ready;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use image::{Rgb, RgbImage};

use super::{Cell, Layout, Measured, Plan, Subject, TuneError};
use crate::config::Inference;
use crate::engine::{EngineError, Runtime};
use crate::repository::{Repository, RepositoryError, Scope, Served};
use crate::telemetry::Metrics;

/// Full runs of every worker that are asked for at a time: one is run, one waits, and one is on its way.
const RUNS_AHEAD: usize = 3;

/// Pictures that are shown alone at least.
const LEAST_ALONE: usize = 3;

/// Settings that are measured.
#[derive(Clone, Copy)]
struct Case {
    layout: Layout,
    max_batch: usize,
}

impl Case {
    /// Pictures that fill a run of every worker.
    const fn wave(self) -> usize {
        self.layout.workers * self.max_batch
    }
}

/// What was measured of one network so far.
struct Series {
    name: String,
    version: String,
    /// Of each case, a rate for each round.
    rates: Vec<Vec<f64>>,
    /// Of each layout, times for each batch and round.
    alone: BTreeMap<Layout, Vec<f64>>,
}

/// Measures the model that describes faces where none is named, and the detector in use; where a setting is measured, its
/// value in `settings` does not count. `progress` is told how many cases of how many are done. It takes minutes.
///
/// # Errors
/// When the models cannot be served, a run of a network fails, or the plan is empty.
pub fn measure(
    library: &Runtime,
    settings: &Inference,
    plan: &Plan,
    mut progress: impl FnMut(u64, u64),
) -> Result<Measured, TuneError> {
    // The workers have threads of their own; this one only asks.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let with_batches = |layout| {
        let batches = plan.batches.iter().copied().map(NonZeroUsize::get);
        batches.map(move |max_batch| Case { layout, max_batch })
    };
    let cases: Vec<Case> = plan.layouts().into_iter().flat_map(with_batches).collect();
    let total = (plan.rounds.get() * cases.len()) as u64;
    let mut series: Vec<Series> = Vec::new();
    for done in 0..total {
        progress(done, total);
        let index = done as usize % cases.len();
        let case = cases[index];
        let models = start(library, settings, case)?;
        if series.is_empty() {
            series = models.iter().map(|model| Series::new(model, cases.len())).collect();
        }
        for (series, model) in series.iter_mut().zip(&models) {
            let alone = runtime.block_on(alone(model, plan.time / 10))?;
            series.alone.entry(case.layout).or_default().push(alone);
        }
        for (series, model) in series.iter_mut().zip(&models) {
            series.rates[index].push(runtime.block_on(rate(model, case, plan.time))?);
        }
    }
    progress(total, total);
    let mut subjects = series.into_iter().map(|series| series.medians(&cases));
    let attributes = subjects.next().ok_or(TuneError::Nothing)?;
    Ok(Measured { attributes, detector: subjects.next() })
}

/// The models with the settings of a case, that for faces first.
fn start(library: &Runtime, settings: &Inference, case: Case) -> Result<Vec<Served>, RepositoryError> {
    let settings = Inference {
        workers: Some(case.layout.workers),
        intra_threads: case.layout.threads,
        max_batch: Some(case.max_batch),
        max_detector_batch: Some(case.max_batch),
        max_delay: Duration::ZERO.into(),
        max_queue: settings.max_queue.max(RUNS_AHEAD * case.wave()),
        ..settings.clone()
    };
    let models =
        Repository::open(library, &settings, Scope::Default, &Arc::new(Metrics::new()), &Arc::default())?.models();
    let detector = models.detector().map(|detector| Served::Detector(Arc::clone(detector)));
    Ok([Served::Attributes(Arc::clone(models.default_model()))].into_iter().chain(detector).collect())
}

/// A picture of slopes: what it shows is all the same to the arithmetic of a network.
fn picture(model: &Served) -> RgbImage {
    let side = model.model().input_size();
    RgbImage::from_fn(side, side, |x, y| Rgb([x, y, x + y].map(|at| (255 * at / (2 * side)) as u8)))
}

async fn ask(model: &Served, picture: &RgbImage) -> Result<(), EngineError> {
    match model {
        Served::Attributes(model) => model.infer(vec![picture.clone()]).await.map(|_| ()),
        Served::Detector(model) => model.look(picture.clone()).await.map(|_| ()),
        Served::Embeddings(model) => model.infer(vec![0.0; model.features()]).await.map(|_| ()),
    }
}

/// Time for one picture when nothing else waits, in seconds: the median of as many as there is time for.
async fn alone(model: &Served, time: Duration) -> Result<f64, EngineError> {
    let picture = picture(model);
    // The first one finds the caches full of something else.
    ask(model, &picture).await?;
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < LEAST_ALONE || begun.elapsed() < time {
        let asked = Instant::now();
        ask(model, &picture).await?;
        times.push(asked.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

/// Pictures a second while enough of them wait to fill every run.
///
/// Answers come in runs, so they are counted in waves, a full run of every worker: between the ends of two waves there is a
/// whole number of runs, however long one lasts. The first quarter of the time, one wave at least, is not counted.
async fn rate(model: &Served, case: Case, time: Duration) -> Result<f64, EngineError> {
    let (picture, wave) = (picture(model), case.wave());
    let mut answers = stream::repeat_with(|| ask(model, &picture)).buffer_unordered(RUNS_AHEAD * wave);
    let begun = Instant::now();
    let mut warm = None;
    let mut counted = 0;
    loop {
        answers.by_ref().take(wave).try_for_each(|()| ready(Ok(()))).await?;
        match warm {
            None => warm = (begun.elapsed() >= time / 4).then(Instant::now),
            Some(warm) => {
                let elapsed = warm.elapsed();
                counted += wave;
                if elapsed >= time {
                    return Ok(counted as f64 / elapsed.as_secs_f64());
                }
            }
        }
    }
}

impl Series {
    fn new(model: &Served, cases: usize) -> Self {
        let model = model.model();
        Self {
            name: model.name().to_owned(),
            version: model.version().to_owned(),
            rates: vec![Vec::new(); cases],
            alone: BTreeMap::new(),
        }
    }

    fn medians(self, cases: &[Case]) -> Subject {
        let alone: BTreeMap<Layout, f64> =
            self.alone.into_iter().map(|(layout, times)| (layout, median(times))).collect();
        let spread = median(self.rates.iter().map(|rates| spread(rates)).collect());
        let cells = cases.iter().zip(self.rates).map(|(case, rates)| Cell {
            layout: case.layout,
            max_batch: case.max_batch,
            rate: median(rates),
            alone: alone[&case.layout],
        });
        Subject { name: self.name, version: self.version, cells: cells.collect(), spread }
    }
}

/// How far numbers are apart, as a share of their median.
fn spread(numbers: &[f64]) -> f64 {
    let (lowest, highest) =
        numbers.iter().fold((f64::INFINITY, 0f64), |(low, high), number| (low.min(*number), high.max(*number)));
    (highest - lowest) / median(numbers.to_vec())
}

/// The middle one of some numbers, which must be there; of an even number of them the upper.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_case_among_calm_rounds_does_not_count() {
        let layout = Layout { workers: 1, threads: 1 };
        let cases = [1, 4, 8].map(|max_batch| Case { layout, max_batch });
        let series = Series {
            name: "m".into(),
            version: "1".into(),
            rates: vec![vec![90.0, 100.0, 110.0], vec![20.0, 900.0, 200.0], vec![400.0, 410.0, 400.0]],
            alone: BTreeMap::from([(layout, vec![3.0, 1.0, 9.0])]),
        };
        let Subject { cells, spread, .. } = series.medians(&cases);
        let rates: Vec<f64> = cells.iter().map(|cell| cell.rate).collect();
        assert_eq!(rates, [100.0, 200.0, 400.0]);
        assert!(cells.iter().all(|cell| (cell.alone - 3.0).abs() < f64::EPSILON), "{cells:?}");
        assert!((spread - 0.2).abs() < 1e-9, "{spread}");
    }
}
