//! One client connection: HTTP/1.1 or 2, the limits on what it may send, and how long it may take over it.
//!
//! A handler sees requests, never sockets. hyper itself answers what is no HTTP at all, with an empty body: 400, 414
//! (request line), 431 (headers).

mod activity;
mod head;
mod limits;
mod socket;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

pub use self::limits::LimitsConfig;

use self::activity::{Activity, Busy};
use self::socket::{Protocol, Socket};
use crate::ingress::body::{Aborted, Body};
use crate::supervisor::{Executor, Tasks};

/// What the connection knows of one request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    pub peer: SocketAddr,
    /// Came over TLS.
    pub secure: bool,
    pub request_id: RequestId,
    /// When the head was complete.
    pub arrived_at: Instant,
    /// What makes the request ambiguous or excessive as HTTP. The handler must refuse such a request; the connection
    /// ends after the reply.
    pub bad_http: Option<&'static str>,
}

/// The caller's own id of a request, if it is fit to be repeated, else a random one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const X_LEA_TIMEOUT: HeaderName = HeaderName::from_static("x-lea-timeout");

/// A longer id is not ours to repeat in every log line.
const REQUEST_ID_MAX: usize = 128;

impl RequestId {
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get(X_REQUEST_ID) {
            Some(given) if fit(given.as_bytes()) => Self(given.clone()),
            Some(_) | None => Self::random(),
        }
    }

    /// Always visible ASCII.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Without randomness from the system the id is made of the clock: worse, but a request is not refused for it.
    fn random() -> Self {
        let mut bytes = [0; 16];
        if getrandom::fill(&mut bytes).is_err() {
            bytes = cluster::clock::since_epoch().as_nanos().to_be_bytes();
        }
        let text = format!("{:032x}", u128::from_be_bytes(bytes));
        Self(HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unidentified")))
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

fn fit(id: &[u8]) -> bool {
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// `x-lea-timeout` says neither a duration (`1m30s`, `500ms`) nor a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`x-lea-timeout` is not a duration as `30s` or `500ms`")]
pub struct BadTimeout;

/// How long the request may take: what the caller asks for, at most what the node allows.
pub fn timeout(headers: &HeaderMap, limits: &LimitsConfig) -> Result<Duration, BadTimeout> {
    let Some(value) = headers.get(X_LEA_TIMEOUT) else { return Ok(limits.request_timeout) };
    let text = value.to_str().map_err(|_not_text| BadTimeout)?.trim();
    let asked = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_out_of_range| BadTimeout)?,
        Err(_not_a_number) => humantime::parse_duration(text).map_err(|_no_duration| BadTimeout)?,
    };
    if asked.is_zero() { Err(BadTimeout) } else { Ok(asked.min(limits.request_timeout)) }
}

/// Why a request's body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("the body did not arrive within {within:?}")]
    TooSlow { within: Duration },
    /// The client hung up or broke the protocol.
    #[error("the body broke off")]
    Broken {
        #[source]
        cause: hyper::Error,
    },
}

/// The whole body. An announced length that is too large is refused before a byte is read.
pub async fn read_body(body: Incoming, limits: &LimitsConfig) -> Result<Bytes, ReadError> {
    let bytes_max = limits.body_max.as_u64();
    if body.size_hint().lower() > bytes_max {
        return Err(ReadError::TooLarge { bytes_max });
    }
    let within = limits.body_timeout;
    tokio::time::timeout(within, collect(body, bytes_max)).await.map_err(|_elapsed| ReadError::TooSlow { within })?
}

async fn collect(mut body: Incoming, bytes_max: u64) -> Result<Bytes, ReadError> {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(|cause| ReadError::Broken { cause })?.into_data() else { continue };
        length += chunk.len();
        if u64::try_from(length).unwrap_or(u64::MAX) > bytes_max {
            return Err(ReadError::TooLarge { bytes_max });
        }
        // Most bodies come in one piece, which is then not copied.
        if first.is_empty() && whole.is_empty() {
            first = chunk;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&chunk);
        }
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// What all connections of a listener share.
pub(super) struct Server<H> {
    handler: H,
    limits: LimitsConfig,
    http1: http1::Builder,
    http2: http2::Builder<Executor>,
}

/// Why a connection ended, as the metric's label.
pub(super) type Ended = &'static str;

