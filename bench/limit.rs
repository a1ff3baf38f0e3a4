//! The raw limit: the stages of the server in plain loops, without a server around them. It is what the same ONNX files in the
//! same ONNX Runtime can do on this machine, and so what servers are measured against; `bench/compare.py` calls it.
//!
//! `speed` tries batch × threads in a run × loops side by side, `once` times one picture after the other, `memory` only
//! holds the networks. The last line printed is JSON.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use facewise::config::available_cpus;
use facewise::engine::{Backend, OnnxBackend, Runtime};
use facewise::process::prepare_to_compute;
use facewise_core::crop::{PADDING, crop, normalise};
use facewise_core::decode::{AgeDistribution, LabelDistribution};
use facewise_core::detection::{Decoder, Selection, detect};
use facewise_core::geometry::{Similarity, Template};
use facewise_core::manifest::Manifest;
use facewise_core::picture::{self, Limits, RgbImage};
use facewise_core::task::Task;
use serde_json::json;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Largest batches of the server on a CPU, after which the networks' memory is read.
const SERVED_FACES: usize = 8;
const SERVED_PICTURES: usize = 2;

/// Most faces in a run here: a photograph may have more of them.
const MOST_FACES: usize = 32;

/// Pictures that are not counted before one picture after the other is timed.
const WARM_UP: usize = 20;

#[derive(Parser)]
#[command(about = "What the networks can do on this machine without a server")]
struct Arguments {
    #[command(flatten)]
    networks: Networks,
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Args)]
struct Networks {
    /// Folder of the network that describes faces: model.onnx with manifest.json beside it
    #[arg(long)]
    attributes: PathBuf,
    /// Folder of the detector; without it a picture's centred square is its face
    #[arg(long)]
    detector: Option<PathBuf>,
    /// The ONNX Runtime library
    #[arg(long)]
    onnxruntime: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Measure {
    /// Pictures per second, for each cell of a grid
    Speed {
        /// Folder of JPEGs
        #[arg(long)]
        bodies: PathBuf,
        /// Begin with decoded pictures
        #[arg(long)]
        undecoded: bool,
        /// Seconds for a cell
        #[arg(long, default_value = "1")]
        seconds: f64,
        /// Pictures in a batch
        #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32])]
        batch: Vec<usize>,
        /// Threads in a run [default: 1, 2, 4, … up to the CPUs available]
        #[arg(long, value_delimiter = ',')]
        threads: Vec<usize>,
        /// Loops side by side [default: as many as the threads leave CPUs for, and one for each CPU]
        #[arg(long, value_delimiter = ',')]
        loops: Vec<usize>,
    },
    /// Milliseconds for one picture after the other
    Once {
        /// Folder of JPEGs
        #[arg(long)]
        bodies: PathBuf,
        /// Seconds in all
        #[arg(long, default_value = "1")]
        seconds: f64,
        /// Threads in a run
        #[arg(long, default_value = "1")]
        threads: usize,
    },
    /// Megabytes that the networks take after runs of the server's largest batches
    Memory {
        /// Copies of each network [default: the CPUs available]
        #[arg(long)]
        copies: Option<usize>,
        /// Threads in a run
        #[arg(long, default_value = "1")]
        threads: usize,
    },
}

/// A network in a session of its own.
struct Network {
    backend: OnnxBackend,
    manifest: Manifest,
    outputs: Vec<String>,
    tensor: Vec<f32>,
}

impl Network {
    fn open(library: &Runtime, folder: &Path, threads: usize) -> anyhow::Result<Self> {
        let path = folder.join("manifest.json");
        let json = fs::read_to_string(&path).with_context(|| format!("'{}' cannot be read", path.display()))?;
        let manifest = Manifest::from_json(&json)?;
        let outputs = match manifest.decoder {
            Some(decoder) => decoder.outputs(manifest.input.size).into_iter().map(|output| output.name).collect(),
            None => manifest.heads.iter().map(|head| head.output.clone()).collect(),
        };
        let backend = library.open(&folder.join("model.onnx"), threads)?;
        Ok(Self { backend, manifest, outputs, tensor: Vec::new() })
    }

    const fn size(&self) -> u32 {
        self.manifest.input.size
    }

    /// One tensor for each output, of all squares together.
    fn run(&mut self, squares: &[RgbImage]) -> anyhow::Result<Vec<Vec<f32>>> {
        let (side, input) = (self.size() as usize, &self.manifest.input);
        self.tensor.resize(squares.len() * 3 * side * side, 0.0);
        for (square, place) in squares.iter().zip(self.tensor.chunks_exact_mut(3 * side * side)) {
            normalise(square, input.mean, input.sd, place);
        }
        Ok(self.backend.run(&self.tensor, &[squares.len(), 3, side, side], &self.outputs)?)
    }

