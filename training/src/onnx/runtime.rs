//! ONNX Runtime, loaded once per process from where [`facewise_core::onnxruntime`] finds it.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use facewise_core::onnxruntime::{LibraryError, locate};
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use prost::Message;

use super::messages::ModelProto;

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// There is no library.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The library cannot be loaded or is too old.
    #[error("ONNX Runtime cannot be loaded: {0}; run `make onnxruntime`")]
    Load(#[from] ort::LoadDynamicError),
    /// The runtime refuses a model or an input.
    #[error("ONNX Runtime: {0}")]
    Runtime(#[from] ort::Error),
}

/// A session that runs the model on one thread of the CPU, so that its sums are always added in the same order.
///
/// # Errors
/// If ONNX Runtime is missing or too old, or refuses the file.
pub fn session(model: &Path) -> Result<Session, RuntimeError> {
    Ok(builder()?.commit_from_file(model)?)
}

/// The same for a model in memory.
///
/// # Errors
/// As for [`session`].
pub fn session_of(model: &ModelProto) -> Result<Session, RuntimeError> {
    Ok(builder()?.commit_from_memory(&model.encode_to_vec())?)
}

fn builder() -> Result<SessionBuilder, RuntimeError> {
    Ok(Session::builder(&environment()?)?.with_intra_threads(1).map_err(ort::Error::from)?)
}

/// The process's only environment; ONNX Runtime does not allow a second one.
fn environment() -> Result<Environment, RuntimeError> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
    let mut current = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*current {
        return Ok(environment.clone());
    }
    let environment = ort::init_from(locate(None)?)?.build()?;
    Ok(current.insert(environment).clone())
}
