//! A run's state on disk: variables, their average, the optimiser and the position, in one safetensors file
//! that is replaced as a whole, so that a killed run never leaves half of one.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tch::nn::VarStore;
use tch::{Kind, Tensor, no_grad};

use crate::optimiser::{Fall, Optimiser, sorted};

const POSITION: &str = "position";
const BEST: &str = "best";
const LOSSES: &str = "losses";
const FALL: &str = "fall";
const SECONDS: &str = "seconds";

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Batches of this epoch that are done.
    pub batch: usize,
    /// Steps done since the start.
    pub step: u64,
}

/// What a run has found on its way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// The best epoch so far, from 0, with its criterion, where a run keeps the best.
    pub best: Option<(u32, f64)>,
    /// Sum and number of each part of the loss in the epoch under way.
    pub losses: Vec<(f64, u64)>,
    /// How far the learning rate has fallen by the validation loss.
    pub fall: Fall,
    /// Time that the epoch under way has taken so far, in seconds.
    pub seconds: f64,
}

/// Writes everything that continuing needs.
///
/// # Errors
/// When the file cannot be written.
pub fn save(
    path: &Path,
    live: &VarStore,
    averaged: &VarStore,
    optimiser: &dyn Optimiser,
    position: Position,
    findings: &Findings,
) -> Result<()> {
    let numbers = [i64::from(position.epoch), position.batch as i64, position.step as i64];
    let mut tensors = vec![(POSITION.to_owned(), Tensor::from_slice(&numbers))];
    if let Some((epoch, criterion)) = findings.best {
        tensors.push((BEST.to_owned(), Tensor::from_slice(&[f64::from(epoch), criterion])));
    }
    let losses: Vec<f64> = findings.losses.iter().flat_map(|(sum, n)| [*sum, *n as f64]).collect();
    if !losses.is_empty() {
        tensors.push((LOSSES.to_owned(), Tensor::from_slice(&losses)));
    }
    if findings.fall != Fall::default() {
        let Fall { share, best, waited } = findings.fall;
        tensors.push((FALL.to_owned(), Tensor::from_slice(&[share, best, f64::from(waited)])));
    }
    if findings.seconds > 0.0 {
        tensors.push((SECONDS.to_owned(), Tensor::from_slice(&[findings.seconds])));
    }
    tensors.extend(named("live", live));
    tensors.extend(named("average", averaged));
    tensors.extend(optimiser.state());
    write(path, &tensors)
}

/// Continues from a file that [`save`] wrote: fills the variables and the optimiser, and tells position and findings.
///
/// # Errors
/// When the file is missing, broken, or of another network.
pub fn load(
    path: &Path,
    live: &VarStore,
    averaged: &VarStore,
    optimiser: &dyn Optimiser,
) -> Result<(Position, Findings)> {
    let tensors = read(path)?;
    let position = tensors.get(POSITION).context("no position")?;
    let numbers = Vec::<i64>::try_from(position.shallow_clone())?;
    ensure!(numbers.len() == 3, "the position has {} numbers", numbers.len());
    let wanted = named("live", live).into_iter().chain(named("average", averaged)).chain(optimiser.state());
    fill(wanted, &tensors).with_context(|| format!("in {}", path.display()))?;
    let position = Position {
        epoch: u32::try_from(numbers[0])?,
        batch: usize::try_from(numbers[1])?,
        step: u64::try_from(numbers[2])?,
    };
    let doubles = |name: &str| tensors.get(name).map_or(Ok(Vec::new()), Vec::<f64>::try_from);
    let best = doubles(BEST)?;
    let losses = doubles(LOSSES)?;
    let fall = doubles(FALL)?;
    let findings = Findings {
        best: best.first_chunk().map(|[epoch, criterion]| (*epoch as u32, *criterion)),
        losses: losses.as_chunks().0.iter().map(|[sum, n]| (*sum, *n as u64)).collect(),
        fall: fall.first_chunk().map_or_else(Fall::default, |[share, best, waited]| Fall {
            share: *share,
            best: *best,
            waited: *waited as u32,
        }),
        seconds: doubles(SECONDS)?.first().copied().unwrap_or_default(),
    };
    Ok((position, findings))
}

/// Writes the variables alone, under their own names.
///
/// # Errors
/// When the file cannot be written.
pub fn save_weights(path: &Path, variables: &VarStore) -> Result<()> {
    write(path, &sorted(variables))
}

