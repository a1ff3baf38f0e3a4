//! Writes a [`Graph`] with its variables as an ONNX model for inference: dropout vanishes, normalisations are folded into the convolution
//! or linear layer before them, and heads get a softmax. A network on vectors can also be written to answer many times with random dropout.

use std::collections::HashMap;

use facewise_core::manifest::METADATA_KEY;
use tch::{Device, Kind, Tensor};

use super::messages::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use crate::graph::{
    Activation, Affine, BatchNorm, Conv2d, Graph, GraphError, Input, Layer, Linear, Node, Ordinal, Shape, Window,
};
use crate::network::descending;

/// Name of the input tensor of pictures, float32 `[batch, channels, size, size]`.
pub const INPUT: &str = "pixels";

/// Name of the input tensor of vectors, float32 `[batch, features]`.
pub const VECTOR: &str = "features";

/// Version of the operators, published with ONNX 1.13.
const OPSET: i64 = 18;

/// Version of the file format that came with opset 18.
const IR_VERSION: i64 = 8;

/// Sides of the pictures that a file takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// This one.
    Fixed(usize),
    /// Any that the network can take, height and width apart; shapes are checked for this one.
    Dynamic(usize),
    /// Vectors have none.
    None,
}

impl From<usize> for Sides {
    fn from(side: usize) -> Self {
        Self::Fixed(side)
    }
}

/// Name of the tensor that a network reads.
pub fn input_name(input: Input) -> &'static str {
    match input {
        Input::Pictures(_) => INPUT,
        Input::Vector(_) => VECTOR,
    }
}

/// Name of the tensor that holds a head's logits; its probabilities have the head's own name.
pub fn logits_name(head: &str) -> String {
    format!("{head}_logits")
}

/// Name of the tensor that holds how often each class of a head won, in a network that answers many times.
pub fn votes_name(head: &str) -> String {
    format!("{head}_votes")
}

/// Why a network cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The graph does not work at this input size.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The weights lack a variable.
    #[error("the weights have no variable {0}")]
    Missing(String),
    /// A variable is not what the graph needs.
    #[error("variable {name} has the shape {found:?}, the network needs {expected:?}")]
    Variable {
        /// Name of the variable.
        name: String,
        /// Shape that the graph needs.
        expected: Vec<i64>,
        /// Shape that it has.
        found: Vec<i64>,
    },
    /// Weights that are not numbers come from a training that has diverged.
    #[error("variable {0} holds values that are not finite")]
    NotFinite(String),
    /// A softmax was asked for on something that is not a vector of the network's outputs.
    #[error("the network has no vector output {0} for a head")]
    Head(String),
    /// libtorch cannot hand out a variable.
    #[error("variable {name}: {source}")]
    Torch {
        /// Name of the variable.
        name: String,
        /// What libtorch says.
        source: tch::TchError,
    },
}

/// The network as an ONNX model for pictures with these sides, or vectors, and batches of any length; equal arguments give equal bytes.
///
/// `variables` are those of a [`tch::nn::VarStore`], by name, in any number format and layout. Outputs named in `heads` are logits: they
/// are written as `<head>_logits`, with their softmax as `<head>`; other outputs keep their names. `manifest` is the JSON to embed.
///
/// # Errors
/// If the graph does not work at this size, a variable is missing, of another shape or not finite, or a head is not an output.
#[expect(clippy::implicit_hasher, reason = "the type is that of `VarStore::variables`")]
pub fn write<S: AsRef<str>>(
    graph: &Graph,
    variables: &HashMap<String, Tensor>,
    sides: impl Into<Sides>,
    heads: &[S],
    manifest: &str,
) -> Result<ModelProto, ExportError> {
    model(graph, variables, sides.into(), heads, manifest, None)
}

/// A network on vectors as an ONNX model that answers each row `passes` times with random dropout (Gal & Ghahramani 2016,
/// arXiv:1506.02142); two runs give two answers.
///
/// Each head has its mean probabilities as `<head>` and, as `<head>_votes`, the share of the passes that each class was the most probable
/// in. All outputs have to be heads.
///
/// # Errors
/// As for [`write`].
#[expect(clippy::implicit_hasher, reason = "the type is that of `VarStore::variables`")]
pub fn write_repeated<S: AsRef<str>>(
    graph: &Graph,
    variables: &HashMap<String, Tensor>,
    heads: &[S],
    passes: u32,
    manifest: &str,
) -> Result<ModelProto, ExportError> {
    model(graph, variables, Sides::None, heads, manifest, Some(i64::from(passes)))
}

