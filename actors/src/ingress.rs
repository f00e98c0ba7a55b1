//! The door: listeners, connection permits, drain.

pub mod api;
pub mod body;
pub mod connection;
pub mod error;
pub mod metrics;
pub mod pipeline;
pub mod relay;
pub mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{counter, gauge};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::body::Body;
use self::connection::{ConnectionInfo, LimitsConfig, Server};
use self::metrics::{ACCEPT_ERRORS, CONNECTIONS, CONNECTIONS_ACCEPTED, CONNECTIONS_AT_LIMIT, CONNECTIONS_CLOSED};
use self::tls::Tls;
use crate::supervisor::Tasks;

/// How long accepting rests after an error that more tries would only repeat (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the certificate's files are looked at.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(10);

/// The open listeners. Dropping it changes nothing; [`drain`](Self::drain) ends them.
pub struct Ingress {
    addresses: Vec<SocketAddr>,
    connections: Arc<Semaphore>,
    connections_max: u32,
    draining: CancellationToken,
    closing: CancellationToken,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every request was finished.
    Whole,
    /// So many connections were cut at the deadline.
    Cut { connections: u32 },
}

impl Ingress {
    /// Accepts on every listener and calls `handler` for each request, at once.
    pub fn start<H, F>(
        listeners: Vec<TcpListener>,
        handler: H,
        limits: LimitsConfig,
        tls: Option<Arc<Tls>>,
        tasks: &Tasks,
    ) -> io::Result<Self>
    where
        H: Fn(Request<Incoming>, ConnectionInfo) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let connections_max = limits.connections_max.get();
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let connections = Arc::new(Semaphore::new(connections_max as usize));
        let ingress = Self {
            addresses,
            connections: Arc::clone(&connections),
            connections_max,
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
        };
        if let Some(tls) = &tls {
            tasks.spawn("certificate reload", watch_certificate(Arc::clone(tls), ingress.draining.clone()));
        }
        let door = Arc::new(Door {
            server: Arc::new(Server::new(handler, limits, tasks)),
            tls,
            connections,
            draining: ingress.draining.clone(),
            closing: ingress.closing.clone(),
            tasks: tasks.clone(),
        });
        for listener in listeners {
            tasks.spawn("accept", Arc::clone(&door).accept(listener));
        }
        Ok(ingress)
    }

    /// Where it listens, in the order of the listeners.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets running requests finish, and cuts what still runs after `within`. Other tasks are to be
    /// stopped after this one: requests live on them.
    pub async fn drain(&self, within: Duration) -> Drained {
        self.draining.cancel();
        let all_gone = self.connections.acquire_many(self.connections_max);
        if tokio::time::timeout(within, all_gone).await.is_ok() {
            return Drained::Whole;
        }
        let connections = self.connections_max - u32::try_from(self.connections.available_permits()).unwrap_or(0);
        self.closing.cancel();
        Drained::Cut { connections }
    }
}

/// What every connection needs.
struct Door<H> {
    server: Arc<Server<H>>,
    tls: Option<Arc<Tls>>,
    connections: Arc<Semaphore>,
    draining: CancellationToken,
    closing: CancellationToken,
    tasks: Tasks,
}

impl<H, F> Door<H>
where
    H: Fn(Request<Incoming>, ConnectionInfo) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    /// A permit comes before a connection: at the bound newcomers wait in the kernel's backlog, unaccepted.
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Some(permit) = self.permit().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.draining.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    counter!(CONNECTIONS_ACCEPTED).increment(1);
                    self.tasks.spawn("connection", Arc::clone(&self).connection(stream, peer, permit));
                }
                Err(cause) => {
                    counter!(ACCEPT_ERRORS).increment(1);
                    if concerns_everyone(&cause) {
                        warn!(%cause, pause = ?ACCEPT_PAUSE, "cannot accept connections");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// `None` once draining.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
            return (!self.draining.is_cancelled()).then_some(permit);
        }
        counter!(CONNECTIONS_AT_LIMIT).increment(1);
        tokio::select! {
            biased;
            () = self.draining.cancelled() => None,
            permit = Arc::clone(&self.connections).acquire_owned() => permit.ok(),
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        let open = gauge!(CONNECTIONS);
        open.increment(1.0);
        // Small writes are streamed tokens: they must not wait for more. A socket that refuses is gone already.
        let _best_effort = stream.set_nodelay(true);
        let server = Arc::clone(&self.server);
        let ended = match &self.tls {
            None => server.serve(stream, peer, false, &self.draining, &self.closing).await,
            Some(tls) => {
                let handshake = tls.acceptor().accept(stream);
                match tokio::time::timeout(server.limits().header_timeout, handshake).await {
                    Ok(Ok(stream)) => server.serve(stream, peer, true, &self.draining, &self.closing).await,
                    Ok(Err(cause)) => {
                        debug!(%peer, %cause, "tls handshake failed");
                        "tls"
                    }
                    Err(_elapsed) => "tls",
                }
            }
        };
        counter!(CONNECTIONS_CLOSED, "reason" => ended).increment(1);
        open.decrement(1.0);
        drop(permit);
    }
}

/// Whether the next accept would fail alike. Otherwise only that one client was lost.
fn concerns_everyone(cause: &io::Error) -> bool {
    !matches!(
        cause.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn watch_certificate(tls: Arc<Tls>, draining: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATE_EVERY) => {}
            () = draining.cancelled() => return,
        }
        let reloading = Arc::clone(&tls);
        match tokio::task::spawn_blocking(move || reloading.reload()).await {
            Ok(Ok(true)) => info!("certificate reloaded"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "certificate kept: the new one cannot be used");
            }
            Err(panic) => warn!(%panic, "certificate not reloaded"),
        }
    }
}

#[cfg(test)]
mod tests;
