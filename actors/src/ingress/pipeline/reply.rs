//! From what supplies an answer to the response a client gets: its head, its headers, and the relay behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster::clock;
use cluster::ledger::money::NanoUsd;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use llm::chat::{ChatReply, Delta};
use llm::dialect::Dialect;
use llm::tokens;

use super::cuts::Cuts;
use super::record::Record;
use super::{Answered, Chat, Gateway};
use crate::cache::answer::Answer;
use crate::cache::flight::{Piece, Source};
use crate::ingress::body::Body;
use crate::ingress::connection::RequestId;
use crate::ingress::error::Failure;
use crate::ingress::relay::{self, Form, PING_EVERY, Supply, Writer};
use crate::queue::Standing;

/// An answer that has begun: its first piece, or the knowledge that a provider has given a head.
pub struct Begun {
    supply: Supply,
    first: Option<Piece>,
    source: Source,
}

impl Begun {
    pub fn source(&self) -> &Source {
        &self.source
    }
}

/// Waits for the first content, so that a failure before it still has its status. A provider that gave a head and then
/// thinks for long is enough to begin a stream, which pings keep alive.
pub async fn begin(mut supply: Supply, deadline: Instant, record: &mut Record) -> Result<Begun, Failure> {
    let from = clock::now();
    let mut source = None;
    let begun = loop {
        let left = deadline.saturating_duration_since(clock::now());
        match tokio::time::timeout(PING_EVERY.min(left), supply.next()).await {
            Ok(Ok(first)) => {
                let Some(source) = supply.source() else { break Err(Failure::Internal) };
                break Ok(Begun { supply, first, source });
            }
            Ok(Err(failure)) => {
                source = supply.asked();
                break Err(failure);
            }
            Err(_elapsed) if left <= PING_EVERY => {
                let after = deadline.saturating_duration_since(record.started);
                break Err(Failure::DeadlineExceeded { after });
            }
            Err(_elapsed) if record.stream => {
                if let Some(source) = supply.source() {
                    break Ok(Begun { supply, first: None, source });
                }
            }
            Err(_elapsed) => {}
        }
    };
    record.waited += clock::now().saturating_duration_since(from);
    if begun.is_err() {
        // Whoever reads the log wants to know who failed.
        record.source = source;
    }
    begun
}

/// [`begin`] and [`go_on`].
pub async fn answer(cuts: &Cuts, chat: &Chat, supply: Supply, record: &mut Record) -> Result<Answered, Failure> {
    let begun = begin(supply, chat.deadline, record).await?;
    go_on(cuts, chat, begun, record).await
}

/// The response to an answer that has begun.
pub async fn go_on(cuts: &Cuts, chat: &Chat, begun: Begun, record: &mut Record) -> Result<Answered, Failure> {
    record.source = Some(begun.source.clone());
    if chat.request.stream {
        let relay = Relay::new(cuts.clone(), chat, begun);
        return Ok(Answered::Later(Box::new(move |record| relay.respond(record))));
    }
    let Begun { mut supply, first, source } = begun;
    let from = clock::now();
    let left = chat.deadline.saturating_duration_since(from);
    let whole = relay::gather(first, &mut supply, source.dialect, chat.dialect);
    let gathered = tokio::time::timeout(left, whole).await;
    record.waited += clock::now().saturating_duration_since(from);
    let after = chat.deadline.saturating_duration_since(record.started);
    let gathered = gathered.map_err(|_elapsed| Failure::DeadlineExceeded { after })??;
    record.usage = gathered.usage;
    record.cost = supply.cost();
    let mut response = json(gathered.body);
    answer_headers(&mut response, record);
    if let Some(cost) = record.cost {
        cost_header(&mut response, cost);
    }
    limit_headers(&mut response, chat.dialect, record.standing);
    Ok(Answered::Now(response))
}

/// The response to a hit, in the form asked.
pub fn hit(chat: &Chat, answer: &Answer, age: Duration, record: &mut Record) -> Result<Answered, Failure> {
    let form = chat.form();
    let mut response = if !form.stream && answer.dialect == form.dialect {
        json(answer.body.clone())
    } else {
        let reply = answer.reply().ok_or(Failure::Internal)?;
        if form.stream {
            event_stream(Body::from(replayed(form, reply)))
        } else {
            json(relay::encoded(form.dialect, &reply))
        }
    };
    record.source = Some(Source {
        dialect: answer.dialect,
        provider: Arc::from(answer.provider.as_str()),
        model: Arc::from(answer.model.as_str()),
        attempts: 0,
        cap: None,
    });
    record.cost = Some(NanoUsd::default());
    response.headers_mut().insert(AGE, HeaderValue::from(age.as_secs()));
    answer_headers(&mut response, record);
    cost_header(&mut response, NanoUsd::default());
    limit_headers(&mut response, chat.dialect, record.standing);
    Ok(Answered::Now(response))
}

