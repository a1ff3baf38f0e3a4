//! The sets of a configuration as samples, read from their folders or from packs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use facewise_core::crop;
use facewise_core::geometry::{Rect, Similarity};
use facewise_core::picture::{self, Limits, RgbImage};
use facewise_core::task::AGES;
use facewise_evaluation::{Dataset, Filter, Row};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::config::{Config, DataConfig, answered};
use crate::loader::Mix;
use crate::sample::{self, Labels, PackWriter, Sample};

/// Columns of FER+ with the votes for each label of the emotion task, in tensor order.
const VOTE_COLUMNS: [&str; 7] =
    ["fp_anger", "fp_disgust", "fp_fear", "fp_happiness", "fp_sadness", "fp_surprise", "fp_neutral"];

/// Of ten votes, fewer than this for the seven labels say too little: most people saw something else, or no face.
const FEWEST_VOTES: f32 = 5.0;

/// Where samples come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder with one folder a set.
    Sets(PathBuf),
    /// A folder with the parts that [`pack`] wrote.
    Packs(PathBuf),
}

/// One set's samples.
#[derive(Debug)]
pub struct Split {
    /// Samples to learn from.
    pub train: Vec<Sample>,
    /// Held-out samples, of which none is a copy of one to learn from.
    pub validation: Vec<Sample>,
}

impl Source {
    /// All sets of a configuration: the mix to learn from, and the held-out samples.
    ///
    /// # Errors
    /// When a set is missing, broken, or its filter leaves nothing.
    pub fn load(&self, config: &Config) -> Result<(Mix, Vec<Sample>)> {
        let mut mix = Mix { samples: Vec::new(), sets: Vec::new() };
        let mut validation = Vec::new();
        for data in &config.data {
            let split = self.split(config, data)?;
            let first = mix.samples.len();
            mix.samples.extend(split.train);
            mix.sets.push((first..mix.samples.len(), data.repeat));
            validation.extend(split.validation);
        }
        Ok((mix, validation))
    }

    /// The held-out samples alone.
    ///
    /// # Errors
    /// As for [`Source::load`].
    pub fn validation(&self, config: &Config) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for data in &config.data {
            samples.extend(match self {
                Self::Sets(_) => self.split(config, data)?.validation,
                Self::Packs(folder) => known(packed(folder, config, data, "validation")?, data, config),
            });
        }
        Ok(samples)
    }

    fn split(&self, config: &Config, data: &DataConfig) -> Result<Split> {
        let Split { train, validation } = match self {
            Self::Sets(root) => read(root, data, resolution(config))?,
            Self::Packs(folder) => Split {
                train: packed(folder, config, data, "train")?,
                validation: packed(folder, config, data, "validation")?,
            },
        };
        let (train, validation) = (known(train, data, config), known(validation, data, config));
        ensure!(!train.is_empty(), "set `{}`: no row with {} has a label to learn", data.set, data.filter);
        Ok(Split { train, validation })
    }
}

/// Samples with the labels of the set's tasks alone. One without any of them teaches nothing, unless a teacher answers for it.
fn known(samples: Vec<Sample>, data: &DataConfig, config: &Config) -> Vec<Sample> {
    let answered = config.distillation.as_ref().is_some_and(|distillation| distillation.unlabelled > 0.0);
    let only = |sample: Sample| Sample { labels: sample.labels.only(&data.tasks), ..sample };
    samples.into_iter().map(only).filter(|sample| answered || sample.labels != Labels::default()).collect()
}

/// One row in so many is held out of a folder that does not tell which.
const HOLD_OUT: usize = 10;

