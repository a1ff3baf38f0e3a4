//! Speed of a training step: forward, backward and `AdamW`, on random pictures or on packed ones with augmentation.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use tch::Device;
use tch::nn::VarStore;

use crate::config::Config;
use crate::loader::{self, Batch, Epoch, Mix};
use crate::loss;
use crate::network::{Mode, Network, Precision};
use crate::optimiser::{self, AdamW};
use crate::validate;

/// Steps before the clock starts: libtorch chooses its kernels in the first ones.
const WARM_UP: usize = 3;

/// Pictures per second with one random batch used again and again: the network and the optimiser alone.
///
/// # Errors
/// When the configuration's network cannot be built.
pub fn random(config: &Config, steps: usize, device: Device, precision: Precision) -> Result<f64> {
    let batch = loader::random_batch(config.size(), config.batch, config.seed);
    measure(config, std::iter::repeat_n(batch, steps + WARM_UP), steps, device, precision)
}

/// Pictures per second on the mix as in training, augmentation and loading included.
///
/// # Errors
/// When the network cannot be built, or the mix has too few samples for so many steps.
pub fn packed(config: &Config, mix: Mix, steps: usize, device: Device, precision: Precision) -> Result<f64> {
    ensure!(mix.epoch_len() / config.batch >= steps + WARM_UP, "an epoch is shorter than {} steps", steps + WARM_UP);
    let epoch = Epoch {
        seed: config.seed,
        number: 0,
        batch: config.batch,
        size: config.size(),
        skip: 0,
        augmentation: config.augmentation.clone(),
    };
    measure(config, epoch.batches(&Arc::new(mix), config.loaders), steps, device, precision)
}

fn measure(
    config: &Config,
    batches: impl Iterator<Item = Batch>,
    steps: usize,
    device: Device,
    precision: Precision,
) -> Result<f64> {
    let variables = VarStore::new(device);
    let network = Network::new(&variables.root(), &config.graph()?).with_precision(precision);
    let mut optimiser = AdamW::new(&variables, &config.optimiser);
    let mut started = Instant::now();
    for (step, batch) in batches.take(steps + WARM_UP).enumerate() {
        if step == WARM_UP {
            started = Instant::now();
        }
        let losses = loss::joint(
            &network.answer(&validate::pixels(&batch, device), Mode::Train),
            &batch.labels,
            &config.loss,
            &config.age,
            None,
        );
        optimiser.zero_grad();
        losses.total.backward();
        optimiser.step(step as u64 + 1, optimiser::learning_rate(&config.optimiser, step as u64 + 1, steps as u64));
    }
    Ok((steps * config.batch) as f64 / started.elapsed().as_secs_f64())
}
