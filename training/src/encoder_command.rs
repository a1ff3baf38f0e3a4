//! `facewise-training encoder …`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use facewise_training::encoder::config::Config;
use facewise_training::encoder::data::{Faces, Set};
use facewise_training::encoder::{model, train};
use facewise_training::lesson::{self, CONFIG, Options};
use facewise_training::model::Identity;

use crate::ComputeArgs;

/// What can be done with encoders.
#[derive(Subcommand)]
pub(crate) enum EncoderCommand {
    /// Train a network on many yes-or-no attributes of faces
    Train {
        #[arg(long, default_value = "training/configs/celeba-encoder.toml")]
        config: PathBuf,
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// Folder of the run: configuration, figures per epoch, checkpoint, weights, scores
        #[arg(long, default_value = "runs/encoder")]
        run: PathBuf,
        /// Continue the run from its checkpoint, by its own configuration
        #[arg(long, conflicts_with_all = ["config", "init"])]
        resume: bool,
        /// Start from these weights of the same network
        #[arg(long)]
        init: Option<PathBuf>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Write a complete run as a model of a repository, and compare ONNX Runtime with libtorch on held-out pictures
    Export {
        /// Folder of the run
        #[arg(long, default_value = "runs/encoder")]
        run: PathBuf,
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// The model repository
        #[arg(long, default_value = "models")]
        models: PathBuf,
        #[arg(long, default_value = "face-encoder")]
        name: String,
        #[arg(long, default_value = "1")]
        model_version: String,
        /// One sentence for people
        #[arg(long, default_value = "Yes-or-no attributes of one face, as CelebA has them")]
        description: String,
    },
}

/// Runs a command.
pub(crate) fn run(command: EncoderCommand) -> Result<()> {
    match command {
        EncoderCommand::Train { config, data, run, resume, init, compute } => {
            let config = Config::read(&if resume { run.join(CONFIG) } else { config })?;
            let (device, precision) = compute.prepare()?;
            let options = Options { run, resume, init, device, precision };
            lesson::check(&config, &options)?;
            let parts = Set::open(&data, &config)?.parts()?;
            let [train, validation, test] = [&parts.train, &parts.validation, &parts.test].map(Faces::len);
            eprintln!(
                "{} attributes of {train} faces, {validation} to choose the epoch by, {test} to measure on",
                config.data.attributes.len()
            );
            let scores = train::train(&config, parts, &options)?;
            println!("{}", serde_json::to_string_pretty(&scores)?);
        }
        EncoderCommand::Export { run, data, models, name, model_version, description } => {
            let config = Config::read(&run.join(CONFIG))?;
            let faces = Set::open(&data, &config)?.validation()?;
            let identity = Identity { name, version: model_version, description };
            let (path, parity) = model::write(&run, &models, identity, &faces.samples)?;
            println!("{}", path.display());
            println!(
                "parity over {} crops: libtorch and ONNX Runtime differ by at most {:.1e}, a row alone and in a batch by {:.1e}",
                parity.pictures, parity.max_abs_difference, parity.max_row_difference
            );
        }
    }
    Ok(())
}
