//! Answers other nodes' calls. Only who proves to be a node of this trust is heard, and only frames that make sense.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{counter, gauge};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::frame::{self, FRAME_MAX, Frame, HEAD_LEN, Header, Kind};
use super::hello::{self, Peer};
use super::metrics::{CONNECTIONS, GARBAGE, REFUSED};
use super::standing::Standing;
use super::trust::LiveTrust;
use super::{Caller, FLOW, Handler, Lane, Refusal, Service};
use crate::tasks::Tasks;

/// After a failed accept: out of file descriptors, most likely, and trying at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A body of any size counts as one such unit at least.
const UNIT: usize = 1024;

/// How much the server takes on.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections that have proved themselves and those that have not; one more is closed.
    pub connections_max: usize,
    /// Connections that have not proved themselves yet; one more is closed.
    pub handshakes_max: usize,
    /// From accept to proof.
    pub handshake_max: Duration,
    /// Open calls on one connection; more wait with the caller.
    pub streams_max: u32,
    /// Open calls on one lane, all connections together; one more is refused as `Busy`.
    pub calls_max: usize,
    /// Bytes of requests on one lane, read or being read; what goes beyond is refused as `Busy`.
    pub bytes_max: usize,
    /// For a request to arrive whole.
    pub body_max: Duration,
    /// For a handler to answer.
    pub handle_max: Duration,
    /// A ping so often, and so long for its answer.
    pub ping: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            handshakes_max: 64,
            handshake_max: Duration::from_secs(3),
            streams_max: 256,
            calls_max: 1024,
            bytes_max: 64 * 1024 * 1024,
            body_max: Duration::from_secs(10),
            handle_max: Duration::from_mins(1),
            ping: Duration::from_secs(1),
        }
    }
}

/// Whose calls a service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nodes of the same cluster and epoch.
    SameCluster,
    /// Whoever has the secret: for bootstrap and joining.
    AnyCluster,
}

/// Who handles what. Complete before the server starts.
#[derive(Clone, Default)]
pub struct Handlers {
    handlers: Vec<(Service, Policy, Arc<dyn Handler>)>,
}

impl Handlers {
    pub fn new() -> Self {
        Self::default()
    }

    /// A second handler of one service replaces the first.
    #[must_use]
    pub fn with(mut self, service: Service, policy: Policy, handler: Arc<dyn Handler>) -> Self {
        self.handlers.retain(|(other, _, _)| *other != service);
        self.handlers.push((service, policy, handler));
        self
    }

    /// At most 256, and few in fact.
    fn get(&self, service: Service) -> Option<(Policy, &Arc<dyn Handler>)> {
        let found = self.handlers.iter().find(|(known, _, _)| *known == service);
        found.map(|(_, policy, handler)| (*policy, handler))
    }
}

/// A running server; it ends with its tasks. Cheap to clone.
#[derive(Clone)]
pub struct PeerServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    trust: LiveTrust,
    standing: Arc<Standing>,
    handlers: Handlers,
    limits: ServerLimits,
    connections: Arc<Semaphore>,
    handshakes: Semaphore,
    lanes: [LaneLimits; 2],
    garbage: AtomicU64,
    tasks: Tasks,
}

struct LaneLimits {
    calls: Semaphore,
    units: Semaphore,
}

