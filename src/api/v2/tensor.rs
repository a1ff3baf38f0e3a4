//! Tensors as they travel: their types, and their elements as JSON or as bytes.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::engine::Tensor;

/// Type of a tensor's elements: of the protocol's types, those that are read or answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Datatype {
    /// Any bytes, each element with a length of its own; where they are text, UTF-8.
    Bytes,
    /// 32-bit floats.
    Fp32,
    /// 32-bit integers.
    Int32,
}

impl Datatype {
    /// Its name in the protocol.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "BYTES",
            Self::Fp32 => "FP32",
            Self::Int32 => "INT32",
        }
    }

    /// Its name in Triton's configuration of models.
    pub(super) const fn config_name(self) -> &'static str {
        match self {
            Self::Bytes => "TYPE_STRING",
            Self::Fp32 => "TYPE_FP32",
            Self::Int32 => "TYPE_INT32",
        }
    }
}

/// What a model reads or answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct TensorMetadata {
    /// Name of the tensor.
    #[schema(example = "pixels")]
    pub(super) name: Cow<'static, str>,
    /// Type of its elements.
    pub(super) datatype: Datatype,
    /// Its dimensions; −1 is any.
    #[schema(example = json!([-1, 3, 64, 64]))]
    pub(super) shape: Vec<i64>,
}

impl TensorMetadata {
    /// A tensor whose first dimension, of any size, is followed by `row`.
    pub(super) fn new(name: impl Into<Cow<'static, str>>, datatype: Datatype, row: &[usize]) -> Self {
        let row = row.iter().map(|side| i64::try_from(*side).unwrap_or(i64::MAX));
        Self { name: name.into(), datatype, shape: [-1].into_iter().chain(row).collect() }
    }

    /// A tensor of a network, in batches of any size.
    pub(super) fn of(tensor: &Tensor) -> Self {
        Self::new(tensor.name.clone(), Datatype::Fp32, &tensor.shape)
    }
}

/// The elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Elements {
    /// 32-bit floats.
    Fp32(Vec<f32>),
    /// 32-bit integers.
    Int32(Vec<i32>),
    /// Text.
    Text(Vec<Cow<'static, str>>),
}

impl Elements {
    pub(super) const fn datatype(&self) -> Datatype {
        match self {
            Self::Fp32(_) => Datatype::Fp32,
            Self::Int32(_) => Datatype::Int32,
            Self::Text(_) => Datatype::Bytes,
        }
    }

    /// Appends the elements as bytes: numbers little-endian, text with its length before it.
    pub(super) fn write_to(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Fp32(numbers) => bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
            Self::Int32(numbers) => bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
            Self::Text(words) => {
                for word in words {
                    bytes.extend((word.len() as u32).to_le_bytes());
                    bytes.extend(word.as_bytes());
                }
            }
        }
    }

    /// How many bytes [`Self::write_to`] appends.
    pub(super) fn byte_len(&self) -> usize {
        match self {
            Self::Fp32(numbers) => 4 * numbers.len(),
            Self::Int32(numbers) => 4 * numbers.len(),
            Self::Text(words) => words.iter().map(|word| 4 + word.len()).sum(),
        }
    }
}

impl Serialize for Elements {
    /// A flat list; what is no finite number is `null`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fp32(numbers) => numbers.serialize(serializer),
            Self::Int32(numbers) => numbers.serialize(serializer),
            Self::Text(words) => words.serialize(serializer),
        }
    }
}

/// A tensor that a model answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Output {
    pub(super) name: Cow<'static, str>,
    /// All of its dimensions.
    pub(super) shape: Vec<usize>,
    pub(super) elements: Elements,
    /// What the numbers of a row stand for, where that has names.
    pub(super) labels: &'static [&'static str],
}

impl Output {
    /// Floats in rows of a network's tensor.
    pub(super) fn of(tensor: &Tensor, rows: usize, numbers: Vec<f32>) -> Self {
        Self {
            name: tensor.name.clone().into(),
            shape: [rows].into_iter().chain(tensor.shape.iter().copied()).collect(),
            elements: Elements::Fp32(numbers),
            labels: tensor.labels,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn elements_are_bytes_or_json() {
        let text = Elements::Text(vec!["ab".into(), "".into(), "é".into()]);
        for (elements, bytes, json) in [
            (Elements::Fp32(vec![1.0, f32::NAN]), vec![0, 0, 0x80, 0x3f, 0, 0, 0xc0, 0x7f], "[1.0,null]"),
            (Elements::Int32(vec![-2]), vec![0xfe, 0xff, 0xff, 0xff], "[-2]"),
            (text, vec![2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0, 2, 0, 0, 0, 0xc3, 0xa9], r#"["ab","","é"]"#),
        ] {
            let mut written = Vec::new();
            elements.write_to(&mut written);
            assert_eq!((written.len(), &written), (elements.byte_len(), &bytes));
            assert_eq!(serde_json::to_string(&elements).unwrap(), json);
        }
    }

    #[test]
    fn names_are_those_of_the_protocol() {
        for datatype in [Datatype::Bytes, Datatype::Fp32, Datatype::Int32] {
            assert_eq!(serde_json::to_value(datatype).unwrap(), datatype.name());
        }
    }
}
