//! One typed configuration. Every setting is a flag `--some-name`, an environment variable
//! `FACEWISE_SOME_NAME` and a key `some-name` of `facewise.toml`, all read by the same parser.
//!
//! Precedence: flags, then the environment, then the file, then the defaults written here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use bytesize::ByteSize;
use clap::builder::Resettable;
use clap::{ArgAction, Args, Command, CommandFactory, Parser, ValueEnum};

use crate::access::{self, Key};
use crate::tasks::Tasks;

/// The file that is read when it lies in the current folder and no other is named.
pub const FILE: &str = "facewise.toml";

/// The folder of evaluations where none is named.
const DATA_DIR: &str = "facewise-data";

/// The word that stands for no evaluations.
const NO_DATA_DIR: &str = "none";

/// Everything that `facewise serve` can be told.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// What networks run, and how.
    #[command(flatten)]
    pub inference: Inference,
    /// How the server meets its clients.
    #[command(flatten)]
    pub http: Http,
    /// What labelled sets may be sent, and where they lie.
    #[command(flatten)]
    pub evaluations: Evaluations,
    /// What is written to the log.
    #[command(flatten)]
    pub log: Log,
    /// The keys that are known; only the file has them. Without any, none is asked for.
    #[arg(skip)]
    pub keys: Vec<Key>,
}

/// What networks run, and how: shared by the server and the command line.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Models")]
pub struct Inference {
    /// Folder of models: <name>/<version>/model.onnx with manifest.json beside it
    #[arg(long, value_name = "FOLDER", default_value = "models")]
    pub models: PathBuf,
    /// Name of the model that answers when a request names none [default: the only one, else face-attributes]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Name of the model that finds the faces, or none [default: face-detector, else the only detector]
    #[arg(long, value_name = "NAME")]
    pub detector: Option<String>,
    /// Side of the square that a picture is shrunk to for the detector, a multiple of 32: a larger one finds smaller faces
    /// and takes longer [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = detector_size)]
    pub detector_size: Option<u32>,
    /// Tasks answered at all; the others disappear from answers
    #[arg(long, value_name = "LIST", default_value_t)]
    pub tasks: Tasks,
    /// The ONNX Runtime library [default: looked for in .onnxruntime/ and the system's folders]
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
    /// Copies of each network, each run by one thread at a time; `facewise tune` measures how many are best [default: the CPUs
    /// available, divided by --intra-threads; 2 with a GPU]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub workers: Option<usize>,
    /// Threads inside one run of a network
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value = "1")]
    pub intra_threads: usize,
    /// Most faces in one run of a network; `facewise tune` measures how many are best [default: 8; 32 with a GPU]
    #[arg(long, value_name = "FACES", value_parser = at_least_one)]
    pub max_batch: Option<usize>,
    /// Longest wait for more to share a run with; with 0s a worker waits an eighth of its last run at most
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub max_delay: humantime::Duration,
    /// Most pictures in one run of the detector; `facewise tune` measures how many are best [default: 2; 8 with a GPU]
    #[arg(long, value_name = "PICTURES", value_parser = at_least_one)]
    pub max_detector_batch: Option<usize>,
    /// Most faces, or pictures for the detector, that wait for one model; more are answered 429
    #[arg(long, value_name = "FACES", value_parser = at_least_one, default_value = "1024")]
    pub max_queue: usize,
    /// Most faces of a picture that are answered, the most confident ones
    #[arg(long, value_name = "FACES", value_parser = at_least_one, default_value = "100")]
    pub max_faces: usize,
    /// Threads that decode and crop pictures [default: the CPUs available]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub decode_threads: Option<usize>,
    /// Most pixels of a picture, in millions
    #[arg(long, value_name = "MILLIONS", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_megapixels: u32,
    /// Most decoded pixels held at a time, of all pictures together, in millions
    #[arg(long, value_name = "MILLIONS", default_value = "200", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_megapixels_held: u32,
    /// What they run on.
    #[command(flatten)]
    pub device: Device,
}

