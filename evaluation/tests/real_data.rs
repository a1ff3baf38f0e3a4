//! The real sets, where they are at hand: `FACEWISE_DATA`, else `../shared/data` beside the workspace.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use facewise_core::picture::{Limits, decode};
use facewise_core::task::Task;
use facewise_evaluation::{Dataset, Filter, Options};
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn data() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("FACEWISE_DATA").map_or_else(beside, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: {} is no folder; FACEWISE_DATA names where the data is", folder.display());
    None
}

#[test]
fn every_set_opens_and_its_pictures_decode() {
    let Some(data) = data() else { return };
    let (age, gender, smile, emotion) = (Task::Age, Task::Gender, Task::Smile, Task::Emotion);
    let sets: [(&str, &[Task], &str); 5] = [
        ("utkface", &[age, gender], "split=test"),
        ("fer2013", &[emotion], "usage=PublicTest"),
        ("smiles", &[smile], "split=test"),
        ("celeba_faces", &[gender, smile], "split=val"),
        ("celeba_wild", &[gender, smile], "split=train"),
    ];
    let mut runner = TestRunner::default();
    for (name, tasks, filter) in sets {
        let folder = data.join(name);
        if !folder.is_dir() {
            println!("skipped: {} is not there", folder.display());
            continue;
        }
        let set = Dataset::open_with(folder, Options { require_labels: true, ..Options::default() }).unwrap();
        assert_eq!((set.name(), set.tasks()), (name, tasks));
        let (rows, chosen) = (set.rows().len(), set.select(&Filter::parse(filter).unwrap()).unwrap().len());
        assert!((1..rows).contains(&chosen), "{name}: {chosen} of {rows} rows have {filter}");

        let drawn = subsequence((0..rows).collect::<Vec<_>>(), rows.min(50)).new_tree(&mut runner).unwrap().current();
        for row in drawn.into_iter().map(|index| &set.rows()[index]) {
            let picture = decode(&set.read(row).unwrap(), Limits::default())
                .unwrap_or_else(|error| panic!("{name}/{}: {error}", row.path));
            assert!(picture.width() >= 48 && picture.height() >= 48, "{name}/{}", row.path);
        }
    }
}
