//! The ways of learning an age. Each is a head, a loss and a decoding: the head answers a distribution over the years, whatever it learns
//! from, so that [`facewise_core::decode`] reads them all.

use facewise_core::decode::AgePoint;
use facewise_core::task::{AGES, Task};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::config::LossConfig;
use crate::graph::{Activation, Affine, GraphBuilder, Linear, NodeId, Ordinal};
use crate::network::Outputs;

/// Output with the scores of the thresholds 0 to 99 years: how likely the age is above each.
pub const THRESHOLDS: &str = "age_thresholds";
/// Output with the logits of ten decades, the last of which has the year 100 too.
pub const DECADES: &str = "age_decades";
/// Output with the age as a share of [`RANGE`].
pub const SHARE: &str = "age_share";
/// Years that a share of 1 stands for.
pub const RANGE: f32 = AGES as f32;

/// Number of decades.
const TENS: usize = 10;

/// How an age is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AgeConfig {
    /// Cross-entropy with a distribution around the true age, or with its year alone where `loss.age_sd` is 0 (`age_cls_loss`). The answer
    /// is the median.
    #[default]
    Classes,
    /// The same, and the answer is the expected value (DEX, Rothe et al. 2015).
    Expectation,
    /// Cross-entropy, half the squared error of the expected value and the variance (Pan et al. 2018), with these weights; published with
    /// 0.2 and 0.05. The answer is the expected value.
    MeanVariance {
        /// Weight of half the squared error, in years².
        mean: f64,
        /// Weight of the variance, in years².
        variance: f64,
    },
    /// Cross-entropy over the years and, in a head of its own, over the decades. The answer is the median of the years.
    FineCoarse {
        /// Weight of the decades' cross-entropy.
        coarse: f64,
    },
    /// Cross-entropy over the decades alone; all years of a decade are equally likely.
    Coarse,
    /// One binary question a year, whether the face is older, over one score (CORAL, Cao et al. 2020, arXiv:1901.07884). Its answer, the
    /// number of questions that are affirmed, is the median.
    Ordinal,
    /// A number, learned by its absolute error. It says nothing of its certainty: the distribution is the two years around it, with the
    /// number as their mean.
    Value,
}

impl AgeConfig {
    /// Whether this is what a configuration without a word about it means.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the output `age` has logits, of which a softmax makes the distribution, and not the distribution itself.
    pub fn is_logits(&self) -> bool {
        !matches!(self, Self::Coarse | Self::Ordinal | Self::Value)
    }

    /// How years are read from the distribution.
    pub fn point(&self) -> AgePoint {
        match self {
            Self::Expectation | Self::MeanVariance { .. } | Self::Value => AgePoint::Mean,
            Self::Classes | Self::FineCoarse { .. } | Self::Coarse | Self::Ordinal => AgePoint::Median,
        }
    }

    /// Adds the head to `width` features: the output `age`, and the one that is learned from where that is another.
    pub fn head(&self, b: &mut GraphBuilder, x: NodeId, width: usize) -> Vec<(&'static str, NodeId)> {
        const AGE: &str = Task::Age.name();
        let mut linear = |name: &str, outputs: usize| b.linear(format!("heads.{name}"), x, Linear::new(width, outputs));
        match self {
            Self::Classes | Self::Expectation | Self::MeanVariance { .. } => vec![(AGE, linear(AGE, AGES))],
            Self::FineCoarse { .. } => vec![(AGE, linear(AGE, AGES)), (DECADES, linear(DECADES, TENS))],
            Self::Coarse => {
                let decades = linear(DECADES, TENS);
                let probabilities = b.softmax(decades);
                let years = b.affine(probabilities, spread());
                vec![(AGE, years), (DECADES, decades)]
            }
            Self::Ordinal => {
                let layer = Ordinal { inputs: width, thresholds: AGES - 1 };
                let thresholds = b.ordinal(format!("heads.{THRESHOLDS}"), x, layer);
                let above = b.activation(thresholds, Activation::Sigmoid);
                // P(older than i − 1) − P(older than i); a rounding error must not make it negative.
                let years = b.affine(above, Affine::new(AGES - 1, AGES, difference, |year| f32::from(year == 0)));
                vec![(AGE, b.relu(years)), (THRESHOLDS, thresholds)]
            }
            Self::Value => {
                let share = linear(SHARE, 1);
                value(b, share)
            }
        }
    }