/// What networks run on.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct Device {
    /// What networks run on; `make serve-cuda` fetches an ONNX Runtime that has more than the CPU
    #[arg(long, value_name = "PROVIDER", value_enum, default_value = "cpu")]
    pub provider: Provider,
    /// Number of the GPU, as CUDA counts them [default: 0]
    #[arg(long, value_name = "N")]
    pub device_id: Option<u16>,
    /// Most memory of the GPU that one worker takes for tensors; what CUDA and cuDNN take themselves comes on top
    /// [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub gpu_memory_limit: Option<ByteSize>,
    /// How a worker's memory on the GPU grows: in steps that double, or by what is needed [default: same-as-requested]
    #[arg(long, value_name = "STRATEGY", value_enum)]
    pub arena_strategy: Option<ArenaStrategy>,
    /// How the algorithm of a convolution is chosen: by trying all, by rules, or always the same one [default: heuristic]
    #[arg(long, value_name = "SEARCH", value_enum)]
    pub cudnn_search: Option<CudnnSearch>,
    /// Keep the memory of a run on the CPU for the next one
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub cpu_arena: bool,
}

impl Default for Device {
    /// The CPU, as without any flag.
    fn default() -> Self {
        Self {
            provider: Provider::Cpu,
            device_id: None,
            gpu_memory_limit: None,
            arena_strategy: None,
            cudnn_search: None,
            cpu_arena: true,
        }
    }
}

/// A provider of ONNX Runtime: what runs the operations of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU, with CUDA and cuDNN.
    Cuda,
    /// An NVIDIA GPU, with `TensorRT`, and CUDA for what that does not have.
    #[value(name = "tensorrt")]
    TensorRt,
}

impl Provider {
    /// Whether it computes on a GPU.
    pub const fn is_gpu(self) -> bool {
        !matches!(self, Self::Cpu)
    }

    /// The name as its makers write it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
            Self::TensorRt => "TensorRT",
        }
    }
}

/// How memory on a GPU grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ArenaStrategy {
    /// Each step takes twice as much as the one before: few steps, up to half of them unused.
    NextPowerOfTwo,
    /// Each step takes what is needed. The default: every size of batch is run before the first request, so that there are no
    /// steps afterwards, and doubling would only keep from others on the card what nobody uses.
    #[default]
    SameAsRequested,
}

/// How cuDNN's algorithm for a convolution is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CudnnSearch {
    /// By running all of them, for each convolution and size of batch anew.
    Exhaustive,
    /// By rules of cuDNN's. The default: each new size of batch would search anew.
    #[default]
    Heuristic,
    /// The same one for all.
    Default,
}

/// How the server meets its clients.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct Http {
    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "20MB")]
    pub max_body: ByteSize,
    /// Most predictions in the server, in line and in progress; more are answered 429
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value = "512")]
    pub max_requests: usize,
    /// Most pictures in progress, from their bytes to the answer; one that is shown to a detector counts as three. The others wait
    /// in line [default: 16 for each CPU available, with a GPU two full runs more]
    #[arg(long, value_name = "PICTURES", value_parser = at_least_one)]
    pub max_in_progress: Option<usize>,
    /// Most pictures in a batch
    #[arg(long, value_name = "PICTURES", value_parser = at_least_one, default_value = "64")]
    pub max_pictures: usize,
    /// Most embeddings in a request
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value = "1024")]
    pub max_embeddings: usize,
    /// Longest time for a whole request
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub request_timeout: humantime::Duration,
    /// Longest time for a request's body, or for one picture of a batch, to arrive
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub body_timeout: humantime::Duration,
    /// Longest time until the head of a request is there, and how long an idle connection is kept
    #[arg(long, value_name = "TIME", default_value = "75s")]
    pub idle_timeout: humantime::Duration,
    /// Time between two looks at the folder of models: what is new or has changed is loaded, what has gone is unloaded
    /// [default: never looked at again]
    #[arg(long, value_name = "TIME", value_parser = poll_interval)]
    pub models_poll: Option<Duration>,
    /// Address and port for the metrics alone; without it, /metrics is among the other paths and needs a key where they do
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// Origins whose pages may read the answers in a browser, each a scheme and a host, with commas between, or * for all
    /// [default: none]
    #[arg(long, value_name = "LIST")]
    pub cors_origins: Option<Origins>,
    /// File with the certificate chain, in PEM: the server speaks HTTPS then
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// File with the certificate's key, in PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Longest time to finish what was admitted when the server is told to stop
    #[arg(long, value_name = "TIME", default_value = "35s")]
    pub shutdown_timeout: humantime::Duration,
}

