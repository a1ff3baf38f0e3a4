//! Rows gathered into figures, groups, worst errors and `predictions.csv`, and the page made of them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::fs;

use facewise_core::decode::LabelDistribution;
use facewise_core::task::Task;
use facewise_evaluation::comparison::compare;
use facewise_evaluation::groups::{Columns, Gathered, MAX_COLUMNS, MAX_VALUES};
use facewise_evaluation::html::{self, Thumbnails};
use facewise_evaluation::metrics::{AgeReading, Prediction};
use facewise_evaluation::predictions::{Outcome, Replayed, Writer, replay};
use facewise_evaluation::report::{DatasetSummary, Geometry, ModelSummary, Report, Skipped, Throughput};
use facewise_evaluation::requirement::Requirement;
use facewise_evaluation::{Dataset, Row};
use tempfile::TempDir;

const TASKS: [Task; 2] = [Task::Age, Task::Smile];

/// A set of so many faces; every third is of the group `b`, and paths are as bad as they can be.
fn set(rows: u32) -> (TempDir, Dataset) {
    let dir = TempDir::new().unwrap();
    let mut manifest = String::from("path,age,smile,side,id\n");
    for row in 0..rows {
        let side = if row % 3 == 0 { "b" } else { "a" };
        writeln!(manifest, "\"=cmd()<script>{row}, x.jpg\",{},{},{side},{row}", row % 80, row % 2).unwrap();
        fs::write(dir.path().join(format!("=cmd()<script>{row}, x.jpg")), b"").unwrap();
    }
    fs::write(dir.path().join("manifest.csv"), manifest).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    (dir, dataset)
}

/// An answer that is off by `row % 7` years, and wrong about every fifth smile.
fn answer(row: &Row) -> Prediction {
    let number = row.line as u32 - 2;
    let years = row.labels.age.unwrap() + (number % 7) as f32;
    let smiling = if number.is_multiple_of(5) == (row.labels.smile == Some(1)) { 0.3 } else { 0.8 };
    Prediction {
        age: Some(AgeReading { years: years + 0.123_456_7, low: years as u8, high: years as u8 + 9 }),
        smile: Some(LabelDistribution::from_probabilities(Task::Smile, &[1.0 - smiling, smiling]).unwrap()),
        ..Prediction::default()
    }
}

fn gathered(dataset: &Dataset, names: &[String]) -> Gathered {
    let rows: Vec<&Row> = dataset.rows().iter().collect();
    let mut gathered = Gathered::new(Columns::of(dataset, names, &rows).unwrap());
    for row in &rows {
        gathered.add(row, &answer(row));
    }
    gathered
}

fn report(gathered: &Gathered, rows: u64) -> Report {
    Report {
        dataset: DatasetSummary {
            name: "<b>set</b>".into(),
            rows,
            filter: Some("a=\"><img src=x>".into()),
            limit: None,
            skipped: vec![Skipped { path: "<i>.jpg".into(), reason: "it is & broken".into() }],
        },
        model: ModelSummary { name: "m".into(), version: "1".into(), sha256: "ab".into() },
        detect: Geometry::Manifest,
        created: "2026-01-01T00:00:00Z".into(),
        tasks: gathered.tasks(),
        groups: gathered.groups(),
        worst: gathered.worst(),
        throughput: Throughput { images_per_second: 1.0 },
    }
}

#[test]
fn groups_are_the_figures_of_their_rows() {
    let (_dir, dataset) = set(90);
    let all = gathered(&dataset, &["side".to_owned()]);
    let groups = &all.groups()["side"];
    assert_eq!(
        groups.values.iter().map(|(name, group)| (name.as_str(), group.n)).collect::<Vec<_>>(),
        [("a", 60), ("b", 30)]
    );
    for (name, group) in &groups.values {
        let mut alone = Gathered::new(Columns::default());
        let side = dataset.column("side").unwrap();
        dataset.rows().iter().filter(|row| row.cell(side) == name).for_each(|row| alone.add(row, &answer(row)));
        for (found, expected) in group.tasks.figures().iter().zip(alone.tasks().figures()) {
            assert_eq!((found.path(), found.value), (expected.path(), expected.value));
            let [low, high] = found.interval.unwrap();
            assert!(low <= found.value + 1e-9 && found.value <= high + 1e-9, "{}: {found:?}", found.path());
        }
    }
    let mae = |group: &str| groups.values[group].tasks.age.as_ref().unwrap().mae;
    assert!((groups.largest_gap["age.mae"] - (mae("a") - mae("b")).abs()).abs() < 1e-12);
    let expected =
        ["age.accuracy_8", "age.accuracy_8_one_off", "age.cs5", "age.interval_coverage", "age.mae", "age.mean_error"];
    assert_eq!(groups.largest_gap.keys().take(6).collect::<Vec<_>>(), expected);
    assert_eq!(groups.largest_gap.len(), 11);
}

