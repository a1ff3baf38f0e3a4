//! Models come and go while the server answers.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{ModelsCopy, TestServer, jpeg, problem};
use crate::onnx::smiles;

const SMILES: &str = "?model=smiles&detect=false";

/// A server with version 1 of the model `smiles` beside the others.
async fn server(flags: &[&str]) -> (TestServer, ModelsCopy) {
    let models = ModelsCopy::with_detector();
    models.write_smiles("1", &smiles(0.25));
    (TestServer::start_with(models.path(), flags).await, models)
}

/// Version and probability of a smile, as the answer has them.
fn smile(answer: &Value) -> (String, f64) {
    let probability = &answer["faces"][0]["smile"]["probabilities"]["smiling"];
    (answer["version"].as_str().unwrap().to_owned(), probability.as_f64().unwrap())
}

async fn described(server: &TestServer, model: &str) -> Value {
    server.get(&format!("/v1/models/{model}")).send().await.unwrap().json().await.unwrap()
}

/// Waits until something is so; the test fails when it never is.
async fn until(mut so: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !so().await {
        assert!(Instant::now() < limit, "it never came to be");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reloading_under_load_fails_no_request() {
    let (server, models) = server(&[]).await;
    models.write_smiles("2", &smiles(0.75));
    let (server, done) = (Arc::new(server), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..6)
        .map(|seed| {
            let (server, done) = (Arc::clone(&server), Arc::clone(&done));
            tokio::spawn(async move {
                let mut seen = [0, 0];
                while !done.load(Ordering::SeqCst) {
                    let (version, probability) = smile(&server.answer(SMILES, jpeg(seed)).await);
                    let expected = [("1", 0.25), ("2", 0.75)];
                    let which = expected.iter().position(|answer| *answer == (version.as_str(), probability));
                    seen[which.expect("the old model or the new one, not a mixture")] += 1;
                }
                seen
            })
        })
        .collect();
    for round in 0..30 {
        let version = if round % 2 == 0 { "2" } else { "1" };
        let (status, model) = server.change("smiles", &format!("reload?version={version}")).await;
        assert_eq!((status, &model["version"]), (200, &json!(version)), "{model}");
    }
    done.store(true, Ordering::SeqCst);
    let mut seen = [0, 0];
    for client in clients {
        let [old, new] = client.await.expect("every request is answered");
        seen = [seen[0] + old, seen[1] + new];
    }
    assert!(seen.iter().all(|answers| *answers > 0), "{seen:?}");
}

#[tokio::test]
async fn a_broken_new_version_leaves_the_old_one_serving() {
    let (server, models) = server(&[]).await;
    models.write_smiles("2", b"no network at all");
    let (status, code, detail) = problem(server.post("/v1/models/smiles/reload").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));
    assert!(detail.contains("smiles/2/model.onnx' cannot be loaded"), "{detail}");
    assert_eq!(smile(&server.answer(SMILES, jpeg(1)).await), ("1".to_owned(), 0.25));
    let model = described(&server, "smiles").await;
    assert_eq!((&model["version"], &model["versions"]), (&json!("1"), &json!(["1", "2"])));
    assert_eq!(model["error"], json!(detail));
    let metrics = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"facewise_model_load_failures_total{model="smiles"} 1"#), "{metrics}");

    models.write_smiles("2", &smiles(0.75));
    assert_eq!(server.change("smiles", "load").await.0, 200);
    assert_eq!(smile(&server.answer(SMILES, jpeg(1)).await), ("2".to_owned(), 0.75));
    assert_eq!(described(&server, "smiles").await["error"], Value::Null);
    let metrics = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    let served: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("facewise_model_info") && line.contains("smiles")).collect();
    assert!(served.len() == 1 && served[0].contains(r#"version="2""#), "{served:?}");
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_by_name() {
    let (server, _models) = server(&[]).await;
    assert_eq!(server.change("smiles", "unload").await.0, 204);
    let (status, _, detail) = problem(server.predict(SMILES, jpeg(1)).send().await.unwrap()).await;
    assert!(status == 404 && detail.contains("no model 'smiles'"), "{detail}");
    assert_eq!(server.change("smiles", "unload").await.0, 404, "it is gone already");
    let (status, model) = server.change("smiles", "load?version=1").await;
    assert_eq!((status, &model["default"]), (200, &json!(false)));
    assert_eq!(smile(&server.answer(SMILES, jpeg(1)).await).0, "1");

    for (path, status) in [
        ("smiles/load?version=7", 404),
        ("nothing/load", 404),
        ("..%2Fsmiles/load", 404),
        ("smiles/load?versions=1", 400),
        ("face-attributes/unload", 400),
        ("face-detector/unload", 400),
    ] {
        let (model, action) = path.split_once('/').unwrap();
        let (found, body) = server.change(model, action).await;
        assert_eq!(found, status, "{path}: {body}");
    }
}

#[tokio::test]
async fn the_default_changes_in_one_step() {
    let (server, _models) = server(&[]).await;
    let default = async || server.answer("?detect=false", jpeg(1)).await["model"].clone();
    assert_eq!(default().await, "face-attributes");
    assert_eq!(server.change("smiles", "load?default=true").await.0, 200);
    assert_eq!(default().await, "smiles");
    assert_eq!(described(&server, "face-attributes").await["default"], json!(false));
    assert_eq!(server.change("smiles", "unload").await.0, 400, "it is the default now");
    assert_eq!(server.change("face-attributes", "unload").await.0, 204);
}

#[tokio::test]
async fn a_folder_that_is_watched_is_followed() {
    let (server, models) = server(&["--models-poll", "100ms"]).await;
    models.write_smiles("2", &smiles(0.75));
    until(async || described(&server, "smiles").await["version"] == "2").await;
    models.write_smiles("3", b"no network at all");
    until(async || described(&server, "smiles").await["error"].is_string()).await;
    assert_eq!(smile(&server.answer(SMILES, jpeg(1)).await), ("2".to_owned(), 0.75));
    fs::remove_dir_all(Path::new(models.path()).join("smiles")).unwrap();
    until(async || described(&server, "smiles").await["status"] == 404).await;
    assert_eq!(server.answer("?detect=false", jpeg(1)).await["model"], "face-attributes");
}

#[tokio::test]
async fn only_the_servers_own_machine_changes_models() {
    let (server, _models) = server(&[]).await;
    for header in ["x-forwarded-for", "forwarded"] {
        let request = server.post("/v1/models/smiles/unload").header(header, "for=203.0.113.7");
        let (status, code, _) = problem(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (403, "forbidden"));
    }
    assert_eq!(smile(&server.answer(SMILES, jpeg(1)).await).0, "1");
}
