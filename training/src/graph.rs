//! A network as data: a graph of typed layers that an architecture builds once.
//! [`crate::network`] runs it in libtorch, [`crate::onnx`] writes it as ONNX.

mod builder;
mod layer;

pub use builder::GraphBuilder;
pub use layer::{Activation, Affine, BatchNorm, Conv2d, Layer, Linear, Ordinal, Shape, Window};

/// One node of a [`Graph`]; nodes only refer to nodes before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(usize);

impl NodeId {
    /// The position of the node in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a network takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Square pictures.
    Pictures(InputSpec),
    /// Rows of so many numbers, `N × features`: embeddings, or attributes in a table. They have no sides: where a size is asked for, it
    /// means nothing.
    Vector(usize),
}

impl From<InputSpec> for Input {
    fn from(pictures: InputSpec) -> Self {
        Self::Pictures(pictures)
    }
}

impl Input {
    /// Shape of one item, a picture being `size` pixels high and wide.
    pub fn shape(self, size: usize) -> Shape {
        match self {
            Self::Pictures(pictures) => Shape::Map { channels: pictures.channels, height: size, width: size },
            Self::Vector(features) => Shape::Vector(features),
        }
    }

    /// Side that the architecture was designed for; 0 of vectors.
    fn size(self) -> usize {
        match self {
            Self::Pictures(pictures) => pictures.size,
            Self::Vector(_) => 0,
        }
    }
}

/// Square pictures as a network takes them, `N × channels × size × size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputSpec {
    /// Colour channels of a picture.
    pub channels: usize,
    /// Side of a picture in pixels, as the architecture was designed for. Other sizes run as far as [`Graph::shapes`] allows them.
    pub size: usize,
}

/// A layer with its place in the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique. For layers with parameters the prefix of their names, as torchvision has it (`layer1.0.conv1`).
    pub name: String,
    /// What it computes.
    pub layer: Layer,
    /// Whose outputs it takes, in order.
    pub inputs: Vec<NodeId>,
}

/// A result of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Unique; for a head its task.
    pub name: String,
    /// Where the values come from.
    pub node: NodeId,
}

/// What is wrong with a graph, or with a graph at some input size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A layer cannot work on what it is given.
    #[error("layer {node}{}: {reason}", at(*size))]
    Shape {
        /// Name of the node.
        node: String,
        /// Side of the input pictures; 0 of vectors.
        size: usize,
        /// What is wrong.
        reason: String,
    },
    /// Two nodes or two outputs share a name.
    #[error("the name {0} is used twice")]
    Name(String),
    /// The network has not the heads that were asked for.
    #[error("{0}")]
    Heads(String),
    /// A graph without outputs computes nothing.
    #[error("the network has no outputs")]
    NoOutputs,
}

/// Where in a sentence the side of the pictures belongs.
fn at(size: usize) -> String {
    if size == 0 { String::new() } else { format!(" at {size} px") }
}

/// A network: layers in an order in which they can be computed, and named results.
///
/// Made by [`GraphBuilder::finish`], which has checked names and shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    input: Input,
    nodes: Vec<Node>,
    outputs: Vec<Output>,
}

impl Graph {
    /// What the network takes.
    pub fn input(&self) -> Input {
        self.input
    }

    /// The nodes, each after those it depends on; the first is the input.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The results, in the order in which they are returned.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The same layers with the value of another one as the only result; nothing where no layer is what `is` says.
    #[must_use]
    pub fn ending_at(mut self, name: &str, is: impl Fn(&Layer) -> bool) -> Option<Self> {
        let node = NodeId(self.nodes.iter().rposition(|node| is(&node.layer))?);
        self.outputs = vec![Output { name: name.to_owned(), node }];
        Some(self)
    }

    /// Shape of each node's output for pictures of `size × size` pixels, in the order of [`Graph::nodes`].
    ///
    /// # Errors
    /// The first layer that cannot work at this size.
    pub fn shapes(&self, size: usize) -> Result<Vec<Shape>, GraphError> {
        shapes(self.input, &self.nodes, size)
    }

    /// Trainable numbers; the running statistics of normalisations are not counted.
    pub fn parameters(&self) -> usize {
        self.nodes.iter().map(|node| node.layer.parameters()).sum()
    }

    /// Multiplications with addition for one picture of `size × size`, in convolutions and linear layers.
    ///
    /// # Errors
    /// The first layer that cannot work at this size.
    pub fn multiply_adds(&self, size: usize) -> Result<u64, GraphError> {
        let shapes = self.shapes(size)?;
        let cost = |(node, shape): (&Node, &Shape)| match (&node.layer, *shape) {
            (Layer::Conv2d(c), Shape::Map { channels, height, width }) => {
                channels * height * width * (c.inputs / c.groups) * c.kernel * c.kernel
            }
            (Layer::Linear(linear), _) => linear.inputs * linear.outputs,
            (Layer::Ordinal(ordinal), _) => ordinal.inputs,
            _ => 0,
        };
        Ok(self.nodes.iter().zip(&shapes).map(|pair| cost(pair) as u64).sum())
    }
}

