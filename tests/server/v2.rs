//! The Open Inference Protocol: tensors of every model and the whole way of a picture, as JSON and in binary.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use facewise::access::{Hash, Key, Scope};
use facewise_core::manifest::Manifest;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use image::{ImageFormat, RgbImage};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::harness::{MODELS, ModelsCopy, Spot, TestServer, encoded, faces, jpeg, jpeg_announcing, picture};
use crate::onnx::{linear, smiles};

const HEADER_LENGTH: &str = "inference-header-content-length";
const ATTRIBUTES: &str = "/v2/models/face-attributes/infer";
const PIPELINE: &str = "/v2/models/face-pipeline/infer";

async fn get(server: &TestServer, path: &str) -> Value {
    let response = server.get(path).send().await.unwrap();
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// Status and text of an error, after checking that it has the protocol's form.
async fn refused(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} with '{text}'"));
    assert_eq!(headers["content-type"], "application/json", "{body}");
    assert!(headers.contains_key("x-request-id"));
    assert_eq!(headers.contains_key("retry-after"), status == 429 || status == 503);
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    (status, body["error"].as_str().unwrap().to_owned())
}

/// An answer in JSON.
async fn asked(server: &TestServer, path: &str, body: &Value) -> Value {
    let response = server.post(path).body(body.to_string()).send().await.unwrap();
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The tensor of this name in an answer.
fn output<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let outputs = answer["outputs"].as_array().unwrap();
    outputs.iter().find(|output| output["name"] == name).unwrap_or_else(|| panic!("no {name} in {answer}"))
}

fn floats(output: &Value) -> Vec<f64> {
    output["data"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap_or(f64::NAN)).collect()
}

/// The JSON of an answer in binary, and its tensors as bytes in the order of the outputs.
async fn taken_apart(response: Response) -> (Value, Vec<Vec<u8>>) {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    let length: usize = response.headers()[HEADER_LENGTH].to_str().unwrap().parse().unwrap();
    let body = response.bytes().await.unwrap();
    let header: Value = serde_json::from_slice(&body[..length]).unwrap();
    let mut rest = &body[length..];
    let mut tensors = Vec::new();
    for output in header["outputs"].as_array().unwrap() {
        if let Some(size) = output["parameters"]["binary_data_size"].as_u64() {
            assert!(output.get("data").is_none(), "{output}");
            let (tensor, after) = rest.split_at(size as usize);
            tensors.push(tensor.to_vec());
            rest = after;
        }
    }
    assert!(rest.is_empty(), "nothing is left");
    (header, tensors)
}

fn from_bytes(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

/// A request with JSON and binary behind it.
fn binary(server: &TestServer, path: &str, header: &Value, tensor: &[u8]) -> RequestBuilder {
    let header = header.to_string();
    let body = [header.as_bytes(), tensor].concat();
    server.post(path).header(HEADER_LENGTH, header.len()).body(body)
}

/// BYTES as they travel.
fn byte_strings(strings: &[Vec<u8>]) -> Vec<u8> {
    strings.iter().flat_map(|bytes| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()).collect()
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-5)
}

/// What the shipped attribute network reads of a picture of its size.
fn tensor(picture: &RgbImage) -> Vec<f32> {
    let manifest = fs::read_to_string(Path::new(MODELS).join("face-attributes/1/manifest.json")).unwrap();
    let input = Manifest::from_json(&manifest).unwrap().input;
    assert_eq!((picture.width(), picture.height()), (input.size, input.size));
    (0..3)
        .flat_map(|plane| picture.pixels().map(move |pixel| (plane, pixel)))
        .map(|(plane, pixel)| (f32::from(pixel[plane]) / 255.0 - input.mean[plane]) / input.sd[plane])
        .collect()
}

fn bytes_of(tensor: &[f32]) -> Vec<u8> {
    tensor.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn pixels(shape: &[usize], parameters: &Value) -> Value {
    json!({"name": "pixels", "datatype": "FP32", "shape": shape, "parameters": parameters})
}

#[tokio::test]
async fn the_server_says_what_it_is_and_that_it_is_well() {
    let server = TestServer::start(&[]).await;
    let metadata = get(&server, "/v2").await;
    assert_eq!((&metadata["name"], &metadata["version"]), (&json!("facewise"), &json!(env!("CARGO_PKG_VERSION"))));
    assert!(metadata["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")), "{metadata}");
    assert_eq!(get(&server, "/v2/health/live").await, json!({"live": true}));
    assert_eq!(get(&server, "/v2/health/ready").await, json!({"ready": true}));
}

