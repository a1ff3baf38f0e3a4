//! `facewise predict`: pictures and folders of them, in this process, by the same pipeline that answers requests.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use facewise::answer::{Age, Classification, Extras, Face, Image, Landmarks};
use facewise::compute::Compute;
use facewise::config::{Inference, Log};
use facewise::engine::{AttributeModel, Runtime};
use facewise::pipeline::{Analysis, Pipeline, Whereabouts};
use facewise::repository::{Models, Repository, Scope};
use facewise::tasks::Tasks;
use facewise::telemetry::{self, Metrics};
use facewise_core::detection::Selection;
use facewise_core::task::Task;
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Endings of the files that are looked at in a folder.
const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pictures, folders of pictures, and patterns like 'photos/**/*.jpg'
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Form of the answers; csv has a line for each face
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "table")]
    format: Format,
    /// Where faces are looked for: everywhere (true), one in a crop of it (crop), or nowhere, the centred square is the face
    /// (false) [default: true where there is a detector, else false]
    #[arg(long, value_name = "WHERE", value_enum)]
    detect: Option<Detect>,
    /// Least confidence of a face
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0.5")]
    min_confidence: f32,
    /// Tell where eyes, nose and mouth are too
    #[arg(long)]
    landmarks: bool,
    #[command(flatten)]
    inference: Inference,
    #[command(flatten)]
    log: Log,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
    Csv,
    Ndjson,
}

#[derive(Clone, Copy, ValueEnum)]
enum Detect {
    True,
    Crop,
    False,
}

fn share(word: &str) -> Result<f32, String> {
    match word.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) => Err("must be between 0 and 1".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Answers each picture in the order of the paths; those that get no answer are named on standard error.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let _export = telemetry::start_log(&args.log);
    let settings = &args.inference;
    settings.validate()?;
    let metrics = Arc::new(Metrics::new());
    let library = Runtime::load(settings.onnxruntime.as_deref())?.on(&settings.device)?;
    let compute = Arc::new(Compute::default());
    let models = Repository::open(&library, settings, Scope::Default, &metrics, &compute)?.models();
    let pipeline = Pipeline::new(settings, metrics, compute)?;
    let whereabouts = whereabouts(args, &models)?;
    let model = models.default_model();

    let pictures = pictures(&args.paths);
    let total = pictures.len();
    // Enough to keep every thread busy, and never so many faces that the queue refuses some.
    let busy = 2 * (settings.worker_count() + settings.decode_thread_count());
    let parallel = (settings.max_queue / settings.max_faces).clamp(1, busy);
    let mut answers = stream::iter(pictures)
        .map(|(path, picture)| {
            let whereabouts = whereabouts.clone();
            let (pipeline, model) = (&pipeline, model);
            async move {
                let answer = match picture {
                    Ok(()) => answer(&path, whereabouts, pipeline, model).await,
                    Err(error) => Err(error),
                };
                (path, answer)
            }
        })
        .buffered(parallel);

    let runtime = tokio::runtime::Runtime::new().context("the async runtime cannot be started")?;
    let mut failed = 0;
    // Where standard error is no terminal, it is not there.
    let bar = if total > 1 { ProgressBar::new(total as u64) } else { ProgressBar::hidden() }
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {per_sec}, {eta} left")?);
    let mut writer = Writer::new(args.format, args.landmarks, model.tasks().clone(), io::stdout().lock())?;
    runtime.block_on(async {
        while let Some((path, answer)) = answers.next().await {
            bar.inc(1);
            bar.suspend(|| match answer {
                Ok(analysis) => writer.write(&path, &analysis).context("standard output cannot be written"),
                Err(error) => {
                    failed += 1;
                    eprintln!("facewise: '{}': {error:#}", path.display());
                    Ok(())
                }
            })?;
        }
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    writer.finish().context("standard output cannot be written")?;
    if failed > 0 {
        bail!("{failed} of {total} got no answer");
    }
    Ok(())
}

fn whereabouts(args: &Args, models: &Models) -> anyhow::Result<Whereabouts> {
    let max_faces = args.inference.max_faces;
    let selection = Selection { min_confidence: args.min_confidence, max_faces, ..Selection::default() };
    match (args.detect, models.detector()) {
        (Some(Detect::False), _) | (None, None) => Ok(Whereabouts::CentredSquare),
        (Some(Detect::Crop), Some(detector)) => Ok(Whereabouts::Best(Arc::clone(detector), selection)),
        (Some(Detect::True) | None, Some(detector)) => Ok(Whereabouts::Everywhere(Arc::clone(detector), selection)),
        (Some(Detect::True | Detect::Crop), None) => bail!(
            "there is no detector: put one into the models folder, name it with --detector, or say --detect false"
        ),
    }
}

async fn answer(
    path: &Path,
    whereabouts: Whereabouts,
    pipeline: &Pipeline,
    model: &Arc<AttributeModel>,
) -> anyhow::Result<Analysis> {
    let bytes = {
        let path = path.to_owned();
        pipeline.cpu().run(move || fs::read(path)).await??
    };
    Ok(pipeline.analyse(bytes.into(), whereabouts, model, model.tasks()).await?)
}

/// The files that the paths stand for: a file itself, whatever its ending, the pictures of a folder and of the folders in it, by
/// name, and where there is neither, what a pattern fits. A path that stands for none comes back with the reason.
fn pictures(paths: &[PathBuf]) -> Vec<(PathBuf, anyhow::Result<()>)> {
    let mut pictures = Vec::new();
    for path in paths {
        if let Some(pattern) = path.to_str().filter(|word| !path.exists() && word.contains(['*', '?', '['])) {
            match fitting(pattern) {
                Ok(found) => pictures.extend(found.into_iter().map(|path| (path, Ok(())))),
                Err(error) => pictures.push((path.clone(), Err(error))),
            }
        } else if path.is_dir() {
            let mut found = Vec::new();
            match search(path, &mut found) {
                Ok(()) if found.is_empty() => {
                    pictures.push((path.clone(), Err(anyhow::anyhow!("the folder holds no picture"))));
                }
                Ok(()) => pictures.extend(found.into_iter().map(|path| (path, Ok(())))),
                Err(error) => pictures.push((path.clone(), Err(error.into()))),
            }
        } else {
            pictures.push((path.clone(), Ok(())));
        }
    }
    pictures
}

/// The files that a pattern fits, by name.
fn fitting(pattern: &str) -> anyhow::Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).context("this is no file, and no pattern either")?;
    let mut found = paths.collect::<Result<Vec<PathBuf>, _>>()?;
    found.retain(|path| path.is_file());
    if found.is_empty() {
        bail!("no file fits this pattern");
    }
    Ok(found)
}