#[test]
fn groupings_that_make_no_sense_are_refused() {
    let (_dir, dataset) = set(MAX_VALUES as u32 + 1);
    let rows: Vec<&Row> = dataset.rows().iter().collect();
    let refused = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Columns::of(&dataset, &names, &rows).unwrap_err().to_string()
    };
    assert!(refused(&["race"]).contains("no column 'race'"));
    assert!(refused(&["id"]).contains("the column 'id' has more than 50 different values"));
    assert!(refused(&["side"; MAX_COLUMNS + 1]).contains("4 columns at most"));
    assert!(Columns::of(&dataset, &["id".to_owned()], &rows[..MAX_VALUES]).is_ok());
}

#[test]
fn the_worst_rows_are_kept_in_order() {
    let (_dir, dataset) = set(100);
    let worst = gathered(&dataset, &[]).worst();
    assert_eq!((worst.age.len(), worst.smile.len(), worst.gender.len()), (12, 12, 0));
    assert!(worst.age.is_sorted_by(|a, b| a.error >= b.error));
    assert!(worst.age.iter().all(|miss| (miss.error - 6.123_456_7).abs() < 1e-3), "{:?}", worst.age);
    let first = &worst.smile[0];
    assert_eq!((first.truth.as_str(), first.predicted.as_str(), first.line), ("neutral", "smiling", 2));
    assert!((first.error - 0.8).abs() < 1e-6, "{first:?}");
}

#[test]
fn predictions_read_back_as_they_were_written() {
    let (_dir, dataset) = set(40);
    let rows: Vec<&Row> = dataset.rows().iter().collect();
    let outcome = |row: &Row| match row.line {
        5 => Outcome::Skipped("two\nlines".into()),
        _ => Outcome::Answered(answer(row)),
    };
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, &TASKS).unwrap();
    for row in &rows {
        writer.write(row, &outcome(row)).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);

    let text = String::from_utf8(file.clone()).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        "line,path,age,age_predicted,age_low,age_high,age_error,smile,smile_predicted,smile_neutral,smile_smiling,skipped"
    );
    assert!(lines.next().unwrap().starts_with("2,\"'=cmd()<script>0, x.jpg\",0,0.123"), "no formula: {text}");

    let read = |bytes: &[u8]| {
        let mut found = Vec::new();
        let replayed = replay(bytes, &TASKS, &rows, |row, outcome| found.push((row.line, outcome))).unwrap();
        (replayed, found)
    };
    let (replayed, found) = read(&file);
    assert_eq!(replayed, Replayed { rows: 40, bytes: file.len() as u64 });
    for (row, (line, found)) in rows.iter().zip(&found) {
        assert_eq!(row.line, *line);
        match (found, outcome(row)) {
            (Outcome::Answered(found), Outcome::Answered(expected)) => {
                assert_eq!(found.age, expected.age);
                let probability = |answer: &Prediction| answer.smile.as_ref().unwrap().probability();
                assert!((probability(found) - probability(&expected)).abs() < 1e-6);
            }
            (Outcome::Skipped(reason), Outcome::Skipped(_)) => assert_eq!(reason, "two lines"),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }
    // Wherever a write was cut, what is complete is found, and no row twice or by half.
    for cut in 0..file.len() {
        let (replayed, found) = read(&file[..cut]);
        let complete = file[..cut].split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(
            (replayed.rows, found.len()),
            (complete.saturating_sub(1), complete.saturating_sub(1)),
            "{cut} bytes"
        );
        assert!(replayed.bytes as usize <= cut && (replayed.bytes == 0 || file[replayed.bytes as usize - 1] == b'\n'));
    }
    let of_another = [&rows[1..], &rows[..1]].concat();
    assert_eq!(replay(file.as_slice(), &TASKS, &of_another, |_, _| {}).unwrap().rows, 0);
    assert_eq!(replay(file.as_slice(), &[Task::Age], &rows, |_, _| {}).unwrap(), Replayed::default());
}

