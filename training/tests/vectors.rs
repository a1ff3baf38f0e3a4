//! Networks on vectors learn, are written as ONNX, and are compared in studies.
#![allow(missing_docs, clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;

use facewise_training::checkpoint;
use facewise_training::lesson::{Options, SCORES, WEIGHTS};
use facewise_training::model::Identity;
use facewise_training::network::{Mode, Network, Precision};
use facewise_training::onnx::export::{self, Sides};
use facewise_training::onnx::parity;
use facewise_training::onnx::runtime;
use facewise_training::vectors::config::{Config, NetworkConfig, Schedule};
use facewise_training::vectors::model;
use facewise_training::vectors::rows::Rows;
use facewise_training::vectors::search::{self, SearchConfig, State};
use facewise_training::vectors::split::Split;
use facewise_training::vectors::study::{self, Plan, REPORT, Start, Study, Summary};
use facewise_training::vectors::train::{Manner, train};
use facewise_training::vectors::variant::Variant;
use ort::value::Tensor as OrtTensor;
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// Random rows with classes that have nothing to do with them, to be learned by heart.
fn noise(rows: usize, features: usize, classes: usize) -> Rows {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    Rows {
        features,
        values: (0..rows * features).map(|_| random.random_range(-1.0..1.0)).collect(),
        classes: (0..rows).map(|_| random.random_range(0..classes as i64)).collect(),
        ..Rows::default()
    }
}

/// Rows whose class is the sign of their first number.
fn signs(rows: usize, features: usize) -> Rows {
    let noise = noise(rows, features, 2);
    Rows { classes: noise.values.chunks(features).map(|row| i64::from(row[0] > 0.0)).collect(), ..noise }
}

/// A recipe that lives up to a small set: the network as it is shipped, another walk.
fn recipe(text: &str, epochs: u32, batch: usize) -> Config {
    let mut config = Config::parse(text).unwrap();
    (config.epochs, config.batch, config.patience) = (epochs, batch, None);
    config.optimiser.learning_rate = 2e-3;
    config.optimiser.schedule = Schedule::Exponential { gamma: 0.97 };
    config
}

const GENDER: &str = include_str!("../configs/resmlp-gender.toml");
const AGE_8: &str = include_str!("../configs/resmlp-age-8.toml");
const AGE_101: &str = include_str!("../configs/resmlp-age-101.toml");
const ATTRACTIVE: &str = include_str!("../configs/celeba-mlp-seed.toml");

fn options(run: &Path) -> Options {
    // Tests run beside each other; threads that wait for threads would only slow them down.
    tch::set_num_threads(1);
    Options { run: run.to_owned(), resume: false, init: None, device: Device::Cpu, precision: Precision::Fp32 }
}

#[test]
fn each_network_learns_a_small_set_by_heart_and_is_written_as_it_computes() {
    for (text, features, parameters) in
        [(GENDER, 512, 877_602), (AGE_8, 512, 825_736), (AGE_101, 512, 837_733), (ATTRACTIVE, 40, 3_517_345)]
    {
        let config = recipe(text, 60, 24);
        let mut rows = noise(24, features, config.target.classes());
        rows.years = rows.classes.iter().map(|class| *class as f32).collect();
        let all: Vec<usize> = (0..rows.len()).collect();
        let split = Split { train: all.clone(), validation: all, test: Vec::new() };
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let scores = train(&config, &rows, &split, &options(&run), &Manner::Quiet).unwrap();
        assert!(scores.train.accuracy > 0.95, "{}: {scores:?}", config.name);
        assert_eq!(scores.train, scores.validation, "the same rows, and the weights of the best epoch");

        let graph = config.graph(features).unwrap();
        assert_eq!(graph.parameters(), parameters);
        let store = VarStore::new(Device::Cpu);
        let network = Network::new(&store.root(), &graph);
        checkpoint::load_weights(&run.join(WEIGHTS), &store).unwrap();
        let file = export::write(&graph, &store.variables(), Sides::None, &[config.target.head()], "{}").unwrap();
        let path = folder.path().join("model.onnx");
        fs::write(&path, file.encode_to_vec()).unwrap();
        let inputs = Tensor::randn([7, features as i64], (Kind::Float, Device::Cpu));
        if parameters == 3_517_345 {
            // One logit has a softmax of 1; it is written as the logit that it is.
            let file = export::write(&graph, &store.variables(), Sides::None, &[] as &[&str], "{}").unwrap();
            fs::write(&path, file.encode_to_vec()).unwrap();
        }
        let parity = parity::check(&path, &network, [inputs], 1e-4).unwrap();
        assert_eq!(parity.pictures, 7);
    }
}