/// Rounds all variables to what a 16-bit float can hold, so that [`save_half`] loses nothing.
pub fn round_to_half(variables: &VarStore) {
    no_grad(|| {
        for (_, mut tensor) in sorted(variables) {
            let rounded = tensor.to_kind(Kind::Half).to_kind(tensor.kind());
            tensor.copy_(&rounded);
        }
    });
}

/// As [`save_weights`], in 16-bit floats: half the size, to be kept with a model and trained on with `--init`.
///
/// # Errors
/// When the file cannot be written.
pub fn save_half(path: &Path, variables: &VarStore) -> Result<()> {
    let half: Vec<(String, Tensor)> =
        sorted(variables).into_iter().map(|(name, tensor)| (name, tensor.detach().to_kind(Kind::Half))).collect();
    write(path, &half)
}

/// Fills the variables from a file that [`save_weights`] or [`save_half`] wrote.
///
/// # Errors
/// When the file is missing, broken, or of another network.
pub fn load_weights(path: &Path, variables: &VarStore) -> Result<()> {
    fill(sorted(variables).into_iter(), &read(path)?).with_context(|| format!("in {}", path.display()))
}

/// What a network took over from a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Variables that have the file's values.
    pub taken: usize,
    /// Those of them that have more channels than in the file.
    pub grown: usize,
    /// Variables that start anew: the file has none of this name, or of a head one of another shape.
    pub new: Vec<String>,
    /// What the file has beside: heads of other networks.
    pub left: Vec<String>,
}

/// Starts from the weights of another run or of torchvision. Variables that the file lacks keep their values: new residual blocks begin as
/// the identity, so a network that got deeper computes what the shallower one did. So does one that got wider: its first channels are those of
/// the file and begin deaf to the new ones, which start anew. Heads start anew where theirs do not fit; torchvision's (`fc`, `classifier`) and
/// those of tasks that this network does not answer are left out.
///
/// # Errors
/// When the file is missing or broken, nothing in it fits, or a variable of its trunk is not the network's or has another shape there; all
/// that are missing, surplus, or of another shape are listed.
pub fn start_from(path: &Path, variables: &VarStore) -> Result<Inherited> {
    let mut found = read(path)?;
    // torchvision counts the batches that a normalisation has seen.
    found.retain(|name, _| !name.ends_with(".num_batches_tracked"));
    let (mut fitting, mut inherited, mut others) = (Vec::new(), Inherited::default(), Vec::new());
    let own = sorted(variables);
    let narrower = |name: &str, tensor: &Tensor| found.get(name).is_some_and(|found| is_narrower(found, tensor));
    // A head alone that has more inputs sees other maps, not more channels.
    let wider = own.iter().any(|(name, variable)| !is_head(name) && narrower(name, variable));
    for (name, variable) in &own {
        let answers_alike = |tensor: &Tensor| !is_head(name) || tensor.size()[0] == variable.size()[0];
        match found.get(name) {
            Some(tensor) if tensor.size() == variable.size() => fitting.push((name.clone(), variable.shallow_clone())),
            Some(tensor) if wider && is_narrower(tensor, variable) && answers_alike(tensor) => {
                grow(variable, tensor);
                inherited.grown += 1;
            }
            Some(tensor) => {
                let shapes = format!("{name} {:?} instead of {:?}", tensor.size(), variable.size());
                if is_head(name) { inherited.new.push(shapes) } else { others.push(shapes) }
            }
            None => inherited.new.push(name.clone()),
        }
    }
    let mut surplus: Vec<String> =
        found.into_keys().filter(|name| !own.iter().any(|(known, _)| known == name)).collect();
    surplus.sort();
    let strangers = surplus.iter().any(|name| !is_head(name));
    inherited.left = surplus;
    inherited.taken = fitting.len() + inherited.grown;
    if strangers || !others.is_empty() || inherited.taken == 0 {
        bail!(
            "{} is of another network: {} variables fit; missing are {}; surplus are {}; of another shape are {}",
            path.display(),
            inherited.taken,
            some(&inherited.new),
            some(&inherited.left),
            some(&others)
        );
    }
    let found = read(path)?;
    fill(fitting.into_iter(), &found).with_context(|| format!("in {}", path.display()))?;
    Ok(inherited)
}