    /// Runs on gray pictures, as a server does before it listens.
    fn warm_up(&mut self, most: usize) -> anyhow::Result<()> {
        let gray = RgbImage::from_pixel(self.size(), self.size(), PADDING);
        for count in [1, most] {
            self.run(&vec![gray.clone(); count])?;
        }
        Ok(())
    }
}

/// Everything that a loop owns.
struct Stages {
    attributes: Network,
    template: Template,
    detector: Option<(Network, Decoder)>,
}

impl Stages {
    fn open(library: &Runtime, networks: &Networks, threads: usize) -> anyhow::Result<Self> {
        let attributes = Network::open(library, &networks.attributes, threads)?;
        let template = attributes.manifest.input.template.context("the network does not describe faces")?;
        let detector = networks.detector.as_deref().map(|folder| {
            let network = Network::open(library, folder, threads)?;
            let decoder = network.manifest.decoder.context("the detector is none")?;
            anyhow::Ok((network, decoder))
        });
        Ok(Self { attributes, template, detector: detector.transpose()? })
    }

    fn warm_up(&mut self) -> anyhow::Result<()> {
        if let Some((detector, _)) = &mut self.detector {
            detector.warm_up(SERVED_PICTURES)?;
        }
        self.attributes.warm_up(SERVED_FACES)
    }

    /// From pixels to answers; gives the number of faces.
    fn describe(&mut self, pictures: &[Cow<RgbImage>]) -> anyhow::Result<usize> {
        let size = self.attributes.size();
        let crops = match &mut self.detector {
            None => pictures
                .iter()
                .map(|picture| crop(picture, &self.template.place(None, picture.width(), picture.height()), size))
                .collect(),
            Some((detector, decoder)) => faces(detector, *decoder, &self.template, size, pictures)?,
        };
        for crops in crops.chunks(MOST_FACES) {
            let tensors = self.attributes.run(crops)?;
            for (head, tensor) in self.attributes.manifest.heads.iter().zip(&tensors) {
                for row in tensor.chunks_exact(head.task.classes()) {
                    if head.task == Task::Age {
                        std::hint::black_box(AgeDistribution::from_probabilities(row)?);
                    } else {
                        std::hint::black_box(LabelDistribution::from_probabilities(head.task, row)?);
                    }
                }
            }
        }
        Ok(crops.len())
    }
}

/// The crops of all faces of the pictures, aligned.
fn faces(
    detector: &mut Network,
    decoder: Decoder,
    template: &Template,
    size: u32,
    pictures: &[Cow<RgbImage>],
) -> anyhow::Result<Vec<RgbImage>> {
    let arounds: Vec<_> =
        pictures.iter().map(|picture| Similarity::around(picture.width(), picture.height())).collect();
    let shown = pictures.iter().zip(&arounds).map(|(picture, around)| crop(picture, around, detector.size()));
    let squares: Vec<RgbImage> = shown.collect();
    let tensors = detector.run(&squares)?;
    let mut crops = Vec::new();
    for (index, (picture, around)) in pictures.iter().zip(&arounds).enumerate() {
        let row = |tensor: &Vec<f32>| tensor.len() / pictures.len();
        let rows: Vec<&[f32]> = tensors.iter().map(|t| &t[index * row(t)..(index + 1) * row(t)]).collect();
        for face in detect(decoder, detector.size(), &rows, &Selection::default())? {
            if let Some(square) = template.locate(&face.map(around).landmarks) {
                crops.push(crop(picture, &square, size));
            }
        }
    }
    Ok(crops)
}

/// Pictures as they come, or decoded beforehand.
enum Pictures {
    Bodies(Vec<Vec<u8>>),
    Decoded(Vec<RgbImage>),
}

impl Pictures {
    fn read(folder: &Path, undecoded: bool) -> anyhow::Result<Self> {
        let entries = fs::read_dir(folder).with_context(|| format!("'{}' cannot be read", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        paths.sort();
        anyhow::ensure!(!paths.is_empty(), "there are no pictures in '{}'", folder.display());
        let bodies = paths.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
        if !undecoded {
            return Ok(Self::Bodies(bodies));
        }
        let decoded = bodies.iter().map(|body| picture::decode(body, Limits::default()));
        Ok(Self::Decoded(decoded.collect::<Result<_, _>>()?))
    }

    /// The next `count` from `start` on, round and round.
    fn batch(&self, start: usize, count: usize) -> anyhow::Result<Vec<Cow<'_, RgbImage>>> {
        let indices = start..start + count;
        match self {
            Self::Bodies(bodies) => {
                let decoded = |i: usize| picture::decode(&bodies[i % bodies.len()], Limits::default());
                indices.map(|i| Ok(Cow::Owned(decoded(i)?))).collect()
            }
            Self::Decoded(pictures) => Ok(indices.map(|i| Cow::Borrowed(&pictures[i % pictures.len()])).collect()),
        }
    }
}

/// A cell of the grid.
#[derive(Clone, Copy)]
struct Cell {
    batch: usize,
    threads: usize,
    loops: usize,
}

impl Cell {
    /// Pictures per second of all loops together.
    fn speed(self, library: &Runtime, networks: &Networks, pictures: &Pictures, time: Duration) -> anyhow::Result<f64> {
        let Self { batch, threads, loops } = self;
        let stages = || Stages::open(library, networks, threads);
        let mut stages = (0..loops).map(|_| stages()).collect::<anyhow::Result<Vec<_>>>()?;
        for stages in &mut stages {
            stages.describe(&pictures.batch(0, batch)?)?;
        }
        let barrier = Barrier::new(loops);
        let work = |index: usize, mut stages: Stages| {
            barrier.wait();
            let (started, mut done) = (Instant::now(), 0);
            while started.elapsed() < time {
                stages.describe(&pictures.batch(index * 7 + done, batch)?)?;
                done += batch;
            }
            anyhow::Ok(done as f64 / started.elapsed().as_secs_f64())
        };
        thread::scope(|scope| {
            let work = &work;
            let spawn = |(index, stages)| scope.spawn(move || work(index, stages));
            let threads: Vec<_> = stages.into_iter().enumerate().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().expect("a loop returns its errors")).sum()
        })
    }