#[tokio::test]
async fn models_say_what_they_read_and_answer() {
    let server = TestServer::start(&["--max-batch", "16", "--max-delay", "2ms"]).await;
    let attributes = get(&server, "/v2/models/face-attributes").await;
    assert_eq!(attributes, get(&server, "/v2/models/face-attributes/versions/1").await);
    assert_eq!(
        attributes,
        json!({
            "name": "face-attributes", "versions": ["1"], "platform": "onnxruntime_onnx",
            "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 64, 64]}],
            "outputs": [
                {"name": "age", "datatype": "FP32", "shape": [-1, 101]},
                {"name": "gender", "datatype": "FP32", "shape": [-1, 2]},
                {"name": "smile", "datatype": "FP32", "shape": [-1, 2]},
                {"name": "emotion", "datatype": "FP32", "shape": [-1, 7]},
            ],
        })
    );
    let detector = get(&server, "/v2/models/face-detector").await;
    assert_eq!(detector["inputs"][0]["shape"], json!([-1, 3, 320, 320]));
    assert_eq!(detector["outputs"][2], json!({"name": "stride_32", "datatype": "FP32", "shape": [-1, 13, 10, 10]}));
    let pipeline = get(&server, "/v2/models/face-pipeline").await;
    assert_eq!(pipeline["inputs"], json!([{"name": "image", "datatype": "BYTES", "shape": [-1]}]));
    let names: Vec<&str> =
        pipeline["outputs"].as_array().unwrap().iter().map(|output| output["name"].as_str().unwrap()).collect();
    assert_eq!(
        names.join(" "),
        "image_size image_index box confidence landmarks age age_interval age_group age_probabilities gender \
         gender_probabilities smile smile_probabilities emotion emotion_probabilities"
    );

    for model in ["face-attributes", "face-detector", "face-pipeline"] {
        let ready = json!({"name": model, "ready": true});
        assert_eq!(get(&server, &format!("/v2/models/{model}/ready")).await, ready);
        assert_eq!(get(&server, &format!("/v2/models/{model}/versions/1/ready")).await, ready);
    }
    let config = get(&server, "/v2/models/face-attributes/config").await;
    assert_eq!(config, get(&server, "/v2/models/face-attributes/versions/1/config").await);
    assert_eq!((&config["max_batch_size"], &config["name"]), (&json!(1024), &json!("face-attributes")));
    assert_eq!(config["dynamic_batching"], json!({"preferred_batch_size": [16], "max_queue_delay_microseconds": 2000}));
    assert_eq!(config["input"], json!([{"name": "pixels", "data_type": "TYPE_FP32", "dims": [3, 64, 64]}]));
    assert_eq!(config["instance_group"], json!([{"count": 1, "kind": "KIND_CPU"}]));
    let config = get(&server, "/v2/models/face-pipeline/config").await;
    assert_eq!(config["input"], json!([{"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}]));
    assert_eq!((&config["max_batch_size"], config.get("dynamic_batching")), (&json!(0), None));
}

#[tokio::test]
async fn every_error_has_the_form_of_the_protocol() {
    let server = TestServer::start(&[]).await;
    for (path, says) in [
        ("/v2/nothing", "nothing under this path"),
        ("/v2/", "nothing under this path"),
        ("/v2/models/nobody", "no model 'nobody'; there are 'face-attributes', 'face-detector', 'face-pipeline'"),
        ("/v2/models/nobody/stats", "no model 'nobody'"),
        ("/v2/models/face-attributes/versions/7/ready", "version '7' of the model 'face-attributes' is not served"),
        ("/v2/models/face-pipeline/versions/0/config", "version '1' is"),
    ] {
        let (status, text) = refused(server.get(path)).await;
        assert!(status == 404 && text.contains(says), "{path}: {status} {text}");
    }
    let response = server.get(ATTRIBUTES).send().await.unwrap();
    assert_eq!(response.headers()["allow"], "POST");
    assert_eq!(refused(server.get(ATTRIBUTES)).await.0, 405);
    assert_eq!(refused(server.get("/v2/models/%ff")).await.0, 400);
    assert_eq!(refused(server.get("/v2").header("x-request-timeout-ms", "soon")).await.0, 400);
    let other = server.get("/v2x").send().await.unwrap();
    assert_eq!(other.headers()["content-type"], "application/problem+json", "that is somebody else's path");
}

#[tokio::test]
async fn a_tensor_is_answered_as_the_picture_that_it_is_made_of() {
    let server = TestServer::start(&[]).await;
    let face = picture(64, 64, 3);
    let expected = server.answer("?detect=false&distributions=true", encoded(&face, ImageFormat::Png)).await;
    let expected = &expected["faces"][0];
    let tensor = tensor(&face);
    let whole = json!({"id": "7", "inputs": [
        {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": tensor},
    ]});
    let answer = asked(&server, ATTRIBUTES, &whole).await;
    let names = |key: &str| answer[key].as_str().unwrap().to_owned();
    assert_eq!([names("id"), names("model_name"), names("model_version")], ["7", "face-attributes", "1"]);
    let years: Vec<f64> =
        expected["age"]["probabilities"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).collect();
    assert_eq!(output(&answer, "age")["shape"], json!([1, 101]));
    assert!(close(&floats(output(&answer, "age")), &years));
    let shares = |task: &str, labels: &[&str]| -> Vec<f64> {
        labels.iter().map(|label| expected[task]["probabilities"][label].as_f64().unwrap()).collect()
    };
    assert!(close(&floats(output(&answer, "gender")), &shares("gender", &["female", "male"])));
    assert!(close(&floats(output(&answer, "smile")), &shares("smile", &["neutral", "smiling"])));

    // The same numbers, nested, in binary, packed, and as nothing but the tensor.
    let nested: Vec<Vec<&[f32]>> = tensor.chunks(64 * 64).map(|plane| plane.chunks(64).collect()).collect();
    let nested = json!({"inputs": [
        {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": [nested]},
    ]});
    assert_eq!(asked(&server, ATTRIBUTES, &nested).await["outputs"], answer["outputs"]);
    let bytes = bytes_of(&tensor);
    let header = json!({
        "parameters": {"binary_data_output": true},
        "inputs": [pixels(&[1, 3, 64, 64], &json!({"binary_data_size": bytes.len()}))],
    });
    let (json, tensors) = taken_apart(binary(&server, ATTRIBUTES, &header, &bytes).send().await.unwrap()).await;
    assert!(json.get("id").is_none(), "there was none");
    assert_eq!(json["outputs"][0]["parameters"], json!({"binary_data_size": 404}));
    for (index, tensor) in tensors.iter().enumerate() {
        assert!(close(&from_bytes(tensor), &floats(&answer["outputs"][index])));
    }
    let raw = server.post("/v2/models/face-attributes/versions/1/infer").header(HEADER_LENGTH, "0").body(bytes);
    assert_eq!(taken_apart(raw.send().await.unwrap()).await, (json, tensors));
}

#[tokio::test]
async fn outputs_are_what_was_asked_for() {
    let server = TestServer::start(&[]).await;
    let tensor = tensor(&picture(64, 64, 4));
    let ask = |outputs: Value, parameters: Value| {
        let input = json!({"name": "pixels", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": tensor});
        json!({"inputs": [input], "outputs": outputs, "parameters": parameters})
    };
    let all = asked(&server, ATTRIBUTES, &ask(json!([{"name": "emotion"}, {"name": "smile"}]), json!({}))).await;
    let names: Vec<&Value> = all["outputs"].as_array().unwrap().iter().map(|output| &output["name"]).collect();
    assert_eq!(names, ["emotion", "smile"]);

    // One in binary, one not, and one as its two best classes.
    let outputs = json!([
        {"name": "emotion", "parameters": {"classification": 2, "binary_data": false}},
        {"name": "smile"},
        {"name": "age", "parameters": {"classification": 1}},
    ]);
    let body = ask(outputs, json!({"binary_data_output": true})).to_string();
    let (header, tensors) = taken_apart(server.post(ATTRIBUTES).body(body).send().await.unwrap()).await;
    assert!(close(&from_bytes(&tensors[0]), &floats(output(&all, "smile"))));
    let classes = output(&header, "emotion");
    assert_eq!((&classes["datatype"], &classes["shape"]), (&json!("BYTES"), &json!([1, 2])));
    let emotions = floats(output(&all, "emotion"));
    let best = (0..7).max_by(|a, b| emotions[*a].total_cmp(&emotions[*b])).unwrap();
    let labels = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"];
    let first = classes["data"][0].as_str().unwrap();
    assert!(first.ends_with(&format!(":{best}:{}", labels[best])), "{first}");
    assert!((first.split(':').next().unwrap().parse::<f64>().unwrap() - emotions[best]).abs() < 1e-6);
    assert_eq!(tensors[1][..4], ((tensors[1].len() - 4) as u32).to_le_bytes());
    let year = String::from_utf8(tensors[1][4..].to_vec()).unwrap();
    assert_eq!(year.split(':').count(), 2, "years have no labels: {year}");
}

#[tokio::test]
async fn rows_of_a_batch_are_answered_in_their_order_whatever_runs_they_share() {
    let server = TestServer::start(&["--max-batch", "8"]).await;
    let rows: Vec<Vec<f32>> = (0..20).map(|seed| tensor(&picture(64, 64, seed))).collect();
    let ask = async |rows: &[Vec<f32>]| {
        let bytes = bytes_of(&rows.concat());
        let header = json!({
            "inputs": [pixels(&[rows.len(), 3, 64, 64], &json!({"binary_data_size": bytes.len()}))],
            "outputs": [{"name": "gender"}],
        });
        let response = binary(&server, ATTRIBUTES, &header, &bytes).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["outputs"][0]["shape"], json!([rows.len(), 2]), "{answer}");
        floats(&answer["outputs"][0])
    };
    let together = ask(&rows).await;
    assert_eq!(ask(&[]).await, [0.0; 0]);
    for (row, expected) in rows.iter().zip(together.chunks(2)) {
        assert!(close(&ask(std::slice::from_ref(row)).await, expected));
    }
    assert_ne!(together[..2], together[2..4], "rows differ, and so do their answers");

    let stats = get(&server, "/v2/models/face-attributes/stats").await;
    let [stats] = stats["model_stats"].as_array().unwrap().as_slice() else { panic!("one model: {stats}") };
    assert_eq!((&stats["inference_count"], &stats["inference_stats"]["success"]["count"]), (&json!(40), &json!(21)));
    assert!(
        (23..=40).contains(&stats["execution_count"].as_u64().unwrap()),
        "20 rows are three runs at least: {stats}"
    );
}

#[tokio::test]
async fn what_a_detector_answers_are_its_maps() {
    let server = TestServer::start(&[]).await;
    // All magenta: a face in every cell of the last map.
    let plane = |value: f32| vec![value; 320 * 320];
    let tensor = [plane(1.0), plane(-1.0), plane(1.0)].concat();
    let bytes = bytes_of(&tensor);
    let header = json!({
        "inputs": [pixels(&[1, 3, 320, 320], &json!({"binary_data_size": bytes.len()}))],
        "outputs": [{"name": "stride_32"}],
    });
    let answer: Value =
        binary(&server, "/v2/models/face-detector/infer", &header, &bytes).send().await.unwrap().json().await.unwrap();
    let map = output(&answer, "stride_32");
    assert_eq!(map["shape"], json!([1, 13, 10, 10]));
    assert!(floats(map)[..100].iter().all(|logit| (logit - 5.0).abs() < 1e-4), "{map}");
}

#[tokio::test]
async fn bodies_are_packed_both_ways() {
    let server = TestServer::start(&["--max-body", "1MB"]).await;
    // Four faces: the answer to one is too short to be packed.
    let rows: Vec<Vec<f32>> = (0..4).map(|seed| tensor(&picture(64, 64, seed))).collect();
    let bytes = bytes_of(&rows.concat());
    let header = json!({
        "parameters": {"binary_data_output": true},
        "inputs": [pixels(&[4, 3, 64, 64], &json!({"binary_data_size": bytes.len()}))],
    })
    .to_string();
    let plain = [header.as_bytes(), &bytes].concat();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&plain).unwrap();
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(&plain).unwrap();
    let mut answers = Vec::new();
    for (encoding, body) in
        [("identity", plain.clone()), ("gzip", gzip.finish().unwrap()), ("deflate", zlib.finish().unwrap())]
    {
        let request = server.post(ATTRIBUTES).header("content-encoding", encoding).header(HEADER_LENGTH, header.len());
        answers.push(taken_apart(request.body(body).send().await.unwrap()).await);
    }
    assert!(answers[0] == answers[1] && answers[0] == answers[2]);

    // What is worth packing is packed, in what the client reads.
    for (accepted, encoding) in [("gzip", "gzip"), ("deflate", "deflate"), ("br, gzip;q=0.5", "gzip"), ("br", "")] {
        let request =
            binary(&server, ATTRIBUTES, &serde_json::from_slice(&plain[..plain.len() - bytes.len()]).unwrap(), &bytes);
        let response = request.header("accept-encoding", accepted).send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        assert_eq!(status, 200);
        assert_eq!(headers["vary"], "accept-encoding");
        let found = headers.get("content-encoding").map_or("", |value| value.to_str().unwrap());
        assert_eq!(found, encoding, "{accepted}");
        let body = response.bytes().await.unwrap();
        let mut unpacked = Vec::new();
        match encoding {
            "gzip" => GzDecoder::new(body.as_ref()).read_to_end(&mut unpacked).unwrap(),
            "deflate" => ZlibDecoder::new(body.as_ref()).read_to_end(&mut unpacked).unwrap(),
            _ => body.as_ref().read_to_end(&mut unpacked).unwrap(),
        };
        let length: usize = headers[HEADER_LENGTH].to_str().unwrap().parse().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&unpacked[..length]).unwrap(), answers[0].0);
        assert_eq!(unpacked[length..], answers[0].1.concat());
    }

    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![b' '; 3_000_000]).unwrap();
    for (encoding, body, status, says) in [
        ("gzip", bomb.finish().unwrap(), 413, "larger than 1000000 bytes when unpacked (--max-body)"),
        ("gzip", plain.clone(), 400, "the body is no gzip"),
        ("br", plain, 415, "'br'"),
    ] {
        let request = server.post(ATTRIBUTES).header("content-encoding", encoding).body(body);
        let (found, text) = refused(request).await;
        assert!(found == status && text.contains(says), "{found} {text}");
    }
}

#[tokio::test]
async fn bad_tensors_are_refused_and_the_next_good_request_succeeds() {
    let models = ModelsCopy::with_detector();
    models.write_smiles("1", &smiles(0.25));
    let server =
        TestServer::start_with(models.path(), &["--max-queue", "9", "--max-faces", "9", "--max-body", "1MB"]).await;
    let path = "/v2/models/smiles/infer";
    let row = vec![0.5f32; 192];
    let input = |name: &str, datatype: &str, shape: Value, data: Value| json!({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]});
    let good = input("pixels", "FP32", json!([1, 3, 8, 8]), json!(row));
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    let parameter = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed["inputs"][0]["parameters"] = json!({ name: value });
        changed
    };
    for (body, status, says) in [
        (json!({}), 400, "missing field `inputs`"),
        (json!([1]), 400, "no inference request"),
        (json!({"inputs": []}), 400, "reads one input, 'pixels', but the request has []"),
        (json!({"inputs": [good["inputs"][0], good["inputs"][0]]}), 400, "has ['pixels', 'pixels']"),
        (input("image", "FP32", json!([1, 3, 8, 8]), json!(row)), 400, "but the request has ['image']"),
        (
            input("pixels", "INT8", json!([1, 3, 8, 8]), json!(row)),
            400,
            "must be FP32 [n, 3, 8, 8], not INT8 [1, 3, 8, 8]",
        ),
        (input("pixels", "FP32", json!([3, 8, 8]), json!(row)), 400, "not FP32 [3, 8, 8]"),
        (input("pixels", "FP32", json!([1, 3, 8, 9]), json!(row)), 400, "not FP32 [1, 3, 8, 9]"),
        (input("pixels", "FP32", json!([]), json!([])), 400, "not FP32 []"),
        (input("pixels", "FP32", json!([-1, 3, 8, 8]), json!(row)), 400, "invalid value: integer `-1`"),
        (
            input("pixels", "FP32", json!([10, 3, 8, 8]), json!(row)),
            413,
            "10 rows are more than the 9 that a request may have (--max-queue)",
        ),
        (input("pixels", "FP32", json!([u64::MAX, 3, 8, 8]), json!(row)), 413, "--max-queue"),
        (input("pixels", "FP32", json!([2, 3, 8, 8]), json!(row)), 400, "it has 192 elements instead of 384"),
        (input("pixels", "FP32", json!([1, 3, 8, 8]), json!(vec![0.5; 193])), 400, "it has more than 192 elements"),
        (input("pixels", "FP32", json!([1, 3, 8, 8]), json!("text")), 400, "it is no list"),
        (input("pixels", "FP32", json!([1, 3, 8, 8]), json!(["text"])), 400, "a number is expected, not text"),
        (input("pixels", "FP32", json!([1, 3, 8, 8]), json!([{"a": 1}])), 400, "expected a list of elements"),
        (input("pixels", "FP32", json!([1, 3, 8, 8]), json!([true])), 400, "expected a list of elements"),
        (input("pixels", "FP32", json!([1, 3, 8, 8]), Value::Null), 400, "neither 'data' nor a 'binary_data_size'"),
        (parameter("binary_data_size", json!(768)), 400, "both 'data' and a 'binary_data_size'"),
        (parameter("binary_data_size", json!("768")), 400, "no inference request"),
        (parameter("shared_memory_region", json!("region")), 400, "shared memory is not supported"),
        (with("outputs", json!([{"name": "age"}])), 400, "no output 'age'; there are 'smile'"),
        (with("outputs", json!([{"name": "smile"}, {"name": "smile"}])), 400, "asked for twice"),
        (with("outputs", Value::Null), 400, "no inference request"),
        (
            with("outputs", json!([{"name": "smile", "parameters": {"shared_memory_region": "x"}}])),
            400,
            "shared memory",
        ),
        (
            with("outputs", json!([{"name": "smile", "parameters": {"classification": -1}}])),
            400,
            "invalid value: integer `-1`",
        ),
        (with("id", json!(7)), 400, "no inference request"),
        (with("parameters", json!({"binary_data_output": 1})), 400, "no inference request"),
        (with("parameters", json!({"timeout": 1})), 429, "in the time that a request may take"),
    ] {
        let (found, text) = refused(server.post(path).body(body.to_string())).await;
        assert!(found == status && text.contains(says), "{body}: {found} {text}");
        let answer = asked(&server, path, &good).await;
        assert_eq!(answer["outputs"][0]["data"], json!([0.75, 0.25]), "after {body}");
    }

    let bytes = bytes_of(&row);
    let header = |size: usize| json!({"inputs": [pixels(&[1, 3, 8, 8], &json!({"binary_data_size": size}))]});
    for (request, says) in [
        (server.post(path).body("{"), "EOF while parsing"),
        (server.post(path).body(""), "EOF while parsing"),
        (binary(&server, path, &header(768), &bytes[1..]), "'binary_data_size' is 768, but 767 bytes follow"),
        (binary(&server, path, &header(764), &bytes[4..]), "it has 764 bytes instead of 768"),
        (binary(&server, path, &good, &bytes), "no input has a 'binary_data_size'"),
        (server.post(path).header(HEADER_LENGTH, "99999").body(good.to_string()), "says 99999, but the body has"),
        (server.post(path).header(HEADER_LENGTH, "-1").body(good.to_string()), "is no number of bytes"),
        (server.post(path).header(HEADER_LENGTH, "0").body(vec![0; 10]), "it has 10 bytes instead of 768"),
        (server.post(path).body(good.to_string() + "x"), "trailing characters"),
    ] {
        let (status, text) = refused(request).await;
        assert!(status == 400 && text.contains(says), "{says}: {status} {text}");
    }
    let (status, text) = refused(server.post(path).body(vec![b' '; 1_000_001])).await;
    assert!(status == 413 && text.contains("--max-body"), "{text}");
    let schedule = with("parameters", json!({"priority": 1, "sequence_id": 5, "sequence_start": true, "triton_x": 1}));
    assert_eq!(asked(&server, path, &schedule).await["outputs"][0]["data"], json!([0.75, 0.25]));
}

/// A picture with two faces.
pub(crate) fn two_faces() -> Vec<u8> {
    encoded(&faces(picture(320, 240, 2), &[Spot::at(2, 4), Spot { green: 40, ..Spot::at(7, 5) }]), ImageFormat::Png)
}

#[tokio::test]
async fn the_pipeline_answers_the_faces_of_all_pictures() {
    let server = TestServer::start(&[]).await;
    let pictures = [two_faces(), encoded(&picture(60, 40, 1), ImageFormat::Png), jpeg(3)];
    let bytes = byte_strings(&pictures);
    let header = json!({"id": "p", "inputs": [
        {"name": "image", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": bytes.len()}},
    ]});
    let answer: Value = binary(&server, PIPELINE, &header, &bytes).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["parameters"], json!({"model": "face-attributes/1", "detector": "face-detector/1"}), "{answer}");
    assert_eq!(output(&answer, "image_size")["data"], json!([320, 240, 60, 40, 120, 90]));
    assert_eq!(output(&answer, "image_index")["data"], json!([0, 0, 2]));
    let mut expected = Vec::new();
    for picture in &pictures {
        let answer = server.answer("?landmarks=true", picture.clone()).await;
        expected.extend(answer["faces"].as_array().unwrap().clone());
    }
    assert_eq!(expected.len(), 3);
    for (index, face) in expected.iter().enumerate() {
        let row =
            |name: &str, length: usize| floats(output(&answer, name))[index * length..(index + 1) * length].to_vec();
        let area = ["x", "y", "width", "height"].map(|side| face["box"][side].as_f64().unwrap());
        assert!(row("box", 4).iter().zip(area).all(|(a, b)| (a - b).abs() < 0.01));
        assert!(close(&row("confidence", 1), &[face["confidence"].as_f64().unwrap()]));
        assert!((row("age", 1)[0] - face["age"]["years"].as_f64().unwrap()).abs() < 0.051);
        let interval = [&face["age"]["low"], &face["age"]["high"]].map(|years| years.as_f64().unwrap());
        assert_eq!(row("age_interval", 2), interval);
        assert_eq!(output(&answer, "age_group")["data"][index], face["age"]["group"]);
        let years: f64 = row("age_probabilities", 101).iter().sum();
        assert!((years - 1.0).abs() < 1e-4);
        for task in ["gender", "smile", "emotion"] {
            assert_eq!(output(&answer, task)["data"][index], face[task]["label"]);
        }
        let smile = &face["smile"]["probabilities"];
        let smile = ["neutral", "smiling"].map(|label| smile[label].as_f64().unwrap());
        assert!(close(&row("smile_probabilities", 2), &smile));
        let points = ["right_eye", "left_eye", "nose", "mouth"]
            .map(|point| [0, 1].map(|axis| face["landmarks"][point][axis].as_f64().unwrap()));
        assert!(row("landmarks", 8).iter().zip(points.concat()).all(|(a, b)| (a - b).abs() < 0.01));
    }
    assert_eq!(output(&answer, "landmarks")["shape"], json!([3, 4, 2]));

    // In JSON pictures are base64; [n, 1] is as good as [n].
    let encoded: Vec<[String; 1]> = pictures.iter().map(|picture| [BASE64_STANDARD.encode(picture)]).collect();
    let body = json!({"id": "p", "inputs": [
        {"name": "image", "datatype": "BYTES", "shape": [3, 1], "data": encoded},
    ]});
    assert_eq!(asked(&server, PIPELINE, &body).await, answer);

    // A picture and nothing else.
    let raw = server.post(PIPELINE).header(HEADER_LENGTH, "0").body(pictures[0].clone());
    let (header, tensors) = taken_apart(raw.send().await.unwrap()).await;
    let place = header["outputs"].as_array().unwrap().iter().position(|output| output["name"] == "gender").unwrap();
    let labels = [0, 1].map(|face| expected[face]["gender"]["label"].as_str().unwrap().as_bytes().to_vec());
    assert_eq!(tensors[place], byte_strings(&labels));
}

#[tokio::test]
async fn the_pipeline_does_as_its_parameters_say() {
    let server = TestServer::start(&["--max-pictures", "2"]).await;
    let ask = |parameters: Value, outputs: Value| {
        json!({"parameters": parameters, "outputs": outputs, "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1], "data": [BASE64_STANDARD.encode(two_faces())]},
        ]})
    };
    let wanted = json!([{"name": "confidence"}, {"name": "landmarks"}]);
    for (parameters, confidences) in [
        (json!({}), 2),
        (json!({"max_faces": 1}), 1),
        (json!({"min_confidence": 0.98}), 1),
        (json!({"detect": "crop"}), 1),
        (json!({"detect": "true", "priority": 2}), 2),
        (json!({"model": "face-attributes"}), 2),
    ] {
        let answer = asked(&server, PIPELINE, &ask(parameters.clone(), wanted.clone())).await;
        assert_eq!(output(&answer, "confidence")["shape"], json!([confidences]), "{parameters}");
    }
    for detect in [json!(false), json!("false")] {
        let answer = asked(&server, PIPELINE, &ask(json!({ "detect": detect }), wanted.clone())).await;
        assert_eq!(output(&answer, "confidence")["data"], json!([1.0]));
        assert_eq!(output(&answer, "landmarks")["data"], json!([null, null, null, null, null, null, null, null]));
        assert_eq!(answer["parameters"], json!({"model": "face-attributes/1"}), "no detector looked");
    }
    let classes = json!([{"name": "gender_probabilities", "parameters": {"classification": 1}}]);
    let answer = asked(&server, PIPELINE, &ask(json!({}), classes)).await;
    let words = output(&answer, "gender_probabilities")["data"].as_array().unwrap().clone();
    assert!(words.len() == 2 && words.iter().all(|word| word.as_str().unwrap().ends_with("male")), "{words:?}");

    let good = ask(json!({}), wanted.clone());
    let image = |shape: Value, data: Value| json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": shape, "data": data}]});
    let picture = good["inputs"][0]["data"][0].clone();
    for (body, status, says) in [
        (ask(json!({"detect": "maybe"}), wanted.clone()), 400, "unknown variant `maybe`"),
        (ask(json!({"max_faces": 0}), wanted.clone()), 400, "'max_faces'"),
        (ask(json!({"min_confidnce": 0.5}), wanted.clone()), 400, "unknown field `min_confidnce`"),
        (ask(json!({"model": "nobody"}), wanted.clone()), 404, "no model 'nobody'"),
        (ask(json!({"model": "face-detector"}), wanted.clone()), 400, "is a detector"),
        (ask(json!({}), json!([{"name": "beauty"}])), 400, "no output 'beauty'"),
        (
            ask(json!({}), json!([{"name": "gender", "parameters": {"classification": 1}}])),
            400,
            "'gender' has no classes",
        ),
        (image(json!([3]), json!([picture, picture, picture])), 413, "3 pictures are more than the 2"),
        (image(json!([2, 2]), json!([picture])), 400, "must be BYTES [n] or [n, 1], not BYTES [2, 2]"),
        (image(json!([1]), json!([7])), 400, "text is expected, not a number"),
        (image(json!([2]), json!([picture, "/etc/passwd"])), 400, "element 1: 'image' is not base64"),
        (image(json!([1]), json!([BASE64_STANDARD.encode("hello")])), 422, "known format"),
        (
            image(json!([2]), json!([picture, BASE64_STANDARD.encode("hello")])),
            422,
            "element 1 of 'image': not a picture",
        ),
        (image(json!([1]), json!([BASE64_STANDARD.encode(jpeg_announcing(30_000, 30_000))])), 413, "--max-megapixels"),
    ] {
        let (found, text) = refused(server.post(PIPELINE).body(body.to_string())).await;
        assert!(found == status && text.contains(says), "{found} {text} instead of {says}");
        assert_eq!(output(&asked(&server, PIPELINE, &good).await, "confidence")["shape"], json!([2]));
    }
    let header = |size: usize, shape: usize| json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [shape], "parameters": {"binary_data_size": size}}]});
    for (bytes, shape, says) in [
        (vec![9, 0, 0, 0, 1, 2], 1, "element 0 is 9 bytes long, and 2 are left"),
        (vec![0xff; 4], 1, "element 0 is 4294967295 bytes long"),
        (vec![1, 0, 0], 1, "it ends after 0 of 1 elements"),
        (vec![1, 0, 0, 0, 7], 2, "it ends after 1 of 2 elements"),
        (vec![1, 0, 0, 0, 7, 7], 1, "1 bytes are left after 1 elements"),
    ] {
        let (status, text) = refused(binary(&server, PIPELINE, &header(bytes.len(), shape), &bytes)).await;
        assert!(status == 400 && text.contains(says), "{says}: {status} {text}");
    }
    let none: Value = binary(&server, PIPELINE, &header(0, 0), &[]).send().await.unwrap().json().await.unwrap();
    assert_eq!(
        (&output(&none, "box")["shape"], &output(&none, "image_size")["shape"]),
        (&json!([0, 4]), &json!([0, 2]))
    );
}

