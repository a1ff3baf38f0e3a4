//! The way of one picture: bytes → pixels → faces → crops → attributes. Each stage is a plain function from one type
//! to the next; the [`Pipeline`] runs them on the right threads and times them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use facewise_core::crop::crop;
use facewise_core::detection::{Detection, Selection, best};
use facewise_core::geometry::{Landmarks, Rect, Similarity, Template};
use facewise_core::picture::{self, Info, Limits, Opened, PictureError, RgbImage};
use facewise_core::task::Task;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{Instrument as _, debug_span, field};

use crate::compute::Compute;
use crate::config;
use crate::cpu::{Cpu, Desk, Panicked};
use crate::engine::{AttributeModel, Attributes, Detector, EngineError, Urgency};
use crate::line::PHOTOGRAPH;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Where the faces of a picture are.
#[derive(Clone)]
pub enum Whereabouts {
    /// The picture is a crop of one face: its centred square, whose side is the shorter edge.
    CentredSquare,
    /// Eyes and mouth are known, in pixels of the picture as it is stored; landmarks that place no square (all in one point)
    /// fall back to the centred square.
    Keypoints(Landmarks),
    /// Wherever the detector finds some.
    Everywhere(Arc<Detector>, Selection),
    /// The picture is a crop of one face: the best one that the detector finds, else the centred square.
    Best(Arc<Detector>, Selection),
}

impl Whereabouts {
    /// Places in the [line](crate::line) that a picture takes.
    pub const fn places(&self) -> u32 {
        match self {
            Self::CentredSquare | Self::Keypoints(_) => 1,
            Self::Everywhere(..) | Self::Best(..) => PHOTOGRAPH,
        }
    }
}

/// A face in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Face {
    /// The detector's box; where it found none or nobody looked, the square that was looked at, upright, and of a tilted
    /// face the upright square around it.
    pub area: Rect,
    /// How sure it is that there is a face, 0..1: 1 where nobody looked, 0 where the detector looked and found none.
    pub confidence: f32,
    /// Eyes, nose and mouth, where they are known.
    pub landmarks: Option<Landmarks>,
    /// What the network says.
    pub attributes: Attributes,
}

/// What was found out about a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    /// Width of the picture as displayed, in pixels.
    pub width: u32,
    /// Height of the picture as displayed, in pixels.
    pub height: u32,
    /// Its faces, the most confident first.
    pub faces: Vec<Face>,
    /// Where the time went.
    pub timings: Timings,
}

/// Time spent in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From bytes to pixels.
    pub decode: Duration,
    /// From pixels to faces; `None` where nobody looked for them.
    pub detect: Option<Duration>,
    /// From faces to crops.
    pub align: Duration,
    /// Waiting for the network, of the face that was answered last.
    pub queue: Duration,
    /// The run of the network, of the face that was answered last.
    pub inference: Duration,
}

/// Why a picture got no answer.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The picture is unreadable or too large.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A network gave no answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A stage panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// The upright rectangle around a transform's square.
fn area(unit_to_picture: &Similarity) -> Rect {
    let Similarity { a, b, tx, ty } = *unit_to_picture;
    // The corners are (0, 0), (a, b), (−b, a) and (a − b, a + b), shifted by (tx, ty).
    let (xs, ys) = ([0.0, a, -b, a - b], [0.0, b, a, a + b]);
    let low = |values: [f32; 4]| values.into_iter().fold(f32::INFINITY, f32::min);
    let high = |values: [f32; 4]| values.into_iter().fold(f32::NEG_INFINITY, f32::max);
    Rect { x: tx + low(xs), y: ty + low(ys), width: high(xs) - low(xs), height: high(ys) - low(ys) }
}

/// A face whose place in the picture is known.
struct Place {
    area: Rect,
    confidence: f32,
    landmarks: Option<Landmarks>,
    /// From the unit square to what the network is shown.
    square: Similarity,
}

impl Place {
    /// Without a detector: by keypoints, else the centred square.
    fn given(landmarks: Option<Landmarks>, template: &Template, (width, height): (u32, u32)) -> Self {
        let square = template.place(landmarks.as_ref(), width, height);
        Self { area: area(&square), confidence: 1.0, landmarks, square }
    }

