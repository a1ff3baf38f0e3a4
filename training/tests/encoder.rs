//! An encoder learns attributes, becomes embeddings for a network on vectors, and is served; each step by the program itself.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use facewise::config::Settings;
use facewise::server::serve;
use facewise_core::onnxruntime;
use facewise_training::encoder::config::Config;
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;

const FACES: usize = 64;

/// Three attributes: red or not, light above or below, and one that is the opposite of the first.
fn attributes(face: usize) -> [bool; 3] {
    [face.is_multiple_of(2), face.is_multiple_of(3), !face.is_multiple_of(2)]
}

/// A picture that shows the attributes of a face, and no two alike.
fn picture(face: usize) -> RgbImage {
    let [red, above, _] = attributes(face);
    RgbImage::from_fn(48, 48, |x, y| {
        let light = if (y < 24) == above { 200 } else { 40 };
        let noise = ((x * 7 + y * 13 + face as u32 * 31) % 40) as u8;
        if red { Rgb([light + noise, 20, noise]) } else { Rgb([20, noise, light + noise]) }
    })
}

/// A folder with the set `faces` and a narrow network's configuration.
struct Data(TempDir);

impl Data {
    fn new() -> Self {
        let data = Self(tempfile::tempdir().unwrap());
        fs::create_dir(data.path("faces")).unwrap();
        let mut manifest = String::from("path,split,Male,Smiling,Young\n");
        for face in 0..FACES {
            picture(face).save(data.path(&format!("faces/{face}.png"))).unwrap();
            let [male, smiling, young] = attributes(face).map(|has| if has { "1" } else { "-1" });
            let split = if face < 48 { "train" } else { "val" };
            writeln!(manifest, "{face}.png,{split},{male},{smiling},{young}").unwrap();
        }
        fs::write(data.path("faces/manifest.csv"), manifest).unwrap();

        let mut config = Config::parse(include_str!("../configs/celeba-encoder.toml")).unwrap();
        (config.size, config.batch, config.epochs) = (32, 16, 12);
        config.network.widths = [8, 8, 16, 16];
        config.network.blocks = [1; 4];
        "faces".clone_into(&mut config.data.set);
        config.data.test = None;
        config.data.attributes = ["Male", "Smiling", "Young"].map(str::to_owned).into();
        config.optimiser.learning_rate = 1e-2;
        config.optimiser.ema_decay = 0.5;
        fs::write(data.path("encoder.toml"), toml::to_string_pretty(&config).unwrap()).unwrap();
        data
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_facewise-training"));
        // Found from where the test runs, not from the folder of the data.
        command.env("ORT_DYLIB_PATH", onnxruntime::locate(None).unwrap());
        command.args(arguments.split_whitespace()).current_dir(self.0.path()).output().unwrap()
    }

    fn succeeds(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test]
async fn an_encoder_is_trained_served_and_learned_from() {
    let data = Data::new();
    let scores = data.succeeds("encoder train --config encoder.toml --data . --run run --threads 1");
    let scores: Value = serde_json::from_str(&scores).unwrap();
    let square = &scores["validation"]["square"];
    assert_eq!((&square["n"], scores.get("test")), (&json!(16), None));
    assert!(square["accuracy"].as_f64().unwrap() > 0.95, "{scores}");
    // A third of the faces smile; who always says no, or that half are men, is right in less than all.
    assert!(square["majority"].as_f64().unwrap() < 0.7, "{scores}");

    let said = data.succeeds("encoder export --run run --data . --models models");
    assert!(said.contains("models/face-encoder/1/model.onnx\nparity over 16 crops"), "{said}");
    let models = data.path("models");
    let flags = ["--listen", "127.0.0.1:0", "--models", models.to_str().unwrap(), "--detector", "none"];
    let flags = [&flags[..], &["--workers", "1", "--data-dir", "none"]].concat();
    let running = serve(Settings::from_flags(flags).unwrap()).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = |path: &str| format!("http://{}{path}", running.address());
    for face in 48..54 {
        let body = fs::read(data.path(&format!("faces/{face}.png"))).unwrap();
        let request = client.post(url("/v1/predict?detect=false")).header("content-type", "image/png").body(body);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        let [male, smiling, _] = attributes(face);
        let found = &answer["faces"][0];
        assert_eq!(found["gender"]["label"], if male { "male" } else { "female" }, "{answer}");
        assert_eq!(found["smile"]["label"], if smiling { "smiling" } else { "neutral" }, "{answer}");
    }
    running.stop().await;

    // What it answers, and what it knows, as embeddings.
    data.succeeds(
        "embeddings extract --encoder run --logits --square --columns Young --data faces --out vectors/logits",
    );
    data.succeeds("embeddings extract --encoder run --columns Young --data faces --out vectors/features");
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/celeba-mlp-seed.toml");
    for (name, features) in [("logits", 3), ("features", 16)] {
        let files = format!("--embeddings vectors/{name}.npy --labels vectors/{name}.csv");
        let walk = format!("--config {} --target Young --epochs 20 --batch 16 --threads 1", recipe.display());
        let scores = data.succeeds(&format!("embeddings train {files} {walk} --run {name}"));
        let scores: Value = serde_json::from_str(&scores).unwrap();
        assert!(scores["validation"]["accuracy"].as_f64().unwrap() > 0.9, "{name}: {scores}");
        let header = fs::read(data.path(&format!("vectors/{name}.npy"))).unwrap();
        let header = String::from_utf8_lossy(&header[..80]).into_owned();
        assert!(header.contains(&format!("(64, {features})")), "{header}");
    }
}

#[test]
fn mistakes_are_told_in_a_sentence() {
    let data = Data::new();
    let manifest = fs::read_to_string(data.path("faces/manifest.csv")).unwrap();
    let cases: [(&str, &str, &str); 3] = [
        (",Young", ",Old", "there is no column 'Young'"),
        ("3.png,train,-1,1,1", "3.png,train,-1,1,maybe", "Young is 'maybe', which is none of 1, 0 and -1"),
        (",val,", ",test,", "no row has split=val"),
    ];
    for (from, to, message) in cases {
        fs::write(data.path("faces/manifest.csv"), manifest.replace(from, to)).unwrap();
        let output = data.run("encoder train --config encoder.toml --data . --run wrong --threads 1");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(message), "{error}");
        assert!(!data.path("wrong").exists(), "nothing is begun");
    }
    let output = data.run("embeddings extract --logits --data faces --out x");
    assert!(String::from_utf8(output.stderr).unwrap().contains("--encoder"));
}
