//! What the operating system tells this process.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that were asked for. From the first [`Signals::new`] on they no longer end the process by themselves.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// SIGTERM or SIGINT: finish what runs and leave. A second one: leave now.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one. Dropped early it loses none.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// Returns at the next request to stop; what else is told meanwhile is not heard.
    pub async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}
