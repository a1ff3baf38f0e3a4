//! Scores a network on rows.

use anyhow::Result;
use facewise_core::decode::AgeDistribution;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::rows::Examples;
use super::target::Target;
use crate::network::{Mode, Network};

/// Rows in one pass.
const BATCH: i64 = 4096;

/// What a network is worth on some rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Rows scored.
    pub n: usize,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Share of rows whose most probable class is their own.
    pub accuracy: f64,
    /// Share of rows whose most probable class is their own or a neighbour of it; only of ages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_off: Option<f64>,
    /// Mean absolute errors in years; only of ages in years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mae: Option<Mae>,
}

/// Mean absolute error in years of three readings of the posterior.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mae {
    /// The most probable year.
    pub argmax: f64,
    /// The expected value.
    pub mean: f64,
    /// The median, which is what a server answers.
    pub median: f64,
}

/// The logits of all classes: one logit of two classes is that of the second, the first having 0.
pub fn all_classes(logits: &Tensor) -> Tensor {
    if logits.size()[1] == 1 { Tensor::cat(&[&logits.zeros_like(), logits], 1) } else { logits.shallow_clone() }
}

/// The score of a network on rows; not on none.
///
/// # Errors
/// When the network answers something that is no distribution.
pub fn score(network: &Network, rows: &Examples, target: &Target) -> Result<Score> {
    let n = rows.len() as i64;
    let (mut loss, mut right, mut near) = (0.0, 0.0, 0.0);
    let mut errors = Mae { argmax: 0.0, mean: 0.0, median: 0.0 };
    for first in (0..n).step_by(BATCH as usize) {
        let length = BATCH.min(n - first);
        let logits = all_classes(&network.forward(&rows.inputs.narrow(0, first, length), Mode::Eval)[0]);
        let classes = rows.classes.narrow(0, first, length);
        loss += logits.cross_entropy_for_logits(&classes).double_value(&[]) * length as f64;
        let off = (logits.argmax(1, false) - &classes).abs();
        right += off.eq(0).sum(Kind::Double).double_value(&[]);
        near += off.le(1).sum(Kind::Double).double_value(&[]);
        if *target == Target::Age {
            let probabilities = logits.softmax(1, Kind::Float).to_device(Device::Cpu);
            let rows_of = Vec::<Vec<f32>>::try_from(probabilities)?;
            for (probabilities, years) in rows_of.iter().zip(&rows.years[first as usize..]) {
                let posterior = AgeDistribution::from_probabilities(probabilities)?;
                let error = |reading: f32| f64::from((reading - years).abs());
                errors.argmax += error(posterior.mode() as f32);
                errors.mean += error(posterior.mean());
                errors.median += error(posterior.median());
            }
        }
    }
    let mean = |sum: f64| sum / n as f64;
    let Mae { argmax, mean: expected, median } = errors;
    Ok(Score {
        n: rows.len(),
        loss: mean(loss),
        accuracy: mean(right),
        one_off: target.is_ordered().then(|| mean(near)),
        mae: (*target == Target::Age).then(|| Mae { argmax: mean(argmax), mean: mean(expected), median: mean(median) }),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tch::nn::VarStore;

    use super::*;
    use crate::graph::{GraphBuilder, Input, Linear};

    /// A network whose logits are its input.
    fn mirror(classes: usize) -> (VarStore, Network) {
        let mut b = GraphBuilder::new(Input::Vector(classes));
        let x = b.linear("same", b.input(), Linear::new(classes, classes));
        let store = VarStore::new(Device::Cpu);
        let network = Network::new(&store.root(), &b.finish([("head", x)]).unwrap());
        let identity = Tensor::eye(classes as i64, (Kind::Float, Device::Cpu));
        tch::no_grad(|| store.variables()["same.weight"].shallow_clone().copy_(&identity));
        (store, network)
    }

    fn examples(logits: &[Vec<f32>], classes: &[i64], years: &[f32]) -> Examples {
        Examples {
            inputs: Tensor::from_slice(&logits.concat()).view([logits.len() as i64, -1]),
            classes: Tensor::from_slice(classes),
            years: years.to_vec(),
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-4
    }

    #[test]
    fn ages_are_scored_by_hand() {
        let mut even = vec![-1e4; 101];
        (even[20], even[30]) = (0.0, 0.0);
        let mut sure = vec![-1e4; 101];
        sure[41] = 0.0;
        let rows = examples(&[even, sure], &[20, 40], &[20.0, 40.5]);
        let score = score(&mirror(101).1, &rows, &Target::Age).unwrap();
        assert_eq!((score.n, score.accuracy, score.one_off), (2, 0.5, Some(1.0)));
        // ln 2 for the first row; the second row's year has the logit −10,000.
        assert!((score.loss - f64::midpoint(2f64.ln(), 1e4)).abs() < 0.01, "{score:?}");
        let mae = score.mae.unwrap();
        assert!(close(mae.argmax, 0.25) && close(mae.mean, f64::midpoint(5.0, 0.5)), "{mae:?}");
        // Half of the mass lies below the upper edge of year 20.
        assert!(close(mae.median, f64::midpoint(0.5, 0.5)), "{mae:?}");
    }

    #[test]
    fn one_logit_is_that_of_the_second_class() {
        let logits = vec![vec![2.0], vec![-1.0], vec![-1.0]];
        let rows = examples(&logits, &[1, 0, 1], &[]);
        let score = score(&mirror(1).1, &rows, &"Smiling".parse().unwrap()).unwrap();
        assert!(close(score.accuracy, 2.0 / 3.0) && score.one_off.is_none() && score.mae.is_none());
        let cross_entropy = |z: f64| (1.0 + (-z).exp()).ln();
        assert!(close(score.loss, (cross_entropy(2.0) + cross_entropy(1.0) + cross_entropy(-1.0)) / 3.0), "{score:?}");
    }
}
