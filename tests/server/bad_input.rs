//! Whatever a client sends, it gets a problem that says what is wrong, and the next good request succeeds.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use futures_util::stream;
use reqwest::Body;

use crate::harness::{TestServer, jpeg, jpeg_announcing, problem};

struct Case {
    name: &'static str,
    query: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    expected: (u16, &'static str),
    /// Part of the detail.
    says: &'static str,
}

fn case(
    name: &'static str,
    content_type: &'static str,
    body: impl Into<Vec<u8>>,
    expected: (u16, &'static str),
    says: &'static str,
) -> Case {
    Case { name, query: "", content_type, body: body.into(), expected, says }
}

fn query(query: &'static str, expected: (u16, &'static str), says: &'static str) -> Case {
    Case { name: query, query, content_type: "image/jpeg", body: jpeg(1), expected, says }
}

const FORM: &str = "multipart/form-data; boundary=x";

fn part(name: &str, content: &str) -> String {
    format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"a.jpg\"\r\n\r\n{content}\r\n")
}

fn cases() -> Vec<Case> {
    const BAD: (u16, &str) = (400, "bad_request");
    const UNREADABLE: (u16, &str) = (422, "unreadable_image");
    const LARGE: (u16, &str) = (413, "payload_too_large");
    const TYPE: (u16, &str) = (415, "unsupported_media_type");
    let truncated = jpeg(1)[..400].to_vec();
    vec![
        case("empty body", "image/jpeg", "", BAD, "empty"),
        case("text as a picture", "image/jpeg", "I am a picture, believe me.", UNREADABLE, "known format"),
        case("truncated JPEG", "image/jpeg", truncated, UNREADABLE, "JPEG"),
        case("huge header", "image/jpeg", jpeg_announcing(30_000, 30_000), LARGE, "--max-megapixels"),
        case("wrong content type", "text/plain", jpeg(1), TYPE, "'text/plain'"),
        case("form of a browser", "application/x-www-form-urlencoded", "image=x", TYPE, "multipart/form-data"),
        case("oversized body", "image/jpeg", vec![0xFF; 3_000_000], LARGE, "--max-body"),
        case("broken base64", "application/json", r#"{"image": "%%%"}"#, BAD, "base64"),
        case("JSON without a picture", "application/json", "{}", BAD, "missing field `image`"),
        case("JSON with another key", "application/json", r#"{"picture": "AAAA"}"#, BAD, "unknown field `picture`"),
        case("JSON with a path", "application/json", r#"{"image": "/etc/passwd"}"#, BAD, "base64"),
        case("JSON with an address", "application/json", r#"{"image": "http://x/a.jpg"}"#, BAD, "base64"),
        case("broken JSON", "application/json", r#"{"image": "#, BAD, "EOF"),
        case("text in base64", "application/json", r#"{"image": "aGVsbG8gd29ybGQ="}"#, UNREADABLE, "known format"),
        case("form without a boundary", "multipart/form-data", jpeg(1), BAD, "boundary"),
        case("form without a picture", FORM, part("text", "hello") + "--x--\r\n", BAD, "'image'"),
        case("form with an empty picture", FORM, part("image", "") + "--x--\r\n", BAD, "empty"),
        case(
            "form with two pictures",
            FORM,
            part("image", "a") + &part("file", "b") + "--x--\r\n",
            BAD,
            "more than one",
        ),
        case("form that breaks off", FORM, part("image", "abc"), BAD, "malformed"),
        query("?model=nobody", (404, "not_found"), "'nobody'"),
        query("?model=../../etc", (404, "not_found"), "no model"),
        query("?tasks=beauty", BAD, "'beauty'"),
        query("?tasks=", BAD, "no task"),
        query("?distributions=yes", BAD, "distributions"),
        query("?distributions=False", BAD, "distributions"),
        query("?detect=maybe", BAD, "unknown variant `maybe`"),
        query("?detect=", BAD, "expected one of `true`, `crop`, `false`"),
        query("?model=face-detector", BAD, "is a detector"),
        query("?max_faces=0", BAD, "between 1 and 100 (--max-faces)"),
        query("?max_faces=101", BAD, "'max_faces'"),
        query("?max_faces=-1", BAD, "max_faces"),
        query("?min_confidence=1.1", BAD, "'min_confidence' is not between 0 and 1"),
        query("?min_confidence=nan", BAD, "'min_confidence'"),
        query("?min_confidence=high", BAD, "min_confidence"),
        query("?landmarks=yes", BAD, "landmarks"),
        query("?colour=blue", BAD, "unknown field `colour`"),
        query("?tasks=age&tasks=smile", BAD, "duplicate"),
    ]
}

#[tokio::test]
async fn bad_input_is_refused_and_the_next_good_request_succeeds() {
    let server = TestServer::start(&["--max-body", "1MB"]).await;
    for Case { name, query, content_type, body, expected, says } in cases() {
        let request = server.post(&format!("/v1/predict{query}")).header("content-type", content_type).body(body);
        let (status, code, detail) = problem(request.send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), expected, "{name}: {detail}");
        assert!(detail.contains(says), "{name}: {detail}");
        let good = server.answer("", jpeg(2)).await;
        assert_eq!(good["faces"].as_array().unwrap().len(), 1, "after {name}");
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_limited_too() {
    let server = TestServer::start(&["--max-body", "1MB"]).await;
    let chunks = stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![7u8; 100_000])));
    let request = server.post("/v1/predict").header("content-type", "image/jpeg").body(Body::wrap_stream(chunks));
    let (status, code, detail) = problem(request.send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (413, "payload_too_large"), "{detail}");
    assert!(detail.contains("1.0 MB") && detail.contains("--max-body"), "{detail}");
    server.answer("", jpeg(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_waited_for_no_longer_than_allowed() {
    let server = TestServer::start(&["--body-timeout", "100ms"]).await;
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream
        .write_all(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: 99\r\n\r\nabc")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains(r#""code":"timeout""#) && answer.contains("--body-timeout"), "{answer}");
    server.answer("", jpeg(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_predictions_than_admitted_are_overload() {
    let server = TestServer::start(&["--max-requests", "1"]).await;
    // This one is admitted, and stays so because its body is not complete.
    let mut first = TcpStream::connect(server.address()).unwrap();
    first.write_all(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nabc").unwrap();
    while !server.get("/metrics").send().await.unwrap().text().await.unwrap().contains("requests_in_flight 2") {}

    let (status, code, _) = problem(server.predict("", jpeg(1)).send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (429, "overloaded"));
    assert_eq!(server.get("/health/live").send().await.unwrap().status(), 200, "probes are not predictions");
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains(r#"facewise_rejected_total{reason="overloaded"} 1"#), "{scrape}");

    drop(first);
    while server.predict("", jpeg(1)).send().await.unwrap().status() != 200 {}
}

#[tokio::test]
async fn a_request_that_waits_too_long_is_told_so() {
    let server = TestServer::start(&["--request-timeout", "1ms", "--body-timeout", "1ms"]).await;
    let body = stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let request = server.post("/v1/predict").body(Body::wrap_stream(body));
    let (status, code, _) = problem(request.send().await.unwrap()).await;
    assert!([(408, "timeout"), (429, "deadline")].contains(&(status, code.as_str())), "{status} {code}");
}

/// What a client reads that sends megabytes, slowly, and looks for an answer only then.
fn sent_to_the_end(server: &TestServer, head: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let (megabyte, megabytes) = (vec![0; 1 << 20], 12);
    write!(stream, "{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", megabytes << 20).unwrap();
    for _ in 0..megabytes {
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(&megabyte).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_still_sends_comes_to_read_its_answer() {
    let server = TestServer::start(&["--max-body", "1MB"]).await;
    for (head, status) in [
        ("POST /nowhere HTTP/1.1", 404),
        ("DELETE /v1/predict HTTP/1.1", 405),
        ("POST /v1/predict HTTP/1.1", 413),
        ("POST /v1/predict HTTP/1.1\r\nx-request-timeout-ms: 1", 413),
        ("POST /v1/predict/batch HTTP/1.1", 415),
        ("POST /v1/evaluations HTTP/1.1", 404),
        ("POST /v2/models/face-pipeline/infer HTTP/1.1\r\nx-request-timeout-ms: never", 400),
    ] {
        let answer = sent_to_the_end(&server, head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_whether_to_send_is_told_no() {
    let server = TestServer::start(&["--max-body", "1MB"]).await;
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream
        .write_all(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9000000\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}
