//! Runs a [`Graph`] in libtorch: creates its variables, computes its outputs, and lets autograd differentiate them.

use tch::nn::{Init, Path};
use tch::{Device, Kind, Tensor};

use crate::graph::{Activation, Affine, BatchNorm, Conv2d, Graph, Layer, Linear, NodeId, Ordinal};

/// Whether a pass is for learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Dropout drops, normalisation uses the batch and updates the running statistics, gradients are recorded.
    Train,
    /// Dropout is the identity, normalisation uses the running statistics, no gradients are recorded.
    Eval,
}

/// Number format of convolutions, linear layers and what flows between them. Variables are fp32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Fp32,
    /// Brain floats; fast where the processor has AMX, and on GPUs.
    Bf16,
}

impl Precision {
    fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// A [`Graph`] with its variables in a [`tch::nn::VarStore`].
#[derive(Debug)]
pub struct Network {
    graph: Graph,
    variables: Vec<Variables>,
    /// For each node the values that nobody needs after it.
    dying: Vec<Vec<NodeId>>,
    /// For each node whether it is a rectifier that may write over its input.
    in_place: Vec<bool>,
    precision: Precision,
}

/// What a network answers, by the names of its outputs; fp32, the first dimension being the pictures.
#[derive(Debug)]
pub struct Outputs(Vec<(String, Tensor)>);

impl FromIterator<(String, Tensor)> for Outputs {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(outputs: I) -> Self {
        Self(outputs.into_iter().collect())
    }
}

impl Outputs {
    /// The output of a name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, values)| values)
    }

    /// The rows with these numbers, int64 `[n]`.
    #[must_use]
    pub fn rows(&self, rows: &Tensor) -> Self {
        self.0.iter().map(|(name, values)| (name.clone(), values.index_select(0, rows))).collect()
    }

    /// Where the values lie.
    ///
    /// # Panics
    /// Never of a network: it has outputs.
    pub fn device(&self) -> Device {
        self.0[0].1.device()
    }
}

/// The variables of one layer.
#[derive(Debug)]
enum Variables {
    None,
    Weight { weight: Tensor, bias: Option<Tensor> },
    Norm { weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor },
}

impl Network {
    /// Creates the variables of `graph` below `path`, named as `PyTorch` names them (`layer1.0.conv1.weight`, `bn1.running_mean` …).
    ///
    /// Convolutions start from He's normal distribution by fan-out, linear layers from a normal distribution with deviation 0.01, biases
    /// at 0, normalisations as the identity (or at zero, [`BatchNorm::zero_init`]).
    pub fn new(path: &Path, graph: &Graph) -> Self {
        let variables =
            graph.nodes().iter().map(|node| Variables::create(&descend(path, &node.name), &node.layer)).collect();
        Self {
            graph: graph.clone(),
            variables,
            dying: dying(graph),
            in_place: in_place(graph),
            precision: Precision::default(),
        }
    }

    /// The same network at another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The graph that this runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The outputs for `pixels` (`N × channels × H × W`, or `N × features` of a network on vectors; fp32), in the order of [`Graph::outputs`], as fp32.
    ///
    /// # Panics
    /// If the pictures have a size or a number of channels that the graph cannot take; [`Graph::shapes`] tells beforehand.
    pub fn forward(&self, pixels: &Tensor, mode: Mode) -> Vec<Tensor> {
        match mode {
            Mode::Train => self.run(pixels, true),
            Mode::Eval => tch::no_grad(|| self.run(pixels, false)),
        }
    }

    /// As [`Network::forward`], with the names of the outputs.
    pub fn answer(&self, pixels: &Tensor, mode: Mode) -> Outputs {
        self.graph.outputs().iter().map(|output| output.name.clone()).zip(self.forward(pixels, mode)).collect()
    }

    fn run(&self, pixels: &Tensor, train: bool) -> Vec<Tensor> {
        let mut values: Vec<Option<Tensor>> = Vec::with_capacity(self.variables.len());
        for (index, (node, variables)) in self.graph.nodes().iter().zip(&self.variables).enumerate() {
            let live = |id: &NodeId| values[id.index()].as_ref().expect("a value lives until its last user has run");
            let inputs: Vec<&Tensor> = node.inputs.iter().map(live).collect();
            let value = match &node.layer {
                Layer::Input if pixels.dim() == 4 => channels_last(pixels).to_kind(self.precision.kind()),
                Layer::Input => pixels.to_kind(self.precision.kind()),
                Layer::Activation(Activation::Relu) if self.in_place[index] => inputs[0].shallow_clone().relu_(),
                layer => apply(layer, variables, &inputs, train),
            };
            values.push(Some(value));
            for id in &self.dying[index] {
                values[id.index()] = None;
            }
        }
        let output = |id: NodeId| values[id.index()].as_ref().expect("outputs live to the end");
        self.graph.outputs().iter().map(|o| output(o.node).to_kind(Kind::Float)).collect()
    }
}

