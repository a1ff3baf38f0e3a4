//! Looks for hyper-parameters: random samples, trained side by side by any number of processes, the worse half of which ends early
//! (ASHA, Li et al. 2020, arXiv:1810.05934, with trials that stop instead of pausing). What was found is in one `SQLite` file.

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::config::{Config, NetworkConfig, Schedule};
use super::rows::Rows;
use super::score::Score;
use super::split::split;
use super::train::{Manner, train};
use crate::lesson::{Diverged, Options, WEIGHTS};

/// The study in the folder of a search.
const DATABASE: &str = "study.sqlite";

/// How long a process waits for another that writes.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is searched, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchConfig {
    /// Name of the search.
    pub name: String,
    /// Seed of the samples.
    pub seed: u64,
    /// Number of samples.
    pub samples: u32,
    /// When trials end.
    pub halving: Halving,
    /// Where samples are drawn from.
    pub space: Space,
    /// What all trials share.
    pub recipe: Config,
}

/// When trials end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halving {
    /// Epochs of a trial that is never ended early.
    pub epochs: u32,
    /// Epochs that each trial has.
    pub grace: u32,
    /// Of the trials that come to a rung, one in so many goes on; the next rung is so many times as far.
    pub reduction: u32,
}

/// Ranges of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Space {
    /// Fewest and most blocks.
    pub blocks: [usize; 2],
    /// Fewest and most residual layers of a block.
    pub residuals: [usize; 2],
    /// Rows a step: one of these.
    pub batch: Vec<usize>,
    /// Learning rates, evenly by their logarithm.
    pub learning_rate: [f64; 2],
    /// Weight decays, evenly by their logarithm.
    pub weight_decay: [f64; 2],
    /// Factors of the learning rate an epoch, evenly by their logarithm.
    pub gamma: [f64; 2],
}

impl SearchConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When the file is missing, is not TOML of this shape, or a value is out of range.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// As for [`SearchConfig::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        let Self { samples, halving, space, recipe, .. } = &config;
        ensure!(*samples >= 1, "`samples` must be at least 1");
        ensure!(
            halving.grace >= 1 && halving.epochs >= halving.grace,
            "`halving.grace` is not in 1..={}",
            halving.epochs
        );
        ensure!(halving.reduction >= 2, "`halving.reduction` must be at least 2");
        ensure!(space.blocks[0] <= space.blocks[1], "`space.blocks` is no range");
        ensure!(space.residuals[0] <= space.residuals[1], "`space.residuals` is no range");
        ensure!(!space.batch.is_empty(), "`space.batch` is empty");
        for (name, [low, high]) in
            [("learning_rate", space.learning_rate), ("weight_decay", space.weight_decay), ("gamma", space.gamma)]
        {
            ensure!(low > 0.0 && low <= high && high.is_finite(), "`space.{name}` is no range of positive numbers");
        }
        // The same checks as of a recipe alone.
        Config::parse(&toml::to_string_pretty(recipe)?).context("`recipe`")?;
        ensure!(matches!(recipe.network, NetworkConfig::Resmlp(_)), "`recipe.network` is no ResMLP");
        Ok(config)
    }

    /// The recipe of a trial: it depends on the seed and its number alone.
    pub fn sample(&self, trial: u32) -> Config {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(u64::from(trial));
        let mut config = self.recipe.clone();
        let Space { blocks, residuals, batch, learning_rate, weight_decay, gamma } = &self.space;
        if let NetworkConfig::Resmlp(network) = &mut config.network {
            network.blocks = random.random_range(blocks[0]..=blocks[1]);
            network.residuals = random.random_range(residuals[0]..=residuals[1]);
        }
        config.batch = batch[random.random_range(0..batch.len())];
        let mut by_logarithm = |[low, high]: [f64; 2]| random.random_range(low.ln()..=high.ln()).exp().clamp(low, high);
        config.optimiser.learning_rate = by_logarithm(*learning_rate);
        config.optimiser.weight_decay = by_logarithm(*weight_decay);
        config.optimiser.schedule = Schedule::Exponential { gamma: by_logarithm(*gamma) };
        config.epochs = self.halving.epochs;
        config.patience = None;
        config
    }
}