#[test]
fn one_logit_is_served_as_two_probabilities() {
    let mut config = recipe(ATTRACTIVE, 3, 32);
    config.target = "Smiling".parse().unwrap();
    let rows = signs(96, 40);
    let split = Split { train: (0..64).collect(), validation: (64..96).collect(), test: Vec::new() };
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&config, &rows, &split, &options(&run), &Manner::Quiet).unwrap();
    let identity = || Identity { name: "smiles".into(), version: "1".into(), description: String::new() };
    let (path, parity) =
        model::write(&run, &config, folder.path(), identity(), &rows, &split.validation, None).unwrap();
    assert_eq!((parity.pictures, path), (32, folder.path().join("smiles/1/model.onnx")));

    let store = VarStore::new(Device::Cpu);
    let network = Network::new(&store.root(), &config.graph(40).unwrap());
    checkpoint::load_weights(&run.join(WEIGHTS), &store).unwrap();
    let inputs = rows.examples(&split.validation, Device::Cpu).inputs;
    let expected = Vec::<f32>::try_from(network.forward(&inputs, Mode::Eval)[0].sigmoid().flatten(0, -1)).unwrap();
    let mut session = runtime::session(&folder.path().join("smiles/1/model.onnx")).unwrap();
    let numbers = Vec::<f32>::try_from(inputs.flatten(0, -1)).unwrap();
    let tensor = OrtTensor::from_array(([32_i64, 40], numbers)).unwrap();
    let outputs = session.run(ort::inputs![export::VECTOR => tensor]).unwrap();
    let (shape, found) = outputs["smile"].try_extract_tensor::<f32>().unwrap();
    assert_eq!(shape.to_vec(), [32, 2]);
    for (pair, smiling) in found.chunks(2).zip(expected) {
        assert!((pair[1] - smiling).abs() < 1e-5 && (pair[0] + pair[1] - 1.0).abs() < 1e-5, "{pair:?}, {smiling}");
    }

    let elsewhere = folder.path().join("refused");
    let refused = |config: &Config, passes| {
        let error = model::write(&run, config, &elsewhere, identity(), &rows, &split.validation, passes);
        error.unwrap_err().to_string()
    };
    let error = refused(&config, Some(8));
    assert!(error.starts_with("the network has no dropout"), "{error}");
    assert!(!elsewhere.exists(), "a server may be looking into the repository");
    config.target = "Attractive".parse().unwrap();
    let error = refused(&config, None);
    assert!(error.starts_with("a server has no task for 'Attractive'"), "{error}");
}

/// A small network and few epochs, for many trainings.
fn small() -> Config {
    let mut config = recipe(GENDER, 4, 16);
    let NetworkConfig::Resmlp(network) = &mut config.network else { panic!("a ResMLP") };
    network.blocks = 1;
    config
}

#[test]
fn a_run_keeps_its_best_epoch_and_ends_when_patience_does() {
    let config = Config { epochs: 40, patience: Some(2), ..small() };
    // Classes of noise: what is learned by heart only spoils the others.
    let rows = noise(64, 8, 2);
    let split = Split { train: (0..32).collect(), validation: (32..64).collect(), test: Vec::new() };
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let scores = train(&config, &rows, &split, &options(&run), &Manner::Quiet).unwrap();
    let text = fs::read_to_string(run.join("epochs.csv")).unwrap();
    let mut lines = text.lines();
    let header = "epoch,size,loss_cross_entropy,validation_loss,validation_accuracy,validation_one_off,validation_age_mae,rows_per_second,seconds";
    assert_eq!(lines.next(), Some(header));
    let losses: Vec<f64> = lines.map(|line| line.split(',').nth(3).unwrap().parse().unwrap()).collect();
    let best = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
    assert!(losses.len() < 40 && losses.len() == best + 1 + 3, "three epochs after the best: {losses:?}");
    assert!((scores.validation.loss - losses[best]).abs() < 1e-4, "{scores:?} of {losses:?}");
    assert!(!run.join("best.safetensors").exists());
    let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(run.join(SCORES)).unwrap()).unwrap();
    assert_eq!(written["validation"]["n"], 32);
    assert_eq!(written.get("test"), None);
}

