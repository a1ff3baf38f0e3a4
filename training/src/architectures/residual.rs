//! A compact residual network for small crops: basic blocks as in `ResNet` (He et al. 2016, arXiv:1512.03385), a stem without
//! pooling, and one linear head per task.

use facewise_core::task::Task;
use serde::{Deserialize, Serialize};

use crate::age::AgeConfig;
use crate::graph::{BatchNorm, Conv2d, Graph, GraphBuilder, GraphError, InputSpec, Linear, NodeId};

/// Shape of the network. The defaults cost 139 million multiply-adds at 64 px.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidualConfig {
    /// Side of the input in pixels. Other sizes run too: the last pooling is global.
    pub size: usize,
    /// Channels of the four stages; the stem has those of the first.
    pub widths: [usize; 4],
    /// Basic blocks in each stage.
    pub blocks: [usize; 4],
    /// Dropout between the pooling and the heads; none at 0.
    pub dropout: f64,
    /// Output heads in order.
    pub heads: Vec<Head>,
}

/// One linear head; its output is logits named after the task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Task, as in the manifest.
    pub name: String,
    /// Number of logits.
    pub outputs: usize,
}

impl Head {
    /// A head for a task.
    pub fn new(name: impl Into<String>, outputs: usize) -> Self {
        Self { name: name.into(), outputs }
    }
}

impl Default for ResidualConfig {
    fn default() -> Self {
        Self {
            size: 64,
            widths: [32, 64, 128, 256],
            blocks: [2, 2, 2, 2],
            dropout: 0.0,
            heads: vec![Head::new("age", 101), Head::new("gender", 2), Head::new("smile", 2), Head::new("emotion", 7)],
        }
    }
}

/// Builds the network with linear heads; parameters are named as in torchvision's `ResNet`, heads `heads.<task>`.
///
/// # Errors
/// No heads, a head or width of size 0, two heads of one name, or an input too small for four halvings.
pub fn residual(config: &ResidualConfig) -> Result<Graph, GraphError> {
    residual_with(config, &AgeConfig::Classes)
}

/// The same with a head for this way of learning the age.
///
/// # Errors
/// As for [`residual`].
pub fn residual_with(config: &ResidualConfig, age: &AgeConfig) -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new(InputSpec { channels: 3, size: config.size });
    let mut width = config.widths[0];
    let x = b.conv2d("conv1", b.input(), Conv2d::new(3, width, 3).stride(2));
    let x = b.batch_norm("bn1", x, BatchNorm::new(width));
    let mut x = b.relu(x);
    for (stage, (&outputs, &blocks)) in config.widths.iter().zip(&config.blocks).enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = basic_block(&mut b, &format!("layer{}.{block}", stage + 1), x, width, outputs, stride);
            width = outputs;
        }
    }
    x = b.global_avg_pool(x);
    if config.dropout > 0.0 {
        x = b.dropout(x, config.dropout);
    }
    let mut outputs: Vec<(&str, NodeId)> = Vec::new();
    for head in &config.heads {
        if head.name == Task::Age.name() && !age.is_default() {
            outputs.extend(age.head(&mut b, x, width));
        } else {
            let layer = Linear::new(width, head.outputs);
            outputs.push((&head.name, b.linear(format!("heads.{}", head.name), x, layer)));
        }
    }
    b.finish(outputs)
}

/// relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut is a 1×1 convolution where the shape changes.
pub(super) fn basic_block(
    b: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    inputs: usize,
    outputs: usize,
    stride: usize,
) -> NodeId {
    let y = b.conv2d(format!("{name}.conv1"), x, Conv2d::new(inputs, outputs, 3).stride(stride));
    let y = b.batch_norm(format!("{name}.bn1"), y, BatchNorm::new(outputs));
    let y = b.relu(y);
    let y = b.conv2d(format!("{name}.conv2"), y, Conv2d::new(outputs, outputs, 3));
    let y = b.batch_norm(format!("{name}.bn2"), y, BatchNorm::new(outputs).zero_init());
    let shortcut = shortcut(b, name, x, inputs, outputs, stride);
    let sum = b.add(y, shortcut);
    b.relu(sum)
}

/// What a block's input is added as: itself, or a 1×1 convolution of it where the shape changes.
pub(super) fn shortcut(
    b: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    inputs: usize,
    outputs: usize,
    stride: usize,
) -> NodeId {
    if stride == 1 && inputs == outputs {
        return x;
    }
    let s = b.conv2d(format!("{name}.downsample.0"), x, Conv2d::new(inputs, outputs, 1).stride(stride));
    b.batch_norm(format!("{name}.downsample.1"), s, BatchNorm::new(outputs))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_default_has_the_designed_size() {
        let graph = residual(&ResidualConfig::default()).unwrap();
        // Two convolutions per block with their normalisations, a shortcut where the width changes.
        let conv = |i: usize, o: usize, k: usize| i * o * k * k + 2 * o;
        let stage = |i: usize, o: usize| conv(i, o, 3) + 3 * conv(o, o, 3) + if i == o { 0 } else { conv(i, o, 1) };
        let expected = conv(3, 32, 3) + stage(32, 32) + stage(32, 64) + stage(64, 128) + stage(128, 256) + 112 * 257;
        assert_eq!(graph.parameters(), expected);
        assert_eq!(graph.parameters(), 2_823_824);
        // Per output cell 864 in the stem; 4·9·32² at 32², then halved maps of doubled width with shortcuts.
        let later = |o: usize, side: usize| side * side * (9 * o * o / 2 + 3 * 9 * o * o + o * o / 2);
        let adds =
            32 * 32 * 864 + 32 * 32 * 4 * 9 * 32 * 32 + later(64, 16) + later(128, 8) + later(256, 4) + 112 * 256;
        assert_eq!(graph.multiply_adds(64).unwrap(), adds as u64);
        assert_eq!(adds, 139_325_440);
    }

    #[test]
    fn parameters_carry_torchvision_names() {
        let graph = residual(&ResidualConfig::default()).unwrap();
        let names: Vec<&str> = graph.nodes().iter().map(|node| node.name.as_str()).collect();
        for name in [
            "conv1",
            "bn1",
            "layer1.0.conv1",
            "layer1.1.bn2",
            "layer2.0.downsample.0",
            "layer4.0.downsample.1",
            "heads.age",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(!names.contains(&"layer1.0.downsample.0"));
    }

    #[test]
    fn a_configuration_that_cannot_work_is_an_error() {
        let none = ResidualConfig { heads: Vec::new(), ..ResidualConfig::default() };
        assert_eq!(residual(&none), Err(GraphError::NoOutputs));
        let twice =
            ResidualConfig { heads: vec![Head::new("age", 101), Head::new("age", 8)], ..ResidualConfig::default() };
        assert_eq!(residual(&twice), Err(GraphError::Name("heads.age".to_owned())));
        let empty = ResidualConfig { widths: [32, 0, 128, 256], ..ResidualConfig::default() };
        assert!(matches!(residual(&empty), Err(GraphError::Shape { .. })));
    }

    #[test]
    fn a_configuration_reads_from_toml() {
        let config: ResidualConfig =
            toml::from_str("widths = [8, 16, 24, 32]\nheads = [{ name = \"smile\", outputs = 2 }]").unwrap();
        assert_eq!(config.blocks, [2, 2, 2, 2]);
        assert_eq!(residual(&config).unwrap().outputs()[0].name, "smile");
    }
}
