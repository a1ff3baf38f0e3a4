//! The models on disk, `<folder>/<name>/<version>/model.onnx` with `manifest.json` beside it, and those of them that
//! are being served.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use facewise_core::manifest::{Kind, MANIFEST_FILE, MODEL_FILE, Manifest, ManifestError, is_name};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::compute::Compute;
use crate::config::Inference;
use crate::engine::{
    AttributeModel, Backend, BackendError, Detector, EmbeddingModel, Model, Network, OnnxBackend, Options, Runtime,
    model,
};
use crate::stamp::Stamp;
use crate::telemetry::Metrics;

/// The model that is the default where several are served and none is named.
pub const DEFAULT_MODEL: &str = "face-attributes";

/// The detector that is used where several are there and none is named.
pub const DEFAULT_DETECTOR: &str = "face-detector";
/// The word that stands for no detector.
pub const NO_DETECTOR: &str = "none";

/// Why models cannot be served. Each text is one sentence that names the file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The folder of models cannot be read.
    #[error("the models folder '{}' cannot be read ({source}): name another with --models", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no model in it.
    #[error("the models folder '{}' holds no model: put one at <name>/<version>/{MODEL_FILE}, or name another folder with --models", .0.display())]
    Empty(PathBuf),
    /// There are detectors only, or networks of embeddings.
    #[error("the models folder '{}' holds no model that describes the faces in pictures, only detectors or networks of embeddings: put one beside them", .0.display())]
    OnlyDetectors(PathBuf),
    /// No detector has the name that was asked for.
    #[error("there is no detector '{name}' among [{found}]: name one of them with --detector, or '{NO_DETECTOR}'")]
    NoDetector {
        /// The name.
        name: String,
        /// What there is.
        found: String,
    },
    /// No model has the name that was asked for as the default.
    #[error("there is no model '{name}' among {found}: name one of them with --model")]
    NoDefault {
        /// The name.
        name: String,
        /// What there is.
        found: String,
    },
    /// There is no model or version of this name in the folder.
    #[error("there is no model '{name}' in the folder '{}'", folder.display())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The model cannot be unloaded.
    #[error("'{0}' answers where a request names no model: load another with `default=true` first")]
    InUse(String),
    /// The model is not being served.
    #[error("there is no model '{0}' being served")]
    NotServed(String),
    /// A file that belongs to a model cannot be read.
    #[error("the file '{}' cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A manifest is broken.
    #[error("the manifest '{}' is wrong: {source}", path.display())]
    Manifest {
        /// The file that holds it.
        path: PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// There is a network and no manifest.
    #[error("the network '{}' has no manifest: it embeds none, and no {MANIFEST_FILE} lies beside it", .0.display())]
    NoManifest(PathBuf),
    /// The embedded manifest and the file beside it are not the same.
    #[error("the manifest '{}' differs from the one embedded in {MODEL_FILE} in {differences}: delete it or export the model again", path.display())]
    Differs {
        /// The file beside the network.
        path: PathBuf,
        /// Fields that differ.
        differences: String,
    },
    /// The manifest names another model than the folder.
    #[error("the manifest '{}' is of model '{found}', but its folder says '{expected}'", path.display())]
    Misplaced {
        /// The file that holds the manifest.
        path: PathBuf,
        /// Name and version in the manifest.
        found: String,
        /// Name and version of the folder.
        expected: String,
    },
    /// The network cannot be loaded.
    #[error("the network '{}' cannot be loaded: {source}", path.display())]
    Network {
        /// The ONNX file.
        path: PathBuf,
        /// What ONNX Runtime says.
        source: BackendError,
    },
    /// The network cannot be started.
    #[error("the network '{}' cannot be served: {source}", path.display())]
    Start {
        /// The ONNX file.
        path: PathBuf,
        /// Why.
        source: model::StartError,
    },
}

/// A model on disk: the newest version under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name of the model.
    pub name: String,
    /// Its newest version.
    pub version: String,
    /// The folder of that version.
    pub folder: PathBuf,
}

