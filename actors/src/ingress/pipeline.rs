//! THE path of a request, top to bottom: who asks, what is asked, may he, has somebody asked before, who answers.
//!
//! Every step is a call that returns and hands on a receipt; what a dropped receipt does is the safe thing.

pub mod attempt;
mod cuts;
mod marks;
pub mod metrics;
mod models;
mod record;
mod reply;
mod scope;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use cluster::clock;
use cluster::directory::Directory;
use cluster::directory::key::KeyHash;
use cluster::directory::route::{CacheMode, Disconnect, Route};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use llm::chat::ChatRequest;
use llm::dialect::{Dialect, StreamOptions};
use llm::fault::shortened;
use llm::tokens;
use semantics::{cacheable, fingerprint};
use storage::cache::{Key, Scope};
use tracing::error;

use self::attempt::Attempts;
pub use self::cuts::Cuts;
use self::cuts::Since;
use self::record::{Cached, Record};
use crate::breaker::{self, Breakers};
use crate::cache::answer::Answer;
use crate::cache::directives::Directives;
use crate::cache::flight::{End, Head, Piece, Pilot, Reader, Source};
use crate::cache::{Cache, Found, Policy};
use crate::gate::{self, Gate};
use crate::guard;
use crate::identity::{self, Identity, IdentityError, Principal};
use crate::ingress::api::{self, ApiError, Operation};
use crate::ingress::body::Body;
use crate::ingress::connection::{self, ConnectionInfo, LimitsConfig, ReadError};
use crate::ingress::error::Failure;
use crate::ingress::relay::{Drive, Form, Supply};
use crate::provider::{self, Providers};
use crate::queue::{Limit, Limits, Queue, QueueError};
use crate::quota::{Quota, Waits};
use crate::routing::Routing;
use crate::supervisor::Tasks;

/// How often a client waits for a call of somebody else that fails before it makes its own, unshared.
const JOINS_MAX: u32 = 3;

/// Bytes of a model's name. A longer one names nothing, and errors and the log repeat no more of it.
const MODEL_MAX: usize = 256;

/// What a request sees of the configuration: one consistent whole, published anew by every reload.
pub struct Published {
    pub directory: Arc<Directory>,
    pub identity: Identity,
}

/// Everything the path needs. One for each node.
pub struct Gateway {
    pub node: http::HeaderValue,
    /// Looked at before what is published, so that what a request then reads is at least as new as it was found fresh.
    pub gate: Gate,
    pub published: Arc<ArcSwap<Published>>,
    /// Told of keys whose running requests are to end.
    pub cuts: Cuts,
    pub limits: LimitsConfig,
    /// Kept across reloads, with what they know of the providers that stay.
    pub breakers: Breakers,
    pub providers: Providers,
    pub queue: Queue,
    pub quota: Quota,
    pub cache: Cache<Arc<Failure>>,
    /// Keys the fingerprints, so that nobody outside can tell which questions collide.
    pub fingerprint_key: [u8; 32],
    pub routing: Routing,
    pub tasks: Tasks,
}

/// A request that has been understood and let in.
struct Chat {
    published: Arc<Published>,
    principal: Principal,
    since: Since,
    route: Arc<Route>,
    request: Arc<ChatRequest>,
    raw: Bytes,
    dialect: Dialect,
    headers: Arc<HeaderMap>,
    request_id: Arc<str>,
    deadline: Instant,
}

impl Chat {
    fn form(&self) -> Form {
        let input_estimate = tokens::input_estimate(&self.request);
        Form {
            dialect: self.dialect,
            stream: self.request.stream,
            options: StreamOptions { include_usage: self.request.include_usage, input_estimate },
        }
    }
}