/// Whose pages may read the answers in a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Everybody's.
    Any,
    /// Those of these origins.
    These(Vec<HeaderValue>),
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        if list.trim() == "*" {
            return Ok(Self::Any);
        }
        list.split(',').map(|word| origin(word.trim())).collect::<Result<_, _>>().map(Self::These)
    }
}

/// An origin as browsers write it: scheme, host, and the port where it is not the usual one.
fn origin(word: &str) -> Result<HeaderValue, String> {
    let wrong = || format!("'{word}' is no origin like https://example.com or http://localhost:3000");
    let uri: Uri = word.parse().map_err(|_| wrong())?;
    let written = uri.scheme_str().zip(uri.authority()).map(|(scheme, authority)| format!("{scheme}://{authority}"));
    // A slash at the end is parsed, and is what a browser never writes.
    if written.as_deref() != Some(word) {
        return Err(wrong());
    }
    word.parse().map_err(|_| wrong())
}

/// What labelled sets may be sent to be scored, and where they lie meanwhile.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Evaluations")]
pub struct Evaluations {
    /// Folder for the evaluations of labelled sets, of one server at a time, or none for no evaluations over HTTP
    /// [default: facewise-data]
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Largest labelled set that may be sent
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    pub max_dataset: ByteSize,
    /// Largest that its zip may be unpacked
    #[arg(long, value_name = "SIZE", default_value = "16GiB")]
    pub max_dataset_unpacked: ByteSize,
    /// Most rows of a labelled set
    #[arg(long, value_name = "ROWS", value_parser = at_least_one, default_value = "200000")]
    pub max_dataset_rows: usize,
    /// Largest picture of a labelled set
    #[arg(long, value_name = "SIZE", default_value = "25MB")]
    pub max_dataset_picture: ByteSize,
    /// Longest time for a labelled set to arrive and be checked
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub dataset_timeout: humantime::Duration,
    /// Most evaluations that wait for their turn; more are answered 429
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value = "16")]
    pub max_evaluations: usize,
    /// How long the report of an evaluation is kept
    #[arg(long, value_name = "TIME", default_value = "30days")]
    pub evaluations_retention: humantime::Duration,
}

/// What is written to the log.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct Log {
    /// Form of the log on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged: a level, or levels by module as in `info,facewise::engine=debug`
    #[arg(long, value_name = "LEVELS", default_value = "info")]
    pub log_level: tracing_subscriber::filter::Targets,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is wrong with the configuration. Each text is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named cannot be read.
    #[error("the configuration file '{}' cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or holds what no setting takes.
    #[error("the configuration file '{}' is wrong: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be written.
    #[error("the configuration file '{}' cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

