//! Rewrites a network's file so that its convolutions compute in 8-bit integers: a quarter of the size, and less work where the processor
//! adds integers faster than floats.
//!
//! Between the layers go pairs of `QuantizeLinear` and `DequantizeLinear`, which a runtime melts into the layers around them (Jacob et al.
//! 2018, arXiv:1712.05877; [ONNX Runtime, QDQ](https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)). Weights
//! are symmetric with a scale for each output channel, what flows between layers is asymmetric with one scale a tensor. Heads stay floats.

use std::collections::HashMap;

use ort::value::Tensor as OrtTensor;
use tch::{Device, Kind, TchError, Tensor};

use super::messages::{
    AttributeProto, AttributeType, DataType, GraphProto, ModelProto, NodeProto, TensorProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};
use super::runtime::{self, RuntimeError};

/// Integers of a weight to each side of zero. Seven bits: processors with AVX2 but without VNNI add two products in 16 bits, which eight
/// bits overflow.
const WEIGHT_STEPS: f32 = 63.0;

/// Integers from the least value that flows between layers to the largest.
const STEPS: f32 = 255.0;

/// Why a network cannot be rewritten.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// Nothing would change.
    #[error("the network has no convolutions: in 8-bit integers it would gain nothing")]
    NoConvolution,
    /// What flows between its layers is only known from pictures.
    #[error("no pictures to find out on what flows between the layers")]
    NoPictures,
    /// Values that are not numbers have no range.
    #[error("{0} holds values that are not finite")]
    NotFinite(String),
    /// ONNX Runtime is missing or refuses the model.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// libtorch cannot hand out its values.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// The same network with convolutions in 8-bit integers. `batches` are what it sees, fp32 `[n, channels, height, width]`: they tell how
/// far what flows between its layers reaches, the mean over the batches of their extremes.
///
/// # Errors
/// When it has no convolutions, there are no batches, or ONNX Runtime cannot run it on them.
pub fn quantise(mut model: ModelProto, batches: impl IntoIterator<Item = Tensor>) -> Result<ModelProto, QuantiseError> {
    let values = model.graph.as_ref().map(rounded).unwrap_or_default();
    if values.is_empty() {
        return Err(QuantiseError::NoConvolution);
    }
    let ranges = ranges(&model, values, batches)?;
    model.graph = model.graph.map(|graph| rewritten(graph, &ranges));
    Ok(model)
}

/// What a tensor's values lie between; zero does in any case, since padding must be exact.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    low: f32,
    high: f32,
}

impl Range {
    const NOTHING: Self = Self { low: 0.0, high: 0.0 };

    fn of(values: &[f32]) -> Self {
        values
            .iter()
            .fold(Self::NOTHING, |Self { low, high }, value| Self { low: low.min(*value), high: high.max(*value) })
    }

    fn scale(self) -> f32 {
        let width = self.high - self.low;
        if width > 0.0 { width / STEPS } else { 1.0 }
    }

    /// The integer that stands for zero.
    fn zero(self) -> u8 {
        (-self.low / self.scale()).round() as u8
    }
}

/// The values that are rounded: what convolutions read, and what convolutions and sums give, after the rectifier where one follows.
fn rounded(graph: &GraphProto) -> Vec<String> {
    let producers: HashMap<&str, &NodeProto> = graph.node.iter().map(|node| (node.output[0].as_str(), node)).collect();
    let mut users: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
    for node in &graph.node {
        node.input.iter().for_each(|input| users.entry(input).or_default().push(node));
    }
    let gives_a_map = |node: &&NodeProto| matches!(node.op_type.as_str(), "Conv" | "Add");
    let is_rounded = |value: &&str| {
        let users = users.get(value).map(Vec::as_slice).unwrap_or_default();
        if users.iter().any(|user| user.op_type == "Conv" && user.input[0] == **value) {
            return true;
        }
        let is_rectified = matches!(users, [user] if user.op_type == "Relu");
        let of = producers.get(value).map(|node| match node.op_type.as_str() {
            "Relu" => producers.get(node.input[0].as_str()).unwrap_or(node),
            _ => node,
        });
        !users.is_empty() && !is_rectified && of.is_some_and(gives_a_map)
    };
    let has_convolution = graph.node.iter().any(|node| node.op_type == "Conv");
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    let values = inputs.chain(graph.node.iter().map(|node| node.output[0].as_str()));
    if has_convolution { values.filter(is_rounded).map(str::to_owned).collect() } else { Vec::new() }
}

