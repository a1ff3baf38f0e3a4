//! Many pictures in one request: each has an answer of its own, in its place.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::{Spot, TestServer, encoded, faces, jpeg, picture, problem};

const BATCH: &str = "/v1/predict/batch";

/// A picture of one face whose width tells which one it is.
fn numbered(index: usize) -> Vec<u8> {
    encoded(&faces(picture(100 + index as u32, 90, 1), &[Spot::at(4, 5)]), ImageFormat::Jpeg)
}

fn form(pictures: impl IntoIterator<Item = Vec<u8>>) -> Form {
    let part = |picture| Part::bytes(picture).file_name("a.jpg");
    pictures.into_iter().fold(Form::new().text("note", "ignored"), |form, picture| form.part("image", part(picture)))
}

async fn results(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), 200);
    let mut answer: Value = response.json().await.unwrap();
    let Value::Array(results) = answer["results"].take() else { panic!("no results: {answer}") };
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result["index"], index, "in their order");
    }
    results
}

/// Statuses and codes of results.
fn verdicts(results: &[Value]) -> Vec<(u64, Option<&str>)> {
    results.iter().map(|result| (result["status"].as_u64().unwrap(), result["error"]["code"].as_str())).collect()
}

#[tokio::test]
async fn two_hundred_pictures_with_three_broken_ones_are_answered_in_their_order() {
    let server = TestServer::start(&["--max-pictures", "200"]).await;
    let broken = [0, 77, 199];
    let bytes = |index: usize| if broken.contains(&index) { b"no picture".to_vec() } else { numbered(index) };
    let request = server.post(&format!("{BATCH}?detect=false&tasks=smile")).multipart(form((0..200).map(bytes)));
    let results = results(request.send().await.unwrap()).await;
    assert_eq!(results.len(), 200);
    for (index, result) in results.iter().enumerate() {
        if broken.contains(&index) {
            assert_eq!((&result["status"], &result["error"]["status"]), (&json!(422), &json!(422)), "{result}");
            assert_eq!(result["error"]["code"], "unreadable_image");
            assert!(result.get("faces").is_none() && result.get("image").is_none());
        } else {
            assert_eq!((&result["status"], &result["image"]["width"]), (&json!(200), &json!(100 + index)), "{result}");
            assert!(result["faces"][0]["smile"]["probability"].is_number() && result.get("error").is_none());
        }
    }
}

#[tokio::test]
async fn a_batch_answers_what_its_pictures_alone_would() {
    let server = TestServer::start(&[]).await;
    let pictures: Vec<Vec<u8>> = (0..5).map(numbered).collect();
    let query = "?landmarks=true&distributions=true&tasks=age,gender";
    let mut alone = Vec::new();
    for picture in &pictures {
        alone.push(server.answer(query, picture.clone()).await);
    }
    let path = format!("{BATCH}{query}");
    let base64: Vec<String> = pictures.iter().map(|picture| BASE64_STANDARD.encode(picture)).collect();
    let requests =
        [server.post(&path).multipart(form(pictures)), server.post(&path).json(&json!({ "images": base64 }))];
    for request in requests {
        let response = request.send().await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let answer: Value = response.json().await.unwrap();
        assert_eq!((&answer["id"], &answer["model"]), (&json!(id), &json!("face-attributes")));
        for (result, alone) in answer["results"].as_array().unwrap().iter().zip(&alone) {
            assert_eq!((&result["faces"], &result["image"]), (&alone["faces"], &alone["image"]));
            assert!(result["timings"]["total_ms"].as_f64().unwrap() > 0.0);
        }
    }
}

#[tokio::test]
async fn the_first_line_is_there_before_the_last_picture_has_even_been_sent() {
    let server = TestServer::start(&[]).await;
    let (send, pieces) = mpsc::unbounded_channel::<Vec<u8>>();
    let body = futures_util::stream::unfold(pieces, async |mut pieces| {
        pieces.recv().await.map(|piece| (Ok::<_, std::io::Error>(piece), pieces))
    });
    let part = |picture: Vec<u8>| {
        let head = b"--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n";
        [&head[..], &picture, b"\r\n"].concat()
    };
    for index in 0..3 {
        send.send(part(numbered(index))).unwrap();
    }
    // What ends the third picture.
    send.send(b"--x\r\n".to_vec()).unwrap();
    let request = server.post(BATCH).header("accept", "application/x-ndjson");
    let request = request.header("content-type", "multipart/form-data; boundary=x").body(Body::wrap_stream(body));
    let response = request.send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let mut chunks = response.bytes_stream();
    let mut text = Vec::new();
    while text.split(|byte| *byte == b'\n').count() < 4 {
        text.extend_from_slice(&chunks.next().await.unwrap().unwrap());
    }
    let last = part(numbered(3));
    send.send(last["--x\r\n".len()..].to_vec()).unwrap();
    send.send(b"--x--\r\n".to_vec()).unwrap();
    drop(send);
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    let lines: Vec<Value> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let widths: Vec<u64> = lines.iter().map(|line| line["image"]["width"].as_u64().unwrap()).collect();
    assert_eq!(widths, [100, 101, 102, 103]);
}