fn at_least_one(word: &str) -> Result<usize, String> {
    match word.parse::<usize>() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

fn poll_interval(word: &str) -> Result<Duration, String> {
    match humantime::parse_duration(word) {
        Ok(time) if time >= Duration::from_millis(100) => Ok(time),
        Ok(_) => Err("must be at least 100ms".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn detector_size(word: &str) -> Result<u32, String> {
    match word.parse::<u32>() {
        Ok(size) if (32..=2048).contains(&size) && size.is_multiple_of(32) => Ok(size),
        Ok(_) => Err("must be a multiple of 32 from 32 to 2048".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// CPUs that this process may use; a container's limit counts, not the host's.
pub fn available_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Inference {
    /// Threads that run networks. A GPU is kept busy by two: one fills its batch while the other's is computed.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| match self.device.provider {
            Provider::Cpu => (available_cpus() / self.intra_threads).max(1),
            Provider::Cuda | Provider::TensorRt => 2,
        })
    }

    /// Most faces in one run of a network. What a core computes for more of them no longer fits into its cache.
    pub fn faces_in_a_run(&self) -> usize {
        self.max_batch.unwrap_or(if self.device.provider.is_gpu() { 32 } else { 8 })
    }

    /// Most pictures in one run of the detector.
    pub fn pictures_in_a_run(&self) -> usize {
        self.max_detector_batch.unwrap_or(if self.device.provider.is_gpu() { 8 } else { 2 })
    }

    /// Rows of a labelled set in progress: two full batches for each worker, one is run while the next is read.
    pub fn rows_in_progress(&self) -> usize {
        (2 * self.faces_in_a_run() * self.worker_count()).min(self.max_queue)
    }

    /// Threads that decode pictures.
    pub fn decode_thread_count(&self) -> usize {
        self.decode_threads.unwrap_or_else(available_cpus)
    }
}

impl Http {
    /// Longest time for a whole request.
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout.into()
    }

    /// Longest time for a body.
    pub fn body_timeout(&self) -> Duration {
        self.body_timeout.into()
    }

    /// Largest body in bytes.
    pub fn max_body(&self) -> usize {
        usize::try_from(self.max_body.as_u64()).unwrap_or(usize::MAX)
    }
}

impl Evaluations {
    /// The folder, unless they are switched off.
    pub fn folder(&self) -> Option<&Path> {
        match &self.data_dir {
            None => Some(Path::new(DATA_DIR)),
            Some(none) if none.as_os_str() == NO_DATA_DIR => None,
            Some(folder) => Some(folder),
        }
    }
}

#[derive(Parser)]
#[command(no_binary_name = true, args_override_self = true)]
struct OnlySettings {
    #[command(flatten)]
    settings: Settings,
}

impl Settings {
    /// The defaults, changed by flags as on the command line. Neither the environment nor a file is read.
    ///
    /// # Errors
    /// When a flag is unknown or its value is wrong.
    pub fn from_flags<I>(flags: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        OnlySettings::try_parse_from(flags).map(|only| only.settings)
    }

    /// Most pictures in progress.
    pub fn in_progress(&self) -> usize {
        self.http.max_in_progress.unwrap_or_else(|| match self.inference.device.provider {
            Provider::Cpu => 16 * available_cpus(),
            // Two full batches: one is filled while the other is computed.
            Provider::Cuda | Provider::TensorRt => 16 * available_cpus() + 2 * self.inference.faces_in_a_run(),
        })
    }

    /// Checks what no single setting can.
    ///
    /// # Errors
    /// When two settings contradict each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.http.body_timeout() > self.http.request_timeout() {
            return Err(ConfigError::Contradiction(format!(
                "--body-timeout {} is longer than --request-timeout {}: shorten the one or lengthen the other",
                self.http.body_timeout, self.http.request_timeout
            )));
        }
        if self.http.metrics_listen.is_some_and(|address| address == self.http.listen && address.port() != 0) {
            return Err(ConfigError::Contradiction(format!(
                "--metrics-listen {0} is the address of --listen: choose another one, or leave it away",
                self.http.listen
            )));
        }
        if self.http.tls_cert.is_some() != self.http.tls_key.is_some() {
            return Err(ConfigError::Contradiction(
                "--tls-cert and --tls-key belong together: name both files, or none".into(),
            ));
        }
        if cfg!(not(feature = "tls")) && self.http.tls_cert.is_some() {
            return Err(ConfigError::Contradiction(
                "--tls-cert asks for HTTPS, and this build has none: build it with `--features tls`".into(),
            ));
        }
        self.inference.validate()
    }
}

impl Inference {
    /// Checks what no single setting can.
    ///
    /// # Errors
    /// When two settings contradict each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.max_megapixels > self.max_megapixels_held {
            return Err(ConfigError::Contradiction(format!(
                "--max-megapixels {} is more than --max-megapixels-held {}: a picture that large could never be decoded",
                self.max_megapixels, self.max_megapixels_held
            )));
        }
        if self.max_faces > self.max_queue {
            return Err(ConfigError::Contradiction(format!(
                "--max-faces {} is more than --max-queue {}: a picture with that many faces could never be answered",
                self.max_faces, self.max_queue
            )));
        }
        self.device.validate()
    }
}

