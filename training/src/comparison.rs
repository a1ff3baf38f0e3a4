//! Trains many runs that are told in one file, scores each on the same rows, and writes what came out as a table.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use facewise_core::task::Task;
use facewise_evaluation::metrics::TaskMetrics;
use serde::{Deserialize, Serialize};
use tch::Device;
use tch::nn::VarStore;

use crate::checkpoint;
use crate::config::{self, Config, DataConfig, Setting};
use crate::data::Source;
use crate::lesson::{self, Options};
use crate::network::{Network, Precision};
use crate::train::{self, TeacherFiles};
use crate::validate;

/// What was found of a run, in its folder.
const FOUND: &str = "comparison.json";

/// The table, beside the runs.
pub const TABLE: &str = "table.md";

/// What is compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Settings of all runs, before their own.
    #[serde(default)]
    settings: Vec<String>,
    /// The rows that nothing is learned from or chosen on.
    test: Vec<Test>,
    /// The trainings, in the order they are done in.
    run: Vec<Entry>,
}

/// Rows of a set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    set: String,
    #[serde(rename = "where")]
    filter: String,
    tasks: Vec<Task>,
}

/// A training.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Its folder, and its line in the table.
    name: String,
    /// The recipe, in the folder of the comparison.
    config: PathBuf,
    /// Tasks trained alone; all of the recipe without a word.
    #[serde(default)]
    tasks: Vec<Task>,
    /// Other values in the recipe, as [`Setting`] reads them.
    #[serde(default)]
    settings: Vec<String>,
    /// An earlier run whose network, without its heads, this one starts from.
    trunk_of: Option<String>,
    /// A network to learn from as the recipe's `[distillation]` says; paths from the folder of the comparison on.
    teacher: Option<TeacherFiles>,
}

/// What is known of a complete run.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    name: String,
    parameters: usize,
    size: u32,
    epochs: u32,
    /// Of training, on the machine it was done on.
    seconds: f64,
    validation: TaskMetrics,
    test: TaskMetrics,
    /// [`Score::age_exact`](validate::Score) of the test rows.
    age_exact: Option<f64>,
}

/// Where the pictures are, and where the runs go.
#[derive(Clone, Debug)]
pub struct Places {
    /// Folder with one folder a set.
    pub data: PathBuf,
    /// Packed parts to learn from, which are read faster.
    pub pack: Option<PathBuf>,
    /// Folder of the runs.
    pub out: PathBuf,
}

impl Places {
    fn source(&self) -> Source {
        self.pack.clone().map_or_else(|| Source::Sets(self.data.clone()), Source::Packs)
    }
}

/// Trains what is not complete yet, going on with what was stopped, and writes the table after each run; returns it. `only` names the runs to
/// train, all where it is empty; `settings` come after those of the file. Trainings compute where `compute` says, in its number format.
///
/// # Errors
/// When the comparison or a recipe cannot be read, two runs have one name, a run starts from one that is not complete or was begun with another
/// configuration, or a training fails.
pub fn compare(
    file: &Path,
    places: &Places,
    only: &[String],
    settings: &[String],
    compute: (Device, Precision),
) -> Result<String> {
    let (comparison, configs) = read(file, settings)?;
    let names: Vec<&str> = comparison.run.iter().map(|entry| entry.name.as_str()).collect();
    for name in only {
        ensure!(names.contains(&name.as_str()), "no run is called {name}; there are {}", names.join(", "));
    }
    fs::create_dir_all(&places.out).with_context(|| format!("cannot make {}", places.out.display()))?;
    for (entry, config) in comparison.run.iter().zip(&configs) {
        let wanted = only.is_empty() || only.contains(&entry.name);
        let folder = places.out.join(&entry.name);
        if wanted {
            lesson::ensure_same(&folder, config)?;
        }
        if wanted && !folder.join(FOUND).exists() {
            eprintln!("{}", entry.name);
            learn(entry, config, places, compute).with_context(|| format!("run {}", entry.name))?;
            let found = find(entry, config, &comparison.test, places, compute.0)?;
            fs::write(folder.join(FOUND), serde_json::to_string_pretty(&found)?)?;
        }
        fs::write(places.out.join(TABLE), table(&complete(&comparison, places)?))?;
    }
    Ok(table(&complete(&comparison, places)?))
}

