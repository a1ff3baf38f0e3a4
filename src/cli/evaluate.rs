//! `facewise evaluate`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use facewise::compute::Compute;
use facewise::config::{Inference, Log};
use facewise::engine::Runtime;
use facewise::evaluate::{Crops, Means, Plan, evaluate};
use facewise::pipeline::Pipeline;
use facewise::repository::{Repository, Scope};
use facewise::telemetry::{self, Metrics};
use facewise_evaluation::metrics::{AgeMetrics, LabelMetrics};
use facewise_evaluation::report::Report;
use facewise_evaluation::{Dataset, Filter};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The set: a folder with manifest.csv and the pictures or an images.zip, or a zip of either
    #[arg(value_name = "DATASET")]
    dataset: PathBuf,
    /// Rows that count, as in split=test,race!=Asian
    #[arg(long = "where", value_name = "FILTER", default_value = "")]
    filter: Filter,
    /// Where faces are taken from: the manifest's keypoints, what the detector finds as with detect=crop, or the centred
    /// square of each picture
    #[arg(long, value_name = "CROP", value_enum, default_value = "keypoints")]
    crop: Crop,
    /// Score only the first so many of the rows
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    inference: Inference,
    #[command(flatten)]
    log: Log,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Crop {
    Keypoints,
    Detect,
    Square,
}

/// Scores the set, prints a table, and writes the report where that was asked for.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let _export = telemetry::start_log(&args.log);
    args.inference.validate()?;
    let dataset = Arc::new(Dataset::open(&args.dataset)?);
    let metrics = Arc::new(Metrics::new());
    let library = Runtime::load(args.inference.onnxruntime.as_deref())?.on(&args.inference.device)?;
    let compute = Arc::new(Compute::default());
    let models = Repository::open(&library, &args.inference, Scope::Default, &metrics, &compute)?.models();
    let pipeline = Pipeline::new(&args.inference, metrics, compute)?;
    let plan = Plan {
        filter: args.filter.clone(),
        limit: args.limit,
        crops: match args.crop {
            Crop::Keypoints => Crops::Keypoints,
            Crop::Detect => Crops::Detected,
            Crop::Square => Crops::Square,
        },
        // Two full batches: one is run while the next is read.
        parallel: (2 * args.inference.max_batch).min(args.inference.max_queue),
    };

    let bar = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {per_sec}, {eta} left")?);
    let runtime = tokio::runtime::Runtime::new().context("the async runtime cannot be started")?;
    let means = Means { pipeline: &pipeline, model: models.default_model(), detector: models.detector() };
    let report = runtime.block_on(evaluate(&dataset, &plan, means, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }))?;
    bar.finish_and_clear();

    print!("{}", table(&report)?);
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("the report '{}' cannot be written", path.display()))?;
    }
    Ok(())
}

/// The report for people.
fn table(report: &Report) -> Result<String, std::fmt::Error> {
    let Report { dataset, model, tasks, throughput, .. } = report;
    let mut text = String::new();
    let filter = dataset.filter.as_deref().map(|filter| format!(" where {filter}")).unwrap_or_default();
    writeln!(
        text,
        "{}{filter}: {} rows, {} skipped, {} version {}, {:.0} pictures/s",
        dataset.name,
        dataset.rows,
        dataset.skipped.len(),
        model.name,
        model.version,
        throughput.images_per_second
    )?;
    if let Some(AgeMetrics { n, mae, mean_error, cs5, accuracy_8, accuracy_8_one_off, interval_coverage, .. }) =
        &tasks.age
    {
        writeln!(
            text,
            "age      n {n:>6}   mae {mae:.2}   mean error {mean_error:+.2}   within 5 years {}   8 groups {}, one off {}   \
             in interval {}",
            percent(*cs5),
            percent(*accuracy_8),
            percent(*accuracy_8_one_off),
            percent(*interval_coverage)
        )?;
    }
    for (name, figures) in [("gender", &tasks.gender), ("smile", &tasks.smile), ("emotion", &tasks.emotion)] {
        if let Some(LabelMetrics { n, accuracy, balanced_accuracy, macro_f1, log_loss, ece, .. }) = figures {
            writeln!(
                text,
                "{name:<8} n {n:>6}   accuracy {}   balanced {}   macro F1 {macro_f1:.3}   log loss {log_loss:.3}   \
                 ece {ece:.3}",
                percent(*accuracy),
                percent(*balanced_accuracy)
            )?;
        }
    }
    for skipped in &dataset.skipped {
        writeln!(text, "skipped  {}: {}", skipped.path, skipped.reason)?;
    }
    Ok(text)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