    /// As a detector says. Keypoints that place no square leave the one around the box.
    fn found(face: &Detection, template: &Template) -> Self {
        let Detection { area, confidence, landmarks } = *face;
        let square = template.locate(&landmarks).unwrap_or_else(|| {
            let side = area.width.max(area.height);
            let (x, y) = (area.x + (area.width - side) / 2.0, area.y + (area.height - side) / 2.0);
            Similarity::onto_square(x, y, side)
        });
        Self { area, confidence, landmarks: Some(landmarks), square }
    }

    /// The centred square, where a detector found no face.
    fn missed(template: &Template, size: (u32, u32)) -> Self {
        Self { confidence: 0.0, ..Self::given(None, template, size) }
    }
}

/// What a network wants to be shown of a face.
#[derive(Clone, Copy)]
struct Recipe {
    template: Template,
    /// Side of a crop in pixels.
    size: u32,
}

/// A picture whose longer side would still have so many times the pixels that a detector looks at is decoded at half its size or less. Most
/// of a large photograph's pixels are not needed, and they cost more than everything else together.
const ENOUGH_FOR_A_DETECTOR: u32 = 4;

/// By how much a picture may be decoded smaller for a detector that looks at `size` × `size` pixels.
fn reduction(info: &Info, size: u32) -> u32 {
    let longer = info.width.max(info.height);
    [8, 4, 2].into_iter().find(|reduction| longer / reduction >= ENOUGH_FOR_A_DETECTOR * size).unwrap_or(1)
}

/// A decoded picture. As long as it is held, its pixels count against the bound on all.
struct Decoded {
    pixels: RgbImage,
    /// How many pixels of the picture a pixel here stands for, along a side.
    reduction: u32,
    info: Info,
    decode: Duration,
    /// When it was decoded.
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Decoded {
    /// Decodes a picture, and a large one smaller where it is to be shown to a detector of this size.
    fn new(picture: Opened<'_>, detector: Option<u32>, permit: OwnedSemaphorePermit) -> Result<Self, PictureError> {
        let started = Instant::now();
        let info = *picture.info();
        let reduction = detector.map_or(1, |size| reduction(&info, size));
        let reduced = if reduction > 1 { picture.decode_reduced(reduction) } else { None };
        let (pixels, reduction) = match reduced {
            Some(pixels) => (pixels, reduction),
            None => (picture.decode()?, 1),
        };
        let since = Instant::now();
        Ok(Self { pixels, reduction, info, decode: since - started, since, _permit: permit })
    }

    /// Decodes the picture at its full size if a face among these has fewer pixels than a crop of it.
    fn enlarge(&mut self, bytes: &[u8], limits: Limits, places: &[Place], size: u32) -> Result<(), PictureError> {
        let reduction = self.reduction as f32;
        if self.reduction > 1 && places.iter().any(|place| place.square.scale() / reduction < size as f32) {
            let started = Instant::now();
            (self.pixels, self.reduction) = (picture::decode(bytes, limits)?, 1);
            self.decode += started.elapsed();
        }
        Ok(())
    }

    /// A square of the picture, `size` × `size` pixels of it.
    fn crop(&self, square: &Similarity, size: u32) -> RgbImage {
        crop(&self.pixels, &square.then(&Similarity::scaling(1.0 / self.reduction as f32)), size)
    }

    /// The square around the whole picture, for a detector.
    fn whole(&self, size: u32) -> RgbImage {
        self.crop(&Similarity::around(self.info.width, self.info.height), size)
    }

    /// Cuts the faces out, lets the pixels go, and hands the crops to whom they are for.
    fn cut<T>(
        self,
        places: Vec<Place>,
        size: u32,
        detect: Option<Duration>,
        hand_in: impl FnOnce(Vec<RgbImage>) -> T,
    ) -> Cut<T> {
        let started = Instant::now();
        let crops = places.iter().map(|place| self.crop(&place.square, size)).collect();
        let (Info { width, height, .. }, decode, align) = (self.info, self.decode, started.elapsed());
        drop(self);
        Cut { width, height, places, faces: hand_in(crops), decode, detect, align }
    }
}

/// A picture's faces, and what is to be said of them.
struct Cut<T> {
    width: u32,
    height: u32,
    places: Vec<Place>,
    /// What has become of their crops.
    faces: T,
    decode: Duration,
    detect: Option<Duration>,
    align: Duration,
}

/// Either a picture's result, or the pixels that must be waited for before it may be decoded.
enum FirstTry<T, F> {
    Done(Result<T, PictureError>),
    Wait(u32, F),
}

/// Pictures in, attributes out, under one bound on threads and one on decoded pixels.
pub struct Pipeline {
    cpu: Cpu,
    limits: Limits,
    /// One permit for each pixel that may be held decoded.
    pixels: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    urgency: Urgency,
}

impl Pipeline {
    /// Starts the threads that decode. They share the bound `compute` with the networks.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(
        settings: &config::Inference,
        metrics: Arc<Metrics>,
        compute: Arc<Compute>,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        let cpu = Cpu::new(settings.decode_thread_count(), compute)?;
        Ok(Self::with(settings, cpu, settings.max_megapixels_held, metrics, Urgency::Now))
    }

