//! More than can be served: what is admitted is answered, the rest is told so at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use image::ImageFormat;

use crate::harness::{Spot, TestServer, encoded, faces, jpeg, picture, problem};

/// Sends the same picture with this many clients for a while; the answers by status and code.
async fn flood(server: &Arc<TestServer>, clients: usize, time: Duration, picture: &[u8]) -> Vec<(u16, String)> {
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            let (server, done, picture) = (Arc::clone(server), Arc::clone(&done), picture.to_vec());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    let request = server.predict("", picture.clone()).header("x-request-timeout-ms", "250");
                    let response = request.send().await.unwrap();
                    if response.status() == 200 {
                        answers.push((200, String::new()));
                    } else {
                        let (status, code, _) = problem(response).await;
                        answers.push((status, code));
                    }
                }
                answers
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    done.store(true, Ordering::SeqCst);
    let mut answers = Vec::new();
    for client in clients {
        answers.extend(client.await.expect("every request is answered"));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_to_a_flood_is_a_result_or_a_clear_no_and_the_server_recovers() {
    let photograph = encoded(&faces(picture(900, 700, 5), &[Spot::at(4, 5)]), ImageFormat::Jpeg);
    // Few places at the door, then many, so that deadlines pass in the line.
    for (flags, code) in [(["--max-requests", "4"], "overloaded"), (["--max-requests", "512"], "deadline")] {
        let server = Arc::new(TestServer::start(&flags).await);
        let answers = flood(&server, 96, Duration::from_secs(2), &photograph).await;
        let count = |wanted: &dyn Fn(&(u16, String)) -> bool| answers.iter().filter(|answer| wanted(answer)).count();
        let good = count(&|(status, _)| *status == 200);
        let refused = count(&|(status, code)| *status == 429 && (code == "overloaded" || code == "deadline"));
        assert_eq!(good + refused, answers.len(), "{answers:?}");
        assert!(count(&|(_, found)| found == code) > 0, "some are refused: {code}");
        assert!(good > 0, "some are served");

        let started = Instant::now();
        assert_eq!(server.predict("", jpeg(1)).send().await.unwrap().status(), 200);
        assert!(started.elapsed() < Duration::from_secs(2), "it is as quick as ever: {:?}", started.elapsed());
        assert_eq!(server.get("/health/ready").send().await.unwrap().status(), 200);
    }
}