/// Looks through a folder of models. Of each model the newest version counts, the numerically highest; what is no
/// valid name, or has no network in it, is none of ours.
///
/// # Errors
/// When a folder cannot be read, or there is no model.
pub fn scan(folder: &Path) -> Result<Vec<Found>, RepositoryError> {
    let mut found = Vec::new();
    for name in subfolders(folder)? {
        let path = folder.join(&name);
        if let Some(version) = versions(&path)?.into_iter().max_by(|a, b| compare_versions(a, b)) {
            found.push(Found { folder: path.join(&version), name, version });
        }
    }
    if found.is_empty() {
        return Err(RepositoryError::Empty(folder.to_owned()));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The versions in the folder of a model, in no order.
fn versions(folder: &Path) -> Result<Vec<String>, RepositoryError> {
    let mut versions = subfolders(folder)?;
    versions.retain(|version| folder.join(version).join(MODEL_FILE).is_file());
    Ok(versions)
}

fn subfolders(folder: &Path) -> Result<Vec<String>, RepositoryError> {
    let unreadable = |source| RepositoryError::Unreadable { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && is_name(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Compares versions part by part, numbers as numbers: `2` < `10`, `1.9` < `1.10`, and a word is less than a number.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    fn parts(version: &str) -> impl Iterator<Item = (Option<u64>, &str)> {
        version.split(['.', '-', '_']).map(|part| (part.parse().ok(), part))
    }
    parts(a).cmp(parts(b))
}

impl Found {
    /// Loads the network, so that its manifest is known.
    ///
    /// # Errors
    /// When a file is missing or broken.
    fn open(self, runtime: &Runtime, settings: &Inference) -> Result<Opened, RepositoryError> {
        let path = self.folder.join(MODEL_FILE);
        let sha256 = sha256(&path)?;
        let backend = runtime
            .open(&path, settings.intra_threads)
            .map_err(|source| RepositoryError::Network { path: path.clone(), source })?;
        let manifest = self.manifest(backend.signature().manifest.as_deref())?;
        Ok(Opened { path, manifest, sha256, backend })
    }

    /// The embedded manifest, to which the one beside must be equal; the one beside where none is embedded.
    fn manifest(&self, embedded: Option<&str>) -> Result<Manifest, RepositoryError> {
        let (network, beside) = (self.folder.join(MODEL_FILE), self.folder.join(MANIFEST_FILE));
        let read = |path: &Path, text: &str| {
            Manifest::from_json(text).map_err(|source| RepositoryError::Manifest { path: path.to_owned(), source })
        };
        let text = match fs::read_to_string(&beside) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(RepositoryError::File { path: beside, source }),
        };
        let embedded = embedded.map(|text| read(&network, text)).transpose()?;
        let outside = text.map(|text| read(&beside, &text)).transpose()?;
        let (manifest, path) = match (embedded, outside) {
            (None, None) => return Err(RepositoryError::NoManifest(network)),
            (Some(manifest), None) => (manifest, network),
            (None, Some(manifest)) => (manifest, beside),
            (Some(manifest), Some(outside)) if manifest == outside => (manifest, network),
            (Some(manifest), Some(outside)) => {
                let differences = differing_fields(&manifest, &outside);
                return Err(RepositoryError::Differs { path: beside, differences });
            }
        };
        if manifest.name != self.name || manifest.version != self.version {
            return Err(RepositoryError::Misplaced {
                path,
                found: format!("{}/{}", manifest.name, manifest.version),
                expected: format!("{}/{}", self.name, self.version),
            });
        }
        Ok(manifest)
    }
}

/// A network on disk that has been loaded once.
struct Opened {
    path: PathBuf,
    manifest: Manifest,
    sha256: String,
    backend: OnnxBackend,
}

impl Opened {
    /// Loads the network for the other workers too, and puts it to work.
    fn start(self, settings: &Inference, metrics: &Metrics, compute: &Arc<Compute>) -> Result<Served, RepositoryError> {
        let Self { path, manifest, sha256, backend } = self;
        let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(backend)];
        while backends.len() < settings.worker_count() {
            let next = backends[0].renew().map_err(|source| RepositoryError::Network { path: path.clone(), source })?;
            backends.push(next);
        }
        let network = Network { manifest, sha256, backends };
        let options = Options {
            max_batch: settings.faces_in_a_run(),
            max_delay: settings.max_delay.into(),
            max_queue: settings.max_queue,
            threads: if settings.device.provider.is_gpu() { 0 } else { settings.intra_threads },
            compute: Arc::clone(compute),
        };
        let served = match network.manifest.kind {
            Kind::Attributes => {
                AttributeModel::start(network, &settings.tasks, options, metrics).map(Arc::new).map(Served::Attributes)
            }
            Kind::Detector => {
                let options = Options { max_batch: settings.pictures_in_a_run(), ..options };
                Detector::start(network, settings.detector_size, options, metrics).map(Arc::new).map(Served::Detector)
            }
            Kind::Embeddings => {
                EmbeddingModel::start(network, &settings.tasks, options, metrics).map(Arc::new).map(Served::Embeddings)
            }
        };
        served.map_err(|source| RepositoryError::Start { path, source })
    }
}

/// A version of a model on disk that has been tried out.
pub struct Inspected {
    /// Where it lies.
    pub found: Found,
    /// Whether it is the one that would be served.
    pub newest: bool,
    /// What it is, or why it cannot be served.
    pub state: Result<Sound, RepositoryError>,
}

/// A model that can be served.
pub struct Sound {
    /// What it says about itself.
    pub manifest: Manifest,
    /// SHA-256 of its file, in hexadecimal.
    pub sha256: String,
    /// Size of its file.
    pub bytes: u64,
}

/// Loads and runs every version of every model in the folder once, one after the other.
///
/// # Errors
/// When the folder cannot be read, or there is no model.
pub fn inspect(
    runtime: &Runtime,
    settings: &Inference,
    metrics: &Metrics,
    compute: &Arc<Compute>,
) -> Result<Vec<Inspected>, RepositoryError> {
    let settings = Inference { workers: Some(1), ..settings.clone() };
    let mut inspected = Vec::new();
    for Found { name, version: newest, .. } in scan(&settings.models)? {
        let model = settings.models.join(&name);
        let mut versions = versions(&model)?;
        versions.sort_by(|a, b| compare_versions(a, b));
        for version in versions {
            let (folder, newest) = (model.join(&version), version == newest);
            let found = Found { name: name.clone(), version, folder };
            let state = found.clone().try_out(runtime, &settings, metrics, compute);
            inspected.push(Inspected { found, newest, state });
        }
    }
    Ok(inspected)
}

impl Found {
    fn try_out(
        self,
        runtime: &Runtime,
        settings: &Inference,
        metrics: &Metrics,
        compute: &Arc<Compute>,
    ) -> Result<Sound, RepositoryError> {
        let path = self.folder.join(MODEL_FILE);
        let opened = self.open(runtime, settings)?;
        let (manifest, sha256) = (opened.manifest.clone(), opened.sha256.clone());
        opened.start(settings, metrics, compute)?;
        let bytes = fs::metadata(&path).map_err(|source| RepositoryError::File { path, source })?.len();
        Ok(Sound { manifest, sha256, bytes })
    }
}

/// Names of the top-level fields in which two manifests differ.
fn differing_fields(a: &Manifest, b: &Manifest) -> String {
    let fields = |manifest: &Manifest| match serde_json::to_value(manifest) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (a, b) = (fields(a), fields(b));
    let names: Vec<String> =
        a.iter().filter(|(name, value)| b.get(*name) != Some(value)).map(|(name, _)| format!("`{name}`")).collect();
    names.join(", ")
}

fn sha256(path: &Path) -> Result<String, RepositoryError> {
    let mut hasher = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hasher))
        .map_err(|source| RepositoryError::File { path: path.to_owned(), source })?;
    Ok(format!("{:x}", hasher.finalize()))
}

