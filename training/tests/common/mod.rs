//! What several tests share.

use facewise_training::graph::Graph;
use facewise_training::network::Network;
use tch::nn::VarStore;
use tch::{Device, Tensor};

/// A network whose variables are all random, running statistics included.
pub(crate) fn random(graph: &Graph) -> (VarStore, Network) {
    // Tests run beside each other; threads that wait for threads would only slow them down.
    tch::set_num_threads(1);
    tch::manual_seed(11);
    let store = VarStore::new(Device::Cpu);
    let network = Network::new(&store.root(), graph);
    // In the order of the names, for the same numbers in each run.
    let mut variables: Vec<(String, Tensor)> = store.variables().into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    tch::no_grad(|| {
        for (name, mut variable) in variables {
            let noise = variable.randn_like();
            let value = if name.ends_with("running_var") || (variable.dim() == 1 && name.ends_with("weight")) {
                noise.abs() + 0.5
            } else if variable.dim() == 1 {
                noise * 0.3
            } else {
                let fan_in = variable.numel() as f64 / variable.size()[0] as f64;
                noise / fan_in.sqrt()
            };
            variable.copy_(&value);
        }
    });
    (store, network)
}