/// A recipe for one set of somebody's own: a folder with `manifest.csv` and pictures. The network keeps its heads for tasks that have a
/// column. Of a column `split`, the rows with `train` are learned from and those with `val` held out; without `val` or without the column,
/// every tenth row is held out.
///
/// # Errors
/// When the folder is no set, or its column `split` has no `train`.
pub fn own(mut config: Config, folder: &Path) -> Result<(Config, Source)> {
    let folder = folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?;
    let dataset = Dataset::open(&folder)?;
    let name = folder.file_name().and_then(|name| name.to_str()).context("the folder needs a name in UTF-8")?;
    let root = folder.parent().context("the folder lies nowhere")?.to_owned();
    let split = dataset.column("split").ok();
    let has = |part: &str| split.is_some_and(|column| dataset.rows().iter().any(|row| row.cell(column) == part));
    let (train, validation) = (has("train"), has("val"));
    ensure!(
        train || split.is_none(),
        "the column `split` of {} says `train` of no row, so it is not known which to learn from",
        folder.display()
    );
    config.network.keep(dataset.tasks());
    let tasks = answered(&config.graph().with_context(|| format!("{} has no label to learn", folder.display()))?);
    let data = DataConfig {
        set: name.to_owned(),
        filter: if train { "split=train" } else { "" }.to_owned(),
        validation: (train && validation).then(|| "split=val".to_owned()),
        hold_out: (!(train && validation)).then_some(HOLD_OUT),
        tasks,
        repeat: 1.0,
    };
    let labelled = |row: &&Row| data.tasks.iter().any(|task| row.labels.has(*task));
    let chosen = dataset.select(&Filter::parse(&data.filter)?)?.into_iter().filter(labelled).count();
    let taught = if data.hold_out.is_some() { chosen - chosen / HOLD_OUT } else { chosen };
    config.batch = config.batch.min(taught).max(2);
    // A folder of some hundred pictures has fewer steps than the recipes' warm-up.
    let steps = (taught / config.batch) as u64 * u64::from(config.epochs());
    config.optimiser.warmup_steps = config.optimiser.warmup_steps.min(steps / 10);
    config.data = vec![data];
    Ok((config.checked()?, Source::Sets(root)))
}

/// Reads all sets of a configuration and writes them as parts; the number of samples and parts of each is told to `report`.
///
/// # Errors
/// When a set cannot be read or a part not be written.
pub fn pack(
    config: &Config,
    root: &Path,
    folder: &Path,
    part_bytes: usize,
    report: impl Fn(&str, usize, usize),
) -> Result<()> {
    for (index, data) in config.data.iter().enumerate() {
        let twice =
            config.data[..index].iter().any(|other| pack_name(config, other, "") == pack_name(config, data, ""));
        ensure!(!twice, "set `{}` is there twice with the same rows, {}", data.set, data.filter);
        let split = read(root, data, resolution(config))?;
        for (part, samples) in [("train", &split.train), ("validation", &split.validation)] {
            let name = pack_name(config, data, part);
            let mut writer = PackWriter::new(folder, &name, part_bytes)?;
            for sample in samples {
                writer.push(sample)?;
            }
            report(&name, samples.len(), writer.finish()?);
        }
    }
    Ok(())
}

/// Twice the network's input: enough for a face that the augmentation enlarges, with some room for the filter.
fn resolution(config: &Config) -> u32 {
    2 * config.size()
}

/// Name of the parts of one set's rows, which have all labels that are known of them: a set may be there twice, with other rows or at another
/// resolution, and these must not be taken for each other.
fn pack_name(config: &Config, data: &DataConfig, part: &str) -> String {
    let DataConfig { set, filter, validation, hold_out, .. } = data;
    let rows = Sha256::digest(format!("{filter:?} {validation:?} {hold_out:?} {}", resolution(config)));
    format!("{set}-{:02x}{:02x}{:02x}{:02x}-{part}", rows[0], rows[1], rows[2], rows[3])
}

fn packed(folder: &Path, config: &Config, data: &DataConfig, part: &str) -> Result<Vec<Sample>> {
    let (size, DataConfig { set, filter, .. }) = (config.size(), data);
    let context = || format!("set `{set}`, {filter}: was it packed with these rows, for pictures of {size} px?");
    sample::read_pack(folder, &pack_name(config, data, part)).with_context(context)
}