/// A model being served.
#[derive(Clone)]
pub enum Served {
    /// It describes faces.
    Attributes(Arc<AttributeModel>),
    /// It finds them.
    Detector(Arc<Detector>),
    /// It describes those of which there are embeddings.
    Embeddings(Arc<EmbeddingModel>),
}

impl Served {
    /// The network at work.
    pub fn model(&self) -> &Model {
        match self {
            Self::Attributes(attributes) => attributes.model(),
            Self::Detector(detector) => detector.model(),
            Self::Embeddings(embeddings) => embeddings.model(),
        }
    }
}

/// Which models of a folder are put to work at the start. Of the detectors, it is never more than the one that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every model that describes faces, in pictures or by embeddings.
    All,
    /// The one that answers when none is named.
    Default,
}

/// The models that are served at one moment. Who works with them keeps them, whatever is loaded meanwhile.
#[derive(Clone)]
pub struct Models {
    served: BTreeMap<String, Served>,
    default: Arc<AttributeModel>,
    detector: Option<Arc<Detector>>,
}

impl Models {
    /// The model with that name; `None` when there is none.
    pub fn get(&self, name: &str) -> Option<&Served> {
        self.served.get(name)
    }

    /// The model that describes faces where no other is named.
    pub const fn default_model(&self) -> &Arc<AttributeModel> {
        &self.default
    }

