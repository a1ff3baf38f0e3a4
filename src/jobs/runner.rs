//! The thread that evaluates, one set after the other.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use facewise_evaluation::{DatasetError, html};
use tokio::sync::Notify;

use super::store::End;
use super::{Current, Evaluation, Evaluations, JobsError, PAGE, PREDICTIONS, Progress, Status, now};
use crate::app::App;
use crate::evaluate::{EvaluateError, Evaluated, Means, evaluate, summary};
use crate::pipeline::{Pipeline, PipelineError};
use crate::repository::Served;

/// Time between two looks for what is kept no longer.
const SWEEP: Duration = Duration::from_hours(1);

/// Shortest time between two words about the progress.
const TELL: Duration = Duration::from_millis(100);

/// Starts the thread. It ends with the server.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn start(app: &Arc<App>, pipeline: Pipeline) -> io::Result<()> {
    let Ok(evaluations) = &app.evaluations else { return Ok(()) };
    let Some(woken) = evaluations.woken.lock().take() else { return Ok(()) };
    // A runtime of its own: it waits for the disk, and what ends with the server's must not end in the middle.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let app = Arc::downgrade(app);
    let work = move || run(&app, &pipeline, &woken, &runtime);
    std::thread::Builder::new().name("evaluations".into()).spawn(work).map(drop)
}

