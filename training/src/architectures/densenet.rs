//! `DenseNet`-121 (Huang et al. 2017, arXiv:1608.06993): each layer reads what all layers of its block before it have written.

use crate::graph::{BatchNorm, Conv2d, GraphBuilder, NodeId, Window};

/// Layers of the four blocks.
const BLOCKS: [usize; 4] = [6, 12, 24, 16];
/// Channels that a layer adds.
const GROWTH: usize = 32;
/// Channels that a layer computes first, as a multiple of those that it adds.
const BOTTLENECK: usize = 4;

/// Adds the network up to its last rectifier, channels divided by `divisor`, to pictures `x`; parameters are named as in torchvision's
/// `DenseNet`. Of 224 px a map of 1024 × 7 × 7 is left.
pub fn densenet121(b: &mut GraphBuilder, x: NodeId, divisor: usize) -> NodeId {
    let growth = (GROWTH / divisor).max(1);
    let mut width = 2 * growth;
    let x = b.conv2d("features.conv0", x, Conv2d::new(3, width, 7).stride(2));
    let x = b.batch_norm("features.norm0", x, BatchNorm::new(width));
    let x = b.relu(x);
    let mut x = b.max_pool(x, Window { kernel: 3, stride: 2, padding: 1 });
    for (block, layers) in (1..).zip(BLOCKS) {
        for layer in 1..=layers {
            let new = dense_layer(b, &format!("features.denseblock{block}.denselayer{layer}"), x, width, growth);
            x = b.concat(vec![x, new]);
            width += growth;
        }
        if block < BLOCKS.len() {
            let name = format!("features.transition{block}");
            x = b.batch_norm(format!("{name}.norm"), x, BatchNorm::new(width));
            x = b.relu(x);
            x = b.conv2d(format!("{name}.conv"), x, Conv2d::new(width, width / 2, 1));
            x = b.avg_pool(x, Window { kernel: 2, stride: 2, padding: 0 });
            width /= 2;
        }
    }
    let x = b.batch_norm("features.norm5", x, BatchNorm::new(width));
    b.relu(x)
}

/// conv3×3(relu(bn(conv1×1(relu(bn(x))))))
fn dense_layer(b: &mut GraphBuilder, name: &str, x: NodeId, inputs: usize, growth: usize) -> NodeId {
    let inner = BOTTLENECK * growth;
    let x = b.batch_norm(format!("{name}.norm1"), x, BatchNorm::new(inputs));
    let x = b.relu(x);
    let x = b.conv2d(format!("{name}.conv1"), x, Conv2d::new(inputs, inner, 1));
    let x = b.batch_norm(format!("{name}.norm2"), x, BatchNorm::new(inner));
    let x = b.relu(x);
    b.conv2d(format!("{name}.conv2"), x, Conv2d::new(inner, growth, 3))
}