    /// The model that finds faces, where there is one.
    pub const fn detector(&self) -> Option<&Arc<Detector>> {
        self.detector.as_ref()
    }

    /// Whether the model with this name is the default one, or the detector in use.
    pub fn is_in_use(&self, name: &str) -> bool {
        self.default.model().name() == name || self.detector.as_ref().is_some_and(|used| used.model().name() == name)
    }

    /// The models, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Served> {
        self.served.values()
    }

    /// Whether every model can answer.
    pub fn is_ready(&self) -> bool {
        self.served.values().all(|served| served.model().is_alive())
    }

    /// Puts a model in the place of the one with its name, which may be in use.
    fn replace(&mut self, new: Served) {
        let in_use = self.is_in_use(new.model().name());
        if in_use {
            self.use_for_all(&new);
        }
        self.served.insert(new.model().name().to_owned(), new);
    }

    /// Makes a model the default one, or the detector in use.
    fn use_for_all(&mut self, model: &Served) {
        match model {
            Served::Attributes(attributes) => self.default = Arc::clone(attributes),
            Served::Detector(detector) => self.detector = Some(Arc::clone(detector)),
            // There is no default among them: who asks about embeddings knows whose they are.
            Served::Embeddings(_) => {}
        }
    }
}

/// The folder of models, and those of them that are served.
///
/// Models are loaded and warmed beside those that are served, and take their places in one step; requests in progress end
/// on the model that they began with. What cannot be loaded changes nothing.
pub struct Repository {
    runtime: Runtime,
    settings: Inference,
    metrics: Arc<Metrics>,
    compute: Arc<Compute>,
    current: ArcSwap<Models>,
    /// What went wrong the last time that a model was loaded, by name; who holds it is the only one that changes models.
    failures: Mutex<BTreeMap<String, String>>,
}

/// What lies in a folder of models at one moment: the newest version of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    models: Vec<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    name: String,
    version: String,
    /// Of the network and its manifest.
    files: [Stamp; 2],
}

impl Snapshot {
    /// Looks at a folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(folder: &Path) -> Result<Self, RepositoryError> {
        let found = match scan(folder) {
            Err(RepositoryError::Empty(_)) => Vec::new(),
            found => found?,
        };
        let seen = |Found { name, version, folder }| {
            let files = [MODEL_FILE, MANIFEST_FILE].map(|file| Stamp::of(&folder.join(file)));
            Seen { name, version, files }
        };
        Ok(Self { models: found.into_iter().map(seen).collect() })
    }

    fn has(&self, name: &str) -> bool {
        self.models.iter().any(|seen| seen.name == name)
    }
}

/// Which version of a model is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version<'a> {
    /// The numerically highest.
    Newest,
    /// This one.
    Exactly(&'a str),
}

