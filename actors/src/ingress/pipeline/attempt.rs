//! One request's attempts: reserve, admit, call, and what to do when it fails, until a provider gives content.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::clock;
use cluster::directory::UnknownBudget;
use cluster::directory::key::Key;
use cluster::directory::price::TokenCounts;
use cluster::directory::provider::{OnUnknownFields, Provider};
use cluster::directory::route::{Route, Target};
use http::{HeaderMap, Response, StatusCode, header};
use llm::chat::{Block, ChatRequest};
use llm::dialect::Dialect;
use llm::dialect::compatible::{Vendor, vendor};
use llm::fault::{Fault, FaultKind};
use llm::{splice, tokens};
use tracing::warn;

use super::{Gateway, Published};
use crate::breaker::{Admission, Verdict};
use crate::cache::flight::{Cap, Head, Source};
use crate::ingress::error::Failure;
use crate::ingress::relay::{Live, Receipts};
use crate::provider::{
    Call, CallError, Credential, DEAD_FOR, Flag, Outcome, Spend, Standing, UpstreamBody, retry_after,
};
use crate::quota::{Account, Bound, Charge, Payer, QuotaError, Reservation, Waits};
use crate::routing::{FailureClass, Following, Health, Next, Situation};

/// The most of a provider's error page that is read.
const ERROR_BODY_MAX: usize = 64 * 1024;

/// How long a provider's error page may take.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a throttled provider is left alone where it does not say.
const THROTTLED_REST: Duration = Duration::from_secs(1);

/// The longest a provider is left alone for its `retry-after`: some say a date where seconds are meant.
const THROTTLED_REST_MAX: Duration = Duration::from_mins(10);

/// What the bound of an answer is where nobody says.
const OUTPUT_MAX: u64 = 128 * 1024;

/// Everything an attempt needs, owned, so that it can outlive the client's request.
pub struct Attempts {
    pub gateway: Arc<Gateway>,
    pub published: Arc<Published>,
    pub route: Arc<Route>,
    pub request: Arc<ChatRequest>,
    /// The request as it came.
    pub raw: Bytes,
    pub from: Dialect,
    pub headers: Arc<HeaderMap>,
    pub key: Arc<Key>,
    pub request_id: Arc<str>,
    pub started: Instant,
    pub deadline: Instant,
    pub head: Head,
    /// Calls made so far.
    pub made: u32,
    /// How long it may still wait for budgets.
    pub waits: Waits,
}

/// An attempt that failed, and what that says of the next.
struct Failed {
    failure: Failure,
    class: FailureClass,
}

/// What to do after a candidate.
enum Then {
    Answer(Box<Live>),
    /// It was not called: on to the next.
    Skip,
    /// Its budgets said no: on to the next, which may cost less.
    Refused(Failure),
    /// On to the next, after a pause.
    Next(Duration),
    /// From the first again, after a pause.
    Again(Duration),
    Stop,
}

impl Spend for Reservation {
    type Charge = Charge;

    fn dispatch(self) -> Charge {
        Reservation::dispatch(self)
    }
}

impl Attempts {
    /// Tries candidates until one gives content. The failure returned is the last real cause; that budgets said no is one
    /// only where nothing else kept an answer back, since who is told so does not try again.
    pub async fn run(mut self) -> Result<Box<Live>, Failure> {
        let deadline = self.deadline;
        let budget = deadline.saturating_duration_since(self.started);
        match tokio::time::timeout_at(deadline.into(), self.through_candidates()).await {
            Ok(result) => result,
            Err(_elapsed) => Err(Failure::DeadlineExceeded { after: budget }),
        }
    }

