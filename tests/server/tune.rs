//! `facewise tune`: measures, says what it chose, and writes that into the file of settings.

use std::fs;
use std::path::Path;

use facewise::config::File;

use crate::harness::{ModelsCopy, program};

/// Runs the command for as short as it can be, with batches of one and of two.
#[track_caller]
fn tuned(models: &str, config: &Path, flags: &[&str]) -> String {
    let short = ["--models", models, "--seconds", "0.001", "--rounds", "1", "--batches", "2,1,2"];
    let output = program(&[&["tune", "--config", config.to_str().unwrap()][..], &short, flags].concat())
        .env("FACEWISE_MAX_BATCH", "5")
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The value of a setting as the file has it.
fn setting(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find(|line| line.split(['=', ' ']).next() == Some(name))?;
    line.split(['=', '#']).nth(1)?.trim().parse().ok()
}

#[test]
fn what_is_chosen_from_the_table_is_written_into_the_file() {
    let models = ModelsCopy::with_detector();
    let path = Path::new(models.path()).join("ours.toml");
    fs::write(&path, "# Ours.\nworkers = 9 # too many\nmax-queue = 500\n").unwrap();
    let shown = tuned(models.path(), &path, &["--cpus", "2"]);
    for model in ["face-attributes version 1: faces a second", "face-detector version 1: pictures a second"] {
        let table: Vec<&str> = shown.lines().skip_while(|line| !line.starts_with(model)).skip(1).take(4).collect();
        let [head, rows @ ..] = table.as_slice() else { panic!("'{model}' in: {shown}") };
        assert_eq!(head.split_whitespace().collect::<Vec<_>>().join(" "), "workers × threads 1 2 one alone");
        let starts: Vec<&str> = rows.iter().map(|row| row[2..].trim_start()).collect();
        let layouts = ["1 × 1 ", "2 × 1 ", "1 × 2 "];
        assert!(starts.iter().zip(layouts).all(|(row, layout)| row.starts_with(layout)), "{shown}");
        let chosen: Vec<&&str> = rows.iter().filter(|row| row.starts_with('*')).collect();
        assert_eq!((chosen.len(), chosen[0].matches('*').count()), (1, 2), "a layout, and a batch in it: {shown}");
    }

    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# Ours.\nworkers = ") && text.contains(" # too many\nmax-queue = 500\n"), "{text}");
    let [workers, threads, batch, detector_batch] = ["workers", "intra-threads", "max-batch", "max-detector-batch"]
        .map(|name| {
            let written = setting(&text, name).unwrap();
            assert!(shown.contains(&format!("{name} = {written}\n")), "{name} in: {shown}");
            written
        });
    assert!(workers * threads <= 2 && batch <= 2 && detector_batch <= 2, "{text}");
    assert!(shown.contains(&format!("Written into {}.", path.display())), "{shown}");
    assert!(shown.contains("FACEWISE_MAX_BATCH is set") && !shown.contains("FACEWISE_WORKERS is set"), "{shown}");
    assert!(File::read(Some(&path)).is_ok(), "the other commands read it");
}

#[test]
fn a_file_is_made_where_it_is_wanted() {
    let models = ModelsCopy::new();
    let path = Path::new(models.path()).join("new.toml");
    let shown = tuned(models.path(), &path, &["--cpus", "1", "--dry-run"]);
    assert!(shown.contains("workers = 1\n") && !shown.contains("Written"), "{shown}");
    assert!(!path.exists(), "a dry run writes nothing");

    tuned(models.path(), &path, &["--cpus", "1"]);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!((setting(&text, "workers"), setting(&text, "intra-threads")), (Some(1), Some(1)), "{text}");
    assert_eq!(setting(&text, "max-detector-batch"), None, "there is no detector");
}

#[test]
fn what_cannot_be_read_or_written_is_named() {
    let models = ModelsCopy::new();
    let folder = models.path();
    let fails = |config: &str, code| {
        let short = ["--models", folder, "--seconds", "0.001", "--rounds", "1", "--batches", "1", "--cpus", "1"];
        let output = program(&[&["tune", "--config", config][..], &short].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        String::from_utf8(output.stderr).unwrap()
    };
    let broken = Path::new(folder).join("broken.toml");
    fs::write(&broken, "workers = ").unwrap();
    assert!(fails(broken.to_str().unwrap(), 2).contains("broken.toml' is wrong"));
    assert!(fails(folder, 2).contains("cannot be read"));
    let nowhere = Path::new(folder).join("no/such.toml");
    assert!(fails(nowhere.to_str().unwrap(), 1).contains("no/such.toml' cannot be written"));
}
