//! `facewise evaluate`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use facewise::compute::Compute;
use facewise::config::{Inference, Log};
use facewise::engine::Runtime;
use facewise::evaluate::{Crops, Evaluated, Means, Plan, evaluate};
use facewise::pipeline::Pipeline;
use facewise::repository::{Repository, Scope};
use facewise::telemetry::{self, Metrics};
use facewise_evaluation::comparison::compare;
use facewise_evaluation::groups::GroupedMetrics;
use facewise_evaluation::html;
use facewise_evaluation::metrics::{AgeMetrics, Interval, LabelMetrics};
use facewise_evaluation::report::Report;
use facewise_evaluation::requirement::Requirement;
use facewise_evaluation::{Dataset, Filter};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The set: a folder with manifest.csv and the pictures or an images.zip, or a zip of either
    #[arg(value_name = "DATASET")]
    dataset: PathBuf,
    /// Rows that count, as in "split=test,race!=Asian,age>=10"
    #[arg(long = "where", value_name = "FILTER", default_value = "")]
    filter: Filter,
    /// Where faces are taken from: the manifest's keypoints, what the detector finds as with detect=crop, or the centred
    /// square of each picture
    #[arg(long, value_name = "CROP", value_enum, default_value = "keypoints")]
    crop: Crop,
    /// Score only the first so many of the rows
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// Columns whose values divide the rows into groups, as in race,gender
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    group_by: Vec<String>,
    /// Write the report to this file as a page: one file, to be opened in a browser
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Show small pictures of the rows that were answered worst in the page
    #[arg(long, requires = "report")]
    thumbnails: bool,
    /// Write the report to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write what was answered to each row to this file, as CSV
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Compare with the report in this file, which --json wrote
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// End with exit code 3 unless this holds, as in age.mae<=5.5; may be given several times
    #[arg(long, value_name = "BOUND", action = clap::ArgAction::Append)]
    require: Vec<Requirement>,
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

/// A figure does not keep to a bound that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("required was {0}")]
pub(crate) struct Unmet(String);

/// Scores the set, prints a table, and writes the report where that was asked for.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let _export = telemetry::start_log(&args.log);
    args.inference.validate()?;
    let other = args.compare.as_deref().map(read_report).transpose()?;
    let dataset = Arc::new(Dataset::open(&args.dataset)?);
    let metrics = Arc::new(Metrics::new());
    let library = Runtime::load(args.inference.onnxruntime.as_deref())?.on(&args.inference.device)?;
    let compute = Arc::new(Compute::default());
    let models = Repository::open(&library, &args.inference, Scope::Default, &metrics, &compute)?.models();
    let pipeline = Pipeline::new(&args.inference, metrics, compute)?;
    let plan = Plan {
        filter: args.filter.clone(),
        limit: args.limit,
        group_by: args.group_by.clone(),
        thumbnails: args.thumbnails,
        crops: match args.crop {
            Crop::Keypoints => Crops::Keypoints,
            Crop::Detect => Crops::Detected,
            Crop::Square => Crops::Square,
        },
        parallel: args.inference.rows_in_progress(),
    };

    // Before the work: who cannot write should not wait for it.
    plan.rows(&dataset)?;
    let create = |path: &Path| {
        let options = File::options().create(true).truncate(true).read(true).write(true).open(path);
        options.with_context(|| format!("'{}' cannot be written", path.display()))
    };
    let predictions = args.predictions.as_deref().map(create).transpose()?;
    let (page, json) = (args.report.as_deref().map(create).transpose()?, args.json.as_deref().map(create).transpose()?);

    let bar = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {per_sec}, {eta} left")?);
    let runtime = tokio::runtime::Runtime::new().context("the async runtime cannot be started")?;
    let means = Means { pipeline: &pipeline, model: models.default_model(), detector: models.detector() };
    let Evaluated { report, thumbnails } =
        runtime.block_on(evaluate(&dataset, &plan, means, predictions, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        }))?;
    bar.finish_and_clear();

    print!("{}", table(&report)?);
    if let Some(other) = &other {
        print!("{}", comparison(&report, other)?);
    }
    if let Some(mut file) = json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        io::Write::write_all(&mut file, json.as_bytes()).context("the report cannot be written")?;
    }
    if let Some(mut file) = page {
        let page = html::render(&report, &thumbnails, other.as_ref());
        io::Write::write_all(&mut file, page.as_bytes()).context("the page cannot be written")?;
    }
    check(&args.require, &report)
}