impl PeerServer {
    /// `listener` is bound already, so that whoever asks for a free port knows it beforehand.
    pub fn start(
        listener: TcpListener,
        trust: LiveTrust,
        standing: Arc<Standing>,
        handlers: Handlers,
        limits: ServerLimits,
        tasks: &Tasks,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let lane = || LaneLimits {
            calls: Semaphore::new(limits.calls_max),
            units: Semaphore::new((limits.bytes_max / UNIT).min(Semaphore::MAX_PERMITS)),
        };
        let shared = Arc::new(Shared {
            trust,
            standing,
            handlers,
            connections: Arc::new(Semaphore::new(limits.connections_max)),
            handshakes: Semaphore::new(limits.handshakes_max),
            lanes: [lane(), lane()],
            garbage: AtomicU64::new(0),
            limits,
            tasks: tasks.clone(),
        });
        tasks.spawn("peer listener", accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What came and was no call of a node, since the start.
    pub fn garbage(&self) -> u64 {
        self.shared.garbage.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(cause) => {
                warn!(%cause, "the peer port accepts no connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match Arc::clone(&shared.connections).try_acquire_owned() {
            Ok(place) => {
                let serving = serve(Arc::clone(&shared), socket, from, place);
                shared.tasks.spawn("peer connection", serving);
            }
            Err(_full) => shared.garbage("too_many_connections", from),
        }
    }
}

/// One connection, from its first byte to its last.
async fn serve(shared: Arc<Shared>, socket: TcpStream, from: SocketAddr, place: OwnedSemaphorePermit) {
    let _place = place;
    let Some((stream, peer)) = shared.prove(socket, from).await else { return };
    let _open = Open::new();
    let answering = Arc::clone(&shared);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&answering);
        async move { Ok::<_, std::convert::Infallible>(shared.answer(request, peer, from).await) }
    });
    let connection = http2::Builder::new(shared.tasks.executor("peer call"))
        .timer(TokioTimer::new())
        .initial_stream_window_size(FLOW.stream)
        .initial_connection_window_size(FLOW.connection)
        .max_frame_size(FLOW.frame)
        .max_concurrent_streams(shared.limits.streams_max)
        .keep_alive_interval(shared.limits.ping)
        .keep_alive_timeout(shared.limits.ping)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(cause) = connection.await {
        debug!(node = %peer.node, %from, %cause, "connection of a node ended");
    }
}

/// Counts open connections, however they end.
struct Open;

impl Open {
    fn new() -> Self {
        gauge!(CONNECTIONS).increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!(CONNECTIONS).decrement(1);
    }
}

impl Shared {
    async fn prove(&self, socket: TcpStream, from: SocketAddr) -> Option<(TlsStream<TcpStream>, Peer)> {
        let Ok(_place) = self.handshakes.try_acquire() else {
            self.garbage("too_many_handshakes", from);
            return None;
        };
        let trust = self.trust.load_full();
        let handshake = async {
            socket.set_nodelay(true).map_err(|_| "tcp")?;
            let mut stream = TlsAcceptor::from(trust.server()).accept(socket).await.map_err(|_| "tls")?;
            let peer = hello::as_server(&mut stream, &trust).await.map_err(|_| "hello")?;
            Ok((stream, peer))
        };
        match timeout(self.limits.handshake_max, handshake).await {
            Ok(Ok(proved)) => return Some(proved),
            Ok(Err(reason)) => self.garbage(reason, from),
            Err(_elapsed) => self.garbage("slow_handshake", from),
        }
        None
    }

    async fn answer(&self, request: Request<Incoming>, peer: Peer, from: SocketAddr) -> Response<Full<Bytes>> {
        let (service, outcome) = match self.take(request, peer, from).await {
            Ok(answered) => answered,
            Err(NoCall { reason, status }) => {
                self.garbage(reason, from);
                let mut response = Response::new(Full::default());
                *response.status_mut() = status;
                return response;
            }
        };
        let (kind, body) = match outcome {
            Ok(body) if body.len() <= FRAME_MAX => (Kind::Reply, body),
            Ok(body) => refuse(&Refusal::Failed { why: format!("a reply of {} bytes is too long", body.len()) }),
            Err(refusal) => refuse(&refusal),
        };
        let header = self.standing.get();
        // Neither kind of body is too long here.
        let bytes = Frame { kind, service, header, body }.encode().unwrap_or_default();
        Response::new(Full::new(bytes))
    }

