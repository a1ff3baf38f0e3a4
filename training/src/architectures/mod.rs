//! The networks, one file each: a configuration and a function that builds the graph from it.

pub mod detector;
pub mod residual;
