//! The HTTP client of one provider: what is sent, what comes back, and what every way to fail says about the call.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::TokioTimer;
use llm::dialect::Dialect;
use metrics::Gauge;
use tokio::sync::OwnedSemaphorePermit;

use super::connect::{ConnectError, Connector};
use super::credentials::Credential;
use super::seal::{Outgoing, Seal};
use crate::supervisor::Tasks;

/// A pooled connection nobody used for so long is closed; most providers keep theirs a little longer.
const POOL_IDLE: Duration = Duration::from_secs(50);

/// The head of a provider's response. More is no answer; up to as much again may be read before it shows.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How often an HTTP/2 connection is asked whether it still lives, idle or not.
const PING_EVERY: Duration = Duration::from_secs(20);

const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client's header must be named to reach a provider. Everything else stays here, credentials above all.
const FORWARDED: [HeaderName; 4] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    ANTHROPIC_VERSION,
    HeaderName::from_static("anthropic-beta"),
];

const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Said for clients that do not say which version of the API they speak.
const ANTHROPIC_VERSION_DEFAULT: HeaderValue = HeaderValue::from_static("2023-06-01");

/// Why a call has no response.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A reload took the provider away between plan and call.
    #[error("the provider is no longer configured")]
    Gone,
    /// Our own bound: it says nothing about the provider.
    #[error("all {connections_max} connections to the provider are in use")]
    Busy { connections_max: u32 },
    #[error("no connection")]
    Connect(#[source] ConnectError),
    #[error("no response within {within:?}")]
    NoHead { within: Duration, written: bool },
    /// Reset or closed before a head was there.
    #[error("the connection broke before a response")]
    Broken {
        written: bool,
        #[source]
        cause: legacy::Error,
    },
    /// What came is no HTTP, or its head is too large.
    #[error("the response is not HTTP")]
    NotHttp {
        #[source]
        cause: legacy::Error,
    },
    /// A success whose body is compressed although we asked for none.
    #[error("the response is compressed, which was not asked for")]
    Encoded,
    #[error("the provider's address and path are no URL")]
    BadUrl,
}

impl CallError {
    /// Nothing of the request reached the provider and nothing will: it cannot bill.
    pub fn nothing_written(&self) -> bool {
        match self {
            Self::Gone | Self::Busy { .. } | Self::Connect(_) | Self::BadUrl => true,
            Self::NoHead { written, .. } | Self::Broken { written, .. } => !written,
            Self::NotHttp { .. } | Self::Encoded => false,
        }
    }

    /// Whether the failure says something about the provider, or the way to it, rather than about this node.
    pub fn blames_provider(&self) -> bool {
        match self {
            Self::Gone | Self::Busy { .. } | Self::BadUrl => false,
            Self::Connect(_) | Self::NoHead { .. } | Self::Broken { .. } | Self::NotHttp { .. } | Self::Encoded => true,
        }
    }

    pub fn is_timeout(&self) -> bool {
        match self {
            Self::NoHead { .. } | Self::Connect(ConnectError::Timeout { .. }) => true,
            Self::Connect(ConnectError::Dns { .. } | ConnectError::Tcp { .. } | ConnectError::Tls { .. })
            | Self::Gone
            | Self::Busy { .. }
            | Self::Broken { .. }
            | Self::NotHttp { .. }
            | Self::Encoded
            | Self::BadUrl => false,
        }
    }

    /// In words for the client: what happened, with nothing of the node's inside.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Gone => "it is no longer configured",
            Self::Busy { .. } => "all connections to it are in use",
            Self::Connect(ConnectError::Dns { .. }) => "its name cannot be resolved",
            Self::Connect(ConnectError::Tcp { .. }) => "it cannot be reached",
            Self::Connect(ConnectError::Tls { .. }) => "no secure connection to it",
            Self::Connect(ConnectError::Timeout { .. }) => "no connection to it in time",
            Self::NoHead { .. } => "no response from it in time",
            Self::Broken { .. } => "it closed the connection before it answered",
            Self::NotHttp { .. } => "its response is not HTTP",
            Self::Encoded => "its response is compressed, which was not asked for",
            Self::BadUrl => "its address is no URL",
        }
    }

    /// The value of the metric's label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Busy { .. } => "busy",
            Self::Connect(ConnectError::Dns { .. }) => "dns",
            Self::Connect(ConnectError::Tcp { .. }) => "connect",
            Self::Connect(ConnectError::Tls { .. }) => "tls",
            Self::Connect(ConnectError::Timeout { .. }) => "connect_timeout",
            Self::NoHead { .. } => "no_head",
            Self::Broken { .. } => "broken",
            Self::NotHttp { .. } => "not_http",
            Self::Encoded => "encoded",
            Self::BadUrl => "bad_url",
        }
    }
}

