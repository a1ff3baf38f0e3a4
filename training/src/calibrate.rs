//! Temperatures: one number a head that its logits are divided by, so that its probabilities are as sure as held-out samples allow
//! (Guo et al. 2017, arXiv:1706.04599). The largest class stays the largest.

use anyhow::{Context, Result};
use facewise_core::decode::{AgeDistribution, AgePoint};
use facewise_core::task::Task;
use facewise_evaluation::metrics::AgeReading;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::config::{self, Config};
use crate::graph::{Graph, Layer};
use crate::network::{Mode, Network};
use crate::sample::{Labels, Sample};
use crate::validate;

/// Fewer labelled samples say too little about a temperature.
pub const FEWEST: usize = 100;

/// Share of the ages that the central interval of [`AgeDistribution::interval`] is meant to hold.
const COVERAGE: f64 = 0.68;

/// Between these the temperature is sought.
const RANGE: (f64, f64) = (0.2, 5.0);

/// Halvings of the range, or thirds of it taken away: far below what samples can tell.
const STEPS: u32 = 24;

/// Finds the temperature of each head with logits on plain crops of held-out samples, and divides its weights by it: labels get the
/// one of the highest likelihood; ages the one whose 68 % interval holds 68 % of them. A head with fewer than [`FEWEST`] labelled
/// samples, or whose answer is not the softmax of a linear layer, is left alone.
///
/// # Errors
/// When libtorch cannot hand out a value, or the network answers something that is no distribution.
pub fn calibrate(
    network: &Network,
    variables: &VarStore,
    samples: &[Sample],
    config: &Config,
) -> Result<Vec<(Task, f64)>> {
    let tasks: Vec<(Task, &str)> = config::answered(network.graph())
        .into_iter()
        .filter_map(|task| Some((task, last_linear(network.graph(), task)?)))
        .collect();
    let logits = logits(network, samples, &tasks, config.size())?;
    let mut temperatures = Vec::new();
    for ((task, layer), logits) in tasks.into_iter().zip(logits) {
        let labelled = samples.iter().zip(0..).filter_map(|(sample, row)| Some((row, class(&sample.labels, task)?)));
        let (rows, truth): (Vec<i64>, Vec<f32>) = labelled.unzip();
        if rows.len() < FEWEST {
            continue;
        }
        let logits = logits.index_select(0, &Tensor::from_slice(&rows));
        let temperature = match task {
            Task::Age => of_interval(&logits, &truth)?,
            Task::Gender | Task::Smile | Task::Emotion => of_likelihood(&logits, &truth),
        };
        let named = variables.variables();
        tch::no_grad(|| {
            for name in [format!("{layer}.weight"), format!("{layer}.bias")] {
                let mut variable = named.get(&name).with_context(|| format!("no variable {name}"))?.shallow_clone();
                let _ = variable.g_div_scalar_(temperature);
            }
            anyhow::Ok(())
        })?;
        temperatures.push((task, temperature));
    }
    Ok(temperatures)
}

/// The linear layer that makes a task's logits. Of ages learned in another way than by classes there is none.
fn last_linear(graph: &Graph, task: Task) -> Option<&str> {
    let output = graph.outputs().iter().find(|output| output.name == task.name())?;
    let node = &graph.nodes()[output.node.index()];
    matches!(node.layer, Layer::Linear(_)).then_some(node.name.as_str())
}

/// The true class of a task; of an age its year.
fn class(labels: &Labels, task: Task) -> Option<f32> {
    match task {
        Task::Age => labels.age,
        Task::Gender => labels.gender.map(f32::from),
        Task::Smile => labels.smile.map(f32::from),
        Task::Emotion => labels.emotion.map(f32::from),
    }
}

/// Logits of each task, fp64 `[n, classes]`.
fn logits(network: &Network, samples: &[Sample], tasks: &[(Task, &str)], size: u32) -> Result<Vec<Tensor>> {
    let mut batches: Vec<Vec<Tensor>> = tasks.iter().map(|_| Vec::new()).collect();
    for batch in validate::plain_batches(samples, size) {
        let outputs = network.answer(&validate::pixels(&batch, Device::Cpu), Mode::Eval);
        for ((task, _), batches) in tasks.iter().zip(&mut batches) {
            let output = outputs.get(task.name()).context("the network answers the task")?;
            batches.push(output.to_kind(Kind::Double));
        }
    }
    Ok(batches.iter().map(|batches| Tensor::cat(batches, 0)).collect())
}

