//! The figures against values worked out by hand and by scikit-learn (`reference.py` writes `reference.json`).
#![allow(clippy::unwrap_used, reason = "tests")]

use facewise_core::decode::{AgeDistribution, AgePoint, LabelDistribution};
use facewise_core::task::{AGES, Task};
use facewise_evaluation::Labels;
use facewise_evaluation::metrics::{
    AgeMetrics, AgeReading, AgeScore, Decade, LabelMetrics, LabelScore, Prediction, REPLICATES, Scores, Weights,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn labels(task: Task, probabilities: &[f32]) -> LabelDistribution {
    LabelDistribution::from_probabilities(task, probabilities).unwrap()
}

/// A posterior from years and their weights.
fn age(weights: &[(usize, f32)]) -> AgeDistribution {
    let mut probabilities = [0.0; AGES];
    for (year, weight) in weights {
        probabilities[*year] = *weight;
    }
    AgeDistribution::from_probabilities(&probabilities).unwrap()
}

/// Equal up to rounding; a number that the expectation does not name is not compared.
#[track_caller]
fn assert_close(found: &Value, expected: &Value, tolerance: f64) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            expected.iter().for_each(|(name, value)| assert_close(&found[name], value, tolerance));
        }
        (Value::Number(found), Value::Number(expected)) => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len());
            found.iter().zip(expected).for_each(|(found, expected)| assert_close(found, expected, tolerance));
        }
        _ => assert_eq!(found, expected),
    }
}

/// The ends of the intervals of the Poisson bootstrap lie where those of the plain one do: within a quarter of its width, for both
/// are drawn at random.
#[track_caller]
fn assert_intervals(found: &Value, expected: &Value) {
    let expected = expected.as_object().unwrap();
    assert!(!expected.is_empty());
    for (name, interval) in expected {
        let ends = |value: &Value| [value[0].as_f64().unwrap(), value[1].as_f64().unwrap()];
        let ([low, high], [expected_low, expected_high]) = (ends(&found[name]), ends(interval));
        let width = expected_high - expected_low;
        assert!(width > 0.0 && low < high);
        for (found, expected) in [(low, expected_low), (high, expected_high)] {
            assert!((found - expected).abs() < width / 4.0, "{name}: {found} is far from {expected} of {interval}");
        }
    }
}

#[test]
fn gender_by_hand() {
    let mut score = LabelScore::new(Task::Gender);
    for (truth, female) in [(0, 0.9), (0, 0.8), (0, 0.4), (1, 0.3), (1, 0.7)] {
        score.add(truth, &labels(Task::Gender, &[female, 1.0 - female]));
    }
    let found = serde_json::to_value(score.finish().unwrap()).unwrap();
    // Recalls 2/3 and 1/2; F₁ 2·2/6 and 2·1/4. Confidences 0.9 and 0.8 lie alone in (13/15, 14/15] and (11/15, 12/15],
    // 0.7 and 0.7 together in (10/15, 11/15], 0.6 alone in (8/15, 9/15]: gaps 0.1 + 0.2 + |1 − 1.4| + 0.6 over five rows.
    let expected = json!({
        "n": 5, "accuracy": 0.6, "balanced_accuracy": 7.0 / 12.0,
        "macro_f1": 7.0 / 12.0,
        "log_loss": -(0.9f64.ln() + 0.8f64.ln() + 0.4f64.ln() + 0.7f64.ln() + 0.3f64.ln()) / 5.0,
        "ece": (0.1 + 0.2 + 0.4 + 0.6) / 5.0,
        "labels": ["female", "male"], "confusion": [[2, 1], [1, 1]],
    });
    assert_close(&found, &expected, 1e-6);
    let names: Vec<_> = found.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["accuracy", "balanced_accuracy", "confusion", "ece", "labels", "log_loss", "macro_f1", "n", "reliability"],
        "no intervals where no weights were given"
    );
}

#[test]
fn a_label_that_was_thought_impossible_costs_a_finite_loss() {
    let mut score = LabelScore::new(Task::Smile);
    score.add(1, &labels(Task::Smile, &[1.0, 0.0]));
    let found = score.finish().unwrap();
    assert!((found.log_loss + f64::from(f32::EPSILON).ln()).abs() < 1e-9);
    assert_eq!((found.accuracy, found.balanced_accuracy, found.macro_f1, found.ece), (0.0, 0.0, 0.0, 1.0));
}

