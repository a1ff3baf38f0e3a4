//! `ResNet` (He et al. 2016, arXiv:1512.03385) as torchvision builds it: a 7×7 convolution and a pooling, four stages of blocks, and the mean
//! of each channel. Parameters are named as there, so that its weights fit.

use serde::{Deserialize, Serialize};

use super::residual::{Head, basic_block, shortcut};
use crate::graph::{BatchNorm, Conv2d, Graph, GraphBuilder, GraphError, InputSpec, Linear, NodeId, Window};

/// Shape of the network. The defaults are those of `ResNet`-18.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResnetConfig {
    /// Channels of the four stages; the first convolution has those of the first.
    pub widths: [usize; 4],
    /// Blocks in each stage.
    pub blocks: [usize; 4],
}

impl Default for ResnetConfig {
    fn default() -> Self {
        Self { widths: [64, 128, 256, 512], blocks: [2; 4] }
    }
}

impl ResnetConfig {
    /// Adds the layers up to the mean of each channel, a vector of [`ResnetConfig::features`] numbers.
    pub fn trunk(&self, b: &mut GraphBuilder) -> NodeId {
        stages(b, self.widths[0], self.widths, self.blocks, basic_block)
    }

    /// Numbers that the trunk gives.
    pub fn features(&self) -> usize {
        self.widths[3]
    }

    /// The trunk for pictures of `size × size` with linear heads `heads.<name>`.
    ///
    /// # Errors
    /// No heads, one without outputs or two of one name, a stage without channels, or pictures too small for five halvings.
    pub fn with_heads(&self, size: usize, heads: &[Head]) -> Result<Graph, GraphError> {
        let mut b = GraphBuilder::new(InputSpec { channels: 3, size });
        let x = self.trunk(&mut b);
        let outputs: Vec<(&str, NodeId)> = heads
            .iter()
            .map(|head| {
                let layer = Linear::new(self.features(), head.outputs);
                (head.name.as_str(), b.linear(format!("heads.{}", head.name), x, layer))
            })
            .collect();
        b.finish(outputs)
    }
}

/// Adds `ResNet`-50 up to the mean of each channel, channels divided by `divisor`: a vector of 2048 numbers, or so many fewer.
pub fn resnet50(b: &mut GraphBuilder, divisor: usize) -> NodeId {
    let widths = [256, 512, 1024, 2048].map(|width| (width / divisor).max(EXPANSION));
    stages(b, widths[0] / EXPANSION, widths, [3, 4, 6, 3], bottleneck)
}

/// Channels of a bottleneck block, as a multiple of those within.
const EXPANSION: usize = 4;

/// Adds a block with this name, channels that go in and come out, and stride.
type Block = fn(&mut GraphBuilder, &str, NodeId, usize, usize, usize) -> NodeId;

/// The layers up to the mean of each channel: `stem` channels in the first convolution, then four stages of blocks.
fn stages(b: &mut GraphBuilder, stem: usize, widths: [usize; 4], blocks: [usize; 4], add: Block) -> NodeId {
    let mut width = stem;
    let x = b.conv2d("conv1", b.input(), Conv2d::new(3, width, 7).stride(2));
    let x = b.batch_norm("bn1", x, BatchNorm::new(width));
    let x = b.relu(x);
    let mut x = b.max_pool(x, Window { kernel: 3, stride: 2, padding: 1 });
    for (stage, (outputs, blocks)) in (1..).zip(widths.into_iter().zip(blocks)) {
        for block in 0..blocks {
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            x = add(b, &format!("layer{stage}.{block}"), x, width, outputs, stride);
            width = outputs;
        }
    }
    b.global_avg_pool(x)
}

/// A 3×3 convolution of few channels between two 1×1 convolutions, and the shortcut. The 3×3 one has the stride, as torchvision does it.
fn bottleneck(b: &mut GraphBuilder, name: &str, x: NodeId, inputs: usize, outputs: usize, stride: usize) -> NodeId {
    let width = outputs / EXPANSION;
    let y = b.conv2d(format!("{name}.conv1"), x, Conv2d::new(inputs, width, 1));
    let y = b.batch_norm(format!("{name}.bn1"), y, BatchNorm::new(width));
    let y = b.relu(y);
    let y = b.conv2d(format!("{name}.conv2"), y, Conv2d::new(width, width, 3).stride(stride));
    let y = b.batch_norm(format!("{name}.bn2"), y, BatchNorm::new(width));
    let y = b.relu(y);
    let y = b.conv2d(format!("{name}.conv3"), y, Conv2d::new(width, outputs, 1));
    let y = b.batch_norm(format!("{name}.bn3"), y, BatchNorm::new(outputs).zero_init());
    let shortcut = shortcut(b, name, x, inputs, outputs, stride);
    let sum = b.add(y, shortcut);
    b.relu(sum)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_has_the_size_of_torchvision_s() {
        let graph = ResnetConfig::default().with_heads(224, &[Head::new("classes", 1000)]).unwrap();
        assert_eq!(graph.parameters(), 11_689_512);
        // 1.814 billion, as torchvision counts them, without the normalisations.
        assert_eq!(graph.multiply_adds(224).unwrap(), 1_814_073_344);
        let names: Vec<&str> = graph.nodes().iter().map(|node| node.name.as_str()).collect();
        for name in ["conv1", "bn1", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.bn2"] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(!names.contains(&"layer1.0.downsample.0"));
    }
}
