//! The networks, one file each: a configuration and a function that builds the graph from it.

pub mod attribute_mlp;
pub mod detector;
pub mod residual;
pub mod resmlp;
pub mod resnet;
