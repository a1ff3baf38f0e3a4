//! The network that ships: its ONNX file answers what libtorch answers with the weights that are kept for training on.

#![allow(clippy::unwrap_used)]

use std::env;
use std::path::{Path, PathBuf};

use facewise_core::picture::{self, Limits, RgbImage};
use facewise_evaluation::{Dataset, Filter};
use facewise_training::checkpoint;
use facewise_training::config::Config;
use facewise_training::model::{LOGIT_TOLERANCE, PARITY_PICTURES};
use facewise_training::network::Network;
use facewise_training::onnx::parity::{self, ROW_TOLERANCE};
use facewise_training::sample::{Labels, Sample};
use facewise_training::validate;
use tch::Device;
use tch::nn::VarStore;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn agrees_on(samples: &[Sample]) {
    assert!(samples.len() >= PARITY_PICTURES);
    tch::set_num_threads(1);
    let config = Config::read(&workspace().join("training/configs/default.toml")).unwrap();
    let variables = VarStore::new(Device::Cpu);
    let network = Network::new(&variables.root(), &config.graph().unwrap());
    checkpoint::load_weights(&workspace().join("training/weights/face-attributes-1.safetensors"), &variables).unwrap();
    let batches = validate::plain_batches(samples, config.size()).map(|batch| validate::pixels(&batch, Device::Cpu));
    let onnx = workspace().join("models/face-attributes/1/model.onnx");
    let parity = parity::check(&onnx, &network, batches, LOGIT_TOLERANCE).unwrap();
    assert_eq!(parity.pictures, samples.len());
    assert!(parity.max_abs_difference <= LOGIT_TOLERANCE && parity.max_row_difference <= ROW_TOLERANCE);
}

#[test]
fn onnx_runtime_agrees_with_libtorch_on_synthetic_crops() {
    let samples: Vec<Sample> = (0..PARITY_PICTURES as u32)
        .map(|seed| {
            let value = |x: u32, y: u32, c: u32| ((x * (seed % 7 + c) + y * (seed % 5 + 1) + seed * 31) % 256) as u8;
            let picture = RgbImage::from_fn(96, 96, |x, y| [value(x, y, 1), value(y, x, 2), value(x, x, 3)].into());
            Sample { picture, landmarks: None, labels: Labels::default() }
        })
        .collect();
    agrees_on(&samples);
}

#[test]
fn onnx_runtime_agrees_with_libtorch_on_real_crops() {
    let data = env::var_os("FACEWISE_DATA").map_or_else(|| workspace().join("../shared/data"), PathBuf::from);
    let folder = data.join("utkface");
    if !folder.is_dir() {
        println!("skipped: {} is not there (FACEWISE_DATA names the folder with the labelled sets)", folder.display());
        return;
    }
    let set = Dataset::open(&folder).unwrap();
    let rows = set.select(&Filter::parse("split=val").unwrap()).unwrap();
    let samples: Vec<Sample> = rows
        .iter()
        .step_by(4)
        .map(|row| {
            let picture = picture::decode(&set.read(row).unwrap(), Limits::default()).unwrap();
            Sample { picture, landmarks: row.landmarks, labels: Labels::default() }
        })
        .collect();
    agrees_on(&samples);
}
