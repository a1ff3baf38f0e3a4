//! `AdamW` and plain descent with momentum, their state in plain tensors, so that a run resumes exactly; schedules; and the average of the
//! weights.

use tch::nn::VarStore;
use tch::{Kind, Tensor, no_grad};

use crate::config::OptimiserConfig;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// What steps along the gradient.
pub trait Optimiser {
    /// Forgets the gradients.
    fn zero_grad(&mut self);
    /// One step along the gradients. `step` counts from 1.
    fn step(&mut self, step: u64, learning_rate: f64);
    /// The state by name, for a checkpoint.
    fn state(&self) -> Vec<(String, Tensor)>;
}

/// `AdamW` (Loshchilov & Hutter 2019, algorithm 2) on the trainable variables of a store.
#[derive(Debug)]
pub struct AdamW {
    config: OptimiserConfig,
    parameters: Vec<Parameter>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    value: Tensor,
    /// Running mean of the gradient.
    first: Tensor,
    /// Decaying sum of its square: the running mean without the factor `1 − β2`, which spares a tensor a step.
    second: Tensor,
    decay: f64,
}

impl AdamW {
    /// An optimiser of all trainable variables. Vectors (biases, batch norm) are not decayed.
    pub fn new(variables: &VarStore, config: &OptimiserConfig) -> Self {
        let parameters = sorted(variables)
            .into_iter()
            .filter(|(_, value)| value.requires_grad())
            .map(|(name, value)| Parameter {
                first: value.zeros_like().detach(),
                second: value.zeros_like().detach(),
                decay: if value.dim() > 1 { config.weight_decay } else { 0.0 },
                name,
                value,
            })
            .collect();
        Self { config: config.clone(), parameters }
    }

    /// The same with decay of vectors too, as `PyTorch`'s own `AdamW` does it.
    #[must_use]
    pub fn decaying_vectors(mut self) -> Self {
        for parameter in &mut self.parameters {
            parameter.decay = self.config.weight_decay;
        }
        self
    }

    /// Forgets the gradients.
    pub fn zero_grad(&mut self) {
        for parameter in &mut self.parameters {
            parameter.value.zero_grad();
        }
    }

    /// One step along the gradients, clipped to the configured norm. `step` counts from 1.
    pub fn step(&mut self, step: u64, learning_rate: f64) {
        no_grad(|| {
            let gradients = clipped(self.parameters.iter().map(|parameter| &parameter.value), self.config.clip_norm);
            let power = i32::try_from(step).unwrap_or(i32::MAX);
            let (correction1, correction2) = (1.0 - BETA1.powi(power), 1.0 - BETA2.powi(power));
            for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
                if !gradient.defined() {
                    continue;
                }
                let _ = parameter.first.lerp_(&gradient, 1.0 - BETA1);
                let _ = parameter.second.g_mul_scalar_(BETA2);
                let _ = parameter.second.addcmul_(&gradient, &gradient);
                // value −= rate · (first / correction1) / (√((1 − β2) · second / correction2) + ε), with all factors in the divisor.
                let scale = -correction1 / learning_rate;
                let mut divisor = parameter.second.sqrt();
                let _ = divisor.g_mul_scalar_(scale * ((1.0 - BETA2) / correction2).sqrt());
                let _ = divisor.g_add_scalar_(scale * EPSILON);
                let _ = parameter.value.g_mul_scalar_(1.0 - learning_rate * parameter.decay);
                let _ = parameter.value.addcdiv_(&parameter.first, &divisor);
            }
        });
    }

    /// The state by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.parameters
            .iter()
            .flat_map(|p| {
                [
                    (format!("first.{}", p.name), p.first.shallow_clone()),
                    (format!("second.{}", p.name), p.second.shallow_clone()),
                ]
            })
            .collect()
    }
}

impl Optimiser for AdamW {
    fn zero_grad(&mut self) {
        Self::zero_grad(self);
    }

    fn step(&mut self, step: u64, learning_rate: f64) {
        Self::step(self, step, learning_rate);
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        Self::state(self)
    }
}

/// Stochastic gradient descent with momentum, as `PyTorch` does it: `v ← momentum · v + (gradient + decay · value)`, `value −= rate · v`. All
/// variables decay.
#[derive(Debug)]
pub struct Sgd {
    config: OptimiserConfig,
    momentum: f64,
    /// Name, value and velocity.
    parameters: Vec<(String, Tensor, Tensor)>,
}

