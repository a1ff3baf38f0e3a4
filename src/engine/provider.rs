//! ONNX Runtime's providers, which run the operations of a network: how they are set up, and whether they work. One that
//! was asked for and does not work is an error at the start, never a silent change to the CPU.

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{self, CPU, CUDA, ExecutionProvider as _, ExecutionProviderDispatch, TensorRT};
use ort::session::builder::SessionBuilder;
use ort::value::TensorRef;

use crate::config::{ArenaStrategy, CudnnSearch, Device, Provider};

/// The providers for a device, the preferred one first. An operation goes to the first one that has it.
pub(super) fn providers(device: &Device) -> Vec<ExecutionProviderDispatch> {
    let cpu = CPU::default().with_arena_allocator(device.cpu_arena).build();
    let gpu = match device.provider {
        Provider::Cpu => Vec::new(),
        Provider::Cuda => vec![cuda(device).build()],
        Provider::TensorRt => vec![tensorrt(device).build(), cuda(device).build()],
    };
    gpu.into_iter().chain([cpu]).map(ExecutionProviderDispatch::error_on_failure).collect()
}

fn cuda(device: &Device) -> CUDA {
    let cuda = CUDA::default()
        .with_device_id(device.number().into())
        .with_arena_extend_strategy(match device.arena_strategy.unwrap_or_default() {
            ArenaStrategy::NextPowerOfTwo => ep::ArenaExtendStrategy::NextPowerOfTwo,
            ArenaStrategy::SameAsRequested => ep::ArenaExtendStrategy::SameAsRequested,
        })
        .with_conv_algorithm_search(match device.cudnn_search.unwrap_or_default() {
            CudnnSearch::Exhaustive => ConvAlgorithmSearch::Exhaustive,
            CudnnSearch::Heuristic => ConvAlgorithmSearch::Heuristic,
            CudnnSearch::Default => ConvAlgorithmSearch::Default,
        })
        // Its products have 10 bits; answers must be the CPU's.
        .with_tf32(false);
    match memory_limit(device) {
        Some(limit) => cuda.with_memory_limit(limit),
        None => cuda,
    }
}

fn tensorrt(device: &Device) -> TensorRT {
    let tensorrt = TensorRT::default().with_device_id(device.number().into());
    match memory_limit(device) {
        Some(limit) => tensorrt.with_max_workspace_size(limit),
        None => tensorrt,
    }
}

fn memory_limit(device: &Device) -> Option<usize> {
    device.gpu_memory_limit.map(|limit| usize::try_from(limit.as_u64()).unwrap_or(usize::MAX))
}

/// Whether the loaded library was built with a provider. Its own libraries may still be missing.
pub(super) fn is_built_in(provider: Provider) -> ort::Result<bool> {
    match provider {
        Provider::Cpu => CPU::is_available(),
        Provider::Cuda => CUDA::is_available(),
        Provider::TensorRt => Ok(TensorRT::is_available()? && CUDA::is_available()?),
    }
}

/// An ONNX file with one node: `y = Conv(x, w)` of one channel, without bias, where `w` is 2; IR 8, opset 18.
const PROBE: &[u8] = b"\x08\x08\x3a\x69\x0a\x0f\x0a\x01x\x0a\x01w\x12\x01y\x22\x04Conv\x12\x05probe\
    \x2a\x13\x08\x01\x08\x01\x08\x01\x08\x01\x10\x01\x22\x04\x00\x00\x00\x40\x42\x01w\
    \x5a\x1c\x0a\x01x\x12\x17\x0a\x15\x08\x01\x12\x11\x0a\x03\x12\x01n\x0a\x02\x08\x01\x0a\x02\x08\x01\x0a\x02\x08\x01\
    \x62\x1c\x0a\x01y\x12\x17\x0a\x15\x08\x01\x12\x11\x0a\x03\x12\x01n\x0a\x02\x08\x01\x0a\x02\x08\x01\x0a\x02\x08\x01\
    \x42\x04\x0a\x00\x10\x12";

/// Convolves two numbers, to see that the first of the providers works, down to the device.
///
/// # Errors
/// When it does not, or the answer is wrong.
pub(super) fn probe(mut options: SessionBuilder) -> ort::Result<()> {
    let mut session = options.commit_from_memory(PROBE)?;
    let input = TensorRef::from_array_view(([2usize, 1, 1, 1], &[3.0f32, -1.0][..]))?;
    let answers = session.run(ort::inputs!["x" => input])?;
    let (_, answer) = answers["y"].try_extract_tensor::<f32>()?;
    if answer == [6.0, -2.0] { Ok(()) } else { Err(ort::Error::new(format!("2 · [3, −1] was answered {answer:?}"))) }
}
