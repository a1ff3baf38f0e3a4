//! Builds graphs, and checks them when they are finished.

use std::collections::HashSet;

use super::layer::{Activation, Affine, BatchNorm, Conv2d, Layer, Linear, Ordinal, Shape, Window};
use super::{Graph, GraphError, Input, Node, NodeId, Output, shapes};

/// Builds a [`Graph`] layer by layer; each function returns the node it has added.
///
/// ```
/// use facewise_training::graph::{BatchNorm, Conv2d, GraphBuilder, InputSpec, Linear};
///
/// let mut b = GraphBuilder::new(InputSpec { channels: 3, size: 32 });
/// let x = b.conv2d("conv1", b.input(), Conv2d::new(3, 8, 3).stride(2));
/// let x = b.batch_norm("bn1", x, BatchNorm::new(8));
/// let x = b.relu(x);
/// let x = b.global_avg_pool(x);
/// let x = b.linear("heads.smile", x, Linear::new(8, 2));
/// let graph = b.finish([("smile", x)]).unwrap();
/// assert_eq!(graph.parameters(), 3 * 8 * 9 + 2 * 8 + 8 * 2 + 2);
/// ```
#[derive(Debug)]
pub struct GraphBuilder {
    input: Input,
    nodes: Vec<Node>,
}

impl GraphBuilder {
    /// Begins with the input.
    pub fn new(input: impl Into<Input>) -> Self {
        let node = Node { name: Layer::Input.kind().to_owned(), layer: Layer::Input, inputs: Vec::new() };
        Self { input: input.into(), nodes: vec![node] }
    }

    /// The pictures, or vectors.
    pub fn input(&self) -> NodeId {
        NodeId(0)
    }

    /// A convolution with this parameter prefix.
    pub fn conv2d(&mut self, name: impl Into<String>, x: NodeId, layer: Conv2d) -> NodeId {
        self.named(name.into(), Layer::Conv2d(layer), vec![x])
    }

    /// A batch normalisation with this parameter prefix.
    pub fn batch_norm(&mut self, name: impl Into<String>, x: NodeId, layer: BatchNorm) -> NodeId {
        self.named(name.into(), Layer::BatchNorm(layer), vec![x])
    }

    /// A linear layer with this parameter prefix.
    pub fn linear(&mut self, name: impl Into<String>, x: NodeId, layer: Linear) -> NodeId {
        self.named(name.into(), Layer::Linear(layer), vec![x])
    }

    /// Ordered thresholds with this parameter prefix.
    pub fn ordinal(&mut self, name: impl Into<String>, x: NodeId, layer: Ordinal) -> NodeId {
        self.named(name.into(), Layer::Ordinal(layer), vec![x])
    }

    /// A linear layer that is not learned.
    pub fn affine(&mut self, x: NodeId, layer: Affine) -> NodeId {
        self.unnamed(Layer::Affine(layer), vec![x])
    }

    /// An elementwise function.
    pub fn activation(&mut self, x: NodeId, activation: Activation) -> NodeId {
        self.unnamed(Layer::Activation(activation), vec![x])
    }

    /// max(x, 0), the most frequent activation.
    pub fn relu(&mut self, x: NodeId) -> NodeId {
        self.activation(x, Activation::Relu)
    }

    /// Maximum of each window.
    pub fn max_pool(&mut self, x: NodeId, window: Window) -> NodeId {
        self.unnamed(Layer::MaxPool(window), vec![x])
    }

    /// Mean of each window.
    pub fn avg_pool(&mut self, x: NodeId, window: Window) -> NodeId {
        self.unnamed(Layer::AvgPool(window), vec![x])
    }

    /// Mean of each channel.
    pub fn global_avg_pool(&mut self, x: NodeId) -> NodeId {
        self.unnamed(Layer::GlobalAvgPool, vec![x])
    }

    /// A map as a vector.
    pub fn flatten(&mut self, x: NodeId) -> NodeId {
        self.unnamed(Layer::Flatten, vec![x])
    }

    /// Sum.
    pub fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.unnamed(Layer::Add, vec![a, b])
    }

    /// Product; `b` may be a vector with one factor for each channel of `a`.
    pub fn mul(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.unnamed(Layer::Mul, vec![a, b])
    }

    /// Quotient.
    pub fn div(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.unnamed(Layer::Div, vec![a, b])
    }

    /// Joins along the channels or features.
    pub fn concat(&mut self, parts: Vec<NodeId>) -> NodeId {
        self.unnamed(Layer::Concat, parts)
    }

    /// Dropout with this probability of zero.
    pub fn dropout(&mut self, x: NodeId, p: f64) -> NodeId {
        self.unnamed(Layer::Dropout { p }, vec![x])
    }

    /// Softmax over the features.
    pub fn softmax(&mut self, x: NodeId) -> NodeId {
        self.unnamed(Layer::Softmax, vec![x])
    }

    /// Twice the height and width.
    pub fn upsample(&mut self, x: NodeId) -> NodeId {
        self.unnamed(Layer::Upsample, vec![x])
    }

    /// Shape of a value, for pictures of the side that the graph is built for.
    ///
    /// # Errors
    /// The first layer that cannot work on what it is given.
    pub fn shape(&self, x: NodeId) -> Result<Shape, GraphError> {
        Ok(shapes(self.input, &self.nodes[..=x.0], self.input.size())?[x.0])
    }

    /// The finished graph with these results.
    ///
    /// # Errors
    /// A name used twice, no outputs, or a layer that cannot work on what it is given at the input's size.
    pub fn finish<N: Into<String>>(self, outputs: impl IntoIterator<Item = (N, NodeId)>) -> Result<Graph, GraphError> {
        let outputs: Vec<Output> = outputs.into_iter().map(|(name, node)| Output { name: name.into(), node }).collect();
        if outputs.is_empty() {
            return Err(GraphError::NoOutputs);
        }
        unique(self.nodes.iter().map(|node| &node.name))?;
        unique(outputs.iter().map(|output| &output.name))?;
        let graph = Graph { input: self.input, nodes: self.nodes, outputs };
        graph.shapes(self.input.size())?;
        Ok(graph)
    }

    fn unnamed(&mut self, layer: Layer, inputs: Vec<NodeId>) -> NodeId {
        let name = format!("{}_{}", layer.kind(), self.nodes.len());
        self.named(name, layer, inputs)
    }

    fn named(&mut self, name: String, layer: Layer, inputs: Vec<NodeId>) -> NodeId {
        self.nodes.push(Node { name, layer, inputs });
        NodeId(self.nodes.len() - 1)
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), GraphError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(GraphError::Name(name.clone()));
        }
    }
    Ok(())
}
