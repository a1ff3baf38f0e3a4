//! More than can be served: what is admitted is answered, the rest is told so at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use image::ImageFormat;

use crate::harness::{Spot, TestServer, encoded, faces, jpeg, picture, problem};

/// Sends the same picture for two seconds with this many clients that wait so many milliseconds for an answer; the answers by status
/// and code.
async fn flood(server: &Arc<TestServer>, clients: usize, patience: u32, picture: &[u8]) -> Vec<(u16, String)> {
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            let (server, done, picture) = (Arc::clone(server), Arc::clone(&done), picture.to_vec());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    let request = server.predict("", picture.clone()).header("x-request-timeout-ms", patience);
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
    tokio::time::sleep(Duration::from_secs(2)).await;
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
        // How long clients must wait for some to be served and others not depends on the machine and on what else it does.
        let (mut patience, mut served, mut refused) = (250, false, false);
        for _ in 0..8 {
            let answers = flood(&server, 96, patience, &photograph).await;
            let is_clear = |(status, found): &(u16, String)| match status {
                200 => true,
                429 => found == "overloaded" || found == "deadline",
                _ => false,
            };
            assert!(answers.iter().all(is_clear), "{answers:?}");
            let good = answers.iter().any(|(status, _)| *status == 200);
            served |= good;
            refused |= answers.iter().any(|(_, found)| found == code);
            if served && refused {
                break;
            }
            patience = if good { patience / 2 } else { patience * 2 };
        }
        assert!(served && refused, "some are served: {served}; some are refused with {code}: {refused}");

        let started = Instant::now();
        assert_eq!(server.predict("", jpeg(1)).send().await.unwrap().status(), 200);
        assert!(started.elapsed() < Duration::from_secs(2), "it is as quick as ever: {:?}", started.elapsed());
        assert_eq!(server.get("/health/ready").send().await.unwrap().status(), 200);
    }
}
