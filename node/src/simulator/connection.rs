//! Listening, connections, and breaking them by order.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{State, provider};

/// Connections open at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 16_384;

/// After the listener failed, as it does when file descriptors run out.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The way to end a connection from inside an answer.
#[derive(Default)]
pub struct Line {
    ended: Notify,
    resets: AtomicBool,
}

impl Line {
    /// Ends the connection, with an RST if it `resets`.
    pub fn end(&self, resets: bool) {
        self.resets.store(resets, Ordering::Release);
        self.ended.notify_one();
    }
}

/// Serves until `shutdown`; returns when every connection is closed.
pub async fn serve(state: Arc<State>, listener: TcpListener, shutdown: CancellationToken) {
    let tracker = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepting = async {
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _peer)) => {
                    let connection = connection(Arc::clone(&state), stream, tracker.clone(), shutdown.clone());
                    tracker.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the simulator could not accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.cancelled() => {}
    }
    tracker.close();
    tracker.wait().await;
}

async fn connection(state: Arc<State>, stream: TcpStream, tracker: TaskTracker, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the simulator could not set TCP_NODELAY");
    }
    let line = Arc::new(Line::default());
    let service = {
        let line = Arc::clone(&line);
        service_fn(move |request| {
            let answer = provider::answer(Arc::clone(&state), Arc::clone(&line), request);
            async move { Ok::<_, Infallible>(answer.await) }
        })
    };
    let mut builder = auto::Builder::new(Tracked { tracker, shutdown: shutdown.clone() });
    builder.http1().timer(TokioTimer::new()).pipeline_flush(true);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1024);
    let socket = Socket { stream, line: Arc::clone(&line) };
    let mut serving = pin!(builder.serve_connection(TokioIo::new(socket), service));
    tokio::select! {
        served = &mut serving => {
            if let Err(error) = served {
                tracing::debug!(error, "a connection to the simulator ended");
            }
        }
        () = line.ended.notified() => {}
        () = shutdown.cancelled() => {}
    }
}

/// Runs the streams of HTTP/2 so that they, too, are waited for.
#[derive(Clone)]
struct Tracked {
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let shutdown = self.shutdown.clone();
        self.tracker.spawn(async move { shutdown.run_until_cancelled(future).await.is_some() });
    }
}

/// A connection that ends with an RST if its line says so.
struct Socket {
    stream: TcpStream,
    line: Arc<Line>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.line.resets.load(Ordering::Acquire)
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::warn!(%error, "the simulator could not reset a connection");
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// A socket to be reset says no goodbye: a FIN before the RST would look like a clean end.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.resets.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