    fn all(batch: &[usize], threads: &[usize], loops: &[usize]) -> Vec<Self> {
        let cpus = available_cpus();
        let doubling = || std::iter::successors(Some(1), |threads| Some(2 * threads)).take_while(|t| *t <= cpus);
        let threads = if threads.is_empty() { doubling().collect() } else { threads.to_vec() };
        let mut cells = Vec::new();
        for threads in threads {
            let mut loops = if loops.is_empty() { vec![cpus.div_ceil(threads), cpus] } else { loops.to_vec() };
            loops.dedup();
            for loops in loops {
                cells.extend(batch.iter().map(|&batch| Self { batch, threads, loops }));
            }
        }
        cells
    }
}

/// Resident memory of this process in megabytes, as Linux tells it.
fn resident() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc/self/status")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

fn once(stages: &mut Stages, pictures: &Pictures, time: Duration) -> anyhow::Result<serde_json::Value> {
    let mut times = Vec::new();
    let mut deadline = Instant::now();
    for index in 0.. {
        if index == WARM_UP {
            deadline = Instant::now() + time;
        } else if index > WARM_UP && Instant::now() > deadline {
            break;
        }
        let started = Instant::now();
        stages.describe(&pictures.batch(index, 1)?)?;
        if index >= WARM_UP {
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("one picture after the other: {:.3} ms at the median of {}", times[times.len() / 2], times.len());
    Ok(json!({"median_ms": times[times.len() / 2], "p99_ms": times[times.len() * 99 / 100], "pictures": times.len()}))
}

fn main() -> anyhow::Result<()> {
    // As the server does, so that both compute under the same conditions.
    prepare_to_compute().context("this program cannot start itself anew")?;
    let Arguments { networks, measure } = Arguments::parse();
    let library = Runtime::load(networks.onnxruntime.as_deref())?;
    let result = match measure {
        Measure::Speed { bodies, undecoded, seconds, batch, threads, loops } => {
            let pictures = Pictures::read(&bodies, undecoded)?;
            let mut cells = Vec::new();
            println!("| batch | threads | loops | pictures/s |\n|---|---|---|---|");
            for cell in Cell::all(&batch, &threads, &loops) {
                let speed = cell.speed(&library, &networks, &pictures, Duration::from_secs_f64(seconds))?;
                let Cell { batch, threads, loops } = cell;
                println!("| {batch} | {threads} | {loops} | {speed:.1} |");
                cells.push(json!({"batch": batch, "threads": threads, "loops": loops, "pictures_per_second": speed}));
            }
            json!({ "cells": cells })
        }
        Measure::Once { bodies, seconds, threads } => {
            let mut stages = Stages::open(&library, &networks, threads)?;
            once(&mut stages, &Pictures::read(&bodies, false)?, Duration::from_secs_f64(seconds))?
        }
        Measure::Memory { copies, threads } => {
            let before = resident()?;
            let mut held = Vec::new();
            for _ in 0..copies.unwrap_or_else(available_cpus) {
                let mut stages = Stages::open(&library, &networks, threads)?;
                stages.warm_up()?;
                held.push(stages);
            }
            let networks = resident()? - before;
            println!("{} copies of the networks take {networks:.1} MB", held.len());
            json!({"networks_mb": networks, "before_mb": before})
        }
    };
    println!("{result}");
    Ok(())
}
