//! Clients of others, as they are installed from `PyPI` by `make test`. Where they could not be, these tests say so and pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{ModelsCopy, TestServer};
use crate::onnx::smiles;
use crate::v2::two_faces;

/// The Python that has the clients, or why there is none.
fn python() -> Result<PathBuf, String> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv-clients");
    // The file is written when everything is installed.
    if venv.join("installed").is_file() {
        return Ok(venv.join("bin/python"));
    }
    Err(format!("there is no {}: `make clients` installs tritonclient from PyPI", venv.join("installed").display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_tritonclient_passes() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let models = ModelsCopy::with_detector();
    models.write_smiles("1", &smiles(0.25));
    let picture = Path::new(models.path()).join("two.png");
    fs::write(&picture, two_faces()).unwrap();
    let server = TestServer::start_with(models.path(), &[]).await;
    let mut session = Command::new(python);
    session
        .args(["-B", "tests/clients/tritonclient_session.py", &server.address().to_string()])
        .args([picture.to_str().unwrap(), "2"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::task::spawn_blocking(move || session.output().unwrap()).await.unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.contains("passed"), "{said}");
}