    /// Reads the request and has it handled. What makes no sense is no call.
    async fn take(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        from: SocketAddr,
    ) -> Result<(Service, Result<Bytes, Refusal>), NoCall> {
        let service = service(&request).ok_or(NoCall { reason: "path", status: StatusCode::NOT_FOUND })?;
        let length = request.body().size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length <= HEAD_LEN + FRAME_MAX);
        let length = length.ok_or(NoCall { reason: "length", status: StatusCode::PAYLOAD_TOO_LARGE })?;
        let lane = &self.lanes[usize::from(peer.lane == Lane::Bodies)];
        let units = u32::try_from(length.div_ceil(UNIT)).unwrap_or(u32::MAX);
        // Before anything of it is read: what is refused costs no memory.
        let (Ok(_call), Ok(_units)) = (lane.calls.try_acquire(), lane.units.try_acquire_many(units)) else {
            return Ok((service, Err(Refusal::Busy)));
        };
        let body = Limited::new(request.into_body(), length).collect();
        let bytes = match timeout(self.limits.body_max, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_broken)) => return Err(NoCall { reason: "body", status: StatusCode::BAD_REQUEST }),
            Err(_elapsed) => return Err(NoCall { reason: "slow_body", status: StatusCode::REQUEST_TIMEOUT }),
        };
        let frame = Frame::decode(&bytes).map_err(|_| NoCall { reason: "frame", status: StatusCode::BAD_REQUEST })?;
        if frame.kind != Kind::Request || frame.service != service || frame.header.node != peer.node {
            return Err(NoCall { reason: "header", status: StatusCode::BAD_REQUEST });
        }
        let outcome = self.handle(&frame, from).await;
        Ok((service, outcome))
    }

    async fn handle(&self, frame: &Frame, from: SocketAddr) -> Result<Bytes, Refusal> {
        if let Some(newer) = self.standing.observe(&frame.header).or_else(|| self.standing.outlived(&frame.header)) {
            return Err(Refusal::OldSelf { newer });
        }
        let (policy, handler) = self.handlers.get(frame.service).ok_or(Refusal::NoSuchService)?;
        self.check(policy, &frame.header)?;
        let caller = Caller {
            node: frame.header.node,
            incarnation: frame.header.incarnation,
            cluster: frame.header.cluster,
            epoch: frame.header.epoch,
            address: Some(from),
        };
        let after = self.limits.handle_max;
        let answer = timeout(after, handler.handle(caller, frame.body.clone())).await;
        answer.unwrap_or(Err(Refusal::Slow { after }))
    }

    fn check(&self, policy: Policy, from: &Header) -> Result<(), Refusal> {
        let own = self.standing.get();
        let same = from.cluster == own.cluster && from.epoch == own.epoch && !own.cluster.is_none();
        match policy {
            Policy::AnyCluster => Ok(()),
            Policy::SameCluster if same => Ok(()),
            Policy::SameCluster => Err(Refusal::WrongCluster { cluster: own.cluster, epoch: own.epoch }),
        }
    }

    /// Nothing else happens to who sends it: an answer would only help to guess.
    fn garbage(&self, reason: &'static str, from: SocketAddr) {
        self.garbage.fetch_add(1, Ordering::Relaxed);
        counter!(GARBAGE, "reason" => reason).increment(1);
        debug!(%from, reason, "garbage on the peer port");
    }
}

/// `POST /<number>`: known before the body is read.
fn service(request: &Request<Incoming>) -> Option<Service> {
    let number = request.uri().path().strip_prefix('/').filter(|_| request.method() == Method::POST)?;
    number.parse().ok().map(Service)
}

/// What came is no call.
struct NoCall {
    reason: &'static str,
    status: StatusCode,
}

fn refuse(refusal: &Refusal) -> (Kind, Bytes) {
    counter!(REFUSED, "reason" => refusal.name()).increment(1);
    // A refusal is far from the limit; were it not, an empty one is a protocol error to the caller.
    (Kind::Refusal, frame::to_bytes(refusal).unwrap_or_default())
}

#[cfg(test)]
#[path = "server/tests.rs"]
mod tests;
