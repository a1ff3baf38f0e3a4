//! A running server: start, the loop that accepts connections, and a stop that loses nothing that was admitted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower::Layer as _;

use crate::api;
use crate::api::middleware::Peer;
use crate::app::App;
use crate::compute::Compute;
use crate::config::{ConfigError, Settings};
use crate::engine::{Runtime, RuntimeError};
use crate::jobs::{self, Evaluations, JobsError};
use crate::pipeline::Pipeline;
use crate::repository::{NO_DETECTOR, Repository, RepositoryError, Scope, Snapshot};
use crate::telemetry::Metrics;

#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
use tls::Tls;
#[cfg(feature = "tls")]
pub use tls::TlsError;

/// Nothing is spoken but plain HTTP.
#[cfg(not(feature = "tls"))]
#[derive(Clone)]
enum Tls {}

/// How long to wait when the system has no more file descriptors; connections end meanwhile.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long idle connections stay open when the server stops. A request that is on the way to it would be lost with its
/// connection.
const QUIET: Duration = Duration::from_millis(250);

/// Why the server cannot start. Each text is one sentence with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address is taken.
    #[error("{address} is taken by another program: stop that program, or choose another address with {setting}")]
    AddressTaken {
        /// The address.
        address: SocketAddr,
        /// The setting that it comes from.
        setting: &'static str,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address} ({source}): choose another address with {setting}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that it comes from.
        setting: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[cfg(feature = "tls")]
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no ONNX Runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// There is no model, or a broken one.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The system gives no more threads.
    #[error("the threads for pictures cannot be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The folder of evaluations that is asked for cannot be used.
    #[error(transparent)]
    Evaluations(#[from] JobsError),
    /// The system gives no thread for evaluations.
    #[error("evaluations cannot be started: {0}")]
    Runner(io::Error),
    /// The system gives no thread to look at the folder of models.
    #[error("the models folder cannot be watched: {0}")]
    Watch(io::Error),
    /// Loading the models panicked.
    #[error("loading the models failed: {0}")]
    Load(#[from] tokio::task::JoinError),
}

/// A server that accepts requests, until it is stopped.
pub struct Running {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    task: JoinHandle<bool>,
}

/// Starts a server: listens, loads and warms the models, and then begins to accept. Connections that come meanwhile wait.
///
/// # Errors
/// When the address is taken, ONNX Runtime or the models are missing or broken, or the settings contradict each other.
pub async fn serve(settings: Settings) -> Result<Running, StartError> {
    settings.validate()?;
    #[cfg(feature = "tls")]
    let tls = settings.http.tls()?;
    #[cfg(not(feature = "tls"))]
    let tls = None;
    let (listener, address) = listen(settings.http.listen, "--listen").await?;
    let (metrics, metrics_address) = match settings.http.metrics_listen {
        None => (None, None),
        Some(address) => {
            let (listener, address) = listen(address, "--metrics-listen").await?;
            (Some(listener), Some(address))
        }
    };
    // Of before the load, which lasts seconds: what comes into the folder meanwhile is new.
    let watched = settings.http.models_poll.map(|interval| (interval, Snapshot::of(&settings.inference.models)));
    let (app, background) = tokio::task::spawn_blocking(move || load(settings)).await??;
    let app = Arc::new(app);
    jobs::start(&app, background).map_err(StartError::Runner)?;
    if let Some((interval, seen)) = watched {
        watch_models(&app, interval, seen?)?;
    }
    let (stop, stopped) = watch::channel(false);
    let doors = Doors { main: listener, tls, metrics };
    let task = tokio::spawn(accept(doors, app, stopped));
    if let Some(address) = metrics_address {
        tracing::info!(%address, "metrics have an address of their own");
    }
    tracing::info!(%address, "listening");
    Ok(Running { address, metrics_address, stop, task })
}

async fn listen(address: SocketAddr, setting: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let listener = TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressTaken { address, setting },
        _ => StartError::Listen { address, setting, source },
    })?;
    let address = listener.local_addr().map_err(|source| StartError::Listen { address, setting, source })?;
    Ok((listener, address))
}

/// Looks at the folder of models from time to time, on a thread of its own: loading takes seconds. It ends with the server.
fn watch_models(app: &Arc<App>, interval: Duration, mut seen: Snapshot) -> Result<(), StartError> {
    let app = Arc::downgrade(app);
    let watch = move || {
        loop {
            std::thread::sleep(interval);
            let Some(app) = app.upgrade().filter(|app| !app.is_stopping()) else { return };
            app.repository.refresh(&mut seen);
        }
    };
    std::thread::Builder::new().name("models-poll".into()).spawn(watch).map(drop).map_err(StartError::Watch)
}

/// The server's state, and the way of pictures that nobody waits for.
fn load(settings: Settings) -> Result<(App, Pipeline), StartError> {
    let metrics = Arc::new(Metrics::new());
    let runtime = Runtime::load(settings.inference.onnxruntime.as_deref())?.on(&settings.inference.device)?;
    let compute = Arc::new(Compute::default());
    let repository = Repository::open(&runtime, &settings.inference, Scope::All, &metrics, &compute)?;
    if repository.models().detector().is_none() && settings.inference.detector.as_deref() != Some(NO_DETECTOR) {
        tracing::warn!("there is no detector (--detector): every picture is taken as the crop of one face");
    }
    let pipeline = Pipeline::new(&settings.inference, Arc::clone(&metrics), Arc::clone(&compute))?;
    let background = Pipeline::in_background(&settings.inference, compute)?;
    let evaluations = evaluations(&settings, &metrics)?;
    Ok((App::new(settings, metrics, repository, pipeline, evaluations), background))
}