impl Variables {
    fn create(path: &Path, layer: &Layer) -> Self {
        match layer {
            Layer::Conv2d(Conv2d { inputs, outputs, kernel, groups, bias, .. }) => {
                let fan_out = outputs / groups * kernel * kernel;
                let normal = Init::Randn { mean: 0.0, stdev: (2.0 / fan_out as f64).sqrt() };
                let size = [outputs, &(inputs / groups), kernel, kernel].map(|&n| n as i64);
                Self::Weight {
                    weight: path.var("weight", &size, normal),
                    bias: bias.then(|| path.zeros("bias", &[*outputs as i64])),
                }
            }
            Layer::Linear(Linear { inputs, outputs, bias }) => Self::Weight {
                weight: path.var("weight", &[*outputs as i64, *inputs as i64], Init::Randn { mean: 0.0, stdev: 0.01 }),
                bias: bias.then(|| path.zeros("bias", &[*outputs as i64])),
            },
            // The constants begin as if all ranks were equally likely.
            Layer::Ordinal(Ordinal { inputs, thresholds }) => {
                let bias = path.zeros("bias", &[*thresholds as i64]);
                let ranks = *thresholds as f32 + 1.0;
                let above = (1..=*thresholds).map(|rank| 1.0 - rank as f32 / ranks);
                let scores: Vec<f32> = above.map(|above| (above / (1.0 - above)).ln()).collect();
                tch::no_grad(|| bias.shallow_clone().copy_(&Tensor::from_slice(&scores)));
                let weight = path.var("weight", &[1, *inputs as i64], Init::Randn { mean: 0.0, stdev: 0.01 });
                Self::Weight { weight, bias: Some(bias) }
            }
            Layer::Affine(affine @ Affine { weight, bias }) => {
                let size = [affine.outputs(), affine.inputs()].map(|n| n as i64);
                Self::Weight {
                    weight: Tensor::from_slice(weight).view(size).to_device(path.device()),
                    bias: Some(Tensor::from_slice(bias).to_device(path.device())),
                }
            }
            Layer::BatchNorm(BatchNorm { features, zero_init, .. }) => {
                let size = [*features as i64];
                Self::Norm {
                    weight: if *zero_init { path.zeros("weight", &size) } else { path.ones("weight", &size) },
                    bias: path.zeros("bias", &size),
                    mean: path.zeros_no_train("running_mean", &size),
                    variance: path.ones_no_train("running_var", &size),
                }
            }
            _ => Self::None,
        }
    }
}

/// Computes one layer; its precision is that of its inputs.
fn apply(layer: &Layer, variables: &Variables, inputs: &[&Tensor], train: bool) -> Tensor {
    let square = |n: usize| [n as i64; 2];
    match (layer, variables, inputs) {
        (Layer::Conv2d(c), Variables::Weight { weight, bias }, [x]) => {
            let (weight, bias) = (weight.to_kind(x.kind()), bias.as_ref().map(|b| b.to_kind(x.kind())));
            x.conv2d(&weight, bias, square(c.stride), square(c.padding), square(1), c.groups as i64)
        }
        (Layer::Linear(_), Variables::Weight { weight, bias }, [x]) => {
            x.linear(&weight.to_kind(x.kind()), bias.as_ref().map(|b| b.to_kind(x.kind())))
        }
        (Layer::Ordinal(_), Variables::Weight { weight, bias: Some(bias) }, [x]) => {
            x.to_kind(Kind::Float).linear::<Tensor>(weight, None) + descending(bias)
        }
        (Layer::Affine(_), Variables::Weight { weight, bias }, [x]) => {
            x.to_kind(Kind::Float).linear(weight, bias.as_ref())
        }
        (Layer::BatchNorm(norm), Variables::Norm { weight, bias, mean, variance }, [x]) => {
            x.batch_norm(Some(weight), Some(bias), Some(mean), Some(variance), train, norm.momentum, norm.eps, true)
        }
        (Layer::Activation(activation), _, [x]) => match *activation {
            Activation::Relu => x.relu(),
            // tch's leaky_relu knows only a slope of 0.01.
            Activation::LeakyRelu { slope } => x.prelu(&Tensor::full([1], slope, (x.kind(), x.device()))),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::HardSwish => x.hardswish(),
            Activation::Silu => x.silu(),
        },
        (Layer::MaxPool(w), _, [x]) => {
            x.max_pool2d(square(w.kernel), square(w.stride), square(w.padding), square(1), false)
        }
        (Layer::AvgPool(w), _, [x]) => {
            x.avg_pool2d(square(w.kernel), square(w.stride), square(w.padding), false, true, None)
        }
        (Layer::GlobalAvgPool, _, [x]) => x.mean_dim([2_i64, 3].as_slice(), false, None),
        (Layer::Flatten, _, [x]) => x.flatten(1, -1),
        (Layer::Add, _, [a, b]) => *a + *b,
        (Layer::Mul, _, [a, b]) if a.dim() == b.dim() => *a * *b,
        (Layer::Mul, _, [map, factors]) => *map * factors.unsqueeze(-1).unsqueeze(-1),
        (Layer::Div, _, [a, b]) => *a / *b,
        (Layer::Concat, _, parts) => Tensor::cat(parts, 1),
        (Layer::Dropout { p }, _, [x]) => x.dropout(*p, train),
        (Layer::Softmax, _, [x]) => x.softmax(1, None),
        (Layer::Upsample, _, [x]) => {
            let size = x.size();
            x.upsample_nearest2d([2 * size[2], 2 * size[3]], 2.0, 2.0)
        }
        _ => unreachable!("GraphBuilder::finish has checked the number of inputs of {layer:?}"),
    }
}