/// A comparison, and the configuration of each of its runs.
fn read(file: &Path, settings: &[String]) -> Result<(Comparison, Vec<Config>)> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut comparison: Comparison = toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
    let recipes = file.parent().unwrap_or(Path::new("."));
    for teacher in comparison.run.iter_mut().filter_map(|entry| entry.teacher.as_mut()) {
        teacher.weights = recipes.join(&teacher.weights);
        teacher.config = teacher.config.as_ref().map(|config| recipes.join(config));
    }
    let mut configs = Vec::new();
    for (index, entry) in comparison.run.iter().enumerate() {
        let earlier = &comparison.run[..index];
        ensure!(earlier.iter().all(|other| other.name != entry.name), "two runs are called {}", entry.name);
        if let Some(trunk) = &entry.trunk_of {
            let known = earlier.iter().any(|other| other.name == *trunk);
            ensure!(known, "run {} starts from {trunk}, which is no earlier run", entry.name);
        }
        let settings = comparison.settings.iter().chain(&entry.settings).chain(settings);
        let settings: Vec<Setting> = settings.map(|text| text.parse()).collect::<Result<_>>()?;
        let of = || format!("run {}", entry.name);
        let config = Config::read_with(&recipes.join(&entry.config), &settings).with_context(of)?;
        configs.push(if entry.tasks.is_empty() { config } else { config.only(&entry.tasks).with_context(of)? });
    }
    Ok((comparison, configs))
}

fn learn(entry: &Entry, config: &Config, places: &Places, (device, precision): (Device, Precision)) -> Result<()> {
    let run = places.out.join(&entry.name);
    if run.join(lesson::WEIGHTS).exists() {
        return Ok(());
    }
    let resume = run.join(lesson::CHECKPOINT).exists();
    let init = match &entry.trunk_of {
        Some(earlier) if !resume => {
            let trunk = places.out.join(format!("{}.trunk.safetensors", entry.name));
            checkpoint::trunk(&places.out.join(earlier).join(lesson::WEIGHTS), &trunk)
                .with_context(|| format!("starts from the run {earlier}"))?;
            Some(trunk)
        }
        _ => None,
    };
    let options = Options { run, resume, init, device, precision };
    lesson::check(config, &options)?;
    let (mix, validation) = places.source().load(config)?;
    train::train(config, mix, &validation, entry.teacher.as_slice(), &options)?;
    options
        .init
        .map_or(Ok(()), |trunk| fs::remove_file(&trunk).with_context(|| format!("cannot remove {}", trunk.display())))
}

fn find(entry: &Entry, config: &Config, tests: &[Test], places: &Places, device: Device) -> Result<Found> {
    let folder = places.out.join(&entry.name);
    let graph = config.graph()?;
    let variables = VarStore::new(device);
    let network = Network::new(&variables.root(), &graph);
    checkpoint::load_weights(&folder.join(lesson::WEIGHTS), &variables)?;
    let answered = config::answered(&graph);
    let score = |source: Source, data: Vec<DataConfig>| {
        let config = Config { data, ..config.clone() };
        validate::score(&network, &source.validation(&config)?, config.size(), &config, device)
    };
    let test = |test: &Test| {
        let tasks: Vec<Task> = test.tasks.iter().copied().filter(|task| answered.contains(task)).collect();
        let (set, filter) = (test.set.clone(), test.filter.clone());
        (!tasks.is_empty()).then(|| DataConfig {
            set,
            filter: filter.clone(),
            validation: Some(filter),
            hold_out: None,
            tasks,
            repeat: 1.0,
        })
    };
    let found = score(Source::Sets(places.data.clone()), tests.iter().filter_map(test).collect())?;
    Ok(Found {
        name: entry.name.clone(),
        parameters: graph.parameters(),
        size: config.size(),
        epochs: config.epochs(),
        seconds: seconds(&folder.join(lesson::EPOCHS))?,
        validation: score(places.source(), config.data.clone())?.tasks,
        test: found.tasks,
        age_exact: found.age_exact,
    })
}

