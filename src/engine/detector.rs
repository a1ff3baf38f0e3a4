//! Networks that find faces: a whole picture in, boxes and keypoints out.

use facewise_core::detection::{Decoder, Detection, Output, Selection, detect};
use facewise_core::manifest::{Colour, Manifest};
use image::RgbImage;

use super::backend::{Signature, TensorSpec};
use super::model::{
    EngineError, HandedIn, MismatchError, Model, Network, Options, StartError, Tensor, find, mismatch, names,
    only_input,
};
use super::queue::Urgency;
use super::worker::Answer;
use crate::cpu::Desk;
use crate::telemetry::Metrics;

/// A network that finds faces.
///
/// It looks at the square around a picture, as
/// [`Similarity::around`](facewise_core::geometry::Similarity::around) places it.
pub struct Detector {
    model: Model,
    decoder: Decoder,
    colour: Colour,
}

/// What a detector answered about one picture, in the order of [`Decoder::outputs`].
pub struct Tensors(Vec<Vec<f32>>);

impl From<Vec<Answer>> for Tensors {
    fn from(answers: Vec<Answer>) -> Self {
        Self(answers.into_iter().flat_map(|answer| answer.rows).collect())
    }
}

impl Detector {
    /// Puts a network to work on squares of `size` pixels a side, of the manifest's size without it.
    ///
    /// A network that takes one picture at a time, as the files of `YuNet` and SCRFD do, gets one at a time.
    ///
    /// # Errors
    /// When network and manifest contradict each other, the network reads another size only, a first run fails, or no
    /// thread can be started.
    pub fn start(network: Network, size: Option<u32>, options: Options, metrics: &Metrics) -> Result<Self, StartError> {
        let manifest = &network.manifest;
        let Some(decoder) = manifest.decoder else { return Err(MismatchError::Kind(manifest.kind).into()) };
        let size = size.unwrap_or(manifest.input.size);
        let colour = manifest.input.colour;
        let mut plan = Plan { wanted: Vec::new(), one_by_one: false };
        for backend in &network.backends {
            plan = check(manifest, decoder, size, backend.signature())?;
        }
        let max_batch = if plan.one_by_one { 1 } else { options.max_batch };
        let model = Model::start(network, size, plan.wanted, Options { max_batch, ..options }, metrics)?;
        Ok(Self { model, decoder, colour })
    }

    /// The network at work.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// Shows the network a square of [`Model::input_size`] pixels a side.
    ///
    /// # Errors
    /// When too many wait, the model is being stopped, or the run fails.
    pub async fn look(&self, square: RgbImage) -> Result<Tensors, EngineError> {
        Ok(self.model.run(vec![self.shown(square)]).await?.into())
    }

    /// Shows it a square as a part of the work at a desk, whose thread runs the network when no picture waits. The answer is to be
    /// [collected](Self::collect).
    ///
    /// # Errors
    /// When too many wait, or the model is being stopped.
    pub fn hand_in(&self, square: RgbImage, urgency: Urgency, desk: &Desk) -> Result<HandedIn, EngineError> {
        self.model.hand_in(vec![self.shown(square)], urgency, desk)
    }

    /// What the network says about what was [handed in](Self::hand_in).
    ///
    /// # Errors
    /// When the model is being stopped, or the run fails.
    pub async fn collect(&self, handed_in: HandedIn) -> Result<Tensors, EngineError> {
        Ok(handed_in.answers().await?.into())
    }

    /// In the order of colours that it reads.
    fn shown(&self, mut square: RgbImage) -> RgbImage {
        if self.colour == Colour::Bgr {
            for pixel in square.pixels_mut() {
                pixel.0.reverse();
            }
        }
        square
    }

    /// Reads the faces from what the network answered, most confident first, in shares of the square's side. It takes a
    /// fraction of a millisecond, or a few where there are many candidates.
    ///
    /// # Errors
    /// When the tensors are not those of the decoder.
    pub fn read(&self, Tensors(rows): &Tensors, selection: &Selection) -> Result<Vec<Detection>, EngineError> {
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        Ok(detect(self.decoder, self.model.input_size(), &rows, selection)?)
    }
}

/// What a detector is to be asked for.
struct Plan {
    wanted: Vec<Tensor>,
    /// Whether it takes one picture at a time.
    one_by_one: bool,
}