/// The constants of ordered thresholds in their order.
pub(crate) fn descending(bias: &Tensor) -> Tensor {
    bias.sort(0, true).0
}

/// The same values with the channels of a pixel side by side, which is what the CPU's convolutions are fast on; they keep the layout.
fn channels_last(pixels: &Tensor) -> Tensor {
    pixels.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

fn descend<'a>(path: &Path<'a>, name: &str) -> Path<'a> {
    name.split('.').fold(path.set_group(0), |path, part| path / part)
}

/// Rectifiers that are the only users of a normalisation or a sum: neither needs its result for the gradient, and a tensor less is
/// written and read.
fn in_place(graph: &Graph) -> Vec<bool> {
    let users = |id: NodeId| {
        let inputs = graph.nodes().iter().flat_map(|node| &node.inputs).filter(|input| **input == id).count();
        inputs + graph.outputs().iter().filter(|output| output.node == id).count()
    };
    let overwritable =
        |id: NodeId| matches!(graph.nodes()[id.index()].layer, Layer::BatchNorm(_) | Layer::Add) && users(id) == 1;
    let is_relu = |layer: &Layer| matches!(layer, Layer::Activation(Activation::Relu));
    graph.nodes().iter().map(|node| is_relu(&node.layer) && node.inputs.iter().all(|id| overwritable(*id))).collect()
}