#[test]
fn label_figures_are_those_of_scikit_learn() {
    let reference: Value = serde_json::from_str(include_str!("reference.json")).unwrap();
    for (name, task) in
        [("emotion", Task::Emotion), ("emotion_without_disgust", Task::Emotion), ("gender", Task::Gender)]
    {
        let case = &reference[name];
        let truth: Vec<usize> = serde_json::from_value(case["truth"].clone()).unwrap();
        let probabilities: Vec<Vec<f32>> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        let (mut score, mut weights) = (LabelScore::new(task), Weights::new(REPLICATES));
        for (row, (truth, probabilities)) in truth.iter().zip(&probabilities).enumerate() {
            score.add_weighted(*truth, &labels(task, probabilities), weights.draw(row as u64));
        }
        let found = score.finish().unwrap();
        let json = serde_json::to_value(&found).unwrap();
        assert_close(&json, &case["metrics"], 1e-6);
        assert_intervals(&json["intervals"], &case["intervals"]);
        assert_eq!(serde_json::from_value::<LabelMetrics>(json).unwrap(), found);
    }
}

#[test]
fn age_errors_are_those_of_scikit_learn() {
    let reference: Value = serde_json::from_str(include_str!("reference.json")).unwrap();
    let case = &reference["age"];
    let truth: Vec<f32> = serde_json::from_value(case["truth"].clone()).unwrap();
    let predicted: Vec<usize> = serde_json::from_value(case["predicted"].clone()).unwrap();
    let (mut score, mut weights) = (AgeScore::default(), Weights::new(REPLICATES));
    for (row, (truth, predicted)) in truth.iter().zip(predicted).enumerate() {
        let reading = AgeReading::of(&age(&[(predicted, 1.0)]), AgePoint::Median);
        score.add_weighted(*truth, reading, weights.draw(row as u64));
    }
    let found = score.finish().unwrap();
    let json = serde_json::to_value(&found).unwrap();
    assert_close(&json, &case["metrics"], 1e-6);
    assert_intervals(&json["intervals"], &case["intervals"]);
    assert_eq!(serde_json::from_value::<AgeMetrics>(json).unwrap(), found);
}

#[test]
fn age_by_hand() {
    let mut score = AgeScore::default();
    // Truth, and a certain prediction: errors 0, +5, −6, +8, −16; groups 25-32 twice, then 38-43 for a true 43,
    // 48-53 for a true 43 (one off), and 60-100 for a true 116.
    for (truth, predicted) in [(30.0, 30), (25.0, 30), (43.0, 37), (43.0, 51), (116.0, 100)] {
        score.add(truth, AgeReading::of(&age(&[(predicted, 1.0)]), AgePoint::Median));
    }
    let found = serde_json::to_value(score.finish().unwrap()).unwrap();
    let expected = json!({
        "n": 5, "mae": 7.0, "mean_error": -1.8, "cs5": 0.4, "accuracy_8": 0.8, "accuracy_8_one_off": 1.0,
        "interval_coverage": 0.4,
        "mae_by_decade": {
            "20-29": {"n": 1, "mae": 5.0, "mean_error": 5.0}, "30-39": {"n": 1, "mae": 0.0, "mean_error": 0.0},
            "40-49": {"n": 2, "mae": 7.0, "mean_error": 1.0}, "110-119": {"n": 1, "mae": 16.0, "mean_error": -16.0},
        },
        "cs": {"1": 0.2, "2": 0.2, "3": 0.2, "4": 0.2, "5": 0.4, "6": 0.6, "7": 0.6, "8": 0.8, "9": 0.8, "10": 0.8},
        "confusion_8": (0..8).map(|truth| (0..8).map(|group| match (truth, group) {
            (4, 4) => 2,
            (5, 5 | 6) | (7, 7) => 1,
            _ => 0,
        }).collect::<Vec<_>>()).collect::<Vec<_>>(),
    });
    assert_close(&found, &expected, 1e-9);
    assert_eq!(found.as_object().unwrap().len(), expected.as_object().unwrap().len());
    let written = serde_json::to_string(&score.finish().unwrap().mae_by_decade).unwrap();
    let order: Vec<_> = written.split('"').filter(|part| part.contains('-') && !part.starts_with(':')).collect();
    assert_eq!(order, ["20-29", "30-39", "40-49", "110-119"], "the decades come in order");
}

#[test]
fn the_years_are_read_as_the_model_says() {
    let posterior = age(&[(20, 0.6), (60, 0.4)]);
    for (point, error) in [(AgePoint::Mode, 0.0), (AgePoint::Mean, 16.0)] {
        let mut score = AgeScore::default();
        score.add(20.0, AgeReading::of(&posterior, point));
        assert!((score.finish().unwrap().mae - error).abs() < 1e-5);
    }
}