impl<H, F> Server<H>
where
    H: Fn(Request<Incoming>, ConnectionInfo) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    pub fn new(handler: H, limits: LimitsConfig, tasks: &Tasks) -> Self {
        let header_bytes_max = limits.header_bytes_max();
        let mut http1 = http1::Builder::new();
        // The watch in `serve` does what hyper's own header timeout does, and tells idling from dawdling.
        http1.timer(TokioTimer::new()).header_read_timeout(None).max_header_size(header_bytes_max);
        http1.max_buf_size(header_bytes_max).max_headers(limits.headers_max.get() as usize);
        let mut http2 = http2::Builder::new(tasks.executor("http2 stream"));
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_max.get())
            .max_header_list_size(u32::try_from(header_bytes_max).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(limits.reset_streams_max.get() as usize)
            .max_local_error_reset_streams(limits.reset_streams_max.get() as usize)
            .keep_alive_interval(limits.ping_interval)
            .keep_alive_timeout(limits.ping_interval);
        Self { handler, limits, http1, http2 }
    }

    pub fn limits(&self) -> &LimitsConfig {
        &self.limits
    }

    /// Runs the connection to its end. Once `draining`, it takes no new request; once `closing`, it is cut.
    pub async fn serve<I>(
        self: Arc<Self>,
        io: I,
        peer: SocketAddr,
        secure: bool,
        draining: &CancellationToken,
        closing: &CancellationToken,
    ) -> Ended
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(tokio::time::Instant::now()));
        let mut watch = pin!(self.watch(&activity));
        let opened = tokio::select! {
            opened = Socket::open(io, Arc::clone(&activity)) => opened,
            expired = &mut watch => return expired,
            () = draining.cancelled() => return "done",
        };
        let Ok((socket, protocol)) = opened else { return "done" };

        let server = Arc::clone(&self);
        let shared = Arc::clone(&activity);
        let service = service_fn(move |request: Request<Incoming>| {
            let (busy, ambiguous) = shared.begin();
            let reply = server.reply(request, peer, secure, ambiguous);
            let due = tokio::time::Instant::now() + server.limits.request_timeout + server.limits.header_timeout;
            async move { Ok::<_, Infallible>(reply.await.map(|body| Counted::new(body, busy, due))) }
        });
        let socket = TokioIo::new(socket);
        match protocol {
            Protocol::Http1 => {
                let connection = self.http1.serve_connection(socket, service);
                drive(connection, http1::Connection::graceful_shutdown, watch, draining, closing).await
            }
            Protocol::Http2 => {
                let connection = self.http2.serve_connection(socket, service);
                drive(connection, http2::Connection::graceful_shutdown, watch, draining, closing).await
            }
        }
    }

    /// Ends when the connection has outstayed.
    async fn watch(&self, activity: &Activity) -> Ended {
        loop {
            let now = tokio::time::Instant::now();
            activity.release(now);
            match activity.expired(now, self.limits.idle_timeout, self.limits.header_timeout) {
                Ok(expired) => return expired.name(),
                Err(again_at) => tokio::time::sleep_until(again_at).await,
            }
        }
    }

    fn reply(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        secure: bool,
        ambiguous: bool,
    ) -> impl Future<Output = Response<Body>> + Send + use<H, F> {
        let bad_http = if ambiguous {
            Some("its length is given twice")
        } else if request.headers().len() > self.limits.headers_max.get() as usize {
            Some("it has too many headers")
        } else {
            None
        };
        let request_id = RequestId::of(request.headers());
        let id = request_id.header();
        let closes = bad_http.is_some() && request.version() < Version::HTTP_2;
        let info = ConnectionInfo { peer, secure, request_id, arrived_at: cluster::clock::now(), bad_http };
        let response = (self.handler)(request, info);
        async move {
            let mut response = response.await;
            response.headers_mut().entry(X_REQUEST_ID).or_insert(id);
            if closes {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    }
}

async fn drive<C, E>(
    connection: C,
    finish: impl Fn(Pin<&mut C>),
    mut watch: Pin<&mut impl Future<Output = Ended>>,
    draining: &CancellationToken,
    closing: &CancellationToken,
) -> Ended
where
    C: Future<Output = Result<(), E>>,
{
    let mut connection = pin!(connection);
    let mut finishing = false;
    loop {
        tokio::select! {
            ended = &mut connection => return if ended.is_ok() { "done" } else { "protocol" },
            expired = &mut watch => return expired,
            () = draining.cancelled(), if !finishing => {
                finishing = true;
                finish(connection.as_mut());
            }
            () = closing.cancelled() => return "cut",
        }
    }
}

/// A reply's body that keeps its connection busy until it is gone. What it holds is given up when it should have ended long
/// ago and is read no further: whoever does not read may do so for ever.
enum Counted {
    Empty { _busy: Busy },
    Held { reply: Arc<Mutex<Option<Reply>>>, size: SizeHint },
}

struct Reply {
    body: Body,
    _busy: Busy,
    /// Since it was last looked at.
    polled: bool,
}

impl Counted {
    fn new(body: Body, busy: Busy, due: tokio::time::Instant) -> Self {
        match body {
            Body::Empty => Self::Empty { _busy: busy },
            Body::Full(_) | Body::Stream(_) => {
                let (activity, size) = (busy.activity(), body.size_hint());
                let reply = Arc::new(Mutex::new(Some(Reply { body, _busy: busy, polled: false })));
                activity.ends_by(due, Arc::downgrade(&reply));
                Self::Held { reply, size }
            }
        }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let Self::Held { reply, size } = self.get_mut() else { return Poll::Ready(None) };
        let mut held = reply.lock();
        let Some(reply) = &mut *held else { return Poll::Ready(Some(Err(Aborted))) };
        reply.polled = true;
        let polled = Pin::new(&mut reply.body).poll_frame(context);
        *size = reply.body.size_hint();
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty { .. } => true,
            Self::Held { size, .. } => size.exact() == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty { .. } => SizeHint::with_exact(0),
            Self::Held { size, .. } => *size,
        }
    }
}

#[cfg(test)]
mod tests;
