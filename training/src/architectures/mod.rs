//! The networks, one file each: a configuration and a function that builds the graph from it.

pub mod residual;
