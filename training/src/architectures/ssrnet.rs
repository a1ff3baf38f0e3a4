//! SSR-Net (Yang et al. 2018, IJCAI): an age as a number, from coarse to fine in three stages of three bins, whose width and place the
//! network moves. Two streams of few channels see the picture through different activations and poolings.

use crate::graph::{Activation, Affine, BatchNorm, Conv2d, GraphBuilder, GraphError, Linear, NodeId, Shape, Window};

/// Bins of each stage.
const BINS: usize = 3;
/// Channels of what the stages read.
const READ: usize = 10;
const DROPOUT: f64 = 0.2;

/// One of the two streams.
struct Stream {
    name: &'static str,
    width: usize,
    activation: Activation,
    /// Whether it halves by the largest value instead of the mean.
    max: bool,
}

impl Stream {
    fn pool(&self, b: &mut GraphBuilder, x: NodeId, kernel: usize) -> NodeId {
        let window = Window { kernel, stride: kernel, padding: 0 };
        if self.max { b.max_pool(x, window) } else { b.avg_pool(x, window) }
    }

    /// The maps that the stages read, of the last stage first: after one, two and four convolutions without padding.
    fn maps(&self, b: &mut GraphBuilder, mut x: NodeId, divisor: usize) -> Vec<(NodeId, usize)> {
        let width = (self.width / divisor).max(1);
        let (mut inputs, mut maps) = (3, Vec::new());
        for layer in 1..=4 {
            let name = |part: &str| format!("{}.{part}{layer}", self.name);
            x = b.conv2d(name("conv"), x, Conv2d::new(inputs, width, 3).padding(0).biased());
            x = b.batch_norm(name("bn"), x, BatchNorm::new(width));
            x = b.activation(x, self.activation);
            if layer < 4 {
                x = self.pool(b, x, 2);
            }
            if layer != 3 {
                maps.push((x, width));
            }
            inputs = width;
        }
        maps
    }

    /// What a stage reads of a map: all of it, and three numbers.
    fn read(
        &self,
        b: &mut GraphBuilder,
        (x, width): (NodeId, usize),
        stage: usize,
        pooling: usize,
    ) -> Result<(NodeId, NodeId), GraphError> {
        let name = format!("stage{stage}.{}", self.name);
        let x = b.conv2d(format!("{name}.conv"), x, Conv2d::new(width, READ, 1).biased());
        let mut x = b.relu(x);
        if pooling > 1 {
            x = self.pool(b, x, pooling);
        }
        let all = b.flatten(x);
        let Shape::Vector(features) = b.shape(all)? else { unreachable!("flattened") };
        let few = b.dropout(all, DROPOUT);
        let few = b.linear(format!("{name}.mix"), few, Linear::new(features, BINS));
        Ok((all, b.relu(few)))
    }
}

/// Adds the network, channels of its streams divided by `divisor`, to pictures `x`: the age as a share of the range `V`,
/// `Σₖ Σᵢ (i + ηₖᵢ) · pₖᵢ / Πⱼ≤ₖ s (1 + Δⱼ)` with `s` bins a stage, a vector of one.
///
/// `p` is a softmax, as the paper has it; the authors' program has a rectifier there.
///
/// # Errors
/// Pictures smaller than 54 px, of which the last convolutions leave nothing to read.
pub fn ssrnet(b: &mut GraphBuilder, x: NodeId, divisor: usize) -> Result<NodeId, GraphError> {
    let streams = [
        Stream { name: "stream1", width: 32, activation: Activation::Relu, max: false },
        Stream { name: "stream2", width: 16, activation: Activation::Tanh, max: true },
    ];
    let maps: Vec<_> = streams.iter().map(|stream| stream.maps(b, x, divisor)).collect();
    let mut divided: Option<NodeId> = None;
    let mut share: Option<NodeId> = None;
    for (stage, pooling) in [(1, 1), (2, 4), (3, 8)] {
        let map = 3 - stage;
        let (all1, few1) = streams[0].read(b, maps[0][map], stage, pooling)?;
        let (all2, few2) = streams[1].read(b, maps[1][map], stage, pooling)?;
        let name = |part: &str| format!("stage{stage}.{part}");

        let all = b.mul(all1, all2);
        let Shape::Vector(features) = b.shape(all)? else { unreachable!("a product of vectors") };
        let range = b.linear(name("range"), all, Linear::new(features, 1));
        let range = b.activation(range, Activation::Tanh);
        let range = b.affine(range, Affine::each(1, BINS as f32, |_| BINS as f32));
        let divisor = divided.map_or(range, |divided| b.mul(divided, range));
        divided = Some(divisor);

        let few = b.mul(few1, few2);
        let few = b.linear(name("mix"), few, Linear::new(BINS, 2 * BINS));
        let few = b.relu(few);
        let bins = b.linear(name("bins"), few, Linear::new(2 * BINS, BINS));
        let bins = b.softmax(bins);
        let shift = b.linear(name("shift"), few, Linear::new(2 * BINS, BINS));
        let shift = b.activation(shift, Activation::Tanh);
        let index = b.affine(shift, Affine::each(BINS, 1.0, |bin| bin as f32));
        let terms = b.mul(index, bins);
        let sum = b.affine(terms, Affine::new(BINS, 1, |_, _| 1.0, |_| 0.0));
        let part = b.div(sum, divisor);
        share = Some(share.map_or(part, |share| b.add(share, part)));
    }
    Ok(share.expect("there are three stages"))
}
