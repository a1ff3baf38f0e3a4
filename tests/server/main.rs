//! The server from outside: a real one on a free port, spoken to over HTTP, and the program as a process.
#![allow(clippy::unwrap_used)]

mod access;
mod bad_input;
mod batch;
mod cli;
mod clients;
mod console;
mod detect;
mod embeddings;
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
#[cfg(feature = "tls")]
mod tls;
mod tune;
mod v2;