/// Rows of a set with all their labels. Where every so many are held out, a copy of one that is learned from, as one in fourteen of FER2013's
/// would be, is left out of these: it would be told by heart.
fn read(root: &Path, data: &DataConfig, resolution: u32) -> Result<Split> {
    let folder = root.join(&data.set);
    let dataset = Dataset::open(&folder).with_context(|| format!("set `{}`", data.set))?;
    let select = |filter: &str| -> Result<Vec<&Row>> {
        let filter = Filter::parse(filter).with_context(|| format!("set `{}`", data.set))?;
        dataset.select(&filter).with_context(|| format!("set `{}`", data.set))
    };
    let chosen = select(&data.filter)?;
    let (train, validation) = match (&data.validation, data.hold_out) {
        (Some(filter), _) => (chosen, select(filter)?),
        (None, Some(every)) => {
            let held = |index: usize| (index + 1).is_multiple_of(every);
            let pick = |wanted: bool| chosen.iter().copied().enumerate().filter(move |(i, _)| held(*i) == wanted);
            (pick(false).map(|(_, row)| row).collect(), pick(true).map(|(_, row)| row).collect())
        }
        (None, None) => (chosen, Vec::new()),
    };
    ensure!(!train.is_empty(), "set `{}`: no row has {}", data.set, data.filter);
    let votes = VOTE_COLUMNS.map(|column| dataset.column(column).ok());
    let sample = |row: &Row| -> Result<([u8; 32], Sample)> {
        let file = dataset.read(row)?;
        let picture = picture::decode(&file, Limits::default())?;
        let picture = match (row.landmarks, row.region) {
            (None, Some(face)) => around(&picture, face, resolution),
            _ => picture,
        };
        // The same file may have several faces.
        let place = format!("{:?} {:?}", row.landmarks, row.region);
        let face = Sha256::new().chain_update(&file).chain_update(place).finalize().into();
        Ok((face, Sample::new(picture, row.landmarks, labels(row, &votes), resolution)))
    };
    let samples = |rows: Vec<&Row>| {
        let read =
            |row: &Row| sample(row).with_context(|| format!("set `{}`, line {}: {}", data.set, row.line, row.path));
        rows.into_par_iter().map(read).collect::<Result<Vec<_>>>()
    };
    let (faces, train): (HashSet<[u8; 32]>, Vec<Sample>) = samples(train)?.into_iter().unzip();
    let mut validation = samples(validation)?;
    validation.retain(|(face, _)| data.validation.is_some() || !faces.contains(face));
    Ok(Split { train, validation: validation.into_iter().map(|(_, sample)| sample).collect() })
}

/// The square around a face of which only the box is known, at most `resolution` pixels wide.
fn around(picture: &RgbImage, face: Rect, resolution: u32) -> RgbImage {
    let side = face.width.max(face.height).max(1.0);
    let (x, y) = (face.x + (face.width - side) / 2.0, face.y + (face.height - side) / 2.0);
    let pixels = (side.ceil() as u32).min(resolution);
    crop::crop(picture, &Similarity::onto_square(x, y, side), pixels)
}

/// A row's labels as the loss takes them.
fn labels(row: &Row, votes: &[Option<usize>; 7]) -> Labels {
    let index = |label: Option<usize>| label.and_then(|label| u8::try_from(label).ok());
    Labels {
        age: row.labels.age.map(|age| age.min((AGES - 1) as f32)),
        gender: index(row.labels.gender),
        smile: index(row.labels.smile),
        emotion: index(row.labels.emotion),
        emotion_votes: shares(votes.map(|column| column.and_then(|column| row.cell(column).parse().ok()))),
        answers: None,
    }
}

