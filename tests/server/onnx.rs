//! ONNX files written by hand, field by field: small networks whose answers are known.

/// A protobuf integer.
fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A protobuf field with a length.
pub(crate) fn field(tag: usize, bytes: &[u8]) -> Vec<u8> {
    [varint(tag << 3 | 2), varint(bytes.len()), bytes.to_vec()].concat()
}

/// A protobuf field that is an integer.
pub(crate) fn number(tag: usize, value: usize) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn text(tag: usize, word: &str) -> Vec<u8> {
    field(tag, word.as_bytes())
}

/// A dimension: a number, or the name of an open one.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Fixed(usize),
    Open(&'static str),
}

/// A float32 tensor that a network reads or answers.
fn tensor(name: &str, shape: &[Side]) -> Vec<u8> {
    let side = |side: &Side| match side {
        Side::Fixed(size) => field(1, &number(1, *size)),
        Side::Open(word) => field(1, &text(2, word)),
    };
    let tensor_type = [number(1, 1), field(2, &shape.iter().flat_map(side).collect::<Vec<u8>>())].concat();
    [text(1, name), field(2, &field(1, &tensor_type))].concat()
}

/// A constant of floats, or of 64-bit integers.
fn constant(name: &str, shape: &[usize], kind: usize, raw: &[u8]) -> Vec<u8> {
    let dimensions: Vec<u8> = shape.iter().flat_map(|side| number(1, *side)).collect();
    [dimensions, number(2, kind), text(8, name), field(9, raw)].concat()
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    constant(name, shape, 1, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    constant(name, &[values.len()], 7, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

/// A node with attributes that are lists of integers.
fn node(kind: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[usize])]) -> Vec<u8> {
    let attribute = |(name, values): &(&str, &[usize])| {
        let values: Vec<u8> = values.iter().flat_map(|value| number(8, *value)).collect();
        field(5, &[text(1, name), values, number(20, 7)].concat())
    };
    let inputs: Vec<u8> = inputs.iter().flat_map(|name| text(1, name)).collect();
    [inputs, text(2, output), text(4, kind), attributes.iter().flat_map(attribute).collect()].concat()
}

/// The parts of a network, and the file made of them.
#[derive(Default)]
struct Graph {
    nodes: Vec<Vec<u8>>,
    constants: Vec<Vec<u8>>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
}

impl Graph {
    fn file(self) -> Vec<u8> {
        let parts = |tag, parts: Vec<Vec<u8>>| parts.iter().flat_map(|part| field(tag, part)).collect::<Vec<u8>>();
        let Self { nodes, constants, inputs, outputs } = self;
        let graph =
            [parts(1, nodes), text(2, "graph"), parts(5, constants), parts(11, inputs), parts(12, outputs)].concat();
        [number(1, 8), field(7, &graph), field(8, &number(2, 18))].concat()
    }
}

/// `age = pixels + w`, whose weights lie in another file: an ONNX network without a manifest inside.
pub(crate) fn network_with_weights_in(location: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| field(13, &[text(1, key), text(2, value)].concat());
    let weights = [number(1, 4), number(2, 1), text(8, "w"), entry("location", location), number(14, 1)].concat();
    let shape = [Side::Open("batch"), Side::Fixed(4)];
    Graph {
        nodes: vec![node("Add", &["pixels", "w"], "age", &[])],
        constants: vec![weights],
        inputs: vec![tensor("pixels", &shape)],
        outputs: vec![tensor("age", &shape)],
    }
    .file()
}

/// A network that says of every face that it smiles with this probability: an ONNX network without a manifest inside.
pub(crate) fn smiles(probability: f32) -> Vec<u8> {
    let face = [Side::Open("batch"), Side::Fixed(3), Side::Fixed(8), Side::Fixed(8)];
    Graph {
        nodes: vec![
            node("Conv", &["pixels", "weights", "biases"], "map", &[("kernel_shape", &[1, 1])]),
            node("GlobalAveragePool", &["map"], "mean", &[]),
            node("Flatten", &["mean"], "smile", &[]),
        ],
        constants: vec![
            floats("weights", &[2, 3, 1, 1], &[0.0; 6]),
            floats("biases", &[2], &[1.0 - probability, probability]),
        ],
        inputs: vec![tensor("pixels", &face)],
        outputs: vec![tensor("smile", &[Side::Open("batch"), Side::Fixed(2)])],
    }
    .file()
}

/// A network of embeddings with a linear layer for each output: its name, its weights from each number of the embedding to each
/// class, and its biases.
pub(crate) fn linear(input: &str, features: usize, outputs: &[(&str, &[f32], &[f32])]) -> Vec<u8> {
    let mut graph =
        Graph { inputs: vec![tensor(input, &[Side::Open("batch"), Side::Fixed(features)])], ..Graph::default() };
    for (name, weights, biases) in outputs {
        let (weights_name, biases_name) = (format!("{name}_weights"), format!("{name}_biases"));
        graph.constants.push(floats(&weights_name, &[features, biases.len()], weights));
        graph.constants.push(floats(&biases_name, &[biases.len()], biases));
        graph.nodes.push(node("Gemm", &[input, &weights_name, &biases_name], name, &[]));
        graph.outputs.push(tensor(name, &[Side::Open("batch"), Side::Fixed(biases.len())]));
    }
    graph.file()
}

/// Logit of a face on a cell of the mean colour `8·(red − green + blue) − 19`, with colours from −1 to 1: magenta is a face
/// (0.993), with a green of 32 of 255 (0.95) and of 64 (0.73) too; no other colour is one.
const SCORE: [f32; 4] = [8.0, -8.0, 8.0, -19.0];
/// What no colour makes a face of.
const NEVER: f32 = -100.0;
/// From the centre of a cell, in cells: eyes, nose and mouth such that the crop of the attribute network is the box exactly.
const KEYPOINTS: [f32; 8] = [-0.4, -0.26, 0.4, -0.26, 0.0, 0.1, 0.0, 0.54];

/// A detector in the layout of those trained here. Each cell of 32 × 32 pixels in the colour of a face is one; the box is
/// two cells wide and high around it.
pub(crate) fn detector() -> Vec<u8> {
    let open = [Side::Open("batch"), Side::Fixed(3), Side::Open("height"), Side::Open("width")];
    let mut weights = vec![0.0; 13 * 3];
    weights[..3].copy_from_slice(&SCORE[..3]);
    let mut graph = Graph { inputs: vec![tensor("pixels", &open)], ..Graph::default() };
    graph.constants.push(floats("weights", &[13, 3, 1, 1], &weights));
    for (stride, bias) in [(8, NEVER), (16, NEVER), (32, SCORE[3])] {
        let (mean, biases, map) = (format!("mean_{stride}"), format!("biases_{stride}"), format!("stride_{stride}"));
        // The logarithm of a distance of one cell is 0.
        let biases_of_cell = [&[bias, 0.0, 0.0, 0.0, 0.0][..], &KEYPOINTS].concat();
        graph.constants.push(floats(&biases, &[13], &biases_of_cell));
        let window: [(&str, &[usize]); 2] = [("kernel_shape", &[stride, stride]), ("strides", &[stride, stride])];
        graph.nodes.push(node("AveragePool", &["pixels"], &mean, &window));
        graph.nodes.push(node("Conv", &[&mean, "weights", &biases], &map, &[("kernel_shape", &[1, 1])]));
        let shape = [Side::Open("batch"), Side::Fixed(13), Side::Open("rows"), Side::Open("columns")];
        graph.outputs.push(tensor(&map, &shape));
    }
    graph.file()
}

/// The same detector in the layout of a `YuNet` file: one picture of `size` pixels a side at a time, B, G, R from 0 to 255.
pub(crate) fn yunet(size: usize) -> Vec<u8> {
    // Of YuNet, boxes begin on the cell's corner, and the mouth has two corners.
    let [right_x, right_y, left_x, left_y, nose_x, nose_y, mouth_x, mouth_y] = KEYPOINTS.map(|offset| offset + 0.5);
    let corners = [mouth_x - 0.2, mouth_y, mouth_x + 0.2, mouth_y];
    let points = [&[right_x, right_y, left_x, left_y, nose_x, nose_y][..], &corners].concat();
    let area = vec![0.5, 0.5, 2f32.ln(), 2f32.ln()];
    // The logit as above, of colours from 0 to 255.
    let score = [SCORE[0], SCORE[1], SCORE[2]].map(|weight| weight / 127.5);
    let bias = SCORE[3] - SCORE[..3].iter().sum::<f32>();

    let shape = [Side::Fixed(1), Side::Fixed(3), Side::Fixed(size), Side::Fixed(size)];
    let mut graph = Graph { inputs: vec![tensor("input", &shape)], ..Graph::default() };
    for (part, numbers) in [("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)] {
        graph.constants.push(integers(&format!("{part}_shape"), &[1, -1, numbers]));
        for stride in [8, 16, 32] {
            let name = |what: &str| format!("{part}_{stride}_{what}");
            let (weights, biases) = match part {
                "kps" => (vec![0.0; 30], points.clone()),
                "bbox" => (vec![0.0; 12], area.clone()),
                _ if stride == 32 => (score.to_vec(), vec![bias]),
                _ => (vec![0.0; 3], vec![NEVER]),
            };
            graph.constants.push(floats(&name("weights"), &[numbers as usize, 3, 1, 1], &weights));
            graph.constants.push(floats(&name("biases"), &[numbers as usize], &biases));
            let window: [(&str, &[usize]); 2] = [("kernel_shape", &[stride, stride]), ("strides", &[stride, stride])];
            let (mean, map, turned) = (name("mean"), name("map"), name("turned"));
            graph.nodes.push(node("AveragePool", &["input"], &mean, &window));
            let one: (&str, &[usize]) = ("kernel_shape", &[1, 1]);
            graph.nodes.push(node("Conv", &[&mean, &name("weights"), &name("biases")], &map, &[one]));
            let scored = if numbers == 1 {
                graph.nodes.push(node("Sigmoid", &[&map], &name("score"), &[]));
                name("score")
            } else {
                map
            };
            graph.nodes.push(node("Transpose", &[&scored], &turned, &[("perm", &[0, 2, 3, 1])]));
            let output = format!("{part}_{stride}");
            graph.nodes.push(node("Reshape", &[&turned, &format!("{part}_shape")], &output, &[]));
            let cells = (size / stride).pow(2);
            let shape = [Side::Fixed(1), Side::Fixed(cells), Side::Fixed(numbers as usize)];
            graph.outputs.push(tensor(&output, &shape));
        }
    }
    graph.file()
}