impl Sgd {
    /// An optimiser of all trainable variables. Of `config` the weight decay and the largest norm of the gradient count.
    pub fn new(variables: &VarStore, config: &OptimiserConfig, momentum: f64) -> Self {
        let parameters = sorted(variables)
            .into_iter()
            .filter(|(_, value)| value.requires_grad())
            .map(|(name, value)| (name, value.shallow_clone(), value.zeros_like().detach()))
            .collect();
        Self { config: config.clone(), momentum, parameters }
    }
}

impl Optimiser for Sgd {
    fn zero_grad(&mut self) {
        for (_, value, _) in &mut self.parameters {
            value.zero_grad();
        }
    }

    fn step(&mut self, _step: u64, learning_rate: f64) {
        no_grad(|| {
            let gradients = clipped(self.parameters.iter().map(|(_, value, _)| value), self.config.clip_norm);
            for ((_, value, velocity), gradient) in self.parameters.iter_mut().zip(gradients) {
                if gradient.defined() {
                    let _ = velocity.g_mul_scalar_(self.momentum);
                    *velocity += gradient + &*value * self.config.weight_decay;
                    *value -= &*velocity * learning_rate;
                }
            }
        });
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let velocity =
            |(name, _, velocity): &(String, Tensor, Tensor)| (format!("velocity.{name}"), velocity.shallow_clone());
        self.parameters.iter().map(velocity).collect()
    }
}

/// The gradients of the variables, scaled down together to a norm of at most `limit`; those that there are not stay undefined.
fn clipped<'a>(values: impl Iterator<Item = &'a Tensor>, limit: f64) -> Vec<Tensor> {
    let mut gradients: Vec<Tensor> = values.map(Tensor::grad).collect();
    let norms: Vec<Tensor> = gradients.iter().filter(|gradient| gradient.defined()).map(Tensor::norm).collect();
    let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
    let clip = (limit / (norm + 1e-6)).min(1.0);
    if clip < 1.0 {
        for gradient in gradients.iter_mut().filter(|gradient| gradient.defined()) {
            let _ = gradient.g_mul_scalar_(clip);
        }
    }
    gradients
}

/// How a learning rate falls when the validation loss no longer does: `ReduceLROnPlateau` of `PyTorch`, with its threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    /// Epochs without a lower loss that are borne.
    pub patience: u32,
    /// What the rate is multiplied by after more of them.
    pub factor: f64,
}

/// How far a rate has fallen by a [`Plateau`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fall {
    /// What the rate is multiplied by.
    pub share: f64,
    /// The lowest loss so far.
    pub best: f64,
    /// Epochs since then, or since the last fall.
    pub waited: u32,
}

impl Default for Fall {
    fn default() -> Self {
        Self { share: 1.0, best: f64::INFINITY, waited: 0 }
    }
}

impl Fall {
    /// What follows from the validation loss of one more epoch.
    #[must_use]
    pub fn after(self, loss: f64, plateau: Plateau) -> Self {
        const THRESHOLD: f64 = 1e-4;
        if loss < self.best * (1.0 - THRESHOLD) {
            return Self { best: loss, waited: 0, ..self };
        }
        if self.waited < plateau.patience {
            return Self { waited: self.waited + 1, ..self };
        }
        Self { share: self.share * plateau.factor, waited: 0, ..self }
    }
}

/// The learning rate at a step counted from 1: linear warm-up, then a cosine down to the final share.
pub fn learning_rate(config: &OptimiserConfig, step: u64, steps: u64) -> f64 {
    if step <= config.warmup_steps {
        return config.learning_rate * step as f64 / config.warmup_steps as f64;
    }
    let done = (step - config.warmup_steps) as f64 / (steps.saturating_sub(config.warmup_steps).max(1)) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
    config.learning_rate * (config.final_share + (1.0 - config.final_share) * cosine)
}

/// Moves the averaged variables towards the live ones; the decay grows from 0 so that the start does not linger.
pub fn average(averaged: &VarStore, live: &VarStore, decay: f64, step: u64) {
    let decay = decay.min((1.0 + step as f64) / (10.0 + step as f64));
    no_grad(|| {
        for ((_, mut mean), (_, value)) in sorted(averaged).into_iter().zip(sorted(live)) {
            if mean.kind() == Kind::Float {
                let _ = mean.lerp_(&value, 1.0 - decay);
            } else {
                mean.copy_(&value);
            }
        }
    });
}

/// The variables in the order of their names.
pub fn sorted(variables: &VarStore) -> Vec<(String, Tensor)> {
    let mut variables: Vec<(String, Tensor)> = variables.variables().into_iter().collect();
    variables.sort_by(|(a, _), (b, _)| a.cmp(b));
    variables
}

