//! The layers that a graph is made of, what they cost, and which shapes they take and give.

use std::fmt;

/// Two-dimensional convolution, weights `outputs × inputs/groups × kernel × kernel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv2d {
    /// Channels that go in.
    pub inputs: usize,
    /// Channels that come out.
    pub outputs: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step between two applications of the kernel.
    pub stride: usize,
    /// Zeros added on each side.
    pub padding: usize,
    /// Groups of channels convolved apart from each other; `inputs` makes it depthwise.
    pub groups: usize,
    /// Whether a constant is added per output channel.
    pub bias: bool,
}

impl Conv2d {
    /// A convolution that keeps the size for odd kernels: stride 1, padding `kernel / 2`, one group, no bias.
    pub fn new(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { inputs, outputs, kernel, stride: 1, padding: kernel / 2, groups: 1, bias: false }
    }

    /// Sets the stride.
    #[must_use]
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Sets the padding.
    #[must_use]
    pub fn padding(self, padding: usize) -> Self {
        Self { padding, ..self }
    }

    /// Sets the number of groups.
    #[must_use]
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Adds a bias.
    #[must_use]
    pub fn biased(self) -> Self {
        Self { bias: true, ..self }
    }
}

/// Batch normalisation of maps (per channel) and vectors (per feature).
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm {
    /// Channels or features.
    pub features: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Share of the newest batch in the running statistics.
    pub momentum: f64,
    /// Start with weight 0 instead of 1: the last normalisation of a residual branch, which makes the block the identity at first
    /// (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    pub zero_init: bool,
}

impl BatchNorm {
    /// `PyTorch`'s defaults: eps 1e-5, momentum 0.1, weight 1.
    pub fn new(features: usize) -> Self {
        Self { features, eps: 1e-5, momentum: 0.1, zero_init: false }
    }

    /// Starts with weight 0.
    #[must_use]
    pub fn zero_init(self) -> Self {
        Self { zero_init: true, ..self }
    }
}

/// Fully connected layer over a vector, weights `outputs × inputs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// Features that go in.
    pub inputs: usize,
    /// Features that come out.
    pub outputs: usize,
    /// Whether a constant is added per output.
    pub bias: bool,
}

impl Linear {
    /// A linear layer with bias.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, bias: true }
    }
}

/// `scores = w · x + b` for thresholds that share one row of weights `w` and have a constant each, in descending order: the chance that the
/// truth is above a threshold never grows with the threshold (CORAL, Cao et al. 2020, arXiv:1901.07884).
///
/// Its variables are a weight `1 × inputs` and a bias of `thresholds` numbers, which is sorted before use. The sum over the thresholds that
/// are passed, CORAL's answer, does not depend on their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordinal {
    /// Features that go in.
    pub inputs: usize,
    /// Thresholds, one fewer than ranks.
    pub thresholds: usize,
}

/// A linear layer with numbers that are known beforehand and not learned, computed in fp32.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// Row by row, `outputs × inputs`.
    pub weight: Vec<f32>,
    /// One for each output.
    pub bias: Vec<f32>,
}

impl Affine {
    /// From the number at each output and input, and a constant for each output.
    pub fn new(
        inputs: usize,
        outputs: usize,
        weight: impl Fn(usize, usize) -> f32,
        bias: impl Fn(usize) -> f32,
    ) -> Self {
        let rows = (0..outputs).flat_map(|output| (0..inputs).map(move |input| (output, input)));
        Self {
            weight: rows.map(|(output, input)| weight(output, input)).collect(),
            bias: (0..outputs).map(bias).collect(),
        }
    }

    /// Each feature times a factor, plus a constant.
    pub fn each(features: usize, factor: f32, constant: impl Fn(usize) -> f32) -> Self {
        Self::new(features, features, |output, input| if output == input { factor } else { 0.0 }, constant)
    }

    /// Features that go in.
    pub fn inputs(&self) -> usize {
        self.weight.len() / self.bias.len().max(1)
    }

    /// Features that come out.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }
}

/// A window that slides over a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Side of the square window.
    pub kernel: usize,
    /// Step between two windows.
    pub stride: usize,
    /// Cells added on each side: minus infinity for a maximum, counted as zeros for an average.
    pub padding: usize,
}