/// A whole answer as the stream it would have been.
fn replayed(form: Form, reply: ChatReply) -> Bytes {
    let mut writer = Writer::new(form);
    let dialect = form.dialect;
    let mut out = BytesMut::new();
    out.extend_from_slice(&writer.piece(dialect, &Piece::Whole { body: Bytes::new(), reply: Arc::new(reply) }));
    out.extend_from_slice(&writer.finish());
    out.freeze()
}

/// The provider's own count where its dialect has one, else an estimate that says so.
pub async fn count_tokens(gateway: &Arc<Gateway>, chat: Chat, record: &mut Record) -> Response<Body> {
    let from = clock::now();
    let counted = gateway.attempts(&chat, Arc::default()).count_tokens().await;
    record.waited += clock::now().saturating_duration_since(from);
    let mut response = if let Some(body) = counted {
        json(body)
    } else {
        let estimate = tokens::input_estimate(&chat.request);
        let mut response = json(Bytes::from(format!("{{\"input_tokens\":{estimate}}}")));
        let name = HeaderName::from_static("x-lea-estimated");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
        response
    };
    limit_headers(&mut response, chat.dialect, record.standing);
    response
}

/// What a client's stream is made of.
struct Relay {
    supply: Supply,
    first: Option<Piece>,
    writer: Writer,
    dialect: Dialect,
    deadline: Instant,
    /// Ends when the key's requests are to. Kept from chunk to chunk, so that it is woken without being asked anew.
    cut: BoxFuture<'static, ()>,
    ended: bool,
}

impl Relay {
    fn new(cuts: Cuts, chat: &Chat, begun: Begun) -> Self {
        let Begun { supply, first, source: _ } = begun;
        let writer = Writer::new(chat.form());
        let (since, key) = (chat.since, chat.principal.hash);
        let cut = Box::pin(async move { cuts.heard(since, key).await });
        Self { supply, first, writer, dialect: chat.dialect, deadline: chat.deadline, cut, ended: false }
    }

    fn respond(self, mut record: Record) -> Response<Body> {
        let mut response = event_stream(Body::Empty);
        answer_headers(&mut response, &mut record);
        limit_headers(&mut response, self.dialect, record.standing);
        let stream = futures_util::stream::unfold((self, record), |(mut relay, mut record)| async move {
            let bytes = relay.next(&mut record).await?;
            Some((Ok(bytes), (relay, record)))
        });
        *response.body_mut() = Body::stream(stream);
        response
    }