#[cfg(test)]
mod tests {
    use tch::nn::{Init, VarStore};
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn config() -> OptimiserConfig {
        OptimiserConfig {
            learning_rate: 0.1,
            warmup_steps: 10,
            final_share: 0.01,
            weight_decay: 0.1,
            clip_norm: 1e9,
            ema_decay: 0.9,
        }
    }

    /// Against libtorch's own `AdamW` on the same gradients.
    #[test]
    fn steps_equal_those_of_libtorch() {
        let start = Tensor::from_slice(&[1.0f32, -2.0, 3.0, 0.5]).view([2, 2]);
        let run = |steps: &mut dyn FnMut(&VarStore, &Tensor)| {
            let store = VarStore::new(Device::Cpu);
            let mut weight = store.root().var("weight", &[2, 2], Init::Const(0.0));
            no_grad(|| weight.copy_(&start));
            steps(&store, &weight);
            Vec::<Vec<f32>>::try_from(weight.detach()).expect("two by two")
        };
        let loss = |weight: &Tensor, step: u64| (weight * weight * (step as f64) + weight * 0.3).sum(Kind::Float);
        let ours = run(&mut |store, weight| {
            let mut adamw = AdamW::new(store, &config());
            for step in 1..=5 {
                adamw.zero_grad();
                loss(weight, step).backward();
                adamw.step(step, 0.1);
            }
        });
        let theirs = run(&mut |store, weight| {
            use tch::nn::OptimizerConfig;
            let kind = tch::nn::AdamW { beta1: BETA1, beta2: BETA2, wd: 0.1, eps: EPSILON, amsgrad: false };
            let mut adamw = kind.build(store, 0.1).expect("an optimiser");
            for step in 1..=5 {
                adamw.backward_step(&loss(weight, step));
            }
        });
        for (a, b) in ours.iter().flatten().zip(theirs.iter().flatten()) {
            assert!((a - b).abs() < 1e-5, "{ours:?} is not {theirs:?}");
        }
    }

    #[test]
    fn the_rate_warms_up_and_decays() {
        let config = config();
        let rate = |step| learning_rate(&config, step, 110);
        assert!((rate(5) - 0.05).abs() < 1e-9);
        assert!((rate(10) - 0.1).abs() < 1e-9);
        assert!((rate(60) - 0.0505).abs() < 1e-6);
        assert!((rate(110) - 0.001).abs() < 1e-9);
    }

    #[test]
    fn the_average_follows_slowly() {
        let store = |value: f64| {
            let store = VarStore::new(Device::Cpu);
            let _weight = store.root().var("w", &[1], Init::Const(value));
            store
        };
        let (averaged, live) = (store(0.0), store(1.0));
        average(&averaged, &live, 0.9, 1_000_000);
        let value = sorted(&averaged)[0].1.double_value(&[0]);
        assert!((value - 0.1).abs() < 1e-6, "{value}");
    }

    /// By hand: gradient 2w, momentum 0.9, decay 0.5, rate 0.1.
    #[test]
    fn descent_with_momentum_is_that_of_pytorch() {
        let store = VarStore::new(Device::Cpu);
        let weight = store.root().var("weight", &[1], Init::Const(1.0));
        let mut sgd =
            Sgd::new(&store, &OptimiserConfig { weight_decay: 0.5, clip_norm: f64::INFINITY, ..config() }, 0.9);
        let mut values = Vec::new();
        for step in 1..=2 {
            sgd.zero_grad();
            (&weight * &weight).sum(Kind::Float).backward();
            sgd.step(step, 0.1);
            values.push(weight.double_value(&[0]));
        }
        // v = 2.5, w = 0.75; v = 0.9 · 2.5 + 2.5 · 0.75 = 4.125, w = 0.3375.
        assert!((values[0] - 0.75).abs() < 1e-6 && (values[1] - 0.3375).abs() < 1e-6, "{values:?}");
        assert_eq!(sgd.state()[0].0, "velocity.weight");
    }

    #[test]
    fn the_rate_falls_after_more_epochs_than_its_patience() {
        let plateau = Plateau { patience: 2, factor: 0.1 };
        let fall = [1.0, 0.5, 0.5, 0.499_99, 0.6].iter().fold(Fall::default(), |fall, loss| fall.after(*loss, plateau));
        assert_eq!(fall, Fall { share: 0.1, best: 0.5, waited: 0 }, "a gain of less than a ten-thousandth is none");
        let fall = fall.after(0.4, plateau);
        assert_eq!((fall.waited, fall.best), (0, 0.4));
    }
}
