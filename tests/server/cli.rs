//! The command line: `predict` gives the same answers as over HTTP, in four forms; `models`, `key` and `health`.

use std::fs;
use std::path::Path;
use std::process::Output;

use facewise::access::{Access, Scope};
use facewise::config::File;
use image::ImageFormat;
use serde_json::{Value, json};

use crate::harness::{ModelsCopy, Spot, TestServer, encoded, faces, picture, program};
use crate::onnx::smiles;

/// A folder with a picture of two faces, one of none in a folder of its own, and a file that is no picture.
fn album() -> tempfile::TempDir {
    let album = tempfile::tempdir().unwrap();
    let two = faces(picture(640, 480, 1), &[Spot::at(2, 3), Spot { column: 7, row: 6, green: 32 }]);
    fs::write(album.path().join("two.png"), encoded(&two, ImageFormat::Png)).unwrap();
    fs::create_dir(album.path().join("more")).unwrap();
    fs::write(album.path().join("more/NONE.JPG"), encoded(&picture(60, 40, 2), ImageFormat::Jpeg)).unwrap();
    fs::write(album.path().join("notes.txt"), "no picture").unwrap();
    album
}

fn predict(paths: &[&Path], flags: &[&str]) -> (Output, String) {
    let models = ModelsCopy::with_detector();
    let paths: Vec<&str> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    let output = program(&[&["predict", "--workers", "1", "--models", models.path()][..], &paths, flags].concat())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_a_folder_are_answered_as_over_http() {
    let album = album();
    let (output, text) = predict(&[album.path()], &["--format", "json", "--landmarks"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let records: Value = serde_json::from_str(&text).unwrap();
    let [none, two] = records.as_array().unwrap().as_slice() else { panic!("two pictures: {records}") };
    assert!(none["path"].as_str().unwrap().ends_with("more/NONE.JPG"));
    assert_eq!((&none["image"], &none["faces"]), (&json!({"width": 60, "height": 40}), &json!([])));

    let server = TestServer::start(&[]).await;
    let answer = server.answer("?landmarks=true", fs::read(album.path().join("two.png")).unwrap()).await;
    assert_eq!(answer["faces"].as_array().unwrap().len(), 2);
    assert_eq!(two["faces"], answer["faces"]);
}

#[test]
fn each_form_tells_the_same() {
    let album = album();
    let path = album.path().join("two.png");
    let (_, table) = predict(&[album.path()], &[]);
    assert!(table.contains("NONE.JPG  60 × 40  no face\n"), "{table}");
    assert!(table.contains("two.png  640 × 480  2 faces\n"), "{table}");
    assert!(table.contains("   1    99 %  96,80 128 × 128 "), "{table}");

    let (_, lines) = predict(&[album.path()], &["--format", "ndjson", "--tasks", "smile"]);
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2);
    let face = &records[1]["faces"][1];
    assert!(face.get("age").is_none() && face["smile"]["label"].is_string(), "{face}");

    let (_, csv) = predict(&[&path], &["--format", "csv", "--tasks", "age,smile", "--landmarks"]);
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(
        rows[0].join(","),
        "path,face,x,y,width,height,confidence,right_eye_x,right_eye_y,left_eye_x,left_eye_y,nose_x,nose_y,mouth_x,\
         mouth_y,age,age_low,age_high,age_group,smile,smile_probability"
    );
    assert_eq!(rows.len(), 3, "a line for each face");
    assert_eq!(rows[1][..6], [path.to_str().unwrap(), "1", "96", "80", "128", "128"]);
    let smile = &face["smile"];
    assert_eq!(rows[2][19..], [smile["label"].as_str().unwrap(), &smile["probability"].to_string()]);
}

#[test]
fn faces_are_looked_for_where_it_is_said() {
    let album = album();
    let count = |flags: &[&str]| {
        let (_, lines) = predict(&[&album.path().join("two.png")], &[&["--format", "ndjson"][..], flags].concat());
        let record: Value = serde_json::from_str(&lines).unwrap();
        record["faces"].as_array().unwrap().len()
    };
    assert_eq!((count(&[]), count(&["--detect", "true"]), count(&["--detect", "crop"])), (2, 2, 1));
    assert_eq!((count(&["--max-faces", "1"]), count(&["--min-confidence", "0.97"])), (1, 1));
    assert_eq!((count(&["--detect", "false"]), count(&["--detector", "none"])), (1, 1));
}

#[test]
fn a_picture_that_fails_is_named_and_the_others_are_answered() {
    let album = album();
    let empty = tempfile::tempdir().unwrap();
    let [notes, missing, good] = ["notes.txt", "missing.jpg", "two.png"].map(|name| album.path().join(name));
    let (output, lines) = predict(&[&notes, &missing, empty.path(), &good], &["--format", "ndjson"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines.lines().count(), 1, "{lines}");
    let errors = String::from_utf8(output.stderr).unwrap();
    for says in [
        "notes.txt': not a picture in a known format",
        "missing.jpg': No such file",
        "': the folder holds no picture",
        "facewise: 3 of 4 got no answer",
    ] {
        assert!(errors.contains(says), "'{says}' in: {errors}");
    }
    let (output, _) = predict(&[&good], &["--detector", "none", "--detect", "crop"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is no detector"));
}

#[test]
fn a_pattern_stands_for_the_files_that_fit_it() {
    let album = album();
    let pattern = album.path().join("**/*.[jJp]*");
    let (output, lines) = predict(&[&pattern], &["--format", "ndjson"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lines.lines().count(), 2, "{lines}");
    let (output, _) = predict(&[&album.path().join("*.jpg")], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no file fits this pattern"));
}

#[test]
fn models_are_listed_and_a_broken_one_is_told() {
    let models = ModelsCopy::with_detector();
    models.write_smiles("1", &smiles(0.5));
    models.write_smiles("2", &smiles(0.75));
    let list =
        |flags: &[&str]| program(&[&["models", "--models", models.path()][..], flags].concat()).output().unwrap();
    let output = list(&[]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(rows[0], ["NAME", "VERSION", "KIND", "ANSWERS", "INPUT", "SIZE", "SHA-256"]);
    assert_eq!(rows[1][..5], ["face-attributes", "1", "attributes", "age, gender, smile, emotion", "64 × 64"]);
    assert_eq!(rows[2][..5], ["face-detector", "1", "detector", "faces", "320 × 320"]);
    assert_eq!((rows[3][1], rows[4][1], rows.len()), ("1 (older)", "2", 5), "{table}");

    models.write_smiles("2", b"no network at all");
    let output = list(&["--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.ends_with("facewise: 1 of 4 cannot be served\n"), "{errors}");
    let records: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [attributes, _, _, broken] = records.as_array().unwrap().as_slice() else { panic!("four: {records}") };
    assert_eq!((attributes["sha256"].as_str().unwrap().len(), &attributes["problem"]), (64, &Value::Null));
    assert_eq!(attributes["heads"][0]["task"], "age");
    assert!(attributes["bytes"].as_u64().unwrap() > 100_000);
    assert_eq!((&broken["version"], &broken["newest"]), (&json!("2"), &json!(true)));
    assert!(broken["problem"].as_str().unwrap().contains("cannot be loaded"), "{broken}");
    let table = String::from_utf8(list(&[]).stdout).unwrap();
    assert!(table.contains("broken") && table.contains("\nsmiles/2: the network '"), "{table}");
}

#[test]
fn a_new_key_opens_what_its_lines_say() {
    let output = program(&["key", "laptop", "--scopes", "predict,admin", "--rate", "600/m"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (key, lines) = text.split_once("\n\n").unwrap();
    assert!(!lines.contains(key), "the configuration does not have the key itself");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("facewise.toml");
    fs::write(&path, format!("workers = 1\n{lines}")).unwrap();
    let access = Access::new(&File::read(Some(&path)).unwrap().keys);
    assert_eq!(access.check(Some(key), Some(Scope::Admin)), Ok("laptop"));
    assert!(access.check(Some(key), Some(Scope::Evaluate)).is_err());
    assert!(lines.contains("rate = \"600/m\""), "{lines}");
    for wrong in
        [&["key", "My Laptop"][..], &["key", "a", "--scopes", "root"], &["key", "a", "--rate", "fast"], &["key"]]
    {
        assert_eq!(program(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_asked_of_a_running_server() {
    let server = TestServer::start(&["--metrics-listen", "127.0.0.1:0"]).await;
    let address = server.address().to_string();
    let ask = |flags: &[&str]| program(&[&["health"][..], flags].concat()).output().unwrap();
    assert_eq!(ask(&["--listen", &address]).status.code(), Some(0));
    let metrics = server.get_metrics("/").build().unwrap().url().authority().to_owned();
    assert_eq!(ask(&["--listen", "127.0.0.1:1", "--metrics-listen", &metrics]).status.code(), Some(0));
    assert!(server.stop().await);
    let gone = ask(&["--listen", &address]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8(gone.stderr).unwrap().contains(&format!("{address} does not answer")));
    let blind = ask(&["--listen", &address, "--tls-cert", "cert.pem"]);
    assert!(String::from_utf8(blind.stderr).unwrap().contains("--metrics-listen"));
}
