//! The console as a browser fetches it. What it does there is tested in a browser: `make conformance-console`.

use std::collections::BTreeSet;

use reqwest::Response;

use crate::harness::{TestServer, problem};

/// The picture that strangers are shown.
const EXAMPLE: &str = "/console/example.jpg";

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// The files that a text names as `console/<file>` or `./<file>`.
fn named(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.split(['"', '\'', '`']).next().map(|name| format!("/console/{name}"));
    ["\"console/", "'console/", "'./"]
        .iter()
        .flat_map(|before| text.split(before).skip(1).filter_map(name).collect::<Vec<_>>())
        .collect()
}

/// Everything that the page leads to, with its content.
async fn files(server: &TestServer) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut known = BTreeSet::new();
    let mut open = vec!["/".to_owned()];
    while let Some(path) = open.pop() {
        let response = server.get(&path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let body = response.bytes().await.unwrap().to_vec();
        let further = named(&String::from_utf8_lossy(&body));
        open.extend(further.into_iter().filter(|path| known.insert(path.clone())));
        files.push((path, body));
    }
    files
}

#[tokio::test]
async fn the_page_may_do_nothing_but_what_it_needs() {
    let server = TestServer::start(&[]).await;
    let page = server.get("/").send().await.unwrap();
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    assert_eq!(header(&page, "x-content-type-options"), "nosniff");
    let policy = header(&page, "content-security-policy");
    let directives: BTreeSet<&str> = policy.split("; ").collect();
    for directive in
        ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"]
    {
        assert!(directives.contains(directive), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
}

#[tokio::test]
async fn the_page_brings_all_that_it_needs_and_is_small() {
    let server = TestServer::start(&[]).await;
    let files = files(&server).await;
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let expected: usize = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/console")).unwrap().count();
    // The example comes from another folder.
    assert_eq!(names.len(), expected + 1, "every file of console/ is served and used: {names:?}");
    assert!(names.contains(EXAMPLE), "{names:?}");

    let mut size = 0;
    for (name, body) in files.iter().filter(|(name, _)| name != EXAMPLE) {
        size += body.len();
        let text = std::str::from_utf8(body).unwrap().replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("://") && !text.contains("\"//"), "{name} names another server");
        assert!(!text.contains("innerHTML") && !text.contains(" style=") && !text.contains(" onclick="), "{name}");
    }
    assert!(size < 100_000, "{size} bytes");
}

#[tokio::test]
async fn browsers_fetch_a_file_once() {
    let server = TestServer::start(&[]).await;
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/console/app.js", "text/javascript; charset=utf-8"),
        ("/console/style.css", "text/css; charset=utf-8"),
        ("/console/icon.svg", "image/svg+xml"),
        (EXAMPLE, "image/jpeg"),
    ] {
        let first = server.get(path).send().await.unwrap();
        assert_eq!(
            (header(&first, "content-type"), header(&first, "cache-control")),
            (content_type.into(), "no-cache".into())
        );
        let etag = header(&first, "etag");
        for known in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".into()] {
            let again = server.get(path).header("if-none-match", &known).send().await.unwrap();
            assert_eq!((again.status().as_u16(), header(&again, "etag")), (304, etag.clone()), "{path} {known}");
            assert!(again.bytes().await.unwrap().is_empty());
        }
        let changed = server.get(path).header("if-none-match", "\"other\"").send().await.unwrap();
        assert_eq!(changed.status(), 200);
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_problems() {
    let server = TestServer::start(&[]).await;
    for path in [
        "/console/nothing.js",
        "/console/index.html",
        "/console/",
        "/console",
        "/console/..%2fconsole%2fapp.js",
        "/index.html",
    ] {
        let (status, code, _) = problem(server.get(path).send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (404, "not_found"), "{path}");
    }
    for path in ["/", "/console/app.js"] {
        let response = server.post(path).send().await.unwrap();
        assert_eq!(header(&response, "allow"), "GET,HEAD");
        assert_eq!(problem(response).await.0, 405, "{path}");
    }
}

#[tokio::test]
async fn a_scrape_knows_the_console_by_two_routes() {
    let server = TestServer::start(&[]).await;
    for path in ["/", "/console/app.js", "/console/nothing"] {
        server.get(path).send().await.unwrap();
    }
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    for sample in [
        r#"facewise_http_requests_total{method="GET",route="/",status="200"} 1"#,
        r#"facewise_http_requests_total{method="GET",route="/console/{file}",status="200"} 1"#,
        r#"facewise_http_requests_total{method="GET",route="/console/{file}",status="404"} 1"#,
    ] {
        assert!(scrape.contains(sample), "{sample} in {scrape}");
    }
    assert!(!scrape.contains("app.js"));
}
