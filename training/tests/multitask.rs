//! Each multitask network learns eight pictures by heart from a folder of one's own, is written as ONNX, and a server answers from it what it
//! has learned; training and export are done by the program itself.
#![allow(missing_docs, clippy::unwrap_used)]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Output};

use facewise::config::Settings;
use facewise::server::serve;
use facewise_core::onnxruntime;
use facewise_core::picture::RgbImage;
use facewise_core::task::Task;
use image::{ImageFormat, Rgb};
use serde_json::Value;

/// A network, and how it learns by heart.
struct Case {
    kind: &'static str,
    /// What its channels are divided by.
    divisor: usize,
    /// Side of the pictures.
    size: u32,
    epochs: u32,
    /// Whether it answers the age alone.
    age_alone: bool,
    /// How the age is learned.
    method: &'static str,
}

impl Case {
    /// The models made of it, by name, and whether they compute in 8-bit integers.
    fn models(&self) -> [(String, bool); 2] {
        [(self.kind.to_owned(), false), (format!("{}-int8", self.kind), true)]
    }
}

const CASES: [Case; 6] = [
    Case { kind: "alexnet", divisor: 8, size: 64, epochs: 50, age_alone: false, method: "\"classes\"" },
    Case { kind: "resnet18", divisor: 8, size: 32, epochs: 60, age_alone: false, method: "\"ordinal\"" },
    Case {
        kind: "resnet50",
        divisor: 16,
        size: 32,
        epochs: 45,
        age_alone: false,
        method: "\"fine-coarse\"\ncoarse = 1.0",
    },
    Case {
        kind: "densenet121",
        divisor: 8,
        size: 32,
        epochs: 45,
        age_alone: false,
        method: "\"mean-variance\"\nmean = 0.2\nvariance = 0.05",
    },
    Case { kind: "vgg16", divisor: 8, size: 32, epochs: 120, age_alone: true, method: "\"expectation\"" },
    Case { kind: "ssr-net", divisor: 1, size: 64, epochs: 90, age_alone: true, method: "\"value\"" },
];

/// A picture of one of eight colours with a bar at one of eight heights; flips leave it what it is.
fn picture(n: u8) -> RgbImage {
    let colour = [n & 1, n >> 1 & 1, n >> 2 & 1].map(|bit| 60 + 130 * bit);
    let bar = u32::from(n) * 8;
    RgbImage::from_fn(64, 64, |_, y| if (bar..bar + 8).contains(&y) { Rgb([255; 3]) } else { Rgb(colour) })
}

fn age(n: u8) -> u8 {
    12 * n + 3
}

fn label(task: Task, n: u8) -> &'static str {
    task.labels()[usize::from(n) % task.labels().len()]
}

/// Every picture twice: to learn from, and to choose nothing but be held out.
fn faces(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let mut manifest = "path,age,gender,smile,emotion,split\n".to_owned();
    for n in 0..8 {
        picture(n).save(folder.join(format!("{n}.png"))).unwrap();
        for split in ["train", "val"] {
            let (gender, emotion) = (label(Task::Gender, n), label(Task::Emotion, n));
            writeln!(manifest, "{n}.png,{},{gender},{},{emotion},{split}", age(n), n % 2).unwrap();
        }
    }
    fs::write(folder.join("manifest.csv"), manifest).unwrap();
}

fn recipe(case: &Case) -> String {
    let Case { kind, divisor, size, epochs, method, .. } = case;
    let tasks = if case.age_alone { "[\"age\"]" } else { "[\"age\", \"gender\", \"smile\", \"emotion\"]" };
    format!(
        r#"
        name = "by-heart"
        seed = 3
        batch = 8
        loaders = 1
        stages = [{{ size = {size}, epochs = {epochs} }}]
        [network]
        kind = "{kind}"
        divisor = {divisor}
        dropout = 0.0
        tasks = {tasks}
        [age]
        method = {method}
        [optimiser]
        learning_rate = 4e-3
        warmup_steps = 5
        final_share = 0.05
        weight_decay = 0.0
        clip_norm = 5.0
        ema_decay = 0.0
        [loss]
        age = 1.0
        age_sd = 0.0
        age_mean = 0.0
        gender = 1.0
        smile = 1.0
        emotion = 1.0
        label_smoothing = 0.0
        emotion_votes = 0.0
        [augmentation]
        square = 0.0
        rotation = 0.0
        scale = 1.0
        shift = 0.0
        colour = 0.0
        gray = 0.0
        blur = 0.0
        erase = 0.0
        [[data]]
        set = "another"
        where = ""
        tasks = {tasks}
        repeat = 1.0
        "#
    )
}

