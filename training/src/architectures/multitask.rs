//! The multitask networks: a trunk that is known from elsewhere, and for each task a head with a hidden layer of its own.

use facewise_core::task::Task;
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;

use super::alexnet::alexnet;
use super::densenet::densenet121;
use super::resnet::{ResnetConfig, resnet50};
use super::ssrnet::ssrnet;
use super::vgg::vgg16;
use crate::age::{self, AgeConfig};
use crate::graph::{Graph, GraphBuilder, GraphError, InputSpec, Linear, NodeId, Shape};
use crate::optimiser;

/// Which trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trunk {
    /// [`alexnet`], its map flattened.
    Alexnet,
    /// [`ResnetConfig`].
    Resnet18,
    /// [`resnet50`].
    Resnet50,
    /// [`densenet121`], its map flattened.
    Densenet121,
    /// [`vgg16`] with its two hidden layers, which all heads share: of the age by its expectation this is DEX.
    Vgg16,
    /// [`ssrnet`], which answers an age and nothing else.
    SsrNet,
}

/// Shape of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultitaskConfig {
    /// The trunk.
    pub kind: Trunk,
    /// What channels and features are divided by, for narrow networks; 1 is the network as published.
    #[serde(default = "one")]
    pub divisor: usize,
    /// Dropout of the hidden layers.
    #[serde(default = "half")]
    pub dropout: f64,
    /// Tasks that have a head; all without a word.
    #[serde(default = "all")]
    pub tasks: Vec<Task>,
}

fn one() -> usize {
    1
}

fn half() -> f64 {
    0.5
}

fn all() -> Vec<Task> {
    Task::ALL.into()
}

impl MultitaskConfig {
    /// The network as published, with heads for all tasks.
    pub fn new(kind: Trunk) -> Self {
        Self { kind, divisor: one(), dropout: half(), tasks: all() }
    }

    /// Builds the network for pictures of `size × size`. Parameters of trunks are named as in torchvision; the last layer of a head is
    /// `heads.<task>`, the one before it `heads.<task>.hidden`. With `divisor` 1 at 224 px the numbers of parameters are 11.9 M (`AlexNet`),
    /// 12.1 M (`ResNet`-18), 25.6 M (`ResNet`-50) and 109.8 M (`DenseNet`-121).
    ///
    /// # Errors
    /// No tasks or one twice, a divisor of 0, pictures that are too small, or an SSR-Net for anything but an age as a value.
    pub fn graph(&self, size: usize, age: &AgeConfig) -> Result<Graph, GraphError> {
        let heads = |reason: &str| Err(GraphError::Heads(reason.to_owned()));
        if self.divisor == 0 {
            return heads("`divisor` must be at least 1");
        }
        if self.kind == Trunk::SsrNet && (self.tasks != [Task::Age] || *age != AgeConfig::Value) {
            return heads("an SSR-Net needs `tasks = [\"age\"]`, and `method = \"value\"` in `[age]`");
        }
        let mut b = GraphBuilder::new(InputSpec { channels: 3, size });
        let x = self.trunk(&mut b)?;
        let mut outputs = Vec::new();
        for task in Task::ALL.into_iter().filter(|task| self.tasks.contains(task)) {
            outputs.extend(match (self.kind, task) {
                (Trunk::SsrNet, _) => age::value(&mut b, x),
                _ => self.head(&mut b, x, task, age)?,
            });
        }
        if self.tasks.iter().enumerate().any(|(index, task)| self.tasks[..index].contains(task)) {
            return heads("`tasks` has one twice");
        }
        b.finish(outputs)
    }

    /// A vector of features.
    fn trunk(&self, b: &mut GraphBuilder) -> Result<NodeId, GraphError> {
        let (x, divisor) = (b.input(), self.divisor);
        match self.kind {
            Trunk::Alexnet => {
                let x = alexnet(b, x, divisor);
                Ok(b.flatten(x))
            }
            Trunk::Resnet18 => {
                let widths = ResnetConfig::default().widths.map(|width| (width / divisor).max(1));
                Ok(ResnetConfig { widths, ..ResnetConfig::default() }.trunk(b))
            }
            Trunk::Resnet50 => Ok(resnet50(b, divisor)),
            Trunk::Densenet121 => {
                let x = densenet121(b, x, divisor);
                Ok(b.flatten(x))
            }
            Trunk::Vgg16 => vgg16(b, x, divisor, self.dropout),
            Trunk::SsrNet => ssrnet(b, x, divisor),
        }
    }