impl Halving {
    /// Whether a trial ends after so many epochs with this loss, when others had `losses` after as many.
    fn ends(self, epochs: u32, loss: f64, losses: &[f64]) -> bool {
        let mut rung = self.grace;
        while rung < epochs {
            rung *= self.reduction;
        }
        if rung != epochs || losses.is_empty() {
            return false;
        }
        let mut sorted = losses.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        // The quantile that one in `reduction` stays below, linear between two losses.
        let place = (sorted.len() - 1) as f64 / f64::from(self.reduction);
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        loss > below + (above - below) * place.fract()
    }
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It had all its epochs.
    Complete,
    /// Others were better.
    Stopped,
    /// Its loss was not a number any more.
    Diverged,
}

impl State {
    const ALL: [Self; 3] = [Self::Complete, Self::Stopped, Self::Diverged];

    const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Stopped => "stopped",
            Self::Diverged => "diverged",
        }
    }
}

/// What became of a sample.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Its number, from 0.
    pub number: u32,
    /// How it ended; not at all where it still goes on.
    pub state: Option<State>,
    /// Validation loss and accuracy after each epoch.
    pub epochs: Vec<(f64, f64)>,
    /// Its recipe.
    pub config: Config,
}

impl Trial {
    /// The last validation loss, by which trials are compared; none of those that diverged.
    pub fn loss(&self) -> Option<f64> {
        self.epochs.last().map(|(loss, _)| *loss).filter(|_| self.state != Some(State::Diverged))
    }
}

/// Trains the trials that nobody else trains, one after the other, until all have ended or are in other hands; returns all trials.
///
/// Several processes may work in one folder at once. One that is killed leaves its trial to whoever comes next, who goes on with it.
///
/// # Errors
/// When the folder holds another search, a file cannot be read or written, or a trial fails for another reason than its loss.
pub fn search(config: &SearchConfig, rows: &Rows, options: &Options, told: &dyn Fn(&Trial)) -> Result<Vec<Trial>> {
    let study = Study::open(config, &options.run)?;
    let split = split(rows, &config.recipe.split, config.recipe.seed)?;
    for number in 0..config.samples {
        let folder = options.run.join("trials").join(number.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock =
            File::create(folder.join("lock")).with_context(|| format!("cannot write in {}", folder.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock a trial"),
        }
        if study.state(number)?.is_some() {
            continue;
        }
        let trial = config.sample(number);
        let run = folder.join("run");
        let resume = run.join("checkpoint.safetensors").exists();
        if !resume {
            study.forget(number)?;
        }
        let judge = |epoch: u32, score: &Score| study.judge(config, number, epoch, score);
        let options = Options { run, resume, init: None, device: options.device, precision: options.precision };
        // A run that is complete may lack its end, where a process was killed between the two.
        let trained = if options.run.join(WEIGHTS).exists() {
            Ok(())
        } else {
            train(&trial, rows, &split, &options, &Manner::Judged(&judge)).map(|_| ())
        };
        let state = match trained {
            Ok(()) if study.epochs(number)?.len() < trial.epochs as usize => State::Stopped,
            Ok(()) => State::Complete,
            Err(error) if error.is::<Diverged>() => State::Diverged,
            Err(error) => return Err(error.context(format!("trial {number}"))),
        };
        fs::remove_dir_all(&options.run).with_context(|| format!("cannot remove {}", options.run.display()))?;
        study.end(number, state)?;
        told(&study.trial(config, number)?);
    }
    let trials = study.trials(config)?;
    write(&options.run.join("search.md"), &markdown(config, &trials))?;
    write(&options.run.join("search.svg"), &picture(&trials))?;
    if let Some(best) = best(&trials) {
        // A recipe like any other, for whatever data.
        let recipe = Config { source: None, ..best.config.clone() };
        write(&options.run.join("best.toml"), &toml::to_string_pretty(&recipe)?)?;
    }
    Ok(trials)
}

/// The trial with the lowest last validation loss.
pub fn best(trials: &[Trial]) -> Option<&Trial> {
    trials
        .iter()
        .filter_map(|trial| Some((trial.loss()?, trial)))
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, trial)| trial)
}

