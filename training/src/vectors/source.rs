//! The files that a training on vectors learns from, with what tells them from other files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::config::{Config, SourceConfig};
use super::rows::Rows;
use super::target::Target;
use super::{celeba, embeddings};

/// Where vectors and their labels are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A `NumPy` file of embeddings, and a CSV file with a line for each.
    Embeddings(PathBuf, PathBuf),
    /// The folder of `CelebA`'s annotations.
    Celeba(PathBuf),
}

impl Source {
    /// The rows that are labelled for a target.
    ///
    /// # Errors
    /// When a file is missing or wrong, or such vectors have no such target.
    pub fn read(&self, target: &Target) -> Result<Rows> {
        match (self, target) {
            (Self::Embeddings(embeddings, labels), _) => Ok(embeddings::read(embeddings, labels, target)?),
            (Self::Celeba(folder), Target::Attribute(name)) => Ok(celeba::read(folder, name)?),
            (Self::Celeba(_), other) => {
                anyhow::bail!("'{other}' is not an attribute of CelebA: the target is one, as in Smiling")
            }
        }
    }

    /// The files' names and contents.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn describe(&self) -> Result<SourceConfig> {
        let files = match self {
            Self::Embeddings(embeddings, labels) => vec![embeddings.clone(), labels.clone()],
            Self::Celeba(folder) => celeba::files(folder),
        };
        let mut hash = Sha256::new();
        for path in &files {
            let cannot = || format!("cannot read {}", path.display());
            io::copy(&mut File::open(path).with_context(cannot)?, &mut hash).with_context(cannot)?;
        }
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sha256 = format!("{:x}", hash.finalize());
        Ok(SourceConfig { files: files.iter().map(name).collect(), sha256 })
    }

    /// The configuration of a run with these files in it; one that names files already must name these.
    ///
    /// # Errors
    /// When a file cannot be read, or the configuration is of others.
    pub fn fix(&self, config: Config, from: &Path) -> Result<Config> {
        let own = self.describe()?;
        if let Some(before) = &config.source {
            let same = before.sha256 == own.sha256;
            ensure!(
                same,
                "{} is of other data: it learned from {}, and these files are not the same",
                from.display(),
                before.files.join(" and ")
            );
        }
        Ok(Config { source: Some(config.source.clone().unwrap_or(own)), ..config })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[test]
    fn files_are_known_by_their_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("a.npy", "one"), ("a.csv", "two"), ("b.npy", "one"), ("b.csv", "two"), ("c.csv", "three")]
        {
            fs::write(path(name), text).unwrap();
        }
        let of = |npy: &str, csv: &str| Source::Embeddings(path(npy), path(csv));
        let config = of("a.npy", "a.csv").fix(Config::default_recipe().unwrap(), Path::new("recipe")).unwrap();
        let source = config.source.clone().unwrap();
        assert_eq!(source.files, ["a.npy", "a.csv"]);
        // printf onetwo | sha256sum
        assert_eq!(source.sha256, "25b6746d5172ed6352966a013d93ac846e1110d5a25e8f183b5931f4688842a1");
        assert_eq!(of("b.npy", "b.csv").fix(config.clone(), Path::new("runs/x")).unwrap(), config, "names may change");
        let error = of("a.npy", "c.csv").fix(config, Path::new("runs/x")).unwrap_err().to_string();
        assert!(error.starts_with("runs/x is of other data: it learned from a.npy and a.csv"), "{error}");
    }
}
