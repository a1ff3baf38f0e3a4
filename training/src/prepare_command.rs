//! `facewise-training prepare …`.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use facewise_training::prepare::{Prepared, chalearn, fer2013, imdb_wiki};

/// Which sets can be prepared.
#[derive(Subcommand)]
pub(crate) enum PrepareCommand {
    /// FER2013: pictures and manifest.csv from fer2013.csv
    Fer2013 {
        /// fer2013.csv: emotion, pixels, Usage
        csv: PathBuf,
        /// fer2013new.csv of FER+, with ten votes a row
        #[arg(long)]
        votes: Option<PathBuf>,
        /// Folder that is made
        #[arg(long)]
        out: PathBuf,
    },
    #[command(
        about = "ChaLearn 2016, apparent ages: manifest.csv beside the pictures, from picture, mean and deviation"
    )]
    ChalearnAges(Parts),
    #[command(
        about = "ChaLearn 2016, Faces of the World: manifest.csv beside the pictures, from picture, box, gender and smile"
    )]
    ChalearnFaces(Parts),
    #[command(about = "IMDB-WIKI: manifest.csv beside the pictures of imdb_crop or wiki_crop")]
    ImdbWiki {
        /// imdb.mat or wiki.mat
        mat: PathBuf,
        /// Folder of the cropped pictures
        #[arg(long)]
        pictures: PathBuf,
        /// Least score of a face
        #[arg(long, default_value_t = 1.0)]
        min_score: f64,
    },
}

/// The labels of a set's parts.
#[derive(Args)]
pub(crate) struct Parts {
    /// Folder of the pictures, or of folders named train, val and test with them
    #[arg(long)]
    pictures: PathBuf,
    /// Labels to learn from
    #[arg(long)]
    train: Option<PathBuf>,
    /// Labels to validate on
    #[arg(long)]
    val: Option<PathBuf>,
    /// Labels to test on
    #[arg(long)]
    test: Option<PathBuf>,
}

impl Parts {
    fn prepare(&self, reader: impl Fn(&[chalearn::Part], &Path) -> Result<Prepared>) -> Result<Prepared> {
        let parts = [("train", &self.train), ("val", &self.val), ("test", &self.test)];
        let parts: Vec<chalearn::Part> =
            parts.into_iter().filter_map(|(name, file)| Some((name, file.as_deref()?))).collect();
        ensure!(!parts.is_empty(), "give labels: --train, --val or --test");
        reader(&parts, &self.pictures)
    }
}

/// Runs a command.
pub(crate) fn run(command: PrepareCommand) -> Result<()> {
    let Prepared { rows, left_out } = match command {
        PrepareCommand::Fer2013 { csv, votes, out } => fer2013::prepare(&csv, votes.as_deref(), &out)?,
        PrepareCommand::ChalearnAges(parts) => parts.prepare(chalearn::ages)?,
        PrepareCommand::ChalearnFaces(parts) => parts.prepare(chalearn::faces)?,
        PrepareCommand::ImdbWiki { mat, pictures, min_score } => imdb_wiki::prepare(&mat, &pictures, min_score)?,
    };
    println!("{rows} rows in manifest.csv, {left_out} left out");
    Ok(())
}