    /// The next bytes for the client; `None` when it has all of them.
    async fn next(&mut self, record: &mut Record) -> Option<Bytes> {
        while !self.ended {
            let step = if let Some(first) = self.first.take() {
                // What is there already goes to nobody who was cut either.
                if (&mut self.cut).now_or_never().is_some() { Err(Failure::RevokedKey) } else { Ok(Some(first)) }
            } else {
                let left = self.deadline.saturating_duration_since(clock::now());
                let waited = tokio::select! {
                    biased;
                    () = &mut self.cut => Ok(Err(Failure::RevokedKey)),
                    step = tokio::time::timeout(PING_EVERY.min(left), self.supply.next()) => step,
                };
                match waited {
                    Ok(step) => step,
                    Err(_elapsed) if left <= PING_EVERY => {
                        let after = self.deadline.saturating_duration_since(record.started);
                        Err(Failure::DeadlineExceeded { after })
                    }
                    Err(_elapsed) => return Some(Bytes::from_static(self.dialect.ping())),
                }
            };
            let bytes = match step {
                Ok(Some(piece)) => self.write(&piece, record),
                Ok(None) => self.end(record),
                Err(failure) => {
                    self.ended = true;
                    record.cut(&failure);
                    failure.in_stream(self.dialect, &record.request_id)
                }
            };
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
        None
    }

    /// This piece and those that are there already, in one chunk.
    fn write(&mut self, piece: &Piece, record: &mut Record) -> Bytes {
        let source = self.supply.source();
        let from = source.as_ref().map_or(self.dialect, |source| source.dialect);
        if record.first_content.is_none() {
            record.first_content = Some(clock::now());
            record.source = source;
        }
        observe(piece, record);
        let one = self.writer.piece(from, piece);
        let Some(second) = self.supply.ready() else { return one };
        let mut many = BytesMut::from(one);
        let mut next = Some(second);
        while let Some(piece) = next {
            observe(&piece, record);
            many.extend_from_slice(&self.writer.piece(from, &piece));
            next = self.supply.ready();
        }
        many.freeze()
    }

    fn end(&mut self, record: &mut Record) -> Bytes {
        self.ended = true;
        record.cost = self.supply.cost();
        record.answered();
        self.writer.finish()
    }
}

fn observe(piece: &Piece, record: &mut Record) {
    match piece {
        Piece::Whole { reply, .. } => record.usage = reply.usage,
        Piece::Event { deltas, .. } => {
            for delta in deltas.iter() {
                if let Delta::Usage(usage) = delta {
                    record.usage = Some(*usage);
                }
            }
        }
    }
}

/// Headers an answer usually has: room for them is made once.
const HEADERS_USUAL: usize = 24;

/// A JSON answer.
pub fn json(body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().reserve(HEADERS_USUAL);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.reserve(HEADERS_USUAL);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// What every response has.
pub fn common_headers(gateway: &Gateway, response: &mut Response<Body>, dialect: Dialect, id: &RequestId) {
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-request-id"), id.header());
    if dialect == Dialect::AnthropicMessages {
        headers.insert(HeaderName::from_static("request-id"), id.header());
    }
    headers.insert(HeaderName::from_static("x-lea-node"), gateway.node.clone());
}

/// Who answered, from where, and at what price in time.
fn answer_headers(response: &mut Response<Body>, record: &mut Record) {
    let overhead = record.overhead(clock::now());
    let headers = response.headers_mut();
    if let Some(cached) = record.cached {
        headers.insert(HeaderName::from_static("x-lea-cache"), HeaderValue::from_static(cached.name()));
    }
    if let Some(route) = &record.route_name {
        text_header(headers, "x-lea-route", route);
    }
    if let Some(source) = &record.source {
        text_header(headers, "x-lea-provider", &source.provider);
        text_header(headers, "x-lea-model", &source.model);
        headers.insert(HeaderName::from_static("x-lea-attempts"), HeaderValue::from(source.attempts));
        if let Some(cap) = source.cap {
            headers.insert(HeaderName::from_static("x-lea-max-tokens"), HeaderValue::from(cap.tokens));
        }
    }
    text_header(headers, "x-lea-overhead-ms", &format!("{:.3}", overhead.as_secs_f64() * 1e3));
}

/// What is known of a request that failed.
pub fn failed_headers(response: &mut Response<Body>, record: &Record) {
    if let Some(cached) = record.cached {
        let value = HeaderValue::from_static(cached.name());
        response.headers_mut().insert(HeaderName::from_static("x-lea-cache"), value);
    }
    if let Some(route) = &record.route_name {
        text_header(response.headers_mut(), "x-lea-route", route);
    }
    if let Some(source) = &record.source {
        let value = HeaderValue::from(source.attempts);
        response.headers_mut().insert(HeaderName::from_static("x-lea-attempts"), value);
    }
}

fn cost_header(response: &mut Response<Body>, cost: NanoUsd) {
    text_header(response.headers_mut(), "x-lea-cost-usd", cost.to_string().trim_start_matches('$'));
}

/// A name that cannot stand in a header is left out.
fn text_header(headers: &mut HeaderMap, name: &'static str, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Where the key stands, in the words of the dialect.
pub fn limit_headers(response: &mut Response<Body>, dialect: Dialect, standing: Option<Standing>) {
    let Some(standing) = standing else { return };
    let names: [[&'static str; 3]; 2] = match dialect {
        Dialect::OpenAiChat => [
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        ],
        Dialect::AnthropicMessages => [
            [
                "anthropic-ratelimit-requests-limit",
                "anthropic-ratelimit-requests-remaining",
                "anthropic-ratelimit-requests-reset",
            ],
            [
                "anthropic-ratelimit-tokens-limit",
                "anthropic-ratelimit-tokens-remaining",
                "anthropic-ratelimit-tokens-reset",
            ],
        ],
    };
    let headers = response.headers_mut();
    for (names, level) in names.into_iter().zip([standing.requests, standing.tokens]) {
        let ([limit, remaining, reset], Some(level)) = (names, level) else { continue };
        headers.insert(HeaderName::from_static(limit), HeaderValue::from(level.limit));
        headers.insert(HeaderName::from_static(remaining), HeaderValue::from(level.remaining));
        let text = match dialect {
            Dialect::OpenAiChat => format!("{}s", level.reset.as_secs()),
            Dialect::AnthropicMessages => {
                let at = std::time::UNIX_EPOCH + clock::since_epoch() + level.reset;
                humantime::format_rfc3339_seconds(at).to_string()
            }
        };
        text_header(headers, reset, &text);
    }
}