impl Repository {
    /// Starts the newest version of each model in the folder that is in `scope`. Their runs keep to the bound `compute`.
    ///
    /// # Errors
    /// When the folder holds no model that describes faces, a model in it is broken, or the default or the detector that is
    /// asked for is not among them.
    pub fn open(
        runtime: &Runtime,
        settings: &Inference,
        scope: Scope,
        metrics: &Arc<Metrics>,
        compute: &Arc<Compute>,
    ) -> Result<Self, RepositoryError> {
        let found = scan(&settings.models)?;
        let opened: Vec<Opened> =
            found.into_iter().map(|found| found.open(runtime, settings)).collect::<Result<_, _>>()?;
        let names = |kind: Kind| -> Vec<&str> {
            let manifests = opened.iter().map(|opened| &opened.manifest);
            manifests.filter(|manifest| manifest.kind == kind).map(|manifest| manifest.name.as_str()).collect()
        };
        if names(Kind::Attributes).is_empty() {
            return Err(RepositoryError::OnlyDetectors(settings.models.clone()));
        }
        let default = choose_default(&names(Kind::Attributes), settings.model.as_deref())?;
        let detector = choose_detector(&names(Kind::Detector), settings.detector.as_deref())?;
        let in_scope = |manifest: &Manifest| match manifest.kind {
            Kind::Attributes => scope == Scope::All || manifest.name == default,
            Kind::Detector => detector.as_deref() == Some(manifest.name.as_str()),
            Kind::Embeddings => scope == Scope::All,
        };

        let mut served = BTreeMap::new();
        for opened in opened.into_iter().filter(|opened| in_scope(&opened.manifest)) {
            let model = opened.start(settings, metrics, compute)?;
            served.insert(model.model().name().to_owned(), model);
        }
        let Some(Served::Attributes(default)) = served.get(&default).cloned() else {
            return Err(RepositoryError::OnlyDetectors(settings.models.clone()));
        };
        let detector = served.values().find_map(|served| match served {
            Served::Detector(detector) => Some(Arc::clone(detector)),
            Served::Attributes(_) | Served::Embeddings(_) => None,
        });
        let repository = Self {
            runtime: runtime.clone(),
            settings: settings.clone(),
            metrics: Arc::clone(metrics),
            compute: Arc::clone(compute),
            current: ArcSwap::from_pointee(Models { served, default, detector }),
            failures: Mutex::default(),
        };
        repository.models().iter().for_each(|served| repository.announce(served.model()));
        Ok(repository)
    }

    /// The models that are served now.
    pub fn models(&self) -> Arc<Models> {
        self.current.load_full()
    }