/// An elementwise function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// x for x ≥ 0, slope · x below.
    LeakyRelu {
        /// Factor of negative values.
        slope: f64,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// x · clamp(x/6 + 1/2, 0, 1) (Howard et al. 2019, arXiv:1905.02244).
    HardSwish,
    /// x · sigmoid(x)
    Silu,
}

/// What a node computes.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// The pictures, or vectors; the first node of each graph, and the only one of its kind.
    Input,
    /// Convolution of a map.
    Conv2d(Conv2d),
    /// Batch normalisation of a map or vector.
    BatchNorm(BatchNorm),
    /// Elementwise function of anything.
    Activation(Activation),
    /// Largest value in each window of a map.
    MaxPool(Window),
    /// Mean of each window of a map, padding counted.
    AvgPool(Window),
    /// Mean over each channel of a map: `N × C × H × W` → `N × C`.
    GlobalAvgPool,
    /// A map as a vector: `N × C × H × W` → `N × CHW`.
    Flatten,
    /// Fully connected layer over a vector.
    Linear(Linear),
    /// Scores of ordered thresholds over a vector.
    Ordinal(Ordinal),
    /// Linear layer over a vector that is not learned.
    Affine(Affine),
    /// Sum of two equal shapes.
    Add,
    /// Product of two equal shapes, or of a map with a vector that has one factor for each of its channels.
    Mul,
    /// Quotient of two equal shapes.
    Div,
    /// Joins maps along their channels, or vectors.
    Concat,
    /// Sets values to zero with this probability while training and scales the others up.
    Dropout {
        /// Probability of zero.
        p: f64,
    },
    /// Softmax over the features of a vector.
    Softmax,
    /// Each cell of a map becomes 2 × 2 equal cells.
    Upsample,
}

