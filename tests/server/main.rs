//! The server from outside: a real one on a free port, spoken to over HTTP, and the program as a process.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod cli;
mod detect;
mod engine;
mod evaluate;
mod evaluations;
mod group;
mod harness;
mod onnx;
mod operations;
#[cfg(feature = "otlp")]
mod otlp;
mod overload;
mod predict;
mod reload;
mod shutdown;
mod startup;
mod tune;