fn output(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_facewise-training"));
    // Found from where the test runs, not from the folder of the data.
    command.env("ORT_DYLIB_PATH", onnxruntime::locate(None).unwrap());
    command.args(arguments).current_dir(folder).output().unwrap()
}

fn program(folder: &Path, arguments: &[&str]) -> String {
    let output = output(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn learn_by_heart(case: &Case, folder: &Path) {
    let (kind, config, run) = (case.kind, format!("{}.toml", case.kind), format!("runs/{}", case.kind));
    fs::write(folder.join(&config), recipe(case)).unwrap();
    let own = ["--folder", "faces", "--run", &run];
    let said = program(folder, &[&["train", "--config", &config, "--threads", "1"], &own[..]].concat());
    let score: Value = serde_json::from_str(&said).unwrap();
    let mae = score["age"]["mae"].as_f64().unwrap();
    assert!(mae < 5.0, "{kind}: an error of {mae} years on what it has learned");
    for task in ["gender", "smile", "emotion"] {
        let expected = if case.age_alone { Value::Null } else { 1.0.into() };
        assert_eq!(score[task]["accuracy"], expected, "{kind}: {task}");
    }
    for (name, int8) in case.models() {
        let form: &[&str] = if int8 { &["--int8"] } else { &[] };
        let said = program(folder, &[&["export", "--name", &name], &own[..], form].concat());
        assert!(said.contains("parity over 8 crops"), "{said}");
        assert_eq!(said.contains("in integers, over 8 crops"), int8, "{said}");
        check_with_onnx(&folder.join("models").join(name).join("1/model.onnx"));
    }
}

/// The checker of the `onnx` package, where a Python has it: `FACEWISE_ONNX_PYTHON`, by default `python3`.
fn check_with_onnx(model: &Path) {
    let python = env::var("FACEWISE_ONNX_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let run = |program: &str| Command::new(&python).args(["-c", program]).arg(model).output();
    if !run("import onnx").is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no package onnx (FACEWISE_ONNX_PYTHON names another)");
        return;
    }
    let checked = run("import onnx, sys; onnx.checker.check_model(sys.argv[1], full_check=True)").unwrap();
    assert!(checked.status.success(), "{}: {}", model.display(), String::from_utf8_lossy(&checked.stderr));
}

#[tokio::test]
async fn every_network_is_learned_by_heart_written_and_served() {
    let folder = tempfile::tempdir().unwrap();
    faces(&folder.path().join("faces"));
    for case in &CASES {
        learn_by_heart(case, folder.path());
    }

    // The model that a server asks without a word.
    let (models, shipped) = (folder.path().join("models"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../models"));
    fs::create_dir_all(models.join("face-attributes/1")).unwrap();
    for file in ["face-attributes/1/model.onnx", "face-attributes/1/manifest.json"] {
        fs::copy(shipped.join(file), models.join(file)).unwrap();
    }
    let flags =
        ["--listen", "127.0.0.1:0", "--models", models.to_str().unwrap(), "--workers", "1", "--data-dir", "none"];
    let running = serve(Settings::from_flags(flags).unwrap()).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let models = CASES.iter().flat_map(|case| case.models().map(|(name, _)| (name, case.age_alone)));
    for (kind, age_alone) in models {
        for n in 0..8 {
            let mut png = Cursor::new(Vec::new());
            picture(n).write_to(&mut png, ImageFormat::Png).unwrap();
            let url = format!("http://{}/v1/predict?model={kind}&detect=false", running.address());
            let response = client.post(url).header("content-type", "image/png").body(png.into_inner());
            let response = response.send().await.unwrap();
            let (status, answer): (_, Value) = (response.status(), response.json().await.unwrap());
            assert_eq!(status, 200, "{answer}");
            let face = &answer["faces"][0];
            let years = face["age"]["years"].as_f64().unwrap();
            assert!((years - f64::from(age(n))).abs() < 12.0, "{kind}: {years} for {}", age(n));
            for task in [Task::Gender, Task::Smile, Task::Emotion] {
                let expected = if age_alone { Value::Null } else { label(task, n).into() };
                assert_eq!(face[task.name()]["label"], expected, "{kind}");
            }
        }
    }
    running.stop().await;
}

/// The trainings of one file: alone, jointly, from another's trunk, and by another's answers; what is complete stays as it is.
#[test]
fn trainings_are_compared_in_a_table() {
    let folder = tempfile::tempdir().unwrap();
    faces(&folder.path().join("faces"));
    let case = Case { kind: "resnet18", divisor: 8, size: 32, epochs: 2, age_alone: false, method: "\"classes\"" };
    let own = recipe(&case)
        .replace("\"another\"", "\"faces\"")
        .replace("where = \"\"", "where = \"split=train\"\nvalidation = \"split=val\"");
    fs::write(folder.path().join("recipe.toml"), own).unwrap();
    let plan = r#"
        settings = ["batch=4"]
        test = [{ set = "faces", where = "split=val", tasks = ["age", "gender", "emotion"] }]
        run = [
            { name = "gender", config = "recipe.toml", tasks = ["gender"] },
            { name = "all", config = "recipe.toml", settings = ["seed=4"], trunk_of = "gender" },
            { name = "taught", config = "recipe.toml", settings = ["distillation={share=0.5,unlabelled=1.0}"], teacher = { config = "recipe.toml", weights = "out/all/weights.safetensors" } },
        ]
    "#;
    fs::write(folder.path().join("plan.toml"), plan).unwrap();
    let begin = ["compare", "--runs", "plan.toml", "--data", ".", "--out", "out", "--threads", "1"];
    let own = ["--set", "optimiser.learning_rate=1e-3"];
    let compare = |more: &[&str]| program(folder.path(), &[&begin[..], &own[..], more].concat());
    let line = |table: &str, name: &str| -> Vec<String> {
        let line = table.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap_or_default();
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };

    let table = compare(&["--only", "gender"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    let gender = line(&table, "gender");
    assert!(gender[6].ends_with('%') && gender[12].ends_with('%'), "{table}");
    assert!([7, 8, 9, 10, 11].iter().all(|cell| gender[*cell].is_empty()), "{table}");

    let table = compare(&[]);
    assert_eq!(line(&table, "gender"), gender, "it was complete");
    let all = line(&table, "all");
    // The smiles of the test set are not asked for.
    assert!(all[7].is_empty() && all[13].ends_with('%'), "{table}");
    for cell in [6, 8, 9, 10] {
        assert!(all[cell].ends_with('%'), "{table}");
    }
    assert!(all[11].parse::<f64>().unwrap() < 100.0, "{table}");
    assert_eq!(fs::read_to_string(folder.path().join("out/table.md")).unwrap(), table);
    let config = fs::read_to_string(folder.path().join("out/all/config.toml")).unwrap();
    assert!(["batch = 4", "seed = 4", "learning_rate = 0.001"].iter().all(|line| config.contains(line)), "{config}");
    assert!(!folder.path().join("out/all.trunk.safetensors").exists());
    assert_eq!(line(&table, "taught")[2..5], all[2..5], "{table}");

    let error = String::from_utf8(output(folder.path(), &begin).stderr).unwrap();
    assert!(error.contains("out/gender/config.toml is of a run with another configuration"), "{error}");
}
