//! The convolutions of `AlexNet` in the form that torchvision has (Krizhevsky 2014, arXiv:1404.5997).

use crate::graph::{Conv2d, GraphBuilder, NodeId, Window};

/// Adds the five convolutions, their channels divided by `divisor`, to pictures `x`; parameters are named as in torchvision's `AlexNet`.
/// Of 224 px a map of 256 × 6 × 6 is left.
pub fn alexnet(b: &mut GraphBuilder, x: NodeId, divisor: usize) -> NodeId {
    const POOL: Window = Window { kernel: 3, stride: 2, padding: 0 };
    let width = |channels: usize| (channels / divisor).max(1);
    let [w1, w2, w3, w4, w5] = [64, 192, 384, 256, 256].map(width);
    let x = b.conv2d("features.0", x, Conv2d::new(3, w1, 11).stride(4).padding(2).biased());
    let x = b.relu(x);
    let x = b.max_pool(x, POOL);
    let x = b.conv2d("features.3", x, Conv2d::new(w1, w2, 5).biased());
    let x = b.relu(x);
    let x = b.max_pool(x, POOL);
    let x = b.conv2d("features.6", x, Conv2d::new(w2, w3, 3).biased());
    let x = b.relu(x);
    let x = b.conv2d("features.8", x, Conv2d::new(w3, w4, 3).biased());
    let x = b.relu(x);
    let x = b.conv2d("features.10", x, Conv2d::new(w4, w5, 3).biased());
    let x = b.relu(x);
    b.max_pool(x, POOL)
}