/// What all processes of a search know.
struct Study {
    database: Connection,
}

impl Study {
    fn open(config: &SearchConfig, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path: PathBuf = folder.join(DATABASE);
        let database = Connection::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        database.busy_timeout(PATIENCE)?;
        // With SQLite's usual journal whoever comes second waits; changing it to WAL fails at once where somebody else is at it.
        database.execute_batch(
            "CREATE TABLE IF NOT EXISTS search (id INTEGER PRIMARY KEY CHECK (id = 0), config TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS ends (trial INTEGER PRIMARY KEY, state TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS epochs (
                 trial INTEGER NOT NULL, epoch INTEGER NOT NULL, loss REAL NOT NULL, accuracy REAL NOT NULL,
                 PRIMARY KEY (trial, epoch)
             ) WITHOUT ROWID;",
        )?;
        // More samples of the same search are its continuation: each depends on its number alone.
        let text = toml::to_string_pretty(&SearchConfig { samples: 0, ..config.clone() })?;
        database.execute("INSERT OR IGNORE INTO search VALUES (0, ?1)", [&text])?;
        let own: String = database.query_row("SELECT config FROM search", [], |row| row.get(0))?;
        ensure!(own == text, "{} holds another search, or one of other data: give another --run", folder.display());
        Ok(Self { database })
    }

    fn state(&self, trial: u32) -> Result<Option<State>> {
        let state: Option<String> =
            self.database.query_row("SELECT state FROM ends WHERE trial = ?1", [trial], |row| row.get(0)).optional()?;
        Ok(state.and_then(|name| State::ALL.into_iter().find(|state| state.name() == name)))
    }

    fn epochs(&self, trial: u32) -> Result<Vec<(f64, f64)>> {
        let mut rows = self.database.prepare("SELECT loss, accuracy FROM epochs WHERE trial = ?1 ORDER BY epoch")?;
        let epochs = rows.query_map([trial], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(epochs.collect::<rusqlite::Result<_>>()?)
    }

    /// Drops what a run told that has nothing to be continued from.
    fn forget(&self, trial: u32) -> Result<()> {
        self.database.execute("DELETE FROM epochs WHERE trial = ?1", [trial])?;
        Ok(())
    }

    fn end(&self, trial: u32, state: State) -> Result<()> {
        self.database.execute("INSERT OR REPLACE INTO ends VALUES (?1, ?2)", params![trial, state.name()])?;
        Ok(())
    }

    /// Keeps what an epoch, counted from 0, brought, and says whether the trial ends with it.
    fn judge(&self, config: &SearchConfig, trial: u32, epoch: u32, score: &Score) -> Result<bool> {
        let mut rows = self.database.prepare("SELECT loss FROM epochs WHERE epoch = ?1 AND trial != ?2")?;
        let losses = rows.query_map([epoch, trial], |row| row.get(0))?.collect::<rusqlite::Result<Vec<f64>>>()?;
        self.database.execute(
            "INSERT OR REPLACE INTO epochs VALUES (?1, ?2, ?3, ?4)",
            params![trial, epoch, score.loss, score.accuracy],
        )?;
        Ok(config.halving.ends(epoch + 1, score.loss, &losses))
    }

    fn trial(&self, config: &SearchConfig, number: u32) -> Result<Trial> {
        let (state, epochs) = (self.state(number)?, self.epochs(number)?);
        Ok(Trial { number, state, epochs, config: config.sample(number) })
    }

    fn trials(&self, config: &SearchConfig) -> Result<Vec<Trial>> {
        (0..config.samples).map(|number| self.trial(config, number)).collect()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// All trials as a table, the best first.
pub fn markdown(config: &SearchConfig, trials: &[Trial]) -> String {
    let mut sorted: Vec<&Trial> = trials.iter().collect();
    let key = |trial: &Trial| trial.loss().unwrap_or(f64::INFINITY);
    sorted.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.number.cmp(&b.number)));
    let ended = |state| trials.iter().filter(|trial| trial.state == Some(state)).count();
    let mut text = format!(
        "# {}: {}\n\n{} samples: {} complete, {} stopped early, {} diverged. Ordered by the last validation loss.\n\n",
        config.name,
        config.recipe.target,
        trials.len(),
        ended(State::Complete),
        ended(State::Stopped),
        ended(State::Diverged)
    );
    text.push_str("| trial | loss | accuracy | epochs | end | blocks | residuals | batch | rate | decay | gamma |\n");
    text.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
    for trial in sorted {
        let Config { network, optimiser, batch, .. } = &trial.config;
        let (NetworkConfig::Resmlp(network), Schedule::Exponential { gamma }) = (network, optimiser.schedule) else {
            continue;
        };
        let figure = |figure: Option<f64>| figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.4}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {batch} | {:.2e} | {:.2e} | {gamma:.2e} |",
            trial.number,
            figure(trial.loss()),
            figure(trial.epochs.last().map(|(_, accuracy)| *accuracy)),
            trial.epochs.len(),
            trial.state.map_or("running", State::name),
            network.blocks,
            network.residuals,
            optimiser.learning_rate,
            optimiser.weight_decay,
        );
    }
    text
}

