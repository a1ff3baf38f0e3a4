//! Vectors with what is known of each, as networks learn from them.

use tch::{Device, Tensor};

/// Labelled vectors of one length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Numbers of a vector.
    pub features: usize,
    /// The numbers of all vectors, one after the other.
    pub values: Vec<f32>,
    /// Class of each row.
    pub classes: Vec<i64>,
    /// Age of each row in years, where the classes come from ages; else empty.
    pub years: Vec<f32>,
    /// Which part of the data each row belongs to, where the data says so; else empty.
    pub parts: Vec<Part>,
    /// Who is on each row, as a number, where the data says so; else empty.
    pub subjects: Vec<usize>,
    /// Number of each row's fold, where the data says so; else empty.
    pub folds: Vec<usize>,
    /// Rows of the files that have no label for the target, and are not among these.
    pub unlabelled: usize,
}

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Teaches.
    Train,
    /// Chooses the best epoch.
    Validation,
    /// Measures only.
    Test,
}

/// Some rows, as tensors.
#[derive(Debug)]
pub struct Examples {
    /// fp32 `[n, features]`.
    pub inputs: Tensor,
    /// Class of each, int64 `[n]`.
    pub classes: Tensor,
    /// Age of each in years; empty where classes are not of ages.
    pub years: Vec<f32>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Some of the rows, in this order.
    pub fn examples(&self, indices: &[usize], device: Device) -> Examples {
        let values: Vec<f32> =
            indices.iter().flat_map(|i| &self.values[i * self.features..(i + 1) * self.features]).copied().collect();
        let classes: Vec<i64> = indices.iter().map(|i| self.classes[*i]).collect();
        let years = indices.iter().filter_map(|i| self.years.get(*i).copied()).collect();
        Examples {
            inputs: Tensor::from_slice(&values).view([indices.len() as i64, self.features as i64]).to_device(device),
            classes: Tensor::from_slice(&classes).to_device(device),
            years,
        }
    }
}

impl Examples {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.classes.size()[0] as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