fn search(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    entries.sort();
    for path in entries {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        if path.is_dir() {
            search(&path, found)?;
        } else if ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
            found.push(path);
        }
    }
    Ok(())
}

/// A picture's answer as JSON.
#[derive(Serialize)]
struct Record<'a> {
    path: &'a str,
    image: Image,
    faces: Vec<Face>,
}

/// Writes answers in one of the formats, each as it comes.
struct Writer<W: Write> {
    format: Format,
    extras: Extras,
    tasks: Tasks,
    out: W,
    written: usize,
}

impl<W: Write> Writer<W> {
    fn new(format: Format, landmarks: bool, tasks: Tasks, mut out: W) -> io::Result<Self> {
        let extras = Extras { landmarks, ..Extras::default() };
        match format {
            Format::Csv => write_csv(&mut out, &header(landmarks, &tasks))?,
            Format::Json => write!(out, "[")?,
            Format::Table | Format::Ndjson => {}
        }
        Ok(Self { format, extras, tasks, out, written: 0 })
    }

    fn write(&mut self, path: &Path, analysis: &Analysis) -> io::Result<()> {
        let path = path.to_string_lossy();
        let record = Record { path: &path, image: Image::of(analysis), faces: Face::of(analysis, self.extras) };
        let out = &mut self.out;
        match self.format {
            Format::Table => write_table(out, &record)?,
            Format::Json => {
                write!(out, "{}", if self.written == 0 { "\n" } else { ",\n" })?;
                serde_json::to_writer(&mut *out, &record)?;
            }
            Format::Ndjson => {
                serde_json::to_writer(&mut *out, &record)?;
                writeln!(out)?;
            }
            Format::Csv => {
                for (index, face) in record.faces.iter().enumerate() {
                    write_csv(out, &line(&path, index, face, self.extras.landmarks, &self.tasks))?;
                }
            }
        }
        self.written += 1;
        self.out.flush()
    }