    /// The newest version of each model in the folder, by name.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn found(&self) -> Result<Vec<Found>, RepositoryError> {
        match scan(&self.settings.models) {
            Err(RepositoryError::Empty(_)) => Ok(Vec::new()),
            found => found,
        }
    }

    /// The versions of a model in the folder, from the oldest to the newest.
    ///
    /// # Errors
    /// When the folder cannot be read or holds no such model.
    pub fn versions(&self, name: &str) -> Result<Vec<String>, RepositoryError> {
        let unknown = || RepositoryError::Unknown { name: name.to_owned(), folder: self.settings.models.clone() };
        // What is no name might be a path.
        if !is_name(name) || !self.settings.models.join(name).is_dir() {
            return Err(unknown());
        }
        let mut versions = versions(&self.settings.models.join(name))?;
        if versions.is_empty() {
            return Err(unknown());
        }
        versions.sort_by(|a, b| compare_versions(a, b));
        Ok(versions)
    }

    /// Loads a version of a model anew, warms it, and lets it take the place of the one that is served under the name, or of
    /// none; with `default`, it becomes the one that answers where none is named, or the detector in use. It takes seconds and
    /// blocks the thread.
    ///
    /// # Errors
    /// When there is no such model or version, or it is broken; the one that is served goes on then.
    pub fn load(&self, name: &str, version: Version<'_>, default: bool) -> Result<Served, RepositoryError> {
        let mut failures = self.failures.lock();
        let versions = self.versions(name)?;
        let version = match version {
            Version::Newest => versions.into_iter().next_back(),
            Version::Exactly(version) => versions.into_iter().find(|found| found == version),
        };
        let Some(version) = version else {
            return Err(RepositoryError::Unknown { name: name.to_owned(), folder: self.settings.models.join(name) });
        };
        let folder = self.settings.models.join(name).join(&version);
        let started = Found { name: name.to_owned(), version, folder }
            .open(&self.runtime, &self.settings)
            .and_then(|opened| opened.start(&self.settings, &self.metrics, &self.compute));
        let new = match started {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(model = name, %error, "a model cannot be loaded; what was served goes on");
                self.metrics.model_load_failures.with_label_values(&[name]).inc();
                failures.insert(name.to_owned(), error.to_string());
                return Err(error);
            }
        };
        failures.remove(name);
        let mut models = Models::clone(&self.models());
        if let Some(old) = models.get(name) {
            self.forget(old.model());
        }
        if default {
            models.use_for_all(&new);
        }
        models.replace(new.clone());
        self.announce(new.model());
        self.current.store(Arc::new(models));
        Ok(new)
    }

    /// Serves a model no longer; requests in progress are still answered.
    ///
    /// # Errors
    /// When it is not served, or in use where no model is named.
    pub fn unload(&self, name: &str) -> Result<(), RepositoryError> {
        let mut failures = self.failures.lock();
        let mut models = Models::clone(&self.models());
        if models.get(name).is_some() && models.is_in_use(name) {
            return Err(RepositoryError::InUse(name.to_owned()));
        }
        let Some(old) = models.served.remove(name) else {
            return Err(RepositoryError::NotServed(name.to_owned()));
        };
        self.forget(old.model());
        failures.remove(name);
        tracing::info!(model = name, "model unloaded");
        self.current.store(Arc::new(models));
        Ok(())
    }

    /// What went wrong the last time that this model was loaded, if it did.
    pub fn failure(&self, name: &str) -> Option<String> {
        // While a model is being loaded, the last word about the others is not worth the wait.
        self.failures.try_lock().and_then(|failures| failures.get(name).cloned())
    }

    /// Looks at the folder again: loads what is new or has another file than when it was looked at last, and unloads what has
    /// gone. Every failure is logged and kept as [`Self::failure`]; a broken file is tried again when it has changed.
    pub fn refresh(&self, seen: &mut Snapshot) {
        let now = match Snapshot::of(&self.settings.models) {
            Ok(now) => now,
            Err(error) => {
                tracing::error!(%error, "the models folder cannot be looked at");
                return;
            }
        };
        for model in now.models.iter().filter(|model| !seen.models.contains(model)) {
            // What went wrong is in the log and in the model's own description.
            let _ = self.load(&model.name, Version::Exactly(&model.version), false);
        }
        for Seen { name, .. } in &seen.models {
            if now.has(name) || self.models().get(name).is_none() {
                continue;
            }
            if let Err(error) = self.unload(name) {
                tracing::warn!(model = name, %error, "the folder of a model has gone, and it is served on");
            }
        }
        *seen = now;
    }

    /// Tells people and metrics about a model that is served from now on.
    fn announce(&self, model: &Model) {
        tracing::info!(
            model = model.name(),
            version = model.version(),
            kind = model.manifest().kind.name(),
            input_size = model.input_size(),
            "model ready"
        );
        self.metrics.model_info.with_label_values(&[model.name(), model.version(), model.sha256()]).set(1);
    }

    /// Takes a model that is not served any more out of the metrics.
    fn forget(&self, model: &Model) {
        // One that never was there is none either.
        let _ = self.metrics.model_info.remove_label_values(&[model.name(), model.version(), model.sha256()]);
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

fn choose_default(known: &[&str], named: Option<&str>) -> Result<String, RepositoryError> {
    let name = match (named, known) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => DEFAULT_MODEL,
    };
    if known.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(RepositoryError::NoDefault { name: name.to_owned(), found: quoted(known) })
}

