//! What the operating system tells this process.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Signals that were asked for. From the first [`Signals::new`] on they no longer end the process by themselves.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Dropped when standard input has ended; `None` where that says nothing.
    input: Option<oneshot::Receiver<()>>,
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
            input: None,
        })
    }

    /// The end of standard input tells to stop, too: it is held open by whoever started this process, and ends with it
    /// however that ends.
    pub fn with_input(mut self) -> io::Result<Self> {
        let (open, ended) = oneshot::channel();
        // A thread of its own: nothing interrupts a read of standard input, and the runtime would wait for it.
        std::thread::Builder::new().name("input".to_owned()).spawn(move || {
            // Broken is as good as ended.
            let _read = io::copy(&mut io::stdin().lock(), &mut io::sink());
            drop(open);
        })?;
        self.input = Some(ended);
        Ok(self)
    }

    /// The next one. Dropped early it loses none.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
            () = ended(&mut self.input) => Told::Stop,
        }
    }

    /// Returns at the next request to stop; what else is told meanwhile is not heard.
    pub async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

/// Returns once.
async fn ended(input: &mut Option<oneshot::Receiver<()>>) {
    let Some(open) = input else { return std::future::pending().await };
    // Nothing is ever sent.
    let _dropped = open.await;
    *input = None;
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// Whoever asks a second time does not want to wait: the end of the input is no second time.
    #[tokio::test]
    async fn the_end_of_the_input_is_told_once() {
        let (open, ended) = oneshot::channel();
        let mut signals = Signals { input: Some(ended), ..Signals::new().unwrap() };
        assert_eq!(signals.next().now_or_never(), None, "it is open");

        drop(open);

        assert_eq!(signals.next().await, Told::Stop);
        assert_eq!(signals.next().now_or_never(), None);
    }
}
