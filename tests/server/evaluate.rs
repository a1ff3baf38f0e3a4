//! `facewise evaluate`: the figures are those of the answers that the server gives.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use facewise_evaluation::report::{Geometry, Report};
use image::ImageFormat;

use crate::detect::stored;
use crate::harness::{MODELS, ModelsCopy, Spot, TestServer, encoded, faces, picture, program};

const ROWS: u32 = 9;

/// Pictures with labels, of which one is broken and one has no keypoints.
fn write_set(folder: &Path) {
    let mut manifest =
        String::from("path,gender,age,split,reye_x,reye_y,leye_x,leye_y,nose_x,nose_y,mouth_x,mouth_y\n");
    for row in 0..ROWS {
        let gender = ["female", "male"][row as usize % 2];
        let split = if row < 7 { "test" } else { "train" };
        let keypoints = if row == 3 { ",,,,,,," } else { "40,40,80,42,60,60,60,80" };
        writeln!(manifest, "{row}.png,{gender},{},{split},{keypoints}", row * 10).unwrap();
        let bytes = if row == 5 { b"nothing".to_vec() } else { encoded(&picture(120, 110, row), ImageFormat::Png) };
        fs::write(folder.join(format!("{row}.png")), bytes).unwrap();
    }
    fs::write(folder.join("manifest.csv"), manifest).unwrap();
}

