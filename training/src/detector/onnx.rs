//! A detector's ONNX file, run as it is served but for the queue: one picture at a time on one thread.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use facewise_core::crop;
use facewise_core::detection::{Decoder, Detection, Selection, detect};
use facewise_core::manifest::{Colour, MANIFEST_FILE, MODEL_FILE, Manifest};
use facewise_core::picture::RgbImage;
use ort::session::Session;
use ort::value::Tensor;

use crate::onnx::runtime;

/// A detector of the model repository.
#[derive(Debug)]
pub struct Engine {
    session: Session,
    manifest: Manifest,
    decoder: Decoder,
}

impl Engine {
    /// Opens `model.onnx` with the `manifest.json` beside it.
    ///
    /// # Errors
    /// When a file is missing or broken, or is not of a detector.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest = Manifest::from_json(&text).with_context(|| format!("in {}", path.display()))?;
        let decoder = manifest.decoder.with_context(|| format!("{} is not of a detector", path.display()))?;
        Ok(Self { session: runtime::session(&folder.join(MODEL_FILE))?, manifest, decoder })
    }

    /// What the model says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The faces in a square picture, in shares of its side.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the picture's size, or the model answers something else than its manifest says.
    pub fn detect(&mut self, picture: &RgbImage, selection: &Selection) -> Result<Vec<Detection>> {
        let size = picture.width();
        let input = &self.manifest.input;
        let mut pixels = vec![0.0; picture.as_raw().len()];
        match input.colour {
            Colour::Rgb => crop::normalise(picture, input.mean, input.sd, &mut pixels),
            Colour::Bgr => {
                let mut turned = picture.clone();
                turned.pixels_mut().for_each(|pixel| pixel.0.reverse());
                crop::normalise(&turned, input.mean, input.sd, &mut pixels);
            }
        }
        let side = i64::from(size);
        let tensor = Tensor::from_array((vec![1, 3, side, side], pixels))?;
        let answers = self.session.run(ort::inputs![input.name.as_str() => tensor])?;
        let own: Vec<String> = self.decoder.outputs(size).into_iter().map(|output| output.name).collect();
        let names = if self.manifest.outputs.is_empty() { &own } else { &self.manifest.outputs };
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            let answer = answers.get(name).with_context(|| format!("the model has no output {name}"))?;
            tensors.push(answer.try_extract_tensor::<f32>()?.1);
        }
        Ok(detect(self.decoder, size, &tensors, selection)?)
    }
}
