//! Trains the face detector, and writes it for serving.
//!
//! Photographs ([`data`]) become scenes ([`scene`], drawn on a [`canvas`], spoilt by [`light`]); their faces become targets of single
//! cells ([`target`]), which the [`loss`] compares with the maps of the network ([`crate::architectures::detector`]) while it learns
//! ([`train`]). What it finds in held-out photographs is counted in [`validate`]; [`model`] writes the file that is served, and [`onnx`] runs it.

pub mod canvas;
pub mod config;
pub mod data;
pub mod light;
pub mod loader;
pub mod loss;
pub mod model;
pub mod onnx;
pub mod scene;
pub mod sheet;
pub mod target;
pub mod train;
pub mod validate;

#[cfg(test)]
mod testing;
