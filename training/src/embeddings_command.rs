//! `facewise-training embeddings …`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use facewise_training::lesson::{CONFIG, Options};
use facewise_training::model::Identity;
use facewise_training::vectors::adience;
use facewise_training::vectors::config::Config;
use facewise_training::vectors::extract::{Encoder, Output, Selection};
use facewise_training::vectors::model;
use facewise_training::vectors::rows::Rows;
use facewise_training::vectors::search::{self, SearchConfig};
use facewise_training::vectors::source::Source;
use facewise_training::vectors::split::{Split, split};
use facewise_training::vectors::study::{self, Plan, Study};
use facewise_training::vectors::target::Target;
use facewise_training::vectors::train::{Manner, train};
use facewise_training::vectors::variant::Variant;

use crate::ComputeArgs;

/// What can be done with networks on vectors.
#[derive(Subcommand)]
pub(crate) enum EmbeddingsCommand {
    /// Train a network on embeddings and what is known of each
    Train {
        #[command(flatten)]
        source: SourceArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
        /// The network without some of its parts
        #[arg(long, value_enum)]
        variant: Option<Variant>,
        /// Folder of the run: configuration, figures per epoch, checkpoint, weights, scores
        #[arg(long, default_value = "runs/embeddings")]
        run: PathBuf,
        /// Continue the run from its checkpoint, by its own configuration
        #[arg(long, conflicts_with_all = ["config", "target", "seed", "epochs", "batch", "variant", "init"])]
        resume: bool,
        /// Start from these weights of the same network
        #[arg(long)]
        init: Option<PathBuf>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Write a complete run as a model of a repository, and compare ONNX Runtime with libtorch on held-out rows
    Export {
        #[command(flatten)]
        source: SourceArgs,
        /// Folder of the run
        #[arg(long, default_value = "runs/embeddings")]
        run: PathBuf,
        /// The model repository
        #[arg(long, default_value = "models")]
        models: PathBuf,
        /// Name of the model [default: resmlp-TARGET]
        #[arg(long)]
        name: Option<String>,
        #[arg(long, default_value = "1")]
        model_version: String,
        /// One sentence for people
        #[arg(long, default_value = "Attributes of a face of which there is an embedding")]
        description: String,
        /// Answer each embedding so many times with random dropout, and tell the mean and how much the answers differ
        #[arg(long, value_parser = clap::value_parser!(u32).range(2..=4096))]
        passes: Option<u32>,
    },
    /// Make embeddings of a labelled set: the pooled features of a network, or the answers of an encoder, with the labels beside them
    Extract {
        /// The set: a folder with manifest.csv and the pictures or images.zip
        #[arg(long)]
        data: PathBuf,
        /// Rows to take, as in split=test; all by default
        #[arg(long = "where")]
        filter: Option<String>,
        /// Configuration of the attribute network
        #[arg(long, default_value = "training/configs/default.toml")]
        config: PathBuf,
        /// Its weights
        #[arg(long, default_value = "training/weights/face-attributes-1.safetensors")]
        weights: PathBuf,
        /// Folder of an encoder's complete run, instead of an attribute network
        #[arg(long, conflicts_with_all = ["config", "weights"])]
        encoder: Option<PathBuf>,
        /// The logits of the encoder's attributes as they are, instead of features
        #[arg(long, requires = "encoder")]
        logits: bool,
        /// Cut faces as the centred squares of their pictures, not by their keypoints
        #[arg(long)]
        square: bool,
        /// Columns to take over beside the labels of tasks, with commas between, as in Attractive
        #[arg(long, value_delimiter = ',')]
        columns: Vec<String>,
        /// Where they go, as FILE.npy and FILE.csv
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Write Adience's fold files as labels of embeddings, which must be in the same order; the folds are those of `cross-validate`
    Adience {
        /// Folder with `fold_0_data.txt` to `fold_4_data.txt`
        #[arg(long)]
        folds: PathBuf,
        /// CSV to write: the pictures with age (the middle of its range), gender, fold and subject
        #[arg(long)]
        out: PathBuf,
    },
    /// Train over seeds and folds, as it is and in variants, and write means and standard deviations; a stopped study goes on
    CrossValidate {
        #[command(flatten)]
        source: SourceArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
        /// Folder of the study: study.json, study.md, and the curves of each training
        #[arg(long, default_value = "runs/study")]
        run: PathBuf,
        /// Seeds 0, 1, …, each with every fold
        #[arg(long, default_value_t = 5)]
        seeds: u64,
        /// Folds, each of which is tested on once
        #[arg(long, default_value_t = 5)]
        folds: usize,
        /// Variants, with commas between
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Variant::ALL)]
        variants: Vec<Variant>,
        /// Folder with a complete run for each variant, named after it, as `train --variant` makes them: every training is repeated from
        /// their weights
        #[arg(long)]
        pretrained: Option<PathBuf>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Look for hyper-parameters: random samples, the worse half of which ends early; several processes may share a folder
    Search {
        #[command(flatten)]
        source: SourceArgs,
        /// What is searched
        #[arg(long, default_value = "training/configs/resmlp-search.toml")]
        config: PathBuf,
        /// What to learn, instead of what the recipe says
        #[arg(long)]
        target: Option<Target>,
        /// Another number of samples; a greater one continues a search
        #[arg(long)]
        samples: Option<u32>,
        /// Folder of the search: study.sqlite, search.md, search.svg, and the recipe of the best trial in best.toml
        #[arg(long, default_value = "runs/search")]
        run: PathBuf,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Count which variant wins, over studies
    Ablation {
        /// The files study.json of complete studies
        #[arg(required = true)]
        studies: Vec<PathBuf>,
        /// Where the counts go, as FILE.json and FILE.md
        #[arg(long, default_value = "runs/ablation")]
        out: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct SourceArgs {
    /// File `.npy` of embeddings: float32 or float64, one row a face
    #[arg(long, requires = "labels", required_unless_present = "celeba")]
    embeddings: Option<PathBuf>,
    /// CSV with a line for each embedding: age, gender, smile, emotion or an attribute; where there are such columns, split, subject and fold
    #[arg(long, requires = "embeddings")]
    labels: Option<PathBuf>,
    // Not a doc comment, in which the name would need quotes.
    #[arg(
        long,
        help = "Folder of CelebA's annotations instead, the text files or annotations.zip: one attribute is learned from the others",
        conflicts_with_all = ["embeddings", "labels"]
    )]
    celeba: Option<PathBuf>,
}

impl SourceArgs {
    fn source(self) -> Result<Source> {
        let pair = self.embeddings.zip(self.labels).map(|(embeddings, labels)| Source::Embeddings(embeddings, labels));
        pair.or_else(|| self.celeba.map(Source::Celeba)).context("give --embeddings with --labels, or --celeba")
    }
}

#[derive(Args)]
pub(crate) struct RecipeArgs {
    /// The recipe [default: training/configs/embeddings.toml, which the program has with it]
    #[arg(long)]
    config: Option<PathBuf>,
    /// What to learn, instead of what the recipe says: age, age-groups, age-groups-by-centre, gender, smile, emotion, or an attribute
    #[arg(long)]
    target: Option<Target>,
    /// Another seed
    #[arg(long)]
    seed: Option<u64>,
    /// Another number of epochs
    #[arg(long)]
    epochs: Option<u32>,
    /// Another number of rows a step
    #[arg(long)]
    batch: Option<usize>,
}

impl RecipeArgs {
    fn config(self) -> Result<Config> {
        let mut config = self.config.map_or_else(Config::default_recipe, |path| Config::read(&path))?;
        ensure!(
            config.source.is_none(),
            "this is the configuration of a run: continue the run with --resume, or remove its [source]"
        );
        config.target = self.target.unwrap_or(config.target);
        config.seed = self.seed.unwrap_or(config.seed);
        config.epochs = self.epochs.unwrap_or(config.epochs);
        config.batch = self.batch.unwrap_or(config.batch);
        // The same checks as of a file.
        Config::parse(&toml::to_string_pretty(&config)?)
    }
}

/// Runs a command.
pub(crate) fn run(command: EmbeddingsCommand) -> Result<()> {
    match command {
        EmbeddingsCommand::Train { source, recipe, variant, run, resume, init, compute } => {
            let own = run.join(CONFIG);
            let config = if resume { Config::read(&own)? } else { recipe.config()? };
            let config = variant.map_or(Ok(config.clone()), |variant| variant.of(&config))?;
            let source = source.source()?;
            let config = source.fix(config, &own)?;
            let (rows, split) = load(&source, &config)?;
            let (device, precision) = compute.prepare()?;
            eprintln!(
                "{} rows to learn '{}' from, {} to choose the epoch by, {} to measure on; each has {} numbers, {} are without a label",
                split.train.len(),
                config.target,
                split.validation.len(),
                split.test.len(),
                rows.features,
                rows.unlabelled
            );
            let scores =
                train(&config, &rows, &split, &Options { run, resume, init, device, precision }, &Manner::Told)?;
            println!("{}", serde_json::to_string_pretty(&scores)?);
        }
        EmbeddingsCommand::Export { source, run, models, name, model_version, description, passes } => {
            let own = run.join(CONFIG);
            let source = source.source()?;
            let config = source.fix(Config::read(&own)?, &own)?;
            let (rows, split) = load(&source, &config)?;
            let name = name.unwrap_or_else(|| format!("resmlp-{}", config.target.head()));
            let identity = Identity { name, version: model_version, description };
            let (path, parity) = model::write(&run, &config, &models, identity, &rows, &split.validation, passes)?;
            println!("{}", path.display());
            println!(
                "parity over {} rows: libtorch and ONNX Runtime differ by at most {:.1e}, a row alone and in a batch by {:.1e}",
                parity.pictures, parity.max_abs_difference, parity.max_row_difference
            );
        }
        EmbeddingsCommand::Extract {
            data,
            filter,
            config,
            weights,
            encoder,
            logits,
            square,
            columns,
            out,
            compute,
        } => {
            let (device, precision) = compute.prepare()?;
            let output = if logits { Output::Logits } else { Output::Features };
            let encoder = if let Some(run) = encoder {
                Encoder::of_run(&run, output, device, precision)?
            } else {
                let config = facewise_training::config::Config::read(&config)?;
                Encoder::open(&config, &weights, device, precision)?
            };
            let (rows, features) = encoder.extract(&data, &Selection { filter, square, columns }, &out)?;
            println!("{rows} embeddings of {features} numbers: {0}.npy and {0}.csv", out.display());
        }
        EmbeddingsCommand::Adience { folds, out } => {
            let faces = adience::read(&folds)?;
            adience::write(&faces, &out).with_context(|| format!("cannot write {}", out.display()))?;
            println!("{}: {} faces in {} folds", out.display(), faces.len(), adience::FOLDS);
        }
        EmbeddingsCommand::CrossValidate { source, recipe, run, seeds, folds, variants, pretrained, compute } => {
            let source = source.source()?;
            let config = source.fix(recipe.config()?, &run)?;
            let rows = source.read(&config.target)?;
            let (device, precision) = compute.prepare()?;
            let options = Options { run, resume: false, init: None, device, precision };
            let study = study::cross_validate(&config, &Plan { seeds, folds, variants, pretrained }, &rows, &options)?;
            print!("{}", study.markdown());
        }
        EmbeddingsCommand::Search { source, config, target, samples, run, compute } => {
            let mut config = SearchConfig::read(&config)?;
            config.samples = samples.unwrap_or(config.samples);
            config.recipe.target = target.unwrap_or(config.recipe.target);
            let source = source.source()?;
            config.recipe = source.fix(config.recipe, &run)?;
            let rows = source.read(&config.recipe.target)?;
            let (device, precision) = compute.prepare()?;
            let options = Options { run, resume: false, init: None, device, precision };
            let trials = search::search(&config, &rows, &options, &|trial| {
                let loss = trial.loss().map_or_else(|| "diverged".to_owned(), |loss| format!("loss {loss:.4}"));
                eprintln!("trial {}: {loss} after {} epochs", trial.number, trial.epochs.len());
            })?;
            print!("{}", search::markdown(&config, &trials));
        }
        EmbeddingsCommand::Ablation { studies, out } => {
            let studies = studies.iter().map(|path| Study::read(path)).collect::<Result<Vec<_>>>()?;
            let ablation = study::ablation(&studies)?;
            write(&out.with_extension("json"), &(serde_json::to_string_pretty(&ablation)? + "\n"))?;
            write(&out.with_extension("md"), &ablation.markdown())?;
            print!("{}", ablation.markdown());
        }
    }
    Ok(())
}

fn load(source: &Source, config: &Config) -> Result<(Rows, Split)> {
    let rows = source.read(&config.target)?;
    let split = split(&rows, &config.split, config.seed)?;
    Ok((rows, split))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