fn model<S: AsRef<str>>(
    graph: &Graph,
    variables: &HashMap<String, Tensor>,
    sides: Sides,
    heads: &[S],
    manifest: &str,
    passes: Option<i64>,
) -> Result<ModelProto, ExportError> {
    let size = match sides {
        Sides::Fixed(size) | Sides::Dynamic(size) => size,
        Sides::None => 0,
    };
    let shapes = graph.shapes(size)?;
    let is_head = |name: &str| heads.iter().any(|head| head.as_ref() == name);
    for head in heads {
        let found = graph.outputs().iter().find(|output| output.name == head.as_ref());
        if !found.is_some_and(|output| matches!(shapes[output.node.index()], Shape::Vector(_))) {
            return Err(ExportError::Head(head.as_ref().to_owned()));
        }
    }
    let input = graph.input();
    let mut writer = Writer::new(graph, variables, shapes, is_head, passes);
    for (index, node) in graph.nodes().iter().enumerate() {
        if let Some(operator) = writer.layer(index, node)? {
            let value = writer.values[index].clone();
            writer.push(node.name.clone(), operator, value);
        }
    }
    let outputs = match passes {
        None => writer.outputs(sides, is_head),
        Some(passes) => writer.means(passes),
    };

    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(GraphProto {
            name: "network".to_owned(),
            node: writer.nodes,
            initializer: writer.constants,
            input: vec![value_info(input_name(input), input.shape(size), sides)],
            output: outputs,
        }),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props: vec![StringStringEntryProto { key: METADATA_KEY.to_owned(), value: manifest.to_owned() }],
    })
}

/// An ONNX operator without its name and output.
struct Operator {
    kind: &'static str,
    inputs: Vec<String>,
    attributes: Vec<AttributeProto>,
}

impl Operator {
    fn new(kind: &'static str, inputs: Vec<String>, attributes: Vec<AttributeProto>) -> Self {
        Self { kind, inputs, attributes }
    }
}

/// The operators and constants written so far.
struct Writer<'a> {
    graph: &'a Graph,
    variables: &'a HashMap<String, Tensor>,
    shapes: Vec<Shape>,
    /// For each node whether it is folded into the normalisation that is its only user.
    folded: Vec<bool>,
    /// For each node the name of the tensor that holds its value.
    values: Vec<String>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// How often each row is answered, where dropout stays random.
    passes: Option<i64>,
}

impl<'a> Writer<'a> {
    fn new(
        graph: &'a Graph,
        variables: &'a HashMap<String, Tensor>,
        shapes: Vec<Shape>,
        is_head: impl Fn(&str) -> bool,
        passes: Option<i64>,
    ) -> Self {
        let nodes = graph.nodes();
        let mut users = vec![Vec::new(); nodes.len()];
        for node in nodes {
            node.inputs.iter().for_each(|id| users[id.index()].push(&node.layer));
        }
        let foldable = |(node, users): (&Node, &Vec<&Layer>)| {
            matches!(node.layer, Layer::Conv2d(_) | Layer::Linear(_)) && matches!(users[..], [Layer::BatchNorm(_)])
        };
        let mut folded: Vec<bool> = nodes.iter().zip(&users).map(foldable).collect();
        // The slash keeps values inside the network apart from its inputs and outputs.
        let mut values: Vec<String> = nodes.iter().map(|node| format!("/{}", node.name)).collect();
        for output in graph.outputs() {
            folded[output.node.index()] = false;
        }
        if passes.is_none() {
            for output in graph.outputs() {
                values[output.node.index()] = tensor_name(&output.name, is_head(&output.name));
            }
            for (index, node) in nodes.iter().enumerate() {
                if node.layer == Layer::Input {
                    input_name(graph.input()).clone_into(&mut values[index]);
                } else if matches!(node.layer, Layer::Dropout { .. }) {
                    let same = values[node.inputs[0].index()].clone();
                    values[index] = same;
                }
            }
        }
        Self { graph, variables, shapes, folded, values, nodes: Vec::new(), constants: Vec::new(), passes }
    }