#[tokio::test]
async fn the_description_has_an_example_that_works() {
    let server = TestServer::start(&[]).await;
    let description = get(&server, "/openapi.json").await;
    let example = &description["components"]["schemas"]["InferenceRequest"]["example"];
    let answer = asked(&server, PIPELINE, example).await;
    assert_eq!((&answer["id"], &output(&answer, "box")["data"]), (&json!("42"), &json!([0.0, 0.0, 1.0, 1.0])));
    let paths = &description["paths"];
    for path in ["ready", "config", "stats", "infer"] {
        let (one, other) =
            (format!("/v2/models/{{name}}/{path}"), format!("/v2/models/{{name}}/versions/{{version}}/{path}"));
        assert!(paths.get(one).is_some() && paths.get(other).is_some(), "{path}");
    }
    let body = &paths["/v2/repository/index"]["post"]["requestBody"];
    assert_eq!(body["required"], json!(false), "it may be left away");
}

#[tokio::test]
async fn a_task_switched_off_is_nowhere() {
    let server = TestServer::start(&["--tasks", "age,smile"]).await;
    for model in ["face-attributes", "face-pipeline"] {
        let metadata = get(&server, &format!("/v2/models/{model}")).await.to_string();
        assert!(
            metadata.contains("smile") && !metadata.contains("emotion") && !metadata.contains("gender"),
            "{metadata}"
        );
    }
    let raw = server.post(PIPELINE).header(HEADER_LENGTH, "0").body(jpeg(1)).send().await.unwrap();
    let (header, _) = taken_apart(raw).await;
    assert!(!header.to_string().contains("emotion"), "{header}");
    let raw = server.post(ATTRIBUTES).header(HEADER_LENGTH, "0").body(vec![0; 4 * 3 * 64 * 64]).send().await.unwrap();
    let names: Vec<Value> =
        taken_apart(raw).await.0["outputs"].as_array().unwrap().iter().map(|output| output["name"].clone()).collect();
    assert_eq!(names, ["age", "smile"]);
}

