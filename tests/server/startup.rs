//! A start that cannot succeed ends with one sentence that says what is wrong and what to do, and exit code 1.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use crate::harness::{ModelsCopy, program};
use crate::onnx::{network_with_weights_in, yunet};

/// Runs `facewise serve` without a log, so that standard error holds only what people are told.
fn serve(flags: &[&str]) -> Command {
    let arguments: Vec<&str> =
        ["serve", "--listen", "127.0.0.1:0", "--log-level", "off"].into_iter().chain(flags.iter().copied()).collect();
    program(&arguments)
}

#[track_caller]
fn fails(mut command: Command, exit: i32, says: &[&str]) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(exit), "{stderr}");
    assert!(stdout.is_empty());
    assert!(stderr.starts_with("facewise: ") && stderr.trim_end().lines().count() == 1, "one sentence: {stderr}");
    let parts: Vec<&str> = stderr.trim_end().split(": ").collect();
    assert!(parts.windows(2).all(|pair| pair[0] != pair[1]), "nothing is said twice: {stderr}");
    for words in says {
        assert!(stderr.contains(words), "'{words}' in: {stderr}");
    }
}

#[test]
fn the_library_is_missing() {
    let flag = serve(&["--onnxruntime", "/no/such/libonnxruntime.so"]);
    fails(flag, 1, &["'/no/such/libonnxruntime.so'", "--onnxruntime", "does not exist", "make onnxruntime"]);
    let mut variable = serve(&[]);
    variable.env("ORT_DYLIB_PATH", "/no/such.so");
    fails(variable, 1, &["'/no/such.so'", "ORT_DYLIB_PATH", "make onnxruntime"]);
}

#[test]
fn the_library_is_no_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    fs::write(&path, "not a library").unwrap();
    fails(
        serve(&["--onnxruntime", path.to_str().unwrap()]),
        1,
        &["libonnxruntime.so' cannot be loaded", "make onnxruntime"],
    );
}

#[test]
fn the_library_is_of_another_version() {
    // What an older ONNX Runtime answers to the first question that is asked of it.
    let source = r#"
        static const char *version(void) { return "1.20.1"; }
        static const void *api(unsigned version) { (void)version; return 0; }
        static struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};
        const void *OrtGetApiBase(void) { return &base; }
    "#;
    let folder = tempfile::tempdir().unwrap();
    let (code, library) = (folder.path().join("old.c"), folder.path().join("libonnxruntime.so"));
    fs::write(&code, source).unwrap();
    // The linker that Rust itself needs.
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status().unwrap();
    assert!(built.success());
    fails(
        serve(&["--onnxruntime", library.to_str().unwrap()]),
        1,
        &["is ONNX Runtime 1.20.1", "1.31.1 is needed", "make onnxruntime"],
    );
}

#[test]
fn the_library_has_no_gpu_provider() {
    for (provider, title, remedy) in [
        ("cuda", "CUDA", "`make serve-cuda`"),
        ("tensorrt", "TensorRT", "`make serve-cuda ARGS='--provider tensorrt'`"),
    ] {
        let says = ["libonnxruntime.so' is an ONNX Runtime without the ", title, remedy, "leave --provider away"];
        fails(serve(&["--provider", provider]), 1, &says);
    }
    let mut predict = program(&["predict", "--provider", "cuda", "examples/group.jpg"]);
    predict.env("FACEWISE_LOG_LEVEL", "off");
    fails(predict, 1, &["without the CUDA provider", "`make serve-cuda`"]);
}

#[test]
fn the_port_is_taken() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let by_flag = program(&["serve", "--log-level", "off", "--listen", &address]);
    fails(by_flag, 1, &[&address, "is taken by another program", "--listen"]);
    let mut by_variable = program(&["serve", "--log-level", "off"]);
    by_variable.env("FACEWISE_LISTEN", &address);
    fails(by_variable, 1, &[&address, "is taken by another program", "--listen"]);
}

#[test]
fn there_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    fails(serve(&["--models", path]), 1, &[path, "holds no model", "--models"]);
    fails(serve(&["--models", "/no/such/folder"]), 1, &["'/no/such/folder' cannot be read", "--models"]);
    fails(serve(&["--model", "nobody"]), 1, &["no model 'nobody' among 'face-attributes'", "--model"]);
}

