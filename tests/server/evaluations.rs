//! `/v1/evaluations`: labelled sets in, reports out, whatever happens in between.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Cursor, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::harness::{ModelsCopy, TestServer, client, encoded, picture, problem, program};

/// Long enough for a busy machine; nothing waits for it where things go right.
const PATIENCE: Duration = Duration::from_mins(2);

fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(name.as_str(), SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A set of so many rows with a dozen pictures, of which one is broken, and its entries.
fn entries(rows: u32) -> Vec<(String, Vec<u8>)> {
    let mut manifest =
        String::from("path,age,gender,split,side,reye_x,reye_y,leye_x,leye_y,nose_x,nose_y,mouth_x,mouth_y\n");
    for row in 0..rows {
        let (gender, side) = (["female", "male"][row as usize % 2], ["left", "=right"][row as usize / 3 % 2]);
        let split = if row % 4 == 0 { "train" } else { "test" };
        let keypoints = if row % 5 == 0 { ",,,,,,," } else { "40,40,80,42,60,60,60,80" };
        writeln!(manifest, "p/{}.png,{},{gender},{split},{side},{keypoints}", row % 12, row % 90).unwrap();
    }
    let mut entries = vec![("manifest.csv".to_owned(), manifest.into_bytes())];
    for number in 0..12 {
        let bytes =
            if number == 7 { b"nothing".to_vec() } else { encoded(&picture(120, 110, number), ImageFormat::Png) };
        entries.push((format!("p/{number}.png"), bytes));
    }
    entries
}

/// Sends files as the parts of a form.
fn send(request: RequestBuilder, parts: &[(&'static str, &str, Vec<u8>)]) -> RequestBuilder {
    let form = parts.iter().fold(Form::new(), |form, (name, file, bytes)| {
        form.part(*name, Part::bytes(bytes.clone()).file_name((*file).to_owned()))
    });
    request.multipart(form)
}

/// A server with evaluations, in this process.
async fn server(folder: &Path, flags: &[&str]) -> TestServer {
    let flags = [&["--data-dir", folder.to_str().unwrap()], flags].concat();
    TestServer::start(&flags).await
}

async fn accepted(response: Response) -> String {
    let (status, location) = (response.status(), response.headers().get("location").cloned());
    let body: Value = response.json().await.unwrap();
    assert_eq!(status, 202, "{body}");
    let id = body["id"].as_str().unwrap().to_owned();
    assert_eq!(location.unwrap(), format!("/v1/evaluations/{id}"));
    id
}

async fn create(server: &TestServer, query: &str, set: &[(String, Vec<u8>)]) -> String {
    let request = server.post(&format!("/v1/evaluations{query}"));
    accepted(send(request, &[("dataset", "faces.zip", zip(set))]).send().await.unwrap()).await
}

/// Reads events until one of them fits, and returns that.
async fn event(response: Response, fits: impl Fn(&Value) -> bool) -> Value {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut pieces = response.bytes_stream();
    let mut text = String::new();
    let reading = async {
        while let Some(piece) = pieces.next().await {
            text += std::str::from_utf8(&piece.unwrap()).unwrap();
            while let Some((event, rest)) = text.split_once("\n\n") {
                let data = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect::<String>();
                let rest = rest.to_owned();
                if !data.is_empty() {
                    let evaluation: Value = serde_json::from_str(&data).unwrap();
                    if fits(&evaluation) {
                        return evaluation;
                    }
                }
                text = rest;
            }
        }
        panic!("the events ended before")
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("in time")
}

fn is_over(evaluation: &Value) -> bool {
    !["queued", "running"].contains(&evaluation["status"].as_str().unwrap())
}

async fn ended(server: &TestServer, id: &str) -> Value {
    event(server.get(&format!("/v1/evaluations/{id}/events")).send().await.unwrap(), is_over).await
}

/// The report without what differs from run to run.
fn figures(report: &Value) -> Value {
    let mut report = report.clone();
    for key in ["created", "throughput"] {
        assert!(report.as_object_mut().unwrap().remove(key).is_some());
    }
    report
}

#[track_caller]
fn assert_close(found: &Value, expected: &Value, at: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            assert!(found.keys().eq(expected.keys()), "{at}");
            expected.iter().for_each(|(name, value)| assert_close(&found[name], value, &format!("{at}.{name}")));
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{at}");
            found.iter().zip(expected).for_each(|(found, expected)| assert_close(found, expected, at));
        }
        (Value::Number(found), Value::Number(expected)) => {
            let difference = (found.as_f64().unwrap() - expected.as_f64().unwrap()).abs();
            assert!(difference < 1e-6, "{at}: {found} is not {expected}");
        }
        _ => assert_eq!(found, expected, "{at}"),
    }
}

/// What the command line says about the same set, on the disk as a folder.
fn on_the_command_line(models: &str, set: &[(String, Vec<u8>)], flags: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("faces");
    for (name, bytes) in set {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let json = folder.path().join("report.json");
    let arguments =
        ["evaluate", data.to_str().unwrap(), "--models", models, "--json", json.to_str().unwrap(), "--log-level=off"];
    let output = program(&[&arguments, flags].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap()
}

fn files(folder: &Path, id: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder.join("evaluations").join(id)) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_becomes_a_report_with_the_figures_of_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let models = ModelsCopy::with_detector();
    let flags = ["--data-dir", folder.path().to_str().unwrap()];
    let server = TestServer::start_with(models.path(), &flags).await;
    let set = entries(60);
    let id = create(&server, "?where=split=test&group_by=side,gender&thumbnails=true", &set).await;
    let evaluation = ended(&server, &id).await;
    assert_eq!(evaluation["status"], "succeeded", "{evaluation}");
    assert_eq!(evaluation["progress"], json!({"done": 45, "total": 45}));
    assert_eq!((&evaluation["dataset"], &evaluation["where"]), (&json!("faces"), &json!("split=test")));
    assert_eq!((&evaluation["model"], &evaluation["detect"]), (&json!("face-attributes"), &json!("manifest")));

    let path = |part: &str| format!("/v1/evaluations/{id}{part}");
    let one: Value = server.get(&path("")).send().await.unwrap().json().await.unwrap();
    assert_eq!(one, evaluation);
    let list: Value = server.get("/v1/evaluations").send().await.unwrap().json().await.unwrap();
    assert_eq!(list, json!({"evaluations": [one]}));
    let report: Value = server.get(&path("/report.json")).send().await.unwrap().json().await.unwrap();
    assert_eq!(report, one["report"]);
    assert_eq!(report["dataset"]["rows"], 45);
    assert_eq!(report["dataset"]["skipped"].as_array().unwrap().len(), 5, "rows of the broken picture");
    assert_eq!(report["tasks"]["age"]["n"], 40);
    assert!(report["tasks"]["age"]["intervals"]["mae"][0].as_f64() < report["tasks"]["age"]["mae"].as_f64());
    assert_eq!(report["groups"]["side"]["values"].as_object().unwrap().len(), 2);

    let by_hand = on_the_command_line(models.path(), &set, &["--where", "split=test", "--group-by", "side,gender"]);
    assert_close(&figures(&report), &figures(&by_hand), "report");

    let page = server.get(&path("/report.html")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.ends_with("; sandbox"), "{policy}");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    let page = page.text().await.unwrap();
    assert!(page.contains("data:image/jpeg;base64,") && !page.contains("<script"), "thumbnails, and no script");

    let table = server.get(&path("/predictions.csv")).send().await.unwrap();
    assert!(table.headers()["content-disposition"].to_str().unwrap().starts_with("attachment"));
    let mut table = csv::Reader::from_reader(Cursor::new(table.bytes().await.unwrap()));
    let lines: Vec<u32> = table.records().map(|record| record.unwrap()[0].parse().unwrap()).collect();
    assert_eq!(lines, (0..60).filter(|row| row % 4 != 0).map(|row| row + 2).collect::<Vec<_>>());

    assert_eq!(
        files(folder.path(), &id),
        ["predictions.csv", "report.html"].map(str::to_owned).into(),
        "the set is gone"
    );
    for file in [
        "evaluations.db".to_owned(),
        format!("evaluations/{id}/predictions.csv"),
        format!("evaluations/{id}/report.html"),
    ] {
        assert_eq!(fs::metadata(folder.path().join(&file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains(r#"facewise_evaluations{status="succeeded"} 1"#), "{scrape}");
    assert!(scrape.contains("facewise_faces_total 0"), "evaluations are no predictions");

    assert_eq!(server.delete(&path("")).await, 204);
    assert_eq!(files(folder.path(), &id), BTreeSet::new());
    for part in ["", "/events", "/report.html", "/report.json", "/predictions.csv"] {
        assert_eq!(problem(server.get(&path(part)).send().await.unwrap()).await.0, 404, "{part}");
    }
    assert_eq!(server.delete(&path("")).await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_and_pictures_may_come_apart_and_be_cropped_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), &[]).await;
    let set = entries(12);
    let (manifest, pictures) = set.split_first().unwrap();
    let mut reports = Vec::new();
    for query in ["?detect=false", "?detect=crop&limit=6"] {
        let parts = [("images", "my faces.zip", zip(pictures)), ("manifest", "m.csv", manifest.1.clone())];
        let id = accepted(send(server.post(&format!("/v1/evaluations{query}")), &parts).send().await.unwrap()).await;
        let evaluation = ended(&server, &id).await;
        assert_eq!((&evaluation["status"], &evaluation["dataset"]), (&json!("succeeded"), &json!("my faces")));
        reports.push(evaluation["report"].clone());
    }
    assert_eq!((&reports[0]["detect"], &reports[0]["dataset"]["rows"]), (&json!("false"), &json!(12)));
    assert_eq!((&reports[1]["detect"], &reports[1]["dataset"]["rows"]), (&json!("crop"), &json!(6)));
    let newest: Value = server.get("/v1/evaluations?limit=1").send().await.unwrap().json().await.unwrap();
    assert_eq!(newest["evaluations"][0]["limit"], 6);
    let before = newest["evaluations"][0]["id"].as_str().unwrap();
    let older: Value =
        server.get(&format!("/v1/evaluations?before={before}")).send().await.unwrap().json().await.unwrap();
    assert_eq!(older["evaluations"].as_array().unwrap().len(), 1);
    for query in ["?limit=0", "?limit=1001", "?since=1"] {
        assert_eq!(problem(server.get(&format!("/v1/evaluations{query}")).send().await.unwrap()).await.0, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_set_is_said_before_it_is_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    let flags = [
        "--max-dataset-rows",
        "100",
        "--max-dataset",
        "200kB",
        "--max-dataset-unpacked",
        "1MB",
        "--max-evaluations",
        "1",
    ];
    let server = server(folder.path(), &flags).await;
    let set = entries(10);
    let with = |name: &str, bytes: &[u8]| {
        let mut set = set.clone();
        match set.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = bytes.to_vec(),
            None => set.push((name.to_owned(), bytes.to_vec())),
        }
        zip(&set)
    };
    let good = zip(&set);
    let edited = |from: &str, to: &str| {
        let mut bytes = with(from, b"again");
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from.as_bytes()) {
                bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            }
        }
        bytes
    };
    let encrypted = {
        let mut bytes = good.clone();
        let at = (0..bytes.len()).rfind(|at| bytes[*at..].starts_with(b"PK\x01\x02")).unwrap();
        bytes[at + 8] |= 1;
        bytes
    };
    let many = (0..1300).map(|number| (format!("{number}"), Vec::new())).collect::<Vec<_>>();
    let cases: [(&str, Vec<u8>, u16, &str, &str); 18] = [
        ("", b"no zip".to_vec(), 400, "bad_request", "no zip"),
        ("", good[..good.len() - 30].to_vec(), 400, "bad_request", "no zip"),
        ("", zip(&set[1..]), 400, "bad_request", "no manifest.csv"),
        (
            "",
            with("manifest.csv", b"path,age\np/1.png,old\n"),
            400,
            "bad_request",
            "line 2, column 'age': 'old' is not a number",
        ),
        ("", with("manifest.csv", b"path,age\np/99.png,1\n"), 400, "bad_request", "there is no picture 'p/99.png'"),
        ("", with("manifest.csv", b"path,age\n../../etc/passwd,1\n"), 400, "bad_request", "not a path within the set"),
        ("", zip(&entries(101)), 413, "payload_too_large", "more than 100 rows"),
        ("", with("zeros", &vec![0; 1_000_000]), 413, "payload_too_large", "unpack to more than 1000000 bytes"),
        ("", zip(&many), 413, "payload_too_large", "more than 1200 entries"),
        ("", edited("xx/evil.png", "../evil.png"), 400, "bad_request", "'../evil.png' is not a path within"),
        ("", edited("p/A.png", "p/1.png"), 400, "bad_request", "two entries named 'p/1.png'"),
        ("", encrypted, 400, "bad_request", "is encrypted"),
        ("?where=fold=1", good.clone(), 400, "bad_request", "no column 'fold'"),
        ("?where=split=none", good.clone(), 400, "bad_request", "no row of 'faces' passes"),
        ("?group_by=race", good.clone(), 400, "bad_request", "no column 'race'"),
        ("?where=split", good.clone(), 400, "bad_request", "'split' is no condition"),
        ("?where=split", b"no zip".to_vec(), 400, "bad_request", "'split' is no condition"),
        ("?group_by=a,b,c,d,e,a", b"no zip".to_vec(), 400, "bad_request", "by 4 columns at most"),
    ];
    for (query, bytes, status, code, says) in cases {
        let request = server.post(&format!("/v1/evaluations{query}"));
        let response = send(request, &[("dataset", "faces.zip", bytes)]).send().await.unwrap();
        let found = problem(response).await;
        assert_eq!((found.0, found.1.as_str()), (status, code), "{}", found.2);
        assert!(found.2.contains(says), "{says}: {}", found.2);
        let place = folder.path().to_str().unwrap();
        assert!(!found.2.contains(place), "{}", found.2);
    }
    for (query, status) in
        [("?model=nobody", 404), ("?model=face-detector", 400), ("?detect=true", 400), ("?limit=0", 400), ("?x=1", 400)]
    {
        let request = server.post(&format!("/v1/evaluations{query}"));
        let response = send(request, &[("dataset", "faces.zip", good.clone())]).send().await.unwrap();
        assert_eq!(problem(response).await.0, status, "{query}");
    }
    for (parts, says) in [
        (vec![("manifest", "m.csv", b"path,age\n".to_vec())], "neither 'dataset' alone"),
        (vec![("dataset", "a.zip", good.clone()), ("images", "b.zip", good.clone())], "neither 'dataset' alone"),
        (vec![("image", "a.jpg", good.clone())], "a part 'image'"),
        (vec![("manifest", "a", good.clone()), ("manifest", "a", good.clone())], "a part twice"),
    ] {
        let found = problem(send(server.post("/v1/evaluations"), &parts).send().await.unwrap()).await;
        assert!(found.0 == 400 && found.2.contains(says), "{found:?}");
    }
    let raw = server.post("/v1/evaluations").header("content-type", "application/zip").body(good.clone());
    assert_eq!(problem(raw.send().await.unwrap()).await.0, 415);
    let large = send(server.post("/v1/evaluations"), &[("dataset", "a.zip", vec![0; 300_000])]);
    let (status, _, says) = problem(large.send().await.unwrap()).await;
    assert!(status == 413 && says.contains("--max-dataset"), "{says}");
    let torn = "--x\r\ncontent-disposition: form-data; name=\"dataset\"; filename=\"a.zip\"\r\n\r\nPK";
    let torn = server.post("/v1/evaluations").header("content-type", "multipart/form-data; boundary=x").body(torn);
    assert_eq!(problem(torn.send().await.unwrap()).await.0, 400);

    assert_eq!(fs::read_dir(folder.path().join("evaluations")).unwrap().count(), 0, "nothing of all that stays");
    let id = create(&server, "", &set).await;
    assert_eq!(ended(&server, &id).await["status"], "succeeded", "and the server goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn evaluations_may_be_switched_off() {
    let server = TestServer::start(&[]).await;
    let (status, code, says) = problem(server.get("/v1/evaluations").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    assert!(says.contains("--data-dir none"), "{says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_and_running_evaluations_are_cancelled_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), &["--max-evaluations", "2"]).await;
    let running = create(&server, "", &entries(5000)).await;
    let watched = server.get(&format!("/v1/evaluations/{running}/events")).send().await.unwrap();
    let progressed = |evaluation: &Value| evaluation["progress"]["done"].as_u64() > Some(0);
    assert_eq!(event(watched, progressed).await["status"], "running");

    let (queued, doomed) = (create(&server, "", &entries(10)).await, create(&server, "", &entries(10)).await);
    let full =
        send(server.post("/v1/evaluations"), &[("dataset", "faces.zip", zip(&entries(10)))]).send().await.unwrap();
    assert_eq!(problem(full).await.1, "overloaded");
    assert_eq!(
        problem(server.get(&format!("/v1/evaluations/{queued}/report.json")).send().await.unwrap()).await.0,
        404
    );

    // Predictions are answered while the evaluation goes on.
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains(r#"facewise_evaluations{status="running"} 1"#), "{scrape}");
    assert!(scrape.contains(r#"facewise_evaluations{status="queued"} 2"#), "{scrape}");
    for seed in 0..5 {
        server.answer("", crate::harness::jpeg(seed)).await;
    }

    let cancel = |id: &str| server.post(&format!("/v1/evaluations/{id}/cancel"));
    let cancelled: Value = cancel(&queued).send().await.unwrap().json().await.unwrap();
    assert_eq!((&cancelled["status"], files(folder.path(), &queued).len()), (&json!("cancelled"), 0));
    assert_eq!(server.delete(&format!("/v1/evaluations/{doomed}")).await, 204);
    let watched = server.get(&format!("/v1/evaluations/{running}/events")).send().await.unwrap();
    let cancelled: Value = cancel(&running).send().await.unwrap().json().await.unwrap();
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(event(watched, is_over).await["status"], "cancelled", "whoever watches is told");

    // The next one takes its turn; then the folder of the cancelled one has gone.
    let next = create(&server, "", &entries(12)).await;
    assert_eq!(ended(&server, &next).await["status"], "succeeded");
    assert_eq!(files(folder.path(), &running), BTreeSet::new());
    let again: Value = cancel(&next).send().await.unwrap().json().await.unwrap();
    assert_eq!(again["status"], "succeeded", "what has ended stays as it is");
    assert_eq!(problem(cancel("nobody").send().await.unwrap()).await.0, 404);

    let removed = create(&server, "", &entries(5000)).await;
    let watched = server.get(&format!("/v1/evaluations/{removed}/events")).send().await.unwrap();
    event(watched, progressed).await;
    assert_eq!(server.delete(&format!("/v1/evaluations/{removed}")).await, 204);
    assert_eq!(problem(server.get(&format!("/v1/evaluations/{removed}")).send().await.unwrap()).await.0, 404);
    assert!(server.stop().await, "a stop waits for nobody who watches");
}

/// The program serving.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(models: &str, folder: &Path, flags: &[&str]) -> Self {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--models", models, "--data-dir"];
        let mut command = program(&[&arguments[..], &[folder.to_str().unwrap()], flags].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = lines.find_map(|line| {
            let event: Value = serde_json::from_str(&line.unwrap()).ok()?;
            (event["message"] == "listening").then_some(event)
        });
        let address = listening.expect("the server starts")["address"].as_str().unwrap().to_owned();
        // Somebody must read on, or it stops at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> Response {
        client().get(self.url(path)).send().await.unwrap()
    }

    async fn ended(&self, id: &str) -> Value {
        event(self.get(&format!("/v1/evaluations/{id}/events")).await, is_over).await
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_the_server_is_killed() {
    const ROWS: u32 = 2400;
    let folder = tempfile::tempdir().unwrap();
    let models = ModelsCopy::with_detector();
    let set = entries(ROWS);
    let mut serving = Serving::start(models.path(), folder.path(), &[]);
    let mut ids = Vec::new();
    for query in ["?group_by=side", "?where=split=train"] {
        let request = client().post(serving.url(&format!("/v1/evaluations{query}")));
        ids.push(accepted(send(request, &[("dataset", "faces.zip", zip(&set))]).send().await.unwrap()).await);
    }
    let (running, waiting) = (&ids[0], &ids[1]);
    let mut before = 0;
    for share in [8, 4, 2] {
        let events = serving.get(&format!("/v1/evaluations/{running}/events")).await;
        let enough = move |evaluation: &Value| evaluation["progress"]["done"].as_u64() > Some(u64::from(ROWS / share));
        let reached = event(events, enough).await;
        assert_eq!(reached["status"], "running");
        serving.kill();
        let written = fs::read_to_string(folder.path().join(format!("evaluations/{running}/predictions.csv"))).unwrap();
        let rows = written.lines().count();
        assert!(rows > before, "what was written stays: {rows} after {before}");
        before = rows;
        serving = Serving::start(models.path(), folder.path(), &[]);
    }
    let evaluation = serving.ended(running).await;
    assert_eq!(evaluation["status"], "succeeded", "{evaluation}");
    let table = serving.get(&format!("/v1/evaluations/{running}/predictions.csv")).await.bytes().await.unwrap();
    let mut table = csv::Reader::from_reader(Cursor::new(table));
    let lines: Vec<u32> = table.records().map(|record| record.unwrap()[0].parse().unwrap()).collect();
    assert_eq!(lines, (2..ROWS + 2).collect::<Vec<_>>(), "every row once");
    assert_eq!(serving.ended(waiting).await["status"], "succeeded", "what waited has its turn");
    let uninterrupted = on_the_command_line(models.path(), &set, &["--group-by", "side"]);
    assert_close(&figures(&evaluation["report"]), &figures(&uninterrupted), "report");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_of_another_model_than_it_began_with_is_interrupted_and_can_be_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let models = ModelsCopy::new();
    models.write_smiles("1", &crate::onnx::smiles(0.25));
    let mut set = entries(0);
    let rows: String = (0..20_000).fold("path,smile\n".into(), |text, row| format!("{text}p/{}.png,1\n", row % 6));
    set[0].1 = rows.into_bytes();
    let mut serving = Serving::start(models.path(), folder.path(), &[]);
    let request = client().post(serving.url("/v1/evaluations?model=smiles"));
    let id = accepted(send(request, &[("dataset", "s.zip", zip(&set))]).send().await.unwrap()).await;
    let events = serving.get(&format!("/v1/evaluations/{id}/events")).await;
    event(events, |evaluation| evaluation["progress"]["done"].as_u64() > Some(200)).await;
    serving.kill();
    models.write_smiles("1", &crate::onnx::smiles(0.75));
    let serving = Serving::start(models.path(), folder.path(), &[]);
    let interrupted = serving.ended(&id).await;
    assert_eq!(interrupted["status"], "interrupted", "{interrupted}");
    assert!(interrupted["error"].as_str().unwrap().contains("another file of the model 'smiles'"), "{interrupted}");
    let restarted = client().post(serving.url(&format!("/v1/evaluations/{id}/restart"))).send().await.unwrap();
    assert_eq!(restarted.json::<Value>().await.unwrap()["error"], Value::Null);
    let evaluation = serving.ended(&id).await;
    assert_eq!(evaluation["status"], "succeeded");
    assert_eq!(evaluation["report"]["tasks"]["smile"]["accuracy"], 1.0, "all rows by the model of now");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_long_enough_and_what_had_not_arrived_is_removed_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let models = ModelsCopy::with_detector();
    let mut serving = Serving::start(models.path(), folder.path(), &[]);
    let request = client().post(serving.url("/v1/evaluations"));
    let id = accepted(send(request, &[("dataset", "s.zip", zip(&entries(12)))]).send().await.unwrap()).await;
    serving.ended(&id).await;
    let second = program(&["serve", "--models", models.path(), "--listen", "127.0.0.1:0"])
        .args(["--data-dir", folder.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let says = String::from_utf8(second.stderr).unwrap();
    assert!(says.contains("is used by another server"), "{says}");
    serving.kill();

    let torn = folder.path().join("evaluations/01ABCDEFGHJKMNPQRSTVWXYZ00");
    fs::create_dir(&torn).unwrap();
    fs::write(torn.join("dataset.zip"), b"PK").unwrap();
    let mut serving = Serving::start(models.path(), folder.path(), &[]);
    assert!(!torn.exists());
    assert_eq!(serving.get(&format!("/v1/evaluations/{id}")).await.status(), 200, "reports are kept");
    serving.kill();
    let since = Instant::now();
    let gone = loop {
        // Kept for a second: it is that old by the time that the first or a later server starts.
        let mut serving = Serving::start(models.path(), folder.path(), &["--evaluations-retention", "1s"]);
        if serving.get(&format!("/v1/evaluations/{id}")).await.status() == 404 {
            break true;
        }
        serving.kill();
        if since.elapsed() > PATIENCE {
            break false;
        }
    };
    assert!(gone && files(folder.path(), &id).is_empty());
}

/// A file system of its own with so little room.
struct Small {
    path: PathBuf,
    _folder: TempDir,
}

impl Small {
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small");
        fs::create_dir(&path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&path).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { path, _folder: folder }),
            Ok(output) => {
                println!("skipped: no tmpfs can be mounted: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: no tmpfs can be mounted: {error}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_leaves_nothing_behind() {
    let Some(small) = Small::mount("800k") else { return };
    let server = server(&small.path, &[]).await;
    // Noise, which no compression makes small.
    let mut noise = 1u32;
    let large: Vec<u8> = std::iter::repeat_with(|| {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        noise as u8
    })
    .take(4_000_000)
    .collect();
    let mut set = entries(12);
    set.push(("large".into(), large));
    let response = send(server.post("/v1/evaluations"), &[("dataset", "s.zip", zip(&set))]).send().await.unwrap();
    let (status, code, _) = problem(response).await;
    assert_eq!((status, code.as_str()), (507, "insufficient_storage"));
    assert_eq!(fs::read_dir(small.path.join("evaluations")).unwrap().count(), 0);

    // Room for the set, and not for what is answered to so many rows.
    let id = create(&server, "", &entries(12_000)).await;
    let evaluation = ended(&server, &id).await;
    assert_eq!(evaluation["status"], "failed", "{evaluation}");
    assert_eq!(files(&small.path, &id), BTreeSet::new());
    let id = create(&server, "", &entries(12)).await;
    assert_eq!(ended(&server, &id).await["status"], "succeeded", "there is room again");
}