async fn changed(server: &TestServer, path: &str, body: &'static str) -> u16 {
    server.post(path).body(body).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn the_repository_is_listed_loaded_and_unloaded() {
    let models = ModelsCopy::with_detector();
    models.write_smiles("1", &smiles(0.25));
    let server = TestServer::start_with(models.path(), &[]).await;
    let index = async |body: &'static str| -> Vec<[String; 4]> {
        let list: Value = server.post("/v2/repository/index").body(body).send().await.unwrap().json().await.unwrap();
        let word = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
        let row = |entry: &Value| ["name", "version", "state", "reason"].map(|key| word(entry, key));
        list.as_array().unwrap().iter().map(row).collect()
    };
    let entry =
        |name: &str, version: &str, state: &str, reason: &str| [name, version, state, reason].map(str::to_owned);
    let others = ["face-attributes", "face-detector", "face-pipeline"].map(|name| entry(name, "1", "READY", ""));
    let with = |last: &[[String; 4]]| [&others, last].concat();
    let ready = entry("smiles", "1", "READY", "");
    assert_eq!(index("").await, with(std::slice::from_ref(&ready)));

    let unload = "/v2/repository/models/smiles/unload";
    assert_eq!(changed(&server, unload, r#"{"parameters": {"unload_dependents": false}}"#).await, 200);
    assert_eq!(index("{}").await, with(&[entry("smiles", "1", "UNAVAILABLE", "it is not loaded")]));
    assert_eq!(index(r#"{"ready": true}"#).await, with(&[]));
    assert_eq!(refused(server.get("/v2/models/smiles")).await.0, 404);
    assert_eq!(refused(server.get("/v2/models/smiles/ready")).await.0, 404);
    let load = "/v2/repository/models/smiles/load";
    assert_eq!(changed(&server, load, "{}").await, 200);
    assert_eq!(index("").await, with(std::slice::from_ref(&ready)));

    // A newer version that is broken leaves the old one, and is listed with the reason.
    models.write_smiles("2", b"no network at all");
    let (status, text) = refused(server.post(load)).await;
    assert!(status == 400 && text.contains("smiles/2/model.onnx' cannot be loaded"), "{text}");
    assert_eq!(index("").await, with(&[ready, entry("smiles", "2", "UNAVAILABLE", &text)]));
    assert_eq!(get(&server, "/v2/models/smiles").await["versions"], json!(["1"]));
    models.write_smiles("2", &smiles(0.75));
    assert_eq!(changed(&server, load, "").await, 200);
    assert_eq!(get(&server, "/v2/models/smiles/versions/2").await["versions"], json!(["2"]));
    assert_eq!(refused(server.get("/v2/models/smiles/versions/1")).await.0, 404);

    for (path, body, status, says) in [
        ("nothing/load", "", 404, "no model 'nothing'"),
        ("nothing/unload", "", 404, "'nothing'"),
        ("..%2Fsmiles/load", "", 404, "no model"),
        ("face-attributes/unload", "", 400, "answers where a request names no model"),
        ("face-pipeline/unload", "", 400, "part of the server"),
        ("face-pipeline/load", "", 400, "part of the server"),
        ("smiles/load", r#"{"parameters": {"config": "{}"}}"#, 400, "the parameter 'config' is not supported"),
        (
            "smiles/load",
            r#"{"parameters": {"file:1/model.onnx": "AAAA"}}"#,
            400,
            "'file:1/model.onnx' is not supported",
        ),
        ("smiles/load", "{", 400, "the body is wrong"),
    ] {
        let (found, text) = refused(server.post(&format!("/v2/repository/models/{path}")).body(body)).await;
        assert!(found == status && text.contains(says), "{path}: {found} {text}");
    }
    for body in [r#"{"ready": 1}"#, "[]", "null"] {
        assert_eq!(refused(server.post("/v2/repository/index").body(body)).await.0, 400, "{body}");
    }
}

#[tokio::test]
async fn only_the_servers_own_machine_changes_models() {
    let models = ModelsCopy::with_detector();
    models.write_smiles("1", &smiles(0.25));
    let server = TestServer::start_with(models.path(), &[]).await;
    for action in ["load", "unload"] {
        let request = server.post(&format!("/v2/repository/models/smiles/{action}"));
        let (status, text) = refused(request.header("x-forwarded-for", "203.0.113.7")).await;
        assert!(status == 403 && text.contains("own machine"), "{text}");
    }
    assert_eq!(get(&server, "/v2/models/smiles/ready").await["ready"], json!(true));
}

#[tokio::test]
async fn keys_are_asked_for_and_errors_keep_their_form() {
    let models = ModelsCopy::with_detector();
    models.write_smiles("1", &smiles(0.25));
    let key = |name: &str, scope| Key { name: name.into(), sha256: Hash::of(name), scopes: vec![scope], rate: None };
    let keys = vec![key("asker", Scope::Predict), key("boss", Scope::Admin)];
    let server = TestServer::start_with_keys(models.path(), &[], keys).await;
    for path in ["/v2/health/live", "/v2/health/ready"] {
        assert_eq!(server.get(path).send().await.unwrap().status(), 200, "{path}");
    }
    let with = |request: RequestBuilder, key: &str| request.header("authorization", format!("Bearer {key}"));
    let raw = || server.post(PIPELINE).header(HEADER_LENGTH, "0").body(jpeg(1));
    let load = || server.post("/v2/repository/models/smiles/load");
    for request in
        [server.get("/v2"), server.get("/v2/models/stats"), server.post("/v2/repository/index"), raw(), load()]
    {
        let response = request.try_clone().unwrap().send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"facewise\"");
        assert_eq!(refused(request).await.0, 401);
    }
    assert_eq!(refused(with(raw(), "boss")).await.0, 403);
    assert_eq!(refused(with(load(), "asker")).await.0, 403);
    for (request, key) in [(raw(), "asker"), (load(), "boss"), (server.get("/v2/models/smiles/ready"), "boss")] {
        assert_eq!(with(request, key).send().await.unwrap().status(), 200, "{key}");
    }
}

#[tokio::test]
async fn embeddings_are_tensors_as_well() {
    let models = ModelsCopy::with_detector();
    let network = linear("embedding", 2, &[("gender", &[1.0, 0.0, 0.0, 2.0], &[0.5, 0.0])]);
    let heads = json!([{"task": "gender", "output": "gender", "values": "logits", "labels": ["female", "male"]}]);
    models.write_embeddings("faces", 2, &network, &heads);
    let server = TestServer::start_with(models.path(), &[]).await;
    let metadata = get(&server, "/v2/models/faces").await;
    assert_eq!(metadata["inputs"], json!([{"name": "embedding", "datatype": "FP32", "shape": [-1, 2]}]));
    let body = json!({
        "inputs": [{"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [[1.0, 3.0], [-1.0, 0.0]]}],
        "outputs": [{"name": "gender"}],
    });
    let answer = asked(&server, "/v2/models/faces/infer", &body).await;
    assert_eq!(
        output(&answer, "gender")["data"],
        json!([1.5, 6.0, -0.5, 0.0]),
        "as the network has them, without a softmax"
    );
}

#[tokio::test]
async fn statistics_count_requests_rows_and_runs() {
    let server = TestServer::start(&[]).await;
    let all = get(&server, "/v2/models/stats").await;
    let names: Vec<&Value> = all["model_stats"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["face-attributes", "face-detector", "face-pipeline"]);
    assert_eq!(all["model_stats"][0]["last_inference"], 0);

    server.answer("", two_faces()).await;
    let pictures = [two_faces(), jpeg(1)];
    let bytes = byte_strings(&pictures);
    let header = json!({"inputs": [
        {"name": "image", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": bytes.len()}},
    ]});
    assert_eq!(binary(&server, PIPELINE, &header, &bytes).send().await.unwrap().status(), 200);
    let raw = server.post(PIPELINE).header(HEADER_LENGTH, "0").body("no picture");
    assert_eq!(refused(raw).await.0, 422);

    let of = async |model: &str| {
        get(&server, &format!("/v2/models/{model}/versions/1/stats")).await["model_stats"][0].clone()
    };
    let pipeline = of("face-pipeline").await;
    let counts = |stats: &Value| {
        let requests = &stats["inference_stats"];
        [
            &stats["inference_count"],
            &stats["execution_count"],
            &requests["success"]["count"],
            &requests["fail"]["count"],
        ]
        .map(|count| count.as_u64().unwrap())
    };
    assert_eq!(counts(&pipeline), [2, 1, 1, 1], "{pipeline}");
    assert_eq!(pipeline["batch_stats"][0]["batch_size"], 2);
    let attributes = of("face-attributes").await;
    assert_eq!(counts(&attributes)[0], 5, "the faces of /v1 and /v2: {attributes}");
    assert_eq!(counts(&attributes)[2..], [3, 0], "{attributes}");
    assert_eq!(counts(&of("face-detector").await)[2..], [3, 0]);
    for stage in ["success", "queue", "compute_input", "compute_infer", "compute_output"] {
        let stage = &attributes["inference_stats"][stage];
        assert!(stage["count"] == 3 && stage["ns"].as_u64().unwrap() > 0, "{attributes}");
    }
    for cache in ["cache_hit", "cache_miss"] {
        assert_eq!(attributes["inference_stats"][cache], json!({"count": 0, "ns": 0}));
    }
    let runs: u64 = attributes["batch_stats"]
        .as_array()
        .unwrap()
        .iter()
        .map(|batch| batch["compute_infer"]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(runs, counts(&attributes)[1]);
    assert!(attributes["last_inference"].as_u64().unwrap() > 1_600_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_is_admitted_is_overload_and_every_picture_counts() {
    let server = TestServer::start(&["--max-requests", "3"]).await;
    // These are admitted, and stay so because their bodies are not complete.
    let hold = || {
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        let head = format!("POST {PIPELINE} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let in_flight = async |count: usize| {
        let line = format!("requests_in_flight {}", count + 1);
        while !server.get("/metrics").send().await.unwrap().text().await.unwrap().contains(&line) {}
    };
    let ask = |pictures: usize| {
        let bytes = byte_strings(&vec![jpeg(1); pictures]);
        let header = json!({"inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [pictures], "parameters": {"binary_data_size": bytes.len()}},
        ]});
        binary(&server, PIPELINE, &header, &bytes)
    };
    let mut held = vec![hold(), hold()];
    in_flight(2).await;
    assert_eq!(ask(1).send().await.unwrap().status(), 200);
    let (status, text) = refused(ask(2)).await;
    assert!(status == 429 && text.contains("more requests are in progress"), "{text}");
    let (status, text) = refused(ask(4)).await;
    assert!(status == 413 && text.contains("4 pictures are more than the 3"), "that will never do: {text}");

    held.push(hold());
    in_flight(3).await;
    assert_eq!(refused(ask(1)).await.0, 429);
    assert_eq!(refused(server.post(ATTRIBUTES).body("{}")).await.0, 429);
    assert_eq!(server.get("/v2/health/ready").send().await.unwrap().status(), 200, "probes are no predictions");
    drop(held);
    while ask(3).send().await.unwrap().status() != 200 {}
}
