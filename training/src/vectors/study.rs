//! Repeats a training over seeds, folds, variants of the network and starting weights, and compares what comes out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::config::Config;
use super::rows::Rows;
use super::score::Score;
use super::split;
use super::train::{Manner, Scores, train};
use super::variant::Variant;
use crate::lesson::{CONFIG, Options, SCORES, WEIGHTS};

/// The study of a folder, complete.
pub const REPORT: &str = "study.json";

/// What is repeated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seeds 0, 1, … of weights, order and validation rows.
    pub seeds: u64,
    /// Folds, each of which is the test part once.
    pub folds: usize,
    /// Variants of the configured network; none is the network as it is configured, whatever it is.
    pub variants: Vec<Variant>,
    /// Folder with a complete run for each variant, under its name, whose weights are a second start beside random ones.
    pub pretrained: Option<PathBuf>,
}

/// What a training started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Random weights.
    Scratch,
    /// The weights of a run on other data.
    Pretrained,
}

impl Start {
    const fn name(self) -> &'static str {
        match self {
            Self::Scratch => "scratch",
            Self::Pretrained => "pretrained",
        }
    }
}

/// All trainings of one configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// What was learned, from what, and how: the configuration of the baseline.
    pub config: Config,
    /// Seeds of each cell.
    pub seeds: u64,
    /// Folds of each cell.
    pub folds: usize,
    /// Variants and starts.
    pub cells: Vec<Cell>,
}

/// All seeds and folds of one variant and start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The variant.
    pub variant: Variant,
    /// What it started from.
    pub start: Start,
    /// Means and standard deviations by figure, as in `test.accuracy`.
    pub figures: BTreeMap<String, Summary>,
    /// The trainings.
    pub runs: Vec<Run>,
}

/// One training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// The fold that it was tested on.
    pub fold: usize,
    /// What came out.
    pub scores: Scores,
}

/// A figure over all trainings of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the population: divided by `n`, not by `n − 1`.
    pub sd: f64,
    /// Trainings.
    pub n: usize,
}

impl Summary {
    /// Of some figures; nothing of none.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let n = figures.len();
        if n == 0 {
            return None;
        }
        let mean = figures.iter().sum::<f64>() / n as f64;
        let variance = figures.iter().map(|figure| (figure - mean).powi(2)).sum::<f64>() / n as f64;
        Some(Self { mean, sd: variance.sqrt(), n })
    }
}

/// Trains everything that the plan says, in folders below `options.run`, and leaves the [`Study`] there as [`REPORT`] and as Markdown. What is
/// already complete there is not trained again, and what broke off goes on.
///
/// # Errors
/// When the folder holds a study of another configuration, a training fails, or a file cannot be written.
pub fn cross_validate(config: &Config, plan: &Plan, rows: &Rows, options: &Options) -> Result<Study> {
    ensure!(plan.seeds >= 1 && plan.folds >= 2, "at least one seed and two folds are needed");
    begin(config, &options.run)?;
    let starts: Vec<Start> = match plan.pretrained {
        Some(_) => vec![Start::Scratch, Start::Pretrained],
        None => vec![Start::Scratch],
    };
    let variants: Vec<Option<Variant>> =
        if plan.variants.is_empty() { vec![None] } else { plan.variants.iter().copied().map(Some).collect() };
    let runs = variants.len() * starts.len() * plan.folds * plan.seeds as usize;
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}").expect("a valid template");
    let progress = ProgressBar::new(runs as u64).with_style(style).with_prefix(config.target.to_string());
    let mut cells = Vec::new();
    for start in starts {
        for variant in &variants {
            let of_variant = variant.map_or(Ok(config.clone()), |variant| variant.of(config))?;
            let variant = variant.unwrap_or(Variant::Baseline);
            let mut runs = Vec::new();
            for seed in 0..plan.seeds {
                for fold in 0..plan.folds {
                    progress.set_message(format!("{} {variant}", start.name()));
                    let config = Config { seed, ..of_variant.clone() };
                    let init = match (start, &plan.pretrained) {
                        (Start::Pretrained, Some(folder)) => Some(folder.join(variant.name()).join(WEIGHTS)),
                        _ => None,
                    };
                    let folder = format!("{}/{variant}/seed-{seed}-fold-{fold}", start.name());
                    let options = Options { run: options.run.join(folder), init, ..options.clone() };
                    let split = split::fold(rows, &config.split, plan.folds, fold, seed)?;
                    let scores = once(&config, rows, &split, &options)
                        .with_context(|| format!("{} {variant}, seed {seed}, fold {fold}", start.name()))?;
                    runs.push(Run { seed, fold, scores });
                    progress.inc(1);
                }
            }
            cells.push(Cell { variant, start, figures: summaries(&runs), runs });
        }
    }
    progress.finish_and_clear();
    let study = Study { config: config.clone(), seeds: plan.seeds, folds: plan.folds, cells };
    write(&options.run.join(REPORT), &(serde_json::to_string_pretty(&study)? + "\n"))?;
    write(&options.run.join("study.md"), &study.markdown())?;
    Ok(study)
}