    /// Features of the hidden layer of a head; none where the trunk ends with hidden layers.
    fn hidden(&self, task: Task) -> Option<usize> {
        let width = match (self.kind, task) {
            (Trunk::Resnet18, Task::Age) | (Trunk::Alexnet | Trunk::Resnet50, _) => 256,
            (Trunk::Resnet18 | Trunk::Densenet121, _) => 512,
            (Trunk::Vgg16 | Trunk::SsrNet, _) => return None,
        };
        Some((width / self.divisor).max(1))
    }

    /// Linear, rectifier, dropout, linear. Some originals drop before the rectifier, which is the same: both keep zeros, and factors that
    /// are not negative.
    fn head(
        &self,
        b: &mut GraphBuilder,
        mut x: NodeId,
        task: Task,
        age: &AgeConfig,
    ) -> Result<Vec<(&'static str, NodeId)>, GraphError> {
        let mut width = b.shape(x)?.features();
        if let Some(hidden) = self.hidden(task) {
            x = b.linear(format!("heads.{task}.hidden"), x, Linear::new(width, hidden));
            x = b.relu(x);
            x = b.dropout(x, self.dropout);
            width = hidden;
        }
        debug_assert!(matches!(b.shape(x)?, Shape::Vector(_)));
        Ok(match task {
            Task::Age => age.head(b, x, width),
            _ => vec![(task.name(), b.linear(format!("heads.{task}"), x, Linear::new(width, task.classes())))],
        })
    }
}