fn dying(graph: &Graph) -> Vec<Vec<NodeId>> {
    let mut last_user = vec![None; graph.nodes().len()];
    let mut ids = vec![None; graph.nodes().len()];
    for (user, node) in graph.nodes().iter().enumerate() {
        for id in &node.inputs {
            last_user[id.index()] = Some(user);
            ids[id.index()] = Some(*id);
        }
    }
    for output in graph.outputs() {
        last_user[output.node.index()] = None;
    }
    let mut dying = vec![Vec::new(); graph.nodes().len()];
    for (user, id) in last_user.into_iter().zip(ids) {
        if let (Some(user), Some(id)) = (user, id) {
            dying[user].push(id);
        }
    }
    dying
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tch::nn;
    use tch::nn::{OptimizerConfig, VarStore};

    use super::*;
    use crate::architectures::residual::{ResidualConfig, residual};

    fn small() -> (VarStore, Network) {
        // Tests run beside each other; threads that wait for threads would only slow them down.
        tch::set_num_threads(1);
        tch::manual_seed(7);
        let store = VarStore::new(Device::Cpu);
        let config =
            ResidualConfig { widths: [8, 16, 16, 32], blocks: [1, 1, 1, 1], dropout: 0.1, ..ResidualConfig::default() };
        let network = Network::new(&store.root(), &residual(&config).unwrap());
        (store, network)
    }

    fn pictures(n: i64, side: i64) -> Tensor {
        Tensor::randn([n, 3, side, side], (Kind::Float, Device::Cpu))
    }

    fn running_mean(store: &VarStore) -> Vec<f32> {
        Vec::try_from(&store.variables()["layer1.0.bn1.running_mean"]).unwrap()
    }

    /// Writing over an input must leave the gradients what they are: compared with a finite difference.
    #[test]
    fn gradients_are_right_through_rectifiers_in_place() {
        let (store, network) = small();
        assert!(network.in_place.iter().any(|in_place| *in_place));
        tch::no_grad(|| store.trainable_variables().iter_mut().for_each(|v| *v += v.rand_like() * 0.1));
        let input = pictures(2, 16);
        let loss = || network.run(&input, false)[0].square().sum(Kind::Double);
        let weight = store.variables()["layer2.0.conv1.weight"].shallow_clone();
        loss().backward();
        let gradient = weight.grad().double_value(&[1, 2, 0, 1]);
        let moved = |by: f64| {
            tch::no_grad(|| {
                let _ = weight.get(1).get(2).get(0).get(1).g_add_scalar_(by);
                loss().double_value(&[])
            })
        };
        let step = 1e-2;
        let difference = (moved(step) - moved(-2.0 * step)) / (2.0 * step);
        assert!((gradient - difference).abs() < 0.02 * gradient.abs().max(1e-3), "{gradient} is not {difference}");
    }

    #[test]
    fn one_network_runs_at_several_sizes() {
        let (_store, network) = small();
        for side in [48, 64] {
            for mode in [Mode::Train, Mode::Eval] {
                let sizes: Vec<Vec<i64>> = network.forward(&pictures(5, side), mode).iter().map(Tensor::size).collect();
                assert_eq!(sizes, [[5, 101], [5, 2], [5, 2], [5, 7]]);
            }
        }
    }

    #[test]
    fn the_store_holds_what_the_graph_counts() {
        let (store, network) = small();
        let trained: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(trained, network.graph().parameters());
        let variables = store.variables();
        assert_eq!(variables["layer2.0.downsample.0.weight"].size(), [16, 8, 1, 1]);
        assert!(!variables["layer2.0.bn2.weight"].any().is_nonzero(), "the branch starts at zero");
        assert!(!variables["bn1.running_var"].requires_grad());
    }

    #[test]
    fn training_lowers_the_loss() {
        for precision in [Precision::Fp32, Precision::Bf16] {
            let (store, network) = small();
            let network = network.with_precision(precision);
            let mut optimiser = nn::AdamW::default().build(&store, 1e-2).unwrap();
            let (x, labels) = (pictures(8, 32), Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 0]));
            let losses: Vec<f64> = (0..30)
                .map(|_| {
                    let loss = network.forward(&x, Mode::Train)[3].cross_entropy_for_logits(&labels);
                    optimiser.backward_step(&loss);
                    loss.double_value(&[])
                })
                .collect();
            assert!(losses[29] < 0.5 * losses[0], "{precision:?}: {losses:?}");
        }
    }

    #[test]
    fn running_statistics_move_only_while_training() {
        let (store, network) = small();
        let before = running_mean(&store);
        network.forward(&pictures(4, 64), Mode::Eval);
        assert_eq!(running_mean(&store), before);
        network.forward(&pictures(4, 64), Mode::Train);
        assert_ne!(running_mean(&store), before);
    }

    #[test]
    fn evaluation_is_repeatable_and_records_no_gradients() {
        let (_store, network) = small();
        let x = pictures(3, 64);
        let (first, second) = (network.forward(&x, Mode::Eval), network.forward(&x, Mode::Eval));
        assert_eq!(first, second);
        assert!(first.iter().all(|output| !output.requires_grad()));
    }

    #[test]
    fn bf16_is_close_to_fp32_and_answers_in_fp32() {
        let (store, network) = small();
        let x = pictures(16, 64);
        let exact = network.forward(&x, Mode::Eval);
        let rough = network.with_precision(Precision::Bf16).forward(&x, Mode::Eval);
        for (a, b) in exact.iter().zip(&rough) {
            assert_eq!(b.kind(), Kind::Float);
            let scale = a.abs().max().double_value(&[]);
            assert!((a - b).abs().max().double_value(&[]) < 0.05 * scale);
        }
        assert!(store.variables().values().all(|v| v.kind() == Kind::Float));
    }

    #[test]
    fn values_die_after_their_last_user_and_outputs_never() {
        let (_store, network) = small();
        let mut alive = vec![true; network.graph.nodes().len()];
        for (index, node) in network.graph.nodes().iter().enumerate() {
            assert!(node.inputs.iter().all(|id| alive[id.index()]));
            network.dying[index].iter().for_each(|id| alive[id.index()] = false);
        }
        assert_eq!(alive.iter().filter(|&&alive| alive).count(), network.graph.outputs().len());
    }
}
