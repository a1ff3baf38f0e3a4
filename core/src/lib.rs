//! What training and serving must agree on, once: decoding of pictures, the
//! geometry of a face and its crop, tasks and their labels, how network outputs
//! become answers, and the manifest that says which of these a model needs.
//!
//! No HTTP, no ONNX Runtime and no libtorch in here.

pub mod crop;
pub mod decode;
pub mod detection;
pub mod geometry;
pub mod manifest;
pub mod npy;
pub mod onnxruntime;
pub mod picture;
pub mod task;
