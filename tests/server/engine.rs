//! The shipped network in the engine.

use std::path::PathBuf;

use facewise::config::Settings;
use facewise::engine::{Attributes, Runtime};
use facewise::repository::start_default;
use facewise::telemetry::Metrics;
use facewise_core::decode::LabelDistribution;
use futures_util::future::join_all;

use crate::harness::{MODELS, picture};

fn numbers(attributes: &Attributes) -> Vec<f32> {
    let age = attributes.age.iter().flat_map(|(posterior, _)| posterior.probabilities());
    age.chain(attributes.labels.iter().flat_map(LabelDistribution::probabilities)).copied().collect()
}

#[tokio::test]
async fn a_face_in_a_batch_is_answered_as_alone() {
    let metrics = Metrics::new();
    let mut settings = Settings::from_flags(["--workers", "1"]).unwrap().inference;
    settings.models = PathBuf::from(MODELS);
    let model = start_default(&Runtime::load(None).unwrap(), &settings, &metrics).unwrap();
    let faces: Vec<_> = (0..40).map(|seed| picture(model.input_size(), model.input_size(), seed)).collect();

    let mut alone = Vec::new();
    for face in &faces {
        alone.push(numbers(&model.infer(face.clone()).await.unwrap().attributes));
    }
    let together = join_all(faces.iter().map(|face| model.infer(face.clone()))).await;

    let labels = [model.name(), model.version()];
    let runs = metrics.executions.with_label_values(&labels).get();
    assert_eq!(metrics.inferences.with_label_values(&labels).get(), 80);
    assert!(runs < 80, "some faces shared a run");
    for (one, answer) in alone.iter().zip(together) {
        let other = numbers(&answer.unwrap().attributes);
        assert_eq!(one.len(), 101 + 2 + 2 + 7);
        for (a, b) in one.iter().zip(&other) {
            assert!((a - b).abs() <= 1e-5, "{a} alone, {b} in a batch");
        }
    }
    assert_ne!(alone[0], alone[1], "faces differ, and so do their answers");
}