    async fn through_candidates(&mut self) -> Result<Box<Live>, Failure> {
        let route = Arc::clone(&self.route);
        let gateway = Arc::clone(&self.gateway);
        let now = clock::now();
        let health = Health::of(&route, |provider| gateway.usable(provider, now));
        let plan = gateway.routing.plan(&route, &health, now);
        let (mut last, mut refused, mut skipped) = (None, None, None);
        let mut index = 0;
        while let Some(candidate) = plan.candidates.get(index) {
            let then = self.candidate(candidate.target, plan.following(index), false, &mut last).await;
            match then {
                Then::Answer(live) => return Ok(live),
                Then::Skip => {
                    skipped.get_or_insert(index);
                    index += 1;
                }
                Then::Refused(failure) => {
                    refused.get_or_insert(failure);
                    index += 1;
                }
                Then::Next(pause) => {
                    tokio::time::sleep(pause).await;
                    index += 1;
                }
                Then::Again(pause) => {
                    tokio::time::sleep(pause).await;
                    index = 0;
                }
                Then::Stop => break,
            }
        }
        // The breaker of every one that can be paid is open: one call all the same, so that an outage that is over is noticed.
        if self.made == 0
            && last.is_none()
            && let Some(candidate) = skipped.and_then(|index| plan.candidates.get(index))
        {
            match self.candidate(candidate.target, Following::Nothing, true, &mut last).await {
                Then::Answer(live) => return Ok(live),
                Then::Refused(failure) => refused = Some(failure),
                Then::Skip | Then::Next(_) | Then::Again(_) | Then::Stop => {}
            }
        }
        Err(last.or(refused).unwrap_or_else(|| Failure::NoHealthyUpstream { route: route.name.to_string() }))
    }

    /// Asks the first target's provider to count, if its dialect has that. `None` where it has not, or will not: the
    /// caller estimates then.
    pub async fn count_tokens(self) -> Option<Bytes> {
        let target = self.route.targets.first()?;
        let provider = self.published.directory.provider(&target.provider)?;
        let vendor = vendor(&provider.kind)?;
        if vendor.dialect != Dialect::AnthropicMessages || self.from != Dialect::AnthropicMessages {
            return None;
        }
        let credential = self.gateway.providers.pick(&provider.name, &[], clock::now())?;
        let admission = self.admit(provider, false)?;
        let reservation = self.gateway.quota.free(&self.account(provider));
        let change = splice::Change { model: Some(&target.model), ..splice::Change::default() };
        let call = Call {
            provider,
            credential: &credential,
            dialect: vendor.dialect,
            path: "/messages/count_tokens",
            body: Bytes::from(splice::splice(self.from, &self.raw, &change)),
            headers: &self.headers,
            stream: false,
            head_by: clock::now() + provider.timeouts.first_token,
        };
        // The client's own haste is no fault of the provider: dropped, the call says nothing about it.
        let called = self.gateway.providers.call(call, reservation, admission);
        match tokio::time::timeout_at(self.deadline.into(), called).await.ok()? {
            Outcome::Head { response, charge, admission } => {
                charge.void();
                let counted = response.status() == StatusCode::OK;
                admission.finish(if counted { Verdict::Success } else { Verdict::Neutral }, clock::now());
                let read = response.into_body().whole(ERROR_BODY_MAX);
                let body = tokio::time::timeout(ERROR_BODY_TIMEOUT, read).await.ok()?.ok()?;
                counted.then_some(body)
            }
            Outcome::Failed { error, charge, admission } => {
                charge.void();
                let verdict = if error.blames_provider() { Verdict::Failure } else { Verdict::Neutral };
                admission.finish(verdict, clock::now());
                None
            }
        }
    }

