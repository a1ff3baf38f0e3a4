//! Who may ask for what: keys, other origins, and the address of the metrics.

use facewise::access::{Hash, Key, Scope};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::harness::{ModelsCopy, TestServer, jpeg, problem};

fn key(name: &str, scopes: &[Scope], rate: Option<&str>) -> Key {
    let rate = rate.map(|rate| rate.parse().unwrap());
    Key { name: name.into(), sha256: Hash::of(&secret(name)), scopes: scopes.to_vec(), rate }
}

fn secret(name: &str) -> String {
    format!("secret-of-{name}")
}

/// A server that knows the keys `asker`, `boss` and `slow`.
async fn guarded(flags: &[&str]) -> (TestServer, ModelsCopy) {
    let models = ModelsCopy::with_detector();
    let keys = vec![
        key("asker", &[Scope::Predict], None),
        key("boss", &[Scope::Admin], None),
        key("slow", &[Scope::Predict], Some("2/h")),
    ];
    (TestServer::start_with_keys(models.path(), flags, keys).await, models)
}

fn with(request: RequestBuilder, name: &str) -> RequestBuilder {
    request.bearer_auth(secret(name))
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn without_a_key_nothing_is_told_but_health_and_the_description() {
    let (server, _models) = guarded(&[]).await;
    for path in ["/health/live", "/health/ready", "/openapi.json", "/docs"] {
        assert_eq!(status(server.get(path)).await, 200, "{path}");
    }
    let asked = [
        server.predict("", jpeg(1)),
        server.post("/v1/predict/batch"),
        server.post("/v1/predict/embeddings"),
        server.get("/v1/models"),
        server.get("/v1/models/face-attributes"),
        server.post("/v1/models/face-attributes/reload"),
        server.get("/metrics"),
    ];
    for request in asked {
        let wrong = request.try_clone().unwrap().bearer_auth("another one");
        for request in [request.try_clone().unwrap(), wrong, request.header("authorization", "Basic eA==")] {
            let response = request.send().await.unwrap();
            assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"facewise\"");
            let (status, code, _) = problem(response).await;
            assert_eq!((status, code.as_str()), (401, "unauthorized"));
        }
    }
}

#[tokio::test]
async fn a_key_opens_what_it_is_good_for() {
    let (server, _models) = guarded(&[]).await;
    assert_eq!(status(with(server.predict("", jpeg(1)), "asker")).await, 200);
    assert_eq!(status(server.predict("", jpeg(1)).header("x-api-key", secret("asker"))).await, 200);
    assert_eq!(status(with(server.post("/v1/models/face-attributes/reload"), "boss")).await, 200);
    for name in ["asker", "boss"] {
        for path in ["/v1/models", "/v1/models/face-attributes", "/metrics"] {
            assert_eq!(status(with(server.get(path), name)).await, 200, "{name} {path}");
        }
    }
    for (request, name, scope) in [
        (server.post("/v1/models/face-attributes/reload"), "asker", "'admin'"),
        (server.predict("", jpeg(1)), "boss", "'predict'"),
    ] {
        let (status, code, detail) = problem(with(request, name).send().await.unwrap()).await;
        assert_eq!((status, code.as_str()), (403, "forbidden"));
        assert!(detail.contains(name) && detail.contains(scope), "{detail}");
    }
}

#[tokio::test]
async fn a_key_used_too_often_is_told_when_to_come_again() {
    let (server, _models) = guarded(&[]).await;
    for _ in 0..2 {
        assert_eq!(status(with(server.predict("", jpeg(1)), "slow")).await, 200);
    }
    let response = with(server.predict("", jpeg(1)), "slow").send().await.unwrap();
    let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1700..=1800).contains(&wait), "one of two an hour: {wait}");
    let (status_of_slow, code, detail) = problem(response).await;
    assert_eq!((status_of_slow, code.as_str()), (429, "rate_limited"));
    assert!(detail.contains("2/h"), "{detail}");
    assert_eq!(status(with(server.predict("", jpeg(1)), "asker")).await, 200, "others are not held up");
    let scrape = with(server.get("/metrics"), "boss").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains(r#"facewise_rejected_total{reason="rate_limited"} 1"#), "{scrape}");
}

#[tokio::test]
async fn metrics_may_have_an_address_of_their_own() {
    let (server, _models) = guarded(&["--metrics-listen", "127.0.0.1:0"]).await;
    assert_eq!(status(with(server.get("/metrics"), "asker")).await, 404);
    let described: Value = server.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    assert!(described["paths"].get("/metrics").is_none());
    assert_eq!(status(with(server.predict("", jpeg(1)), "asker")).await, 200);
    let scrape = server.get_metrics("/metrics").send().await.unwrap();
    assert_eq!(scrape.status(), 200);
    let scrape = scrape.text().await.unwrap();
    assert!(scrape.contains(r#"route="/v1/predict",status="200"} 1"#), "{scrape}");
    assert_eq!(status(server.get_metrics("/health/ready")).await, 200);
    for path in ["/v1/models", "/openapi.json"] {
        assert_eq!(problem(server.get_metrics(path).send().await.unwrap()).await.0, 404, "{path}");
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn pages_of_other_origins_read_nothing_unless_they_may() {
    let asks = |server: &TestServer, origin: &str| {
        let asked = server.request(Method::OPTIONS, "/v1/predict").header("origin", origin);
        asked.header("access-control-request-method", "POST").header("access-control-request-headers", "authorization")
    };
    let closed = TestServer::start(&[]).await;
    for request in [asks(&closed, "https://a.example"), closed.get("/v1/models").header("origin", "https://a.example")]
    {
        let response = request.send().await.unwrap();
        assert!(response.headers().keys().all(|name| !name.as_str().starts_with("access-control-")));
    }

    let (server, _models) = guarded(&["--cors-origins", "https://a.example,http://localhost:3000"]).await;
    let allowed = asks(&server, "https://a.example").send().await.unwrap();
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://a.example");
    let headers = allowed.headers()["access-control-allow-headers"].to_str().unwrap().to_owned();
    assert!(headers.contains("authorization") && headers.contains("x-api-key"), "{headers}");
    assert!(allowed.headers().contains_key("x-request-id"));
    let refused = asks(&server, "https://b.example").send().await.unwrap();
    assert!(!refused.headers().contains_key("access-control-allow-origin"));

    // A page must be able to read that it needs a key, and when to come again.
    let response = server.get("/v1/models").header("origin", "https://a.example").send().await.unwrap();
    assert_eq!(response.headers()["access-control-allow-origin"], "https://a.example");
    assert!(response.headers()["access-control-expose-headers"].to_str().unwrap().contains("retry-after"));
    assert_eq!(problem(response).await.0, 401);

    let (open, _models) = guarded(&["--cors-origins", "*"]).await;
    let response = with(open.get("/v1/models"), "asker").header("origin", "https://c.example").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["access-control-allow-origin"]),
        (200, &"*".parse().unwrap())
    );
}

#[tokio::test]
async fn a_page_of_elsewhere_cannot_change_models() {
    let server = TestServer::start(&[]).await;
    let reload = || server.post("/v1/models/face-attributes/reload");
    let (status, code, _) = problem(reload().header("origin", "https://evil.example").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (403, "forbidden"));
    assert_eq!(reload().header("origin", "http://localhost:8080").send().await.unwrap().status(), 200);
}
