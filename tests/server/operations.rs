//! What operators and programs rely on besides predictions.

use std::fs;

use image::ImageFormat;
use serde_json::{Value, json};

use crate::harness::{TestServer, encoded, jpeg, picture, problem};

#[tokio::test]
async fn a_server_is_live_and_ready() {
    let server = TestServer::start(&[]).await;
    for (path, status) in [("/health/live", "live"), ("/health/ready", "ready")] {
        let answer: Value = server.get(path).send().await.unwrap().json().await.unwrap();
        assert_eq!(answer, json!({ "status": status }));
    }
    assert!(server.stop().await, "nothing was in progress");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let server = TestServer::start(&[]).await;
    let (status, code, _) = problem(server.get("/v1/nothing").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    let (status, code, _) = problem(server.get("/docs/nothing").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    let response = server.get("/v1/predict").send().await.unwrap();
    assert_eq!(response.headers()["allow"], "POST");
    let (status, code, _) = problem(response).await;
    assert_eq!((status, code.as_str()), (405, "method_not_allowed"));
    let (status, code, _) = problem(server.get("/v1/models/%ff").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));
}

#[tokio::test]
async fn every_answer_carries_the_requests_id() {
    let server = TestServer::start(&[]).await;
    for path in ["/health/live", "/v1/models", "/nothing", "/metrics"] {
        let response = server.get(path).header("x-request-id", "mine-1").send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine-1", "{path}");
    }
    let response = server.predict("", jpeg(1)).send().await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(id.len(), 26, "{id}");
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["id"], id);
    let response = server.get("/health/live").header("x-request-id", "not fit; for a log").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"].len(), 26);
}

#[tokio::test]
async fn a_request_may_give_itself_less_time() {
    let server = TestServer::start(&[]).await;
    let large = encoded(&picture(2000, 1500, 3), ImageFormat::Jpeg);
    let hurried = server.predict("", large.clone()).header("x-request-timeout-ms", "1");
    let (status, code, _) = problem(hurried.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (429, "deadline"));
    let metrics = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"facewise_rejected_total{reason="deadline"} 1"#), "{metrics}");
    let patient = server.predict("", large).header("x-request-timeout-ms", "600000");
    assert_eq!(patient.send().await.unwrap().status(), 200);
    let confused = server.predict("", jpeg(1)).header("x-request-timeout-ms", "soon");
    assert_eq!(problem(confused.send().await.unwrap()).await.0, 400);
}

#[tokio::test]
async fn timings_are_in_a_header_too() {
    let server = TestServer::start(&[]).await;
    let response = server.predict("", jpeg(1)).send().await.unwrap();
    let header = response.headers()["server-timing"].to_str().unwrap().to_owned();
    let timings = response.json::<Value>().await.unwrap()["timings"].clone();
    let stages: Vec<(&str, f64)> = header
        .split(", ")
        .map(|entry| entry.split_once(";dur=").unwrap())
        .map(|(stage, ms)| (stage, ms.parse().unwrap()))
        .collect();
    for (stage, key) in [("decode", "decode_ms"), ("inference", "inference_ms"), ("total", "total_ms")] {
        let ms = timings[key].as_f64().unwrap();
        assert!(ms > 0.0 && stages.contains(&(stage, ms)), "{header} against {timings}");
    }
}