    /// One target, with one credential after the other.
    async fn candidate(
        &mut self,
        target: &Target,
        following: Following,
        last_resort: bool,
        last: &mut Option<Failure>,
    ) -> Then {
        let Some(provider) = self.published.directory.provider(&target.provider).cloned() else { return Then::Skip };
        let Some(vendor) = vendor(&provider.kind) else { return Then::Skip };
        let mut tried = Vec::new();
        loop {
            let now = clock::now();
            let Some(credential) = self.gateway.providers.pick(&provider.name, &tried, now) else {
                if let Some(failure) = self.without_credentials(&provider, now) {
                    last.get_or_insert(failure);
                }
                return Then::Skip;
            };
            // Money first: it may have to be waited for, and a probe is not held meanwhile.
            let reserved = self.reserve(target, &provider, vendor).await;
            self.waits = self.waits.less(clock::now().saturating_duration_since(now));
            let reservation = match reserved {
                Ok(reservation) => reservation,
                Err(failure @ Failure::BudgetUnanswered { .. }) => {
                    *last = Some(failure);
                    return Then::Stop;
                }
                Err(failure) if failure.tells_of_payer() => return Then::Refused(failure),
                Err(failure) => {
                    last.get_or_insert(failure);
                    return Then::Skip;
                }
            };
            let Some(admission) = self.admit(&provider, last_resort) else {
                if let Some(retry_after) = self.gateway.throttled(&provider.name, now) {
                    let provider = provider.name.to_string();
                    last.get_or_insert(Failure::Throttled { provider, retry_after: Some(retry_after) });
                }
                return Then::Skip;
            };
            tried.push(credential.index());
            let failed = match self.attempt(target, &provider, vendor, &credential, reservation, admission).await {
                Ok(live) => return Then::Answer(live),
                Err(failed) => failed,
            };
            self.tell(&provider, &failed);
            *last = Some(failed.failure);
            let now = clock::now();
            let situation = Situation {
                attempts: self.made,
                attempts_max: self.route.retries.attempts_max.get(),
                content_sent: false,
                credential_left: self.gateway.providers.pick(&provider.name, &tried, now).is_some(),
                following,
                time_left: self.deadline.saturating_duration_since(now),
                random: self.gateway.routing.random(),
            };
            match self.gateway.routing.next(failed.class, &situation, now) {
                Next::NextCredential => {}
                Next::NextCandidate { after } => return Then::Next(after),
                Next::Again { after } => return Then::Again(after),
                Next::GiveUp => return Then::Stop,
            }
        }
    }

    /// Why a provider that has credentials has none to use.
    fn without_credentials(&self, provider: &Provider, now: Instant) -> Option<Failure> {
        let name = provider.name.to_string();
        match self.gateway.providers.standing(&provider.name, now)? {
            Standing::Usable => None,
            Standing::Throttled { until } => {
                let retry_after = Some(until.saturating_duration_since(now));
                Some(Failure::Throttled { provider: name, retry_after })
            }
            Standing::Dead { .. } => Some(Failure::CredentialsExhausted { provider: name, status: None }),
        }
    }

    fn admit(&self, provider: &Provider, last_resort: bool) -> Option<Admission> {
        let breaker = self.gateway.breakers.get(&provider.name)?;
        if last_resort { Some(Admission::last_resort(&breaker)) } else { breaker.admit(clock::now()) }
    }

    /// For whoever looks why an answer was late, or came from elsewhere.
    fn tell(&self, provider: &Provider, failed: &Failed) {
        warn!(request_id = %self.request_id, provider = %provider.name, class = failed.class.name(),
            cause = failed.failure.message(), attempt = self.made, "attempt failed");
    }

    /// Sets aside what the call may cost at most, in all its budgets.
    async fn reserve(&self, target: &Target, provider: &Provider, vendor: &Vendor) -> Result<Reservation, Failure> {
        let directory = &self.published.directory;
        let budgets = directory
            .budgets_of(&self.key, &provider.name, &target.model)
            .map_err(|UnknownBudget { name }| Failure::BudgetUnknown { budget: name })?;
        let price = directory.price(&provider.name, &target.model).cloned();
        let (account, bound) = (self.account(provider), self.bound(target, vendor));
        let payer = Payer { account: &account, budgets: &budgets, end_user: self.request.end_user.as_deref() };
        let reserved = self.gateway.quota.reserve(payer, bound, price, self.waits).await;
        reserved.map_err(|error| match error {
            QuotaError::Exceeded(exceeded) if directory.shape().is_of_payer(&self.key, &exceeded.budget.name) => {
                Failure::BudgetExceeded(exceeded)
            }
            // How that stands is nothing that its callers are to learn.
            QuotaError::Exceeded(exceeded) => {
                Failure::TargetBudgetExceeded { budget: exceeded.budget.name.to_string() }
            }
            QuotaError::Unpriced { budget } => {
                let model = format!("{}/{}", target.provider, target.model);
                Failure::Unpriced { budget: budget.to_string(), model }
            }
            QuotaError::Crowded { budget } => Failure::BudgetCrowded { budget: budget.to_string() },
            QuotaError::Unanswered { waited } => Failure::BudgetUnanswered { waited },
            QuotaError::Full => Failure::Busy,
        })
    }