impl Gateway {
    /// Answers one request. Never fails and never panics: whatever happens is an answer in the dialect asked.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, info: ConnectionInfo) -> Response<Body> {
        let dialect = api::dialect_of(request.uri().path(), request.headers());
        let request_id: Arc<str> = Arc::from(info.request_id.as_str());
        let http2 = request.version() == http::Version::HTTP_2;
        // Boxed: on its way to the connection this future is moved several times.
        let path = AssertUnwindSafe(Box::pin(self.path(request, &info, Arc::clone(&request_id))));
        let mut response = path.catch_unwind().await.unwrap_or_else(|_panic| {
            error!(%request_id, "a request panicked; this is a defect");
            Failure::Internal.answer(dialect, &request_id, http2)
        });
        reply::common_headers(&self, &mut response, dialect, &info.request_id);
        response
    }

    async fn path(
        self: &Arc<Self>,
        request: Request<Incoming>,
        info: &ConnectionInfo,
        request_id: Arc<str>,
    ) -> Response<Body> {
        let http2 = request.version() == http::Version::HTTP_2;
        let dialect = api::dialect_of(request.uri().path(), request.headers());
        let mut record = Record::new(Arc::clone(&request_id), dialect, "unknown", info.arrived_at);
        match self.operate(request, info, dialect, &mut record).await {
            Ok(Answered::Now(response)) => {
                record.answered();
                response
            }
            Ok(Answered::Later(make)) => make(record),
            Err(failure) => {
                let mut response = failure.answer(dialect, &request_id, http2);
                record.failed(&failure, response.status().as_u16());
                reply::limit_headers(&mut response, dialect, record.standing);
                reply::failed_headers(&mut response, &record);
                response
            }
        }
    }

    async fn operate(
        self: &Arc<Self>,
        request: Request<Incoming>,
        info: &ConnectionInfo,
        dialect: Dialect,
        record: &mut Record,
    ) -> Result<Answered, Failure> {
        if let Some(what) = info.bad_http {
            return Err(Failure::BadHttp { what });
        }
        if let gate::Standing::Closed { why } = self.gate.standing(clock::since_boot()) {
            return Err(Failure::ClusterUnavailable { why });
        }
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let endpoint = api::endpoint(&parts.method, path, &parts.headers).map_err(|error| api_failure(error, path))?;
        record.operation = endpoint.operation.name();

        let since = self.cuts.now();
        let published = self.published.load_full();
        let principal = identity::authenticate(
            &published.directory,
            published.identity,
            &parts.headers,
            parts.uri.query(),
            clock::since_epoch(),
        )
        .map_err(|error| identity_failure(&error))?;
        record.key = Some(Arc::clone(&principal.key));

        match endpoint.operation {
            Operation::ListModels => {
                let models = published.directory.models_for(&principal.key);
                Ok(Answered::Now(reply::json(models::list(dialect, &models))))
            }
            Operation::GetModel(id) => {
                let models = published.directory.models_for(&principal.key);
                let model = models
                    .iter()
                    .find(|model| model.id == id)
                    .ok_or_else(|| Failure::UnknownModel { model: shown(&id) })?;
                Ok(Answered::Now(reply::json(models::single(dialect, model))))
            }
            Operation::Chat => {
                let timeout = self.timeout(&parts.headers)?;
                let raw = self.read(body, &parts.headers).await?;
                let request = Arc::new(dialect.decode_request(&raw).map_err(Failure::Invalid)?);
                let headers = Arc::new(parts.headers);
                let chat = self.let_in(published, principal, since, request, raw, dialect, headers, record).await?;
                let deadline = info.arrived_at + chat.route.timeout.map_or(timeout, |own| own.min(timeout));
                let chat = Chat { deadline, ..chat };
                self.unless_cut(chat.since, chat.principal.hash, self.chat(&chat, record)).await
            }
            Operation::CountTokens => {
                let timeout = self.timeout(&parts.headers)?;
                let raw = self.read(body, &parts.headers).await?;
                let request = Arc::new(dialect.decode_count_request(&raw).map_err(Failure::Invalid)?);
                let headers = Arc::new(parts.headers);
                let chat = self.let_in(published, principal, since, request, raw, dialect, headers, record).await?;
                let chat = Chat { deadline: info.arrived_at + timeout, ..chat };
                let (since, key) = (chat.since, chat.principal.hash);
                let counted = async { Ok(reply::count_tokens(self, chat, record).await) };
                Ok(Answered::Now(Box::pin(self.unless_cut(since, key, counted)).await?))
            }
        }
    }

    /// Whether routing should send anything to this provider now.
    fn usable(&self, provider: &str, now: Instant) -> bool {
        let Some(breaker) = self.breakers.get(provider) else { return false };
        let flows = match breaker.standing(now) {
            breaker::Standing::Closed | breaker::Standing::HalfOpen => true,
            breaker::Standing::Open { .. } | breaker::Standing::Throttled { .. } => false,
        };
        flows && self.providers.standing(provider, now) == Some(provider::Standing::Usable)
    }

    /// How long the provider still asks not to be called.
    fn throttled(&self, provider: &str, now: Instant) -> Option<Duration> {
        match self.breakers.get(provider)?.standing(now) {
            breaker::Standing::Throttled { until } => Some(until.saturating_duration_since(now)),
            breaker::Standing::Closed | breaker::Standing::HalfOpen | breaker::Standing::Open { .. } => None,
        }
    }

    /// The most bytes of a whole answer that are read.
    fn reply_max(&self) -> usize {
        usize::try_from(self.limits.reply_max.as_u64()).unwrap_or(usize::MAX)
    }

    fn timeout(&self, headers: &HeaderMap) -> Result<Duration, Failure> {
        connection::timeout(headers, &self.limits)
            .map_err(|_bad| Failure::BadHeader { name: "x-lea-timeout", wanted: "a duration as `30s` or `500ms`" })
    }

    async fn read(&self, body: Incoming, headers: &HeaderMap) -> Result<Bytes, Failure> {
        if headers.get(http::header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
            return Err(Failure::WrongContentType);
        }
        connection::read_body(body, &self.limits).await.map_err(|error| match error {
            ReadError::TooLarge { bytes_max } => Failure::BodyTooLarge { bytes_max },
            ReadError::TooSlow { within } => Failure::BodyTooSlow { waited: within },
            ReadError::Broken { .. } => Failure::BodyBroken,
        })
    }

    /// May this key use this model, and now? Hands on the request with its route; the record keeps the turn.
    #[expect(clippy::too_many_arguments, reason = "the receipts of the steps before, each by its own name")]
    async fn let_in(
        &self,
        published: Arc<Published>,
        principal: Principal,
        since: Since,
        request: Arc<ChatRequest>,
        raw: Bytes,
        dialect: Dialect,
        headers: Arc<HeaderMap>,
        record: &mut Record,
    ) -> Result<Chat, Failure> {
        record.model = Some(shown(&request.model));
        record.stream = request.stream;
        let named = (request.model.len() <= MODEL_MAX).then(|| published.directory.resolve(&request.model)).flatten();
        // A bare name is allowed as what it stands for, `provider/model`, too.
        let stands_for = named.as_ref().map_or(request.model.as_str(), |route| &*route.name);
        let _allowed = guard::check(&principal.key.models, &request.model)
            .or_else(|_refused| guard::check(&principal.key.models, stands_for))
            .map_err(|_refused| Failure::ModelNotAllowed { model: shown(&request.model) })?;
        let route = named.ok_or_else(|| Failure::UnknownModel { model: shown(&request.model) })?;
        record.route = Some(Arc::clone(&route.label));
        record.route_name = Some(Arc::clone(&route.name));

        let key = &principal.key;
        let limits =
            Limits { key_id: key.id, rps: key.rps, rpm: key.rpm, tpm: key.tpm, max_parallel: key.max_parallel };
        let turn =
            self.queue.enter(&limits, tokens::input_estimate(&request), clock::now()).await.map_err(|error| {
                if let QueueError::RateLimited { standing, .. } = &error {
                    record.standing = Some(*standing);
                }
                queue_failure(&error)
            })?;
        record.standing = Some(turn.standing());
        record.turn = Some(turn);

        Ok(Chat {
            published,
            principal,
            since,
            route,
            request,
            raw,
            dialect,
            headers,
            request_id: Arc::clone(&record.request_id),
            deadline: record.started,
        })
    }

    /// `work`, for as long as the key's requests may run. A stream that has begun listens on.
    async fn unless_cut<T>(
        &self,
        since: Since,
        key: Option<KeyHash>,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        // It may have been cut while its body was read, or while it waited for its turn.
        if self.cuts.is_cut(since, key) {
            return Err(Failure::RevokedKey);
        }
        // Pinned where it is: `select!` would move all of it.
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => if self.cuts.is_cut(since, key) { Err(Failure::RevokedKey) } else { done },
            () = self.cuts.heard(since, key) => Err(Failure::RevokedKey),
        }
    }

    /// From the cache, from a call that is under way, or from a provider.
    async fn chat(self: &Arc<Self>, chat: &Chat, record: &mut Record) -> Result<Answered, Failure> {
        let asked = Directives::of(&chat.headers);
        let drain = chat.route.disconnect == Disconnect::Drain;
        let policy = Policy {
            fresh_for: chat.route.cache.ttl,
            answer_max: usize::try_from(chat.route.cache.answer_max).unwrap_or(usize::MAX),
            runs_on: drain,
        };
        let namespace = namespace(&chat.headers)?;
        let place = match self.place(chat, asked, namespace) {
            Ok(place) => place,
            Err(_why) if asked.only_if_cached => return Err(Failure::NotCached),
            Err(why) => {
                record.cached = Some(Cached::Bypass);
                record.why_bypassed = Some(why);
                let supply = if drain { self.launch_alone(chat, policy) } else { self.direct(chat) };
                return reply::answer(&self.cuts, chat, supply, record).await;
            }
        };
        let mut why = "shared_calls_failed";
        for _ in 0..JOINS_MAX {
            let found = self.cache.find(place.0, place.1, asked, policy, clock::now());
            let (supply, joined) = match found {
                Found::Hit(answer, age) => {
                    record.cached = Some(Cached::Hit);
                    return reply::hit(chat, &answer, age, record);
                }
                Found::Absent => return Err(Failure::NotCached),
                Found::Joined(reader) => (Supply::flight(reader), true),
                Found::Leads(pilot, reader) => {
                    let call = self.call(chat, pilot, Some((place.0, place.1, policy)));
                    (self.launch(chat, call, reader), false)
                }
            };
            record.cached = Some(if joined { Cached::Coalesced } else { Cached::Miss });
            match reply::begin(supply, chat.deadline, record).await {
                // Cut short for the budgets of somebody else.
                Ok(begun) if joined && begun.source().is_capped_by_budget() => {
                    why = "shared_call_capped";
                    break;
                }
                Ok(begun) => return reply::go_on(&self.cuts, chat, begun, record).await,
                // The call of somebody else failed before it gave anything: his failure, or his haste, is not ours.
                Err(_failure) if joined && clock::now() < chat.deadline => {}
                // Nor what it tells of his budgets.
                Err(failure) if joined && failure.tells_of_payer() => {
                    let after = chat.deadline.saturating_duration_since(record.started);
                    return Err(Failure::DeadlineExceeded { after });
                }
                Err(failure) => return Err(failure),
            }
        }
        record.cached = Some(Cached::Bypass);
        record.why_bypassed = Some(why);
        let supply = if drain { self.launch_alone(chat, policy) } else { self.direct(chat) };
        reply::answer(&self.cuts, chat, supply, record).await
    }

    /// Where the answer to this request is kept, or why it is not.
    fn place(&self, chat: &Chat, asked: Directives, namespace: Option<&str>) -> Result<(Scope, Key), &'static str> {
        if chat.route.cache.mode == CacheMode::Off {
            return Err("off");
        }
        if asked.no_store {
            return Err("no_store");
        }
        cacheable::request(&chat.request).map_err(cacheable::Reason::name)?;
        if chat.headers.keys().any(|name| name.as_str().starts_with("anthropic-beta")) {
            // It is forwarded and changes the answer.
            return Err("anthropic_beta");
        }
        let scope = scope::scope(&chat.principal.key, &chat.route, namespace);
        let key = fingerprint::fingerprint(&self.fingerprint_key, &chat.request, chat.dialect, &chat.route.name);
        Ok((scope, Key(key)))
    }

    fn attempts(self: &Arc<Self>, chat: &Chat, head: Head) -> Attempts {
        Attempts {
            gateway: Arc::clone(self),
            published: Arc::clone(&chat.published),
            route: Arc::clone(&chat.route),
            request: Arc::clone(&chat.request),
            raw: chat.raw.clone(),
            from: chat.dialect,
            headers: Arc::clone(&chat.headers),
            key: Arc::clone(&chat.principal.key),
            request_id: Arc::clone(&chat.request_id),
            started: clock::now(),
            deadline: chat.deadline,
            head,
            made: 0,
            waits: Waits::new(chat.deadline),
        }
    }

    /// A call for this client alone, which ends with it.
    fn direct(self: &Arc<Self>, chat: &Chat) -> Supply {
        let head: Head = Arc::default();
        let attempts = self.attempts(chat, Arc::clone(&head));
        Supply::Pending(Box::pin(attempts.run()), head)
    }

    /// A call for this client alone, which is read to its end even if the client leaves.
    fn launch_alone(self: &Arc<Self>, chat: &Chat, policy: Policy) -> Supply {
        let (pilot, reader) = self.cache.alone(policy);
        let call = self.call(chat, pilot, None);
        self.launch(chat, call, reader)
    }

    /// A stream is driven by a task of its own, since its readers read at their own pace; a whole answer by whoever
    /// leads, who waits for it anyway.
    fn launch(&self, chat: &Chat, call: BoxFuture<'static, ()>, reader: Reader<Arc<Failure>>) -> Supply {
        if chat.request.stream {
            self.tasks.spawn("flight", call);
            return Supply::flight(reader);
        }
        Supply::driven(reader, Drive::new(call, self.tasks.clone()))
    }

    fn call(
        self: &Arc<Self>,
        chat: &Chat,
        pilot: Pilot<Arc<Failure>>,
        keep: Option<(Scope, Key, Policy)>,
    ) -> BoxFuture<'static, ()> {
        let attempts = self.attempts(chat, pilot.head());
        let tools_kept = chat.route.cache.tool_calls;
        Box::pin(fly(Arc::clone(self), attempts, pilot, keep, tools_kept))
    }
}

