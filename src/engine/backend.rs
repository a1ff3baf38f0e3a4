//! What the engine needs of a library that runs networks. ONNX Runtime is the one that is used; the trait keeps
//! queue and workers testable without a network.

/// A named tensor of a network. An unknown dimension, as the batch is, is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the tensor.
    pub name: String,
    /// Whether its elements are 32-bit floats.
    pub is_float32: bool,
    /// Its dimensions.
    pub shape: Vec<Option<usize>>,
}

/// What a network reads and answers, and the manifest inside its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Tensors that it reads.
    pub inputs: Vec<TensorSpec>,
    /// Tensors that it answers.
    pub outputs: Vec<TensorSpec>,
    /// The embedded manifest, as text.
    pub manifest: Option<String>,
}

/// A failure inside the library that runs networks; its text is for the log, not for clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// One network, loaded, run by one thread at a time.
pub trait Backend: Send {
    /// What the network reads and answers.
    fn signature(&self) -> &Signature;

    /// Runs the network on `input`, a contiguous tensor of `shape` whose first dimension is the batch, and gives the
    /// tensors named in `outputs`, in that order, each contiguous.
    ///
    /// # Errors
    /// When the library refuses the input or fails.
    fn run(&mut self, input: &[f32], shape: &[usize], outputs: &[String]) -> Result<Vec<Vec<f32>>, BackendError>;

    /// Loads the same network once more: for another worker, or in the place of a copy that panicked and cannot be trusted.
    ///
    /// # Errors
    /// When it is not there any more, or has changed.
    fn renew(&self) -> Result<Box<dyn Backend>, BackendError>;

    /// Sizes of batches, up to `most`, to run once before the first request, so that none pays for what is done once.
    fn warm_up_sizes(&self, most: usize) -> Vec<usize> {
        vec![1, most]
    }
}