#[tokio::test]
async fn a_form_that_stops_coming_is_waited_for_no_longer_than_allowed() {
    let server = TestServer::start(&[]).await;
    let head = b"--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n";
    // One picture, and the beginning of another that never comes.
    let begun = [&head[..], &numbered(0), b"\r\n", head, b"abc"].concat();
    let asked = |accept: &str| {
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(begun.clone())]);
        let body = Body::wrap_stream(body.chain(futures_util::stream::pending()));
        let request = server.post(BATCH).header("accept", accept).header("x-request-timeout-ms", "1000");
        request.header("content-type", "multipart/form-data; boundary=x").body(body).send()
    };
    let (status, code, _) = problem(asked("application/json").await.unwrap()).await;
    assert_eq!((status, code.as_str()), (429, "deadline"));
    let lines = asked("application/x-ndjson").await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts(&lines), [(200, None), (429, Some("deadline"))]);
}

#[tokio::test]
async fn one_bad_picture_fails_alone() {
    let server = TestServer::start(&["--max-body", "20kB"]).await;
    let pictures = vec![numbered(0), vec![7; 30_000], Vec::new(), numbered(1)];
    let response = server.post(BATCH).multipart(form(pictures)).send().await.unwrap();
    let of_the_form = results(response).await;
    let expected = [(200, None), (413, Some("payload_too_large")), (400, Some("bad_request")), (200, None)];
    assert_eq!(verdicts(&of_the_form), expected);
    let good = BASE64_STANDARD.encode(numbered(0));
    let json = json!({"images": [good, "%%%", "/etc/passwd", "http://x/a.jpg", "aGVsbG8="]});
    let of_json = results(server.post(BATCH).json(&json).send().await.unwrap()).await;
    let bad = (400, Some("bad_request"));
    assert_eq!(verdicts(&of_json), [(200, None), bad, bad, bad, (422, Some("unreadable_image"))]);
}

#[tokio::test]
async fn what_is_wrong_with_the_batch_itself_is_a_problem() {
    let server = TestServer::start(&["--max-pictures", "3", "--max-body", "100kB"]).await;
    let raw = |kind: &str, body: Vec<u8>| server.post(BATCH).header("content-type", kind).body(body);
    let part = "--x\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\nabc\r\n";
    let cut = raw("multipart/form-data; boundary=x", part.into());
    for (name, request, expected, says) in [
        ("a raw picture", raw("image/jpeg", jpeg(1)), (415, "unsupported_media_type"), "'image'"),
        ("no type", server.post(BATCH).body(jpeg(1)), (415, "unsupported_media_type"), "form"),
        (
            "four pictures",
            server.post(BATCH).multipart(form((0..4).map(numbered))),
            (413, "payload_too_large"),
            "--max-pictures",
        ),
        (
            "four in JSON",
            server.post(BATCH).json(&json!({"images": ["AA", "AA", "AA", "AA"]})),
            (413, "payload_too_large"),
            "--max-pictures",
        ),
        (
            "no picture",
            server.post(BATCH).multipart(Form::new().text("a", "b")),
            (400, "bad_request"),
            "no part 'image'",
        ),
        ("an empty list", server.post(BATCH).json(&json!({"images": []})), (400, "bad_request"), "empty"),
        ("a number", server.post(BATCH).json(&json!({"images": [1]})), (400, "bad_request"), "invalid type"),
        ("a form that breaks off", cut.try_clone().unwrap(), (400, "bad_request"), "malformed"),
        (
            "a large form",
            raw("multipart/form-data; boundary=x", vec![0; 1_500_000]),
            (413, "payload_too_large"),
            "--max-body",
        ),
        (
            "another model",
            server.post(&format!("{BATCH}?model=nobody")).multipart(form([numbered(1)])),
            (404, "not_found"),
            "'nobody'",
        ),
    ] {
        let (status, code, detail) = problem(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), expected, "{name}: {detail}");
        assert!(detail.contains(says), "{name}: {detail}");
    }
    // In lines, what came before is answered.
    let lines = cut.header("accept", "application/x-ndjson").send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["status"], &last["error"]["code"]), (&json!(400), &json!("bad_request")), "{lines:?}");
}

#[tokio::test]
async fn the_head_of_a_part_is_not_kept_without_end() {
    let server = TestServer::start(&[]).await;
    let head = format!("--x\r\ncontent-disposition: form-data; {}", "x".repeat(30_000_000));
    let request = server.post(BATCH).header("content-type", "multipart/form-data; boundary=x").body(head);
    let (status, code, detail) = problem(request.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));
    assert!(detail.contains("the head of a part is too large"), "{detail}");
}

#[tokio::test]
async fn pictures_beyond_what_is_admitted_are_overload_each_by_itself() {
    // A batch has a quarter of the places in progress, twelve, and a picture takes three.
    let server = TestServer::start(&["--max-requests", "2", "--max-in-progress", "48"]).await;
    let images = vec![BASE64_STANDARD.encode(numbered(0)); 4];
    let results = results(server.post(BATCH).json(&json!({ "images": images })).send().await.unwrap()).await;
    let overloaded = (429, Some("overloaded"));
    assert_eq!(verdicts(&results), [(200, None), (200, None), overloaded, overloaded]);
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains(r#"facewise_rejected_total{reason="overloaded"} 2"#), "{scrape}");
    assert_eq!(server.predict("", jpeg(1)).send().await.unwrap().status(), 200, "nothing is held any more");
}