impl Device {
    /// Number of the GPU, as CUDA counts them.
    pub fn number(&self) -> u16 {
        self.device_id.unwrap_or_default()
    }

    /// Checks what no single setting can.
    ///
    /// # Errors
    /// When something is said about a GPU and none is used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let about_a_gpu = [
            ("--device-id", self.device_id.is_some()),
            ("--gpu-memory-limit", self.gpu_memory_limit.is_some()),
            ("--arena-strategy", self.arena_strategy.is_some()),
            ("--cudnn-search", self.cudnn_search.is_some()),
        ];
        match about_a_gpu.into_iter().find(|(_, is_said)| *is_said) {
            Some((flag, _)) if !self.provider.is_gpu() => Err(ConfigError::Contradiction(format!(
                "{flag} is about a GPU, but --provider is cpu: leave {flag} away, or say --provider cuda"
            ))),
            _ => Ok(()),
        }
    }
}

/// What a `facewise.toml` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// The settings, as text; the flags' own parsers read the values.
    values: BTreeMap<String, String>,
    /// The tables `[[keys]]`.
    pub keys: Vec<Key>,
}

impl File {
    /// Reads the file that is named, else [`FILE`] in the current folder if there is one.
    ///
    /// # Errors
    /// When a named file cannot be read, or the file is no TOML, names an unknown setting or gives one a wrong value.
    pub fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(FILE));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|reason| ConfigError::File { path: path.to_owned(), reason }),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
        let keys = match table.remove("keys") {
            Some(keys) => keys.try_into().map_err(|error: toml::de::Error| format!("[[keys]]: {}", error.message()))?,
            None => Vec::new(),
        };
        access::validate(&keys)?;
        let known = OnlySettings::command();
        let mut values = BTreeMap::new();
        for (key, value) in table {
            if !known.get_arguments().any(|arg| arg.get_long() == Some(key.as_str())) {
                return Err(format!("there is no setting '{key}'"));
            }
            let value = as_word(&value)
                .ok_or_else(|| format!("the value of '{key}' is neither a word, a number nor a list of them"))?;
            OnlySettings::try_parse_from([format!("--{key}={value}")]).map_err(|error| one_line(&error))?;
            values.insert(key, value);
        }
        Ok(Self { values, keys })
    }
}

