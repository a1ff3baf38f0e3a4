//! `facewise models`: what lies in the folder of models, and whether it can be served.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::bail;
use bytesize::ByteSize;
use clap::ValueEnum;
use facewise::config::{Inference, Log};
use facewise::engine::Runtime;
use facewise::repository::{Inspected, Sound, inspect};
use facewise::telemetry::{self, Metrics};
use facewise_core::manifest::{Head, Kind, Manifest};
use facewise_core::task::Task;
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Form of the list
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    inference: Inference,
    #[command(flatten)]
    log: Log,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Lists every version of every model; each has been loaded and run once. Fails when one of them cannot be served.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let _export = telemetry::start_log(&args.log);
    args.inference.validate()?;
    let library = Runtime::load(args.inference.onnxruntime.as_deref())?.on(&args.inference.device)?;
    let models = inspect(&library, &args.inference, &Metrics::new(), &Arc::default())?;
    match args.format {
        Format::Table => print!("{}", table(&models)?),
        Format::Json => println!("{:#}", models.iter().map(record).collect::<Value>()),
    }
    match models.iter().filter(|model| model.state.is_err()).count() {
        0 => Ok(()),
        broken => bail!("{broken} of {} cannot be served", models.len()),
    }
}

/// A line for each version; that of a broken one says what is wrong.
fn table(models: &[Inspected]) -> Result<String, std::fmt::Error> {
    let header = ["NAME", "VERSION", "KIND", "ANSWERS", "INPUT", "SIZE", "SHA-256"].map(str::to_owned);
    let rows: Vec<_> = models.iter().map(|model| (model, cells(model))).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|(_, cells)| cells.get(column));
        cells.chain([&header[column]]).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for cells in std::iter::once(&header[..]).chain(rows.iter().map(|(_, cells)| cells.as_slice())) {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        writeln!(text, "{}", padded.join("  ").trim_end())?;
    }
    for (model, _) in &rows {
        if let Err(error) = &model.state {
            writeln!(text, "\n{}/{}: {error}", model.found.name, model.found.version)?;
        }
    }
    Ok(text)
}

fn cells(Inspected { found, newest, state }: &Inspected) -> Vec<String> {
    let version = if *newest { found.version.clone() } else { format!("{} (older)", found.version) };
    let start = [found.name.clone(), version];
    match state {
        Err(_) => start.into_iter().chain(["broken".to_owned()]).collect(),
        Ok(Sound { manifest, sha256, bytes }) => {
            let rest = [
                manifest.kind.name().to_owned(),
                answers(manifest),
                input(manifest),
                ByteSize::b(*bytes).display().si().to_string(),
                sha256.chars().take(12).collect(),
            ];
            start.into_iter().chain(rest).collect()
        }
    }
}

fn answers(manifest: &Manifest) -> String {
    match manifest.kind {
        Kind::Detector => "faces".to_owned(),
        Kind::Attributes | Kind::Embeddings => {
            let name = |head: &Head| {
                if head.has_age_groups() { "age group".to_owned() } else { head.task.name().to_owned() }
            };
            let mut heads: Vec<&Head> = manifest.heads.iter().collect();
            heads.sort_by_key(|head| head.task);
            heads.into_iter().map(name).collect::<Vec<String>>().join(", ")
        }
    }
}

fn input(manifest: &Manifest) -> String {
    match manifest.input.features {
        Some(features) => format!("{features} numbers"),
        None => format!("{0} × {0}", manifest.input.size),
    }
}

fn record(Inspected { found, newest, state }: &Inspected) -> Value {
    let mut record = json!({"name": found.name, "version": found.version, "newest": newest, "problem": null});
    match state {
        Err(error) => record["problem"] = json!(error.to_string()),
        Ok(Sound { manifest, sha256, bytes }) => {
            let head = |head: &Head| json!({"task": head.task.name(), "classes": head.classes()});
            record["kind"] = json!(manifest.kind.name());
            record["description"] = json!(manifest.description);
            record["tasks"] = manifest.heads.iter().map(|head| Task::name(head.task)).collect();
            record["heads"] = manifest.heads.iter().map(head).collect();
            record["input"] = json!(manifest.input);
            record["parameters"] = json!(manifest.provenance.parameters);
            record["bytes"] = json!(bytes);
            record["sha256"] = json!(sha256);
        }
    }
    record
}