fn read_report(path: &Path) -> anyhow::Result<Report> {
    let cannot = || format!("the report '{}' cannot be read", path.display());
    let text = fs::read_to_string(path).with_context(cannot)?;
    serde_json::from_str(&text).with_context(cannot)
}

/// Tells of every requirement whether it is met.
fn check(requirements: &[Requirement], report: &Report) -> anyhow::Result<()> {
    let mut unmet = Vec::new();
    for requirement in requirements {
        let (value, holds) = requirement.check(report)?;
        println!("require  {requirement}: {value:.4}, {}", if holds { "met" } else { "not met" });
        if !holds {
            unmet.push(format!("{requirement}, measured {value:.4}"));
        }
    }
    if unmet.is_empty() { Ok(()) } else { Err(Unmet(unmet.join("; ")).into()) }
}

/// The differences to another report for people.
fn comparison(report: &Report, other: &Report) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let (dataset, model) = (&other.dataset, &other.model);
    writeln!(text, "compared with {} rows of {} by {} {}", dataset.rows, dataset.name, model.name, model.version)?;
    writeln!(text, "{:<26} {:>26} {:>26} {:>30}", "", "this", "other", "difference")?;
    for difference in compare(report, other) {
        writeln!(
            text,
            "{:<26} {:>26} {:>26} {:>30}{}",
            difference.this.path(),
            with_interval(difference.this.value, difference.this.interval, false),
            with_interval(difference.other, difference.other_interval, false),
            with_interval(difference.difference, difference.interval, true),
            if difference.is_clear() { " *" } else { "" }
        )?;
    }
    writeln!(text, "* clear of chance: the 95 % interval, that of independent rows, is on one side of 0")?;
    Ok(text)
}

fn with_interval(value: f64, interval: Option<Interval>, signed: bool) -> String {
    let word = |number: f64| if signed { format!("{number:+.3}") } else { format!("{number:.3}") };
    let range = interval.map(|[low, high]| format!(" [{}, {}]", word(low), word(high)));
    format!("{}{}", word(value), range.unwrap_or_default())
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
    for (column, groups) in &report.groups {
        grouped(&mut text, column, groups)?;
    }
    for skipped in &dataset.skipped {
        writeln!(text, "skipped  {}: {}", skipped.path, skipped.reason)?;
    }
    Ok(text)
}

/// Of each group the figures that tell most.
fn grouped(text: &mut String, column: &str, groups: &GroupedMetrics) -> std::fmt::Result {
    let width = groups.values.keys().map(|value| value.chars().count()).max().unwrap_or_default().max(8);
    for (value, group) in &groups.values {
        write!(text, "{column} = {value:<width$}  n {:>6}", group.n)?;
        for figure in group.tasks.figures().iter().filter(|figure| tells_most(figure.name)) {
            write!(text, "   {} {}", figure.path(), with_interval(figure.value, figure.interval, false))?;
        }
        writeln!(text)?;
    }
    let gaps =
        groups.largest_gap.iter().filter(|(path, _)| path.split_once('.').is_some_and(|(_, name)| tells_most(name)));
    let gaps: Vec<String> = gaps.map(|(path, gap)| format!("{path} {gap:.3}")).collect();
    writeln!(text, "{column}: largest gap   {}", gaps.join("   "))
}

fn tells_most(figure: &str) -> bool {
    matches!(figure, "mae" | "accuracy")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
