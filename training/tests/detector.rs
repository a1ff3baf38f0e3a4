//! A detector's file finds what its network finds, at every size.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use facewise_core::detection::Selection;
use facewise_core::geometry::Similarity;
use facewise_core::picture::RgbImage;
use facewise_evaluation::detection::Truth;
use facewise_training::architectures::detector::{DetectorConfig, detector};
use facewise_training::detector::config::Config;
use facewise_training::detector::model;
use facewise_training::detector::onnx::Engine;
use facewise_training::detector::validate::Exam;
use facewise_training::graph::Graph;
use facewise_training::model::Identity;
use facewise_training::network::Network;
use facewise_training::onnx::messages::{Dimension, ModelProto, ValueInfoProto};
use facewise_training::onnx::parity;
use prost::Message;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::common::random;

const SIZE: u32 = 96;

fn narrow() -> Graph {
    let config = DetectorConfig {
        size: SIZE as usize,
        stem: [8, 8],
        widths: [8, 16, 16],
        blocks: [1, 2, 1],
        pyramid: 8,
        head: 1,
    };
    detector(&config).unwrap()
}

fn saved(folder: &Path, graph: &Graph, store: &VarStore) {
    let mut config = Config::parse(include_str!("../configs/detector.toml")).unwrap();
    config.stages.iter_mut().for_each(|stage| stage.size = SIZE);
    let identity = Identity { name: "face-detector".into(), version: "1".into(), description: String::new() };
    let manifest = model::manifest(&config, graph, identity).unwrap();
    model::save(folder, graph, store, &manifest).unwrap();
}

fn network() -> (Graph, VarStore, Network) {
    let graph = narrow();
    let (store, network) = random(&graph);
    (graph, store, network)
}

fn exams() -> Vec<Exam> {
    let value = |x: u32, y: u32, seed: u32| ((x * (seed + 3) + y * (2 * seed + 1)) % 256) as u8;
    (0..5)
        .map(|seed| Exam {
            picture: RgbImage::from_fn(SIZE, SIZE, |x, y| {
                [value(x, y, seed), value(y, x, seed), value(x, x, seed)].into()
            }),
            to_truth: Similarity::onto_square(0.0, 0.0, SIZE as f32),
            truth: Truth::default(),
        })
        .collect()
}

fn dimensions(info: &ValueInfoProto) -> Vec<String> {
    let shape = info.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap();
    let text = |value: &Dimension| match value {
        Dimension::Value(n) => n.to_string(),
        Dimension::Param(name) => name.clone(),
    };
    shape.dim.iter().map(|dimension| text(dimension.value.as_ref().unwrap())).collect()
}

#[test]
fn batch_height_and_width_are_free() {
    let folder = tempfile::tempdir().unwrap();
    let (graph, store, network) = network();
    saved(folder.path(), &graph, &store);
    let file = folder.path().join("model.onnx");

    let model = ModelProto::decode(fs::read(&file).unwrap().as_slice()).unwrap().graph.unwrap();
    assert_eq!(dimensions(&model.input[0]), ["batch", "3", "height", "width"]);
    let outputs: Vec<_> = model.output.iter().map(|output| (output.name.as_str(), dimensions(output))).collect();
    for ((name, dimensions), stride) in outputs.iter().zip([8, 16, 32]) {
        assert_eq!(*name, format!("stride_{stride}"));
        assert_eq!(dimensions[..], ["batch", "13", &format!("height/{stride}"), &format!("width/{stride}")]);
    }

    tch::manual_seed(5);
    let batches = [[2, 3, 96, 96], [1, 3, 64, 160], [3, 3, 32, 32]];
    let batches = batches.map(|shape| Tensor::randn(shape, (Kind::Float, Device::Cpu)));
    let parity = parity::check(&file, &network, batches, model::MAP_TOLERANCE).unwrap();
    assert_eq!(parity.pictures, 6);
}

#[test]
fn the_file_finds_the_faces_that_the_network_finds() {
    let folder = tempfile::tempdir().unwrap();
    let (graph, store, network) = network();
    saved(folder.path(), &graph, &store);
    let parity = model::check(folder.path(), &network, &exams()).unwrap();
    assert_eq!(parity.pictures, 5);
    let mut engine = Engine::open(folder.path()).unwrap();
    let found = engine.detect(&exams()[0].picture, &Selection::default()).unwrap();
    assert!(!found.is_empty(), "two engines that find nothing agree on nothing");

    let mut bias = store.variables()["head8.out.bias"].shallow_clone();
    tch::no_grad(|| bias.copy_(&(&bias + 0.1)));
    let error = model::check(folder.path(), &network, &exams()).unwrap_err().to_string();
    assert!(error.contains("stride_8"), "{error}");
}
