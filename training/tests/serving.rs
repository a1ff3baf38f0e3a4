//! What a newcomer does: train on embeddings of their own, export, and ask a server; each step by the program itself.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use facewise::config::Settings;
use facewise::server::serve;
use facewise_core::onnxruntime;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

const ROWS: usize = 200;
const FEATURES: usize = 32;

/// A folder with `faces.npy` and `labels.csv`: the first number of an embedding tells the gender, the second the age.
struct Data {
    folder: TempDir,
    faces: Vec<[f32; FEATURES]>,
}

impl Data {
    fn new() -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let faces: Vec<[f32; FEATURES]> =
            (0..ROWS).map(|_| [(); FEATURES].map(|()| random.random_range(-1.0..1.0))).collect();
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({ROWS}, {FEATURES}), }}\n");
        let numbers = faces.concat();
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let length = (header.len() as u16).to_le_bytes();
        let npy = [&b"\x93NUMPY\x01\x00"[..], &length, header.as_bytes(), &numbers].concat();
        let mut labels = String::from("age,gender\n");
        for face in &faces {
            writeln!(labels, "{},{}", age(face), gender(face)).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("faces.npy"), npy).unwrap();
        fs::write(folder.path().join("labels.csv"), labels).unwrap();
        Self { folder, faces }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with the data.
    fn command(&self, what: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_facewise-training"));
        command.args(["embeddings", what, "--embeddings", "faces.npy", "--labels", "labels.csv"]);
        // Found from where the test runs, not from the folder of the data.
        command.env("ORT_DYLIB_PATH", onnxruntime::locate(None).unwrap());
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    fn succeeds(&self, what: &str, arguments: &[&str]) -> Output {
        let output = self.command(what, arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

fn gender(face: &[f32; FEATURES]) -> &'static str {
    if face[0] > 0.0 { "male" } else { "female" }
}

fn age(face: &[f32; FEATURES]) -> u32 {
    if face[1] > 0.0 { 60 } else { 20 }
}

#[tokio::test]
async fn own_embeddings_become_a_model_that_a_server_answers_from() {
    let data = Data::new();
    for target in ["age", "age-groups", "gender"] {
        let run = format!("runs/{target}");
        let walk = ["--threads", "1", "--epochs", "60", "--batch", "16", "--run", &run, "--target", target];
        let output = data.succeeds("train", &walk);
        let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&scores["train"]["n"], &scores["validation"]["n"]), (&json!(180), &json!(20)));
        let output = data.succeeds("export", &["--run", &run, "--models", "models", "--name", target]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("model.onnx\nparity over 20 rows"), "{said}");
    }

    // The network of CelebA's attributes, which has one logit for two classes until it is served.
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/celeba-mlp-seed.toml");
    let walk = ["--threads", "1", "--epochs", "20", "--batch", "32", "--run", "runs/mlp", "--target", "gender"];
    data.succeeds("train", &[&walk[..], &["--config", recipe.to_str().unwrap()]].concat());
    data.succeeds("export", &["--run", "runs/mlp", "--models", "models", "--name", "attribute-mlp"]);

    // The same network of ages, answering many times with random dropout.
    data.succeeds("export", &["--run", "runs/age", "--models", "models", "--name", "doubtful", "--passes", "64"]);

    // A server has a model for pictures too.
    let (models, shipped) = (data.path("models"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../models"));
    fs::create_dir_all(models.join("face-attributes/1")).unwrap();
    for file in ["face-attributes/1/model.onnx", "face-attributes/1/manifest.json"] {
        fs::copy(shipped.join(file), models.join(file)).unwrap();
    }
    let flags =
        ["--listen", "127.0.0.1:0", "--models", models.to_str().unwrap(), "--workers", "1", "--data-dir", "none"];
    let running = serve(Settings::from_flags(flags).unwrap()).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |path: &str, body: Value| -> Value {
        let url = format!("http://{}{path}", running.address());
        let response = client.post(url).json(&body).send().await.unwrap();
        let (status, answer) = (response.status(), response.json().await.unwrap());
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let some = &data.faces[..40];
    let genders = ask("/v1/predict/embeddings?model=gender", json!({ "embeddings": some })).await;
    let by_mlp = ask("/v1/predict/embeddings?model=attribute-mlp", json!({ "embeddings": some })).await;
    let ages = ask("/v1/predict/embeddings?model=age", json!({ "embeddings": some })).await;
    let doubtful = ask("/v1/predict/embeddings?model=doubtful", json!({ "embeddings": some })).await;
    let groups = ask("/v1/predict/embeddings?model=age-groups", json!({ "embeddings": some })).await;
    let right = |is_right: &dyn Fn(usize) -> bool| (0..40).filter(|index| is_right(*index)).count();
    assert!(right(&|i| genders["results"][i]["gender"]["label"] == gender(&some[i])) >= 34, "{genders}");
    assert!(right(&|i| by_mlp["results"][i]["gender"]["label"] == gender(&some[i])) >= 34, "{by_mlp}");
    let years = |i: usize| ages["results"][i]["age"]["years"].as_f64().unwrap();
    assert!(right(&|i| (years(i) - f64::from(age(&some[i]))).abs() < 15.0) >= 34, "{ages}");
    let means = |i: usize| doubtful["results"][i]["age"]["years"].as_f64().unwrap();
    assert!(right(&|i| (means(i) - years(i)).abs() < 15.0) >= 34, "{doubtful}");
    let entropy = |i: usize| doubtful["results"][i]["vote_entropy"]["age"].as_f64().unwrap();
    assert!((0..40).all(|i| (0.0..=4.2).contains(&entropy(i))) && right(&|i| entropy(i) > 0.1) > 20, "{doubtful}");
    assert_eq!(ages["results"][0].get("vote_entropy"), None);
    let group = |i: usize| if age(&some[i]) == 60 { "60-100" } else { "15-20" };
    assert!(right(&|i| groups["results"][i]["age"]["group"] == group(i)) >= 34, "{groups}");
    assert_eq!(groups["results"][0]["age"].get("years"), None);

    // The same numbers through the Open Inference Protocol.
    let inputs = json!([{"name": "features", "shape": [40, FEATURES], "datatype": "FP32", "data": some.concat()}]);
    for (model, answers) in [("gender", genders), ("attribute-mlp", by_mlp)] {
        let tensors = ask(&format!("/v2/models/{model}/infer"), json!({ "inputs": inputs })).await;
        let output = tensors["outputs"].as_array().unwrap().iter().find(|output| output["name"] == "gender").unwrap();
        assert_eq!(output["shape"], json!([40, 2]));
        for index in 0..40 {
            let raw = output["data"][2 * index + 1].as_f64().unwrap();
            let named = answers["results"][index]["gender"]["probabilities"]["male"].as_f64().unwrap();
            assert!((raw - named).abs() < 1e-4, "{model}: {raw} is not {named}");
        }
    }
    running.stop().await;
}

/// The lines of figures without the times.
fn curve(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("epochs.csv")).unwrap();
    text.lines().map(|line| line.rsplitn(3, ',').nth(2).unwrap().to_owned()).collect()
}

#[test]
fn a_killed_run_goes_on_with_the_same_curve() {
    let data = Data::new();
    let walk = |run: &'static str| ["--threads", "1", "--epochs", "12", "--batch", "32", "--run", run];
    data.succeeds("train", &walk("whole"));

    let mut child =
        data.command("train", &walk("killed")).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().starts_with("2,")), "the third epoch is told");
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was killed before its end");
    assert!(!data.path("killed").join("weights.safetensors").exists());

    let error = data.command("train", &walk("killed")).output().unwrap().stderr;
    assert!(String::from_utf8(error).unwrap().contains("killed holds a run already: give --resume"));
    data.succeeds("train", &["--threads", "1", "--run", "killed", "--resume"]);
    assert_eq!(curve(&data.path("killed")), curve(&data.path("whole")));
    assert_eq!(curve(&data.path("whole")).len(), 13);
    let weights = |run: &str| fs::read(data.path(run).join("weights.safetensors")).unwrap();
    assert!(weights("killed") == weights("whole"), "the weights are the same to the bit");

    fs::write(data.path("labels.csv"), fs::read_to_string(data.path("labels.csv")).unwrap().replace("60", "61"))
        .unwrap();
    let error = data.command("export", &["--run", "whole"]).output().unwrap().stderr;
    let error = String::from_utf8(error).unwrap();
    assert!(error.contains("is of other data: it learned from faces.npy and labels.csv"), "{error}");
}