    async fn attempt(
        &mut self,
        target: &Target,
        provider: &Arc<Provider>,
        vendor: &Vendor,
        credential: &Credential,
        reservation: Reservation,
        admission: Admission,
    ) -> Result<Box<Live>, Failed> {
        let cap = reservation.cap();
        let body = self.body(target, provider, vendor, cap)?;
        self.made += 1;
        let needed = self.cap(vendor).map(|tokens| Cap { tokens, of_budget: false });
        let source = Source {
            dialect: vendor.dialect,
            provider: Arc::clone(&target.provider),
            model: Arc::clone(&target.model),
            attempts: self.made,
            cap: cap.map(|tokens| Cap { tokens, of_budget: true }).or(needed),
        };
        self.head.lock().asked = Some(source.clone());
        let first_by = self.first_content_by(provider);
        let call = Call {
            provider,
            credential,
            dialect: vendor.dialect,
            path: chat_path(vendor.dialect),
            body,
            headers: &self.headers,
            stream: self.request.stream,
            head_by: first_by,
        };
        match self.gateway.providers.call(call, reservation, admission).await {
            Outcome::Head { response, charge, admission } => {
                self.answered(source, provider, credential, response, Receipts::new(charge, admission), first_by).await
            }
            Outcome::Failed { error, charge, admission } => {
                // Otherwise the charge is dropped, which costs the full bound: the provider may have begun.
                if error.nothing_written() {
                    charge.void();
                }
                let verdict = if error.blames_provider() { Verdict::Failure } else { Verdict::Neutral };
                admission.finish(verdict, clock::now());
                warn!(request_id = %self.request_id, provider = %provider.name, cause = causes(&error), "call failed");
                Err(failed_call(&source, &error))
            }
        }
    }

    /// The request in the provider's dialect, its answers capped at so many tokens where the client did not cap them.
    fn body(&self, target: &Target, provider: &Provider, vendor: &Vendor, cap: Option<u64>) -> Result<Bytes, Failed> {
        if vendor.dialect == self.from {
            let change = splice::Change {
                model: Some(&target.model),
                include_usage: self.request.stream && vendor.quirks.supports_stream_usage,
                output_max: cap,
                max_tokens_field: vendor.quirks.max_tokens_field,
            };
            return Ok(Bytes::from(splice::splice(self.from, &self.raw, &change)));
        }
        let mut request = ChatRequest::clone(&self.request);
        request.model = target.model.to_string();
        request.include_usage = self.request.stream;
        request.output_max = request.output_max.or(cap);
        let encoded = vendor.dialect.encode_request(&request, self.from, &vendor.quirks);
        let strict = provider.on_unknown_fields == OnUnknownFields::Refuse;
        if let Some(field) = encoded.dropped.iter().find(|field| strict || decides(field)) {
            let failure = Failure::Untranslatable { field: field.clone(), provider: target.provider.to_string() };
            return Err(Failed { failure, class: FailureClass::NotFound });
        }
        Ok(Bytes::from(encoded.body))
    }

    /// The cap on output tokens the provider needs and the client did not give.
    fn cap(&self, vendor: &Vendor) -> Option<u64> {
        let translated = vendor.dialect == Dialect::AnthropicMessages && self.from != vendor.dialect;
        (translated && self.request.output_max.is_none()).then_some(vendor.quirks.output_required_default)
    }

    /// Who pays.
    fn account(&self, provider: &Provider) -> Account {
        Account {
            tenant: Arc::clone(&self.key.tenant),
            provider: Arc::clone(&provider.name),
            route: Arc::clone(&self.route.label),
        }
    }

    /// An upper bound of what this attempt can be billed for.
    fn bound(&self, target: &Target, vendor: &Vendor) -> Bound {
        let facts = self.published.directory.facts(&target.provider, &target.model);
        let wanted = self.request.output_max.or(self.cap(vendor)).unwrap_or(u64::MAX);
        let each = wanted.min(facts.output_max.unwrap_or(OUTPUT_MAX));
        let choices = u64::from(self.request.choices.max(1));
        let tokens = TokenCounts {
            input: tokens::input_upper_bound(&self.request).min(facts.context.unwrap_or(u64::MAX)),
            output: each.saturating_mul(choices),
            images: images(&self.request),
            calls: 1,
            ..TokenCounts::default()
        };
        let hidden_reasoning = facts.hidden_reasoning || asks_to_think(&self.request);
        // A cap below what the client lets the model think would be refused.
        let named = self.request.output_max.is_some() || self.request.extra.contains_key("thinking");
        let may_cap = if named { 0 } else { choices };
        Bound { tokens, hidden_reasoning, may_cap }
    }