fn run(app: &Weak<App>, pipeline: &Pipeline, woken: &mpsc::Receiver<()>, runtime: &tokio::runtime::Runtime) {
    let mut swept = Instant::now();
    loop {
        {
            let Some(app) = app.upgrade() else { return };
            let Ok(evaluations) = &app.evaluations else { return };
            loop {
                if evaluations.is_stopping() {
                    return;
                }
                match evaluations.take() {
                    Ok(Some((evaluation, stop))) => {
                        let end = runtime.block_on(work(&app, evaluations, pipeline, &evaluation, &stop));
                        evaluations.conclude(&evaluation.id, end);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "the next evaluation cannot be begun");
                        break;
                    }
                }
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                if let Err(error) = evaluations.sweep() {
                    tracing::error!(%error, "evaluations that are kept no longer cannot be removed");
                }
            }
        }
        if woken.recv_timeout(SWEEP) == Err(mpsc::RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// How the work on an evaluation ended.
enum Ended {
    Succeeded(Box<Evaluated>),
    Failed(String),
    /// It cannot go on where it was.
    Interrupted(String),
    /// Somebody ended it, or the server stops.
    Stopped,
}

/// Scores the set of an evaluation.
async fn work(app: &App, evaluations: &Evaluations, pipeline: &Pipeline, job: &Evaluation, stop: &Notify) -> Ended {
    tokio::select! {
        biased;
        () = stop.notified() => Ended::Stopped,
        result = score(app, evaluations, pipeline, job) => match result {
            Ok(ended) => ended,
            Err(error) => Ended::Failed(told(&error)),
        },
    }
}

async fn score(
    app: &App,
    evaluations: &Evaluations,
    pipeline: &Pipeline,
    job: &Evaluation,
) -> Result<Ended, EvaluateError> {
    let Evaluation { id, order, .. } = job;
    let folder = evaluations.folder_of(id);
    // Of one moment: what is loaded meanwhile is for the next one.
    let models = app.repository.models();
    let Some(Served::Attributes(model)) = models.get(&order.model) else {
        return Ok(Ended::Interrupted(format!("the model '{}' is not served any more", order.model)));
    };
    let model_now = summary(model.model());
    match evaluations.store.model(id) {
        Ok(Some(begun)) if begun != model_now => {
            return Ok(Ended::Interrupted(format!(
                "it was begun with another file of the model '{}' than is served now: restart it, or serve that file again",
                order.model
            )));
        }
        Ok(_) => {}
        Err(error) => return Ok(Ended::Failed(failure(&error.into()))),
    }
    if let Err(error) = evaluations.store.begin(id, &model_now) {
        return Ok(Ended::Failed(failure(&error.into())));
    }
    let dataset = match evaluations.dataset(&folder, &order.dataset) {
        Ok(dataset) => Arc::new(dataset),
        Err(error) => return Ok(Ended::Failed(format!("its set cannot be read any more: {}", told(&error.into())))),
    };
    let plan = match order.plan(app.settings.inference.rows_in_progress()) {
        Ok(plan) => plan,
        Err(error) => return Ok(Ended::Failed(error.to_string())),
    };
    let written = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(folder.join(PREDICTIONS))?;
    let means = Means { pipeline, model, detector: models.detector() };
    let mut told: Option<Instant> = None;
    let evaluated = evaluate(&dataset, &plan, means, Some(written), |done, total| {
        let is_news = told.is_none_or(|told| told.elapsed() >= TELL);
        evaluations.progress(Progress { done, total }, is_news);
        if is_news {
            told = Some(Instant::now());
        }
    })
    .await?;
    Ok(Ended::Succeeded(Box::new(evaluated)))
}

/// What a client is told of why a set could not be scored: of the server's own inside, no more than that it failed.
fn told(error: &EvaluateError) -> String {
    let inside = match error {
        EvaluateError::Failed { path, source: PipelineError::Engine(_) } => {
            format!("'{path}' got no answer: the network failed")
        }
        EvaluateError::Failed { path, source: PipelineError::Panicked(_) } => {
            format!("'{path}' got no answer: the server failed")
        }
        EvaluateError::Dataset(DatasetError::Open { .. }) => "the server cannot open it".to_owned(),
        EvaluateError::Predictions(_) => "the predictions cannot be written".to_owned(),
        EvaluateError::Failed { source: PipelineError::Picture(_), .. }
        | EvaluateError::Dataset(_)
        | EvaluateError::NoRows { .. }
        | EvaluateError::NoDetector => return error.to_string(),
    };
    tracing::error!(%error, "an evaluation failed");
    inside
}

/// What a client is told about a fault of the server's own; its log says more.
fn failure(error: &JobsError) -> String {
    tracing::error!(%error, "an evaluation failed");
    if error.is_storage_full() {
        "the server's disk is full".into()
    } else {
        "the server failed; its log says more".into()
    }
}

impl Evaluations {
    /// The next evaluation, which is the current one from now on.
    fn take(&self) -> Result<Option<(Evaluation, Arc<Notify>)>, JobsError> {
        let (now, _) = now();
        let mut current = self.current.lock();
        let Some(evaluation) = self.store.take_next(&now)? else { return Ok(None) };
        let stop = Arc::new(Notify::new());
        // The server may have been told to stop before there was anything to tell.
        if self.is_stopping() {
            stop.notify_one();
        }
        let (id, progress) = (evaluation.id.clone(), evaluation.progress);
        *current = Some(Current { id, progress, stop: Arc::clone(&stop), is_cancelled: false });
        drop(current);
        self.changed();
        Ok(Some((evaluation, stop)))
    }

    fn progress(&self, progress: Progress, is_news: bool) {
        if let Some(current) = &mut *self.current.lock() {
            current.progress = progress;
        }
        if is_news {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Writes down how the current evaluation ended.
    fn conclude(&self, id: &str, ended: Ended) {
        let written = match ended {
            Ended::Succeeded(evaluated) => self.publish(id, &evaluated).or_else(|error| {
                let told = failure(&error);
                self.give_up(id, Status::Failed, told)
            }),
            Ended::Failed(error) => {
                tracing::warn!(id, error, "an evaluation failed");
                self.give_up(id, Status::Failed, error)
            }
            Ended::Interrupted(error) => {
                tracing::warn!(id, error, "an evaluation cannot go on");
                self.end(id, Status::Interrupted, Some(error), None)
            }
            Ended::Stopped => Ok(()),
        };
        if let Err(error) = written {
            tracing::error!(id, %error, "the end of an evaluation cannot be written down: it begins again with the next server");
        }
        // Whoever cancels or removes it from here on finds no work on it any more.
        let current = self.current.lock().take();
        if current.is_some_and(|current| current.is_cancelled) {
            self.remove_folder(id);
        }
        self.changed();
    }

    /// Keeps the report, and removes the set.
    fn publish(&self, id: &str, Evaluated { report, thumbnails }: &Evaluated) -> Result<(), JobsError> {
        let page = self.folder_of(id).join(PAGE);
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(page)?;
        io::Write::write_all(&mut file, html::render(report, thumbnails, None).as_bytes())?;
        let json = serde_json::to_string_pretty(report).map_err(io::Error::from)? + "\n";
        self.end(id, Status::Succeeded, None, Some(json))?;
        self.remove_set(id);
        Ok(())
    }

    /// Removes the files first: the disk may be full.
    fn give_up(&self, id: &str, status: Status, error: String) -> Result<(), JobsError> {
        match fs::remove_dir_all(self.folder_of(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.end(id, status, Some(error), None)
    }

    fn end(&self, id: &str, status: Status, error: Option<String>, report: Option<String>) -> Result<(), JobsError> {
        let (now, unix) = now();
        let done = self.current.lock().as_ref().map_or(0, |current| current.progress.done);
        self.store.finish(id, &End { status, now: &now, unix, done, error, report })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{BackendError, EngineError};

    #[test]
    fn clients_are_told_nothing_of_the_inside() {
        let failed = |source| EvaluateError::Failed { path: "a.jpg".into(), source };
        let network = EngineError::Backend(BackendError("/models/secret.onnx: node 7".into()));
        let path = "/var/lib/facewise".into();
        let open = EvaluateError::Dataset(DatasetError::Open { path, source: io::ErrorKind::NotFound.into() });
        for (error, expected) in [
            (failed(network.into()), "'a.jpg' got no answer: the network failed"),
            (failed(crate::cpu::Panicked.into()), "'a.jpg' got no answer: the server failed"),
            (open, "the server cannot open it"),
            (EvaluateError::NoDetector, "there is no detector"),
        ] {
            assert!(told(&error).starts_with(expected), "{}", told(&error));
        }
    }
}
