//! ONNX Runtime: loading its library, and networks in it.

use std::mem;
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
use super::{buckets, provider};
use crate::config::{Device, Provider};
use crate::stamp::Stamp;

/// ONNX Runtime allows one environment in a process, and so one library; whoever asks later gets the first.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

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
    /// The library was built without the provider that was asked for.
    #[error(
        "'{}' is an ONNX Runtime without the {} provider: start with `{}`, which fetches one that has it, or leave --provider away",
        path.display(), provider.title(), start(*provider)
    )]
    NoProvider {
        /// The library.
        path: PathBuf,
        /// What was asked for.
        provider: Provider,
    },
    /// The provider is there, but not what it needs itself.
    #[error("the {} provider beside '{}' cannot be loaded ({reason}): {}, or leave --provider away", provider.title(), path.display(), needs(*provider))]
    ProviderUnusable {
        /// The library.
        path: PathBuf,
        /// What was asked for.
        provider: Provider,
        /// What ONNX Runtime said.
        reason: String,
    },
    /// The provider is there, but the device does not compute.
    #[error(
        "the {} provider cannot compute on GPU {device_id} ({reason}): see with `nvidia-smi` whether the driver is 580 or newer and which GPUs \
         there are, choose another with --device-id, or leave --provider away", provider.title()
    )]
    Device {
        /// What was asked for.
        provider: Provider,
        /// Number of the GPU.
        device_id: u16,
        /// What ONNX Runtime said.
        reason: String,
    },
}

/// The command that brings a provider.
fn start(provider: Provider) -> &'static str {
    match provider {
        Provider::Cpu => "make serve",
        Provider::Cuda => "make serve-cuda",
        Provider::TensorRt => "make serve-cuda ARGS='--provider tensorrt'",
    }
}

/// What a provider needs that does not come with its library.
fn needs(provider: Provider) -> &'static str {
    match provider {
        Provider::Cpu | Provider::Cuda => {
            "install the NVIDIA driver, 580 or newer, and start with `make serve-cuda`, which fetches the libraries of CUDA and cuDNN"
        }
        Provider::TensorRt => {
            "install TensorRT 10 where the loader finds it and start with `make serve-cuda ARGS='--provider tensorrt'`, or say \
             --provider cuda"
        }
    }
}

/// What ONNX Runtime said, without the places in its code, the status and the circumstances around it.
fn reason(message: &str) -> String {
    let said = message.rsplit("[ONNXRuntimeError] : ").next().unwrap_or(message);
    // A status is a number and a name: `1 : FAIL : …`.
    let said = said.splitn(3, " : ").last().unwrap_or(said);
    let said = said.rsplit(" with error: ").next().unwrap_or(said);
    let said = said.split(" ; GPU=").next().unwrap_or(said);
    said.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
}

/// The loaded ONNX Runtime, and what networks run on in it.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    path: PathBuf,
    device: Device,
}