fn report(folder: &Path, flags: &[&str]) -> (Report, String) {
    let json = folder.join("report.json");
    let mut arguments =
        vec!["evaluate", folder.to_str().unwrap(), "--models", MODELS, "--json", json.to_str().unwrap()];
    arguments.extend(flags);
    let output = program(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    (report, String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_servers_answers() {
    let folder = tempfile::tempdir().unwrap();
    write_set(folder.path());
    let (report, table) = report(folder.path(), &["--crop", "square", "--where", "split=test"]);

    let server = TestServer::start(&[]).await;
    let (mut right, mut error) = (0, 0.0);
    for row in (0..7).filter(|row| *row != 5) {
        let answer = server.answer("?detect=false", encoded(&picture(120, 110, row), ImageFormat::Png)).await;
        let face = &answer["faces"][0];
        right += u32::from(face["gender"]["label"] == ["female", "male"][row as usize % 2]);
        error += (face["age"]["years"].as_f64().unwrap() - f64::from(row * 10)).abs();
    }
    let (gender, age) = (report.tasks.gender.unwrap(), report.tasks.age.unwrap());
    assert_eq!((gender.n, age.n), (6, 6));
    assert!((gender.accuracy - f64::from(right) / 6.0).abs() < 1e-9);
    assert!((age.mae - error / 6.0).abs() < 0.06, "the server rounds years: {} and {}", age.mae, error / 6.0);
    assert!(report.tasks.smile.is_none(), "no row has that label");

    assert_eq!((report.dataset.rows, report.dataset.filter.as_deref()), (7, Some("split=test")));
    assert_eq!(report.dataset.skipped.len(), 1);
    assert_eq!(report.dataset.skipped[0].path, "5.png");
    assert_eq!((report.model.name.as_str(), report.detect), ("face-attributes", Geometry::Square));
    assert!(table.contains("7 rows, 1 skipped") && table.contains("skipped  5.png: "), "{table}");
    assert!(table.contains("gender   n      6") && table.contains("mae "), "{table}");
}

#[test]
fn every_readable_row_counts_with_keypoints_or_without() {
    let folder = tempfile::tempdir().unwrap();
    write_set(folder.path());
    let (all, _) = report(folder.path(), &[]);
    assert_eq!((all.dataset.rows, all.tasks.age.unwrap().n, all.detect), (9, 8, Geometry::Manifest));
    let (first, _) = report(folder.path(), &["--limit", "4", "--tasks", "gender"]);
    assert_eq!((first.dataset.rows, first.tasks.gender.unwrap().n), (4, 4));
    assert!(first.tasks.age.is_none(), "switched off");
}

#[tokio::test(flavor = "multi_thread")]
async fn crops_of_the_detector_are_those_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = String::from("path,age\n");
    // Faces here and there, and nowhere in the last picture.
    let pictures: Vec<Vec<u8>> = (0..5)
        .map(|row| {
            let spots = if row < 4 { vec![Spot::at(2 + row, 3 + row)] } else { Vec::new() };
            encoded(&faces(picture(320, 320, row), &spots), ImageFormat::Png)
        })
        .collect();
    for (row, bytes) in pictures.iter().enumerate() {
        fs::write(folder.path().join(format!("{row}.png")), bytes).unwrap();
        writeln!(manifest, "{row}.png,{}", row * 20).unwrap();
    }
    fs::write(folder.path().join("manifest.csv"), manifest).unwrap();
    let models = ModelsCopy::with_detector();
    let with_detector = |crop| report(folder.path(), &["--models", models.path(), "--crop", crop]).0;
    let (detected, square) = (with_detector("detect"), with_detector("square"));
    assert_eq!((detected.detect, detected.tasks.age.as_ref().unwrap().n), (Geometry::Crop, 5));
    let without_keypoints = with_detector("keypoints");
    assert_eq!(without_keypoints.detect, Geometry::Manifest);
    assert_eq!(without_keypoints.tasks, detected.tasks, "rows without keypoints go through the detector");

    let server = TestServer::start(&[]).await;
    for (report, query) in [(&detected, "?detect=crop"), (&square, "?detect=false")] {
        let mut error = 0.0;
        for (row, bytes) in pictures.iter().enumerate() {
            let answer = server.answer(query, bytes.clone()).await;
            error += (answer["faces"][0]["age"]["years"].as_f64().unwrap() - 20.0 * row as f64).abs();
        }
        let mae = report.tasks.age.as_ref().unwrap().mae;
        assert!((mae - error / 5.0).abs() < 0.06, "{query}: {mae} and {}", error / 5.0);
    }
    assert_ne!(detected.tasks, square.tasks);

    let alone = ModelsCopy::new();
    let arguments = ["evaluate", folder.path().to_str().unwrap(), "--models", alone.path(), "--crop", "detect"];
    let output = program(&arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is no detector"));
}

#[test]
fn keypoints_of_the_stored_picture_are_turned_with_it() {
    /// Years that the losses of the JPEG format may be worth.
    const SAME: f64 = 0.05;
    // Labelled 0 all of them, so that the error is the mean of the answers.
    let mae = |orientation, keypoints: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = String::from("path,age,reye_x,reye_y,leye_x,leye_y,nose_x,nose_y,mouth_x,mouth_y\n");
        for row in 0..4 {
            writeln!(manifest, "{row}.jpg,0,{keypoints}").unwrap();
            fs::write(folder.path().join(format!("{row}.jpg")), stored(picture(120, 110, row), orientation)).unwrap();
        }
        fs::write(folder.path().join("manifest.csv"), manifest).unwrap();
        report(folder.path(), &["--tasks", "age"]).0.tasks.age.unwrap().mae
    };
    let straight = mae(1, "30,40,60,46,40,60,38,78");
    // Mirrored, the eye on the left is the right one again; turned by a quarter, (x, y) is stored as (y, 120 − x).
    for (orientation, keypoints) in [(2, "60,46,90,40,80,60,82,78"), (6, "40,90,46,60,60,80,78,82")] {
        let turned = mae(orientation, keypoints);
        assert!((turned - straight).abs() < SAME, "orientation {orientation}: {turned} is not {straight}");
    }
    let elsewhere = mae(6, "30,40,60,46,40,60,38,78");
    assert!((elsewhere - straight).abs() > 2.0 * SAME, "it matters: {elsewhere} is {straight}");
}

#[test]
fn what_cannot_be_scored_is_said() {
    let folder = tempfile::tempdir().unwrap();
    write_set(folder.path());
    let path = folder.path().to_str().unwrap();
    for (arguments, exit, says) in [
        (vec!["evaluate", "/no/such/set"], 1, "/no/such/set"),
        (vec!["evaluate", path, "--where", "fold=1"], 1, "'fold'"),
        (vec!["evaluate", path, "--where", "split=none"], 1, "no row of"),
        (vec!["evaluate", path, "--where", "split"], 2, "'split' is no condition"),
    ] {
        let output = program(&arguments).arg("--log-level=off").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

#[test]
fn reports_are_written_compared_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    write_set(folder.path());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (page, table, last) = (at("page.html"), at("predictions.csv"), at("last.json"));
    let flags =
        ["--crop", "square", "--group-by", "gender,split", "--report", &page, "--thumbnails", "--predictions", &table];
    let (first, text) = report(folder.path(), &flags);
    assert!(text.contains("gender = female") && text.contains("split: largest gap   age.mae "), "{text}");
    assert_eq!(first.groups["gender"].values["male"].n, 3, "one of the four is broken");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("By gender") && page.contains("data:image/jpeg;base64,") && page.contains("Worst answers"));
    let mut lines = csv::Reader::from_path(&table).unwrap();
    let skipped: Vec<bool> =
        lines.records().map(|record| !record.unwrap().iter().next_back().unwrap().is_empty()).collect();
    assert_eq!(skipped, (0..ROWS).map(|row| row == 5).collect::<Vec<_>>());

    // Whatever lies there is no beginning of this evaluation, but overwritten.
    let mae = first.tasks.age.as_ref().unwrap().mae;
    fs::rename(at("report.json"), &last).unwrap();
    let run = |bounds: &[String]| {
        let mut arguments = vec!["evaluate", folder.path().to_str().unwrap(), "--models", MODELS, "--crop", "square"];
        arguments.extend(["--compare", &last, "--predictions", &table, "--log-level=off"]);
        arguments.extend(bounds.iter().flat_map(|bound| ["--require", bound.as_str()]));
        let output = program(&arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, text, _) = run(&[format!("age.mae<={}", mae + 0.01), "gender.accuracy>=0".into()]);
    assert_eq!(code, 0);
    let line = text.lines().find(|line| line.starts_with("age.mae ")).unwrap();
    assert!(line.contains(&format!("{mae:.3}")) && line.contains("+0.000") && !line.ends_with('*'), "{line}");
    assert_eq!(csv::Reader::from_path(&table).unwrap().records().count(), ROWS as usize);

    let (code, _, error) = run(&[format!("age.mae<={}", mae - 0.01), "gender.accuracy<0".into()]);
    assert_eq!(code, 3);
    assert!(error.contains("required was age.mae<=") && error.contains("gender.accuracy<0, measured"), "{error}");
    for (bound, code) in [("emotion.accuracy>0", 1), ("age.mae", 2)] {
        assert_eq!(run(&[bound.to_owned()]).0, code, "{bound}");
    }
}
