//! `run`: from a file to a serving node, until it is told to stop.

use crate::config::environment;
use crate::config::load::{LoadError, Loaded, load};
use crate::config::reload::{Reloader, describe};
use crate::signals::{Signals, Told};
use crate::telemetry::{Telemetry, TelemetryError};
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::{error, info, warn};

/// What `run` is told on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,

    /// Take over a data directory that was moved or copied to here. Without this it is refused: of two nodes with one
    /// identity, none can be trusted. Say it only when the other one is gone for good.
    #[arg(long)]
    pub adopt_data_dir: bool,

    /// Once ready, write the addresses listened on to this file, as JSON.
    #[arg(long, value_name = "PATH", hide = true)]
    pub addresses_file: Option<PathBuf>,

    /// Stop when standard input ends: for whoever starts a node and must not leave it behind.
    #[arg(long, hide = true)]
    pub until_input_ends: bool,
}

/// A started node, as far as this file is concerned.
pub trait Service: Sized {
    type StartError: std::error::Error + Send + Sync + 'static;
    type ApplyError: std::error::Error + Send + Sync + 'static;

    /// Returns when the node listens; whether it is ready is for [`waits_for`](Self::waits_for) to say. `adopt`: take
    /// over a data directory that was moved or copied.
    fn start(
        loaded: Arc<Loaded>,
        telemetry: Telemetry,
        adopt: bool,
    ) -> impl Future<Output = Result<Self, Self::StartError>>;

    /// What the node waits for before it can serve; `None` when it can.
    fn waits_for(&self) -> Option<String>;

    /// Returns when an operator, asked at another node, wants this one to leave.
    fn told_to_leave(&self) -> impl Future<Output = ()>;

    /// Where it listens; with port 0 in the configuration, the port it got.
    fn addresses(&self) -> Addresses;

    /// Puts another configuration in force, or leaves everything as it was.
    fn apply(&self, loaded: &Arc<Loaded>) -> impl Future<Output = Result<(), Self::ApplyError>>;

    /// Returns, with the reason, when the node cannot go on.
    fn failed(&self) -> impl Future<Output = String>;

    /// Stops accepting, lets running requests finish within the configured time, and ends everything. True when
    /// nothing had to be cut.
    fn drain(&self) -> impl Future<Output = bool>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Addresses {
    pub api: SocketAddr,
    pub admin: SocketAddr,
}

/// Why a node did not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(LoadError),
    #[error("cannot start telemetry")]
    Telemetry(#[source] TelemetryError),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("cannot start")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot write `{}`", path.display())]
    AddressesFile {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the node could not go on: {reason}")]
    Failed { reason: String },
}

/// Returns when the node has stopped as it was told.
pub async fn run<S: Service>(args: &RunArgs) -> Result<(), RunError> {
    let loaded = Arc::new(load(&args.config, &environment::process).map_err(RunError::Config)?);
    let telemetry = Telemetry::start(&loaded.config.telemetry).map_err(RunError::Telemetry)?;
    let signals = Signals::new();
    let signals = if args.until_input_ends { signals.and_then(Signals::with_input) } else { signals };
    let mut signals = signals.map_err(RunError::Signals)?;
    let mut reloader = Reloader::new(args.config.clone(), environment::process, Arc::clone(&loaded));

    let node = S::start(Arc::clone(&loaded), telemetry.clone(), args.adopt_data_dir).await;
    let node = node.map_err(|error| RunError::Start(error.into()))?;
    let addresses = node.addresses();
    info!(
        name = loaded.config.node.name,
        api = %addresses.api,
        admin = %addresses.admin,
        version = env!("CARGO_PKG_VERSION"),
        config = loaded.hash,
        "{}",
        if node.waits_for().is_none() { "ready" } else { "listening, not ready yet" }
    );
    let written = args.addresses_file.as_deref().map_or(Ok(()), |path| write_addresses(path, addresses));

    let end = match written {
        Ok(()) => serve(&node, &telemetry, &mut signals, &mut reloader).await,
        Err(error) => Err(error),
    };
    drain(&node, &mut signals).await;
    end
}

/// Until someone says stop, or the node cannot go on.
async fn serve<S: Service>(
    node: &S,
    telemetry: &Telemetry,
    signals: &mut Signals,
    reloader: &mut Reloader,
) -> Result<(), RunError> {
    loop {
        let changed = tokio::select! {
            biased;
            reason = node.failed() => return Err(RunError::Failed { reason }),
            () = node.told_to_leave() => {
                info!("an operator wants this node to leave");
                return Ok(());
            }
            told = signals.next() => match told {
                Told::Stop => return Ok(()),
                Told::Reload => reloader.asked().await,
            },
            loaded = reloader.changed() => Some(loaded),
        };
        let Some(loaded) = changed else { continue };
        match node.apply(&loaded).await {
            Ok(()) => {
                if let Err(error) = telemetry.set_level(&loaded.config.telemetry) {
                    warn!(error = describe(&error), "the log level stays");
                }
                reloader.applied(loaded);
            }
            Err(error) => reloader.refused(&error),
        }
    }
}

/// Whoever asks a second time does not want to wait.
async fn drain<S: Service>(node: &S, signals: &mut Signals) {
    info!("stopping: running requests may finish");
    tokio::select! {
        whole = node.drain() => if whole {
            info!("stopped");
        } else {
            warn!("stopped; requests that did not finish in time were cut");
        },
        () = signals.stop() => error!("stopped at once, as asked; running requests were cut"),
    }
}

/// Whole or not at all: who waits for the file never reads half of it.
fn write_addresses(path: &Path, addresses: Addresses) -> Result<(), RunError> {
    let written = || {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let beside = PathBuf::from(name);
        std::fs::write(&beside, serde_json::to_vec(&addresses)?)?;
        std::fs::rename(&beside, path)
    };
    written().map_err(|cause| RunError::AddressesFile { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("addresses.json");
        let addresses = Addresses { api: ([127, 0, 0, 1], 4000).into(), admin: ([127, 0, 0, 1], 4001).into() };

        write_addresses(&path, addresses).unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, r#"{"api":"127.0.0.1:4000","admin":"127.0.0.1:4001"}"#);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let addresses = Addresses { api: ([127, 0, 0, 1], 1).into(), admin: ([127, 0, 0, 1], 2).into() };

        let error = write_addresses(Path::new("/nowhere/at/all"), addresses).unwrap_err();

        assert_eq!(error.to_string(), "cannot write `/nowhere/at/all`");
    }
}