    /// The operator that computes a node's value; none if the value is another node's or is never needed.
    fn layer(&mut self, index: usize, node: &Node) -> Result<Option<Operator>, ExportError> {
        let inputs: Vec<String> = node.inputs.iter().map(|id| self.values[id.index()].clone()).collect();
        let (kind, inputs, attributes) = match &node.layer {
            Layer::Input | Layer::Dropout { .. } if self.passes.is_none() => return Ok(None),
            Layer::Input => {
                let passes = self.passes.unwrap_or(1);
                let once = self.integers(format!("{}.axis", node.name), &[0]);
                let once = vec![input_name(self.graph.input()).to_owned(), once];
                let once = self.step(node, Operator::new("Unsqueeze", once, vec![]));
                let times = self.integers(format!("{}.passes", node.name), &[passes, 1, 1]);
                let repeated = self.step(node, Operator::new("Expand", vec![once, times], vec![]));
                let rows = self.integers(format!("{}.rows", node.name), &[-1, self.shapes[index].features() as i64]);
                ("Reshape", vec![repeated, rows], vec![])
            }
            Layer::Dropout { p } => {
                // ONNX Runtime's own dropout does nothing outside of training.
                let noise = self.step(node, Operator::new("RandomUniformLike", inputs.clone(), vec![]));
                let ratio = self.floats(format!("{}.ratio", node.name), &[1], &[*p as f32]);
                let kept = self.step(node, Operator::new("GreaterOrEqual", vec![noise, ratio], vec![]));
                let kept = self.step(node, Operator::new("Cast", vec![kept], vec![int("to", DataType::Float as i64)]));
                let scale = self.floats(format!("{}.scale", node.name), &[1], &[(1.0 / (1.0 - p)) as f32]);
                let scaled = self.step(node, Operator::new("Mul", vec![inputs[0].clone(), scale], vec![]));
                ("Mul", vec![scaled, kept], vec![])
            }
            Layer::Conv2d(_) | Layer::Linear(_) if self.folded[index] => return Ok(None),
            Layer::Conv2d(_) | Layer::Linear(_) => return self.affine(node, None).map(Some),
            Layer::BatchNorm(norm) => return self.batch_norm(node, norm).map(Some),
            Layer::Ordinal(ordinal) => return self.ordinal(node, ordinal).map(Some),
            Layer::Affine(affine @ Affine { weight, bias }) => {
                let dims = [affine.outputs(), affine.inputs()];
                let weight = self.floats(format!("{}.weight", node.name), &dims, weight);
                let bias = self.floats(format!("{}.bias", node.name), &dims[..1], bias);
                ("Gemm", [inputs, vec![weight, bias]].concat(), vec![int("transB", 1)])
            }
            Layer::Activation(Activation::Relu) => ("Relu", inputs, vec![]),
            Layer::Activation(Activation::LeakyRelu { slope }) => ("LeakyRelu", inputs, vec![float("alpha", *slope)]),
            Layer::Activation(Activation::Tanh) => ("Tanh", inputs, vec![]),
            Layer::Activation(Activation::Sigmoid) => ("Sigmoid", inputs, vec![]),
            Layer::Activation(Activation::HardSwish) => ("HardSwish", inputs, vec![]),
            Layer::Activation(Activation::Silu) => {
                let gate = self.step(node, Operator::new("Sigmoid", inputs.clone(), vec![]));
                ("Mul", [inputs, vec![gate]].concat(), vec![])
            }
            Layer::MaxPool(window) => ("MaxPool", inputs, window_attributes(*window)),
            Layer::AvgPool(window) => {
                ("AveragePool", inputs, [window_attributes(*window), vec![int("count_include_pad", 1)]].concat())
            }
            Layer::GlobalAvgPool => {
                let pooled = self.step(node, Operator::new("GlobalAveragePool", inputs, vec![]));
                ("Flatten", vec![pooled], vec![int("axis", 1)])
            }
            Layer::Flatten => ("Flatten", inputs, vec![int("axis", 1)]),
            Layer::Add => ("Add", inputs, vec![]),
            Layer::Mul if self.shapes[node.inputs[0].index()] == self.shapes[node.inputs[1].index()] => {
                ("Mul", inputs, vec![])
            }
            Layer::Mul => {
                let [map, factors] = [inputs[0].clone(), inputs[1].clone()];
                let axes = self.integers(format!("{}.axes", node.name), &[2, 3]);
                let factors = self.step(node, Operator::new("Unsqueeze", vec![factors, axes], vec![]));
                ("Mul", vec![map, factors], vec![])
            }
            Layer::Div => ("Div", inputs, vec![]),
            Layer::Concat => ("Concat", inputs, vec![int("axis", 1)]),
            Layer::Softmax => ("Softmax", inputs, vec![int("axis", 1)]),
            Layer::Upsample => {
                let scales = self.floats(format!("{}.scales", node.name), &[4], &[1.0, 1.0, 2.0, 2.0]);
                let exact =
                    [("mode", "nearest"), ("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")];
                // The empty name leaves out the region of interest, which this mode does not have.
                let inputs = [inputs, vec![String::new(), scales]].concat();
                ("Resize", inputs, exact.map(|(name, value)| string(name, value)).to_vec())
            }
        };
        Ok(Some(Operator::new(kind, inputs, attributes)))
    }