/// The validation losses of all trials by epoch, the best trial thick.
pub fn picture(trials: &[Trial]) -> String {
    const SIZE: [f64; 2] = [720.0, 400.0];
    const MARGIN: f64 = 48.0;
    let losses: Vec<f64> = trials.iter().flat_map(|trial| &trial.epochs).map(|(loss, _)| *loss).collect();
    let best = best(trials).map(|trial| trial.number);
    let low = losses.iter().copied().fold(f64::INFINITY, f64::min);
    // A trial that explodes would flatten all others: nine in ten losses are in the picture.
    let mut sorted = losses;
    sorted.sort_unstable_by(f64::total_cmp);
    let high = sorted.get(sorted.len() * 9 / 10).copied().unwrap_or(1.0).max(low + 1e-6);
    let last = trials.iter().map(|trial| trial.epochs.len()).max().unwrap_or(1).max(2);
    let x = |epoch: usize| MARGIN + (SIZE[0] - 2.0 * MARGIN) * epoch as f64 / (last - 1) as f64;
    let y = |loss: f64| MARGIN + (SIZE[1] - 2.0 * MARGIN) * (1.0 - (loss.clamp(low, high) - low) / (high - low));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n",
        SIZE[0], SIZE[1]
    );
    svg.push_str("<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n");
    for loss in [low, high] {
        let _ = writeln!(svg, "<text x=\"4\" y=\"{:.1}\">{loss:.3}</text>", y(loss) + 4.0);
    }
    for epoch in 0..last {
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x(epoch) - 3.0, SIZE[1] - 20.0, epoch + 1);
    }
    for trial in trials {
        let points: Vec<String> = trial
            .epochs
            .iter()
            .enumerate()
            .map(|(epoch, (loss, _))| format!("{:.1},{:.1}", x(epoch), y(*loss)))
            .collect();
        let (colour, width) = if best == Some(trial.number) { ("#c2410c", 3) } else { ("#64748b", 1) };
        let _ = writeln!(
            svg,
            "<g stroke=\"{colour}\" fill=\"{colour}\"><title>trial {}</title><polyline fill=\"none\" stroke-width=\"{width}\" points=\"{}\"/>",
            trial.number,
            points.join(" ")
        );
        if let Some((end_x, end_y)) = points.last().and_then(|point| point.split_once(',')) {
            let _ = writeln!(svg, "<circle cx=\"{end_x}\" cy=\"{end_y}\" r=\"2.5\"/>");
        }
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Barrier;
    use std::thread;

    use super::*;

    const SEARCH: &str = include_str!("../../configs/resmlp-search.toml");

    #[test]
    fn samples_lie_in_their_ranges_and_are_the_same_each_time() {
        let config = SearchConfig::parse(SEARCH).unwrap();
        let mut depths = [0; 6];
        let mut rates = Vec::new();
        for number in 0..300 {
            let sample = config.sample(number);
            let NetworkConfig::Resmlp(network) = &sample.network else { panic!("a ResMLP") };
            depths[network.blocks] += 1;
            assert!(network.residuals <= 5 && [128, 256, 512].contains(&sample.batch));
            assert!((1e-6..=1e-1).contains(&sample.optimiser.weight_decay));
            rates.push(sample.optimiser.learning_rate);
            assert!(Config::parse(&toml::to_string_pretty(&sample).unwrap()).is_ok(), "a recipe like any other");
        }
        assert!(depths.iter().all(|count| *count > 25), "every depth: {depths:?}");
        // Evenly by the logarithm: half below 10^-3.5.
        let low = rates.iter().filter(|rate| **rate < 10f64.powf(-3.5)).count();
        assert!((120..180).contains(&low), "{low} of 300");
        assert_eq!(config.sample(7), config.sample(7));
        assert_ne!(config.sample(7), config.sample(8));
    }

    #[test]
    fn many_may_begin_a_search_at_once() {
        let config = SearchConfig::parse(SEARCH).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for search in 0..8 {
            let folder = folder.path().join(search.to_string());
            let together = Barrier::new(8);
            thread::scope(|scope| {
                for number in 0..8 {
                    let (folder, config, together) = (&folder, &config, &together);
                    scope.spawn(move || {
                        together.wait();
                        let study = Study::open(config, folder).unwrap();
                        study
                            .judge(
                                config,
                                number,
                                0,
                                &Score { n: 1, loss: 1.0, accuracy: 0.5, one_off: None, mae: None },
                            )
                            .unwrap();
                    });
                }
            });
            let study = Study::open(&config, &folder).unwrap();
            assert!((0..8).all(|number| study.epochs(number).unwrap() == [(1.0, 0.5)]));
        }
    }

    #[test]
    fn the_worse_half_ends_at_each_rung() {
        let halving = Halving { epochs: 10, grace: 1, reduction: 2 };
        assert!(!halving.ends(1, 9.0, &[]), "the first to come has nobody to be worse than");
        assert!(halving.ends(1, 0.8, &[0.5, 0.7, 0.9]));
        assert!(!halving.ends(1, 0.6, &[0.5, 0.7, 0.9]));
        assert!(halving.ends(8, 0.8, &[0.5, 0.7]) && halving.ends(4, 0.8, &[0.5]) && halving.ends(2, 0.8, &[0.5]));
        for epochs in [3, 5, 6, 7, 9, 10] {
            assert!(!halving.ends(epochs, 0.8, &[0.5]), "{epochs} is no rung");
        }
        let thirds = Halving { epochs: 30, grace: 2, reduction: 3 };
        assert!(thirds.ends(6, 0.4, &[0.1, 0.2, 0.3, 0.4]) && !thirds.ends(6, 0.19, &[0.1, 0.2, 0.3, 0.4]));
    }

    #[test]
    fn wrong_knobs_are_named() {
        for (from, to, message) in [
            ("grace = 1", "grace = 0", "`halving.grace`"),
            ("reduction = 2", "reduction = 1", "`halving.reduction`"),
            ("blocks = [0, 5]", "blocks = [5, 0]", "`space.blocks`"),
            ("gamma = [1e-6, 1.0]", "gamma = [0.0, 1.0]", "`space.gamma`"),
            (
                "kind = \"resmlp\"\nblocks = 1\nresiduals = 1\ndropout = 0.05\nadd_residual = true\nadd_ic = true",
                "kind = \"attribute-mlp\"",
                "no ResMLP",
            ),
            ("dropout = 0.05", "dropout = 2.0", "`network.dropout`"),
        ] {
            let text = SEARCH.replace(from, to);
            assert_ne!(text, SEARCH, "the case changes the file");
            let error = format!("{:#}", SearchConfig::parse(&text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
