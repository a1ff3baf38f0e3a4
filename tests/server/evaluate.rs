//! `facewise evaluate`: the figures are those of the answers that the server gives.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use facewise_evaluation::report::{Geometry, Report};
use image::ImageFormat;

use crate::harness::{MODELS, TestServer, encoded, picture, program};

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
        let answer = server.answer("", encoded(&picture(120, 110, row), ImageFormat::Png)).await;
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