    /// A convolution or linear layer, followed by a normalisation that becomes part of it.
    fn affine(&mut self, node: &Node, norm: Option<&Rescaling>) -> Result<Operator, ExportError> {
        let (kind, dims, biased, attributes) = match &node.layer {
            Layer::Conv2d(Conv2d { inputs, outputs, kernel, stride, padding, groups, bias }) => {
                let window = window_attributes(Window { kernel: *kernel, stride: *stride, padding: *padding });
                let attributes = [window, vec![int("group", *groups as i64)]].concat();
                ("Conv", vec![*outputs, inputs / groups, *kernel, *kernel], *bias, attributes)
            }
            Layer::Linear(Linear { inputs, outputs, bias }) => {
                ("Gemm", vec![*outputs, *inputs], *bias, vec![int("transB", 1)])
            }
            other => unreachable!("{other:?} has no weight"),
        };
        let mut weight = self.variable(&node.name, "weight", &dims)?;
        let mut bias = if biased { Some(self.variable(&node.name, "bias", &dims[..1])?) } else { None };
        if let Some(Rescaling { factor, shift }) = norm {
            let row = weight.len() / dims[0];
            for (row, factor) in weight.chunks_exact_mut(row).zip(factor) {
                for w in row {
                    *w = (f64::from(*w) * factor) as f32;
                }
            }
            let before = bias.unwrap_or_else(|| vec![0.0; dims[0]]);
            let rescaled =
                before.iter().zip(factor).zip(shift).map(|((b, factor), shift)| f64::from(*b) * factor + shift);
            bias = Some(rescaled.map(|b| b as f32).collect());
        }
        let mut inputs = vec![self.values[node.inputs[0].index()].clone()];
        inputs.push(self.floats(format!("{}.weight", node.name), &dims, &weight));
        if let Some(bias) = bias {
            inputs.push(self.floats(format!("{}.bias", node.name), &dims[..1], &bias));
        }
        Ok(Operator::new(kind, inputs, attributes))
    }

    /// Ordered thresholds: a linear layer with the same weights in each row, and with sorted constants.
    fn ordinal(&mut self, node: &Node, layer: &Ordinal) -> Result<Operator, ExportError> {
        let Ordinal { inputs, thresholds } = *layer;
        let weight = self.variable(&node.name, "weight", &[1, inputs])?.repeat(thresholds);
        let bias = Tensor::from_slice(&self.variable(&node.name, "bias", &[thresholds])?);
        let bias = Vec::try_from(descending(&bias))
            .map_err(|source| ExportError::Torch { name: format!("{}.bias", node.name), source })?;
        let weight = self.floats(format!("{}.weight", node.name), &[thresholds, inputs], &weight);
        let bias = self.floats(format!("{}.bias", node.name), &[thresholds], &bias);
        let input = self.values[node.inputs[0].index()].clone();
        Ok(Operator::new("Gemm", vec![input, weight, bias], vec![int("transB", 1)]))
    }