    /// When the first content must be there: for an answer that comes whole, when all of it must.
    /// The request's own deadline is not looked at: [`Attempts::run`] ends at it, and a hasty client is no fault of the provider.
    fn first_content_by(&self, provider: &Provider) -> Instant {
        let timeout = if self.request.stream {
            self.route.first_token_timeout.unwrap_or(provider.timeouts.first_token)
        } else {
            provider.timeouts.total
        };
        clock::now() + timeout
    }

    async fn answered(
        &mut self,
        source: Source,
        provider: &Provider,
        credential: &Credential,
        response: Response<UpstreamBody>,
        receipts: Receipts,
        first_by: Instant,
    ) -> Result<Box<Live>, Failed> {
        if !response.status().is_success() {
            // Boxed, as it is rare: the future of every attempt is as large as the largest it may wait for.
            return Err(Box::pin(self.refused(&source, provider, credential, response, receipts)).await);
        }
        let streams = is_event_stream(response.headers());
        let body = response.into_body();
        let mut live = Box::new(if streams {
            Live::stream(source.clone(), credential.clone(), body, receipts)
        } else {
            Live::whole(source.clone(), credential.clone(), body, receipts, self.gateway.reply_max())
        });
        self.head.lock().answers = Some(source.clone());
        match tokio::time::timeout_at(first_by.into(), live.until_content()).await {
            Ok(Ok(())) => Ok(live),
            Ok(Err(failure)) => {
                let class = class_of(&failure);
                Err(Failed { failure, class })
            }
            Err(_elapsed) => {
                live.give_up();
                let provider = source.provider.to_string();
                let failure = Failure::UpstreamTimeout { provider, what: "no content in time" };
                Err(Failed { failure, class: FailureClass::Timeout })
            }
        }
    }

    /// A status that is no success: what it means, with the charge, the credential and the breaker told.
    async fn refused(
        &self,
        source: &Source,
        provider: &Provider,
        credential: &Credential,
        response: Response<UpstreamBody>,
        receipts: Receipts,
    ) -> Failed {
        let status = response.status();
        let retry_after = retry_after(response.headers()).map(|wait| wait.min(THROTTLED_REST_MAX));
        // Nothing is charged for a refusal, however long its page takes.
        let admission = receipts.void();
        let mut body = response.into_body();
        let page = tokio::time::timeout(ERROR_BODY_TIMEOUT, body.up_to(ERROR_BODY_MAX)).await.unwrap_or_default();
        let mut fault = if status.is_client_error() || status.is_server_error() {
            source.dialect.decode_error(status.as_u16(), &page)
        } else {
            unexpected(status)
        };
        credential.strike_from(&mut fault);
        let now = clock::now();
        let verdict = match fault.kind {
            FaultKind::Throttled => {
                let for_ = retry_after.unwrap_or(THROTTLED_REST);
                self.gateway.providers.flag(provider, credential, Flag::Throttled, now + for_);
                // Other credentials may have room left.
                match self.gateway.providers.standing(&provider.name, now) {
                    Some(Standing::Usable) => Verdict::Neutral,
                    Some(Standing::Throttled { .. } | Standing::Dead { .. }) | None => Verdict::Throttled { for_ },
                }
            }
            FaultKind::Credential => {
                self.gateway.providers.flag(provider, credential, Flag::Dead, now + DEAD_FOR);
                warn!(provider = %provider.name, credential = credential.index(), "the provider refused our credential");
                Verdict::Neutral
            }
            FaultKind::Overloaded | FaultKind::Server | FaultKind::Timeout | FaultKind::Malformed => Verdict::Failure,
            FaultKind::ContextLength | FaultKind::ContentFilter | FaultKind::NotFound | FaultKind::BadRequest => {
                Verdict::Success
            }
        };
        if let Some(admission) = admission {
            admission.finish(verdict, now);
        }
        told(source, fault, retry_after)
    }
}

/// Reasoning is billed whether or not it is shown, and what is shown may be a summary.
fn asks_to_think(request: &ChatRequest) -> bool {
    ["thinking", "reasoning_effort", "reasoning"].iter().any(|field| request.extra.contains_key(*field))
}

