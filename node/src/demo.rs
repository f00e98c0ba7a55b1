//! `demo`: the gateway in front of two simulated providers, asked what a bank's customers would ask.
//!
//! Every step says what it claims and checks it against what was really seen: by the client, and by the providers. The
//! gateway is the one `run` starts, with a configuration that is shown.

mod client;
mod report;
mod steps;
mod world;

use std::error::Error;

use crate::output;
use crate::run::Service;
use crate::signals::Signals;
use report::Report;
use world::World;

/// What `demo` is told on the command line.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DemoArgs {
    /// Leave after the report: with status 0 only if every step did what it claims.
    #[arg(long)]
    pub once: bool,
}

/// Why the report is not one of success.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    #[error("{failed} claims did not hold; the report says which")]
    Claims { failed: usize },
    #[error("interrupted before the report was whole")]
    Interrupted,
}

/// Shows everything once, then stays up unless it is told not to.
pub async fn demo<S: Service>(args: &DemoArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut signals = Signals::new()?;
    let world = World::<S>::start().await?;
    let mut report = Report::default();
    output::line(&world.opening())?;
    let shown = tokio::select! {
        shown = steps::all(&world, &mut report) => shown,
        () = signals.stop() => Err(NotHeld::Interrupted.into()),
    };
    if let Err(error) = shown {
        world.stop().await;
        return Err(error);
    }
    let failed = report.close()?;
    if !args.once {
        output::line(&world.invitation())?;
        signals.stop().await;
    }
    world.stop().await;
    if failed > 0 { Err(NotHeld::Claims { failed }.into()) } else { Ok(()) }
}
