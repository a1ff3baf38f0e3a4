//! Makes embeddings of a labelled set: what a network knows of each face before its heads, scaled to length 1, or what an encoder says of
//! its attributes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use facewise_core::npy;
use facewise_core::picture::{self, Limits};
use facewise_core::task::Task;
use facewise_evaluation::{Dataset, DatasetError, Filter, Row};
use indicatif::ProgressBar;
use rayon::prelude::*;
use tch::nn::VarStore;
use tch::{Device, Kind};

use crate::augment;
use crate::checkpoint;
use crate::config::Config;
use crate::encoder;
use crate::graph::{Graph, Layer};
use crate::lesson::{CONFIG, WEIGHTS};
use crate::loader::Batch;
use crate::network::{Mode, Network, Precision};
use crate::sample::{Labels, Sample};
use crate::validate;

/// Pictures in one pass.
const BATCH: usize = 256;

/// Columns that are taken over as they are, with the names that [`super::embeddings`] knows them by.
const COLUMNS: [(&str, &str); 2] = [("split", "split"), ("identity", "subject")];

/// What becomes an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The pooled features before the heads, scaled to length 1.
    Features,
    /// The logits of an encoder's attributes, as they are.
    Logits,
}

/// Which faces of a set, and what of them.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Rows to take, as in `split=test`; all by default.
    pub filter: Option<String>,
    /// Cut faces as the centred squares of their pictures, not by their keypoints.
    pub square: bool,
    /// Columns to take over beside the labels of tasks, as they are.
    pub columns: Vec<String>,
}

/// A network that makes embeddings.
#[derive(Debug)]
pub struct Encoder {
    network: Network,
    output: Output,
    size: u32,
    device: Device,
}

impl Encoder {
    /// The attribute network of a configuration with these weights; its features are the embeddings.
    ///
    /// # Errors
    /// When the weights are missing, or of another network.
    pub fn open(config: &Config, weights: &Path, device: Device, precision: Precision) -> Result<Self> {
        Self::load(config.graph()?, Output::Features, config.size(), weights, device, precision)
    }

    /// The network of an encoder's complete run.
    ///
    /// # Errors
    /// When the run is not complete.
    pub fn of_run(run: &Path, output: Output, device: Device, precision: Precision) -> Result<Self> {
        let config = encoder::config::Config::read(&run.join(CONFIG))?;
        Self::load(config.graph()?, output, config.size, &run.join(WEIGHTS), device, precision)
    }

    fn load(
        whole: Graph,
        output: Output,
        size: u32,
        weights: &Path,
        device: Device,
        precision: Precision,
    ) -> Result<Self> {
        // The heads have variables, too: all weights must fit.
        let graph = match output {
            Output::Features => whole
                .ending_at("features", |layer| *layer == Layer::GlobalAvgPool)
                .context("the network has no pooling to take features from")?,
            Output::Logits => whole,
        };
        let variables = VarStore::new(device);
        let network = Network::new(&variables.root(), &graph).with_precision(precision);
        checkpoint::load_weights(weights, &variables)?;
        Ok(Self { network, output, size, device })
    }

    /// Writes `<out>.npy` and `<out>.csv` of the rows of a set; returns how many rows of how many numbers.
    ///
    /// # Errors
    /// When the set or a picture of it cannot be read, a column is missing, or a file cannot be written.
    pub fn extract(&self, set: &Path, selection: &Selection, out: &Path) -> Result<(usize, usize)> {
        let dataset = Dataset::open(set)?;
        let copied = copied(&dataset, &selection.columns)?;
        let filter = Filter::parse(selection.filter.as_deref().unwrap_or_default())?;
        let rows = dataset.select(&filter)?;
        let progress = ProgressBar::new(rows.len() as u64);
        let mut values = Vec::new();
        for chunk in rows.chunks(BATCH) {
            values.extend(self.embed(&dataset, chunk, selection.square)?);
            progress.inc(chunk.len() as u64);
        }
        progress.finish_and_clear();
        let features = values.len() / rows.len().max(1);
        if let Some(folder) = out.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let path = with(out, ".npy");
        fs::write(&path, npy::write(features, &values)).with_context(|| format!("cannot write {}", path.display()))?;
        write_labels(&dataset, &rows, &copied, &with(out, ".csv"))?;
        Ok((rows.len(), features))
    }

    fn embed(&self, dataset: &Dataset, rows: &[&Row], square: bool) -> Result<Vec<f32>> {
        let size = self.size;
        let crop = |row: &&Row| {
            let cannot = || format!("line {}: {}", row.line, row.path);
            let bytes = dataset.read(row).with_context(cannot)?;
            let picture = picture::decode(&bytes, Limits::default()).with_context(cannot)?;
            let landmarks = if square { None } else { row.landmarks };
            let sample = Sample::new(picture, landmarks, Labels::default(), 2 * size);
            Ok(augment::plain(&sample, size))
        };
        let crops = rows.par_iter().map(crop).collect::<Result<Vec<_>>>()?;
        let batch = Batch::unlabelled(&crops.iter().collect::<Vec<_>>());
        let numbers = &self.network.forward(&validate::pixels(&batch, self.device), Mode::Eval)[0];
        let numbers = match self.output {
            Output::Features => numbers / numbers.norm_scalaropt_dim(2.0, [1_i64].as_slice(), true).clamp_min(1e-12),
            Output::Logits => numbers.shallow_clone(),
        };
        Ok(Vec::try_from(numbers.to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, -1))?)
    }
}

