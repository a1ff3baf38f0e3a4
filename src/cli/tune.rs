//! `facewise tune`.

use std::env;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use facewise::config::{self, Inference, Log};
use facewise::engine::Runtime;
use facewise::telemetry;
use facewise::tune::{self, Choice, Layout, NEAR, Plan, Subject};
use indicatif::{ProgressBar, ProgressStyle};

/// How far rounds are apart on a machine with nothing else to do: a few percent.
const CALM: f64 = 0.1;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print what was measured, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Seconds for each network with each of the settings, in each round
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "0.5")]
    seconds: Duration,
    /// Rounds; each measures all settings once, and medians count
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroUsize,
    /// Most faces, or pictures, in one run that are tried
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    batches: Vec<NonZeroUsize>,
    /// CPUs that networks may take [default: the CPUs available]
    #[arg(long, value_name = "N")]
    cpus: Option<NonZeroUsize>,
    #[command(flatten)]
    inference: Inference,
    #[command(flatten)]
    log: Log,
}

fn seconds(word: &str) -> Result<Duration, String> {
    match word.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 60.0 => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) => Err("must be more than 0 and at most 60".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Measures, prints the tables with what is chosen from them, and writes that into the file.
pub(crate) fn run(args: &Args, file: Option<&Path>) -> anyhow::Result<()> {
    let _export = telemetry::start_log(&args.log);
    args.inference.validate()?;
    let library = Runtime::load(args.inference.onnxruntime.as_deref())?.on(&args.inference.device)?;
    let mut batches = args.batches.clone();
    batches.sort_unstable();
    batches.dedup();
    let available = NonZeroUsize::new(config::available_cpus()).unwrap_or(NonZeroUsize::MIN);
    let plan = Plan { cpus: args.cpus.unwrap_or(available), batches, time: args.seconds, rounds: args.rounds };

    let bar =
        ProgressBar::new(0).with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} settings, {eta} left")?);
    let measured = tune::measure(&library, &args.inference, &plan, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();

    let choice = measured.choose().context("nothing was measured")?;
    print!("{}", table(&measured.attributes, "faces", choice.layout, choice.max_batch)?);
    if let (Some(detector), Some(batch)) = (&measured.detector, choice.max_detector_batch) {
        print!("\n{}", table(detector, "pictures", choice.layout, batch)?);
    }
    println!("\n{}", sentence(&choice));
    let spread = measured.detector.iter().map(|detector| detector.spread).fold(measured.attributes.spread, f64::max);
    if spread > CALM {
        println!(
            "The rounds differ by {:.0} %: something else keeps this machine busy. Measure again when it is idle, or for longer.",
            100.0 * spread
        );
    }
    if args.dry_run {
        return Ok(());
    }
    let path = file.unwrap_or(Path::new(config::FILE));
    tune::write(path, &choice.settings())?;
    println!("Written into {}. Flags and FACEWISE_ variables come before the file.", path.display());
    for (name, _) in choice.settings() {
        let variable = config::variable(name);
        if env::var_os(&variable).is_some() {
            println!("{variable} is set: as long as it is, the file's {name} does not count.");
        }
    }
    Ok(())
}

/// A row for each layout and a column for each batch. What is chosen has a star.
fn table(subject: &Subject, unit: &str, layout: Layout, batch: usize) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "{} version {}: {unit} a second, by the most of them in a run", subject.name, subject.version)?;
    for (index, row) in subject.cells.chunk_by(|a, b| a.layout == b.layout).enumerate() {
        if index == 0 {
            write!(text, "  workers × threads")?;
            for cell in row {
                write!(text, "{:>9} ", cell.max_batch)?;
            }
            writeln!(text, "   one alone")?;
        }
        let Some(Layout { workers, threads }) = row.first().map(|cell| cell.layout) else { continue };
        let star = |chosen| if chosen { '*' } else { ' ' };
        let here = layout == Layout { workers, threads };
        write!(text, "{} {:>17}", star(here), format!("{workers} × {threads}"))?;
        for cell in row {
            let digits = usize::from(cell.rate < 100.0);
            write!(text, "{:>9.digits$}{}", cell.rate, star(here && cell.max_batch == batch))?;
        }
        writeln!(text, "{:>9.2} ms", row.iter().map(|cell| cell.alone).fold(0.0, f64::max) * 1e3)?;
    }
    Ok(text)
}

/// What is chosen, and why.
fn sentence(choice: &Choice) -> String {
    let settings: Vec<String> = choice.settings().iter().map(|(name, number)| format!("{name} = {number}")).collect();
    let both = if choice.max_detector_batch.is_some() { " of each network (geometric mean)" } else { "" };
    format!(
        "{}\n\nThat is {:.1} % of the highest throughput{both}. Of what is within {:.0} % of the most,\none alone is answered \
         soonest; of what is alike there too, the fewest threads and the smallest batches count.",
        settings.join("\n"),
        100.0 * choice.share,
        100.0 * NEAR
    )
}