    /// A normalisation: as part of the layer before it where that serves nobody else, else on its own.
    fn batch_norm(&mut self, node: &Node, norm: &BatchNorm) -> Result<Operator, ExportError> {
        let dims = [norm.features];
        let parts = ["weight", "bias", "running_mean", "running_var"];
        let data = parts.map(|part| self.variable(&node.name, part, &dims));
        let [weight, bias, mean, variance] = data;
        let (weight, bias, mean, variance) = (weight?, bias?, mean?, variance?);
        let before = node.inputs[0].index();
        if self.folded[before] {
            let source = &self.graph.nodes()[before];
            return self.affine(source, Some(&Rescaling::of(&weight, &bias, &mean, &variance, norm.eps)));
        }
        let mut inputs = vec![self.values[before].clone()];
        for (part, data) in parts.iter().zip([weight, bias, mean, variance]) {
            inputs.push(self.floats(format!("{}.{part}", node.name), &dims, &data));
        }
        Ok(Operator::new("BatchNormalization", inputs, vec![float("epsilon", norm.eps)]))
    }

    /// The network's outputs, each head as logits and probabilities.
    fn outputs(&mut self, sides: Sides, is_head: impl Fn(&str) -> bool) -> Vec<ValueInfoProto> {
        let mut outputs = Vec::new();
        for output in self.graph.outputs() {
            let (index, head) = (output.node.index(), is_head(&output.name));
            let (value, shape) = (self.values[index].clone(), self.shapes[index]);
            let name = tensor_name(&output.name, head);
            // The input itself, a dropout, or a value with two names.
            if value != name {
                self.push(name.clone(), Operator::new("Identity", vec![value], vec![]), name.clone());
            }
            outputs.push(value_info(&name, shape, sides));
            if head {
                let softmax = Operator::new("Softmax", vec![name], vec![int("axis", 1)]);
                self.push(output.name.clone(), softmax, output.name.clone());
                outputs.push(value_info(&output.name, shape, sides));
            }
        }
        outputs
    }

    /// The heads of a network that answers many times: means over the passes of probabilities and of votes.
    fn means(&mut self, passes: i64) -> Vec<ValueInfoProto> {
        let graph = self.graph;
        let mut outputs = Vec::new();
        for output in graph.outputs() {
            let (node, shape) = (&graph.nodes()[output.node.index()], self.shapes[output.node.index()]);
            let (logits, classes) = (self.values[output.node.index()].clone(), shape.features() as i64);
            let probabilities = self.step(node, Operator::new("Softmax", vec![logits.clone()], vec![int("axis", 1)]));
            let winners = vec![int("axis", 1), int("keepdims", 0)];
            let winners = self.step(node, Operator::new("ArgMax", vec![logits], winners));
            let depth = self.integers(format!("{}.classes", output.name), &[classes]);
            let no_and_yes = self.floats(format!("{}.no_and_yes", output.name), &[2], &[0.0, 1.0]);
            let votes = self.step(node, Operator::new("OneHot", vec![winners, depth, no_and_yes], vec![]));
            let by_pass = self.integers(format!("{}.by_pass", output.name), &[passes, -1, classes]);
            let axis = self.integers(format!("{}.axis", output.name), &[0]);
            for (value, name) in [(probabilities, output.name.clone()), (votes, votes_name(&output.name))] {
                let apart = format!("/{name}/by_pass");
                let reshape = Operator::new("Reshape", vec![value, by_pass.clone()], vec![]);
                self.push(apart.clone(), reshape, apart.clone());
                let mean = Operator::new("ReduceMean", vec![apart, axis.clone()], vec![int("keepdims", 0)]);
                self.push(name.clone(), mean, name.clone());
                outputs.push(value_info(&name, shape, Sides::None));
            }
        }
        outputs
    }

    /// An operator that prepares the input of a node's own; returns its value.
    fn step(&mut self, node: &Node, operator: Operator) -> String {
        let name = format!("{}/{}", node.name, operator.kind);
        let value = format!("/{name}");
        self.push(name, operator, value.clone());
        value
    }