    /// The same way for pictures that nobody waits for: on threads of its own, which compute when nobody else wants to, through lanes
    /// of their own in front of the networks, and with a bound of its own on decoded pixels, that of one picture. They are not counted
    /// among the pictures, faces and answers of the server.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn in_background(
        settings: &config::Inference,
        compute: Arc<Compute>,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        let cpu = Cpu::in_background(settings.decode_thread_count(), compute)?;
        let metrics = Arc::new(Metrics::new());
        Ok(Self::with(settings, cpu, settings.max_megapixels, metrics, Urgency::Whenever))
    }

    fn with(
        settings: &config::Inference,
        cpu: Cpu,
        megapixels_held: u32,
        metrics: Arc<Metrics>,
        urgency: Urgency,
    ) -> Self {
        let limits = Limits { max_pixels: u64::from(settings.max_megapixels) * 1_000_000 };
        let pixels = Arc::new(Semaphore::new(megapixels_held as usize * 1_000_000));
        Self { cpu, limits, pixels, metrics, urgency }
    }

    /// What a picture may be.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// The threads for work on pictures.
    pub const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Analyses the faces of a picture; of what the network says, `tasks` are answered.
    ///
    /// Dropping the future takes the picture out of whatever line it waits in.
    ///
    /// # Errors
    /// When the picture is unreadable or too large, too many faces wait, or a network fails.
    pub async fn analyse(
        &self,
        bytes: Bytes,
        whereabouts: Whereabouts,
        model: &Arc<AttributeModel>,
        tasks: &Tasks,
    ) -> Result<Analysis, PipelineError> {
        let recipe = Recipe { template: *model.template(), size: model.model().input_size() };
        let hand_in = {
            let (model, urgency) = (Arc::clone(model), self.urgency);
            move |crops, desk: &Desk| model.hand_in(crops, urgency, desk)
        };
        let cut = self.cut(bytes, whereabouts, recipe, hand_in).await?;
        let Cut { width, height, places, faces, decode, detect, align } = cut;
        let span =
            debug_span!("attributes", faces = places.len(), queue_ms = field::Empty, inference_ms = field::Empty);
        let answers = model.collect(faces?).instrument(span.clone()).await?;

        let mut timings = Timings { decode, detect, align, ..Timings::default() };
        if let Some(last) = answers.iter().max_by_key(|answer| answer.queue + answer.inference) {
            (timings.queue, timings.inference) = (last.queue, last.inference);
            span.record("queue_ms", last.queue.as_secs_f64() * 1e3);
            span.record("inference_ms", last.inference.as_secs_f64() * 1e3);
        }
        let stages = &self.metrics.stage_duration;
        let mut faces = Vec::with_capacity(answers.len());
        for (place, answer) in places.into_iter().zip(answers) {
            stages.with_label_values(&["queue"]).observe(answer.queue.as_secs_f64());
            stages.with_label_values(&["inference"]).observe(answer.inference.as_secs_f64());
            let mut attributes = answer.attributes;
            attributes.keep(tasks);
            self.count(&attributes);
            let Place { area, confidence, landmarks, .. } = place;
            faces.push(Face { area, confidence, landmarks, attributes });
        }
        Ok(Analysis { width, height, faces, timings })
    }

    /// From bytes to crops, which the thread that cuts them out hands in.
    async fn cut<T, H>(
        &self,
        bytes: Bytes,
        whereabouts: Whereabouts,
        recipe: Recipe,
        hand_in: H,
    ) -> Result<Cut<T>, PipelineError>
    where
        T: Send + 'static,
        H: FnOnce(Vec<RgbImage>, &Desk) -> T + Send + 'static,
    {
        let Recipe { template, size } = recipe;
        let cut = match whereabouts {
            Whereabouts::CentredSquare => self.given(bytes, None, recipe, hand_in).await?,
            Whereabouts::Keypoints(stored) => self.given(bytes, Some(stored), recipe, hand_in).await?,
            Whereabouts::Everywhere(detector, selection) => {
                let places = move |faces: Vec<Detection>, _| {
                    faces.iter().map(|face| Place::found(face, &template)).collect::<Vec<_>>()
                };
                self.detected(bytes, (detector, selection), size, places, hand_in).await?
            }
            Whereabouts::Best(detector, selection) => {
                // The best of all, not only of the most confident ones.
                let selection = Selection { max_faces: selection.candidates, ..selection };
                let places = move |faces: Vec<Detection>, picture| match best(&faces) {
                    Some(face) => vec![Place::found(face, &template)],
                    None => vec![Place::missed(&template, picture)],
                };
                self.detected(bytes, (detector, selection), size, places, hand_in).await?
            }
        };
        let stages = &self.metrics.stage_duration;
        stages.with_label_values(&["decode"]).observe(cut.decode.as_secs_f64());
        stages.with_label_values(&["align"]).observe(cut.align.as_secs_f64());
        if let Some(detect) = cut.detect {
            stages.with_label_values(&["detect"]).observe(detect.as_secs_f64());
        }
        Ok(cut)
    }

    /// Cuts out the one face whose place is known.
    async fn given<T, H>(
        &self,
        bytes: Bytes,
        stored: Option<Landmarks>,
        recipe: Recipe,
        hand_in: H,
    ) -> Result<Cut<T>, PipelineError>
    where
        T: Send + 'static,
        H: FnOnce(Vec<RgbImage>, &Desk) -> T + Send + 'static,
    {
        let Recipe { template, size } = recipe;
        self.decoded(bytes, None, move |picture, desk| {
            let landmarks = stored.map(|landmarks| picture.info.displayed(&landmarks));
            let place = Place::given(landmarks, &template, (picture.info.width, picture.info.height));
            picture.cut(vec![place], size, None, |crops| hand_in(crops, desk))
        })
        .instrument(debug_span!("decode"))
        .await
    }

    /// Looks for faces, and cuts out those that `places` makes of them, `size` pixels a side. No thread is held while the picture
    /// waits for the detector; the pixels are, for the crops are cut from them.
    async fn detected<T, P, H>(
        &self,
        bytes: Bytes,
        (detector, selection): (Arc<Detector>, Selection),
        size: u32,
        places: P,
        hand_in: H,
    ) -> Result<Cut<T>, PipelineError>
    where
        T: Send + 'static,
        H: FnOnce(Vec<RgbImage>, &Desk) -> T + Send + 'static,
        P: FnOnce(Vec<Detection>, (u32, u32)) -> Vec<Place> + Send + 'static,
    {
        let (shown, limits) = (detector.model().input_size(), self.limits);
        let show = {
            let (detector, urgency) = (Arc::clone(&detector), self.urgency);
            move |picture: Decoded, desk: &Desk| (detector.hand_in(picture.whole(shown), urgency, desk), picture)
        };
        let (handed_in, mut picture) =
            self.decoded(bytes.clone(), Some(shown), show).instrument(debug_span!("decode")).await?;
        let tensors = detector.collect(handed_in?).instrument(debug_span!("detect")).await?;
        let work = move |desk: &Desk| {
            let Info { width, height, .. } = picture.info;
            let around = Similarity::around(width, height);
            let faces = detector.read(&tensors, &selection)?.iter().map(|face| face.map(&around)).collect();
            let detect = picture.since.elapsed();
            let places = places(faces, (width, height));
            picture.enlarge(&bytes, limits, &places, size)?;
            Ok(picture.cut(places, size, Some(detect), |crops| hand_in(crops, desk)))
        };
        self.cpu.go_on_at_desk(work).instrument(debug_span!("align")).await?
    }

    /// Decodes a picture, for a detector of this size if for one, and hands it on, in one go where enough pixels are free, which is
    /// nearly always; else waits for them without holding a thread.
    async fn decoded<T, F>(&self, bytes: Bytes, detector: Option<u32>, then: F) -> Result<T, PipelineError>
    where
        T: Send + 'static,
        F: FnOnce(Decoded, &Desk) -> T + Send + 'static,
    {
        let (pixels, limits) = (Arc::clone(&self.pixels), self.limits);
        let first = {
            let bytes = bytes.clone();
            self.cpu.run_at_desk(move |desk| match picture::open(&bytes, limits) {
                Err(error) => FirstTry::Done(Err(error)),
                Ok(picture) => {
                    // The limit on one picture is below the bound on all, which fits.
                    let needed = u64::from(picture.info().width) * u64::from(picture.info().height);
                    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
                    match pixels.try_acquire_many_owned(needed) {
                        Ok(permit) => {
                            let picture = Decoded::new(picture, detector, permit);
                            FirstTry::Done(picture.map(|picture| then(picture, desk)))
                        }
                        Err(_) => FirstTry::Wait(needed, then),
                    }
                }
            })
        };
        let result = match first.await? {
            FirstTry::Done(result) => result,
            FirstTry::Wait(needed, then) => {
                let permit =
                    Arc::clone(&self.pixels).acquire_many_owned(needed).await.map_err(|_| EngineError::Stopped)?;
                let work = move |desk: &Desk| {
                    let picture = Decoded::new(picture::open(&bytes, limits)?, detector, permit)?;
                    Ok(then(picture, desk))
                };
                self.cpu.run_at_desk(work).await?
            }
        };
        let value = result?;
        self.metrics.images.inc();
        Ok(value)
    }

    /// Counts what is answered about a face.
    pub fn count(&self, attributes: &Attributes) {
        let Metrics { faces, predictions, predicted_age, .. } = self.metrics.as_ref();
        faces.inc();
        if let Some((posterior, point)) = &attributes.age {
            predicted_age.observe(f64::from(posterior.years(*point)));
            predictions.with_label_values(&[Task::Age.name(), posterior.group(*point).name()]).inc();
        }
        if let Some(groups) = &attributes.age_group {
            predictions.with_label_values(&[Task::Age.name(), groups.top().name()]).inc();
        }
        for answer in &attributes.labels {
            predictions.with_label_values(&[answer.task().name(), answer.label()]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use facewise_core::geometry::Point;
    use facewise_core::manifest::Manifest;
    use futures_util::FutureExt;
    use image::{ImageFormat, Rgb};

    use super::*;
    use crate::config::Settings;
    use crate::engine::{Backend, BackendError, Network, Options, Signature, TensorSpec};

    fn face(eye_y: f32, tilt: f32) -> Landmarks {
        Landmarks {
            right_eye: Point::new(30.0, eye_y),
            left_eye: Point::new(70.0, eye_y + tilt),
            nose: Point::new(50.0, 60.0),
            mouth: Point::new(50.0, 77.0),
        }
    }

    #[test]
    fn a_large_picture_is_decoded_as_far_as_its_faces_need() {
        let pixels = RgbImage::from_fn(2560, 1280, |x, y| Rgb([(x / 10) as u8, (y / 5) as u8, 90]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        pixels.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let (bytes, limits) = (bytes.into_inner(), Limits::default());
        let open = || picture::open(&bytes, limits).unwrap();
        let info = *open().info();
        assert_eq!([320, 160, 80, 321].map(|size| reduction(&info, size)), [2, 4, 8, 1]);

        let place = |side| Place {
            square: Similarity::onto_square(1000.0, 300.0, side),
            ..Place::given(None, &Template::FACE, (2560, 1280))
        };
        let permit = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let crop = |picture: Decoded, side| {
            let Cut { width, height, faces, .. } = picture.cut(vec![place(side)], 64, None, |crops| crops);
            assert_eq!((width, height), (2560, 1280), "of the picture as displayed");
            faces
        };
        let decoded = |detector| Decoded::new(open(), detector, permit()).unwrap();
        for (side, reduction) in [(300.0, 2), (128.0, 2), (127.0, 1)] {
            let (mut reduced, whole) = (decoded(Some(320)), decoded(None));
            assert_eq!((reduced.pixels.dimensions(), whole.pixels.dimensions()), ((1280, 640), (2560, 1280)));
            reduced.enlarge(&bytes, limits, &[place(600.0), place(side)], 64).unwrap();
            assert_eq!((reduced.reduction, whole.reduction), (reduction, 1), "a face of {side} pixels");
            let (reduced, whole) = (crop(reduced, side), crop(whole, side));
            let pairs = reduced[0].iter().zip(whole[0].iter());
            assert!(pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap() <= 6, "a face of {side} pixels");
        }
    }

    #[test]
    fn the_area_of_an_upright_face_is_its_square() {
        let placed = Template::FACE.place(Some(&face(37.0, 0.0)), 200, 100);
        let area_of_face = area(&placed);
        assert!((area_of_face.width - 100.0).abs() < 1e-3 && area_of_face.x.abs() < 1e-3, "{area_of_face:?}");
        assert_eq!(area(&Template::FACE.place(None, 200, 100)), Rect::centred_square(200, 100));
    }

    #[test]
    fn the_area_of_a_tilted_face_holds_its_corners() {
        let placed = Template::FACE.place(Some(&face(37.0, 12.0)), 200, 100);
        let Rect { x, y, width, height } = area(&placed);
        for (u, v) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
            let corner = placed.apply(Point::new(u, v));
            assert!((x - 1e-3..=x + width + 1e-3).contains(&corner.x), "{corner:?}");
            assert!((y - 1e-3..=y + height + 1e-3).contains(&corner.y), "{corner:?}");
        }
        assert!((width - height).abs() < 1e-3, "the square around a tilted square");
    }

    /// Finds no faces, and waits for the test before each run but those of the warm-up.
    struct Held {
        signature: Signature,
        runs: Arc<AtomicUsize>,
        release: mpsc::Receiver<()>,
    }

    impl Backend for Held {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&mut self, _: &[f32], shape: &[usize], _: &[String]) -> Result<Vec<Vec<f32>>, BackendError> {
            if self.runs.fetch_add(1, Ordering::SeqCst) >= 2 {
                self.release.recv().unwrap();
            }
            Ok([8, 16, 32].map(|stride| vec![-9.0; 13 * shape[0] * (64 / stride) * (64 / stride)]).to_vec())
        }

        fn renew(&self) -> Result<Box<dyn Backend>, BackendError> {
            Err(BackendError("there is no other".into()))
        }
    }

    #[tokio::test]
    async fn a_picture_that_waits_for_the_detector_holds_its_pixels_and_no_thread() {
        let manifest = Manifest::from_json(
            r#"{"schema": 1, "name": "held", "version": "1", "kind": "detector", "decoder": "facewise",
                "input": {"name": "pixels", "size": 64, "colour": "rgb", "mean": [0, 0, 0], "sd": [1, 1, 1]}}"#,
        )
        .unwrap();
        let open = |name: &str, channels| TensorSpec {
            name: name.into(),
            is_float32: true,
            shape: vec![None, Some(channels), None, None],
        };
        let outputs = ["stride_8", "stride_16", "stride_32"].map(|name| open(name, 13)).to_vec();
        let signature = Signature { inputs: vec![open("pixels", 3)], outputs, manifest: None };
        let (runs, (finish, release)) = (Arc::<AtomicUsize>::default(), mpsc::channel());
        let backend = Held { signature, runs: Arc::clone(&runs), release };
        let metrics = Arc::new(Metrics::new());
        let network = Network { manifest, sha256: "ef56".into(), backends: vec![Box::new(backend)] };
        // Two pieces of work at a time: the run that is held is one of them.
        let compute = Arc::new(Compute::new(2));
        let options = Options { compute: Arc::clone(&compute), max_batch: 1, max_queue: 8, ..Options::default() };
        let detector = Arc::new(Detector::start(network, None, options, &metrics).unwrap());

        let flags = ["--decode-threads", "1", "--max-megapixels", "1", "--max-megapixels-held", "1"];
        let pipeline = Pipeline::new(&Settings::from_flags(flags).unwrap().inference, metrics, compute).unwrap();
        let mut bytes = std::io::Cursor::new(Vec::new());
        RgbImage::from_pixel(900, 600, Rgb([90; 3])).write_to(&mut bytes, ImageFormat::Bmp).unwrap();
        let bytes = Bytes::from(bytes.into_inner());
        let look = || {
            let whereabouts = Whereabouts::Everywhere(Arc::clone(&detector), Selection::default());
            let recipe = Recipe { template: Template::FACE, size: 64 };
            Box::pin(pipeline.cut(bytes.clone(), whereabouts, recipe, |crops, _| crops))
        };
        let (mut first, mut second) = (look(), look());
        while runs.load(Ordering::SeqCst) < 3 {
            assert!((&mut first).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        assert_eq!(pipeline.pixels.available_permits(), 1_000_000 - 900 * 600);
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(pipeline.cpu().run(|| 7).await, Ok(7), "the only thread is free");
        assert!((&mut second).now_or_never().is_none(), "there is no room for its pixels");

        drop(first);
        finish.send(()).unwrap();
        finish.send(()).unwrap();
        let cut = second.await.unwrap();
        assert!(cut.faces.is_empty() && cut.detect.is_some());
        assert_eq!(pipeline.pixels.available_permits(), 1_000_000, "nobody holds pixels any more");
    }
}