#[test]
fn a_study_repeats_and_compares_and_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, config) = (signs(60, 8), small());
    let pretrained = folder.path().join("pretrained");
    let variants = vec![Variant::Baseline, Variant::NoIc];
    for variant in &variants {
        let all: Vec<usize> = (0..60).collect();
        let split = Split { train: all.clone(), validation: all, test: Vec::new() };
        let options = options(&pretrained.join(variant.name()));
        train(&variant.of(&config).unwrap(), &rows, &split, &options, &Manner::Quiet).unwrap();
    }
    let run = folder.path().join("study");
    let plan = Plan { seeds: 2, folds: 3, variants, pretrained: Some(pretrained) };
    let complete = study::cross_validate(&config, &plan, &rows, &options(&run)).unwrap();

    let shape: Vec<_> = complete.cells.iter().map(|cell| (cell.start, cell.variant, cell.runs.len())).collect();
    let expected = [
        (Start::Scratch, Variant::Baseline, 6),
        (Start::Scratch, Variant::NoIc, 6),
        (Start::Pretrained, Variant::Baseline, 6),
        (Start::Pretrained, Variant::NoIc, 6),
    ];
    assert_eq!(shape, expected);
    for cell in &complete.cells {
        let tested: Vec<f64> = cell.runs.iter().map(|run| run.scores.test.unwrap().accuracy).collect();
        assert_eq!(cell.figures["test.accuracy"], Summary::of(&tested).unwrap());
        assert!(cell.runs.iter().all(|run| run.scores.test.unwrap().n == 20));
    }
    let loss = |start| complete.cells.iter().find(|cell| cell.start == start).unwrap().figures["train.loss"].mean;
    assert!(loss(Start::Pretrained) < loss(Start::Scratch), "who has learned before knows more");
    assert_eq!(Study::read(&run.join(REPORT)).unwrap(), complete);

    // Another look trains nothing but what is missing, and what is missing comes out the same.
    let one = run.join("pretrained/no-ic/seed-1-fold-2");
    let other = run.join("scratch/baseline/seed-0-fold-0").join(SCORES);
    let marked = fs::read_to_string(&other).unwrap().replace("\"n\": 20", "\"n\": 21");
    fs::write(&other, marked).unwrap();
    fs::remove_dir_all(&one).unwrap();
    let again = study::cross_validate(&config, &plan, &rows, &options(&run)).unwrap();
    assert_eq!(again.cells[3], complete.cells[3]);
    assert_eq!(again.cells[0].runs[0].scores.test.unwrap().n, 21, "this one was not trained again");
    let counted = study::ablation(&[complete]).unwrap();
    let of_each: BTreeMap<_, usize> =
        counted.wins.iter().map(|(figure, wins)| (*figure, wins.values().sum())).collect();
    assert!(of_each.values().all(|wins| *wins >= 2), "two starts, each with a winner: {of_each:?}");

    let other = Config { batch: 20, ..config };
    let error = study::cross_validate(&other, &plan, &rows, &options(&run)).unwrap_err().to_string();
    assert!(error.contains("a study of another configuration"), "{error}");
}

#[test]
fn a_search_is_shared_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("search");
    let rows = signs(80, 32);
    let mut config = SearchConfig::parse(include_str!("../configs/resmlp-search.toml")).unwrap();
    config.space.batch = vec![16, 32];
    (config.space.blocks, config.space.residuals) = ([0, 2], [0, 1]);
    config.halving.epochs = 4;
    config.samples = 5;
    let work = |config: &SearchConfig| {
        let done = RefCell::new(Vec::new());
        let told = |trial: &search::Trial| done.borrow_mut().push(trial.number);
        let trials = search::search(config, &rows, &options(&run), &told).unwrap();
        (trials, done.into_inner())
    };
    let mut done = thread::scope(|scope| {
        let other = scope.spawn(|| work(&config).1);
        let own = work(&config).1;
        [own, other.join().unwrap()].concat()
    });
    done.sort_unstable();
    assert_eq!(done, [0, 1, 2, 3, 4], "each trial is somebody's, and nobody's twice");

    config.samples = 8;
    let (trials, done) = work(&config);
    assert_eq!(done, [5, 6, 7], "more samples continue the search");
    assert!(trials.iter().all(|trial| trial.state.is_some()));
    let ended = |state| trials.iter().filter(|trial| trial.state == Some(state)).count();
    assert!(ended(State::Complete) >= 1 && ended(State::Stopped) >= 1, "{trials:?}");
    for trial in &trials {
        let whole = trial.epochs.len() == 4;
        assert_eq!(trial.state == Some(State::Complete), whole, "{trial:?}");
        assert!(whole || [1, 2].contains(&trial.epochs.len()), "ended at a rung: {trial:?}");
    }
    let best = search::best(&trials).unwrap();
    assert!(trials.iter().all(|trial| trial.loss() >= best.loss()));
    assert_eq!(Config::read(&run.join("best.toml")).unwrap(), best.config);
    let (table, picture) =
        (fs::read_to_string(run.join("search.md")).unwrap(), fs::read_to_string(run.join("search.svg")).unwrap());
    assert_eq!(
        (table.lines().filter(|line| line.starts_with("| ")).count(), picture.matches("<polyline").count()),
        (9, 8)
    );

    config.space.gamma = [0.5, 0.6];
    let error = search::search(&config, &rows, &options(&run), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("holds another search"), "{error}");
}