/// Whether a tensor has fewer channels than a variable, and kernels of the same size.
fn is_narrower(tensor: &Tensor, variable: &Tensor) -> bool {
    let (found, own) = (tensor.size(), variable.size());
    found.len() == own.len()
        && found != own
        && found.iter().zip(&own).enumerate().all(|(axis, (found, own))| found == own || axis < 2 && found < own)
}

/// Puts a tensor into the first channels of a variable, and lets these not hear the others.
fn grow(variable: &Tensor, tensor: &Tensor) {
    no_grad(|| {
        let mut first = variable.narrow(0, 0, tensor.size()[0]);
        let _ = first.zero_();
        let heard = tensor.size().get(1).map_or_else(|| first.shallow_clone(), |&inputs| first.narrow(1, 0, inputs));
        heard.shallow_clone().copy_(tensor);
    });
}

/// Writes the weights without their heads, for a training that shall begin with new ones.
///
/// # Errors
/// When the file cannot be read or written, or holds nothing but heads.
pub fn trunk(path: &Path, out: &Path) -> Result<()> {
    let mut kept: Vec<(String, Tensor)> =
        read(path)?.into_iter().filter(|(name, _)| !name.starts_with(HEADS)).collect();
    ensure!(!kept.is_empty(), "{} holds nothing but heads", path.display());
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    write(out, &kept)
}

const HEADS: &str = "heads.";

/// Whether a variable belongs to what answers the tasks, here or in torchvision, and not to what the answers are made from.
fn is_head(name: &str) -> bool {
    [HEADS, "fc.", "classifier."].iter().any(|prefix| name.starts_with(prefix))
}

/// The first of several names, and how many there are beside.
pub(crate) fn some(names: &[String]) -> String {
    const TOLD: usize = 12;
    match names.len() {
        0 => "none".to_owned(),
        n if n <= TOLD => names.join(", "),
        n => format!("{} and {} more", names[..TOLD].join(", "), n - TOLD),
    }
}

/// The mean of the weights of several runs of one network, which is often better than each of them (Wortsman et al. 2022, model soups).
/// Their heads may be of different tasks: each is the mean of those that there are.
///
/// # Errors
/// When no file is given, or one is missing, broken or of another network than those before it.
pub fn average(paths: &[PathBuf], out: &Path) -> Result<()> {
    ensure!(!paths.is_empty(), "no weights to average");
    let mut found: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for path in paths {
        for (name, tensor) in read(path)? {
            let shape = tensor.size();
            let alike = found.entry(name.clone()).or_default();
            let fits = alike.first().is_none_or(|other| other.size() == shape);
            ensure!(fits, "in {}: `{name}` has another shape", path.display());
            alike.push(tensor.to_kind(Kind::Float));
        }
    }
    let everywhere = |(name, alike): (&String, &Vec<Tensor>)| alike.len() == paths.len() || name.starts_with(HEADS);
    if let Some((name, _)) = found.iter().find(|variable| !everywhere(*variable)) {
        bail!("`{name}` is not in all of the files: they are of different networks");
    }
    let mean = |alike: &[Tensor]| Tensor::stack(alike, 0).mean_dim(0, false, Kind::Float);
    let means: Vec<_> = found.into_iter().map(|(name, alike)| (name, mean(&alike))).collect();
    write(out, &means)
}

fn named(prefix: &str, variables: &VarStore) -> Vec<(String, Tensor)> {
    sorted(variables).into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)).collect()
}

fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    // Strides do not survive the file: contiguous, on the CPU.
    let plain: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.detach().to_device(tch::Device::Cpu).contiguous()))
        .collect();
    let fresh = path.with_extension("part");
    Tensor::write_safetensors(&plain, &fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let tensors = Tensor::read_safetensors(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(tensors.into_iter().collect())
}

fn fill(wanted: impl Iterator<Item = (String, Tensor)>, found: &HashMap<String, Tensor>) -> Result<()> {
    for (name, mut tensor) in wanted {
        let source =
            found.get(&name).with_context(|| format!("`{name}` is missing: the file is of another network"))?;
        ensure!(
            source.size() == tensor.size(),
            "`{name}` has shape {:?} instead of {:?}",
            source.size(),
            tensor.size()
        );
        no_grad(|| tensor.copy_(source));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use tch::nn::Init;

    use super::*;
    use crate::architectures;
    use crate::architectures::residual::{Head, ResidualConfig};
    use crate::config::Config;
    use crate::network::{Mode, Network};
    use crate::optimiser::AdamW;

    fn store(value: f64, width: i64) -> VarStore {
        let store = VarStore::new(Device::Cpu);
        let _weight = store.root().var("weight", &[2, width], Init::Const(value));
        store
    }

    fn values(store: &VarStore) -> Vec<Vec<f32>> {
        Vec::try_from(&sorted(store)[0].1.detach()).expect("two rows")
    }

    #[test]
    fn an_average_is_of_networks_of_one_shape() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        for (name, value, width) in [("a", 1.0, 3), ("b", 4.0, 3), ("wide", 1.0, 5)] {
            save_weights(&path(name), &store(value, width)).expect("written");
        }
        average(&[path("a"), path("b")], &path("mean")).expect("of one shape");
        let mean = store(0.0, 3);
        load_weights(&path("mean"), &mean).expect("the same network");
        assert_eq!(values(&mean), [[2.5; 3]; 2]);
        let error = average(&[path("a"), path("wide")], &path("mean")).expect_err("refused");
        assert!(error.to_string().ends_with("`weight` has another shape"), "{error}");
    }

    #[test]
    fn an_average_has_the_heads_of_all() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let of = |name: &str, value: f32| (name.to_owned(), Tensor::from_slice(&[value; 2]));
        let weights = [
            ("ages", vec![of("conv", 1.0), of("heads.age", 3.0)]),
            ("both", vec![of("conv", 2.0), of("heads.age", 5.0), of("heads.smile", 7.0)]),
            ("other", vec![of("conv", 2.0), of("linear", 5.0)]),
        ];
        for (name, variables) in &weights {
            write(&path(name), variables).expect("written");
        }
        average(&[path("ages"), path("both")], &path("mean")).expect("of one network");
        let mean = read(&path("mean")).expect("written");
        for (name, value) in [("conv", 1.5), ("heads.age", 4.0), ("heads.smile", 7.0)] {
            assert_eq!(Vec::<f32>::try_from(&mean[name]).expect("numbers"), [value; 2], "{name}");
        }
        let error = average(&[path("both"), path("other")], &path("mean")).expect_err("refused");
        assert!(error.to_string().starts_with("`linear` is not in all"), "{error}");
    }

    #[test]
    fn a_checkpoint_restores_variables_optimiser_and_position() {
        let config = Config::parse(include_str!("../configs/default.toml")).expect("valid").optimiser;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("checkpoint.safetensors");
        let step = |store: &VarStore, optimiser: &mut AdamW, number: u64| {
            optimiser.zero_grad();
            let weight = &sorted(store)[0].1;
            (weight * weight).sum(Kind::Float).backward();
            optimiser.step(number, 0.1);
        };
        let (live, averaged) = (store(1.0, 3), store(2.0, 3));
        let mut optimiser = AdamW::new(&live, &config);
        step(&live, &mut optimiser, 1);
        let position = Position { epoch: 3, batch: 7, step: 99 };
        let fall = Fall { share: 0.01, best: 0.3, waited: 4 };
        let findings = Findings { best: Some((2, 0.1 + 0.2)), losses: vec![(1.5, 7), (0.0, 0)], fall, seconds: 2.5 };
        save(&path, &live, &averaged, &optimiser, position, &findings).expect("written");
        step(&live, &mut optimiser, 2);

        let (other, other_averaged) = (store(0.0, 3), store(0.0, 3));
        let mut resumed = AdamW::new(&other, &config);
        assert_eq!(load(&path, &other, &other_averaged, &resumed).expect("whole"), (position, findings));
        assert_eq!(values(&other_averaged), values(&averaged));
        step(&other, &mut resumed, 2);
        assert_eq!(values(&other), values(&live), "the next step is the same");
    }

    #[test]
    fn weights_of_another_network_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights.safetensors");
        save_half(&path, &store(0.5, 3)).expect("written");
        let same = store(0.0, 3);
        load_weights(&path, &same).expect("fits");
        assert_eq!(values(&same), [[0.5; 3]; 2]);
        let error = load_weights(&path, &store(0.0, 4)).expect_err("another shape");
        assert!(format!("{error:#}").contains("`weight` has shape [2, 3] instead of [2, 4]"), "{error:#}");
    }

    /// As torchvision names the variables of a small network: a trunk, counters, and a head for 1000 classes.
    fn torchvision(path: &Path, trunk: &[(&str, &[i64])]) {
        let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let mut tensors: Vec<(String, Tensor)> =
            trunk.iter().map(|(name, size)| ((*name).to_owned(), ones(size))).collect();
        tensors.push(("fc.weight".to_owned(), ones(&[1000, 3])));
        tensors.push(("bn1.num_batches_tracked".to_owned(), Tensor::from(7_i64)));
        write(path, &tensors).expect("written");
    }

    fn network() -> VarStore {
        let store = VarStore::new(Device::Cpu);
        for (name, size) in [("conv1", [4, 3]), ("heads", [2, 4])] {
            let path = store.root() / name;
            let path = if name == "heads" { path / "smile" } else { path };
            let _weight = path.var("weight", &size, Init::Const(0.5));
        }
        store
    }

    #[test]
    fn torchvision_s_weights_give_the_trunk_and_leave_the_heads() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights.safetensors");
        torchvision(&path, &[("conv1.weight", &[4, 3])]);
        let store = network();
        let inherited = start_from(&path, &store).expect("fits");
        let (new, left) = (vec!["heads.smile.weight".to_owned()], vec!["fc.weight".to_owned()]);
        let expected = Inherited { taken: 1, grown: 0, new, left };
        assert_eq!(inherited, expected);
        let values = |name: &str| Vec::<Vec<f32>>::try_from(store.variables()[name].detach()).expect("a matrix");
        assert_eq!(values("conv1.weight"), [[1.0; 3]; 4]);
        assert_eq!(values("heads.smile.weight"), [[0.5; 4]; 2]);
    }

    /// The variables of a residual network with random normalisations, and what it answers to noise.
    fn residual(widths: [usize; 4]) -> (VarStore, Network) {
        let heads = vec![Head::new("smile", 2), Head::new("emotion", 7)];
        let config = ResidualConfig { size: 32, widths, blocks: [1; 4], dropout: 0.0, heads };
        let store = VarStore::new(Device::Cpu);
        let network = Network::new(&store.root(), &architectures::residual::residual(&config).expect("a network"));
        no_grad(|| {
            for (_, variable) in sorted(&store) {
                let _ = variable.shallow_clone().uniform_(0.1, 0.5);
            }
        });
        (store, network)
    }

    #[test]
    fn a_network_that_got_wider_answers_as_before() {
        tch::manual_seed(5);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights.safetensors");
        let (narrow, before) = residual([4, 4, 6, 8]);
        save_weights(&path, &narrow).expect("written");
        let (wide, after) = residual([6, 4, 9, 12]);
        let pixels = Tensor::rand([3, 3, 32, 32], (Kind::Float, Device::Cpu));
        let answers = |network: &Network| Tensor::cat(&network.forward(&pixels, Mode::Eval), 1);
        let inherited = start_from(&path, &wide).expect("a narrower network");
        assert!(inherited.grown > 20 && inherited.taken > inherited.grown && inherited.new.is_empty(), "{inherited:?}");
        let difference = (answers(&before) - answers(&after)).abs().max().double_value(&[]);
        let size = answers(&before).abs().max().double_value(&[]);
        assert!(difference < 1e-5 * size, "{difference} of {size}");

        let error = start_from(&path, &residual([3, 4, 6, 8]).0).expect_err("a wider network");
        assert!(error.to_string().contains("bn1.weight [4] instead of [3]"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_listed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights.safetensors");
        let error = |trunk: &[(&str, &[i64])]| {
            torchvision(&path, trunk);
            start_from(&path, &network()).expect_err("refused").to_string()
        };
        let text = error(&[("conv1.weight", &[8, 3]), ("conv2.weight", &[1])]);
        for part in [
            "0 variables fit",
            "missing are heads.smile.weight",
            "surplus are conv2.weight, fc.weight",
            "of another shape are conv1.weight [8, 3] instead of [4, 3]",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = error(&[("conv1.weight", &[4, 3]), ("conv2.weight", &[1])]);
        assert!(text.contains("1 variables fit") && text.ends_with("of another shape are none"), "{text}");
        assert!(error(&[]).contains("missing are conv1.weight, heads.smile.weight"));
    }

    #[test]
    fn heads_can_be_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (whole, trunk_alone) = (folder.path().join("whole"), folder.path().join("trunk"));
        save_weights(&whole, &network()).expect("written");
        assert_eq!(start_from(&whole, &network()).expect("fits").taken, 2);
        trunk(&whole, &trunk_alone).expect("written");
        assert_eq!(start_from(&trunk_alone, &network()).expect("fits").new, ["heads.smile.weight"]);
    }
}