    fn push(&mut self, name: String, operator: Operator, output: String) {
        let Operator { kind, inputs, attributes } = operator;
        let output = vec![output];
        self.nodes.push(NodeProto { input: inputs, output, name, op_type: kind.to_owned(), attribute: attributes });
    }

    fn floats(&mut self, name: String, dims: &[usize], data: &[f32]) -> String {
        self.constant(name, dims, DataType::Float, data.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn integers(&mut self, name: String, data: &[i64]) -> String {
        self.constant(name, &[data.len()], DataType::Int64, data.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn constant(&mut self, name: String, dims: &[usize], data_type: DataType, raw_data: Vec<u8>) -> String {
        let dims = dims.iter().map(|&n| n as i64).collect();
        self.constants.push(TensorProto { dims, data_type: data_type.into(), name: name.clone(), raw_data });
        name
    }

    /// The numbers of a layer's variable, checked against the shape that the graph needs.
    fn variable(&self, layer: &str, part: &str, dims: &[usize]) -> Result<Vec<f32>, ExportError> {
        let name = format!("{layer}.{part}");
        let Some(tensor) = self.variables.get(&name) else {
            return Err(ExportError::Missing(name));
        };
        let expected: Vec<i64> = dims.iter().map(|&n| n as i64).collect();
        let found = tensor.size();
        if found != expected {
            return Err(ExportError::Variable { name, expected, found });
        }
        let plain = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().flatten(0, -1);
        match Vec::<f32>::try_from(plain) {
            Err(source) => Err(ExportError::Torch { name, source }),
            Ok(data) if data.iter().all(|value| value.is_finite()) => Ok(data),
            Ok(_) => Err(ExportError::NotFinite(name)),
        }
    }
}

/// A normalisation with fixed statistics as `factor · x + shift` per feature.
struct Rescaling {
    factor: Vec<f64>,
    shift: Vec<f64>,
}

impl Rescaling {
    fn of(weight: &[f32], bias: &[f32], mean: &[f32], variance: &[f32], eps: f64) -> Self {
        let factor: Vec<f64> =
            weight.iter().zip(variance).map(|(w, v)| f64::from(*w) / (f64::from(*v) + eps).sqrt()).collect();
        let shift =
            bias.iter().zip(mean).zip(&factor).map(|((b, m), factor)| f64::from(*b) - f64::from(*m) * factor).collect();
        Self { factor, shift }
    }
}

fn tensor_name(output: &str, head: bool) -> String {
    if head { logits_name(output) } else { output.to_owned() }
}

fn value_info(name: &str, shape: Shape, sides: Sides) -> ValueInfoProto {
    let known = |n: usize| Dimension::Value(n as i64);
    // A dimension that follows the input is named after its share of it.
    let side = |axis: &str, n: usize| match sides {
        Sides::Fixed(_) | Sides::None => known(n),
        Sides::Dynamic(size) if size == n => Dimension::Param(axis.to_owned()),
        Sides::Dynamic(size) => Dimension::Param(format!("{axis}/{}", size / n.max(1))),
    };
    let sizes = match shape {
        Shape::Map { channels, height, width } => vec![known(channels), side("height", height), side("width", width)],
        Shape::Vector(features) => vec![known(features)],
    };
    let dimensions = std::iter::once(Dimension::Param("batch".to_owned())).chain(sizes);
    let shape = TensorShapeProto { dim: dimensions.map(|value| DimensionProto { value: Some(value) }).collect() };
    let tensor_type = TensorTypeProto { elem_type: DataType::Float.into(), shape: Some(shape) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn window_attributes(window: Window) -> Vec<AttributeProto> {
    let Window { kernel, stride, padding } = window;
    vec![ints("kernel_shape", &[kernel; 2]), ints("strides", &[stride; 2]), ints("pads", &[padding; 4])]
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: kind.into(), ..AttributeProto::default() }
}

fn float(name: &str, value: f64) -> AttributeProto {
    AttributeProto { f: Some(value as f32), ..attribute(name, AttributeType::Float) }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|&n| n as i64).collect();
    AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}

fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec()), ..attribute(name, AttributeType::String) }
}