#[tokio::test]
async fn models_are_listed() {
    let server = TestServer::start(&[]).await;
    let list: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
    let one: Value = server.get("/v1/models/face-attributes").send().await.unwrap().json().await.unwrap();
    assert!(list["models"].as_array().unwrap().contains(&one));
    assert_eq!((&one["default"], &one["kind"]), (&json!(true), &json!("attributes")));
    assert_eq!(one["tasks"], json!(["age", "gender", "smile", "emotion"]));
    assert_eq!(one["sha256"].as_str().unwrap().len(), 64);
    let detector: Value = server.get("/v1/models/face-detector").send().await.unwrap().json().await.unwrap();
    assert!(list["models"].as_array().unwrap().contains(&detector));
    assert_eq!((&detector["default"], &detector["kind"]), (&json!(true), &json!("detector")));
    assert_eq!((&detector["tasks"], &detector["input_size"]), (&json!([]), &json!(320)));
    let (status, code, _) = problem(server.get("/v1/models/nobody").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
}

/// The value of the sample that begins with `name`.
fn sample(scrape: &str, name: &str) -> f64 {
    let line = scrape.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{scrape}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_scrape_counts_what_happened_under_the_names_of_the_contract() {
    let server = TestServer::start(&[]).await;
    for seed in 0..3 {
        server.answer("", jpeg(seed)).await;
    }
    server.predict("", vec![1, 2, 3]).send().await.unwrap();
    server.get("/nowhere/1").send().await.unwrap();
    server.get("/nowhere/2").send().await.unwrap();
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();

    for (name, value) in [
        (r#"facewise_http_requests_total{method="POST",route="/v1/predict",status="200"}"#, 3.0),
        (r#"facewise_http_requests_total{method="POST",route="/v1/predict",status="422"}"#, 1.0),
        (r#"facewise_http_requests_total{method="GET",route="other",status="404"}"#, 2.0),
        (r#"facewise_http_request_duration_seconds_count{route="/v1/predict"}"#, 4.0),
        ("facewise_http_requests_in_flight", 1.0),
        ("facewise_images_total", 3.0),
        ("facewise_faces_total", 3.0),
        (r#"facewise_stage_duration_seconds_count{stage="decode"}"#, 3.0),
        (r#"facewise_stage_duration_seconds_count{stage="detect"}"#, 3.0),
        (r#"facewise_stage_duration_seconds_count{stage="align"}"#, 3.0),
        (r#"facewise_stage_duration_seconds_count{stage="queue"}"#, 3.0),
        (r#"facewise_stage_duration_seconds_count{stage="inference"}"#, 3.0),
        (r#"facewise_inferences_total{model="face-attributes""#, 3.0),
        (r#"facewise_executions_total{model="face-attributes""#, 3.0),
        (r#"facewise_inferences_total{model="face-detector""#, 3.0),
        (r#"facewise_batch_size_count{model="face-attributes"}"#, 3.0),
        (r#"facewise_queue_depth{model="face-attributes"}"#, 0.0),
        ("facewise_predicted_age_years_count", 3.0),
        (r#"facewise_model_info{model="face-attributes""#, 1.0),
    ] {
        assert!((sample(&scrape, name) - value).abs() < 1e-9, "{name}: {}", sample(&scrape, name));
    }
    let predictions: f64 = scrape
        .lines()
        .filter(|line| line.starts_with("facewise_predictions_total{") && line.contains(r#"task="smile""#))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!((predictions - 3.0).abs() < 1e-9);
    assert!(sample(&scrape, "process_resident_memory_bytes") > 0.0);
    assert!(!scrape.contains("nowhere"), "labels come from fixed sets");
}

#[tokio::test]
async fn the_page_of_the_documentation_fetches_nothing_from_elsewhere() {
    let server = TestServer::start(&[]).await;
    let page = server.get("/docs").send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let page = page.text().await.unwrap()
        + &server.get("/docs/swagger-initializer.js").send().await.unwrap().text().await.unwrap();
    assert!(!page.contains("://") && !page.contains("\"//"), "no address of another server: {page}");
    assert!(page.contains("/openapi.json") && page.contains(r#""validatorUrl": "none""#), "{page}");
    assert_eq!(server.get("/docs/swagger-ui-bundle.js").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_description_is_the_committed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == facewise::api::openapi().unwrap(),
        "openapi/openapi.json is not what the code says: run `make openapi` and look at the difference"
    );
    let server = TestServer::start(&[]).await;
    let served: Value = server.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    assert_eq!(served, serde_json::from_str::<Value>(&committed).unwrap());
    for path in [
        "/v1/predict",
        "/v1/predict/batch",
        "/v1/predict/embeddings",
        "/v1/models",
        "/v1/models/{name}",
        "/health/live",
        "/health/ready",
        "/metrics",
    ] {
        assert!(served["paths"].get(path).is_some(), "{path}");
    }
    let errors: Vec<&String> =
        served["paths"]["/v1/predict"]["post"]["responses"].as_object().unwrap().keys().collect();
    assert_eq!(errors, ["200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "500", "503"]);
}
