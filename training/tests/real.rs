//! Trainings on real data that take minutes: `make test-training` runs them, `make test` does not.
#![allow(missing_docs, clippy::unwrap_used)]

use std::env;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The published network learns `Attractive` from the other attributes of `CelebA`; one epoch already gives .7895 there.
#[test]
#[ignore = "takes minutes"]
fn an_attribute_of_celeba_is_learned_from_the_others() {
    let Some(data) = env::var_os("FACEWISE_DATA").map(|folder| PathBuf::from(folder).join("celeba_attributes")) else {
        eprintln!("skipped: FACEWISE_DATA names no folder with labelled sets");
        return;
    };
    if !data.exists() {
        eprintln!("skipped: there is no {}", data.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/celeba-mlp-seed-short.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_facewise-training"));
    command.args(["embeddings", "train", "--config", recipe, "--epochs", "1", "--batch", "512", "--celeba"]);
    let output = command.arg(data).arg("--run").arg(folder.path().join("run")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(scores["validation"]["n"], 40_519);
    let figure = |name: &str| scores["validation"][name].as_f64().unwrap();
    assert!(figure("accuracy") > 0.78 && figure("loss") < 0.45, "{scores}");
}
