//! `facewise predict`: the same answers as over HTTP, in four forms.

use std::fs;
use std::path::Path;
use std::process::Output;

use image::ImageFormat;
use serde_json::{Value, json};

use crate::harness::{ModelsCopy, Spot, TestServer, encoded, faces, picture, program};

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
