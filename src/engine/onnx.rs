//! ONNX Runtime: loading its library, and networks in it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use facewise_core::manifest::METADATA_KEY;
use facewise_core::onnxruntime::{self, LibraryError};
use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::{AutoDevicePolicy, SessionBuilder};
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use super::backend::{Backend, BackendError, Signature, TensorSpec};
use crate::stamp::Stamp;

/// ONNX Runtime allows one environment in a process, and so one library; whoever asks later gets the first.
static LOADED: Mutex<Option<Environment>> = Mutex::new(None);

/// Why there is no ONNX Runtime. Each text is one sentence with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No library was found.
    #[error(transparent)]
    Missing(#[from] LibraryError),
    /// The library is older than what this build is made for.
    #[error(
        "'{}' is ONNX Runtime {found}, but {} is needed: run `make onnxruntime`, or name a newer library with --onnxruntime", path.display(), onnxruntime::VERSION
    )]
    Version {
        /// The library.
        path: PathBuf,
        /// What it says about itself.
        found: String,
    },
    /// The file is no ONNX Runtime, or the system cannot load it.
    #[error("'{}' cannot be loaded as ONNX Runtime ({reason}): run `make onnxruntime`, or name another library with --onnxruntime", path.display())]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
}

/// The loaded ONNX Runtime.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
}

impl Runtime {
    /// Loads the library; see [`onnxruntime::locate`] for where it is looked for.
    ///
    /// # Errors
    /// When there is none, it is older than the pinned one, or it cannot be loaded.
    pub fn load(explicit: Option<&Path>) -> Result<Self, RuntimeError> {
        let path = onnxruntime::locate(explicit)?;
        let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(environment) = loaded.as_ref() {
            return Ok(Self { environment: environment.clone() });
        }
        let builder = ort::init_from(&path).map_err(|error| match error {
            LoadDynamicError::BadVersion { version_str, path } => RuntimeError::Version { path, found: version_str },
            LoadDynamicError::Dlopen { error, path } => RuntimeError::Unusable { path, reason: error.to_string() },
            other => RuntimeError::Unusable { path: path.clone(), reason: other.to_string() },
        })?;
        let environment = builder
            .with_name("facewise")
            .with_telemetry(false)
            .build()
            .map_err(|error| RuntimeError::Unusable { path: path.clone(), reason: error.to_string() })?;
        // Below that it tells the story of every graph transformation and every block of memory.
        environment.set_log_level(LogLevel::Warning);
        *loaded = Some(environment.clone());
        Ok(Self { environment })
    }

    /// Loads a network; its runs use `threads` threads.
    ///
    /// # Errors
    /// When the file is missing, is no ONNX, needs what this library does not have, or refers to data outside its
    /// own folder.
    pub fn open(&self, path: &Path, threads: usize) -> Result<OnnxBackend, BackendError> {
        // Through a file, not through memory: ONNX Runtime then knows the folder that external data must lie in.
        let stamp = Stamp::of(path);
        let session = self
            .options(threads)
            .map_err(|error| BackendError(error.to_string()))?
            .commit_from_file(path)
            .map_err(|error| BackendError(error.to_string()))?;
        let manifest = session.metadata().ok().and_then(|metadata| metadata.custom(METADATA_KEY));
        let specs = |outlets: &[Outlet]| outlets.iter().map(tensor_spec).collect();
        let signature = Signature { inputs: specs(session.inputs()), outputs: specs(session.outputs()), manifest };
        let source = Source { runtime: self.clone(), path: path.to_owned(), threads, stamp };
        Ok(OnnxBackend { session, signature, selected: None, source })
    }

    fn options(&self, threads: usize) -> Result<SessionBuilder, ort::Error> {
        // Spinning threads win microseconds on an idle machine and slow every neighbour on a busy one.
        Ok(Session::builder(&self.environment)?
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_intra_threads(threads)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?)
    }
}

fn tensor_spec(outlet: &Outlet) -> TensorSpec {
    let (is_float32, shape) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => {
            (*ty == TensorElementType::Float32, shape.iter().map(|side| usize::try_from(*side).ok()).collect())
        }
        _ => (false, Vec::new()),
    };
    TensorSpec { name: outlet.name().to_owned(), is_float32, shape }
}

/// A network in a session of its own.
pub struct OnnxBackend {
    session: Session,
    signature: Signature,
    /// Options for the outputs asked for last: a server asks for the same ones always.
    selected: Option<(Vec<String>, RunOptions<HasSelectedOutputs>)>,
    source: Source,
}

/// Where a network came from.
struct Source {
    runtime: Runtime,
    path: PathBuf,
    threads: usize,
    stamp: Stamp,
}

impl OnnxBackend {
    fn select(&mut self, outputs: &[String]) -> ort::Result<()> {
        if self.selected.as_ref().is_none_or(|(names, _)| names != outputs) {
            let selector = outputs.iter().fold(OutputSelector::no_default(), OutputSelector::with);
            self.selected = Some((outputs.to_vec(), RunOptions::new()?.with_outputs(selector)));
        }
        Ok(())
    }

    fn try_run(&mut self, input: &[f32], shape: [usize; 4], outputs: &[String]) -> ort::Result<Vec<Vec<f32>>> {
        self.select(outputs)?;
        let tensor = TensorRef::from_array_view((shape, input))?;
        let name = self.signature.inputs.first().map(|spec| spec.name.clone()).unwrap_or_default();
        let (_, options) = self.selected.as_ref().ok_or_else(|| ort::Error::new("no outputs are selected"))?;
        let answers = self.session.run_with_options(ort::inputs![name => tensor], options)?;
        outputs
            .iter()
            .map(|output| {
                let value = answers.get(output).ok_or_else(|| ort::Error::new(format!("no output '{output}'")))?;
                value.try_extract_tensor::<f32>().map(|(_, numbers)| numbers.to_vec())
            })
            .collect()
    }
}

impl Backend for OnnxBackend {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, input: &[f32], shape: [usize; 4], outputs: &[String]) -> Result<Vec<Vec<f32>>, BackendError> {
        self.try_run(input, shape, outputs).map_err(|error| BackendError(error.to_string()))
    }

    fn renew(&self) -> Result<Box<dyn Backend>, BackendError> {
        let Source { runtime, path, threads, stamp } = &self.source;
        // A worker must not answer with another network than its neighbours.
        if *stamp != Stamp::of(path) {
            return Err(BackendError(format!("'{}' has changed since it was loaded", path.display())));
        }
        Ok(Box::new(runtime.open(path, *threads)?))
    }
}
