//! The shipped network in the engine.

use std::path::PathBuf;
use std::sync::Arc;

use facewise::config::Settings;
use facewise::engine::{Attributes, Runtime};
use facewise::repository::{Repository, Scope};
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
    let metrics = Arc::new(Metrics::new());
    let mut settings = Settings::from_flags(["--workers", "1", "--max-batch", "32"]).unwrap().inference;
    settings.models = PathBuf::from(MODELS);
    let runtime = Runtime::load(None).unwrap();
    let models = Repository::open(&runtime, &settings, Scope::Default, &metrics, &Arc::default()).unwrap().models();
    let (model, network) = (models.default_model(), models.default_model().model());
    let faces: Vec<_> = (0..40).map(|seed| picture(network.input_size(), network.input_size(), seed)).collect();

    let mut alone = Vec::new();
    for face in &faces {
        alone.push(numbers(&model.infer(vec![face.clone()]).await.unwrap()[0].attributes));
    }
    // Pictures of one face, of several, and of none.
    let pictures = [&faces[..1], &faces[1..17], &[], &faces[17..40]];
    let together = join_all(pictures.iter().map(|faces| model.infer(faces.to_vec()))).await;

    let labels = [network.name(), network.version()];
    let runs = metrics.executions.with_label_values(&labels).get();
    assert_eq!(metrics.inferences.with_label_values(&labels).get(), 80);
    assert!(runs <= 44, "faces of one picture shared a run: {runs}");
    for (one, answer) in alone.iter().zip(together.into_iter().flat_map(Result::unwrap)) {
        let other = numbers(&answer.attributes);
        assert_eq!(one.len(), 101 + 2 + 2 + 7);
        for (a, b) in one.iter().zip(&other) {
            assert!((a - b).abs() <= 1e-5, "{a} alone, {b} in a batch");
        }
    }
    assert_ne!(alone[0], alone[1], "faces differ, and so do their answers");
}
