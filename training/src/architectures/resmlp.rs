//! `ResMLP`: a residual network on embeddings of faces. Each block has residual layers of one width and a layer that halves it;
//! before a linear layer stands an independent-component layer, batch normalisation and then dropout (Chen et al. 2019,
//! arXiv:1905.05928).

use serde::{Deserialize, Serialize};

use super::residual::Head;
use crate::graph::{BatchNorm, Graph, GraphBuilder, GraphError, Input, Linear, NodeId};

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResMlpConfig {
    /// Blocks; each halves the width.
    pub blocks: usize,
    /// Residual layers in each block, before the one that halves.
    pub residuals: usize,
    /// Dropout of the independent-component layers; at 0 their normalisations stay.
    pub dropout: f64,
    /// Whether residual layers add their input to what they compute.
    pub add_residual: bool,
    /// Whether there are independent-component layers.
    pub add_ic: bool,
}

/// Builds the network for rows of `features` numbers, with the logits of one head.
///
/// # Errors
/// A width that cannot be halved so often, or a head without classes.
pub fn resmlp(config: &ResMlpConfig, features: usize, head: &Head) -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new(Input::Vector(features));
    let (mut x, mut width) = (b.input(), features);
    for block in 0..config.blocks {
        for residual in 0..config.residuals {
            // The embedding itself comes in normalised, and nothing of it is dropped.
            let raw = block == 0 && residual == 0;
            x = residual_layer(&mut b, config, &format!("blocks.{block}.residuals.{residual}"), x, width, raw);
        }
        let name = format!("blocks.{block}.down");
        x = independent(&mut b, config, &format!("{name}.norm"), x, width);
        x = b.linear(format!("{name}.linear"), x, Linear::new(width, width / 2));
        x = b.relu(x);
        width /= 2;
    }
    let logits = b.linear(format!("heads.{}", head.name), x, Linear::new(width, head.outputs));
    b.finish([(head.name.as_str(), logits)])
}

/// relu(linear(ic(relu(linear(ic(x))))) + x); with a `raw` input, the first `ic` is left out.
fn residual_layer(
    b: &mut GraphBuilder,
    config: &ResMlpConfig,
    name: &str,
    x: NodeId,
    width: usize,
    raw: bool,
) -> NodeId {
    let y = if raw { x } else { independent(b, config, &format!("{name}.norm1"), x, width) };
    let y = b.linear(format!("{name}.linear1"), y, Linear::new(width, width));
    let y = b.relu(y);
    let y = independent(b, config, &format!("{name}.norm2"), y, width);
    let y = b.linear(format!("{name}.linear2"), y, Linear::new(width, width));
    let y = if config.add_residual { b.add(y, x) } else { y };
    b.relu(y)
}

/// Normalisation, then dropout; nothing where the network has no such layers.
fn independent(b: &mut GraphBuilder, config: &ResMlpConfig, name: &str, x: NodeId, width: usize) -> NodeId {
    if !config.add_ic {
        return x;
    }
    let x = b.batch_norm(name, x, BatchNorm::new(width));
    if config.dropout > 0.0 { b.dropout(x, config.dropout) } else { x }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::graph::Layer;

    const GENDER: ResMlpConfig =
        ResMlpConfig { blocks: 4, residuals: 1, dropout: 0.05, add_residual: true, add_ic: true };
    const AGE: ResMlpConfig = ResMlpConfig { blocks: 2, ..GENDER };

    fn count(config: &ResMlpConfig, is: impl Fn(&Layer) -> bool) -> usize {
        let graph = resmlp(config, 512, &Head::new("gender", 2)).unwrap();
        graph.nodes().iter().filter(|node| is(&node.layer)).count()
    }

    #[test]
    fn it_has_the_published_number_of_parameters() {
        for (config, classes, parameters) in [(&GENDER, 2, 877_602), (&AGE, 8, 825_736), (&AGE, 101, 837_733)] {
            let graph = resmlp(config, 512, &Head::new("age", classes)).unwrap();
            assert_eq!(graph.parameters(), parameters, "{classes} classes");
        }
    }

    #[test]
    fn switches_remove_what_they_say() {
        let norms = |layer: &Layer| matches!(layer, Layer::BatchNorm(_));
        let dropouts = |layer: &Layer| matches!(layer, Layer::Dropout { .. });
        let sums = |layer: &Layer| *layer == Layer::Add;
        let of = |config: &ResMlpConfig| [count(config, norms), count(config, dropouts), count(config, sums)];
        // Two before the linear layers of each residual but the first, whose input is raw, and one before each halving.
        assert_eq!(of(&GENDER), [11, 11, 4]);
        assert_eq!(of(&ResMlpConfig { dropout: 0.0, ..GENDER }), [11, 0, 4]);
        assert_eq!(of(&ResMlpConfig { add_ic: false, ..GENDER }), [0, 0, 4]);
        assert_eq!(of(&ResMlpConfig { add_residual: false, ..GENDER }), [11, 11, 0]);
    }

    #[test]
    fn small_shapes_work_and_impossible_ones_are_errors() {
        let head = Head::new("age", 101);
        let none = resmlp(&ResMlpConfig { blocks: 0, ..AGE }, 512, &head).unwrap();
        assert_eq!(none.parameters(), 513 * 101);
        let plain = resmlp(&ResMlpConfig { residuals: 0, blocks: 1, ..AGE }, 512, &head).unwrap();
        assert_eq!(plain.parameters(), 2 * 512 + 513 * 256 + 257 * 101);
        let error = resmlp(&ResMlpConfig { blocks: 5, ..AGE }, 16, &head).unwrap_err().to_string();
        assert!(error.starts_with("layer blocks.4.down.linear: "), "{error}");
    }
}