fn choose_detector(known: &[&str], named: Option<&str>) -> Result<Option<String>, RepositoryError> {
    match named {
        Some(NO_DETECTOR) => Ok(None),
        Some(name) if known.contains(&name) => Ok(Some(name.to_owned())),
        Some(name) => Err(RepositoryError::NoDetector { name: name.to_owned(), found: quoted(known) }),
        None if known.contains(&DEFAULT_DETECTOR) => Ok(Some(DEFAULT_DETECTOR.to_owned())),
        None => Ok(match known {
            [only] => Some((*only).to_owned()),
            _ => None,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn the_numerically_highest_version_of_each_model_counts() {
        let root = folder_with(&[
            "b/9/model.onnx",
            "b/10/model.onnx",
            "b/11/README.md",
            "a/1.9/model.onnx",
            "a/1.10/model.onnx",
            "a/1.10-beta/model.onnx",
            "Not a name/1/model.onnx",
            "LICENSE",
        ]);
        let found: Vec<(String, String)> =
            scan(root.path()).unwrap().into_iter().map(|found| (found.name, found.version)).collect();
        assert_eq!(found, [("a".into(), "1.10-beta".into()), ("b".into(), "10".into())]);
    }

    #[test]
    fn versions_compare_as_numbers() {
        for (lower, higher) in [("2", "10"), ("1.9", "1.10"), ("1", "1.0"), ("beta", "1"), ("alpha", "beta")] {
            assert_eq!(compare_versions(lower, higher), Ordering::Less, "{lower} < {higher}");
        }
    }

    #[test]
    fn a_folder_without_models_is_an_error_that_names_it() {
        let root = folder_with(&["a/1/README.md"]);
        let message = scan(root.path()).unwrap_err().to_string();
        assert!(message.contains(&root.path().display().to_string()) && message.contains("--models"), "{message}");
        let message = scan(&root.path().join("nowhere")).unwrap_err().to_string();
        assert!(message.contains("nowhere"), "{message}");
    }

    #[test]
    fn the_default_is_the_named_one_or_the_only_one_or_the_usual_one() {
        assert_eq!(choose_default(&["x"], None).unwrap(), "x");
        assert_eq!(choose_default(&["a", DEFAULT_MODEL], None).unwrap(), DEFAULT_MODEL);
        assert_eq!(choose_default(&["a", "b"], Some("b")).unwrap(), "b");
        let message = choose_default(&["a", "b"], None).unwrap_err().to_string();
        assert!(message.contains("'face-attributes' among 'a', 'b'"), "{message}");
    }

    #[test]
    fn the_detector_is_the_named_one_or_the_usual_one_or_the_only_one_or_none() {
        let chosen = |known: &[&str], named| choose_detector(known, named).unwrap();
        assert_eq!(chosen(&["a", DEFAULT_DETECTOR], None).as_deref(), Some(DEFAULT_DETECTOR));
        assert_eq!(chosen(&["a"], None).as_deref(), Some("a"));
        assert_eq!(chosen(&["a", "b"], Some("b")).as_deref(), Some("b"));
        assert_eq!((chosen(&["a", "b"], None), chosen(&[], None), chosen(&["a"], Some("none"))), (None, None, None));
        let message = choose_detector(&["a"], Some("b")).unwrap_err().to_string();
        assert!(message.contains("no detector 'b' among ['a']") && message.contains("--detector"), "{message}");
    }

    const MANIFEST: &str = r#"{"schema": 1, "name": "m", "version": "1", "kind": "attributes",
        "input": {"name": "pixels", "size": 64, "colour": "rgb", "mean": [0, 0, 0], "sd": [1, 1, 1],
                  "template": {"right_eye": [0.3, 0.37], "left_eye": [0.7, 0.37], "mouth": [0.5, 0.77]}},
        "heads": [{"task": "age", "output": "age"}]}"#;

    #[test]
    fn manifests_inside_and_beside_must_say_the_same() {
        let root = tempfile::tempdir().unwrap();
        let found = Found { name: "m".into(), version: "1".into(), folder: root.path().to_owned() };
        let beside = root.path().join(MANIFEST_FILE);
        let message = |embedded: Option<&str>| found.manifest(embedded).unwrap_err().to_string();

        assert!(message(None).contains("no manifest"), "{}", message(None));
        assert!(found.manifest(Some(MANIFEST)).is_ok(), "the embedded one is enough");
        assert!(message(Some("{")).contains("model.onnx' is wrong"), "{}", message(Some("{")));

        fs::write(&beside, MANIFEST.replace(": ", ":")).unwrap();
        assert!(found.manifest(None).is_ok(), "the one beside is enough");
        assert!(found.manifest(Some(MANIFEST)).is_ok(), "spaces do not matter");

        fs::write(&beside, MANIFEST.replace("64", "96")).unwrap();
        assert!(message(Some(MANIFEST)).contains("in `input`"), "{}", message(Some(MANIFEST)));
        fs::write(&beside, "{}").unwrap();
        assert!(message(Some(MANIFEST)).contains("manifest.json' is wrong"), "{}", message(Some(MANIFEST)));
        fs::write(&beside, MANIFEST.replace(r#""version": "1""#, r#""version": "2""#)).unwrap();
        assert!(message(None).contains("'m/2', but its folder says 'm/1'"), "{}", message(None));
    }
}
