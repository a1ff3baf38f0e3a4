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
    // Rows in all, the tasks labelled, a filter and the rows that it chooses, all from the description of the data.
    let sets: [(&str, usize, &[Task], &str, usize); 6] = [
        ("utkface", 20_285, &[age, gender], "split=test", 2_334),
        ("fer2013", 32_298, &[emotion], "usage=PublicTest", 3_589),
        ("smiles", 11_123, &[smile], "split=test", 1_292),
        ("celeba_faces", 10_000, &[gender, smile], "split=val", 508),
        ("celeba_wild", 5_220, &[gender, smile], "split=train", 4_565),
        ("nasa_portraits", 48, &[], "", 48),
    ];
    let mut runner = TestRunner::default();
    for (name, rows, tasks, filter, chosen) in sets {
        let options = Options { require_labels: !tasks.is_empty(), ..Options::default() };
        let set = Dataset::open_with(data.join(name), options).unwrap();
        assert_eq!((set.name(), set.rows().len(), set.tasks()), (name, rows, tasks));
        assert_eq!(set.select(&Filter::parse(filter).unwrap()).unwrap().len(), chosen, "{name}");

        let drawn = subsequence((0..rows).collect::<Vec<_>>(), rows.min(50)).new_tree(&mut runner).unwrap().current();
        for row in drawn.into_iter().map(|index| &set.rows()[index]) {
            let picture = decode(&set.read(row).unwrap(), Limits::default())
                .unwrap_or_else(|error| panic!("{name}/{}: {error}", row.path));
            assert!(picture.width() >= 48 && picture.height() >= 48, "{name}/{}", row.path);
        }
    }
}