/// What an operation comes to: an answer, or how to make one that takes the record along.
pub(in crate::ingress) enum Answered {
    Now(Response<Body>),
    Later(Box<dyn FnOnce(Record) -> Response<Body> + Send>),
}

/// Makes the call and writes its answer to all readers; keeps it if it may be kept.
async fn fly(
    gateway: Arc<Gateway>,
    attempts: Attempts,
    pilot: Pilot<Arc<Failure>>,
    keep: Option<(Scope, Key, Policy)>,
    tools_kept: bool,
) {
    let abandoned = pilot.abandoned();
    let end = {
        let mut call = pin!(answer(&gateway, attempts, &pilot, keep, tools_kept));
        tokio::select! {
            end = &mut call => end,
            // Dropping the call tells the provider to stop and settles what went by.
            () = abandoned.cancelled() => End::Broken(None),
        }
    };
    pilot.land(end);
}

async fn answer(
    gateway: &Gateway,
    attempts: Attempts,
    pilot: &Pilot<Arc<Failure>>,
    keep: Option<(Scope, Key, Policy)>,
    tools_kept: bool,
) -> End<Arc<Failure>> {
    let mut live = match attempts.run().await {
        Ok(live) => live,
        Err(failure) => return End::Broken(Some(Arc::new(failure))),
    };
    let mut fits = true;
    let mut body = None;
    loop {
        match live.next().await {
            Ok(Some(piece)) => {
                if let Piece::Whole { body: whole, .. } = &piece {
                    body = Some(whole.clone());
                }
                fits &= pilot.push(piece);
                pilot.room().await;
            }
            Ok(None) => break,
            Err(failure) => return End::Broken(Some(Arc::new(failure))),
        }
    }
    let cost = live.bill().and_then(|bill| bill.cost);
    if let (Some((scope, key, policy)), true, Some(reply)) = (keep, fits, live.take_reply()) {
        let Source { dialect, provider, model, cap, .. } = &live.source;
        // An answer that ended on a cap of ours is not what was asked for.
        if cacheable::reply(&reply, tools_kept, cap.is_some()).is_ok()
            && let Some(answer) = Answer::new(*dialect, provider, model, body, &reply)
        {
            gateway.cache.store(scope, key, &answer, policy.fresh_for, clock::now());
        }
    }
    End::Whole { cost }
}

