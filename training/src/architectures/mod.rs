//! The networks, one file each: a configuration and a function that builds the graph from it.

pub mod alexnet;
pub mod attribute_mlp;
pub mod densenet;
pub mod detector;
pub mod multitask;
pub mod residual;
pub mod resmlp;
pub mod resnet;
pub mod ssrnet;
pub mod vgg;
