//! From an address to a connection with a node that has proved who it is.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::counter;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::ClientLimits;
use crate::id::NodeId;
use crate::peer::hello::{self, HelloError};
use crate::peer::metrics::CONNECTS;
use crate::peer::trust::LiveTrust;
use crate::peer::{FLOW, Lane};
use crate::tasks::Tasks;

pub(super) type Sender = http2::SendRequest<Full<Bytes>>;

/// Addresses a name may stand for that are tried.
const ADDRESSES_MAX: usize = 64;

/// What a `host:port` stands for now; a name may stand for several nodes.
pub async fn resolve(address: &str) -> std::io::Result<Vec<SocketAddr>> {
    Ok(lookup_host(address).await?.take(ADDRESSES_MAX).collect())
}

/// Makes connections; remembers none.
#[derive(Clone)]
pub(super) struct Connector {
    trust: LiveTrust,
    limits: ClientLimits,
    tasks: Tasks,
}

impl Connector {
    pub fn new(trust: LiveTrust, limits: ClientLimits, tasks: Tasks) -> Self {
        Self { trust, limits, tasks }
    }

    /// Resolves, connects and hears the proof, within the limit for all three.
    pub async fn connect(&self, address: &str, lane: Lane) -> Result<(NodeId, Sender), ConnectError> {
        let limit = self.limits.connect_max;
        let connected = match timeout(limit, self.connect_patiently(address, lane)).await {
            Ok(connected) => connected,
            Err(_elapsed) => Err(ConnectError::Slow { limit }),
        };
        let outcome = connected.as_ref().map_or_else(ConnectError::name, |_| "ok");
        counter!(CONNECTS, "lane" => lane.name(), "outcome" => outcome).increment(1);
        connected
    }

    async fn connect_patiently(&self, address: &str, lane: Lane) -> Result<(NodeId, Sender), ConnectError> {
        let addresses = resolve(address).await.map_err(ConnectError::Name)?;
        let share = share(self.limits.connect_max, addresses.len());
        let mut failure = ConnectError::NoAddress;
        for address in addresses {
            match timeout(share, self.connect_to(address, lane)).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(cause)) => failure = cause,
                Err(_elapsed) => failure = ConnectError::Slow { limit: share },
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, address: SocketAddr, lane: Lane) -> Result<(NodeId, Sender), ConnectError> {
        let trust = self.trust.load_full();
        let socket = TcpStream::connect(address).await.map_err(ConnectError::Tcp)?;
        socket.set_nodelay(true).map_err(ConnectError::Tcp)?;
        // Nobody looks at the name: who answers is proved below.
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(trust.client()).connect(name, socket).await;
        let mut stream = stream.map_err(ConnectError::Tls)?;
        let peer = hello::as_client(&mut stream, &trust, lane).await.map_err(ConnectError::Hello)?;
        let (sender, connection) = http2::Builder::new(self.tasks.executor("peer stream"))
            .timer(TokioTimer::new())
            .initial_stream_window_size(FLOW.stream)
            .initial_connection_window_size(FLOW.connection)
            .max_frame_size(FLOW.frame)
            .keep_alive_interval(self.limits.ping)
            .keep_alive_timeout(self.limits.ping)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Http)?;
        let node = peer.node;
        self.tasks.spawn("peer connection", async move {
            if let Err(cause) = connection.await {
                debug!(%node, %address, %cause, "connection to a node ended");
            }
        });
        Ok((node, sender))
    }
}

/// What one of several addresses gets of the time for all.
fn share(limit: Duration, addresses: usize) -> Duration {
    // At least a tenth: of many dead addresses the later ones are not tried any more.
    limit / u32::try_from(addresses.clamp(1, 10)).unwrap_or(1)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the name cannot be resolved: {0}")]
    Name(#[source] std::io::Error),

    #[error("the name stands for no address")]
    NoAddress,

    #[error("no connection: {0}")]
    Tcp(#[source] std::io::Error),

    #[error("no TLS session (another secret?): {0}")]
    Tls(#[source] std::io::Error),

    #[error("no proof (another secret?): {0}")]
    Hello(#[source] HelloError),

    #[error("no HTTP/2: {0}")]
    Http(#[source] hyper::Error),

    #[error("not connected within {limit:?}")]
    Slow { limit: Duration },
}

impl ConnectError {
    fn name(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::NoAddress => "no_address",
            Self::Tcp(_) => "tcp",
            Self::Tls(_) => "tls",
            Self::Hello(_) => "hello",
            Self::Http(_) => "http",
            Self::Slow { .. } => "slow",
        }
    }
}
