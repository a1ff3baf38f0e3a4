//! Stopping loses nothing that was admitted.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::harness::{ModelsCopy, client, jpeg, program};

/// The program serving, with the lines of its log.
struct Server {
    child: Child,
    log: Receiver<Value>,
    address: String,
    _models: ModelsCopy,
}

fn start(flags: &[&str]) -> Server {
    let models = ModelsCopy::with_detector();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--log-level", "warn,facewise=debug"];
    let mut child = program(&[&arguments[..], &["--models", models.path()], flags].concat())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (send, log) = channel();
    std::thread::spawn(move || {
        for line in lines {
            let line = line.unwrap();
            let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if send.send(event).is_err() {
                return;
            }
        }
    });
    let listening = log.iter().find(|event| event["message"] == "listening").expect("the server starts");
    let address = listening["address"].as_str().unwrap().to_owned();
    Server { child, log, address, _models: models }
}

fn terminate(child: &Child) {
    let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_admitted_request() {
    let Server { mut child, log, address, _models } = start(&[]);
    let url = format!("http://{address}/v1/predict");
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..48)
        .map(|seed| {
            let (url, answered, client, picture) = (url.clone(), Arc::clone(&answered), client(), jpeg(seed));
            tokio::spawn(async move {
                loop {
                    let request = client.post(&url).header("content-type", "image/jpeg").body(picture.clone());
                    // Once the server is gone, there is nobody to connect to.
                    let Ok(response) = request.send().await else { return };
                    assert_eq!(response.status(), 200);
                    let body: Value = response.json().await.expect("an answer that began is complete");
                    assert_eq!(body["faces"].as_array().unwrap().len(), 1);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    while answered.load(Ordering::SeqCst) < 300 {
        assert!(child.try_wait().unwrap().is_none(), "the server serves");
        tokio::task::yield_now().await;
    }
    terminate(&child);
    for client in clients {
        client.await.expect("every answer is a complete 200");
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let count =
        |events: &[Value], message: &str| events.iter().filter(|event| event["message"] == message).count() as u64;
    let events: Vec<Value> = log.iter().collect();
    let received = count(&events, "received");
    assert!(received >= 300);
    assert_eq!(count(&events, "answered"), received, "whatever was received was answered");
    assert_eq!(answered.load(Ordering::SeqCst), received, "and every answer arrived");
    assert_eq!(count(&events, "stopped: everything admitted was answered"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_answers_what_it_admitted_and_stops() {
    let Server { mut child, log, address, _models } = start(&["--max-requests", "4", "--max-queue", "100"]);
    let url = format!("http://{address}/v1/predict");
    let refused = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..32)
        .map(|seed| {
            let (url, refused, client, picture) = (url.clone(), Arc::clone(&refused), client(), jpeg(seed));
            tokio::spawn(async move {
                let mut answered = 0;
                loop {
                    let request = client.post(&url).header("content-type", "image/jpeg").body(picture.clone());
                    let Ok(response) = request.send().await else { return answered };
                    let status = response.status().as_u16();
                    let body: Value = response.json().await.expect("an answer that began is complete");
                    match status {
                        200 => assert_eq!(body["faces"].as_array().unwrap().len(), 1),
                        _ => assert_eq!((status, &body["code"]), (429, &Value::from("overloaded"))),
                    }
                    answered += 1;
                    refused.fetch_add(u64::from(status == 429), Ordering::SeqCst);
                }
            })
        })
        .collect();
    while refused.load(Ordering::SeqCst) < 300 {
        assert!(child.try_wait().unwrap().is_none(), "the server serves");
        tokio::task::yield_now().await;
    }
    terminate(&child);
    let mut answered: u64 = 0;
    for client in clients {
        answered += client.await.expect("every answer is complete");
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let received = log.iter().filter(|event| event["message"] == "received").count() as u64;
    assert_eq!(answered, received, "whatever was received was answered, and every answer arrived");
}

#[test]
fn an_idle_server_stops_at_once_on_either_signal() {
    for signal in ["-TERM", "-INT"] {
        let Server { mut child, log: _log, address, _models } = start(&[]);
        // A connection that is kept open does not hold the server up.
        let mut idle = std::net::TcpStream::connect(&address).unwrap();
        std::io::Write::write_all(&mut idle, b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut head = [0; 15];
        std::io::Read::read_exact(&mut idle, &mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
    }
}