#[test]
fn the_detector_is_not_there() {
    let models = ModelsCopy::with_detector();
    let start = |flags: &[&str]| serve(&[&["--models", models.path()][..], flags].concat());
    fails(start(&["--detector", "nobody"]), 1, &["no detector 'nobody' among ['face-detector']", "--detector"]);
    fails(start(&["--detector", "face-attributes"]), 1, &["no detector 'face-attributes'"]);
    fails(start(&["--model", "face-detector"]), 1, &["no model 'face-detector' among 'face-attributes'"]);
    fs::remove_dir_all(models.version()).unwrap();
    fails(start(&[]), 1, &[models.path(), "only detectors"]);
}

#[test]
fn the_detector_reads_another_size_only() {
    let models = ModelsCopy::with_detector();
    models.write_detector("yunet", "input", 320, &yunet(320));
    let start = |size| serve(&["--models", models.path(), "--detector-size", size]);
    fails(start("640"), 1, &["320 × 320 pixels and no others, but 640 × 640", "--detector-size"]);
    models.write_detector("facewise", "input", 320, &yunet(320));
    fails(start("320"), 1, &["the output 'stride_8', but the network's are 'cls_8'"]);
}

#[test]
fn the_network_is_broken() {
    let models = ModelsCopy::new();
    let path = models.version().join("model.onnx");
    let whole = fs::read(&path).unwrap();
    for bytes in [b"not a network".as_slice(), &whole[..whole.len() / 2], b""] {
        fs::write(&path, bytes).unwrap();
        fails(serve(&["--models", models.path()]), 1, &["face-attributes/1/model.onnx' cannot be loaded"]);
    }
}

#[test]
fn the_manifest_does_not_fit_the_network() {
    let models = ModelsCopy::new();
    let path = models.version().join("manifest.json");
    let whole = fs::read_to_string(&path).unwrap();
    let start = || serve(&["--models", models.path()]);

    fs::write(&path, whole.replacen("\"schema\": 1", "\"schema\": 1, \"extra\": true", 1)).unwrap();
    fails(start(), 1, &["manifest.json' is wrong", "unknown field `extra`"]);
    fs::write(&path, whole.replacen("\"description\": \"", "\"description\": \"Not ", 1)).unwrap();
    fails(start(), 1, &["manifest.json' differs from the one embedded", "`description`"]);

    fs::write(&path, &whole).unwrap();
    fs::rename(models.version(), models.version().with_file_name("2")).unwrap();
    fails(start(), 1, &["is of model 'face-attributes/1', but its folder says 'face-attributes/2'"]);
}

#[test]
fn weights_outside_the_models_folder_are_refused() {
    let models = ModelsCopy::new();
    let weights: Vec<u8> = [0u8; 16].to_vec();
    fs::write(models.version().join("inside.bin"), &weights).unwrap();
    fs::write(models.version().with_file_name("outside.bin"), &weights).unwrap();
    let absolute = models.version().with_file_name("outside.bin");
    let start = |location: &str| {
        fs::write(models.version().join("model.onnx"), network_with_weights_in(location)).unwrap();
        serve(&["--models", models.path()])
    };
    fails(start("../outside.bin"), 1, &["model.onnx' cannot be loaded", "../outside.bin"]);
    fails(start(absolute.to_str().unwrap()), 1, &["model.onnx' cannot be loaded", "Absolute path"]);
    // Inside, they are read, and it turns out that this is no network for faces.
    fails(start("inside.bin"), 1, &["model.onnx' cannot be served", "'pixels' to be float32 [batch, 3, "]);
    fs::remove_file(models.version().join("manifest.json")).unwrap();
    fails(start("inside.bin"), 1, &["model.onnx' has no manifest"]);
}

#[test]
fn the_configuration_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("facewise.toml");
    fs::write(&path, "listen = '127.0.0.1:0'\nmax-bodies = 3").unwrap();
    fails(program(&["serve", "--config", path.to_str().unwrap()]), 2, &["facewise.toml' is wrong", "'max-bodies'"]);
    fails(program(&["--config", "/no/such.toml", "serve"]), 2, &["'/no/such.toml' cannot be read"]);
    fails(serve(&["--body-timeout", "1h"]), 1, &["--body-timeout 1h is longer than --request-timeout 30s"]);
    fails(serve(&["--gpu-memory-limit", "4GB"]), 1, &["--gpu-memory-limit is about a GPU, but --provider is cpu"]);
}