/// Runs the network and watches these values.
fn ranges(
    model: &ModelProto,
    values: Vec<String>,
    batches: impl IntoIterator<Item = Tensor>,
) -> Result<HashMap<String, Range>, QuantiseError> {
    let mut watched = model.clone();
    let graph = watched.graph.get_or_insert_default();
    let input = graph.input.first().map(|input| input.name.clone()).unwrap_or_default();
    let inside = values.iter().filter(|value| **value != input);
    let known: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    graph.output.extend(inside.filter(|value| !known.contains(value)).map(|value| float_of_any_shape(value)));
    let mut session = runtime::session_of(&watched)?;

    let mut sums = vec![Range::NOTHING; values.len()];
    let mut count = 0.0;
    for pixels in batches {
        let plain = pixels.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let numbers = Vec::<f32>::try_from(plain.flatten(0, -1))?;
        let of_input = Range::of(&numbers);
        let tensor = OrtTensor::from_array((plain.size(), numbers)).map_err(RuntimeError::from)?;
        let found = session.run(ort::inputs![input.as_str() => tensor]).map_err(RuntimeError::from)?;
        for (value, sum) in values.iter().zip(&mut sums) {
            let range = if *value == input {
                of_input
            } else {
                Range::of(found[value.as_str()].try_extract_tensor::<f32>().map_err(RuntimeError::from)?.1)
            };
            *sum = Range { low: sum.low + range.low, high: sum.high + range.high };
        }
        count += 1.0;
    }
    if count == 0.0 {
        return Err(QuantiseError::NoPictures);
    }
    let mean = |(value, sum): (String, Range)| {
        let range = Range { low: sum.low / count, high: sum.high / count };
        if (range.high - range.low).is_finite() { Ok((value, range)) } else { Err(QuantiseError::NotFinite(value)) }
    };
    values.into_iter().zip(sums).map(mean).collect()
}