/// What is sent.
pub(super) struct Message<'a> {
    pub uri: Uri,
    pub dialect: Dialect,
    pub credential: &'a Credential,
    /// From the configuration.
    pub fixed: &'a HeaderMap,
    /// The client's; only the allowed ones are sent.
    pub client: &'a HeaderMap,
    pub stream: bool,
    pub body: Bytes,
}

/// Runs what the pool spawns. Ends it with the node: an idle connection has nobody else to end it.
#[derive(Clone)]
struct Connections(Tasks);

impl<F> hyper::rt::Executor<F> for Connections
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let token = self.0.token();
        self.0.spawn("provider connection", async move {
            tokio::select! {
                biased;
                _ = future => {}
                () = token.cancelled() => {}
            }
        });
    }
}

/// A pool of connections. Cheap to clone; clones share the pool.
#[derive(Clone, Debug)]
pub(super) struct Client(Pool<Connector, Outgoing>);

impl Client {
    pub fn new(connector: Connector, idle_max: usize, tasks: &Tasks) -> Self {
        let pool = Pool::builder(Connections(tasks.clone()))
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(idle_max)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .http2_max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .build(connector);
        Self(pool)
    }

    /// The head of the response, whatever its status. A request that was never begun on a pooled connection that
    /// turned out to be closed is sent again on another.
    pub async fn send(
        &self,
        message: Message<'_>,
        seal: &Seal,
        head_by: Instant,
    ) -> Result<Response<Incoming>, CallError> {
        let started = cluster::clock::now();
        let request = request(message, seal);
        let response = match tokio::time::timeout_at(head_by.into(), self.0.request(request)).await {
            Ok(response) => response.map_err(|cause| failed(cause, seal))?,
            Err(_elapsed) => {
                let within = head_by.saturating_duration_since(started);
                return Err(CallError::NoHead { within, written: !seal.withdraw() });
            }
        };
        if response.status().is_success() && is_encoded(response.headers()) {
            return Err(CallError::Encoded);
        }
        Ok(response)
    }
}

fn request(message: Message<'_>, seal: &Seal) -> Request<Outgoing> {
    let mut request = Request::new(Outgoing::new(message.body, seal.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = message.uri;
    let headers = request.headers_mut();
    headers.extend(message.fixed.clone());
    for (name, value) in &forwarded(message.client) {
        // Anthropic's own headers mean nothing to anyone else.
        if message.dialect == Dialect::AnthropicMessages || !name.as_str().starts_with("anthropic-") {
            headers.append(name, value.clone());
        }
    }
    match message.dialect {
        Dialect::OpenAiChat => {}
        Dialect::AnthropicMessages => {
            headers.entry(ANTHROPIC_VERSION).or_insert(ANTHROPIC_VERSION_DEFAULT);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let accept = if message.stream { "text/event-stream" } else { "application/json" };
    headers.insert(ACCEPT, HeaderValue::from_static(accept));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("llm-edge-agent/", env!("CARGO_PKG_VERSION"))));
    if let Some((name, value)) = message.credential.header() {
        headers.insert(name, value.clone());
    }
    request
}

/// Those of a client's headers that may reach a provider.
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut allowed = HeaderMap::new();
    for name in &FORWARDED {
        for value in headers.get_all(name) {
            allowed.append(name, value.clone());
        }
    }
    allowed
}

/// How long the provider asks us to stay away: `retry-after-ms`, else `retry-after` in seconds or as a date.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok();
    if let Some(milliseconds) = text(RETRY_AFTER_MS).and_then(number) {
        return Duration::try_from_secs_f64(milliseconds / 1000.0).ok();
    }
    let value = text(RETRY_AFTER)?;
    if let Some(seconds) = number(value) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let since_epoch = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(since_epoch.saturating_sub(cluster::clock::since_epoch()))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_ENCODING).is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn failed(cause: legacy::Error, seal: &Seal) -> CallError {
    let mut at = cause.source();
    while let Some(error) = at {
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            return CallError::Connect(connect.clone());
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return CallError::NotHttp { cause };
        }
        at = error.source();
    }
    CallError::Broken { written: !seal.withdraw(), cause }
}