/// Draws the weights of hidden linear layers from He's normal distribution by fan-in; those of heads stay small.
pub fn initialise(variables: &VarStore) {
    let is_hidden = |name: &str| {
        name.ends_with(".weight")
            && (name.starts_with("classifier.") || name.starts_with("stage") || name.ends_with(".hidden.weight"))
    };
    tch::no_grad(|| {
        for (name, variable) in optimiser::sorted(variables) {
            if variable.dim() == 2 && is_hidden(&name) {
                let fan_in = variable.size()[1] as f64;
                let _ = variable.shallow_clone().normal_(0.0, (2.0 / fan_in).sqrt());
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn graph(kind: Trunk, size: usize) -> Graph {
        MultitaskConfig::new(kind).graph(size, &AgeConfig::Classes).unwrap()
    }

    fn linear(inputs: usize, outputs: usize) -> usize {
        (inputs + 1) * outputs
    }

    /// The four heads after a hidden layer of so many features each.
    fn heads(features: usize, hidden: usize) -> usize {
        4 * linear(features, hidden) + linear(hidden, 101 + 2 + 2 + 7)
    }

    /// A convolution without bias and its normalisation.
    fn conv(inputs: usize, outputs: usize, kernel: usize) -> usize {
        inputs * outputs * kernel * kernel + 2 * outputs
    }

    #[test]
    fn alexnet_has_the_parameters_of_the_specification() {
        let biased = |i: usize, o: usize, k: usize| (i * k * k + 1) * o;
        let features =
            biased(3, 64, 11) + biased(64, 192, 5) + biased(192, 384, 3) + biased(384, 256, 3) + biased(256, 256, 3);
        let expected = features + heads(256 * 6 * 6, 256);
        assert_eq!((graph(Trunk::Alexnet, 224).parameters(), expected), (11_936_688, 11_936_688));
    }

    #[test]
    fn resnets_have_the_parameters_of_the_specification() {
        // torchvision's count without its classifier.
        let trunk18 = 11_689_512 - linear(512, 1000);
        let expected = trunk18 + 3 * linear(512, 512) + linear(512, 256) + linear(512, 2 + 2 + 7) + linear(256, 101);
        assert_eq!((graph(Trunk::Resnet18, 224).parameters(), expected), (12_127_408, 12_127_408));

        let block = |i: usize, w: usize| conv(i, w, 1) + conv(w, w, 3) + conv(w, 4 * w, 1);
        let stage =
            |i: usize, w: usize, blocks: usize| block(i, w) + conv(i, 4 * w, 1) + (blocks - 1) * block(4 * w, w);
        let trunk50 = conv(3, 64, 7) + stage(64, 64, 3) + stage(256, 128, 4) + stage(512, 256, 6) + stage(1024, 512, 3);
        assert_eq!(trunk50, 25_557_032 - linear(2048, 1000), "torchvision's count without its classifier");
        let expected = trunk50 + heads(2048, 256);
        assert_eq!((graph(Trunk::Resnet50, 224).parameters(), expected), (25_634_992, 25_634_992));
    }

    #[test]
    fn densenet_has_the_parameters_of_the_specification() {
        let mut width = 64;
        let mut trunk = conv(3, 64, 7);
        for (block, layers) in [6, 12, 24, 16].into_iter().enumerate() {
            for _ in 0..layers {
                // A normalisation stands before the first convolution, and after it the one that counts with it.
                trunk += 2 * width + conv(width, 128, 1) + 128 * 32 * 9;
                width += 32;
            }
            trunk += 2 * width;
            if block < 3 {
                trunk += width * width / 2;
                width /= 2;
            }
        }
        assert_eq!(trunk, 7_978_856 - linear(1024, 1000), "torchvision's count without its classifier");
        let expected = trunk + heads(1024 * 7 * 7, 512);
        assert_eq!((graph(Trunk::Densenet121, 224).parameters(), expected), (109_773_808, 109_773_808));
    }

    #[test]
    fn dex_is_vgg_16_with_101_classes() {
        let config = MultitaskConfig { tasks: vec![Task::Age], ..MultitaskConfig::new(Trunk::Vgg16) };
        let graph = config.graph(224, &AgeConfig::Expectation).unwrap();
        // torchvision's count with another last layer.
        assert_eq!(graph.parameters(), 138_357_544 - linear(4096, 1000) + linear(4096, 101));
    }

    #[test]
    fn ssr_net_has_the_published_size() {
        let config = MultitaskConfig { tasks: vec![Task::Age], ..MultitaskConfig::new(Trunk::SsrNet) };
        let graph = config.graph(64, &AgeConfig::Value).unwrap();
        let biased = |i: usize, o: usize, k: usize| (i * k * k + 1) * o;
        let stream = |w: usize| biased(3, w, 3) + 3 * biased(w, w, 3) + 4 * 2 * w;
        // What a stage reads has 10 channels of 4×4 cells in the first stage, of 3×3 in the others.
        let stage = |cells: usize| {
            let read = biased(32, 10, 1) + biased(16, 10, 1) + 2 * linear(10 * cells, 3);
            read + linear(10 * cells, 1) + linear(3, 6) + 2 * linear(6, 3)
        };
        assert_eq!(graph.parameters(), stream(32) + stream(16) + stage(16) + 2 * stage(9));
        // The published number counts the running statistics of the normalisations too.
        assert_eq!(graph.parameters() + 4 * 2 * (32 + 16), 40_915);
    }

    #[test]
    fn any_size_that_leaves_something_will_do() {
        for (kind, sizes) in [
            (Trunk::Alexnet, [63, 64, 112]),
            (Trunk::Resnet18, [32, 64, 100]),
            (Trunk::Resnet50, [32, 64, 100]),
            (Trunk::Densenet121, [32, 64, 100]),
            (Trunk::Vgg16, [32, 64, 112]),
        ] {
            for size in sizes {
                let graph = graph(kind, size);
                let names: Vec<&str> = graph.outputs().iter().map(|output| output.name.as_str()).collect();
                assert_eq!(names, ["age", "gender", "smile", "emotion"], "{kind:?}");
            }
        }
        let error = MultitaskConfig::new(Trunk::Alexnet).graph(48, &AgeConfig::Classes).unwrap_err().to_string();
        assert!(error.contains("at 48 px: a window of 3 does not fit into 2"), "{error}");
    }

    #[test]
    fn parameters_carry_torchvision_names() {
        for (kind, expected) in [
            (Trunk::Alexnet, ["features.0", "features.3", "features.6", "features.8", "features.10"]),
            (Trunk::Resnet50, ["conv1", "layer1.0.conv3", "layer1.0.downsample.1", "layer3.5.bn3", "layer4.2.conv2"]),
            (
                Trunk::Densenet121,
                [
                    "features.conv0",
                    "features.denseblock3.denselayer24.norm2",
                    "features.denseblock1.denselayer1.conv1",
                    "features.transition3.conv",
                    "features.norm5",
                ],
            ),
            (Trunk::Vgg16, ["features.0", "features.14", "features.28", "classifier.0", "classifier.3"]),
        ] {
            let graph = graph(kind, 224);
            for name in expected.into_iter().chain(["heads.age", "heads.emotion"]) {
                assert!(graph.nodes().iter().any(|node| node.name == name), "{kind:?} has no {name}");
            }
        }
    }

    #[test]
    fn what_cannot_be_built_is_said() {
        let error = |config: MultitaskConfig| config.graph(64, &AgeConfig::Classes).unwrap_err().to_string();
        let new = MultitaskConfig::new;
        assert!(error(new(Trunk::SsrNet)).contains("tasks = [\"age\"]"));
        assert!(error(MultitaskConfig { divisor: 0, ..new(Trunk::Alexnet) }).contains("`divisor`"));
        assert!(error(MultitaskConfig { tasks: vec![Task::Age; 2], ..new(Trunk::Resnet18) }).contains("twice"));
        assert_eq!(error(MultitaskConfig { tasks: vec![], ..new(Trunk::Resnet18) }), "the network has no outputs");
    }
}
