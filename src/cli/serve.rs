//! `facewise serve`.

use anyhow::{Context as _, bail};
use facewise::config::Settings;
use facewise::{server, telemetry};
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// Serves until SIGTERM or SIGINT, then finishes what was admitted.
pub(crate) fn run(settings: Settings) -> anyhow::Result<()> {
    let _export = telemetry::start_log(&settings.log);
    let runtime = tokio::runtime::Runtime::new().context("the async runtime cannot be started")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened to")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be listened to")?;
        let running = server::serve(settings).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if !running.stop().await {
            bail!("some connections were not finished in time");
        }
        Ok(())
    })
}