    /// The loss of each row, `[n]`: `outputs` has the rows that are labelled, `target` the distribution that each should have, `[n, 101]`.
    ///
    /// # Panics
    /// With outputs of a network that was built for another method.
    pub fn loss(&self, outputs: &Outputs, target: &Tensor, config: &LossConfig) -> Tensor {
        let output = |name: &str| outputs.get(name).expect("the network was built for this method");
        let device = target.device();
        let years = Tensor::arange(AGES as i64, (Kind::Float, device));
        let true_age = target.matmul(&years);
        let decades = || {
            let of_year: Vec<i64> = (0..AGES).map(|year| decade(year) as i64).collect();
            let zeros = Tensor::zeros([target.size()[0], TENS as i64], (Kind::Float, device));
            let decades = zeros.index_add(1, &Tensor::from_slice(&of_year).to_device(device), target);
            cross_entropy(output(DECADES), &decades)
        };
        match self {
            Self::Coarse => decades(),
            Self::Ordinal => {
                let above = 1.0 - target.cumsum(1, Kind::Float).narrow(1, 0, AGES as i64 - 1);
                let scores = output(THRESHOLDS);
                // −t·log σ(s) − (1 − t)·log(1 − σ(s)), without overflow.
                let losses: Tensor = scores.clamp_min(0.0) - scores * above + (-scores.abs()).exp().log1p();
                losses.sum_dim_intlist([-1].as_slice(), false, Kind::Float)
            }
            Self::Value => (output(SHARE).squeeze_dim(1) * f64::from(RANGE) - true_age).abs(),
            Self::Classes | Self::Expectation | Self::MeanVariance { .. } | Self::FineCoarse { .. } => {
                let log_probabilities = output(Task::Age.name()).log_softmax(-1, Kind::Float);
                let probabilities = log_probabilities.exp();
                let expected = probabilities.matmul(&years);
                let error = &expected - true_age;
                let loss = against(target, &log_probabilities) + error.abs() * config.age_mean;
                match *self {
                    Self::MeanVariance { mean, variance } => {
                        let spread = probabilities.matmul(&years.square()) - expected.square();
                        loss + error.square() * (mean / 2.0) + spread * variance
                    }
                    Self::FineCoarse { coarse } => loss + decades() * coarse,
                    _ => loss,
                }
            }
        }
    }
}

/// Of each row, `[n]`, with logits and the distribution that they should have.
pub(crate) fn cross_entropy(logits: &Tensor, target: &Tensor) -> Tensor {
    against(target, &logits.log_softmax(-1, Kind::Float))
}

fn against(target: &Tensor, log_probabilities: &Tensor) -> Tensor {
    (-(target * log_probabilities)).sum_dim_intlist([-1].as_slice(), false, Kind::Float)
}

/// The outputs of a network that answers the age as a share of [`RANGE`]: the distribution over the two years around it, and the share.
/// Below 0 and above 100 years it is these.
pub(crate) fn value(b: &mut GraphBuilder, share: NodeId) -> Vec<(&'static str, NodeId)> {
    let oldest = (AGES - 1) as f32;
    let years = b.affine(share, Affine::each(1, RANGE, |_| 0.0));
    let years = b.relu(years);
    let below = b.affine(years, Affine::each(1, -1.0, |_| oldest));
    // 100 − years, both within 0..=100.
    let below = b.relu(below);
    let over = b.affine(below, Affine::new(1, AGES, |_, _| -1.0, |year| oldest - year as f32));
    let over = b.relu(over);
    let under = b.affine(below, Affine::new(1, AGES, |_, _| 1.0, |year| year as f32 - oldest));
    let under = b.relu(under);
    let distance = b.add(over, under);
    let near = b.affine(distance, Affine::each(AGES, -1.0, |_| 1.0));
    vec![(Task::Age.name(), b.relu(near)), (SHARE, share)]
}