fn images(request: &ChatRequest) -> u64 {
    let blocks = request.messages.iter().flat_map(|message| &message.blocks);
    let count = blocks.map(|block| match block {
        Block::Image { .. } => 1,
        Block::ToolResult { content, .. } => {
            content.iter().filter(|block| matches!(block, Block::Image { .. })).count()
        }
        Block::Text { .. }
        | Block::ToolUse { .. }
        | Block::Refusal { .. }
        | Block::Thinking { .. }
        | Block::Other { .. } => 0,
    });
    u64::try_from(count.sum::<usize>()).unwrap_or(u64::MAX)
}

/// An error with all its causes: an address, what the system said.
fn causes(error: &CallError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The path of the chat operation, below the provider's base URL.
fn chat_path(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAiChat => "/chat/completions",
        Dialect::AnthropicMessages => "/messages",
    }
}

/// Fields whose loss would change what the client gets: such a request is refused rather than answered otherwise.
fn decides(field: &str) -> bool {
    matches!(field, "n" | "response_format" | "tools" | "logprobs" | "audio" | "modalities")
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
}

/// Neither a success nor an error: a redirect, which is never followed.
fn unexpected(status: StatusCode) -> Fault {
    Fault {
        kind: FaultKind::Malformed,
        status: Some(status.as_u16()),
        message: format!("status {} where an answer was expected; redirects are not followed", status.as_u16()),
        code: None,
        error_type: None,
        param: None,
    }
}

/// A fault as the client may be told, and what it says of the next attempt.
fn told(source: &Source, fault: Fault, retry_after: Option<Duration>) -> Failed {
    let provider = source.provider.to_string();
    let status = fault.status;
    let (failure, class) = match fault.kind {
        FaultKind::Credential => (Failure::CredentialsExhausted { provider, status }, FailureClass::Credential),
        FaultKind::Throttled => (Failure::Throttled { provider, retry_after }, FailureClass::Throttled),
        FaultKind::Overloaded => (Failure::Overloaded { provider, status }, FailureClass::Overloaded),
        FaultKind::Server => {
            let what = format!("status {}", status.unwrap_or_default());
            (Failure::Upstream { provider, what, status }, FailureClass::Server)
        }
        FaultKind::Timeout => {
            (Failure::UpstreamTimeout { provider, what: "it gave up waiting" }, FailureClass::Timeout)
        }
        FaultKind::ContextLength => {
            (Failure::ContextLength { provider, fault: Box::new(fault) }, FailureClass::ContextLength)
        }
        FaultKind::ContentFilter => {
            (Failure::ContentFilter { provider, fault: Box::new(fault) }, FailureClass::BadRequest)
        }
        FaultKind::NotFound => {
            let model = source.model.to_string();
            (Failure::UnknownUpstreamModel { provider, model, status }, FailureClass::NotFound)
        }
        FaultKind::BadRequest => (Failure::Rejected { provider, fault: Box::new(fault) }, FailureClass::BadRequest),
        FaultKind::Malformed => (Failure::Upstream { provider, what: fault.message, status }, FailureClass::Malformed),
    };
    Failed { failure, class }
}

fn failed_call(source: &Source, error: &CallError) -> Failed {
    let provider = source.provider.to_string();
    if error.is_timeout() {
        let failure = Failure::UpstreamTimeout { provider, what: error.what() };
        return Failed { failure, class: FailureClass::Timeout };
    }
    let failure = Failure::Upstream { provider, what: error.what().to_owned(), status: None };
    Failed { failure, class: FailureClass::Connect }
}

/// The class of a failure that came after a good head and before content.
fn class_of(failure: &Failure) -> FailureClass {
    match failure.row().code {
        "upstream_throttled" => FailureClass::Throttled,
        "upstream_overloaded" => FailureClass::Overloaded,
        "upstream_timeout" => FailureClass::Timeout,
        "context_length_exceeded" => FailureClass::ContextLength,
        "upstream_rejected" | "content_filter" | "reply_too_large" => FailureClass::BadRequest,
        "upstream_credentials_exhausted" => FailureClass::Credential,
        _ => FailureClass::Malformed,
    }
}