impl Layer {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Conv2d(_) => "conv",
            Self::BatchNorm(_) => "bn",
            Self::Activation(activation) => match activation {
                Activation::Relu => "relu",
                Activation::LeakyRelu { .. } => "leaky_relu",
                Activation::Tanh => "tanh",
                Activation::Sigmoid => "sigmoid",
                Activation::HardSwish => "hard_swish",
                Activation::Silu => "silu",
            },
            Self::MaxPool(_) => "max_pool",
            Self::AvgPool(_) => "avg_pool",
            Self::GlobalAvgPool => "global_avg_pool",
            Self::Flatten => "flatten",
            Self::Linear(_) => "linear",
            Self::Ordinal(_) => "ordinal",
            Self::Affine(_) => "affine",
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Concat => "concat",
            Self::Dropout { .. } => "dropout",
            Self::Softmax => "softmax",
            Self::Upsample => "upsample",
        }
    }

    /// Trainable numbers of this layer; running statistics are not among them.
    pub(super) fn parameters(&self) -> usize {
        match self {
            Self::Conv2d(c) => c.outputs * (c.inputs / c.groups.max(1) * c.kernel * c.kernel + usize::from(c.bias)),
            Self::BatchNorm(norm) => 2 * norm.features,
            Self::Linear(linear) => linear.outputs * (linear.inputs + usize::from(linear.bias)),
            Self::Ordinal(ordinal) => ordinal.inputs + ordinal.thresholds,
            _ => 0,
        }
    }

    /// Shape of the output for the given inputs, or what is wrong with them.
    pub(super) fn shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        match (self, inputs) {
            (Self::Conv2d(c), &[Shape::Map { channels, height, width }]) => {
                if channels != c.inputs {
                    return Err(format!("takes {} channels, is given {channels}", c.inputs));
                }
                if c.groups == 0 || c.inputs % c.groups != 0 || c.outputs % c.groups != 0 || c.outputs == 0 {
                    return Err(format!(
                        "{} groups do not divide {} inputs and {} outputs",
                        c.groups, c.inputs, c.outputs
                    ));
                }
                let window = Window { kernel: c.kernel, stride: c.stride, padding: c.padding };
                Ok(Shape::Map { channels: c.outputs, height: window.slide(height)?, width: window.slide(width)? })
            }
            (Self::BatchNorm(norm), &[shape]) => {
                if shape.features() != norm.features {
                    return Err(format!("normalises {} features, is given {}", norm.features, shape.features()));
                }
                Ok(shape)
            }
            (Self::Activation(_) | Self::Dropout { .. }, &[shape]) | (Self::Softmax, &[shape @ Shape::Vector(_)]) => {
                Ok(shape)
            }
            (Self::MaxPool(window) | Self::AvgPool(window), &[Shape::Map { channels, height, width }]) => {
                // libtorch's rule: a window never lies wholly in the padding.
                if window.padding > window.kernel / 2 {
                    return Err(format!(
                        "padding {} is more than half the window of {}",
                        window.padding, window.kernel
                    ));
                }
                Ok(Shape::Map { channels, height: window.slide(height)?, width: window.slide(width)? })
            }
            (Self::GlobalAvgPool, &[Shape::Map { channels, .. }]) => Ok(Shape::Vector(channels)),
            (Self::Flatten, &[Shape::Map { channels, height, width }]) => Ok(Shape::Vector(channels * height * width)),
            (Self::Linear(linear), &[Shape::Vector(features)]) => {
                if features != linear.inputs || linear.outputs == 0 {
                    return Err(format!("maps {} features to {}, is given {features}", linear.inputs, linear.outputs));
                }
                Ok(Shape::Vector(linear.outputs))
            }
            (Self::Ordinal(ordinal), &[Shape::Vector(features)]) => {
                if features != ordinal.inputs || ordinal.thresholds == 0 {
                    let Ordinal { inputs, thresholds } = ordinal;
                    return Err(format!("sets {thresholds} thresholds over {inputs} features, is given {features}"));
                }
                Ok(Shape::Vector(ordinal.thresholds))
            }
            (Self::Affine(affine), &[Shape::Vector(features)]) => {
                if features != affine.inputs() || affine.outputs() == 0 {
                    return Err(format!(
                        "maps {} features to {}, is given {features}",
                        affine.inputs(),
                        affine.outputs()
                    ));
                }
                Ok(Shape::Vector(affine.outputs()))
            }
            (Self::Add | Self::Mul | Self::Div, &[a, b]) if a == b => Ok(a),
            (Self::Mul, &[map @ Shape::Map { channels, .. }, Shape::Vector(factors)]) if channels == factors => Ok(map),
            (Self::Concat, [first, rest @ ..]) => rest.iter().try_fold(*first, |joined, next| joined.join(*next)),
            (Self::Upsample, &[Shape::Map { channels, height, width }]) => {
                Ok(Shape::Map { channels, height: 2 * height, width: 2 * width })
            }
            _ => {
                let given: Vec<String> = inputs.iter().map(Shape::to_string).collect();
                Err(format!("does not accept [{}]", given.join(", ")))
            }
        }
    }
}

impl Window {
    fn slide(self, length: usize) -> Result<usize, String> {
        if self.stride == 0 || self.kernel == 0 {
            return Err("kernel and stride must be at least 1".to_owned());
        }
        (length + 2 * self.padding).checked_sub(self.kernel).map(|room| room / self.stride + 1).ok_or_else(|| {
            format!("a window of {} does not fit into {length} with padding {}", self.kernel, self.padding)
        })
    }
}

/// Shape of a node's output for one picture; a batch has one more dimension in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Channels × height × width.
    Map {
        /// Number of channels.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// A number of features.
    Vector(usize),
}

impl Shape {
    /// Channels of a map, length of a vector: the dimension after the batch.
    pub fn features(self) -> usize {
        match self {
            Self::Map { channels, .. } => channels,
            Self::Vector(features) => features,
        }
    }

    fn join(self, other: Self) -> Result<Self, String> {
        match (self, other) {
            (Self::Vector(a), Self::Vector(b)) => Ok(Self::Vector(a + b)),
            (Self::Map { channels: a, height, width }, Self::Map { channels: b, height: h, width: w })
                if (height, width) == (h, w) =>
            {
                Ok(Self::Map { channels: a + b, height, width })
            }
            _ => Err(format!("cannot join {self} and {other}")),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { channels, height, width } => write!(f, "{channels}×{height}×{width}"),
            Self::Vector(features) => write!(f, "{features}"),
        }
    }
}
