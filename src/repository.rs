//! The models on disk, `<folder>/<name>/<version>/model.onnx` with `manifest.json` beside it, and those of them that
//! are being served.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use facewise_core::manifest::{Manifest, ManifestError, is_name};
use sha2::{Digest, Sha256};

use crate::config::Inference;
use crate::engine::{Backend, BackendError, Model, Options, Runtime, model};
use crate::telemetry::Metrics;

/// Name of the network's file in a version's folder.
pub const MODEL_FILE: &str = "model.onnx";
/// Name of the manifest beside it.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The model that is the default where several are served and none is named.
pub const DEFAULT_MODEL: &str = "face-attributes";

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
    /// No model has the name that was asked for as the default.
    #[error("there is no model '{name}' among {found}: name one of them with --model")]
    NoDefault {
        /// The name.
        name: String,
        /// What there is.
        found: String,
    },
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
        let newest = subfolders(&path)?
            .into_iter()
            .filter(|version| path.join(version).join(MODEL_FILE).is_file())
            .max_by(|a, b| compare_versions(a, b));
        if let Some(version) = newest {
            found.push(Found { folder: path.join(&version), name, version });
        }
    }
    if found.is_empty() {
        return Err(RepositoryError::Empty(folder.to_owned()));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
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
    /// Loads the network, once for each worker, and starts it.
    ///
    /// # Errors
    /// When a file is missing or broken, or network and manifest contradict each other.
    pub fn start(&self, runtime: &Runtime, settings: &Inference, metrics: &Metrics) -> Result<Model, RepositoryError> {
        let path = self.folder.join(MODEL_FILE);
        let sha256 = sha256(&path)?;
        let mut backends: Vec<Box<dyn Backend>> = Vec::new();
        for _ in 0..settings.worker_count() {
            let backend = runtime
                .open(&path, settings.intra_threads)
                .map_err(|source| RepositoryError::Network { path: path.clone(), source })?;
            backends.push(Box::new(backend));
        }
        let embedded = backends[0].signature().manifest.clone();
        let manifest = self.manifest(embedded.as_deref())?;
        let options =
            Options { tasks: settings.tasks.clone(), max_batch: settings.max_batch, max_queue: settings.max_queue };
        Model::start(manifest, sha256, backends, &options, metrics)
            .map_err(|source| RepositoryError::Start { path, source })
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

/// The models being served.
pub struct Repository {
    models: BTreeMap<String, Arc<Model>>,
    default: String,
}

impl Repository {
    /// Starts the newest version of every model in the folder.
    ///
    /// # Errors
    /// When the folder holds no model, one of them is broken, or the default is not among them.
    pub fn open(runtime: &Runtime, settings: &Inference, metrics: &Metrics) -> Result<Self, RepositoryError> {
        let found = scan(&settings.models)?;
        let default = choose_default(&found, settings.model.as_deref())?;
        let mut models = BTreeMap::new();
        for found in found {
            let model = found.start(runtime, settings, metrics)?;
            tracing::info!(model = model.name(), version = model.version(), tasks = %model.tasks(), "model ready");
            models.insert(found.name, Arc::new(model));
        }
        Ok(Self { models, default })
    }

    /// The model with that name, or the default one; `None` when there is none with that name.
    pub fn get(&self, name: Option<&str>) -> Option<&Arc<Model>> {
        self.models.get(name.unwrap_or(&self.default))
    }

    /// The models, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values()
    }

    /// Name of the model that answers when none is named.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// Whether every model can answer.
    pub fn is_ready(&self) -> bool {
        self.models.values().all(|model| model.is_alive())
    }
}

/// Starts the model that answers when none is named, and no other.
///
/// # Errors
/// When there is no such model, or it is broken.
pub fn start_default(runtime: &Runtime, settings: &Inference, metrics: &Metrics) -> Result<Model, RepositoryError> {
    let mut found = scan(&settings.models)?;
    let name = choose_default(&found, settings.model.as_deref())?;
    found.retain(|model| model.name == name);
    let only = found.pop().ok_or_else(|| RepositoryError::Empty(settings.models.clone()))?;
    only.start(runtime, settings, metrics)
}

fn choose_default(found: &[Found], named: Option<&str>) -> Result<String, RepositoryError> {
    let name = match (named, found) {
        (Some(name), _) => name,
        (None, [only]) => &only.name,
        (None, _) => DEFAULT_MODEL,
    };
    if found.iter().any(|model| model.name == name) {
        return Ok(name.to_owned());
    }
    let found: Vec<String> = found.iter().map(|model| format!("'{}'", model.name)).collect();
    Err(RepositoryError::NoDefault { name: name.to_owned(), found: found.join(", ") })
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
        let found = |names: &[&str]| -> Vec<Found> {
            names
                .iter()
                .map(|name| Found { name: (*name).into(), version: "1".into(), folder: PathBuf::new() })
                .collect()
        };
        assert_eq!(choose_default(&found(&["x"]), None).unwrap(), "x");
        assert_eq!(choose_default(&found(&["a", DEFAULT_MODEL]), None).unwrap(), DEFAULT_MODEL);
        assert_eq!(choose_default(&found(&["a", "b"]), Some("b")).unwrap(), "b");
        let message = choose_default(&found(&["a", "b"]), None).unwrap_err().to_string();
        assert!(message.contains("'face-attributes' among 'a', 'b'"), "{message}");
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