    fn finish(mut self) -> io::Result<()> {
        if matches!(self.format, Format::Json) {
            writeln!(self.out, "\n]")?;
        }
        self.out.flush()
    }
}

fn write_table(out: &mut impl Write, Record { path, image, faces }: &Record<'_>) -> io::Result<()> {
    let count = match faces.len() {
        0 => "no face".to_owned(),
        1 => "1 face".to_owned(),
        count => format!("{count} faces"),
    };
    writeln!(out, "{path}  {} × {}  {count}", image.width, image.height)?;
    for (index, face) in faces.iter().enumerate() {
        let area = &face.area;
        let place = format!("{:.0},{:.0} {:.0} × {:.0}", area.x, area.y, area.width, area.height);
        write!(out, "{:>4}  {:>4.0} %  {place:<24}", index + 1, 100.0 * face.confidence)?;
        if let Some(Age { years, low, high, .. }) = &face.age {
            write!(out, "  {years:>5.1} years ({low}–{high})")?;
        }
        for Classification { label, probability, .. } in
            [&face.gender, &face.smile, &face.emotion].into_iter().flatten()
        {
            write!(out, "  {label} {:.0} %", 100.0 * probability)?;
        }
        writeln!(out)?;
        if let Some(Landmarks { right_eye, left_eye, nose, mouth }) = &face.landmarks {
            let point = |[x, y]: [f64; 2]| format!("{x:.0},{y:.0}");
            writeln!(
                out,
                "{:>12}eyes {} and {}, nose {}, mouth {}",
                "",
                point(*right_eye),
                point(*left_eye),
                point(*nose),
                point(*mouth)
            )?;
        }
    }
    Ok(())
}

/// One line of CSV.
fn write_csv(out: &mut impl Write, cells: &[String]) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(cells)?;
    writer.flush()
}

fn header(landmarks: bool, tasks: &Tasks) -> Vec<String> {
    let mut names: Vec<String> =
        ["path", "face", "x", "y", "width", "height", "confidence"].map(str::to_owned).to_vec();
    if landmarks {
        for point in ["right_eye", "left_eye", "nose", "mouth"] {
            names.extend([format!("{point}_x"), format!("{point}_y")]);
        }
    }
    for task in tasks.iter() {
        if task == Task::Age {
            names.extend(["age", "age_low", "age_high", "age_group"].map(str::to_owned));
        } else {
            names.extend([task.to_string(), format!("{task}_probability")]);
        }
    }
    names
}

/// The cells of one face, under the names of [`header`]; faces are numbered from 1 in each picture.
fn line(path: &str, index: usize, face: &Face, landmarks: bool, tasks: &Tasks) -> Vec<String> {
    let area = &face.area;
    let mut cells = vec![path.to_owned(), (index + 1).to_string()];
    cells.extend([area.x, area.y, area.width, area.height, face.confidence].map(|number| number.to_string()));
    if landmarks {
        match &face.landmarks {
            Some(Landmarks { right_eye, left_eye, nose, mouth }) => {
                cells.extend([right_eye, left_eye, nose, mouth].into_iter().flatten().map(ToString::to_string));
            }
            None => cells.extend(std::iter::repeat_n(String::new(), 8)),
        }
    }
    for task in tasks.iter() {
        let label = match task {
            Task::Age => {
                let age = face.age.as_ref();
                cells.extend(age.map_or_else(
                    || [(); 4].map(|()| String::new()),
                    |Age { years, low, high, group, .. }| {
                        [years.to_string(), low.to_string(), high.to_string(), (*group).to_owned()]
                    },
                ));
                continue;
            }
            Task::Gender => &face.gender,
            Task::Smile => &face.smile,
            Task::Emotion => &face.emotion,
        };
        cells.extend(label.as_ref().map_or_else(
            || [(); 2].map(|()| String::new()),
            |answer| [answer.label.to_owned(), answer.probability.to_string()],
        ));
    }
    cells
}