/// The evaluations, or why there are none. A folder that was named must be usable; where none was named, predictions are worth
/// starting for.
fn evaluations(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Result<Arc<Evaluations>, String>, JobsError> {
    let settings = &settings.evaluations;
    let Some(folder) = settings.folder() else {
        return Ok(Err("evaluations are switched off here (--data-dir none)".into()));
    };
    match Evaluations::open(folder, settings, metrics) {
        Ok(evaluations) => Ok(Ok(Arc::new(evaluations))),
        Err(error) if settings.data_dir.is_some() => Err(error),
        Err(error) => {
            tracing::warn!(%error, "there are no evaluations");
            Ok(Err("there are no evaluations here: the server's log says why (--data-dir)".into()))
        }
    }
}

impl Running {
    /// The address that it listens on, with the port that the system chose where 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the metrics, where they have one of their own.
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Stops accepting, finishes what was admitted, and ends. Whether everything was finished in time.
    pub async fn stop(self) -> bool {
        // The receiver lives in the task; where it has ended, there is nothing left to stop.
        let _ = self.stop.send(true);
        self.task.await.unwrap_or(false)
    }
}

/// Where connections come in.
struct Doors {
    main: TcpListener,
    /// What the main one speaks HTTPS with.
    tls: Option<Tls>,
    metrics: Option<TcpListener>,
}

impl Doors {
    /// The next connection, and which door it came in by.
    async fn accept(&self) -> (Door, io::Result<(TcpStream, SocketAddr)>) {
        let metrics = async {
            match &self.metrics {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.main.accept() => (Door::Main, accepted),
            accepted = metrics => (Door::Metrics, accepted),
        }
    }
}

#[derive(Clone, Copy)]
enum Door {
    Main,
    Metrics,
}

/// Accepts connections until told to stop; whether all of them were finished in time then.
async fn accept(doors: Doors, app: Arc<App>, mut stopped: watch::Receiver<bool>) -> bool {
    let connections = Connections::new(&app, doors.tls.clone());
    loop {
        tokio::select! {
            biased;
            _ = stopped.changed() => break,
            (door, accepted) = doors.accept() => match accepted {
                Ok((stream, peer)) => connections.serve(door, stream, peer),
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
    app.stop();
    tracing::info!(connections = connections.graceful.count(), "stopping: finishing what was admitted");
    connections.serve_backlog(doors.main);
    let in_time = connections.finish(app.settings.http.shutdown_timeout.into()).await;
    if in_time {
        tracing::info!("stopped: everything admitted was answered");
    } else {
        tracing::warn!("stopped: some connections were not finished in time (--shutdown-timeout)");
    }
    in_time
}

/// Errors of one connection, which say nothing about the next.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Connections being served.
struct Connections {
    graceful: GracefulShutdown,
    router: axum::Router,
    metrics_router: axum::Router,
    http: http1::Builder,
    tls: Option<Tls>,
}

impl Connections {
    fn new(app: &Arc<App>, tls: Option<Tls>) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from(app.settings.http.idle_timeout));
        let (router, metrics_router) = (api::router(app), api::metrics_router(app));
        Self { graceful: GracefulShutdown::new(), router, metrics_router, http, tls }
    }

    fn serve(&self, door: Door, stream: TcpStream, peer: SocketAddr) {
        // An answer is one small write that must not wait for an acknowledgement; where that cannot be set, it waits.
        let _ = stream.set_nodelay(true);
        let (router, tls) = match door {
            Door::Main => (&self.router, self.tls.clone()),
            Door::Metrics => (&self.metrics_router, None),
        };
        let service = TowerToHyperService::new(Extension(Peer(peer)).layer(router.clone()));
        let (http, watcher) = (self.http.clone(), self.graceful.watcher());
        tokio::spawn(async move {
            let ended = match tls {
                None => watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await,
                #[cfg(feature = "tls")]
                Some(tls) => match tls.greet(stream).await {
                    Ok(stream) => watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await,
                    Err(error) => {
                        tracing::debug!(%error, "a connection does not speak TLS");
                        return;
                    }
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke off");
            }
        });
    }

    /// Stops listening. Connections that the system has taken already are served: their request may be on the way.
    fn serve_backlog(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.serve(Door::Main, stream, peer);
            }
        }
    }

    /// Waits for the connections to end; whether they did in time. Every answer closes its connection by now, so a client
    /// in the middle of its work is not cut off; what has been idle for [`QUIET`] is closed.
    async fn finish(self, limit: Duration) -> bool {
        let idle_since = tokio::time::Instant::now();
        while self.graceful.count() > 0 && idle_since.elapsed() < QUIET {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::timeout(limit, self.graceful.shutdown()).await.is_ok()
    }
}
