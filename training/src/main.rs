//! Command line of the training crate: pack, train, export, record, bench, and the same for the detector, encoders and networks on embeddings.

mod detector_command;
mod embeddings_command;
mod encoder_command;
mod prepare_command;

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use facewise_core::task::Task;
use facewise_evaluation::report::Report;
use facewise_training::architectures::residual::ResidualConfig;
use facewise_training::comparison::{self, Places};
use facewise_training::config::{Config, NetworkConfig, Setting, Stage};
use facewise_training::data::{self, Source};
use facewise_training::model::{self, Agreement, Form, Identity};
use facewise_training::network::Precision;
use facewise_training::train::{self, TeacherFiles};
use facewise_training::{bench, checkpoint, lesson, report};
use tch::Device;

use crate::detector_command::DetectorCommand;
use crate::embeddings_command::EmbeddingsCommand;
use crate::encoder_command::EncoderCommand;
use crate::prepare_command::PrepareCommand;

#[derive(Parser)]
#[command(version, about = "Trains the networks that facewise serves, and writes them as ONNX")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The face detector: train, look at its scenes, export, evaluate
    #[command(subcommand)]
    Detector(DetectorCommand),
    /// Networks on embeddings of faces, or on attributes in a table: train, export, cross-validate, compare variants
    #[command(subcommand)]
    Embeddings(EmbeddingsCommand),
    /// Networks on many yes-or-no attributes of a face, for the embeddings they make: train, export
    #[command(subcommand)]
    Encoder(EncoderCommand),
    /// Make a set as its authors publish it into a folder with manifest.csv and pictures
    #[command(subcommand)]
    Prepare(PrepareCommand),
    /// Train a network
    Train {
        /// Recipe; without one that of training/configs/resnet18.toml, or of the run that is continued
        #[arg(long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        source: SourceArgs,
        /// Folder of the run: configuration, figures per epoch, checkpoints, weights
        #[arg(long, default_value = "runs/default")]
        run: PathBuf,
        /// Continue the run from its checkpoint
        #[arg(long)]
        resume: bool,
        /// Start from these weights: of another run, as `export --weights` writes them, also of a network with fewer blocks or
        /// channels or other heads, or of torchvision (safetensors)
        #[arg(long, conflicts_with = "resume")]
        init: Option<PathBuf>,
        /// Folder of a run of whatever network and size, or weights of a network like this one, whose answers are learned beside the
        /// labels as `[distillation]` says; of several that answer a task the mean
        #[arg(long)]
        teacher: Vec<PathBuf>,
        /// Train these alone, of the tasks of the configuration, with the sets that teach them
        #[arg(long, value_delimiter = ',')]
        tasks: Vec<Task>,
        /// Another value in the configuration, as in `optimiser.learning_rate=1e-3`, or none, as in `distillation=`; may be given several times
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<Setting>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Train many runs that one file tells, score each on the same rows, and print the table; what is complete is not trained again
    Compare {
        /// The comparison, as in training/configs/multitask.toml
        #[arg(long)]
        runs: PathBuf,
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// Packed parts to learn from, which are read faster
        #[arg(long)]
        pack: Option<PathBuf>,
        /// Folder of the runs, and of the table
        #[arg(long)]
        out: PathBuf,
        /// Train these alone
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Another value in all recipes, as for `train`
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Write the weights of a run without their heads, to start with new ones by `train --init`
    Trunk {
        weights: PathBuf,
        /// Where they are written
        #[arg(long)]
        out: PathBuf,
    },
    /// Average the weights of several runs of one network
    Average {
        /// The weights
        #[arg(required = true)]
        weights: Vec<PathBuf>,
        /// Where their mean is written
        #[arg(long)]
        out: PathBuf,
    },
    /// Decode the sets of a configuration once, into compact binary parts
    Pack {
        #[arg(long)]
        config: PathBuf,
        /// Folder with one folder a set
        #[arg(long)]
        data: PathBuf,
        /// Folder for the parts
        #[arg(long)]
        out: PathBuf,
        /// Largest size of a part in MiB
        #[arg(long, default_value_t = 60)]
        part_mib: usize,
    },
    /// Write a complete run as a model of the repository, and compare ONNX Runtime with libtorch on held-out pictures
    Export {
        /// Folder of the run
        #[arg(long, default_value = "runs/default")]
        run: PathBuf,
        #[command(flatten)]
        source: SourceArgs,
        /// The model repository
        #[arg(long, default_value = "models")]
        models: PathBuf,
        #[arg(long, default_value = "face-attributes")]
        name: String,
        #[arg(long, default_value = "1")]
        model_version: String,
        /// One sentence for people
        #[arg(long, default_value = "Age, gender, smile and emotion of one face")]
        description: String,
        /// Also write the weights, in 16-bit floats, for training on with `train --init`
        #[arg(long)]
        weights: Option<PathBuf>,
        /// Leave the probabilities as sure as they were learned, instead of as held-out pictures allow
        #[arg(long)]
        uncalibrated: bool,
        /// Compute convolutions in 8-bit integers: a quarter of the size, nearly the same answers, faster on most processors
        #[arg(long)]
        int8: bool,
    },
    /// Write the figures of evaluation reports into a model's manifest
    Record {
        /// Folder of the model, as in models/face-attributes/1
        #[arg(long)]
        model: PathBuf,
        /// Reports that `facewise evaluate --json` wrote
        #[arg(required = true)]
        reports: Vec<PathBuf>,
    },
    /// Write a run's figures, curves and configuration as one page of HTML
    Report {
        /// Folder of the run, of whatever kind
        #[arg(long, default_value = "runs/default")]
        run: PathBuf,
        /// The page [default: report.html in the folder]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Measure pictures per second of training; prints one line of JSON
    Bench {
        /// Losses, augmentation and sets; the network is the one of 139 M multiply-adds, whatever is configured
        #[arg(long, default_value = "training/configs/default.toml")]
        config: PathBuf,
        /// Samples a step
        #[arg(long, default_value_t = 64)]
        batch: usize,
        /// Side of the input in pixels
        #[arg(long, default_value_t = 64)]
        size: u32,
        #[arg(long, default_value_t = 20)]
        steps: usize,
        /// Folder with packed parts: measure loading and augmentation too
        #[arg(long)]
        pack: Option<PathBuf>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// Folder with one folder a set
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder with packed parts
    #[arg(long)]
    pack: Option<PathBuf>,
    /// Folder with one set of your own: manifest.csv and pictures, instead of the sets of the recipe
    #[arg(long)]
    folder: Option<PathBuf>,
}

impl SourceArgs {
    /// Where the samples of a recipe come from, and the recipe for them.
    fn of(self, config: Config) -> Result<(Config, Source)> {
        match self {
            Self { folder: Some(folder), .. } => data::own(config, &folder),
            Self { data: Some(root), .. } => Ok((config, Source::Sets(root))),
            Self { pack, .. } => Ok((config, Source::Packs(pack.context("give --data, --pack or --folder")?))),
        }
    }
}

#[derive(Args)]
struct ComputeArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    device: DeviceName,
    /// Number format of convolutions; bf16 pays where the processor has AMX, and on GPUs
    #[arg(long, value_enum, default_value_t = PrecisionName::Fp32)]
    precision: PrecisionName,
    /// Threads of libtorch; all cores by default
    #[arg(long)]
    threads: Option<i32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionName {
    Fp32,
    Bf16,
}

impl ComputeArgs {
    /// Sets the threads, and tells device and precision.
    fn prepare(&self) -> Result<(Device, Precision)> {
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads);
        }
        let device = match self.device {
            DeviceName::Cpu => Device::Cpu,
            DeviceName::Cuda => {
                anyhow::ensure!(
                    tch::Cuda::is_available(),
                    "libtorch sees no GPU: run with a CUDA libtorch, as training/README.md says"
                );
                Device::Cuda(0)
            }
        };
        let precision = match self.precision {
            PrecisionName::Fp32 => Precision::Fp32,
            PrecisionName::Bf16 => Precision::Bf16,
        };
        Ok((device, precision))
    }
}

/// glibc hands every large tensor back to the system, which has to clear its pages again in the next step. It reads how to do
/// better only when a process starts, so this one starts itself anew, unless the variable is set already.
fn keep_memory() -> Result<()> {
    const VARIABLE: &str = "GLIBC_TUNABLES";
    const TUNABLES: &str =
        "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1";
    if env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let program = env::current_exe().context("cannot find this program's file")?;
    Err(process::Command::new(program).args(env::args_os().skip(1)).env(VARIABLE, TUNABLES).exec())
        .context("cannot start anew")
}

fn main() -> Result<()> {
    keep_memory()?;
    match Cli::parse().command {
        Command::Detector(command) => detector_command::run(command)?,
        Command::Embeddings(command) => embeddings_command::run(command)?,
        Command::Encoder(command) => encoder_command::run(command)?,
        Command::Prepare(command) => prepare_command::run(command)?,
        Command::Train { config, source, run, resume, init, teacher, tasks, settings, compute } => {
            let config = match config {
                Some(path) => Config::read_with(&path, &settings)?,
                None if resume => Config::read_with(&run.join(lesson::CONFIG), &settings)?,
                None => Config::parse_with(include_str!("../configs/resnet18.toml"), &settings)?,
            };
            let (config, source) = source.of(config)?;
            let config = if tasks.is_empty() { config } else { config.only(&tasks)? };
            let (device, precision) = compute.prepare()?;
            let options = lesson::Options { run, resume, init, device, precision };
            lesson::check(&config, &options)?;
            let (mix, validation) = source.load(&config)?;
            eprintln!("{} samples an epoch, {} held out", mix.epoch_len(), validation.len());
            let teachers: Vec<TeacherFiles> = teacher.iter().map(|path| TeacherFiles::at(path)).collect();
            let figures = train::train(&config, mix, &validation, &teachers, &options)?;
            println!("{}", serde_json::to_string_pretty(&figures)?);
        }
        Command::Compare { runs, data, pack, out, only, settings, compute } => {
            let compute = compute.prepare()?;
            print!("{}", comparison::compare(&runs, &Places { data, pack, out }, &only, &settings, compute)?);
        }
        Command::Trunk { weights, out } => checkpoint::trunk(&weights, &out)?,
        Command::Average { weights, out } => checkpoint::average(&weights, &out)?,
        Command::Pack { config, data, out, part_mib } => {
            let config = Config::read(&config)?;
            data::pack(&config, &data, &out, part_mib << 20, |name, samples, parts| {
                println!("{name}: {samples} samples in {parts} parts");
            })?;
        }
        Command::Export { run, source, models, name, model_version, description, weights, uncalibrated, int8 } => {
            let config = Config::read(&run.join(lesson::CONFIG))?;
            let (config, source) = source.of(config)?;
            let samples = source.validation(&config)?;
            let identity = Identity { name, version: model_version, description };
            let form = Form { weights: weights.as_deref(), uncalibrated, int8 };
            let written = model::write(&run, &models, identity, &samples, &form)?;
            println!("{}", written.path.display());
            for (task, temperature) in &written.temperatures {
                println!("{task}: logits divided by {temperature:.3}");
            }
            let parity = written.parity;
            println!(
                "parity over {} crops: libtorch and ONNX Runtime differ by at most {:.1e}, a row alone and in a batch by {:.1e}",
                parity.pictures, parity.max_abs_difference, parity.max_row_difference
            );
            if let Some(Agreement { pictures, years, labels }) = written.agreement {
                println!("in integers, over {pictures} crops:");
                if let Some(years) = years {
                    println!("  age: {years:.2} years from what it is in floats");
                }
                for (task, share) in labels {
                    println!("  {task}: the same in {:.1} %", 100.0 * share);
                }
            }
        }
        Command::Record { model, reports } => {
            let reports = reports
                .iter()
                .map(|path| {
                    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                    serde_json::from_str::<Report>(&text).with_context(|| format!("{} is not a report", path.display()))
                })
                .collect::<Result<Vec<_>>>()?;
            model::record(&model, &reports)?;
        }
        Command::Report { run, out } => {
            let out = out.unwrap_or_else(|| run.join("report.html"));
            fs::write(&out, report::render(&run)?).with_context(|| format!("cannot write {}", out.display()))?;
            println!("{}", out.display());
        }
        Command::Bench { config, batch, size, steps, pack, compute } => {
            let stages = vec![Stage { size, epochs: 1 }];
            let config = Config {
                batch,
                stages,
                network: NetworkConfig::Residual(ResidualConfig::default()),
                ..Config::read(&config)?
            };
            let (device, precision) = compute.prepare()?;
            let mut figures = serde_json::json!({
                "pictures_per_second": bench::random(&config, steps, device, precision)?, "batch": batch, "size": size,
            });
            if let Some(folder) = pack {
                let (mix, _) = Source::Packs(folder).load(&config)?;
                figures["packed_pictures_per_second"] = bench::packed(&config, mix, steps, device, precision)?.into();
            }
            println!("{figures}");
        }
    }
    Ok(())
}