impl Runtime {
    /// Loads the library; see [`onnxruntime::locate`] for where it is looked for. Networks run on the CPU.
    ///
    /// # Errors
    /// When there is none, it is older than the pinned one, or it cannot be loaded.
    pub fn load(explicit: Option<&Path>) -> Result<Self, RuntimeError> {
        let path = onnxruntime::locate(explicit)?;
        let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(runtime) = loaded.as_ref() {
            return Ok(runtime.clone());
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
        Ok(loaded.insert(Self { environment, path, device: Device::default() }).clone())
    }

    /// The same with another device to run networks on, on which a first small one has been run.
    ///
    /// # Errors
    /// When the library does not have the provider, the provider lacks a library, or the device does not compute.
    pub fn on(self, device: &Device) -> Result<Self, RuntimeError> {
        let runtime = Self { device: device.clone(), ..self };
        let provider = device.provider;
        if !provider.is_gpu() {
            return Ok(runtime);
        }
        if !provider::is_built_in(provider).map_err(|error| runtime.provider_failure(&error))? {
            return Err(RuntimeError::NoProvider { path: runtime.path, provider });
        }
        // The libraries of the provider are loaded with the options, and the device is used by the probe.
        let options = runtime.options(1).and_then(|options| Ok(options.with_disable_cpu_fallback()?));
        let options = options.map_err(|error| runtime.provider_failure(&error))?;
        provider::probe(options).map_err(|error| runtime.device_failure(&error))?;
        tracing::info!(provider = provider.title(), device_id = device.number(), "networks run on the GPU");
        if provider == Provider::TensorRt {
            tracing::info!("what TensorRT does not have runs on CUDA; compiling a network takes minutes");
        }
        Ok(runtime)
    }

    /// Why the provider cannot be set up: CUDA counts the devices already here.
    fn provider_failure(&self, error: &ort::Error) -> RuntimeError {
        if error.message().contains("CUDA failure") {
            return self.device_failure(error);
        }
        let (path, provider) = (self.path.clone(), self.device.provider);
        RuntimeError::ProviderUnusable { path, provider, reason: reason(error.message()) }
    }

    fn device_failure(&self, error: &ort::Error) -> RuntimeError {
        let (provider, device_id) = (self.device.provider, self.device.number());
        RuntimeError::Device { provider, device_id, reason: reason(error.message()) }
    }

    /// Loads a network; its runs use `threads` threads.
    ///
    /// # Errors
    /// When the file is missing, is no ONNX, needs what this library does not have, or refers to data outside its
    /// own folder.
    pub fn open(&self, path: &Path, threads: usize) -> Result<OnnxBackend, BackendError> {
        // Through a file, not through memory: ONNX Runtime then knows the folder that external data must lie in.
        let stamp = Stamp::of(path);
        let session = self.session(path, threads).map_err(|error| BackendError(error.to_string()))?;
        let manifest = session.metadata().ok().and_then(|metadata| metadata.custom(METADATA_KEY));
        let specs = |outlets: &[Outlet]| outlets.iter().map(tensor_spec).collect();
        let signature = Signature { inputs: specs(session.inputs()), outputs: specs(session.outputs()), manifest };
        let on_gpu = self.device.provider.is_gpu();
        let source = Source { runtime: self.clone(), path: path.to_owned(), threads, stamp };
        Ok(OnnxBackend { session, signature, selected: None, on_gpu, filled: Vec::new(), source })
    }

    fn session(&self, path: &Path, threads: usize) -> ort::Result<Session> {
        let provider = self.device.provider;
        if provider.is_gpu() {
            let all_on_gpu = self.options(threads)?.with_disable_cpu_fallback()?.commit_from_file(path);
            if all_on_gpu.is_ok() {
                return all_on_gpu;
            }
        }
        // Of a GPU, after a failure: the file is broken, which this attempt tells, or some of its operations exist on the CPU only.
        let session = self.options(threads)?.commit_from_file(path)?;
        if provider.is_gpu() {
            let (path, provider) = (path.display(), provider.title());
            tracing::warn!(%path, provider, "some operations of this network run on the CPU, the provider does not have them");
        }
        Ok(session)
    }

    fn options(&self, threads: usize) -> Result<SessionBuilder, ort::Error> {
        // Spinning threads win microseconds on an idle machine and slow every neighbour on a busy one.
        Ok(Session::builder(&self.environment)?
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_execution_providers(provider::providers(&self.device))?
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
    /// Whether batches are filled up to few sizes.
    on_gpu: bool,
    /// Room to fill them up in.
    filled: Vec<f32>,
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

    fn try_run(&mut self, input: &[f32], shape: &[usize], outputs: &[String]) -> ort::Result<Vec<Vec<f32>>> {
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

    fn run(&mut self, input: &[f32], shape: &[usize], outputs: &[String]) -> Result<Vec<Vec<f32>>, BackendError> {
        let answers = if self.on_gpu {
            let mut room = mem::take(&mut self.filled);
            let answers =
                buckets::run_filled(input, shape, &mut room, |input, shape| self.try_run(input, shape, outputs));
            self.filled = room;
            answers
        } else {
            self.try_run(input, shape, outputs)
        };
        answers.map_err(|error| BackendError(error.to_string()))
    }

    fn warm_up_sizes(&self, most: usize) -> Vec<usize> {
        if self.on_gpu { buckets::sizes(most) } else { vec![1, most] }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_probe_is_a_network_that_this_library_runs() {
        let runtime = Runtime::load(None).unwrap();
        provider::probe(runtime.options(1).unwrap()).unwrap();
    }

    #[test]
    fn a_reason_is_what_a_person_can_act_upon() {
        for (message, expected) in [
            (
                "/src/bridge.cc:2043 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : \
                 Failed to load library /lib/libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open shared \
                 object file: No such file or directory\n",
                "libcuda.so.1: cannot open shared object file: No such file or directory",
            ),
            (
                "/src/info.cc:63 FromProviderOptions(const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : \
                 options.h:187 Parse CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ; line=70 ;",
                "options.h:187 Parse CUDA failure 100: no CUDA-capable device is detected",
            ),
            ("Something else.", "Something else"),
        ] {
            assert_eq!(reason(message), expected);
        }
    }

    #[test]
    fn a_session_that_may_not_use_the_cpu_does_not_start_on_it() {
        let options = Runtime::load(None).unwrap().options(1).unwrap().with_disable_cpu_fallback().unwrap();
        let error = provider::probe(options).unwrap_err().to_string();
        assert!(error.contains("CPU"), "{error}");
    }
}