/// A model's name as errors and the log repeat it: it may be as long as a body.
fn shown(model: &str) -> String {
    shortened(model, MODEL_MAX).to_owned()
}

/// The part of the cache the caller wants to stay in.
fn namespace(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let Some(value) = headers.get("x-lea-cache-namespace") else { return Ok(None) };
    let fit = value.to_str().ok().filter(|text| text.len() <= scope::NAMESPACE_MAX);
    let wanted = "visible ASCII of at most 128 characters";
    fit.map(Some).ok_or(Failure::BadHeader { name: "x-lea-cache-namespace", wanted })
}

fn api_failure(error: ApiError, path: &str) -> Failure {
    match error {
        ApiError::NotFound { .. } => Failure::UnknownPath { path: path.chars().take(200).collect() },
        ApiError::MethodNotAllowed { allow, .. } => Failure::MethodNotAllowed { allow },
        ApiError::NotJson { .. } => Failure::WrongContentType,
    }
}

fn identity_failure(error: &IdentityError) -> Failure {
    match error {
        IdentityError::Missing => Failure::NoKey,
        IdentityError::Unknown => Failure::UnknownKey,
        IdentityError::Expired { .. } => Failure::ExpiredKey,
        IdentityError::AdminOnly { .. } => Failure::AdminKey,
    }
}

fn queue_failure(error: &QueueError) -> Failure {
    match error {
        QueueError::RateLimited { limit, retry_after, standing } => {
            let (what, level) = match limit {
                Limit::Requests => ("requests", standing.requests),
                Limit::Tokens => ("tokens", standing.tokens),
            };
            Failure::RateLimited { what, limit: level.map_or(0, |level| level.limit), retry_after: *retry_after }
        }
        QueueError::TooFast { per_second, retry_after } => {
            Failure::TooFast { per_second: *per_second, retry_after: *retry_after }
        }
        QueueError::TooManyAtOnce { max } => Failure::TooManyAtOnce { max: *max },
        QueueError::Full => Failure::Busy,
    }
}

#[cfg(test)]
mod tests;
