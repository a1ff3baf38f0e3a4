//! An anchor-free face detector: residual basic blocks (He et al. 2016, arXiv:1512.03385) at strides 8, 16 and 32, a top-down pyramid
//! (Lin et al. 2017, arXiv:1612.03144) and one head a level, as in FCOS (Tian et al. 2019, arXiv:1904.01355).

use facewise_core::detection::{CHANNELS, STRIDES};
use serde::{Deserialize, Serialize};

use super::residual::basic_block;
use crate::graph::{BatchNorm, Conv2d, Graph, GraphBuilder, GraphError, InputSpec, NodeId};

/// Shape of the network. The defaults cost 218 million multiply-adds at 320 px.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectorConfig {
    /// Side of the input in pixels. Every multiple of 32 runs.
    pub size: usize,
    /// Channels of the two plain convolutions at strides 2 and 4. Maps are large there and costly, so they are few.
    pub stem: [usize; 2],
    /// Channels at strides 8, 16 and 32.
    pub widths: [usize; 3],
    /// Basic blocks at strides 8, 16 and 32.
    pub blocks: [usize; 3],
    /// Channels of the pyramid and the heads.
    pub pyramid: usize,
    /// Residual convolutions of a head, after its first one.
    pub head: usize,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self { size: 320, stem: [16, 24], widths: [32, 64, 96], blocks: [2, 2, 2], pyramid: 32, head: 1 }
    }
}

/// Builds the network. Outputs are the raw maps `stride_8`, `stride_16` and `stride_32` of [`CHANNELS`] channels, which
/// [`Decoder::Facewise`](facewise_core::detection::Decoder::Facewise) reads.
///
/// # Errors
/// A width of 0, a level without blocks, or an input whose side is no multiple of 32.
pub fn detector(config: &DetectorConfig) -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new(InputSpec { channels: 3, size: config.size });
    let [first, second] = config.stem;
    let pixels = b.input();
    let x = conv_bn_relu(&mut b, ["conv1", "bn1"], pixels, Conv2d::new(3, first, 3).stride(2));
    let mut x = conv_bn_relu(&mut b, ["conv2", "bn2"], x, Conv2d::new(first, second, 3).stride(2));
    let mut width = second;
    let mut levels = Vec::with_capacity(STRIDES.len());
    for (level, (&outputs, &blocks)) in config.widths.iter().zip(&config.blocks).enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 { 2 } else { 1 };
            x = basic_block(&mut b, &format!("layer{}.{block}", level + 1), x, width, outputs, stride);
            width = outputs;
        }
        levels.push((x, width));
    }

    let pyramid = config.pyramid;
    let mut outputs = Vec::with_capacity(levels.len());
    let mut above: Option<NodeId> = None;
    for ((x, width), stride) in levels.into_iter().zip(STRIDES).rev() {
        let mut level = b.conv2d(format!("lateral{stride}"), x, Conv2d::new(width, pyramid, 1).biased());
        if let Some(above) = above {
            let above = b.upsample(above);
            level = b.add(level, above);
            // The finest level has no one below it: its head's own convolution does the smoothing.
            if stride != STRIDES[0] {
                let names = [format!("smooth{stride}.conv"), format!("smooth{stride}.bn")];
                level = conv_bn_relu(&mut b, names, level, Conv2d::new(pyramid, pyramid, 3));
            }
        }
        above = Some(level);
        let names = [format!("head{stride}.conv"), format!("head{stride}.bn")];
        let mut y = conv_bn_relu(&mut b, names, level, Conv2d::new(pyramid, pyramid, 3));
        for layer in 1..=config.head {
            y = residual_conv(&mut b, &format!("head{stride}.{layer}"), y, pyramid);
        }
        let y = b.conv2d(output_layer(stride), y, Conv2d::new(pyramid, CHANNELS, 1).biased());
        outputs.push((format!("stride_{stride}"), y));
    }
    outputs.reverse();
    b.finish(outputs)
}

/// Name of the convolution that makes a level's output map.
pub fn output_layer(stride: u32) -> String {
    format!("head{stride}.out")
}

/// A convolution beside its input; it starts as the identity.
fn residual_conv(b: &mut GraphBuilder, name: &str, x: NodeId, features: usize) -> NodeId {
    let y = b.conv2d(format!("{name}.conv"), x, Conv2d::new(features, features, 3));
    let y = b.batch_norm(format!("{name}.bn"), y, BatchNorm::new(features).zero_init());
    let sum = b.add(y, x);
    b.relu(sum)
}

fn conv_bn_relu<N: Into<String>>(b: &mut GraphBuilder, [conv, bn]: [N; 2], x: NodeId, layer: Conv2d) -> NodeId {
    let features = layer.outputs;
    let x = b.conv2d(conv, x, layer);
    let x = b.batch_norm(bn, x, BatchNorm::new(features));
    b.relu(x)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::graph::Shape;

    #[test]
    fn the_default_has_the_designed_size() {
        let graph = detector(&DetectorConfig::default()).unwrap();
        let bn = |o: usize| 2 * o;
        let block = |i: usize, o: usize| i * o * 9 + o * o * 9 + 2 * bn(o) + if i == o { 0 } else { i * o + bn(o) };
        let layers = block(24, 32) + block(32, 32) + block(32, 64) + block(64, 64) + block(64, 96) + block(96, 96);
        let stem = 3 * 16 * 9 + bn(16) + 16 * 24 * 9 + bn(24);
        let smooth = 32 * 32 * 9 + bn(32);
        let heads = 3 * (2 * smooth + 33 * CHANNELS);
        let laterals = 32 * (32 + 64 + 96) + 3 * 32;
        assert_eq!(graph.parameters(), stem + layers + laterals + smooth + heads);
        assert!(graph.parameters() < 1_000_000);
        let cost = graph.multiply_adds(320).unwrap();
        assert!((213_000_000..223_000_000).contains(&cost), "{cost}");
    }

    #[test]
    fn the_maps_follow_the_input() {
        let graph = detector(&DetectorConfig::default()).unwrap();
        for size in [32, 256, 320, 640] {
            let shapes = graph.shapes(size).unwrap();
            for (output, stride) in graph.outputs().iter().zip([8, 16, 32]) {
                assert_eq!(output.name, format!("stride_{stride}"));
                let side = size / stride;
                let expected = Shape::Map { channels: CHANNELS, height: side, width: side };
                assert_eq!(shapes[output.node.index()], expected);
            }
        }
    }

    #[test]
    fn a_side_that_is_no_multiple_of_32_cannot_be_joined() {
        let odd = DetectorConfig { size: 336, ..DetectorConfig::default() };
        assert!(matches!(detector(&odd), Err(GraphError::Shape { size: 336, .. })));
    }
}
