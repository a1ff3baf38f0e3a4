//! The time of one picture on one core: finding its faces, describing one, and photographs of 1 and 12 megapixels end to end.
//!
//! `make bench`, or `cargo run --release --example latency -- --models models`; the flags are those of `facewise serve`.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use facewise::compute::Compute;
use facewise::config::Settings;
use facewise::engine::Runtime;
use facewise::pipeline::{Pipeline, Whereabouts};
use facewise::process::prepare_to_compute;
use facewise::repository::{Repository, Scope};
use facewise::telemetry::Metrics;
use facewise_core::detection::Selection;
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

/// Each round runs every case, so that a busy neighbour disturbs all of them alike.
const ROUNDS: usize = 20;

/// Runs of a case in a round. The first is not counted: it finds the caches full of the case before.
const RUNS: usize = 4;

/// One core for everything.
const ALONE: [&str; 6] = ["--workers", "1", "--intra-threads", "1", "--decode-threads", "1"];

/// Slopes and grain, as photographs have them: about 1.5 bits a pixel as JPEG.
fn photograph(width: u32, height: u32) -> RgbImage {
    let mut state = 1u32;
    RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let grain = (state >> 29) as u8;
        let slope = |length: u32, at: u32| (200 * at / length) as u8;
        Rgb([slope(width, x) + grain, slope(height, y) + grain, slope(width + height, x + y) + grain])
    })
}

fn jpeg(width: u32, height: u32) -> anyhow::Result<Bytes> {
    let mut bytes = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&photograph(width, height))?;
    Ok(bytes.into_inner().into())
}

fn main() -> anyhow::Result<()> {
    // As the server does.
    prepare_to_compute().context("this program cannot start itself anew")?;
    let flags = ALONE.map(str::to_owned).into_iter().chain(std::env::args().skip(1));
    let settings = Settings::from_flags(flags)?.inference;
    let metrics = Arc::new(Metrics::new());
    let library = Runtime::load(settings.onnxruntime.as_deref())?.on(&settings.device)?;
    let compute = Arc::new(Compute::default());
    let models = Repository::open(&library, &settings, Scope::Default, &metrics, &compute)?.models();
    let pipeline = Pipeline::new(&settings, metrics, compute)?;
    let detector = models.detector().context("there is no detector among the models")?;
    let model = models.default_model();

    let (wide, narrow) = (detector.model().input_size(), model.model().input_size());
    let (square, crop) = (photograph(wide, wide), photograph(narrow, narrow));
    let (small, large) = (jpeg(1155, 866)?, jpeg(4000, 3000)?);
    let find = async || {
        let tensors = detector.look(square.clone()).await?;
        detector.read(&tensors, &Selection::default())?;
        anyhow::Ok(())
    };
    let describe = async || {
        model.infer(vec![crop.clone()]).await?;
        anyhow::Ok(())
    };
    // As a crop, so that exactly one face is described whatever is found.
    let answer = async |bytes: &Bytes| {
        let whereabouts = Whereabouts::Best(Arc::clone(detector), Selection::default());
        pipeline.analyse(bytes.clone(), whereabouts, model, model.tasks()).await?;
        anyhow::Ok(())
    };

    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for (case, times) in times.iter_mut().enumerate() {
            for run in 0..RUNS {
                let started = Instant::now();
                match case {
                    0 => runtime.block_on(find())?,
                    1 => runtime.block_on(describe())?,
                    2 => runtime.block_on(answer(&small))?,
                    _ => runtime.block_on(answer(&large))?,
                }
                if run > 0 {
                    times.push(started.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
    }
    let [find, describe, small, large] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!("| one core, median of {} | ms |\n|---|---|", ROUNDS * (RUNS - 1));
    println!("| finding the faces of a picture at {wide} × {wide} | {find:.1} |");
    println!("| describing one face at {narrow} × {narrow} | {describe:.1} |");
    println!("| a JPEG of 1 megapixel with one face, end to end | {small:.1} |");
    println!("| a JPEG of 12 megapixels with one face, end to end | {large:.1} ({:.1} times as long) |", large / small);
    Ok(())
}