fn shapes(input: Input, nodes: &[Node], size: usize) -> Result<Vec<Shape>, GraphError> {
    let mut shapes = Vec::with_capacity(nodes.len());
    for node in nodes {
        let shape = if node.layer == Layer::Input {
            input.shape(size)
        } else {
            let inputs: Vec<Shape> = node.inputs.iter().map(|id| shapes[id.0]).collect();
            node.layer.shape(&inputs).map_err(|reason| GraphError::Shape { node: node.name.clone(), size, reason })?
        };
        shapes.push(shape);
    }
    Ok(shapes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const INPUT: InputSpec = InputSpec { channels: 3, size: 32 };

    #[test]
    fn shapes_follow_the_layers() {
        let mut b = GraphBuilder::new(INPUT);
        let conv = b.conv2d("conv", b.input(), Conv2d::new(3, 8, 3).stride(2));
        let pool = b.max_pool(conv, Window { kernel: 3, stride: 2, padding: 1 });
        let up = b.upsample(pool);
        let both = b.concat(vec![conv, up]);
        let means = b.global_avg_pool(both);
        let scaled = b.mul(both, means);
        let flat = b.flatten(scaled);
        let graph = b.finish([("flat", flat)]).unwrap();
        let at = |size: usize, id: NodeId| graph.shapes(size).unwrap()[id.index()];

        assert_eq!(at(32, conv), Shape::Map { channels: 8, height: 16, width: 16 });
        assert_eq!(at(32, pool), Shape::Map { channels: 8, height: 8, width: 8 });
        assert_eq!(at(32, scaled), Shape::Map { channels: 16, height: 16, width: 16 });
        assert_eq!(at(32, means), Shape::Vector(16));
        assert_eq!(at(32, flat), Shape::Vector(16 * 16 * 16));
        assert_eq!(at(48, flat), Shape::Vector(16 * 24 * 24));
    }

    #[test]
    fn an_impossible_layer_is_named_with_its_reason() {
        fn case(expected: &str, build: impl FnOnce(&mut GraphBuilder, NodeId) -> NodeId) {
            let mut b = GraphBuilder::new(INPUT);
            let x = b.input();
            let last = build(&mut b, x);
            assert_eq!(b.finish([("out", last)]).unwrap_err().to_string(), expected);
        }
        let conv = Conv2d::new;
        case("layer c at 32 px: takes 4 channels, is given 3", |b, x| b.conv2d("c", x, conv(4, 8, 3)));
        case("layer c at 32 px: 2 groups do not divide 3 inputs and 8 outputs", |b, x| {
            b.conv2d("c", x, conv(3, 8, 3).groups(2))
        });
        case("layer c at 32 px: a window of 35 does not fit into 32 with padding 1", |b, x| {
            b.conv2d("c", x, conv(3, 8, 35).padding(1))
        });
        case("layer n at 32 px: normalises 4 features, is given 3", |b, x| b.batch_norm("n", x, BatchNorm::new(4)));
        case("layer l at 32 px: does not accept [3×32×32]", |b, x| b.linear("l", x, Linear::new(3, 2)));
        case("layer max_pool_1 at 32 px: padding 2 is more than half the window of 3", |b, x| {
            b.max_pool(x, Window { kernel: 3, stride: 2, padding: 2 })
        });
        case("layer softmax_1 at 32 px: does not accept [3×32×32]", GraphBuilder::softmax);
        case("layer add_2 at 32 px: does not accept [3×32×32, 3]", |b, x| {
            let vector = b.global_avg_pool(x);
            b.add(x, vector)
        });
        case("layer concat_2 at 32 px: cannot join 3×64×64 and 3×32×32", |b, x| {
            let large = b.upsample(x);
            b.concat(vec![large, x])
        });
    }

    #[test]
    fn a_graph_can_end_before_its_heads() {
        let build = || {
            let mut b = GraphBuilder::new(INPUT);
            let x = b.global_avg_pool(b.input());
            let x = b.linear("head", x, Linear::new(3, 2));
            b.finish([("head", x)]).unwrap()
        };
        let pooled = build().ending_at("pooled", |layer| *layer == Layer::GlobalAvgPool).unwrap();
        assert_eq!((pooled.outputs().len(), pooled.outputs()[0].name.as_str()), (1, "pooled"));
        assert_eq!(pooled.shapes(32).unwrap()[pooled.outputs()[0].node.index()], Shape::Vector(3));
        assert_eq!(build().ending_at("none", |layer| *layer == Layer::Flatten), None);
    }

    #[test]
    fn names_are_unique_and_outputs_exist() {
        let mut b = GraphBuilder::new(INPUT);
        let x = b.conv2d("conv", b.input(), Conv2d::new(3, 3, 3));
        let x = b.conv2d("conv", x, Conv2d::new(3, 3, 3));
        assert_eq!(b.finish([("out", x)]), Err(GraphError::Name("conv".to_owned())));
        let b = GraphBuilder::new(INPUT);
        let x = b.input();
        assert_eq!(b.finish([("out", x), ("out", x)]), Err(GraphError::Name("out".to_owned())));
        assert_eq!(GraphBuilder::new(INPUT).finish::<String>([]), Err(GraphError::NoOutputs));
    }

    #[test]
    fn costs_are_counted_by_hand() {
        let mut b = GraphBuilder::new(INPUT);
        let x = b.conv2d("conv", b.input(), Conv2d::new(3, 6, 3).stride(2).groups(3).biased());
        let x = b.batch_norm("bn", x, BatchNorm::new(6));
        let x = b.flatten(x);
        let x = b.linear("fc", x, Linear::new(6 * 16 * 16, 5));
        let graph = b.finish([("out", x)]).unwrap();
        assert_eq!(graph.parameters(), (6 * 9 + 6) + 2 * 6 + (5 * 6 * 256 + 5));
        assert_eq!(graph.multiply_adds(32).unwrap(), 6 * 16 * 16 * 9 + 5 * 6 * 256);
        assert!(matches!(graph.multiply_adds(48), Err(GraphError::Shape { node, size: 48, .. }) if node == "fc"));
    }
}
