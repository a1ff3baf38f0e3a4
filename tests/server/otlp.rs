//! Spans reach a collector, the last ones at the end of the program.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::harness::{ModelsCopy, client, jpeg, program};

/// Takes what is sent by HTTP: the first line and the body of each request.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (send, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                match line.trim_end() {
                    "" => break,
                    line => head.push(line.to_ascii_lowercase()),
                }
            }
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            if send.send((head.swap_remove(0), body)).is_err() {
                return;
            }
        }
    });
    (url, received)
}

#[tokio::test]
async fn the_spans_of_a_request_and_its_stages_reach_the_collector_under_the_trace_of_the_client() {
    let (url, received) = collector();
    let models = ModelsCopy::with_detector();
    let flags = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--models", models.path()];
    let mut command = program(&flags);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("NO_PROXY", "127.0.0.1").env_remove("OTEL_SERVICE_NAME");
    let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
    let address = log
        .find_map(|line| {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            (event["message"] == "listening").then(|| event["address"].as_str().unwrap().to_owned())
        })
        .expect("the server starts");
    let drained = std::thread::spawn(move || log.map(Result::unwrap).collect::<Vec<_>>());

    let request = client()
        .post(format!("http://{address}/v1/predict"))
        .header("content-type", "image/jpeg")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(request.body(jpeg(1)).send().await.unwrap().status(), 200);
    // At once: the batch of spans is not full, and is sent at the end.
    assert!(Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap().success());
    assert!(server.wait().unwrap().success(), "{:?}", drained.join());

    let sent: Vec<_> = received.try_iter().collect();
    assert!(sent.iter().all(|(line, _)| line == "post /v1/traces http/1.1"), "{sent:?}");
    let bytes: Vec<u8> = sent.into_iter().flat_map(|(_, body)| body).collect();
    let holds = |wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    assert!(holds(&trace), "the trace of the client");
    for word in ["facewise", "request", "/v1/predict", "decode", "detect", "align", "attributes", "inference_ms"] {
        assert!(holds(word.as_bytes()), "'{word}' in {}", String::from_utf8_lossy(&bytes));
    }
}
