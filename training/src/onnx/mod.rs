//! Networks as ONNX files: [`export`] writes them, [`metadata`] keeps the manifest inside them, and [`parity`] proves that ONNX Runtime
//! computes what libtorch computes, and [`quantise`] rounds them to 8-bit integers.

pub mod export;
pub mod messages;
pub mod metadata;
pub mod parity;
pub mod quantise;
pub mod runtime;
