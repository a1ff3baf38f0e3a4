//! Networks at work. A [`Model`] is a network with its manifest, a bounded queue and the worker threads that take
//! batches from it; faces of different requests share batches.

pub mod backend;
pub mod model;
pub mod onnx;
mod queue;
mod worker;

pub use backend::{Backend, BackendError, Signature, TensorSpec};
pub use model::{Attributes, EngineError, Inference, MismatchError, Model, Options};
pub use onnx::{OnnxBackend, Runtime, RuntimeError};