/// The decade of a year.
fn decade(year: usize) -> usize {
    (year / 10).min(TENS - 1)
}

/// Decades to years, each as likely as the others of its decade.
fn spread() -> Affine {
    let years_of = |tens: usize| (0..AGES).filter(|year| decade(*year) == tens).count() as f32;
    Affine::new(TENS, AGES, |year, tens| if decade(year) == tens { 1.0 / years_of(tens) } else { 0.0 }, |_| 0.0)
}

/// The factor of the chance to be older than `threshold` in the chance of `year`.
fn difference(year: usize, threshold: usize) -> f32 {
    f32::from(threshold + 1 == year) - f32::from(threshold == year)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use facewise_core::decode::AgeDistribution;
    use tch::Device;
    use tch::nn::VarStore;

    use super::*;
    use crate::graph::Input;
    use crate::loss::around;
    use crate::network::{Mode, Network};

    const FEATURES: usize = 4;
    const METHODS: [AgeConfig; 7] = [
        AgeConfig::Classes,
        AgeConfig::Expectation,
        AgeConfig::MeanVariance { mean: 0.2, variance: 0.05 },
        AgeConfig::FineCoarse { coarse: 1.0 },
        AgeConfig::Coarse,
        AgeConfig::Ordinal,
        AgeConfig::Value,
    ];
    const CONFIG: LossConfig = LossConfig {
        age: 1.0,
        age_sd: 0.0,
        age_mean: 0.0,
        gender: 1.0,
        smile: 1.0,
        emotion: 1.0,
        label_smoothing: 0.0,
        emotion_votes: 0.0,
    };

    fn network(method: AgeConfig) -> (VarStore, Network) {
        tch::set_num_threads(1);
        tch::manual_seed(2);
        let mut b = GraphBuilder::new(Input::Vector(FEATURES));
        let x = b.input();
        let outputs = method.head(&mut b, x, FEATURES);
        let graph = b.finish(outputs).unwrap();
        let store = VarStore::new(Device::Cpu);
        let network = Network::new(&store.root(), &graph);
        (store, network)
    }

    fn distributions(method: AgeConfig, outputs: &Outputs) -> Vec<AgeDistribution> {
        let age = outputs.get("age").unwrap();
        let age = if method.is_logits() { age.softmax(-1, Kind::Float) } else { age.shallow_clone() };
        let rows = Vec::<Vec<f32>>::try_from(age).unwrap();
        rows.iter()
            .map(|row| {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{method:?}: {row:?}");
                AgeDistribution::from_probabilities(row).unwrap()
            })
            .collect()
    }

    #[test]
    fn every_method_learns_ages_that_its_decoding_reads() {
        for method in METHODS {
            let (store, network) = network(method);
            let ages = [0.0_f32, 23.0, 57.0, 100.0];
            let x = Tensor::eye(4, (Kind::Float, Device::Cpu));
            let target: Vec<f32> = ages.iter().flat_map(|age| around(*age, 0.0)).collect();
            let target = Tensor::from_slice(&target).view([4, -1]);
            let mut steps = tch::nn::OptimizerConfig::build(tch::nn::Adam::default(), &store, 0.05).unwrap();
            let before = method.loss(&network.answer(&x, Mode::Eval), &target, &CONFIG).mean(Kind::Float);
            for _ in 0..900 {
                let loss = method.loss(&network.answer(&x, Mode::Train), &target, &CONFIG).mean(Kind::Float);
                steps.backward_step(&loss);
            }
            let outputs = network.answer(&x, Mode::Eval);
            let after = method.loss(&outputs, &target, &CONFIG).mean(Kind::Float);
            assert!(after.double_value(&[]) < 0.3 * before.double_value(&[]), "{method:?}: {after} after {before}");
            for (distribution, age) in distributions(method, &outputs).iter().zip(ages) {
                let years = distribution.years(method.point());
                // A network that knows decades only answers their middle.
                let far = if method == AgeConfig::Coarse { 5.6 } else { 2.5 };
                assert!((years - age).abs() < far, "{method:?}: {years} for {age}");
            }
        }
    }

    /// Random weights are far from any age, and the constants of the thresholds out of their order.
    #[test]
    fn every_head_answers_a_distribution() {
        for method in METHODS {
            let (store, network) = network(method);
            tch::no_grad(|| {
                for (_, mut variable) in crate::optimiser::sorted(&store) {
                    let _ = variable.normal_(0.0, 1.0);
                }
            });
            let x = Tensor::randn([50, FEATURES as i64], (Kind::Float, Device::Cpu)) * 3.0;
            assert_eq!(distributions(method, &network.answer(&x, Mode::Eval)).len(), 50);
        }
    }

    #[test]
    fn the_median_of_ordered_thresholds_counts_what_is_passed() {
        let (store, network) = network(AgeConfig::Ordinal);
        tch::no_grad(|| {
            let bias = Tensor::from_slice(&(0..100).map(|k| 30.5 - k as f32).collect::<Vec<_>>()).flip([0]);
            store.variables()["heads.age_thresholds.bias"].shallow_clone().copy_(&bias);
            let _ = store.variables()["heads.age_thresholds.weight"].shallow_clone().zero_();
        });
        let outputs = network.answer(&Tensor::zeros([1, 4], (Kind::Float, Device::Cpu)), Mode::Eval);
        let passed = Vec::<f32>::try_from(outputs.get(THRESHOLDS).unwrap().flatten(0, -1)).unwrap();
        assert_eq!(passed.iter().filter(|score| **score > 0.0).count(), 31);
        let years = distributions(AgeConfig::Ordinal, &outputs)[0].median();
        assert!((years - 31.0).abs() < 0.51, "{years}");
    }

    #[test]
    fn a_number_is_the_mean_of_the_two_years_around_it() {
        let mut b = GraphBuilder::new(Input::Vector(1));
        let x = b.input();
        let outputs = value(&mut b, x);
        let graph = b.finish(outputs).unwrap();
        let store = VarStore::new(Device::Cpu);
        let network = Network::new(&store.root(), &graph);
        for (years, expected) in [(31.25, 31.25), (0.0, 0.0), (100.0, 100.0), (-7.0, 0.0), (130.0, 100.0), (99.5, 99.5)]
        {
            let share = Tensor::from_slice(&[years / RANGE]).view([1, 1]);
            let outputs = network.answer(&share, Mode::Eval);
            let distribution = &distributions(AgeConfig::Value, &outputs)[0];
            assert!((distribution.mean() - expected).abs() < 1e-3, "{years}: {}", distribution.mean());
            assert!(distribution.probabilities().iter().filter(|p| **p > 1e-4).count() <= 2);
        }
    }

    #[test]
    fn decades_are_learned_from_the_years_in_them() {
        let target = Tensor::from_slice(&around(39.5, 1.0)).view([1, -1]);
        let half = Tensor::full([1, TENS as i64], -1e9, (Kind::Float, Device::Cpu));
        let half = half.index_fill(1, &Tensor::from_slice(&[3_i64, 4]), 0.0);
        let outputs = Outputs::from_iter([(DECADES.to_owned(), half)]);
        let loss = AgeConfig::Coarse.loss(&outputs, &target, &CONFIG).double_value(&[0]);
        assert!((loss - 2f64.ln()).abs() < 1e-3, "{loss}");
        assert_eq!([0, 9, 10, 89, 99, 100].map(decade), [0, 0, 1, 8, 9, 9]);
    }

    #[test]
    fn a_method_reads_from_toml() {
        let read = |text: &str| toml::from_str::<AgeConfig>(text);
        assert_eq!(read("method = \"ordinal\"").unwrap(), AgeConfig::Ordinal);
        assert_eq!(
            read("method = \"mean-variance\"\nmean = 0.2\nvariance = 0.05").unwrap(),
            AgeConfig::MeanVariance { mean: 0.2, variance: 0.05 }
        );
        assert!(read("method = \"ordinals\"").is_err());
        assert!(read("method = \"fine-coarse\"").unwrap_err().to_string().contains("coarse"));
    }
}
