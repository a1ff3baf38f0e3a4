//! Faces with yes-or-no attributes from the columns of a labelled set.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use facewise_core::picture::{self, Limits};
use facewise_evaluation::{Dataset, Filter, Row};
use rayon::prelude::*;

use super::config::{Config, DataConfig};
use crate::sample::{Labels, Sample};

/// Pictures with their attributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faces {
    /// The pictures; their labels are empty.
    pub samples: Vec<Sample>,
    /// Row by row 1 for each attribute that a face has, 0 for each that it has not.
    pub attributes: Vec<f32>,
}

/// The parts of a set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// Teaches.
    pub train: Faces,
    /// Chooses the epoch.
    pub validation: Faces,
    /// Measures only; empty where the configuration names none.
    pub test: Faces,
}

impl Faces {
    /// Number of faces.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The share of each of `count` attributes among the faces.
    pub fn shares(&self, count: usize) -> Vec<f64> {
        let mut sums = vec![0.0; count];
        for row in self.attributes.chunks_exact(count) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        sums.iter().map(|sum| sum / self.len().max(1) as f64).collect()
    }
}

/// The set of a configuration.
pub struct Set<'a> {
    config: &'a Config,
    dataset: Dataset,
    /// Where the attributes are.
    columns: Vec<usize>,
}

impl<'a> Set<'a> {
    /// Opens it below `root`.
    ///
    /// # Errors
    /// When the set cannot be read, or a column is missing.
    pub fn open(root: &Path, config: &'a Config) -> Result<Self> {
        let data = &config.data;
        let of_set = || format!("set `{}`", data.set);
        let dataset = Dataset::open(root.join(&data.set)).with_context(of_set)?;
        let columns = data.attributes.iter().map(|name| dataset.column(name)).collect::<Result<_, _>>();
        let columns = columns.with_context(of_set)?;
        Ok(Self { config, dataset, columns })
    }

    /// Reads all that the configuration names.
    ///
    /// # Errors
    /// When a picture cannot be read, a cell is none of 1, 0 and -1, or a filter leaves nothing.
    pub fn parts(&self) -> Result<Parts> {
        let data = &self.config.data;
        Ok(Parts {
            train: self.part(&data.train)?,
            validation: self.validation()?,
            test: data.test.as_deref().map(|filter| self.part(filter)).transpose()?.unwrap_or_default(),
        })
    }

    /// Reads the rows that choose the epoch.
    ///
    /// # Errors
    /// As for [`Set::parts`].
    pub fn validation(&self) -> Result<Faces> {
        self.part(&self.config.data.validation)
    }

    fn part(&self, filter: &str) -> Result<Faces> {
        let data = &self.config.data;
        let of_set = || format!("set `{}`", data.set);
        let rows = self.dataset.select(&Filter::parse(filter).with_context(of_set)?).with_context(of_set)?;
        ensure!(!rows.is_empty(), "set `{}`: no row has {filter}", data.set);
        faces(&self.dataset, &rows, data, &self.columns, 2 * self.config.size).with_context(of_set)
    }
}

fn faces(dataset: &Dataset, rows: &[&Row], data: &DataConfig, columns: &[usize], resolution: u32) -> Result<Faces> {
    let face = |row: &&Row| -> Result<(Sample, Vec<f32>)> {
        let attributes = columns
            .iter()
            .zip(&data.attributes)
            .map(|(column, name)| match row.cell(*column).trim() {
                "1" => Ok(1.0),
                "0" | "-1" => Ok(0.0),
                other => bail!("{name} is '{other}', which is none of 1, 0 and -1"),
            })
            .collect::<Result<Vec<f32>>>()?;
        let picture = picture::decode(&dataset.read(row)?, Limits::default())?;
        Ok((Sample::new(picture, row.landmarks, Labels::default(), resolution), attributes))
    };
    let read = |row: &&Row| face(row).with_context(|| format!("line {}: {}", row.line, row.path));
    let (samples, attributes): (Vec<_>, Vec<_>) =
        rows.par_iter().map(read).collect::<Result<Vec<_>>>()?.into_iter().unzip();
    Ok(Faces { samples, attributes: attributes.concat() })
}