/// Votes as shares; `None` where a column is missing or too few voted for any of the labels.
fn shares(votes: [Option<f32>; 7]) -> Option<[f32; 7]> {
    let mut shares = [0.0; 7];
    for (share, votes) in shares.iter_mut().zip(votes) {
        *share = votes?;
    }
    let sum: f32 = shares.iter().sum();
    (sum >= FEWEST_VOTES).then(|| shares.map(|votes| votes / sum))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;

    use facewise_core::task::Task;

    use super::*;
    use crate::config::Config;

    #[test]
    fn votes_become_shares_unless_too_few() {
        assert_eq!(shares([0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 4.0].map(Some)), Some([0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5]));
        assert_eq!(shares([0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 2.0].map(Some)), None);
        assert_eq!(shares([None; 7]), None);
    }

    /// One small set, as the default configuration has four.
    fn config() -> Config {
        let mut config = Config::parse(include_str!("../configs/default.toml")).expect("valid");
        config.data.truncate(1);
        config.data[0].set = "faces".into();
        config.data[0].validation = None;
        config.data[0].hold_out = Some(3);
        config
    }

    fn set(root: &Path) {
        let folder = root.join("faces");
        fs::create_dir(&folder).expect("made");
        let mut manifest = "path,age,gender,split\n".to_owned();
        for index in 0..7u8 {
            RgbImage::from_pixel(20, 20, image::Rgb([index * 30; 3]))
                .save(folder.join(format!("{index}.png")))
                .expect("written");
            let split = if index == 6 { "test" } else { "train" };
            writeln!(manifest, "{index}.png,{},female,{split}", 10 * (index + 5)).expect("written");
        }
        fs::write(folder.join("manifest.csv"), manifest).expect("written");
    }

    #[test]
    fn sets_and_their_packs_give_the_same_samples() {
        let root = tempfile::tempdir().expect("a temporary folder");
        set(root.path());
        let (mix, validation) = Source::Sets(root.path().into()).load(&config()).expect("readable");
        let ages =
            |samples: &[Sample]| samples.iter().map(|sample| sample.labels.age.expect("labelled")).collect::<Vec<_>>();
        assert_eq!(ages(&mix.samples), [50.0, 60.0, 80.0, 90.0]);
        assert_eq!(ages(&validation), [70.0, 100.0], "every third row");
        let packs = root.path().join("packs");
        pack(&config(), root.path(), &packs, 1 << 20, |_, _, _| ()).expect("packed");
        let (packed, packed_validation) = Source::Packs(packs.clone()).load(&config()).expect("readable");
        assert!(packed.samples == mix.samples && packed_validation == validation);
        assert!(Source::Packs(packs.clone()).validation(&config()).expect("readable") == validation);

        let mut twice = config();
        twice.data.push(twice.data[0].clone());
        let again = pack(&twice, root.path(), &packs, 1 << 20, |_, _, _| ()).expect_err("one would replace the other");
        assert!(again.to_string().contains("set `faces` is there twice"), "{again}");
        twice.data[1].filter = "split=test".into();
        twice.data[1].hold_out = None;
        let missing = Source::Packs(packs.clone()).load(&twice).expect_err("other rows");
        assert!(missing.to_string().contains("set `faces`, split=test: was it packed"), "{missing}");
        let mut larger = config();
        larger.stages[0].size = 96;
        let coarse = Source::Packs(packs.clone()).load(&larger).expect_err("another resolution");
        assert!(coarse.to_string().contains("for pictures of 96 px"), "{coarse}");
        let mut ages_alone = config();
        ages_alone.data[0].tasks = vec![Task::Age];
        let (alone, _) = Source::Packs(packs.clone()).load(&ages_alone).expect("packs know all labels");
        assert!(mix.samples[0].labels.gender.is_some() && alone.samples[0].labels.gender.is_none());
        pack(&twice, root.path(), &packs, 1 << 20, |_, _, _| ()).expect("packed");
        let (mix, _) = Source::Packs(packs).load(&twice).expect("readable");
        assert_eq!(ages(&mix.samples), [50.0, 60.0, 80.0, 90.0, 100.0], "110 years count as 100");
    }

    #[test]
    fn copies_of_what_is_learned_from_are_not_held_out() {
        let root = tempfile::tempdir().expect("a temporary folder");
        set(root.path());
        let faces = root.path().join("faces");
        fs::copy(faces.join("0.png"), faces.join("2.png")).expect("copied");
        let (mix, validation) = Source::Sets(root.path().into()).load(&config()).expect("readable");
        let ages: Vec<_> = validation.iter().map(|sample| sample.labels.age.expect("labelled")).collect();
        assert_eq!((mix.samples.len(), ages), (4, vec![100.0]), "the third row is a copy of the first");
        let mut same = config();
        same.data[0].validation = Some(String::new());
        let (_, validation) = Source::Sets(root.path().into()).load(&same).expect("readable");
        assert_eq!(validation.len(), 7, "who chooses the rows may choose these");
    }

    #[test]
    fn a_face_without_a_label_is_for_teachers_alone() {
        let root = tempfile::tempdir().expect("a temporary folder");
        set(root.path());
        let manifest = root.path().join("faces/manifest.csv");
        let text = fs::read_to_string(&manifest).expect("there");
        fs::write(&manifest, text.replace("0.png,50,female", "0.png,,")).expect("written");
        let learned =
            |config: &Config| Source::Sets(root.path().into()).load(config).expect("readable").0.samples.len();
        let taught = config();
        assert!(taught.distillation.is_some());
        let alone = Config { distillation: None, ..config() };
        assert_eq!((learned(&taught), learned(&alone)), (4, 3));
    }

    #[test]
    fn a_box_is_enough_to_find_the_face() {
        let picture = RgbImage::from_fn(90, 60, |x, y| {
            if (30..60).contains(&x) && (20..40).contains(&y) { image::Rgb([255; 3]) } else { image::Rgb([0; 3]) }
        });
        let face = around(&picture, Rect { x: 35.0, y: 20.0, width: 20.0, height: 20.0 }, 64);
        assert_eq!(face.dimensions(), (20, 20));
        assert!(face.pixels().all(|pixel| pixel[0] > 250), "nothing but the face");
        let wide = around(&picture, Rect { x: 30.0, y: 20.0, width: 30.0, height: 20.0 }, 15);
        assert_eq!((wide.dimensions(), wide.get_pixel(7, 7)[0], wide.get_pixel(7, 0)[0]), ((15, 15), 255, 0));
    }

    #[test]
    fn a_folder_of_one_s_own_decides_what_is_learned() {
        let root = tempfile::tempdir().expect("a temporary folder");
        set(root.path());
        let folder = root.path().join("faces");
        let recipe = || Config::parse(include_str!("../configs/resnet18.toml")).expect("valid");
        let (config, source) = own(recipe(), &folder).expect("a set");
        assert_eq!(answered(&config.graph().expect("valid")), [Task::Age, Task::Gender]);
        assert_eq!((config.batch, config.data[0].filter.as_str()), (6, "split=train"));
        let (mix, validation) = source.load(&config).expect("readable");
        assert_eq!((mix.samples.len(), validation.len()), (6, 0), "the seventh is for tests, a tenth is not there");

        let manifest = fs::read_to_string(folder.join("manifest.csv")).expect("there");
        fs::write(folder.join("manifest.csv"), manifest.replace("test", "val")).expect("written");
        let (config, source) = own(recipe(), &folder).expect("a set");
        assert_eq!(source.validation(&config).expect("readable").len(), 1);
        fs::write(folder.join("manifest.csv"), manifest.replace("train", "Training")).expect("written");
        let unknown = own(recipe(), &folder).expect_err("which rows are to be learned?");
        assert!(unknown.to_string().contains("says `train` of no row"), "{unknown}");
        assert!(own(recipe(), &root.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_missing_set_and_an_empty_choice_are_named() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let load =
            |config: &Config| format!("{:#}", Source::Sets(root.path().into()).load(config).expect_err("refused"));
        assert!(load(&config()).contains("set `faces`"));
        set(root.path());
        let mut nothing = config();
        nothing.data[0].filter = "split=nowhere".into();
        assert_eq!(load(&nothing), "set `faces`: no row has split=nowhere");
    }
}
