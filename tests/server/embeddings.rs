//! Faces of which there are embeddings.

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::harness::{ModelsCopy, TestServer, jpeg, problem};
use crate::onnx::linear;

const PATH: &str = "/v1/predict/embeddings";

/// A server with the model `years`, which reads four numbers, and on demand another one, `groups`, which reads two.
async fn server(both: bool) -> (TestServer, ModelsCopy) {
    let models = ModelsCopy::with_detector();
    // The age is 20 or 40, as the third number or the fourth is larger; the gender is as the first two say.
    let mut years = vec![0.0; 4 * 101];
    (years[2 * 101 + 20], years[3 * 101 + 40]) = (1.0, 1.0);
    let mut faint = vec![-1000.0; 101];
    (faint[20], faint[40]) = (0.0, 0.0);
    let gender = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    let network = linear("embedding", 4, &[("age", &years, &faint), ("gender", &gender, &[0.0; 2])]);
    models.write_embeddings(
        "years",
        4,
        &network,
        &json!([
            {"task": "age", "output": "age", "values": "logits"},
            {"task": "gender", "output": "gender", "values": "logits", "labels": ["female", "male"]},
        ]),
    );
    if both {
        let mut groups = vec![0.0; 2 * 8];
        (groups[4], groups[8 + 7]) = (1.0, 1.0);
        let network = linear("embedding", 2, &[("group", &groups, &[0.0; 8])]);
        models.write_embeddings(
            "groups",
            2,
            &network,
            &json!([
                {"task": "age", "output": "group", "values": "logits",
                 "labels": ["0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100"]},
            ]),
        );
    }
    (TestServer::start_with(models.path(), &[]).await, models)
}

async fn answer(request: RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

const TWO: [[f32; 4]; 2] = [[3.0, 0.0, 9.0, 0.0], [0.0, 3.0, 0.0, 9.0]];

fn floats(rows: &[[f32; 4]]) -> Vec<u8> {
    rows.concat().iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[tokio::test]
async fn embeddings_are_answered_alike_in_every_form() {
    let (server, _models) = server(false).await;
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }\n";
    let npy =
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &floats(&TWO)].concat();
    let bytes = |kind: &str, body: Vec<u8>| server.post(PATH).header("content-type", kind).body(body);
    let first = answer(server.post(PATH).json(&json!({ "embeddings": TWO }))).await;
    assert_eq!((&first["model"], &first["version"]), (&json!("years"), &json!("1")));
    let [one, two] = first["results"].as_array().unwrap().as_slice() else { panic!("two: {first}") };
    assert_eq!((&one["age"]["group"], &one["gender"]["label"]), (&json!("15-20"), &json!("female")));
    assert_eq!((&two["age"]["group"], &two["gender"]["label"]), (&json!("38-43"), &json!("male")));
    assert!((one["age"]["years"].as_f64().unwrap() - 20.0).abs() < 0.6, "{one}");
    // The softmax of 3 and 0.
    assert!((one["gender"]["probability"].as_f64().unwrap() - 0.952_574).abs() < 1e-5, "{one}");
    assert!(one["age"].get("probabilities").is_none() && one.get("smile").is_none());
    for request in [
        bytes("application/octet-stream", floats(&TWO)),
        bytes("application/octet-stream", npy.clone()),
        bytes("application/x-npy", npy),
        server.post(PATH).body(floats(&TWO)),
    ] {
        assert_eq!(answer(request).await["results"], first["results"]);
    }
    let some =
        answer(server.post(&format!("{PATH}?tasks=age&distributions=true")).json(&json!({"embeddings": [TWO[0]]})))
            .await;
    let face = &some["results"][0];
    assert!(face.get("gender").is_none());
    assert_eq!(face["age"]["probabilities"].as_array().unwrap().len(), 101);
}

#[tokio::test]
async fn a_model_that_knows_groups_answers_no_years() {
    let (server, _models) = server(true).await;
    let request = server.post(&format!("{PATH}?model=groups")).json(&json!({"embeddings": [[4.0, 0.0], [0.0, 2.0]]}));
    let results = answer(request).await["results"].clone();
    let age = &results[0]["age"];
    assert_eq!((&age["group"], age.get("years")), (&json!("25-32"), None));
    assert_eq!(results[1]["age"]["group"], "60-100");
    let shares: f64 = age["probabilities"].as_object().unwrap().values().map(|share| share.as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-4);
    assert_eq!(age["probability"], age["probabilities"]["25-32"]);

    let model: Value = server.get("/v1/models/groups").send().await.unwrap().json().await.unwrap();
    assert_eq!((&model["kind"], &model["features"]), (&json!("embeddings"), &json!(2)));
    assert_eq!((model.get("input_size"), &model["tasks"]), (None, &json!(["age"])));
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains(r#"facewise_predictions_total{label="60-100",task="age"} 1"#), "{scrape}");
    assert!(scrape.contains(r#"facewise_inferences_total{model="groups",version="1"} 2"#), "{scrape}");
}

#[tokio::test]
async fn more_embeddings_than_share_a_run_are_answered_too() {
    let (server, _models) = server(false).await;
    let many: Vec<[f32; 4]> = (0..700).map(|index| TWO[index % 2]).collect();
    let results = answer(server.post(PATH).body(floats(&many))).await["results"].clone();
    let labels: Vec<&str> =
        results.as_array().unwrap().iter().map(|face| face["gender"]["label"].as_str().unwrap()).collect();
    assert_eq!(labels.len(), 700);
    assert!(labels.iter().enumerate().all(|(index, label)| *label == ["female", "male"][index % 2]));
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem() {
    let (server, _models) = server(true).await;
    let json = |query: &str, body: Value| server.post(&format!("{PATH}{query}")).json(&body);
    let good = json!({ "embeddings": TWO });
    for (request, expected, says) in [
        (json("", good.clone()), (400, "bad_request"), "name one with 'model'"),
        (json("?model=nobody", good.clone()), (404, "not_found"), "'nobody'"),
        (json("?model=face-attributes", good.clone()), (400, "bad_request"), "reads pictures"),
        (json("?model=years&tasks=smile", good.clone()), (400, "bad_request"), "does not answer 'smile'"),
        (json("?model=years&colour=blue", good.clone()), (400, "bad_request"), "unknown field"),
        (json("?model=groups", good.clone()), (400, "bad_request"), "has 4 numbers; the model reads 2"),
        (json("?model=years", json!({"embeddings": []})), (400, "bad_request"), "at least one"),
        (
            json("?model=years", json!({"embeddings": vec![TWO[0]; 1025]})),
            (413, "payload_too_large"),
            "--max-embeddings",
        ),
        (server.post(&format!("{PATH}?model=years")).body("abc"), (400, "bad_request"), "3 bytes"),
        (
            server.post(&format!("{PATH}?model=years")).header("content-type", "application/python-pickle").body("abc"),
            (415, "unsupported_media_type"),
            ".npy",
        ),
        (server.predict("?model=years", jpeg(1)), (400, "bad_request"), "reads embeddings"),
    ] {
        let (status, code, detail) = problem(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), expected, "{detail}");
        assert!(detail.contains(says), "{detail}");
    }
    let none = TestServer::start(&[]).await;
    let (status, _, detail) = problem(none.post(PATH).json(&good).send().await.unwrap()).await;
    assert!(status == 404 && detail.contains("no model here that reads embeddings"), "{detail}");
}
