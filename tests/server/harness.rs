//! Servers, pictures and models to test with.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use facewise::config::Settings;
use facewise::server::{Running, serve};
use image::{ImageFormat, Rgb, RgbImage};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;

/// The folder of the shipped models.
pub(crate) const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models");

/// A server in this process.
pub(crate) struct TestServer {
    running: Running,
    client: Client,
}

impl TestServer {
    /// Starts a server with the shipped models on a free port.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let defaults = ["--listen", "127.0.0.1:0", "--models", MODELS, "--workers", "1", "--decode-threads", "2"];
        let settings = Settings::from_flags(defaults.iter().chain(flags)).unwrap();
        Self { running: serve(settings).await.unwrap(), client: client() }
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.running.address()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(self.url(path))
    }

    /// Sends a picture as the raw body to `/v1/predict` with this query.
    pub(crate) fn predict(&self, query: &str, picture: Vec<u8>) -> RequestBuilder {
        self.post(&format!("/v1/predict{query}")).header("content-type", "image/jpeg").body(picture)
    }

    /// The answer to a picture, which must succeed.
    pub(crate) async fn answer(&self, query: &str, picture: Vec<u8>) -> Value {
        let response = self.predict(query, picture).send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub(crate) async fn stop(self) -> bool {
        self.running.stop().await
    }
}

pub(crate) fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

/// The `code` and `detail` of a problem, after checking what every problem has.
pub(crate) async fn problem(response: Response) -> (u16, String, String) {
    let status = response.status();
    let headers = response.headers().clone();
    let text = response.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} with '{text}'"));
    assert_eq!(headers["content-type"], "application/problem+json", "{body}");
    assert_eq!(body["status"], status.as_u16());
    assert_eq!(body["request_id"], headers["x-request-id"].to_str().unwrap());
    assert_eq!(headers.contains_key("retry-after"), status == 429 || status == 503);
    let word = |key: &str| body[key].as_str().unwrap().to_owned();
    (status.as_u16(), word("code"), word("detail"))
}

/// A picture that is not the same everywhere, nor the same for two seeds.
pub(crate) fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 3 + seed * 40) as u8, (y * 2 + seed * 7) as u8, (x * y / 16 + seed) as u8])
    })
}

pub(crate) fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A small JPEG.
pub(crate) fn jpeg(seed: u32) -> Vec<u8> {
    encoded(&picture(120, 90, seed), ImageFormat::Jpeg)
}

/// A JPEG whose header announces another size than the data has.
pub(crate) fn jpeg_announcing(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = jpeg(0);
    let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

/// The program, with nothing of this shell's settings.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_facewise"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FACEWISE_") {
            command.env_remove(name);
        }
    }
    command
}

/// A folder of models with a copy of the shipped one, to break.
pub(crate) struct ModelsCopy {
    root: tempfile::TempDir,
}

impl ModelsCopy {
    pub(crate) fn new() -> Self {
        let copy = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir_all(copy.version()).unwrap();
        for file in ["model.onnx", "manifest.json"] {
            fs::copy(Path::new(MODELS).join("face-attributes/1").join(file), copy.version().join(file)).unwrap();
        }
        copy
    }

    pub(crate) fn path(&self) -> &str {
        self.root.path().to_str().unwrap()
    }

    /// The folder of the only version.
    pub(crate) fn version(&self) -> PathBuf {
        self.root.path().join("face-attributes/1")
    }
}
