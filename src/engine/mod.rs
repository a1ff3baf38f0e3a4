//! Networks at work. A [`Model`] is a network with its manifest, a bounded queue and the worker threads that take
//! batches from it; pictures of different requests share batches. What goes in and comes out has a meaning in
//! [`AttributeModel`], [`Detector`] and [`EmbeddingModel`].

pub mod attributes;
pub mod backend;
mod buckets;
pub mod detector;
pub mod embeddings;
pub mod model;
pub mod onnx;
mod provider;
mod queue;
pub mod statistics;
mod worker;

pub use attributes::{AttributeModel, Attributes, Inference};
pub use backend::{Backend, BackendError, Signature, TensorSpec};
pub use detector::Detector;
pub use embeddings::{EmbeddingModel, Told};
pub use model::{EngineError, HandedIn, MismatchError, Model, Network, Options, Tensor};
pub use onnx::{OnnxBackend, Runtime, RuntimeError};
pub use queue::Urgency;