/// The last column of a run's curve.
fn seconds(curve: &Path) -> Result<f64> {
    let text = fs::read_to_string(curve).with_context(|| format!("cannot read {}", curve.display()))?;
    let cells = text.lines().skip(1).filter_map(|line| line.rsplit(',').next());
    Ok(cells.map(str::parse::<f64>).sum::<Result<f64, _>>()?)
}

/// What is complete, in the order of the comparison.
fn complete(comparison: &Comparison, places: &Places) -> Result<Vec<Found>> {
    let paths = comparison.run.iter().map(|entry| places.out.join(&entry.name).join(FOUND));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    };
    paths.filter(|path| path.exists()).map(read).collect()
}

/// Markdown; what a run does not answer is empty.
fn table(found: &[Found]) -> String {
    let mut table = "| run | parameters | px | epochs | minutes | gender | smile | emotion | age, right year | right one of 8 groups | mean absolute error | held out: gender | smile | emotion | age |\n".to_owned();
    table.push_str("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for run in found {
        let Found { name, parameters, size, epochs, seconds, .. } = run;
        let labels = |metrics: &TaskMetrics| {
            let tasks = [&metrics.gender, &metrics.smile, &metrics.emotion];
            tasks.map(|metrics| metrics.as_ref().map_or_else(String::new, |metrics| percent(metrics.accuracy)))
        };
        let ([gender, smile, emotion], held_out) = (labels(&run.test), labels(&run.validation));
        let age =
            |metrics: &TaskMetrics| metrics.age.as_ref().map_or_else(String::new, |age| format!("{:.2}", age.mae));
        let year = run.age_exact.map_or_else(String::new, percent);
        let group = run.test.age.as_ref().map_or_else(String::new, |age| percent(age.accuracy_8));
        let millions = *parameters as f64 / 1e6;
        let _ = writeln!(
            table,
            "| {name} | {millions:.1} M | {size} | {epochs} | {:.0} | {gender} | {smile} | {emotion} | {year} | {group} | {} | {} | {} |",
            seconds / 60.0,
            age(&run.test),
            held_out.join(" | "),
            age(&run.validation)
        );
    }
    table
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_comparison_can_be_trained() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/multitask.toml");
        let (comparison, configs) = read(&file, &["batch=32".to_owned()]).expect("valid");
        assert_eq!(comparison.run.len(), configs.len());
        for (entry, config) in comparison.run.iter().zip(&configs) {
            assert_eq!(config.batch, 32, "{}", entry.name);
            let answered = config::answered(&config.graph().expect("a network"));
            assert!(entry.tasks.is_empty() || answered == entry.tasks, "{}: {answered:?}", entry.name);
        }
    }

    #[test]
    fn names_are_told_apart_and_trunks_come_first() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("recipe.toml"), include_str!("../configs/resnet18.toml")).expect("a file");
        let file = folder.path().join("plan.toml");
        for (second, message) in [
            ("name = \"a\"", "two runs are called a"),
            ("name = \"b\", trunk_of = \"c\"", "run b starts from c, which is no earlier run"),
            ("name = \"b\", settings = [\"batch=1\"]", "run b"),
        ] {
            let runs =
                format!("{{ name = \"a\", config = \"recipe.toml\" }}, {{ config = \"recipe.toml\", {second} }}");
            std::fs::write(&file, format!("test = []\nrun = [{runs}]")).expect("a file");
            let error = read(&file, &[]).expect_err(second);
            assert!(error.to_string().contains(message), "{error:#}");
        }
    }
}