#[test]
fn the_interval_holds_its_ends() {
    let posterior = age(&[(20, 0.2), (25, 0.6), (30, 0.2)]);
    assert_eq!(posterior.interval(), (20, 30));
    for (truth, covered) in [(19.4, 0.0), (19.6, 1.0), (20.0, 1.0), (30.0, 1.0), (30.4, 1.0), (31.0, 0.0)] {
        let mut score = AgeScore::default();
        score.add(truth, AgeReading::of(&posterior, AgePoint::Median));
        assert!((score.finish().unwrap().interval_coverage - covered).abs() < 1e-9, "{truth} years");
    }
}

#[test]
fn tasks_count_where_there_is_a_label_and_a_prediction() {
    let mut scores = Scores::default();
    let smiling = Prediction { smile: Some(labels(Task::Smile, &[0.2, 0.8])), ..Prediction::default() };
    scores.add(&Labels { smile: Some(1), age: Some(30.0), ..Labels::default() }, &smiling);
    scores.add(&Labels { gender: Some(1), ..Labels::default() }, &smiling);
    scores.add(&Labels { smile: Some(0), ..Labels::default() }, &Prediction::default());
    let found = scores.finish();
    assert_eq!(found.smile.as_ref().map(|smile| smile.n), Some(1));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["smile"], "no figures of no rows");
}

#[test]
fn decades_are_read_and_written_alike() {
    for (years, name) in [(0.0, "0-9"), (9.9, "0-9"), (10.0, "10-19"), (116.0, "110-119")] {
        assert_eq!(Decade::of(years).to_string(), name);
        assert_eq!(name.parse(), Ok(Decade::of(years)));
    }
    for text in ["", "5-14", "10-29", "10", "ten", "010-019", "65530-65539"] {
        assert!(text.parse::<Decade>().is_err(), "{text}");
    }
}

fn predictions() -> impl Strategy<Value = Vec<(usize, LabelDistribution)>> {
    let row = (0usize..7, prop::collection::vec(0.001f32..1.0, 7));
    prop::collection::vec(row.prop_map(|(truth, p)| (truth, labels(Task::Emotion, &p))), 1..60)
}

fn score(rows: &[(usize, LabelDistribution)]) -> LabelMetrics {
    let mut score = LabelScore::new(Task::Emotion);
    for (truth, prediction) in rows {
        score.add(*truth, prediction);
    }
    score.finish().unwrap()
}

proptest! {
    #[test]
    fn label_figures_agree_with_each_other(rows in predictions()) {
        let found = score(&rows);
        prop_assert_eq!(found.n, rows.len() as u64);
        prop_assert_eq!(found.confusion.iter().flatten().sum::<u64>(), found.n);
        let diagonal: u64 = (0..7).map(|class| found.confusion[class][class]).sum();
        prop_assert!((found.accuracy * found.n as f64 - diagonal as f64).abs() < 1e-9);
        for share in [found.accuracy, found.balanced_accuracy, found.macro_f1, found.ece] {
            prop_assert!((0.0..=1.0).contains(&share));
        }
        prop_assert!(found.log_loss >= 0.0);
    }

    #[test]
    fn the_order_of_rows_does_not_matter(rows in predictions()) {
        let (there, back) = (score(&rows), score(&rows.iter().rev().cloned().collect::<Vec<_>>()));
        prop_assert_eq!(&there.confusion, &back.confusion);
        prop_assert!((there.log_loss - back.log_loss).abs() < 1e-9 && (there.ece - back.ece).abs() < 1e-9);
    }

    #[test]
    fn certain_and_right_is_perfect(truths in prop::collection::vec(0usize..7, 1..60)) {
        let sure = |truth: usize| labels(Task::Emotion, &std::array::from_fn::<f32, 7, _>(|c| f32::from(u8::from(c == truth))));
        let found = score(&truths.into_iter().map(|truth| (truth, sure(truth))).collect::<Vec<_>>());
        prop_assert_eq!((found.accuracy, found.balanced_accuracy, found.macro_f1), (1.0, 1.0, 1.0));
        prop_assert_eq!((found.log_loss, found.ece), (0.0, 0.0));
    }

    #[test]
    fn decades_make_up_the_whole(rows in prop::collection::vec((0f32..117.0, 0usize..101), 1..80)) {
        let mut score = AgeScore::default();
        for (truth, year) in &rows {
            score.add(*truth, AgeReading::of(&age(&[(*year, 1.0)]), AgePoint::Median));
        }
        let found = score.finish().unwrap();
        let sum: f64 = found.mae_by_decade.values().map(|decade| decade.mae * decade.n as f64).sum();
        prop_assert!((sum / found.n as f64 - found.mae).abs() < 1e-9);
        prop_assert!(found.mean_error.abs() <= found.mae + 1e-9);
        prop_assert!(found.accuracy_8 <= found.accuracy_8_one_off);
    }
}