fn float_of_any_shape(name: &str) -> ValueInfoProto {
    let tensor_type = TensorTypeProto { elem_type: DataType::Float.into(), shape: None };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn rewritten(graph: GraphProto, ranges: &HashMap<String, Range>) -> GraphProto {
    let mut writer = Writer { nodes: Vec::new(), constants: graph.initializer };
    let round = |writer: &mut Writer, value: &str| {
        if let Some(range) = ranges.get(value) {
            writer.round(value, *range);
        }
    };
    graph.input.iter().for_each(|input| round(&mut writer, &input.name));
    for mut node in graph.node {
        if let ("Conv", Some(range)) = (node.op_type.as_str(), ranges.get(&node.input[0])) {
            writer.weights(&mut node, range.scale());
        }
        for input in node.input.iter_mut().filter(|input| ranges.contains_key(*input)) {
            *input = dequantised(input);
        }
        let value = node.output[0].clone();
        writer.nodes.push(node);
        round(&mut writer, &value);
    }
    GraphProto { node: writer.nodes, initializer: writer.constants, ..graph }
}

fn dequantised(value: &str) -> String {
    format!("{value}/dequantised")
}

/// The operators and constants written so far.
struct Writer {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Writer {
    /// Rounds a value to 8-bit integers and makes floats of them again.
    fn round(&mut self, value: &str, range: Range) {
        let scale = self.floats(format!("{value}/scale"), &[], &[range.scale()]);
        let zero = self.constant(format!("{value}/zero"), &[], DataType::Uint8, vec![range.zero()]);
        let quantised = format!("{value}/quantised");
        let inputs = vec![value.to_owned(), scale.clone(), zero.clone()];
        self.push("QuantizeLinear", inputs, quantised.clone(), vec![]);
        self.push("DequantizeLinear", vec![quantised, scale, zero], dequantised(value), vec![]);
    }

    /// Makes integers of a convolution's weight and bias, whose input has this scale.
    fn weights(&mut self, node: &mut NodeProto, input_scale: f32) {
        let weight = self.take(&node.input[1]);
        let channels = weight.dims.first().map_or(0, |channels| *channels as usize);
        let numbers = numbers(&weight);
        let rows = || numbers.chunks_exact((numbers.len() / channels.max(1)).max(1));
        let scale = |row: &[f32]| {
            let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            if largest > 0.0 { largest / WEIGHT_STEPS } else { 1.0 }
        };
        let scales: Vec<f32> = rows().map(scale).collect();
        let row_of_integers = |(row, scale): (&[f32], &f32)| -> Vec<u8> {
            row.iter().flat_map(|value| ((value / scale).round() as i8).to_le_bytes()).collect()
        };
        let integers = rows().zip(&scales).flat_map(row_of_integers).collect();
        node.input[1] = self.constants_of_channels((weight, DataType::Int8, integers), &scales);

        if let Some(bias) = node.input.get_mut(2) {
            let tensor = self.take(bias);
            // The sums of products have this scale, and 32 bits.
            let scales: Vec<f32> = scales.iter().map(|scale| scale * input_scale).collect();
            let integer = |(value, scale): (f32, &f32)| ((value / scale).round() as i32).to_le_bytes();
            let integers = self::numbers(&tensor).into_iter().zip(&scales).flat_map(integer).collect();
            *bias = self.constants_of_channels((tensor, DataType::Int32, integers), &scales);
        }
    }

    /// Writes integers in place of a constant of floats, a scale for each of its channels; returns the floats' name.
    fn constants_of_channels(
        &mut self,
        (constant, data_type, integers): (TensorProto, DataType, Vec<u8>),
        scales: &[f32],
    ) -> String {
        let TensorProto { name, dims, .. } = constant;
        let width = if data_type == DataType::Int8 { 1 } else { 4 };
        let channels = [scales.len() as i64];
        let scale = self.floats(format!("{name}/scale"), &channels, scales);
        let zero = self.constant(format!("{name}/zero"), &channels, data_type, vec![0; width * scales.len()]);
        let quantised = self.constant(name.clone(), &dims, data_type, integers);
        let axis = AttributeProto {
            i: Some(0),
            name: "axis".to_owned(),
            r#type: AttributeType::Int.into(),
            ..AttributeProto::default()
        };
        self.push("DequantizeLinear", vec![quantised, scale, zero], dequantised(&name), vec![axis]);
        dequantised(&name)
    }

    /// Takes a constant out.
    fn take(&mut self, name: &str) -> TensorProto {
        let index = self.constants.iter().position(|constant| constant.name == name);
        index.map(|index| self.constants.remove(index)).unwrap_or_default()
    }

    fn push(&mut self, kind: &str, input: Vec<String>, output: String, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input,
            name: output.clone(),
            output: vec![output],
            op_type: kind.to_owned(),
            attribute,
        });
    }

    fn floats(&mut self, name: String, dims: &[i64], data: &[f32]) -> String {
        self.constant(name, dims, DataType::Float, data.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn constant(&mut self, name: String, dims: &[i64], data_type: DataType, raw_data: Vec<u8>) -> String {
        let dims = dims.to_vec();
        self.constants.push(TensorProto { dims, data_type: data_type.into(), name: name.clone(), raw_data });
        name
    }
}

/// The floats of a constant.
fn numbers(constant: &TensorProto) -> Vec<f32> {
    constant.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tch::nn::VarStore;

    use super::*;
    use crate::architectures::residual::{ResidualConfig, residual};
    use crate::graph::{GraphBuilder, Input, Linear};
    use crate::network::{Mode, Network};
    use crate::onnx::export;

    fn constants(model: &ModelProto, data_type: DataType) -> Vec<&TensorProto> {
        let is = |constant: &&TensorProto| constant.data_type == i32::from(data_type);
        model.graph.as_ref().unwrap().initializer.iter().filter(is).collect()
    }

    fn operators(model: &ModelProto, kind: &str) -> usize {
        model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type == kind).count()
    }

    #[test]
    fn zero_is_exact_and_the_extremes_are_held() {
        for values in [vec![-1.0, 0.3, 2.0], vec![0.5, 4.0], vec![-3.0, -1.0], vec![0.0], vec![]] {
            let range = Range::of(&values);
            let round = |value: f32| {
                let integer = (value / range.scale()).round() + f32::from(range.zero());
                (integer.clamp(0.0, STEPS) - f32::from(range.zero())) * range.scale()
            };
            assert!(round(0.0).abs() < f32::EPSILON);
            for value in values {
                assert!((round(value) - value).abs() <= 0.51 * range.scale(), "{value} of {range:?}");
            }
        }
    }

    #[test]
    fn a_network_in_integers_answers_nearly_the_same() {
        tch::set_num_threads(1);
        tch::manual_seed(5);
        let store = VarStore::new(Device::Cpu);
        let config =
            ResidualConfig { widths: [8, 16, 16, 32], blocks: [1, 2, 1, 1], dropout: 0.0, ..ResidualConfig::default() };
        let graph = residual(&config).unwrap();
        let network = Network::new(&store.root(), &graph);
        // Branches begin at zero, and statistics as if all inputs were alike: neither would show anything.
        tch::no_grad(|| {
            for (name, mut variable) in store.variables() {
                if name.ends_with("bn2.weight") {
                    let _ = variable.fill_(0.7);
                }
            }
        });
        let pictures = || Tensor::randn([16, 3, 32, 32], (Kind::Float, Device::Cpu));
        (0..60).for_each(|_| drop(network.forward(&pictures(), Mode::Train)));

        let heads = ["age", "gender", "smile", "emotion"];
        let plain = export::write(&graph, &store.variables(), 32, &heads, "{}").unwrap();
        let small = quantise(plain.clone(), (0..4).map(|_| pictures())).unwrap();

        let weights = |model, data_type| -> Vec<usize> {
            let constants = constants(model, data_type).into_iter().filter(|constant| constant.dims.len() == 4);
            constants.map(|constant| constant.raw_data.len()).collect()
        };
        let of_floats = weights(&plain, DataType::Float);
        assert_eq!(of_floats.iter().map(|bytes| bytes / 4).collect::<Vec<_>>(), weights(&small, DataType::Int8));
        assert!(weights(&small, DataType::Float).is_empty(), "no convolution keeps its floats");
        assert_eq!(
            (operators(&small, "Conv"), of_floats.len()),
            (operators(&plain, "Conv"), operators(&plain, "Conv"))
        );
        assert_eq!(small.metadata_props, plain.metadata_props);

        let (x, mut session) = (pictures(), runtime::session_of(&small).unwrap());
        let numbers = Vec::<f32>::try_from(x.flatten(0, -1)).unwrap();
        let found = session.run(ort::inputs![export::INPUT => OrtTensor::from_array((x.size(), numbers)).unwrap()]);
        let found = found.unwrap();
        for (head, logits) in heads.iter().zip(network.forward(&x, Mode::Eval)) {
            let rounded = found[export::logits_name(head).as_str()].try_extract_tensor::<f32>().unwrap().1;
            let rounded = Tensor::from_slice(rounded).view_as(&logits);
            let error = (&rounded - &logits).std(false).double_value(&[]) / logits.std(false).double_value(&[]);
            assert!(error > 0.0 && error < 0.25, "{head}: {error}");
        }
    }

    #[test]
    fn networks_without_convolutions_or_pictures_are_refused() {
        let mut b = GraphBuilder::new(Input::Vector(4));
        let x = b.linear("head", b.input(), Linear::new(4, 2));
        let graph = b.finish([("head", x)]).unwrap();
        let store = VarStore::new(Device::Cpu);
        let _ = Network::new(&store.root(), &graph);
        let model = export::write(&graph, &store.variables(), export::Sides::None, &["head"], "{}").unwrap();
        let rows = Tensor::zeros([1, 4], (Kind::Float, Device::Cpu));
        assert!(matches!(quantise(model, [rows]), Err(QuantiseError::NoConvolution)));

        let store = VarStore::new(Device::Cpu);
        let graph = residual(&ResidualConfig::default()).unwrap();
        let _ = Network::new(&store.root(), &graph);
        let model = export::write(&graph, &store.variables(), 32, &["age"], "{}").unwrap();
        assert!(matches!(quantise(model, []), Err(QuantiseError::NoPictures)));
    }
}