/// A path with something added to its name.
fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The columns that are taken over, by the names they get.
fn copied(dataset: &Dataset, wanted: &[String]) -> Result<Vec<(String, usize)>, DatasetError> {
    let known = COLUMNS.into_iter().filter_map(|(from, to)| Some(Ok((to.to_owned(), dataset.column(from).ok()?))));
    let asked = wanted.iter().map(|name| Ok((name.clone(), dataset.column(name)?)));
    known.chain(asked).collect()
}

fn write_labels(dataset: &Dataset, rows: &[&Row], copied: &[(String, usize)], path: &Path) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = csv::Writer::from_path(path).with_context(cannot)?;
    let header = ["path"].into_iter().chain(dataset.tasks().iter().map(|task| task.name()));
    file.write_record(header.chain(copied.iter().map(|(name, _)| name.as_str()))).with_context(cannot)?;
    for row in rows {
        let mut cells = vec![row.path.clone()];
        cells.extend(dataset.tasks().iter().map(|task| label(row, *task)));
        cells.extend(copied.iter().map(|(_, column)| row.cell(*column).to_owned()));
        file.write_record(cells).with_context(cannot)?;
    }
    file.flush().with_context(cannot)
}

/// A label as [`super::embeddings`] reads it.
fn label(row: &Row, task: Task) -> String {
    match (task, row.labels.class(task)) {
        (Task::Age, _) => row.labels.age.map_or_else(String::new, |years| years.to_string()),
        (_, None) => String::new(),
        (Task::Smile, Some(class)) => class.to_string(),
        (_, Some(class)) => task.labels()[class].to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use image::RgbImage;

    use super::*;
    use crate::architectures::residual::ResidualConfig;
    use crate::config::NetworkConfig;
    use crate::vectors::embeddings;
    use crate::vectors::rows::Part;
    use crate::vectors::target::Target;

    #[test]
    fn a_set_becomes_embeddings_that_are_read_again() {
        tch::set_num_threads(1);
        tch::manual_seed(1);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for index in 0..3_u8 {
            RgbImage::from_fn(40, 40, |x, y| image::Rgb([(x * 6) as u8, (y * 6) as u8, index * 90]))
                .save(path(&format!("{index}.png")))
                .unwrap();
        }
        let manifest = "path,age,gender,Smiling,identity,split\n0.png,30,male,1,7,train\n1.png,,female,-1,8,val\n2.png,5,,1,7,test\n";
        fs::write(path("manifest.csv"), manifest).unwrap();

        let mut config = Config::parse(include_str!("../../configs/default.toml")).unwrap();
        config.network = NetworkConfig::Residual(ResidualConfig {
            widths: [4, 4, 6, 8],
            blocks: [1, 1, 1, 1],
            ..ResidualConfig::default()
        });
        let variables = VarStore::new(Device::Cpu);
        let _network = Network::new(&variables.root(), &config.graph().unwrap());
        let weights = path("weights.safetensors");
        checkpoint::save_weights(&weights, &variables).unwrap();

        let encoder = Encoder::open(&config, &weights, Device::Cpu, Precision::Fp32).unwrap();
        let out = path("out/faces.v1");
        let all = Selection { columns: vec!["Smiling".to_owned()], ..Selection::default() };
        assert_eq!(encoder.extract(folder.path(), &all, &out).unwrap(), (3, 8));
        let read =
            |target: Target| embeddings::read(&path("out/faces.v1.npy"), &path("out/faces.v1.csv"), &target).unwrap();
        let ages = read(Target::Age);
        assert_eq!((&ages.years[..], ages.unlabelled), (&[30.0, 5.0][..], 1));
        assert_eq!((&ages.parts[..], &ages.subjects[..]), (&[Part::Train, Part::Test][..], &[0, 0][..]));
        assert_eq!(read(Target::Labels(Task::Gender)).classes, [1, 0]);
        let smiles = read(Target::Labels(Task::Smile));
        assert_eq!(smiles.classes, [1, 0, 1]);
        for row in smiles.values.chunks(8) {
            let length: f32 = row.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-4, "{row:?}");
        }
        assert_ne!(smiles.values[..8], smiles.values[8..16]);
        assert_eq!(read(Target::Attribute("Smiling".to_owned())).classes, [1, 0, 1]);
        let some = Selection { filter: Some("split=train".to_owned()), ..Selection::default() };
        assert_eq!(encoder.extract(folder.path(), &some, &out).unwrap(), (1, 8));
        let missing = Selection { columns: vec!["Hat".to_owned()], ..Selection::default() };
        let error = encoder.extract(folder.path(), &missing, &out).unwrap_err().to_string();
        assert!(error.contains("Hat"), "{error}");
    }
}
