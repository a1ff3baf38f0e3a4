//! Proves that an exported file computes what the network computes: the same pictures through libtorch and ONNX Runtime.

use std::path::Path;

use ort::session::{Session, SessionOutputs};
use ort::value::Tensor as OrtTensor;
use tch::{Device, Kind, TchError, Tensor};

use super::export::{input_name, logits_name};
use super::runtime::{self, RuntimeError};
use crate::network::{Mode, Network};

/// Largest difference allowed between a picture alone and the same picture in a batch.
pub const ROW_TOLERANCE: f32 = 1e-5;

/// Rows with a value larger than this may differ by more, as the value is larger: a 32-bit float has seven digits, wherever its point is.
pub const ABSOLUTE: f32 = 10.0;

/// What was compared, and how far apart it was.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Parity {
    /// Pictures compared.
    pub pictures: usize,
    /// Largest difference between libtorch and ONNX Runtime in any value of any output.
    pub max_abs_difference: f32,
    /// Largest difference between a picture in a batch and alone, both in ONNX Runtime.
    pub max_row_difference: f32,
}

/// Where the two engines disagree, or why they could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ParityError {
    /// ONNX Runtime is missing or refuses the model.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// libtorch cannot hand out its values.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// An output that the network has is not in the file.
    #[error("the file has no output {0}")]
    Missing(String),
    /// An output has another shape than in the network.
    #[error("output {output}: ONNX Runtime gives the shape {found:?}, libtorch {expected:?}")]
    Shape {
        /// Name of the output in the file.
        output: String,
        /// What libtorch gives.
        expected: Vec<i64>,
        /// What ONNX Runtime gives.
        found: Vec<i64>,
    },
    /// A value differs.
    #[error("output {output}, picture {row}: {comparison} differ by {difference:e}, allowed are {tolerance:e}")]
    Difference {
        /// Name of the output in the file.
        output: String,
        /// Number of the picture, counted over all batches from 0.
        row: usize,
        /// What was compared.
        comparison: &'static str,
        /// Largest difference in this row.
        difference: f32,
        /// What was allowed.
        tolerance: f32,
    },
    /// The values are close, but the largest is another.
    #[error("output {output}, picture {row}: class {torch} is first in libtorch, class {onnx} in ONNX Runtime")]
    Argmax {
        /// Name of the output in the file.
        output: String,
        /// Number of the picture, counted over all batches from 0.
        row: usize,
        /// First class in libtorch.
        torch: usize,
        /// First class in ONNX Runtime.
        onnx: usize,
    },
    /// There was nothing to compare.
    #[error("no pictures to compare")]
    NoPictures,
}

/// Runs `batches` (`N × channels × size × size` or `N × features` each, fp32) through `network` and the file at `onnx`, which was written from it.
///
/// Every output must agree within `tolerance` (of rows with values over [`ABSOLUTE`] in proportion), vectors with the same class first in each row: the logits, and for heads the probabilities
/// with the softmax of libtorch's logits. Each row of a batch must equal the picture alone within [`ROW_TOLERANCE`]. `network` must compute in fp32.
///
/// # Errors
/// The first disagreement with output and row, or why the file cannot be run.
pub fn check(
    onnx: &Path,
    network: &Network,
    batches: impl IntoIterator<Item = Tensor>,
    tolerance: f32,
) -> Result<Parity, ParityError> {
    let mut session = runtime::session(onnx)?;
    let input = input_name(network.graph().input());
    let mut parity = Parity { pictures: 0, max_abs_difference: 0.0, max_row_difference: 0.0 };
    for pixels in batches {
        let expected = expected(network, &session, &pixels)?;
        let names: Vec<&str> = expected.iter().map(|rows| rows.name.as_str()).collect();
        let found = run(&mut session, input, &pixels, &names)?;
        for (torch, onnx) in expected.iter().zip(&found) {
            let compared = ("libtorch and ONNX Runtime", tolerance);
            let difference = compare(torch, onnx, parity.pictures, compared)?;
            parity.max_abs_difference = parity.max_abs_difference.max(difference);
            same_argmax(torch, onnx, parity.pictures)?;
        }
        let count = pixels.size()[0];
        for row in 0..count {
            let alone = run(&mut session, input, &pixels.narrow(0, row, 1), &names)?;
            for (alone, batch) in alone.iter().zip(&found) {
                let compared = ("the picture alone and in a batch", ROW_TOLERANCE);
                let difference = compare(alone, &batch.only(row as usize), parity.pictures + row as usize, compared)?;
                parity.max_row_difference = parity.max_row_difference.max(difference);
            }
        }
        parity.pictures += count as usize;
    }
    if parity.pictures == 0 { Err(ParityError::NoPictures) } else { Ok(parity) }
}

