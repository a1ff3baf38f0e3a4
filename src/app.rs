//! What the parts of a running server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use crate::access::Access;
use crate::config::Settings;
use crate::engine::statistics::Statistics;
use crate::jobs::Evaluations;
use crate::line::Line;
use crate::pipeline::Pipeline;
use crate::repository::Repository;
use crate::telemetry::Metrics;

/// The server's state: made once at the start, shared by every request.
pub struct App {
    /// The configuration.
    pub settings: Settings,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The models.
    pub repository: Repository,
    /// The way of a picture.
    pub pipeline: Pipeline,
    /// Who may ask for what.
    pub access: Arc<Access>,
    /// One permit for each prediction that may be in the server.
    pub admission: Arc<Semaphore>,
    /// The line in which they wait for their turn.
    pub line: Line,
    /// The evaluations of labelled sets, or why there are none.
    pub evaluations: Result<Arc<Evaluations>, String>,
    /// What the model `face-pipeline` of the Open Inference Protocol has done.
    pub face_pipeline: Statistics,
    stopping: AtomicBool,
}

impl App {
    /// Puts the parts together.
    pub fn new(
        settings: Settings,
        metrics: Arc<Metrics>,
        repository: Repository,
        pipeline: Pipeline,
        evaluations: Result<Arc<Evaluations>, String>,
    ) -> Self {
        let access = Arc::new(Access::new(&settings.keys));
        let admission = Arc::new(Semaphore::new(settings.http.max_requests));
        let line = Line::new(settings.in_progress());
        let (face_pipeline, stopping) = (Statistics::default(), AtomicBool::new(false));
        Self { settings, metrics, repository, pipeline, access, admission, line, evaluations, face_pipeline, stopping }
    }

    /// Whether new requests are welcome: the models can answer, and the server is not being stopped.
    pub fn is_ready(&self) -> bool {
        !self.is_stopping() && self.repository.models().is_ready()
    }

    /// Tells whoever asks for readiness to send nothing more, and every client to close its connection.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Ok(evaluations) = &self.evaluations {
            evaluations.stop();
        }
    }

    /// Whether the server is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