/// Why a response ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the provider fell silent for {within:?}")]
    Idle { within: Duration },
    #[error("the response is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the response broke off")]
    Broken {
        #[source]
        cause: hyper::Error,
    },
}

/// A response's body, pulled as fast as it is wanted. Dropping it early closes the connection (HTTP/1.1) or resets
/// the stream (HTTP/2), so the provider stops.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    idle: Duration,
    /// When the silence that somebody waits in has lasted too long. Kept when the wait is given up and taken up again.
    silent_until: Option<Instant>,
    _open: Open,
}

impl UpstreamBody {
    pub(super) fn new(incoming: Incoming, idle: Duration, open: Open) -> Self {
        Self { incoming, idle, silent_until: None, _open: open }
    }

    /// The next piece as it came, never empty; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, BodyError> {
        let within = self.idle;
        loop {
            let until = *self.silent_until.get_or_insert_with(|| cluster::clock::now() + within);
            let frame = tokio::time::timeout_at(until.into(), self.incoming.frame()).await;
            let Some(frame) = frame.map_err(|_elapsed| BodyError::Idle { within })? else { return Ok(None) };
            self.silent_until = None;
            match frame.map_err(|cause| BodyError::Broken { cause })?.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                // Nothing, or trailers, which no provider uses to say anything.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// All of it. An announced length that is too large is refused before a byte is read.
    pub async fn whole(mut self, bytes_max: usize) -> Result<Bytes, BodyError> {
        if self.incoming.size_hint().lower() > u64::try_from(bytes_max).unwrap_or(u64::MAX) {
            return Err(BodyError::TooLarge { bytes_max });
        }
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > bytes_max {
                return Err(BodyError::TooLarge { bytes_max });
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// What there is of it, cut after `bytes_max`: for error pages, of which half is better than nothing.
    pub async fn up_to(&mut self, bytes_max: usize) -> Bytes {
        let mut page = BytesMut::new();
        while page.len() < bytes_max
            && let Ok(Some(chunk)) = self.chunk().await
        {
            page.extend_from_slice(&chunk);
        }
        page.truncate(bytes_max);
        page.freeze()
    }
}

/// A place among the calls open to a provider; given back when the response has ended or was dropped.
pub(super) struct Open {
    _place: OwnedSemaphorePermit,
    gauge: Gauge,
}

impl Open {
    pub fn new(place: OwnedSemaphorePermit, provider: &Arc<str>) -> Self {
        let gauge = metrics::gauge!(super::metrics::CALLS_OPEN, "provider" => Arc::clone(provider));
        gauge.increment(1.0);
        Self { _place: place, gauge }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Open")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    /// What a client shows us is ours alone, and what belongs to its connection ends with it.
    #[test]
    fn credentials_cookies_and_hop_by_hop_headers_are_not_forwarded() {
        let given = headers(&[
            ("authorization", "Bearer lea-1"),
            ("x-api-key", "lea-1"),
            ("api-key", "lea-1"),
            ("x-goog-api-key", "lea-1"),
            ("cookie", "a=b"),
            ("connection", "close"),
            ("te", "trailers"),
            ("host", "gateway"),
            ("x-forwarded-for", "10.0.0.1"),
            ("openai-organization", "org"),
            ("traceparent", "00-1-2-01"),
            ("anthropic-beta", "tools"),
        ]);

        let sent = forwarded(&given);

        let names: Vec<_> = sent.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["traceparent", "anthropic-beta"]);
    }

    #[test]
    fn every_form_of_retry_after_is_understood() {
        let after = |name, value| retry_after(&headers(&[(name, value)]));

        assert_eq!(after("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(after("retry-after", "0.5"), Some(Duration::from_millis(500)));
        assert_eq!(after("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(after("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("retry-after", "soon"), None);
        assert_eq!(after("retry-after", "-3"), None);
        assert_eq!(after("retry-after", "NaN"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
