//! Trains the networks that facewise serves, and writes them as ONNX.
//!
//! The way of a network: sets ([`data`]) become samples ([`sample`]), varied crops ([`augment`]) and batches ([`loader`]);
//! a layer graph ([`graph`], built by [`architectures`]) is run by libtorch ([`network`]) and learns ([`loss`], [`optimiser`],
//! [`lesson`], [`train`]); what came out is scored ([`validate`]), made as sure as it may be ([`calibrate`]) and written for serving ([`onnx`], [`model`]). The face [`detector`] goes
//! the same way with data, loss and scores of its own, and so do the [`encoder`] of many attributes and networks on [`vectors`]. A
//! [`comparison`] is many trainings and one table.

pub mod age;
pub mod architectures;
pub mod augment;
pub mod bench;
pub mod calibrate;
pub mod checkpoint;
pub mod comparison;
pub mod config;
pub mod data;
pub mod detector;
pub mod encoder;
pub mod graph;
pub mod lesson;
pub mod loader;
pub mod loss;
pub mod model;
pub mod network;
pub mod onnx;
pub mod optimiser;
pub mod prepare;
pub mod report;
pub mod sample;
pub mod train;
pub mod validate;
pub mod vectors;