#[test]
fn the_page_escapes_everything_and_links_to_nothing() {
    let (_dir, dataset) = set(60);
    let gathered = gathered(&dataset, &["side".to_owned()]);
    let (this, mut other) = (report(&gathered, 60), report(&gathered, 60));
    other.tasks.age.as_mut().unwrap().mae += 4.0;
    let line = this.worst.age[0].line;
    let page = html::render(&this, &Thumbnails::from([(line, vec![0xFF, 0xD8])]), Some(&other));
    for markup in ["<script", "<b>set", "<img src=x", "<i>.jpg", "http://", "https://", "<link", "@import", "url("] {
        assert!(!page.contains(markup), "{markup}");
    }
    for text in ["&lt;b&gt;set&lt;/b&gt;", "=cmd()&lt;script&gt;", "it is &amp; broken", "data:image/jpeg;base64,/9g="]
    {
        assert!(page.contains(text), "{text}");
    }
    for chart in
        ["Mean absolute error and mean error", "Reliability", "How often each label", "off by no more than", "By side"]
    {
        assert!(page.contains(chart), "{chart}");
    }
    let policy = html::content_security_policy();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert!(!page.contains("NaN") && !page.contains("inf"), "every coordinate is a number");
}

#[test]
fn a_report_of_nothing_has_a_page_too() {
    let page = html::render(&report(&Gathered::new(Columns::default()), 1), &Thumbnails::new(), None);
    assert!(page.contains("Skipped") && !page.contains("NaN"));
}

#[test]
fn reports_are_compared_and_bounded() {
    let (_dir, dataset) = set(90);
    let this = report(&gathered(&dataset, &["side".to_owned()]), 90);
    let mut other = this.clone();
    let mae = this.tasks.age.as_ref().unwrap().mae;
    {
        let age = other.tasks.age.as_mut().unwrap();
        age.mae += 4.0;
        age.intervals.get_mut("mae").unwrap().iter_mut().for_each(|end| *end += 4.0);
    }
    other.tasks.gender = None;
    let differences = compare(&this, &other);
    assert_eq!(differences.len(), 11);
    let of = |path: &str| differences.iter().find(|difference| difference.this.path() == path).unwrap();
    assert!((of("age.mae").difference + 4.0).abs() < 1e-9 && of("age.mae").is_clear());
    assert!(of("smile.accuracy").difference.abs() < 1e-12 && !of("smile.accuracy").is_clear());
    // Both intervals are the same but for the shift: that of the difference is √2 times as wide.
    let ([low, high], [from, to]) = (of("age.mae").interval.unwrap(), of("age.mae").this.interval.unwrap());
    assert!(((high - low) / (to - from) - 1.0).abs() < 0.42 && high - low > to - from);

    for (text, holds) in [
        (format!("age.mae<={}", mae + 0.01), true),
        (format!("age.mae<{}", mae - 0.01), false),
        ("age.cs.10>=1".to_owned(), true),
        ("groups.side.largest_gap.age.mae<=0.0001".to_owned(), false),
        ("groups.side.values.a.n>59".to_owned(), true),
    ] {
        let requirement: Requirement = text.parse().unwrap();
        assert_eq!(requirement.check(&this).unwrap().1, holds, "{text}");
    }
    let missing: Requirement = "emotion.accuracy>0".parse().unwrap();
    assert_eq!(missing.check(&this).unwrap_err().to_string(), "the report has no figure 'emotion.accuracy'");
    assert_eq!(serde_json::from_str::<Report>(&serde_json::to_string(&this).unwrap()).unwrap(), this);
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn memory_does_not_grow_with_the_rows() {
    let (_dir, dataset) = set(200);
    let rows: Vec<&Row> = dataset.rows().iter().collect();
    let mut gathered = Gathered::new(Columns::of(&dataset, &["side".to_owned(), "smile".to_owned()], &rows).unwrap());
    let mut add = |times: usize| rows.iter().cycle().take(times).for_each(|row| gathered.add(row, &answer(row)));
    add(2_000);
    let before = resident();
    add(50_000);
    let grown = resident().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes more for 25 times the rows");
    assert_eq!(gathered.tasks().age.unwrap().n, 52_000);
}
