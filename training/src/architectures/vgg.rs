//! VGG-16 (Simonyan & Zisserman 2015, arXiv:1409.1556), the network of DEX (Rothe et al. 2015).

use crate::graph::{Conv2d, GraphBuilder, GraphError, Linear, NodeId, Shape, Window};

/// Convolutions and poolings in their order: channels, and 0 for a pooling.
const LAYERS: [usize; 18] = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0];

/// Adds the network up to its last hidden layer, channels and features divided by `divisor`, to pictures `x`; parameters are named as in
/// torchvision's `VGG`. The result has 4096 features.
///
/// # Errors
/// Pictures too small for five halvings.
pub fn vgg16(b: &mut GraphBuilder, mut x: NodeId, divisor: usize, dropout: f64) -> Result<NodeId, GraphError> {
    let width = |channels: usize| (channels / divisor).max(1);
    let (mut inputs, mut number) = (3, 0);
    for channels in LAYERS {
        if channels == 0 {
            x = b.max_pool(x, Window { kernel: 2, stride: 2, padding: 0 });
            number += 1;
            continue;
        }
        x = b.conv2d(format!("features.{number}"), x, Conv2d::new(inputs, width(channels), 3).biased());
        x = b.relu(x);
        inputs = width(channels);
        // torchvision counts the rectifier, too.
        number += 2;
    }
    x = b.flatten(x);
    for name in ["classifier.0", "classifier.3"] {
        let Shape::Vector(features) = b.shape(x)? else { unreachable!("flattened") };
        x = b.linear(name, x, Linear::new(features, width(4096)));
        x = b.relu(x);
        x = b.dropout(x, dropout);
    }
    Ok(x)
}