/// The logarithm of the likelihood has one maximum in the inverse temperature: thirds without it are taken away.
fn of_likelihood(logits: &Tensor, truth: &[f32]) -> f64 {
    let classes: Vec<i64> = truth.iter().map(|class| *class as i64).collect();
    let index = Tensor::from_slice(&classes).unsqueeze(1);
    let loss = |inverse: f64| {
        -(logits * inverse).log_softmax(-1, Kind::Double).gather(1, &index, false).mean(Kind::Double).double_value(&[])
    };
    let (mut low, mut high) = (1.0 / RANGE.1, 1.0 / RANGE.0);
    for _ in 0..2 * STEPS {
        let third = (high - low) / 3.0;
        if loss(low + third) < loss(high - third) { high -= third } else { low += third }
    }
    2.0 / (low + high)
}

/// The interval widens with the temperature.
fn of_interval(logits: &Tensor, ages: &[f32]) -> Result<f64> {
    let (mut low, mut high) = RANGE;
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        let rows = Vec::<Vec<f32>>::try_from((logits / middle).softmax(-1, Kind::Float))?;
        let mut held = 0;
        for (row, age) in rows.iter().zip(ages) {
            let posterior = AgeDistribution::from_probabilities(row)?;
            held += usize::from(AgeReading::of(&posterior, AgePoint::Median).covers(*age));
        }
        if held as f64 / ages.len() as f64 > COVERAGE { high = middle } else { low = middle }
    }
    Ok(f64::midpoint(low, high))
}

#[cfg(test)]
mod tests {
    use facewise_core::picture::RgbImage;

    use super::*;

    const SIZE: u32 = 32;

    /// Logits that promise nine in ten, and are right in three of four.
    #[test]
    fn labels_that_are_too_sure_are_cooled() {
        let logits = Tensor::from_slice(&[9f64.ln(), 0.0]).repeat([400, 1]);
        let truth: Vec<f32> = (0..400).map(|row| f32::from(u8::from(row % 4 == 0))).collect();
        let temperature = of_likelihood(&logits, &truth);
        assert!((temperature - 2.0).abs() < 1e-3, "{temperature}");
    }

    /// A normal distribution of half the true standard deviation; its variance grows with the temperature.
    #[test]
    fn intervals_that_are_too_narrow_are_widened() {
        let logits: Vec<f64> = (0..101).map(|year: i32| -f64::from((year - 50).pow(2)) / (2.0 * 25.0)).collect();
        let logits = Tensor::from_slice(&logits).repeat([1000, 1]);
        // Twelve uniform numbers less six are as good as normal.
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 24) as f32
        };
        let ages: Vec<f32> = (0..1000).map(|_| 50.0 + 10.0 * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect();
        let temperature = of_interval(&logits, &ages).expect("distributions");
        assert!((3.0..4.6).contains(&temperature), "{temperature}");
    }

    #[test]
    fn a_calibrated_network_needs_no_other_temperature() {
        tch::manual_seed(1);
        let recipe = include_str!("../configs/default.toml").replace("size = 64", "size = 32");
        let config = Config::parse(&recipe.replace("[32, 64, 128, 256]", "[4, 4, 4, 4]")).expect("a recipe");
        let graph = config.graph().expect("a network");
        let variables = VarStore::new(Device::Cpu);
        let network = Network::new(&variables.root(), &graph);
        // Surer than two thirds of the samples allow.
        let mut bias = variables.variables().remove("heads.gender.bias").expect("a head");
        tch::no_grad(|| bias.copy_(&Tensor::from_slice(&[2f32, 0.0])));
        let samples: Vec<Sample> = (0..FEWEST as u8).map(sample).collect();
        let (few, _) = samples.split_at(FEWEST - 1);
        assert_eq!(calibrate(&network, &variables, few, &config).expect("distributions"), []);

        let of_gender = || logits(&network, &samples, &[(Task::Gender, "")], SIZE).expect("answers").remove(0);
        let before = of_gender();
        let first = calibrate(&network, &variables, &samples, &config).expect("distributions");
        assert_eq!(first.iter().map(|(task, _)| *task).collect::<Vec<_>>(), [Task::Gender]);
        assert!((2.0..4.0).contains(&first[0].1), "{first:?}");
        assert!((of_gender() * first[0].1 - before).abs().max().double_value(&[]) < 1e-5);
        let second = calibrate(&network, &variables, &samples, &config).expect("distributions");
        assert!((second[0].1 - 1.0).abs() < 1e-3, "{second:?}");
    }

    fn sample(n: u8) -> Sample {
        let picture = RgbImage::from_fn(SIZE, SIZE, |x, y| image::Rgb([n, (x * 8) as u8, (y * 8) as u8]));
        let labels = Labels { gender: Some(u8::from(n.is_multiple_of(3))), ..Labels::default() };
        Sample { picture, landmarks: None, labels }
    }
}
