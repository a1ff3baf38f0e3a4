//! Every layer of a graph, and whole networks, give the same numbers in libtorch and, exported, in ONNX Runtime.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use facewise_training::architectures::residual::{ResidualConfig, residual};
use facewise_training::graph::{
    Activation, Affine, BatchNorm, Conv2d, Graph, GraphBuilder, Input, InputSpec, Linear, Ordinal, Window,
};
use facewise_training::network::{Mode, Network};
use facewise_training::onnx::export::{self, ExportError};
use facewise_training::onnx::messages::ModelProto;
use facewise_training::onnx::metadata;
use facewise_training::onnx::parity::{self, Parity, ParityError};
use facewise_training::onnx::runtime;
use ort::value::Tensor as OrtTensor;
use prost::Message;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use crate::common::random;

/// Each layer at least once, in the combinations that the writer treats apart.
fn every_layer() -> Graph {
    let mut b = GraphBuilder::new(InputSpec { channels: 3, size: 32 });
    let pixels = b.input();
    let x = b.conv2d("stem", pixels, Conv2d::new(3, 8, 3).stride(2));
    let x = b.batch_norm("stem_bn", x, BatchNorm::new(8));
    let x = b.activation(x, Activation::LeakyRelu { slope: 0.2 });
    let depthwise = b.conv2d("depthwise", x, Conv2d::new(8, 8, 5).groups(8).biased());
    let depthwise = b.batch_norm("depthwise_bn", depthwise, BatchNorm { eps: 1e-3, ..BatchNorm::new(8) });
    let depthwise = b.activation(depthwise, Activation::HardSwish);
    // This convolution also serves the sum, so that the normalisation after it cannot be folded.
    let shared = b.conv2d("shared", depthwise, Conv2d::new(8, 8, 1));
    let alone = b.batch_norm("alone_bn", shared, BatchNorm::new(8));
    let alone = b.activation(alone, Activation::Silu);
    let sum = b.add(shared, alone);
    let small = b.max_pool(sum, Window { kernel: 3, stride: 2, padding: 1 });
    let large = b.upsample(small);
    let tanh = b.activation(large, Activation::Tanh);
    let product = b.mul(tanh, sum);
    let joined = b.concat(vec![product, x, large]);
    // Squeeze and excitation: one factor per channel.
    let squeezed = b.global_avg_pool(joined);
    let squeezed = b.linear("squeeze", squeezed, Linear { bias: false, ..Linear::new(24, 6) });
    let squeezed = b.batch_norm("squeeze_bn", squeezed, BatchNorm::new(6));
    let squeezed = b.relu(squeezed);
    let excited = b.linear("excite", squeezed, Linear::new(6, 24));
    let excited = b.activation(excited, Activation::Sigmoid);
    let scaled = b.mul(joined, excited);
    let pooled = b.avg_pool(scaled, Window { kernel: 3, stride: 3, padding: 1 });
    let flat = b.flatten(pooled);
    let vector_norm = b.batch_norm("vector_bn", flat, BatchNorm::new(24 * 36));
    let dropped = b.dropout(vector_norm, 0.5);
    let head = b.linear("heads.smile", dropped, Linear::new(24 * 36, 2));
    let weights = b.linear("heads.weights", dropped, Linear::new(24 * 36, 4));
    let weights = b.softmax(weights);
    let thresholds = b.ordinal("heads.thresholds", dropped, Ordinal { inputs: 24 * 36, thresholds: 5 });
    let shifted = b.affine(thresholds, Affine::new(5, 4, |i, j| (i * 2 + j) as f32 - 3.0, |i| i as f32));
    let ratio = b.activation(shifted, Activation::Tanh);
    let two = b.affine(ratio, Affine::each(4, 1.0, |_| 2.0));
    let ratio = b.div(weights, two);
    // A map, a dropout and one value under two names are outputs too.
    b.finish([
        ("smile", head),
        ("weights", weights),
        ("again", weights),
        ("map", small),
        ("features", dropped),
        ("thresholds", thresholds),
        ("ratio", ratio),
    ])
    .unwrap()
}

struct Exported {
    folder: TempDir,
    model: ModelProto,
}

impl Exported {
    fn new(graph: &Graph, store: &VarStore, size: usize, heads: &[&str]) -> Self {
        let model = export::write(graph, &store.variables(), size, heads, r#"{"schema":1}"#).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.onnx"), model.encode_to_vec()).unwrap();
        Self { folder, model }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.onnx")
    }

    fn count(&self, operator: &str) -> usize {
        self.model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type == operator).count()
    }

