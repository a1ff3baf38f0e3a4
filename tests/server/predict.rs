//! Good requests: the answers have the shape of the contract, whatever way the picture comes in.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::harness::{Spot, TestServer, encoded, faces, jpeg, picture};

/// The value with its numbers and free words replaced by their kind, and lists by their length.
fn shape(value: &Value) -> Value {
    match value {
        Value::Number(_) => json!("number"),
        Value::String(word) if word.len() == 26 => json!("id"),
        Value::Array(items) if items.iter().all(Value::is_number) => json!(format!("{} numbers", items.len())),
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::String(_) => json!("word"),
        other => other.clone(),
    }
}

#[tokio::test]
async fn an_answer_has_the_shape_of_the_contract() {
    let server = TestServer::start(&[]).await;
    let answer = server.answer("?distributions=true&landmarks=true", jpeg(3)).await;
    insta::assert_json_snapshot!(shape(&answer), @r#"
    {
      "faces": [
        {
          "age": {
            "group": "word",
            "high": "number",
            "low": "number",
            "probabilities": "101 numbers",
            "years": "number"
          },
          "box": {
            "height": "number",
            "width": "number",
            "x": "number",
            "y": "number"
          },
          "confidence": "number",
          "emotion": {
            "label": "word",
            "probabilities": {
              "angry": "number",
              "disgust": "number",
              "fear": "number",
              "happy": "number",
              "neutral": "number",
              "sad": "number",
              "surprise": "number"
            },
            "probability": "number"
          },
          "gender": {
            "label": "word",
            "probabilities": {
              "female": "number",
              "male": "number"
            },
            "probability": "number"
          },
          "landmarks": {
            "left_eye": "2 numbers",
            "mouth": "2 numbers",
            "nose": "2 numbers",
            "right_eye": "2 numbers"
          },
          "smile": {
            "label": "word",
            "probabilities": {
              "neutral": "number",
              "smiling": "number"
            },
            "probability": "number"
          }
        }
      ],
      "id": "id",
      "image": {
        "height": "number",
        "width": "number"
      },
      "model": "word",
      "timings": {
        "decode_ms": "number",
        "detect_ms": "number",
        "inference_ms": "number",
        "queue_ms": "number",
        "total_ms": "number"
      },
      "version": "word"
    }
    "#);

    let faces = answer["faces"].as_array().unwrap();
    assert_eq!(answer["image"], json!({"width": 120, "height": 90}));
    assert_eq!(faces[0]["box"], json!({"x": 42.0, "y": 39.0, "width": 24.0, "height": 24.0}));
    assert_eq!((answer["model"].as_str(), answer["version"].is_string()), (Some("face-attributes"), true));
}

#[tokio::test]
async fn numbers_of_an_answer_agree_with_each_other() {
    let server = TestServer::start(&[]).await;
    let answer = server.answer("?distributions=true&detect=false", jpeg(4)).await;
    let face = &answer["faces"][0];
    for task in ["gender", "smile", "emotion"] {
        let answer = &face[task];
        let shares = answer["probabilities"].as_object().unwrap();
        let sum: f64 = shares.values().map(|share| share.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{task}: {sum}");
        assert_eq!(shares[answer["label"].as_str().unwrap()], answer["probability"], "{task}");
        assert!(shares.values().all(|share| share.as_f64() <= answer["probability"].as_f64()), "{task}");
    }
    let age = &face["age"];
    let sum: f64 = age["probabilities"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-3, "{sum}");
    let (years, low, high) =
        (age["years"].as_f64().unwrap(), age["low"].as_f64().unwrap(), age["high"].as_f64().unwrap());
    assert!(low - 0.5 <= years && years <= high + 0.5, "{low} {years} {high}");
    assert!(((years * 10.0).round() - years * 10.0).abs() < 1e-9, "to a tenth: {years}");
}

#[tokio::test]
async fn the_ways_to_send_a_picture_give_the_same_answer() {
    let server = TestServer::start(&[]).await;
    let picture = encoded(&faces(picture(90, 140, 5), &[Spot::at(5, 6)]), ImageFormat::Png);
    let base64 = BASE64_STANDARD.encode(&picture);
    let raw = |kind: &str| server.post("/v1/predict").header("content-type", kind).body(picture.clone());
    let form = |part: &'static str| {
        let other = Part::text("ignored");
        let picture = Part::bytes(picture.clone()).file_name("a.png");
        server.post("/v1/predict").multipart(Form::new().part("note", other).part(part, picture))
    };
    let json = |image: String| server.post("/v1/predict").json(&json!({ "image": image }));
    let requests = [
        raw("image/png"),
        // The content decides about the format, not the header.
        raw("image/jpeg"),
        raw("application/octet-stream"),
        server.post("/v1/predict").body(picture.clone()),
        form("image"),
        form("file"),
        json(base64.clone()),
        json(format!("data:image/png;base64,{base64}")),
    ];
    let mut answers = Vec::new();
    for request in requests {
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answers.push(answer["faces"].clone());
    }
    assert_eq!(answers[0].as_array().unwrap().len(), 1);
    for answer in &answers[1..] {
        assert_eq!(answer, &answers[0]);
    }
}

#[tokio::test]
async fn only_what_is_asked_for_is_answered() {
    let server = TestServer::start(&[]).await;
    let keys = |answer: &Value| -> Vec<String> { answer["faces"][0].as_object().unwrap().keys().cloned().collect() };
    let all = server.answer("?model=face-attributes", jpeg(6)).await;
    assert!(all["faces"][0]["age"].get("probabilities").is_none(), "only when asked for");
    let two = server.answer("?tasks=smile,age", jpeg(6)).await;
    assert_eq!(keys(&two), ["age", "box", "confidence", "smile"]);
    assert_eq!(two["faces"][0]["age"], all["faces"][0]["age"]);
}

#[tokio::test]
async fn a_task_switched_off_is_nowhere() {
    let server = TestServer::start(&["--tasks", "age,smile"]).await;
    let answer = server.answer("", jpeg(6)).await;
    assert!(answer["faces"][0].get("emotion").is_none() && answer["faces"][0].get("smile").is_some());
    assert_eq!(server.predict("?tasks=emotion", jpeg(6)).send().await.unwrap().status(), 400);
    let model: Value = server.get("/v1/models/face-attributes").send().await.unwrap().json().await.unwrap();
    assert_eq!(model["tasks"], json!(["age", "smile"]));
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(!scrape.contains("emotion"), "{scrape}");
}

#[tokio::test]
async fn pictures_wait_for_each_other_where_not_all_fit_at_once() {
    // One megapixel is held at a time, and each picture has nearly as much.
    let server =
        TestServer::start(&["--max-megapixels", "1", "--max-megapixels-held", "1", "--decode-threads", "4"]).await;
    let picture = encoded(&picture(1000, 900, 7), ImageFormat::Jpeg);
    let requests = (0..12).map(|_| server.answer("", picture.clone()));
    for answer in futures_util::future::join_all(requests).await {
        assert_eq!(answer["image"]["width"], 1000);
    }
}