#[test]
fn mistakes_are_told_in_a_sentence() {
    let data = Data::new();
    let told = |arguments: &[&str]| {
        let output = data.command("train", arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let cases: [(&[&str], &str); 5] = [
        (&["--target", "smile"], "labels.csv has no column 'smile', but 'age', 'gender'"),
        (&["--target", "years"], "unknown target 'years'"),
        (&["--target", "Smiling"], "labels.csv has no column 'Smiling'"),
        (&["--config", "missing.toml"], "cannot read missing.toml"),
        (&["--resume", "--run", "nowhere"], "cannot read nowhere/config.toml"),
    ];
    for (arguments, message) in cases {
        let error = told(arguments);
        assert!(error.contains(message) && !error.contains("panicked"), "{error}");
    }
    let labels = fs::read_to_string(data.path("labels.csv")).unwrap();
    let mut lines: Vec<&str> = labels.lines().collect();
    lines[7] = "young,male";
    fs::write(data.path("labels.csv"), lines.join("\n")).unwrap();
    let error = told(&[]);
    assert!(error.contains("labels.csv, line 8: age is 'young', which is not an age from 0 to 150 years"), "{error}");
    lines.truncate(3);
    fs::write(data.path("labels.csv"), lines.join("\n")).unwrap();
    let error = told(&[]);
    assert!(error.contains("faces.npy has 200 rows, but labels.csv has 2 lines below its header"), "{error}");
}