/// Values of one output, the first dimension being the pictures.
struct Rows {
    name: String,
    shape: Vec<i64>,
    values: Vec<f32>,
}

impl Rows {
    fn from_torch(name: String, tensor: &Tensor) -> Result<Self, TchError> {
        let values = Vec::try_from(tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().flatten(0, -1))?;
        Ok(Self { name, shape: tensor.size(), values })
    }

    fn from_onnx(name: &str, outputs: &SessionOutputs) -> Result<Self, RuntimeError> {
        let (shape, values) = outputs[name].try_extract_tensor::<f32>()?;
        Ok(Self { name: name.to_owned(), shape: shape.to_vec(), values: values.to_vec() })
    }

    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        let width: i64 = self.shape[1..].iter().product();
        self.values.chunks_exact(width as usize)
    }

    fn only(&self, row: usize) -> Self {
        let values = self.rows().nth(row).unwrap_or_default().to_vec();
        let shape = std::iter::once(1).chain(self.shape[1..].iter().copied()).collect();
        Self { name: self.name.clone(), shape, values }
    }
}

/// What libtorch says that the file's outputs should be.
fn expected(network: &Network, session: &Session, pixels: &Tensor) -> Result<Vec<Rows>, ParityError> {
    let in_file = |name: &str| session.outputs().iter().any(|output| output.name() == name);
    let mut expected = Vec::new();
    for (output, value) in network.graph().outputs().iter().zip(network.forward(pixels, Mode::Eval)) {
        let logits = logits_name(&output.name);
        if !in_file(&output.name) {
            return Err(ParityError::Missing(output.name.clone()));
        }
        if in_file(&logits) {
            expected.push(Rows::from_torch(output.name.clone(), &value.softmax(1, Kind::Float))?);
            expected.push(Rows::from_torch(logits, &value)?);
        } else {
            expected.push(Rows::from_torch(output.name.clone(), &value)?);
        }
    }
    Ok(expected)
}

fn run(
    session: &mut Session,
    input: &'static str,
    pixels: &Tensor,
    outputs: &[&str],
) -> Result<Vec<Rows>, ParityError> {
    let rows = Rows::from_torch(input.to_owned(), pixels)?;
    let tensor = OrtTensor::from_array((rows.shape, rows.values)).map_err(RuntimeError::from)?;
    let found = session.run(ort::inputs![input => tensor]).map_err(RuntimeError::from)?;
    Ok(outputs.iter().map(|name| Rows::from_onnx(name, &found)).collect::<Result<_, _>>()?)
}

/// The largest difference, if it is allowed; what was compared and the tolerance come together.
fn compare(a: &Rows, b: &Rows, first: usize, (comparison, tolerance): (&'static str, f32)) -> Result<f32, ParityError> {
    if a.shape != b.shape {
        return Err(ParityError::Shape { output: a.name.clone(), expected: a.shape.clone(), found: b.shape.clone() });
    }
    let mut largest = 0.0_f32;
    for (row, (a_row, b_row)) in a.rows().zip(b.rows()).enumerate() {
        // Not a number counts as infinitely far.
        let far = |(x, y): (&f32, &f32)| if (x - y).is_nan() { f32::INFINITY } else { (x - y).abs() };
        let difference = a_row.iter().zip(b_row).map(far).fold(0.0, f32::max);
        let largest_value = a_row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let tolerance = tolerance * (largest_value / ABSOLUTE).max(1.0);
        if difference > tolerance {
            let (output, row) = (a.name.clone(), first + row);
            return Err(ParityError::Difference { output, row, comparison, difference, tolerance });
        }
        largest = largest.max(difference);
    }
    Ok(largest)
}

fn same_argmax(torch: &Rows, onnx: &Rows, first: usize) -> Result<(), ParityError> {
    // The values of a map are no classes.
    if torch.shape.len() != 2 {
        return Ok(());
    }
    let argmax = |row: &[f32]| (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap_or_default();
    for (row, (a, b)) in torch.rows().zip(onnx.rows()).enumerate() {
        let (torch_class, onnx_class) = (argmax(a), argmax(b));
        if torch_class != onnx_class {
            let (output, row) = (torch.name.clone(), first + row);
            return Err(ParityError::Argmax { output, row, torch: torch_class, onnx: onnx_class });
        }
    }
    Ok(())
}