fn check(manifest: &Manifest, decoder: Decoder, size: u32, signature: &Signature) -> Result<Plan, MismatchError> {
    let input = only_input(&manifest.input.name, signature)?;
    let [batch, channels, height, width] = match input.shape.as_slice() {
        [batch, channels, height, width] if input.is_float32 => [*batch, *channels, *height, *width],
        _ => return Err(mismatch(input, &[None, Some(3), None, None])),
    };
    if channels.is_some_and(|channels| channels != 3) || batch.is_some_and(|batch| batch != 1) {
        return Err(mismatch(input, &[None, Some(3), None, None]));
    }
    if [height, width].iter().any(|side| side.is_some_and(|side| side != size as usize)) {
        let side = |side: Option<usize>| side.map_or_else(|| "any".to_owned(), |side| side.to_string());
        return Err(MismatchError::Size { width: side(width), height: side(height), asked: size });
    }

    let expected = decoder.outputs(size);
    // Dimensions that another size does not change.
    let elsewhere = decoder.outputs(2 * size);
    let specs = outputs(manifest, decoder, &expected, signature)?;
    let mut plan = Plan { wanted: Vec::with_capacity(specs.len()), one_by_one: batch == Some(1) };
    for ((spec, output), other) in specs.into_iter().zip(&expected).zip(&elsewhere) {
        let fixed = |(here, there): (&usize, &usize)| (here == there).then_some(*here);
        let shape: Vec<Option<usize>> = output.shape.iter().zip(&other.shape).map(fixed).collect();
        // SCRFD's tensors have no batch.
        let batched = spec.shape.len() == shape.len() + 1;
        let inner = &spec.shape[usize::from(batched).min(spec.shape.len())..];
        // Exporters write down the sizes of the example that they traced; the first runs show the real ones.
        let fits = inner.len() == shape.len()
            && inner.iter().zip(&shape).all(|(found, wanted)| found.is_none() || wanted.is_none() || found == wanted);
        if !spec.is_float32 || !fits {
            let expected: Vec<_> = std::iter::once(None).chain(output.shape.iter().copied().map(Some)).collect();
            return Err(mismatch(spec, &expected));
        }
        plan.one_by_one |= !batched || spec.shape[0] == Some(1);
        plan.wanted.push(Tensor { name: spec.name.clone(), shape: output.shape.clone(), labels: &[] });
    }
    Ok(plan)
}