/// Keeps the configuration of a study in its folder, where no other may be.
fn begin(config: &Config, folder: &Path) -> Result<()> {
    let (path, text) = (folder.join(CONFIG), toml::to_string_pretty(config)?);
    if path.exists() {
        let own = fs::read_to_string(&path)?;
        ensure!(
            own == text,
            "{} holds a study of another configuration or other data: give another --run",
            folder.display()
        );
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write(&path, &text)
}

/// One training in its folder, of which only the figures stay.
fn once(config: &Config, rows: &Rows, split: &split::Split, options: &Options) -> Result<Scores> {
    let complete = options.run.join(SCORES);
    if !complete.exists() {
        let checkpoint = options.run.join("checkpoint.safetensors");
        // A run that broke off behind its last epoch has nothing left to continue.
        if options.run.join(WEIGHTS).exists() {
            fs::remove_dir_all(&options.run)?;
        }
        let resume = checkpoint.exists();
        let init = if resume { None } else { options.init.clone() };
        train(config, rows, split, &Options { resume, init, ..options.clone() }, &Manner::Quiet)?;
        for file in [checkpoint, options.run.join(WEIGHTS)] {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    let text = fs::read_to_string(&complete).with_context(|| format!("cannot read {}", complete.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} has no figures", complete.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Figures of one part, by name.
fn figures(score: &Score) -> Vec<(&'static str, f64)> {
    let mut figures = vec![("loss", score.loss), ("accuracy", score.accuracy)];
    figures.extend(score.one_off.map(|share| ("one_off", share)));
    if let Some(mae) = score.mae {
        figures.extend([("mae_argmax", mae.argmax), ("mae_mean", mae.mean), ("mae_median", mae.median)]);
    }
    figures
}

fn summaries(runs: &[Run]) -> BTreeMap<String, Summary> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for Run { scores, .. } in runs {
        let parts = [("train", Some(scores.train)), ("validation", Some(scores.validation)), ("test", scores.test)];
        for (part, score) in parts {
            for (name, figure) in score.as_ref().map(figures).unwrap_or_default() {
                all.entry(format!("{part}.{name}")).or_default().push(figure);
            }
        }
    }
    all.into_iter().filter_map(|(name, figures)| Some((name, Summary::of(&figures)?))).collect()
}

impl Study {
    /// Reads a study from its file.
    ///
    /// # Errors
    /// When the file is missing or is no study.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a study that `cross-validate` wrote", path.display()))
    }

    /// The study as tables, one a part of the data, each figure as mean ± standard deviation.
    pub fn markdown(&self) -> String {
        let Self { config, seeds, folds, cells } = self;
        let rule = if config.split.by_subject {
            "nobody is on two sides where subjects are known"
        } else {
            "people may be on both sides of validation"
        };
        let mut text = format!("# {}: {}\n\n", config.name, config.target);
        if let Some(source) = &config.source {
            let _ = writeln!(text, "Data: {}, SHA-256 `{}`.", source.files.join(", "), source.sha256);
        }
        let _ = writeln!(
            text,
            "{seeds} seeds × {folds} folds; validation is a share of {} of the rest: {rule}.",
            config.split.validation
        );
        text.push_str("Mean ± standard deviation (population) over the runs of a row.\n");
        for part in ["test", "validation", "train"] {
            let names: Vec<&str> = COLUMNS
                .into_iter()
                .filter(|name| cells.iter().any(|cell| cell.figures.contains_key(&format!("{part}.{name}"))))
                .collect();
            let _ = writeln!(text, "\n## {part}\n\n| start | variant | n | {} |", names.join(" | "));
            let _ = writeln!(text, "|---|---|---|{}", "---|".repeat(names.len()));
            for Cell { variant, start, figures, runs } in cells {
                let figures: Vec<String> = names
                    .iter()
                    .map(|name| {
                        figures
                            .get(&format!("{part}.{name}"))
                            .map_or_else(|| "–".to_owned(), |figure| format!("{:.4} ± {:.4}", figure.mean, figure.sd))
                    })
                    .collect();
                let _ = writeln!(text, "| {} | {variant} | {} | {} |", start.name(), runs.len(), figures.join(" | "));
            }
        }
        text
    }
}

/// Figures in the order of tables.
const COLUMNS: [&str; 6] = ["loss", "accuracy", "one_off", "mae_argmax", "mae_mean", "mae_median"];

/// What a figure is best at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Best {
    Least,
    Most,
}

/// The figures that an ablation counts winners of.
const COUNTED: [(&str, Best); 4] = [
    ("validation.loss", Best::Least),
    ("validation.accuracy", Best::Most),
    ("test.loss", Best::Least),
    ("test.accuracy", Best::Most),
];

/// Which variant wins how often, over studies and starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ablation {
    /// Columns of the tables that were counted: what was learned, from which start.
    pub compared: Vec<String>,
    /// By figure, as in `test.loss`: the number of columns that each variant wins. Where two are exactly as good, both do.
    pub wins: BTreeMap<&'static str, BTreeMap<&'static str, usize>>,
    /// By figure and column, who wins.
    pub winners: BTreeMap<&'static str, BTreeMap<String, Vec<&'static str>>>,
}

/// Counts winners by their means.
///
/// # Errors
/// When a study lacks a variant that another one has, or has fewer than two.
pub fn ablation(studies: &[Study]) -> Result<Ablation> {
    let mut ablation = Ablation { compared: Vec::new(), wins: BTreeMap::new(), winners: BTreeMap::new() };
    let mut expected: Option<Vec<Variant>> = None;
    for study in studies {
        for start in [Start::Scratch, Start::Pretrained] {
            let cells: Vec<&Cell> = study.cells.iter().filter(|cell| cell.start == start).collect();
            if cells.is_empty() {
                continue;
            }
            let mut variants: Vec<Variant> = cells.iter().map(|cell| cell.variant).collect();
            variants.sort_unstable();
            ensure!(
                variants.len() >= 2,
                "{} from {} has one variant: there is nothing to compare",
                study.config.name,
                start.name()
            );
            let first = expected.get_or_insert_with(|| variants.clone());
            ensure!(
                *first == variants,
                "{} from {} has other variants than the first study",
                study.config.name,
                start.name()
            );
            let column = format!("{} ({}), {}", study.config.target, study.config.name, start.name());
            ensure!(!ablation.compared.contains(&column), "{column} is there twice");
            for (figure, best) in COUNTED {
                let means: Vec<(Variant, f64)> =
                    cells.iter().filter_map(|cell| Some((cell.variant, cell.figures.get(figure)?.mean))).collect();
                let winners = winners(&means, best);
                let counts = ablation.wins.entry(figure).or_default();
                for variant in &variants {
                    *counts.entry(variant.name()).or_default() += usize::from(winners.contains(variant));
                }
                let names = winners.into_iter().map(Variant::name).collect();
                ablation.winners.entry(figure).or_default().insert(column.clone(), names);
            }
            ablation.compared.push(column);
        }
    }
    Ok(ablation)
}

fn winners(means: &[(Variant, f64)], best: Best) -> Vec<Variant> {
    let better = |a: f64, b: f64| if best == Best::Least { a < b } else { a > b };
    means
        .iter()
        .filter(|(_, own)| !means.iter().any(|(_, other)| better(*other, *own)))
        .map(|(variant, _)| *variant)
        .collect()
}

impl Ablation {
    /// The counts and the winners as tables.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Ablation\n\nHow often each variant wins, by the mean over its runs, in {} comparisons.\n",
            self.compared.len()
        );
        let variants: Vec<&str> = Variant::ALL
            .into_iter()
            .map(Variant::name)
            .filter(|name| self.wins.values().any(|counts| counts.contains_key(name)))
            .collect();
        let _ = writeln!(text, "\n| figure | {} |\n|---|{}", variants.join(" | "), "---|".repeat(variants.len()));
        for (figure, _) in COUNTED {
            let Some(counts) = self.wins.get(figure) else { continue };
            let most = counts.values().max().copied().unwrap_or_default();
            let cells: Vec<String> = variants
                .iter()
                .map(|name| counts.get(name).copied().unwrap_or_default())
                .map(|count| if count == most { format!("**{count}**") } else { count.to_string() })
                .collect();
            let _ = writeln!(text, "| {figure} | {} |", cells.join(" | "));
        }
        let figures: Vec<&str> = COUNTED.iter().map(|(figure, _)| *figure).collect();
        let _ = writeln!(text, "\n| winner | {} |\n|---|{}", figures.join(" | "), "---|".repeat(figures.len()));
        for column in &self.compared {
            let cells: Vec<String> = figures
                .iter()
                .map(|figure| {
                    self.winners
                        .get(figure)
                        .and_then(|by| by.get(column))
                        .map_or_else(String::new, |names| names.join(", "))
                })
                .collect();
            let _ = writeln!(text, "| {column} | {} |", cells.join(" | "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn cell(variant: Variant, start: Start, accuracy: f64, loss: f64) -> Cell {
        let figure = |name: &str, mean: f64| (name.to_owned(), Summary { mean, sd: 0.1, n: 4 });
        let figures = BTreeMap::from([
            figure("validation.loss", loss),
            figure("validation.accuracy", accuracy),
            figure("test.loss", loss),
            figure("test.accuracy", accuracy),
        ]);
        Cell { variant, start, figures, runs: Vec::new() }
    }

    fn study(target: &str, cells: Vec<Cell>) -> Study {
        let config = Config { target: target.parse().unwrap(), ..Config::default_recipe().unwrap() };
        Study { config, seeds: 2, folds: 2, cells }
    }

    #[test]
    fn a_deviation_is_that_of_the_population() {
        let summary = Summary::of(&[1.0, 3.0]).unwrap();
        assert_eq!((summary.mean, summary.sd, summary.n), (2.0, 1.0, 2));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn winners_are_counted_over_studies_and_starts() {
        use Start::{Pretrained, Scratch};
        use Variant::{Baseline, NoIc};
        let ages = study("age", vec![cell(Baseline, Scratch, 0.5, 1.0), cell(NoIc, Scratch, 0.4, 0.9)]);
        let genders = study(
            "gender",
            vec![
                cell(Baseline, Scratch, 0.8, 0.5),
                cell(NoIc, Scratch, 0.7, 0.6),
                cell(Baseline, Pretrained, 0.9, 0.4),
                cell(NoIc, Pretrained, 0.9, 0.3),
            ],
        );
        let counted = ablation(&[ages.clone(), genders.clone()]).unwrap();
        assert_eq!(
            counted.compared,
            ["age (embeddings), scratch", "gender (embeddings), scratch", "gender (embeddings), pretrained"]
        );
        assert_eq!(counted.wins["test.loss"], BTreeMap::from([("baseline", 1), ("no-ic", 2)]));
        // The last comparison is a draw, which both win.
        assert_eq!(counted.wins["test.accuracy"], BTreeMap::from([("baseline", 3), ("no-ic", 1)]));
        let text = counted.markdown();
        assert!(
            text.contains("| figure | baseline | no-ic |\n|---|---|---|\n| validation.loss | 1 | **2** |"),
            "{text}"
        );
        assert!(
            text.contains("| gender (embeddings), pretrained | no-ic | baseline, no-ic | no-ic | baseline, no-ic |"),
            "{text}"
        );

        let error = ablation(&[ages.clone(), ages.clone()]).unwrap_err().to_string();
        assert!(error.contains("is there twice"), "{error}");
        let other = study("gender", vec![cell(Baseline, Scratch, 0.8, 0.5), cell(Variant::Neither, Scratch, 0.7, 0.6)]);
        let error = ablation(&[ages, other]).unwrap_err().to_string();
        assert!(error.contains("other variants than the first"), "{error}");
        let error = ablation(&[study("age", vec![cell(Baseline, Scratch, 0.5, 1.0)])]).unwrap_err().to_string();
        assert!(error.contains("nothing to compare"), "{error}");
    }

    #[test]
    fn a_study_is_written_as_tables() {
        let text = study("age", vec![cell(Variant::Baseline, Start::Scratch, 0.51234, 1.0)]).markdown();
        assert!(text.contains("2 seeds × 2 folds; validation is a share of 0.1 of the rest"), "{text}");
        assert!(text.contains("## test\n\n| start | variant | n | loss | accuracy |\n"), "{text}");
        assert!(text.contains("| scratch | baseline | 0 | 1.0000 ± 0.1000 | 0.5123 ± 0.1000 |"), "{text}");
    }
}