/// A TOML value as it would stand on the command line.
fn as_word(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(word) => Some(word.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            items.iter().map(as_word).collect::<Option<Vec<String>>>().map(|words| words.join(","))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// The first line of a message of the command line parser.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

/// Lays the environment and a file under the flags of a command and of its subcommands. Of a flag given twice, the second
/// counts, so that scripts can append to what they wrap.
pub fn layered(command: Command, file: &File) -> Command {
    command.args_override_self(true).mut_args(|arg| layer_arg(arg, file)).mut_subcommands(|sub| layered(sub, file))
}

/// The environment variable of a setting.
pub fn variable(setting: &str) -> String {
    format!("FACEWISE_{}", setting.to_uppercase().replace('-', "_"))
}

fn layer_arg(arg: clap::Arg, file: &File) -> clap::Arg {
    let Some(long) = arg.get_long() else { return arg };
    let value = file.values.get(long).cloned();
    let variable = variable(long);
    let arg = arg.env(variable).hide_env_values(true);
    match value {
        Some(value) => arg.default_value(Resettable::Value(value.into())),
        None => arg,
    }
}

/// Parses a command line whose flags lie over the environment and a file.
///
/// # Errors
/// When a flag, a variable or the file is wrong; `clap` also answers `--help` and `--version` through its error.
pub fn parse<T: Parser>(arguments: impl IntoIterator<Item = OsString>, file: &File) -> Result<T, clap::Error> {
    let mut command = layered(T::command(), file);
    let matches = command.try_get_matches_from_mut(arguments)?;
    T::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::access::Scope;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings(file: &str, flags: &[&str]) -> Settings {
        let words = std::iter::once("facewise").chain(flags.iter().copied());
        parse::<Program>(words.map(OsString::from), &File::parse(file).unwrap()).unwrap().settings
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let Settings { http, inference, .. } = Settings::from_flags::<[&str; 0]>([]).unwrap();
        assert_eq!(http.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(http.max_body(), 20_000_000);
        assert_eq!(http.request_timeout(), Duration::from_secs(30));
        assert_eq!((inference.max_megapixels, inference.models), (50, PathBuf::from("models")));
        assert_eq!((inference.max_faces, inference.detector), (100, None));
        assert_eq!(inference.tasks, Tasks::default());
    }

    #[test]
    fn flags_lie_over_the_file_and_the_file_over_the_defaults() {
        let file = "max-body = '3MB'\nmax-batch = 8\ntasks = ['age', 'smile']\nlisten = '127.0.0.1:1'";
        let settings = settings(file, &["--listen", "127.0.0.1:2"]);
        assert_eq!(settings.http.listen.port(), 2);
        assert_eq!(settings.http.max_body(), 3_000_000);
        assert_eq!(settings.inference.max_batch, Some(8));
        assert_eq!(settings.inference.tasks.to_string(), "age,smile");
        assert_eq!(settings.inference.max_queue, 1024);
    }

    #[test]
    fn batches_suit_the_device_unless_they_are_given() {
        for (flags, faces, pictures, rows) in [
            (&["--workers=3"][..], 8, 2, 48),
            (&["--provider=cuda"], 32, 8, 128),
            (&["--provider=cuda", "--max-batch=5", "--max-detector-batch=3", "--workers=1"], 5, 3, 10),
            (&["--workers=3", "--max-queue=20"], 8, 2, 20),
        ] {
            let inference = settings("", flags).inference;
            assert_eq!((inference.faces_in_a_run(), inference.pictures_in_a_run()), (faces, pictures), "{flags:?}");
            assert_eq!(inference.rows_in_progress(), rows, "{flags:?}");
        }
    }

    #[test]
    fn keys_are_read_from_the_file_beside_the_settings() {
        let sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let text = format!(
            "workers = 3\n[[keys]]\nname = 'a'\nsha256 = '{sha256}'\nscopes = ['predict', 'admin']\nrate = '10/s'\n"
        );
        let file = File::parse(&text).unwrap();
        let [Key { name, sha256: hash, scopes, rate }] = file.keys.as_slice() else { panic!("one key: {file:?}") };
        assert_eq!(
            (name.as_str(), hash.to_string().as_str(), rate.unwrap().to_string().as_str()),
            ("a", sha256, "10/s")
        );
        assert_eq!(scopes, &[Scope::Predict, Scope::Admin]);
        assert_eq!(file.values["workers"], "3");
        let error = File::parse(&(text.clone() + &text.replace("workers = 3\n", ""))).unwrap_err();
        assert!(error.contains("two keys 'a'"), "{error}");
        let error = File::parse(&text.replace("'admin'", "'root'")).unwrap_err();
        assert!(error.contains("[[keys]]") && error.contains("root"), "{error}");
    }

    #[test]
    fn origins_are_written_as_browsers_do() {
        assert_eq!("*".parse(), Ok(Origins::Any));
        let two = Origins::These(["https://a.example", "http://localhost:3000"].map(HeaderValue::from_static).into());
        assert_eq!("https://a.example, http://localhost:3000".parse(), Ok(two));
        for wrong in ["", "a.example", "https://a.example/", "https://a.example/x", "https://a.example,*"] {
            assert!(wrong.parse::<Origins>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_setting_has_its_environment_variable() {
        let command = layered(Program::command(), &File::default());
        let variable = |long: &str| {
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long)).unwrap();
            arg.get_env().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(variable("listen"), "FACEWISE_LISTEN");
        assert_eq!(variable("max-megapixels-held"), "FACEWISE_MAX_MEGAPIXELS_HELD");
    }

    #[test]
    fn a_wrong_file_says_what_is_wrong() {
        for (file, message) in [
            ("liste = '127.0.0.1:1'", "there is no setting 'liste'"),
            ("listen = 'here'", "invalid value 'here' for '--listen"),
            ("workers = 0", "must be at least 1"),
            ("detector-size = 300", "a multiple of 32"),
            ("detector-size = 4096", "from 32 to 2048"),
            ("max-body = {}", "neither a word, a number nor a list"),
            ("tasks = 'beauty'", "unknown task 'beauty'"),
            ("listen = ", "expected"),
            ("cors-origins = 'example.com'", "no origin like https://example.com"),
            ("cors-origins = 'https://example.com/'", "no origin"),
            ("keys = 3", "[[keys]]: "),
            ("[[keys]]\nname = 'a'", "[[keys]]: missing field `sha256`"),
            ("[[keys]]\nname = 'a'\nsha256 = 'x'\nscopes = []", "'x' is no SHA-256"),
            ("[[keys]]\nname = 'a'\nkey = 'x'", "unknown field `key`"),
        ] {
            let error = File::parse(file).unwrap_err();
            assert!(error.contains(message), "{file}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let missing = File::read(Some(Path::new("no/such.toml"))).unwrap_err().to_string();
        assert!(missing.contains("no/such.toml"), "{missing}");
    }

    #[test]
    fn contradictions_are_refused() {
        for flags in [
            ["--body-timeout", "40s"],
            ["--max-megapixels-held", "49"],
            ["--max-queue", "99"],
            ["--device-id", "0"],
            ["--gpu-memory-limit", "4GB"],
            ["--arena-strategy", "next-power-of-two"],
            ["--cudnn-search", "default"],
            ["--metrics-listen", "127.0.0.1:8080"],
            ["--tls-cert", "cert.pem"],
            ["--tls-key", "key.pem"],
        ] {
            let error = Settings::from_flags(flags).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(flags[0]), "{error}");
        }
    }

    #[test]
    fn a_gpu_is_described_in_the_file_and_by_flags() {
        let file = "provider = 'tensorrt'\ngpu-memory-limit = '4GB'\ncudnn-search = 'exhaustive'\ncpu-arena = false";
        let settings = settings(file, &["--device-id", "1"]);
        settings.validate().unwrap();
        let device = &settings.inference.device;
        assert_eq!((device.provider, device.device_id), (Provider::TensorRt, Some(1)));
        assert_eq!(device.gpu_memory_limit.map(|limit| limit.as_u64()), Some(4_000_000_000));
        assert_eq!((device.cudnn_search, device.arena_strategy), (Some(CudnnSearch::Exhaustive), None));
        assert!(!device.cpu_arena);
        assert_eq!(settings.inference.worker_count(), 2, "sessions on a GPU do not grow with the CPUs");
    }
}