/// The outputs that the decoder reads, in its order: by the manifest's names, else by the decoder's. SCRFD's files have
/// numbers for names, in the order of the decoder.
fn outputs<'s>(
    manifest: &Manifest,
    decoder: Decoder,
    expected: &[Output],
    signature: &'s Signature,
) -> Result<Vec<&'s TensorSpec>, MismatchError> {
    let by_name = |name: &String| find("output", name, &signature.outputs);
    if !manifest.outputs.is_empty() {
        return manifest.outputs.iter().map(by_name).collect();
    }
    if decoder != Decoder::Scrfd {
        return expected.iter().map(|output| by_name(&output.name)).collect();
    }
    if signature.outputs.len() != expected.len() {
        return Err(MismatchError::Outputs { expected: expected.len(), found: names(&signature.outputs) });
    }
    Ok(signature.outputs.iter().collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use image::Rgb;

    use super::super::backend::{Backend, BackendError};
    use super::*;

    const SIZE: usize = 64;

    /// Finds one face, which fills the picture, wherever the first number of a picture is above 0.5.
    struct Toy {
        decoder: Decoder,
        signature: Signature,
        runs: Arc<Mutex<Vec<Run>>>,
    }

    #[derive(Clone, Copy, Debug)]
    struct Run {
        pictures: usize,
        /// The three planes' first numbers of the first picture.
        colours: [f32; 3],
    }

    fn manifest(decoder: &str) -> Manifest {
        let json = r#"{"schema": 1, "name": "toy", "version": "1", "kind": "detector",
            "input": {"name": "pixels", "size": 64, "colour": "rgb", "mean": [0, 0, 0], "sd": [1, 1, 1]}, "decoder": "?"}"#;
        Manifest::from_json(&json.replace('?', decoder)).unwrap()
    }

    fn tensor(name: &str, shape: &[Option<usize>]) -> TensorSpec {
        TensorSpec { name: name.into(), is_float32: true, shape: shape.to_vec() }
    }

    /// A network as it comes out of training here: everything but the channels is open.
    fn facewise() -> Toy {
        toy(Decoder::Facewise, &[None, Some(3), None, None], |output| {
            tensor(&output.name, &[None, Some(13), None, None])
        })
    }

    fn toy(decoder: Decoder, input: &[Option<usize>], output: impl Fn(&Output) -> TensorSpec) -> Toy {
        let outputs = decoder.outputs(SIZE as u32).iter().map(output).collect();
        let signature = Signature { inputs: vec![tensor("pixels", input)], outputs, manifest: None };
        Toy { decoder, signature, runs: Arc::default() }
    }

    /// `YuNet`'s file: one picture of one size at a time.
    fn yunet() -> Toy {
        toy(Decoder::Yunet, &[Some(1), Some(3), Some(SIZE), Some(SIZE)], |Output { name, shape }| {
            tensor(name, &[Some(1), Some(shape[0]), Some(shape[1])])
        })
    }

    /// SCRFD's file: names are numbers, tensors have no batch, and their sizes are those of an example of 640 pixels.
    fn scrfd() -> Toy {
        let mut name = 440;
        let mut toy = toy(Decoder::Scrfd, &[Some(1), Some(3), None, None], |Output { shape, .. }| {
            tensor("", &[Some(shape[0] * 100), Some(shape[1])])
        });
        for output in &mut toy.signature.outputs {
            name += 3;
            output.name = name.to_string();
        }
        toy
    }

    impl Backend for Toy {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&mut self, input: &[f32], shape: &[usize], names: &[String]) -> Result<Vec<Vec<f32>>, BackendError> {
            let &[count, _, height, width] = shape else { panic!("pictures: {shape:?}") };
            let pictures: Vec<&[f32]> = input.chunks(3 * height * width).collect();
            assert_eq!(pictures.len(), count);
            let colours = [0, 1, 2].map(|plane| pictures[0][plane * height * width]);
            self.runs.lock().unwrap().push(Run { pictures: count, colours });
            let mut tensors = Vec::new();
            for (index, Output { shape, .. }) in self.decoder.outputs(width as u32).iter().enumerate() {
                let length = shape.iter().product();
                for picture in &pictures {
                    let mut tensor = vec![0.0; length];
                    match (self.decoder, index) {
                        (Decoder::Facewise, 0..2) => tensor.fill(-9.0),
                        (Decoder::Facewise, _) => {
                            let cells = width / 32 * height / 32;
                            tensor[..cells].fill(-9.0);
                            tensor[0] = 9.0 * (picture[0] - 0.5);
                        }
                        // Score, and object where there is one, of the first cell of the last level.
                        (Decoder::Yunet, 2 | 5) | (Decoder::Scrfd, 2) => tensor[0] = picture[0],
                        (Decoder::Scrfd, 5) => tensor[..4].fill(1.0),
                        _ => {}
                    }
                    tensors.push((index, tensor));
                }
            }
            let known: Vec<&String> = self.signature.outputs.iter().map(|spec| &spec.name).collect();
            let place = |name: &String| known.iter().position(|other| *other == name).unwrap();
            let all = |wanted: usize| {
                tensors.iter().filter(|(index, _)| *index == wanted).flat_map(|(_, tensor)| tensor.clone()).collect()
            };
            Ok(names.iter().map(|name| all(place(name))).collect())
        }

        fn renew(&self) -> Result<Box<dyn Backend>, BackendError> {
            Err(BackendError("there is no other".into()))
        }
    }

    fn started(toy: Toy, manifest: Manifest, size: Option<u32>) -> Result<Detector, StartError> {
        let network = Network { manifest, sha256: "cd34".into(), backends: vec![Box::new(toy)] };
        Detector::start(network, size, Options { max_batch: 4, max_queue: 8, ..Options::default() }, &Metrics::new())
    }

    fn square(detector: &Detector, colour: [u8; 3]) -> RgbImage {
        let side = detector.model().input_size();
        RgbImage::from_pixel(side, side, Rgb(colour))
    }

    async fn faces(detector: &Detector, colour: [u8; 3]) -> Vec<Detection> {
        let tensors = detector.look(square(detector, colour)).await.unwrap();
        detector.read(&tensors, &Selection::default()).unwrap()
    }

    #[tokio::test]
    async fn pictures_share_runs_and_get_their_own_faces() {
        let toy = facewise();
        let runs = Arc::clone(&toy.runs);
        let detector = started(toy, manifest("facewise"), None).unwrap();
        let mut asks = join_all((0..8).map(|index| faces(&detector, [255 * (index % 2), 0, 0])));
        {
            // The first run cannot end before all pictures wait.
            let _held = runs.lock().unwrap();
            assert!((&mut asks).now_or_never().is_none());
        }
        let found = asks.await;
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1, 0, 1]);
        let runs: Vec<usize> = runs.lock().unwrap().iter().skip(2).map(|run| run.pictures).collect();
        assert_eq!(runs.iter().sum::<usize>(), 8);
        assert!(runs.contains(&4), "{runs:?}");
    }

    #[tokio::test]
    async fn files_that_take_one_picture_at_a_time_get_one_at_a_time() {
        for (toy, decoder) in [(yunet(), "yunet"), (scrfd(), "scrfd")] {
            let runs = Arc::clone(&toy.runs);
            let detector = started(toy, manifest(decoder), None).unwrap();
            let asks = [[255, 0, 0], [0, 0, 0], [255, 0, 0]].map(|colour| faces(&detector, colour));
            let found = join_all(asks).await;
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0, 1], "{decoder}");
            assert!(runs.lock().unwrap().iter().all(|run| run.pictures == 1), "{decoder}");
        }
    }

    #[tokio::test]
    async fn another_size_is_taken_where_the_network_leaves_it_open() {
        for (toy, decoder) in [(facewise(), "facewise"), (scrfd(), "scrfd")] {
            let detector = started(toy, manifest(decoder), Some(128)).unwrap();
            assert_eq!(detector.model().input_size(), 128);
            assert_eq!(faces(&detector, [255, 0, 0]).await.len(), 1);
        }
        let error = started(yunet(), manifest("yunet"), Some(128)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("64 × 64 pixels and no others, but 128 × 128"), "{error}");
    }

    #[tokio::test]
    async fn colours_come_in_the_order_of_the_manifest() {
        for (colour, expected) in [(Colour::Rgb, [1.0, 0.2, 0.0]), (Colour::Bgr, [0.0, 0.2, 1.0])] {
            let toy = facewise();
            let runs = Arc::clone(&toy.runs);
            let mut manifest = manifest("facewise");
            manifest.input.colour = colour;
            let detector = started(toy, manifest, None).unwrap();
            faces(&detector, [255, 51, 0]).await;
            let seen = runs.lock().unwrap().last().unwrap().colours;
            assert!(seen.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{seen:?}");
        }
    }

    #[test]
    fn outputs_go_by_the_manifests_names_before_all() {
        let mut toy = facewise();
        let mut manifest = manifest("facewise");
        for output in &mut toy.signature.outputs {
            output.name += "_renamed";
            manifest.outputs.push(output.name.clone());
        }
        assert!(started(toy, manifest, None).is_ok());
    }

    #[test]
    fn a_network_that_contradicts_its_manifest_is_refused() {
        type Change = fn(&mut Signature);
        let cases: [(Toy, &str, Change, &str); 7] = [
            (
                facewise(),
                "facewise",
                |s| s.inputs[0].name = "image".into(),
                "the input 'pixels', but the network's are 'image'",
            ),
            (
                facewise(),
                "facewise",
                |s| s.inputs[0].shape[0] = Some(2),
                "[batch, 3, any, any], but the network's is float32 [2, 3",
            ),
            (facewise(), "facewise", |s| s.inputs[0].shape[1] = Some(1), "[batch, 3, any, any]"),
            (facewise(), "facewise", |s| s.outputs[0].is_float32 = false, "another type"),
            (
                facewise(),
                "facewise",
                |s| s.outputs[1].shape[1] = Some(15),
                "'stride_16' to be float32 [batch, 13, 4, 4]",
            ),
            (yunet(), "yunet", |s| s.outputs[3].name = "object".into(), "the output 'obj_8'"),
            (scrfd(), "scrfd", |s| s.outputs.truncate(6), "the decoder reads 9 outputs, but the network's are '443'"),
        ];
        for (mut toy, decoder, change, message) in cases {
            change(&mut toy.signature);
            let error = started(toy, manifest(decoder), None).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
