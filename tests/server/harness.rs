//! Servers, pictures and models to test with.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use facewise::access::Key;
use facewise::config::Settings;
use facewise::server::{Running, serve};
use image::{ImageFormat, Rgb, RgbImage};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::onnx::detector;

/// The folder of the shipped models.
pub(crate) const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models");

/// A server in this process.
pub(crate) struct TestServer {
    running: Running,
    client: Client,
    _models: Option<ModelsCopy>,
}

impl TestServer {
    /// Starts a server on a free port with the shipped attribute network and a detector that finds [`faces`].
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let models = ModelsCopy::with_detector();
        let server = Self::start_with(models.path(), flags).await;
        Self { _models: Some(models), ..server }
    }

    /// Starts a server on a free port with the models of a folder.
    pub(crate) async fn start_with(models: &str, flags: &[&str]) -> Self {
        Self::start_with_keys(models, flags, Vec::new()).await
    }

    /// The same with keys.
    pub(crate) async fn start_with_keys(models: &str, flags: &[&str], keys: Vec<Key>) -> Self {
        let defaults = [
            "--listen",
            "127.0.0.1:0",
            "--models",
            models,
            "--workers",
            "1",
            "--decode-threads",
            "2",
            "--data-dir",
            "none",
        ];
        let settings = Settings { keys, ..Settings::from_flags(defaults.iter().chain(flags)).unwrap() };
        Self { running: serve(settings).await.unwrap(), client: client(), _models: None }
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

    /// Asks on the address of the metrics.
    pub(crate) fn get_metrics(&self, path: &str) -> RequestBuilder {
        let address = self.running.metrics_address().expect("metrics have an address");
        self.client.get(format!("http://{address}{path}"))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// Asks for a change of a model; the status, and the answer or nothing.
    pub(crate) async fn change(&self, model: &str, action: &str) -> (u16, Value) {
        let response = self.post(&format!("/v1/models/{model}/{action}")).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
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

    /// The status of a deletion.
    pub(crate) async fn delete(&self, path: &str) -> u16 {
        self.client.delete(self.url(path)).send().await.unwrap().status().as_u16()
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

/// A picture that is not the same everywhere, nor the same for two seeds. It is too green for a face.
pub(crate) fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 3 + seed * 40) as u8, 128 | (y * 2 + seed * 7) as u8, (x * y / 16 + seed) as u8])
    })
}

/// A face for the detector of these tests ([`crate::onnx::detector`]) at its usual size: a magenta cell of the ten by ten into
/// which it divides the square around a picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) column: u32,
    pub(crate) row: u32,
    /// From 0 to 64; more is less certain.
    pub(crate) green: u8,
}

impl Spot {
    pub(crate) const fn at(column: u32, row: u32) -> Self {
        Self { column, row, green: 0 }
    }

    /// The box that the detector puts around it in a picture of this size: left, top, width, height.
    pub(crate) fn area(self, width: u32, height: u32) -> [f64; 4] {
        let side = f64::from(width.max(height));
        let edge = |index: u32, length: u32| (f64::from(index) - 0.5) * side / 10.0 + (f64::from(length) - side) / 2.0;
        [edge(self.column, width), edge(self.row, height), side / 5.0, side / 5.0]
    }
}

/// Paints faces into a picture.
pub(crate) fn faces(mut picture: RgbImage, spots: &[Spot]) -> RgbImage {
    let (width, height) = picture.dimensions();
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        for spot in spots {
            let [left, top, side, _] = spot.area(width, height);
            let within = |at: u32, low: f64| (0.25..0.75).contains(&((f64::from(at) + 0.5 - low) / side));
            if within(x, left) && within(y, top) {
                *pixel = Rgb([255, spot.green, 255]);
            }
        }
    }
    picture
}

pub(crate) fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A small JPEG of one face.
pub(crate) fn jpeg(seed: u32) -> Vec<u8> {
    encoded(&faces(picture(120, 90, seed), &[Spot::at(4, 5)]), ImageFormat::Jpeg)
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
    // Nothing is left behind in the repository.
    command.env("FACEWISE_DATA_DIR", "none");
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

    /// With the detector of these tests beside it.
    pub(crate) fn with_detector() -> Self {
        let copy = Self::new();
        copy.write_detector("facewise", "pixels", 320, &detector());
        copy
    }

    /// Puts a detector into the folder, in the place of the last one. Colours are those of its decoder's networks.
    pub(crate) fn write_detector(&self, decoder: &str, input: &str, size: u32, network: &[u8]) {
        let folder = self.root.path().join("face-detector/1");
        let (colour, mean, sd) = match decoder {
            "yunet" => ("bgr", [0.0; 3], [1.0 / 255.0; 3]),
            _ => ("rgb", [0.5; 3], [0.5; 3]),
        };
        let manifest = json!({
            "schema": 1, "name": "face-detector", "version": "1", "kind": "detector", "decoder": decoder,
            "input": {"name": input, "size": size, "colour": colour, "mean": mean, "sd": sd},
        });
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("model.onnx"), network).unwrap();
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    }

    /// Puts a version of a model that knows smiles only into the folder, with this network.
    pub(crate) fn write_smiles(&self, version: &str, network: &[u8]) {
        let folder = self.root.path().join("smiles").join(version);
        let manifest = json!({
            "schema": 1, "name": "smiles", "version": version, "kind": "attributes",
            "input": {"name": "pixels", "size": 8, "colour": "rgb", "mean": [0, 0, 0], "sd": [1, 1, 1],
                      "template": {"right_eye": [0.3, 0.37], "left_eye": [0.7, 0.37], "mouth": [0.5, 0.77]}},
            "heads": [{"task": "smile", "output": "smile", "labels": ["neutral", "smiling"]}],
        });
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        fs::write(folder.join("model.onnx"), network).unwrap();
    }

    /// Puts a model that reads embeddings into the folder.
    pub(crate) fn write_embeddings(&self, name: &str, features: usize, network: &[u8], heads: &Value) {
        let folder = self.root.path().join(name).join("1");
        let manifest = json!({
            "schema": 1, "name": name, "version": "1", "kind": "embeddings",
            "input": {"name": "embedding", "features": features}, "heads": heads,
        });
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        fs::write(folder.join("model.onnx"), network).unwrap();
    }

    pub(crate) fn path(&self) -> &str {
        self.root.path().to_str().unwrap()
    }

    /// The folder of the attribute network's only version.
    pub(crate) fn version(&self) -> PathBuf {
        self.root.path().join("face-attributes/1")
    }
}