    fn outputs(&self) -> Vec<&str> {
        self.model.graph.as_ref().unwrap().output.iter().map(|output| output.name.as_str()).collect()
    }
}

fn agree(exported: &Exported, network: &Network, batches: Vec<Tensor>) -> Parity {
    parity::check(&exported.path(), network, batches, 1e-4).unwrap_or_else(|error| panic!("{error}"))
}

fn batches(sizes: &[i64], side: i64) -> Vec<Tensor> {
    tch::manual_seed(5);
    sizes.iter().map(|n| Tensor::randn([*n, 3, side, side], (Kind::Float, Device::Cpu))).collect()
}

#[test]
fn every_layer_agrees() {
    let graph = every_layer();
    let (store, network) = random(&graph);
    let exported = Exported::new(&graph, &store, 32, &["smile"]);
    assert_eq!(
        exported.outputs(),
        ["smile_logits", "smile", "weights", "again", "map", "features", "thresholds", "ratio"]
    );
    assert_eq!(exported.count("BatchNormalization"), 2, "only those that cannot be folded are left");
    assert_eq!(exported.count("Dropout"), 0);

    let parity = agree(&exported, &network, batches(&[5, 1, 3], 32));
    assert_eq!(parity.pictures, 9);
}

#[test]
fn the_residual_network_agrees_at_two_sizes() {
    let graph = residual(&ResidualConfig { dropout: 0.2, ..ResidualConfig::default() }).unwrap();
    let (store, network) = random(&graph);
    for side in [48, 64] {
        let exported = Exported::new(&graph, &store, side as usize, &["age", "gender", "smile", "emotion"]);
        assert_eq!(exported.count("Conv"), 20);
        assert_eq!(exported.count("BatchNormalization"), 0);
        let Parity { max_abs_difference, max_row_difference, .. } = agree(&exported, &network, batches(&[8], side));
        let logits = network.forward(&batches(&[8], side)[0], Mode::Eval);
        assert!(
            logits.iter().all(|l| l.std(false).double_value(&[]) > 0.1),
            "logits near zero would agree whatever they are"
        );
        assert!(max_abs_difference > 0.0, "two engines that never differ in a bit are one");
        assert!(max_row_difference <= parity::ROW_TOLERANCE);
    }
}

#[test]
fn equal_networks_give_equal_bytes() {
    let graph = every_layer();
    let (store, _network) = random(&graph);
    let bytes = || Exported::new(&graph, &store, 32, &["smile"]).model.encode_to_vec();
    assert_eq!(bytes(), bytes());
}

#[test]
fn a_changed_weight_is_found_with_output_and_row() {
    let graph = residual(&ResidualConfig::default()).unwrap();
    let (store, network) = random(&graph);
    let exported = Exported::new(&graph, &store, 64, &["age", "gender", "smile", "emotion"]);
    let mut bias = store.variables()["heads.gender.bias"].shallow_clone();
    tch::no_grad(|| bias.copy_(&(&bias + Tensor::from_slice(&[0.01_f32, -0.01]))));
    let error = parity::check(&exported.path(), &network, batches(&[4], 64), 1e-4).unwrap_err();
    let ParityError::Difference { output, row, .. } = &error else { panic!("{error}") };
    // A softmax that is sure hides the change: the first row that shows it is reported.
    assert!(output.starts_with("gender") && *row < 4, "{error}");
}

#[test]
fn probabilities_are_the_softmax_of_their_own_head() {
    let graph = residual(&ResidualConfig::default()).unwrap();
    let (store, network) = random(&graph);
    let mut exported = Exported::new(&graph, &store, 64, &["gender", "smile"]);
    let nodes = &mut exported.model.graph.as_mut().unwrap().node;
    let softmax = nodes.iter_mut().find(|node| node.output[0] == "smile").unwrap();
    softmax.input = vec!["gender_logits".to_owned()];
    fs::write(exported.path(), exported.model.encode_to_vec()).unwrap();
    let error = parity::check(&exported.path(), &network, batches(&[4], 64), 1e-4).unwrap_err();
    assert!(matches!(&error, ParityError::Difference { output, .. } if output == "smile"), "{error}");
}

