//! The way of one picture: bytes → pixels → faces → crops → attributes. Each stage is a plain function from one type
//! to the next; the [`Pipeline`] runs them on the right threads and times them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use facewise_core::crop::crop;
use facewise_core::geometry::{Landmarks, Rect, Similarity, Template};
use facewise_core::picture::{self, Limits, PictureError, RgbImage};
use facewise_core::task::Task;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Inference;
use crate::cpu::{Cpu, Panicked};
use crate::engine::{Attributes, EngineError, Model};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Where the face of a picture is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Whereabouts {
    /// The picture is a crop of one face: its centred square, whose side is the shorter edge.
    CentredSquare,
    /// Eyes and mouth are known; landmarks that place no square (all in one point) fall back to the centred square.
    Keypoints(Landmarks),
}

/// A face in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Face {
    /// The square that was looked at, upright; of a tilted face, the upright square around it.
    pub area: Rect,
    /// How sure it is that there is a face, 0..1; 1 where nobody looked.
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
    /// Its faces.
    pub faces: Vec<Face>,
    /// Where the time went.
    pub timings: Timings,
}

/// Time spent in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From bytes to pixels.
    pub decode: Duration,
    /// From pixels to crops.
    pub align: Duration,
    /// Waiting for the network.
    pub queue: Duration,
    /// The run of the network.
    pub inference: Duration,
}

/// Why a picture got no answer.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The picture is unreadable or too large.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The network gave no answer.
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

/// A decoded picture's crop, and what is to be said of it.
struct Cut {
    width: u32,
    height: u32,
    area: Rect,
    landmarks: Option<Landmarks>,
    crop: RgbImage,
    decode: Duration,
    align: Duration,
}

/// What the picture's threads have to do with one picture.
struct Order {
    bytes: Bytes,
    limits: Limits,
    whereabouts: Whereabouts,
    template: Template,
    size: u32,
}

impl Order {
    fn pixels(&self) -> Result<u64, PictureError> {
        picture::probe(&self.bytes, self.limits).map(|info| u64::from(info.width) * u64::from(info.height))
    }

    fn cut(&self) -> Result<Cut, PictureError> {
        let started = Instant::now();
        let pixels = picture::decode(&self.bytes, self.limits)?;
        let decoded = Instant::now();
        let (width, height) = pixels.dimensions();
        let landmarks = match self.whereabouts {
            Whereabouts::CentredSquare => None,
            Whereabouts::Keypoints(landmarks) => Some(landmarks),
        };
        let square = self.template.place(landmarks.as_ref(), width, height);
        let crop = crop(&pixels, &square, self.size);
        let (decode, align) = (decoded - started, decoded.elapsed());
        Ok(Cut { width, height, area: area(&square), landmarks, crop, decode, align })
    }
}

/// Either the crop, or the pixels that must be waited for before the picture may be decoded.
enum FirstTry {
    Done(Result<Cut, PictureError>),
    Wait(Order, u32),
}

/// Pictures in, attributes out, under one bound on threads and one on decoded pixels.
pub struct Pipeline {
    cpu: Cpu,
    limits: Limits,
    /// One permit for each pixel that may be held decoded.
    pixels: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Pipeline {
    /// Starts the threads that decode.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(settings: &Inference, metrics: Arc<Metrics>) -> Result<Self, rayon::ThreadPoolBuildError> {
        Ok(Self {
            cpu: Cpu::new(settings.decode_thread_count())?,
            limits: Limits { max_pixels: u64::from(settings.max_megapixels) * 1_000_000 },
            pixels: Arc::new(Semaphore::new(settings.max_megapixels_held as usize * 1_000_000)),
            metrics,
        })
    }

    /// The threads for work on pictures.
    pub const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Analyses the face of a picture; of what the network says, `tasks` are counted as answered.
    ///
    /// Dropping the future takes the picture out of whatever line it waits in.
    ///
    /// # Errors
    /// When the picture is unreadable or too large, too many faces wait, or the network fails.
    pub async fn analyse(
        &self,
        bytes: Bytes,
        whereabouts: Whereabouts,
        model: &Model,
        tasks: &Tasks,
    ) -> Result<Analysis, PipelineError> {
        let template = model.manifest().input.template;
        let order = Order { bytes, limits: self.limits, whereabouts, template, size: model.input_size() };
        let cut = self.cut(order).await?;
        self.metrics.images.inc();

        let inference = model.infer(cut.crop).await?;
        let timings =
            Timings { decode: cut.decode, align: cut.align, queue: inference.queue, inference: inference.inference };
        let mut attributes = inference.attributes;
        attributes.keep(tasks);
        let face = Face { area: cut.area, confidence: 1.0, landmarks: cut.landmarks, attributes };
        self.count(&face, timings);
        Ok(Analysis { width: cut.width, height: cut.height, faces: vec![face], timings })
    }

    /// Decodes and crops in one go where enough pixels are free, which is nearly always; else waits for them without
    /// holding a thread.
    async fn cut(&self, order: Order) -> Result<Cut, PipelineError> {
        let pixels = Arc::clone(&self.pixels);
        let first = self.cpu.run(move || match order.pixels() {
            Err(error) => FirstTry::Done(Err(error)),
            Ok(needed) => {
                // The limit on one picture is below the bound on all, which fits.
                let needed = u32::try_from(needed).unwrap_or(u32::MAX);
                match Arc::clone(&pixels).try_acquire_many_owned(needed) {
                    Ok(permit) => FirstTry::Done(cut_under(permit, &order)),
                    Err(_) => FirstTry::Wait(order, needed),
                }
            }
        });
        match first.await? {
            FirstTry::Done(cut) => Ok(cut?),
            FirstTry::Wait(order, needed) => {
                let permit =
                    Arc::clone(&self.pixels).acquire_many_owned(needed).await.map_err(|_| EngineError::Stopped)?;
                Ok(self.cpu.run(move || cut_under(permit, &order)).await??)
            }
        }
    }

    fn count(&self, face: &Face, timings: Timings) {
        let Metrics { faces, stage_duration, predictions, predicted_age, .. } = self.metrics.as_ref();
        faces.inc();
        for (stage, time) in [
            ("decode", timings.decode),
            ("align", timings.align),
            ("queue", timings.queue),
            ("inference", timings.inference),
        ] {
            stage_duration.with_label_values(&[stage]).observe(time.as_secs_f64());
        }
        if let Some((posterior, point)) = &face.attributes.age {
            predicted_age.observe(f64::from(posterior.years(*point)));
            predictions.with_label_values(&[Task::Age.name(), posterior.group(*point).name()]).inc();
        }
        for answer in &face.attributes.labels {
            predictions.with_label_values(&[answer.task().name(), answer.label()]).inc();
        }
    }
}

/// Decodes and crops; the permit is held as long as the pixels are.
fn cut_under(permit: OwnedSemaphorePermit, order: &Order) -> Result<Cut, PictureError> {
    let cut = order.cut();
    drop(permit);
    cut
}

#[cfg(test)]
mod tests {
    use facewise_core::geometry::Point;

    use super::*;

    fn face(eye_y: f32, tilt: f32) -> Landmarks {
        Landmarks {
            right_eye: Point::new(30.0, eye_y),
            left_eye: Point::new(70.0, eye_y + tilt),
            nose: Point::new(50.0, 60.0),
            mouth: Point::new(50.0, 77.0),
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
}
