//! A network that tells one binary attribute of a face from its others: eleven linear layers, each followed by normalisation and a leaky
//! rectifier, three of them with a projection of their input added.

use crate::architectures::residual::Head;
use crate::graph::{Activation, BatchNorm, Graph, GraphBuilder, GraphError, Input, Linear};

/// Outputs of the hidden layers.
pub const WIDTHS: [usize; 11] = [64, 128, 256, 512, 1024, 1024, 1024, 128, 64, 32, 16];

/// Hidden layers, counted from 1, to whose output a projection of their input is added.
pub const SKIPS: [usize; 3] = [2, 3, 5];

/// Slope of the rectifiers below zero.
pub const SLOPE: f64 = 0.01;

/// Builds the network for rows of `features` numbers. With one output that is the logit of the attribute; with two, the logits of
/// without and with it.
///
/// # Errors
/// No features, or a head without outputs.
pub fn attribute_mlp(features: usize, head: &Head) -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new(Input::Vector(features));
    let (mut x, mut inputs) = (b.input(), features);
    for (layer, outputs) in (1..).zip(WIDTHS) {
        let y = b.linear(format!("layers.{layer}.linear"), x, Linear::new(inputs, outputs));
        let y = b.batch_norm(format!("layers.{layer}.norm"), y, BatchNorm::new(outputs));
        let y = b.activation(y, Activation::LeakyRelu { slope: SLOPE });
        x = if SKIPS.contains(&layer) {
            let projected = b.linear(format!("layers.{layer}.projection"), x, Linear::new(inputs, outputs));
            b.add(y, projected)
        } else {
            y
        };
        inputs = outputs;
    }
    let logits = b.linear(format!("heads.{}", head.name), x, Linear::new(inputs, head.outputs));
    b.finish([(head.name.as_str(), logits)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::graph::Layer;

    #[test]
    fn it_has_the_published_number_of_parameters() {
        let graph = attribute_mlp(40, &Head::new("Attractive", 1)).unwrap();
        assert_eq!(graph.parameters(), 3_517_345);
        assert_eq!(graph.nodes().iter().filter(|node| node.layer == Layer::Add).count(), SKIPS.len());
    }
}
