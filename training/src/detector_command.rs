//! `facewise-training detector …`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use facewise_evaluation::detection::Face;
use facewise_training::detector::config::{Config, PhotographsConfig};
use facewise_training::detector::data::{self, Album, Trust};
use facewise_training::detector::onnx::Engine;
use facewise_training::detector::validate::{Exams, Figures};
use facewise_training::detector::{model, sheet, train};
use facewise_training::lesson;
use facewise_training::model::Identity;

use crate::ComputeArgs;

/// What can be done with the detector.
#[derive(Subcommand)]
pub(crate) enum DetectorCommand {
    /// Train a detector on composed scenes
    Train {
        #[arg(long, default_value = "training/configs/detector.toml")]
        config: PathBuf,
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// Folder of the run: configuration, figures per epoch, checkpoints, weights
        #[arg(long, default_value = "runs/detector")]
        run: PathBuf,
        /// Continue the run from its checkpoint
        #[arg(long)]
        resume: bool,
        /// Start from these weights of the same network or one with fewer blocks, as `export --weights` writes them
        #[arg(long, conflicts_with = "resume")]
        init: Option<PathBuf>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Compose scenes and write them with their labels drawn in, to be looked at
    Scenes {
        #[arg(long, default_value = "training/configs/detector.toml")]
        config: PathBuf,
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// PNG to write
        #[arg(long)]
        out: PathBuf,
        /// Scenes, six to a row
        #[arg(long, default_value_t = 36)]
        count: usize,
    },
    /// Write a complete run as a model of the repository, and compare ONNX Runtime with libtorch on held-out photographs
    Export {
        /// Folder of the run
        #[arg(long, default_value = "runs/detector")]
        run: PathBuf,
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// The model repository
        #[arg(long, default_value = "models")]
        models: PathBuf,
        #[arg(long, default_value = "face-detector")]
        name: String,
        #[arg(long, default_value = "1")]
        model_version: String,
        /// One sentence for people
        #[arg(long, default_value = "Faces in a photograph with eyes, nose and mouth")]
        description: String,
        /// Also write the weights, in 16-bit floats, for training on with `train --init`
        #[arg(long)]
        weights: Option<PathBuf>,
    },
    /// Measure a detector of the model repository on held-out photographs and mosaics of them
    Evaluate {
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// The set of photographs
        #[arg(long, default_value = "celeba_wild")]
        set: String,
        /// The rows to measure on
        #[arg(long = "where", default_value = "split=val")]
        filter: String,
        /// Corrections of the set's labels; may be given several times
        #[arg(long, default_value = "evaluation/corrections/celeba_wild-val.csv")]
        corrections: Vec<PathBuf>,
        /// Only faces whose eyes are labelled at least so many pixels apart; others count neither way
        #[arg(long, default_value_t = 0.0, conflicts_with = "record")]
        eyes_from: f32,
        /// Only faces whose eyes are labelled closer together than so many pixels
        #[arg(long, default_value_t = f32::INFINITY, conflicts_with = "record")]
        eyes_below: f32,
        /// Measure against the set's own labels
        #[arg(long, conflicts_with_all = ["corrections", "record"])]
        uncorrected: bool,
        /// The model repository
        #[arg(long, default_value = "models")]
        models: PathBuf,
        #[arg(long, default_value = "face-detector")]
        name: String,
        #[arg(long, default_value = "1")]
        model_version: String,
        /// Side of the input in pixels, a multiple of 32; that of the manifest by default
        #[arg(long)]
        size: Option<u32>,
        /// Write the figures into the model's manifest
        #[arg(long)]
        record: bool,
    },
}

/// Runs a command.
pub(crate) fn run(command: DetectorCommand) -> Result<()> {
    match command {
        DetectorCommand::Train { config, data, run, resume, init, compute } => {
            let config = Config::read(&config)?;
            let (device, precision) = compute.prepare()?;
            let options = lesson::Options { run, resume, init, device, precision };
            lesson::check(&config, &options)?;
            let (album, validation) = Album::load(&data, &config)?;
            eprintln!(
                "{} photographs and {} crops to compose scenes from, {} photographs held out",
                album.photographs.len(),
                album.crops.len(),
                validation.len()
            );
            let figures = train::train(&config, album, &validation, &options)?;
            println!("{}", serde_json::to_string_pretty(&figures)?);
        }
        DetectorCommand::Scenes { config, data, out, count } => {
            let config = Config::read(&config)?;
            let (album, _) = Album::load(&data, &config)?;
            let sheet = sheet::scenes(album, &config, count);
            if let Some(folder) = out.parent() {
                fs::create_dir_all(folder)?;
            }
            sheet.save(&out).with_context(|| format!("cannot write {}", out.display()))?;
        }
        DetectorCommand::Export { run, data, models, name, model_version, description, weights } => {
            let config = Config::read(&run.join(lesson::CONFIG))?;
            let PhotographsConfig { set, validation, certain, corrections, .. } = &config.photographs;
            let trust = Trust::From { least: *certain, placed: &data::corrections(corrections)? };
            let photographs = data::photographs(&data, set, validation, trust)?;
            let identity = Identity { name, version: model_version, description };
            let (path, parity) = model::write(&run, &models, identity, &photographs, weights.as_deref())?;
            println!("{}", path.display());
            println!(
                "parity over {} photographs: libtorch and ONNX Runtime differ by at most {:.1e} and find the same faces, \
                 a row alone and in a batch by {:.1e}",
                parity.pictures, parity.max_abs_difference, parity.max_row_difference
            );
        }
        DetectorCommand::Evaluate {
            data,
            set,
            filter,
            corrections,
            eyes_from,
            eyes_below,
            uncorrected,
            models,
            name,
            model_version,
            size,
            record,
        } => {
            let folder = models.join(name).join(model_version);
            let corrections = if uncorrected { None } else { Some(data::corrections(&corrections)?) };
            let photographs =
                data::photographs(&data, &set, &filter, corrections.as_ref().map_or(Trust::All, Trust::Mended))?;
            let eyes = |face: &Face| face.landmarks.right_eye.distance(face.landmarks.left_eye);
            let wanted = |face: &Face| (eyes_from..eyes_below).contains(&eyes(face));
            let photographs: Vec<_> = photographs.into_iter().map(|photograph| photograph.only(wanted)).collect();
            let own = Engine::open(&folder)?.manifest().input.size;
            let figures = model::evaluate(&folder, &Exams::new(&photographs, size.unwrap_or(own)))?;
            print_table(&set, &filter, &figures);
            if record {
                model::record(&folder, &set, &filter, &figures)?;
            }
        }
    }
    Ok(())
}

/// The table of the model card.
fn print_table(set: &str, filter: &str, figures: &Figures) {
    println!("| pictures | n | faces | AP at IoU 0.5 | precision | recall | keypoint error |");
    println!("|---|---|---|---|---|---|---|");
    for (kind, metrics) in [("photographs", &figures.photographs), ("mosaics 4×4", &figures.mosaics)] {
        println!(
            "| `{set}` {filter}, {kind} | {} | {} | {:.4} | {:.4} | {:.4} | {:.2} % |",
            metrics.pictures,
            metrics.faces,
            metrics.ap,
            metrics.precision,
            metrics.recall,
            100.0 * metrics.keypoint_error
        );
    }
}