#[test]
fn the_manifest_can_be_replaced_in_a_model_that_still_runs() {
    let graph = every_layer();
    let (store, network) = random(&graph);
    let exported = Exported::new(&graph, &store, 32, &["smile"]);
    assert_eq!(metadata::manifest(&exported.path()).unwrap().unwrap(), r#"{"schema":1}"#);
    metadata::replace_manifest(&exported.path(), r#"{"schema":1,"metrics":[]}"#).unwrap();
    assert_eq!(metadata::manifest(&exported.path()).unwrap().unwrap(), r#"{"schema":1,"metrics":[]}"#);
    agree(&exported, &network, batches(&[2], 32));
}

#[test]
fn what_cannot_be_exported_is_said() {
    let graph = residual(&ResidualConfig::default()).unwrap();
    let (store, _network) = random(&graph);
    let write = |variables: &HashMap<String, Tensor>, size: usize, heads: &[&str]| {
        export::write(&graph, variables, size, heads, "{}").unwrap_err()
    };
    let with = |name: &str, value: Tensor| {
        let mut variables = store.variables();
        variables.insert(name.to_owned(), value);
        variables
    };

    let mut missing = store.variables();
    missing.remove("layer3.0.downsample.0.weight");
    let error = write(&missing, 64, &["age"]).to_string();
    assert_eq!(error, "the weights have no variable layer3.0.downsample.0.weight");

    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let error = write(&with("conv1.weight", zeros(&[32, 1, 3, 3])), 64, &["age"]);
    assert!(matches!(error, ExportError::Variable { name, .. } if name == "conv1.weight"));

    let error = write(&with("heads.age.bias", zeros(&[101]) / zeros(&[101])), 64, &["age"]);
    assert!(matches!(error, ExportError::NotFinite(name) if name == "heads.age.bias"));

    let error = write(&store.variables(), 64, &["mood"]);
    assert_eq!(error.to_string(), "the network has no vector output mood for a head");
}

#[test]
fn no_pictures_prove_nothing() {
    let graph = every_layer();
    let (store, network) = random(&graph);
    let exported = Exported::new(&graph, &store, 32, &["smile"]);
    let error = parity::check(&exported.path(), &network, [], 1e-4).unwrap_err();
    assert!(matches!(error, ParityError::NoPictures));
    assert_eq!(network.forward(&batches(&[2], 32)[0], Mode::Eval).len(), 7);
}

/// One number that is kept, and doubled, or dropped: two answers, each half of the time.
#[test]
fn many_passes_are_told_as_their_mean_and_votes() {
    const PASSES: u32 = 4096;
    let mut b = GraphBuilder::new(Input::Vector(1));
    let x = b.dropout(b.input(), 0.5);
    let x = b.linear("heads.smile", x, Linear::new(1, 2));
    let graph = b.finish([("smile", x)]).unwrap();
    let store = VarStore::new(Device::Cpu);
    let _network = Network::new(&store.root(), &graph);
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            let numbers: &[f32] = if name.ends_with("weight") { &[1.0, -1.0] } else { &[-0.5, 0.5] };
            variable.copy_(&Tensor::from_slice(numbers).view_as(&variable));
        }
    });
    let file = export::write_repeated(&graph, &store.variables(), &["smile"], PASSES, "{}").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, file.encode_to_vec()).unwrap();
    let mut session = runtime::session(&path).unwrap();
    let input = OrtTensor::from_array(([3_i64, 1], vec![0.0_f32, 1.0, -1.0])).unwrap();
    let outputs = session.run(ort::inputs![export::VECTOR => input]).unwrap();
    let rows = |name: &str| {
        let (shape, numbers) = outputs[name].try_extract_tensor::<f32>().unwrap();
        assert_eq!(shape.to_vec(), [3, 2]);
        numbers.to_vec()
    };
    let (means, votes) = (rows("smile"), rows("smile_votes"));
    // Dropped, the logits are (-0.5, 0.5); kept, they are the doubled number more and less than that.
    let first = |kept: f32| 1.0 / (1.0 + (1.0 - 4.0 * kept).exp());
    for (row, number) in [0.0, 1.0, -1.0].into_iter().enumerate() {
        let kept = if row == 1 { votes[2] } else { 0.5 };
        let expected = (1.0 - kept) * first(0.0) + kept * first(number);
        assert!((means[2 * row] - expected).abs() < 0.02, "row {row}: {means:?} is not {expected}");
        assert!((votes[2 * row] + votes[2 * row + 1] - 1.0).abs() < 1e-4, "{votes:?}");
    }
    // Only the second row has a first class that wins now and then; 0.04 are five standard deviations.
    assert!((votes[2] - 0.5).abs() < 0.04, "{votes:?}");
    assert!(votes[0] < 1e-6 && votes[4] < 1e-6, "{votes:?}");
}
