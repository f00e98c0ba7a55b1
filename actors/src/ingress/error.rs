//! Every failure of a request, and what the client is told: status, body in the dialect called, headers.
//!
//! This is the only place that knows status codes of our own; [`Failure::row`] is the one exhaustive match.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use llm::dialect::{BadRequest, Dialect};
use llm::fault::{ErrorBody, Fault};

use crate::gate;
use crate::ingress::body::Body;
use crate::quota::Exceeded;

/// The longest `retry-after` a client is told, whatever a provider says: official SDKs sleep for as long as it says.
pub const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// Why a request got no answer. Told once to the client, the log and the metrics.
#[derive(Clone, Debug)]
pub enum Failure {
    UnknownPath {
        path: String,
    },
    MethodNotAllowed {
        allow: &'static str,
    },
    WrongContentType,
    NoKey,
    UnknownKey,
    ExpiredKey,
    AdminKey,
    /// The key was revoked while the request ran, and running requests were to end.
    RevokedKey,
    Invalid(BadRequest),
    /// A header of ours that says nothing sensible.
    BadHeader {
        name: &'static str,
        wanted: &'static str,
    },
    /// Bytes no HTTP request may consist of.
    BadHttp {
        what: &'static str,
    },
    BodyTooLarge {
        bytes_max: u64,
    },
    BodyTooSlow {
        waited: Duration,
    },
    BodyBroken,
    ModelNotAllowed {
        model: String,
    },
    UnknownModel {
        model: String,
    },
    RateLimited {
        what: &'static str,
        limit: u64,
        retry_after: Duration,
    },
    /// The key's requests came faster than they may.
    TooFast {
        per_second: u32,
        retry_after: Duration,
    },
    /// As many requests of the key are under way as may be at once.
    TooManyAtOnce {
        max: u32,
    },
    /// The ledger said that less is left of a budget than the request may cost.
    BudgetExceeded(Box<Exceeded>),
    /// The same of a budget of the provider or the model.
    TargetBudgetExceeded {
        budget: String,
    },
    /// The request is to fit in a budget that this node does not know, so nobody can say that it does.
    BudgetUnknown {
        budget: String,
    },
    /// The ledger keeps accounts of so many of the budget's end users, and not of this one.
    BudgetCrowded {
        budget: String,
    },
    /// Nobody who could say no has answered.
    BudgetUnanswered {
        waited: Duration,
    },
    /// A budget in money, and a target nobody knows the price of.
    Unpriced {
        budget: String,
        model: String,
    },
    Busy,
    NotCached,
    /// The request asks for what no target of the route can be asked for.
    Untranslatable {
        field: String,
        provider: String,
    },
    /// The provider finds the request itself wrong.
    Rejected {
        provider: String,
        fault: Box<Fault>,
    },
    ContextLength {
        provider: String,
        fault: Box<Fault>,
    },
    ContentFilter {
        provider: String,
        fault: Box<Fault>,
    },
    UnknownUpstreamModel {
        provider: String,
        model: String,
        status: Option<u16>,
    },
    Throttled {
        provider: String,
        retry_after: Option<Duration>,
    },
    Overloaded {
        provider: String,
        status: Option<u16>,
    },
    /// 5xx, no connection, a reset, or an answer that is none.
    Upstream {
        provider: String,
        what: String,
        status: Option<u16>,
    },
    /// A whole answer is over a bound of ours.
    ReplyTooLarge {
        provider: String,
        bytes_max: usize,
    },
    UpstreamTimeout {
        provider: String,
        what: &'static str,
    },
    CredentialsExhausted {
        provider: String,
        status: Option<u16>,
    },
    NoHealthyUpstream {
        route: String,
    },
    /// The caller's own time, or the route's, is over.
    DeadlineExceeded {
        after: Duration,
    },
    /// The stream stopped before its end.
    Cut {
        provider: String,
        what: String,
    },
    /// What this node knows of the cluster is not, or not yet, fresh enough to serve on.
    ClusterUnavailable {
        why: gate::Closed,
    },
    Stopping,
    Internal,
}

/// A line of the error reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRow {
    /// Its name in metrics, logs and docs.
    pub case: &'static str,
    pub status: u16,
    /// OpenAI's `type`; Anthropic's follows from it and the status.
    pub error_type: &'static str,
    pub code: &'static str,
    /// Headers beyond `x-request-id`.
    pub headers: &'static str,
    pub what_to_do: &'static str,
}

macro_rules! rows {
    ($($name:ident: $status:literal, $type:literal, $code:literal, $headers:literal, $what:literal;)*) => {
        mod row {
            use super::ErrorRow;
            $(pub const $name: ErrorRow = ErrorRow {
                case: $code, status: $status, error_type: $type, code: $code, headers: $headers, what_to_do: $what,
            };)*
        }

        /// Every error a client can get from this gateway.
        pub fn table() -> &'static [ErrorRow] {
            &[$(row::$name,)*]
        }
    };
}

rows! {
    UNKNOWN_PATH: 404, "invalid_request_error", "unknown_route", "", "Check the base URL and path; the README lists what is served.";
    METHOD: 405, "invalid_request_error", "method_not_allowed", "allow", "Use the method named in `allow`.";
    CONTENT_TYPE: 415, "invalid_request_error", "unsupported_media_type", "", "Send `content-type: application/json`, without a content encoding.";
    NO_KEY: 401, "invalid_request_error", "missing_api_key", "", "Send the key as `Authorization: Bearer …` or `x-api-key: …`.";
    UNKNOWN_KEY: 401, "invalid_request_error", "invalid_api_key", "", "Check the key; `llm-edge-agent keys new` makes one.";
    EXPIRED_KEY: 401, "invalid_request_error", "expired_api_key", "", "Ask the operator for a new key.";
    ADMIN_KEY: 403, "permission_denied", "admin_key", "", "A key with roles is for the admin API only; call with a key that has none.";
    REVOKED_KEY: 401, "invalid_request_error", "api_key_revoked", "", "The key was revoked while the request ran; ask the operator for a new one.";
    INVALID: 400, "invalid_request_error", "invalid_request", "", "`param` names the field, the message what was wanted.";
    DEEP: 400, "invalid_request_error", "too_deep", "", "Nest JSON at most 64 levels deep.";
    BAD_HEADER: 400, "invalid_request_error", "invalid_header", "", "The message names the header and what it takes.";
    BAD_HTTP: 400, "invalid_request_error", "bad_http", "connection: close", "The request is ambiguous as HTTP; use an ordinary client.";
    BODY_TOO_LARGE: 413, "invalid_request_error", "body_too_large", "connection: close", "Send less, or raise `limits.body_max`.";
    BODY_TOO_SLOW: 408, "invalid_request_error", "body_timeout", "connection: close", "Send the body faster, or raise `limits.body_timeout`.";
    BODY_BROKEN: 400, "invalid_request_error", "body_incomplete", "connection: close", "The connection broke before the body was whole; send it again.";
    MODEL_NOT_ALLOWED: 403, "permission_denied", "model_not_allowed", "", "Use a model of the key's list (`GET /v1/models`), or have it extended.";
    UNKNOWN_MODEL: 404, "invalid_request_error", "model_not_found", "", "Use a route's name or `provider/model`; `GET /v1/models` lists them.";
    RATE_LIMITED: 429, "rate_limit_error", "rate_limit_exceeded", "retry-after, retry-after-ms, x-ratelimit-*", "Wait as long as `retry-after` says. No `x-ratelimit-*` where it was the limit a second or at once.";
    BUDGET: 429, "rate_limit_error", "budget_exceeded", "x-should-retry: false", "The message names the budget and, unless it is of the provider or the model, its limit and when it resets: wait for that, ask for a shorter answer, or have the limit raised. `llm-edge-agent budget show` tells what is left. In Anthropic's dialect its type is `billing_error`.";
    BUDGET_UNKNOWN: 403, "permission_denied", "budget_unknown", "", "The key, its team or tenant, the provider or the model names a budget that the node does not know; the operator makes it, or takes its name out there.";
    UNPRICED: 403, "permission_denied", "model_not_priced", "", "A budget in US dollars needs the model's price; the operator adds it under `prices`.";
    BUSY: 503, "server_error", "overloaded", "retry-after", "The node is at `queue.requests_max`, or too many calls wait for budgets there, or it knows too many end users of them; try again, or add a node.";
    NOT_CACHED: 504, "invalid_request_error", "not_cached", "", "Leave out `cache-control: only-if-cached`.";
    UNTRANSLATABLE: 400, "invalid_request_error", "untranslatable", "", "Leave out the field in `param`, or use a model of a provider that has it.";
    REJECTED: 400, "invalid_request_error", "upstream_rejected", "x-lea-upstream-status", "The provider refused the request itself; the message says why.";
    CONTEXT_LENGTH: 400, "invalid_request_error", "context_length_exceeded", "x-lea-upstream-status", "Send a shorter conversation, or use a model with a larger context.";
    CONTENT_FILTER: 400, "invalid_request_error", "content_filter", "x-lea-upstream-status", "The provider's content filter refused the prompt.";
    UPSTREAM_MODEL: 404, "invalid_request_error", "upstream_model_not_found", "x-lea-upstream-status", "The provider does not know the model; check the route's target.";
    THROTTLED: 429, "rate_limit_error", "upstream_throttled", "retry-after, retry-after-ms", "Every target is throttled; wait as long as `retry-after` says.";
    OVERLOADED: 503, "server_error", "upstream_overloaded", "retry-after, x-lea-upstream-status", "The providers have no room; try again (Anthropic's dialect: status 529).";
    UPSTREAM: 502, "upstream_error", "upstream_error", "x-lea-upstream-status", "The provider failed; try again. The log has the cause under the request id.";
    REPLY_TOO_LARGE: 502, "upstream_error", "reply_too_large", "", "Ask for less, stream the answer, or raise `limits.reply_max`.";
    UPSTREAM_TIMEOUT: 504, "timeout", "upstream_timeout", "", "The provider was too slow; try again or raise the provider's timeouts.";
    CREDENTIALS: 502, "upstream_error", "upstream_credentials_exhausted", "x-lea-upstream-status", "The provider refuses the gateway's keys; the operator must renew them.";
    NO_UPSTREAM: 503, "upstream_error", "no_healthy_upstream", "retry-after", "Every target's breaker is open; try again shortly.";
    DEADLINE: 504, "timeout", "timeout", "", "The request's time (`x-lea-timeout`, or the route's) is over.";
    CUT: 502, "upstream_error", "upstream_cut", "", "The provider's answer stopped before its end; what came is not whole. Send the request again.";
    CLUSTER: 503, "server_error", "cluster_unavailable", "retry-after", "The node is out of touch with its cluster, or nobody could say in time whether a budget has room; try again, another may answer. Where the node is not ready, `readyz` says which check fails.";
    STOPPING: 503, "server_error", "shutting_down", "retry-after, connection: close", "The node is stopping; try again, another will answer.";
    INTERNAL: 500, "server_error", "internal_error", "", "A bug in the gateway; report it with the request id and the log.";
}

impl Failure {
    /// It tells of the budgets of who made the call.
    pub const fn tells_of_payer(&self) -> bool {
        matches!(
            self,
            Self::BudgetExceeded(_)
                | Self::TargetBudgetExceeded { .. }
                | Self::BudgetUnknown { .. }
                | Self::BudgetCrowded { .. }
                | Self::BudgetUnanswered { .. }
                | Self::Unpriced { .. }
        )
    }

    /// The one place a failure gets its status, type and code.
    pub fn row(&self) -> ErrorRow {
        use llm::dialect::BadRequestKind as Kind;
        match self {
            Self::UnknownPath { .. } => row::UNKNOWN_PATH,
            Self::MethodNotAllowed { .. } => row::METHOD,
            Self::WrongContentType => row::CONTENT_TYPE,
            Self::NoKey => row::NO_KEY,
            Self::UnknownKey => row::UNKNOWN_KEY,
            Self::ExpiredKey => row::EXPIRED_KEY,
            Self::AdminKey => row::ADMIN_KEY,
            Self::RevokedKey => row::REVOKED_KEY,
            Self::Invalid(bad) => match bad.kind {
                Kind::Depth => row::DEEP,
                Kind::Syntax { .. } | Kind::DuplicateKey | Kind::Missing | Kind::Invalid | Kind::Unsupported => {
                    row::INVALID
                }
            },
            Self::BadHeader { .. } => row::BAD_HEADER,
            Self::BadHttp { .. } => row::BAD_HTTP,
            Self::BodyTooLarge { .. } => row::BODY_TOO_LARGE,
            Self::BodyTooSlow { .. } => row::BODY_TOO_SLOW,
            Self::BodyBroken => row::BODY_BROKEN,
            Self::ModelNotAllowed { .. } => row::MODEL_NOT_ALLOWED,
            Self::UnknownModel { .. } => row::UNKNOWN_MODEL,
            Self::RateLimited { .. } | Self::TooFast { .. } | Self::TooManyAtOnce { .. } => row::RATE_LIMITED,
            Self::BudgetExceeded(_) | Self::TargetBudgetExceeded { .. } | Self::BudgetCrowded { .. } => row::BUDGET,
            Self::BudgetUnknown { .. } => row::BUDGET_UNKNOWN,
            Self::Unpriced { .. } => row::UNPRICED,
            Self::Busy => row::BUSY,
            Self::NotCached => row::NOT_CACHED,
            Self::Untranslatable { .. } => row::UNTRANSLATABLE,
            Self::Rejected { .. } => row::REJECTED,
            Self::ContextLength { .. } => row::CONTEXT_LENGTH,
            Self::ContentFilter { .. } => row::CONTENT_FILTER,
            Self::UnknownUpstreamModel { .. } => row::UPSTREAM_MODEL,
            Self::Throttled { .. } => row::THROTTLED,
            Self::Overloaded { .. } => row::OVERLOADED,
            Self::Upstream { .. } => row::UPSTREAM,
            Self::ReplyTooLarge { .. } => row::REPLY_TOO_LARGE,
            Self::UpstreamTimeout { .. } => row::UPSTREAM_TIMEOUT,
            Self::CredentialsExhausted { .. } => row::CREDENTIALS,
            Self::NoHealthyUpstream { .. } => row::NO_UPSTREAM,
            Self::DeadlineExceeded { .. } => row::DEADLINE,
            Self::Cut { .. } => row::CUT,
            Self::BudgetUnanswered { .. } | Self::ClusterUnavailable { .. } => row::CLUSTER,
            Self::Stopping => row::STOPPING,
            Self::Internal => row::INTERNAL,
        }
    }

    /// What the client reads. No secret, no address of ours.
    pub fn message(&self) -> String {
        match self {
            Self::UnknownPath { path } => format!("there is nothing at `{path}`"),
            Self::MethodNotAllowed { allow } => format!("this path takes {allow}"),
            Self::WrongContentType => "the body must be `application/json`, not encoded".to_owned(),
            Self::NoKey => "no API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`".to_owned(),
            Self::UnknownKey => "this API key is not known here".to_owned(),
            Self::ExpiredKey => "this API key has expired".to_owned(),
            Self::AdminKey => "this API key has roles, so it is for the admin API only".to_owned(),
            Self::RevokedKey => "this API key was revoked".to_owned(),
            Self::Invalid(bad) => bad.message.clone(),
            Self::BadHeader { name, wanted } => format!("header `{name}` must be {wanted}"),
            Self::BadHttp { what } => (*what).to_owned(),
            Self::BodyTooLarge { bytes_max } => format!("the body is over {bytes_max} bytes, the most that is taken"),
            Self::BodyTooSlow { waited } => format!("the body was not whole after {waited:?}"),
            Self::BodyBroken => "the body ended before it was whole".to_owned(),
            Self::ModelNotAllowed { model } => format!("this key may not use model `{model}`"),
            Self::UnknownModel { model } => words::unknown_model(model),
            Self::RateLimited { what, limit, retry_after } => words::rate(*limit, what, "minute", *retry_after),
            Self::TooFast { per_second, retry_after } => {
                words::rate(u64::from(*per_second), "requests", "second", *retry_after)
            }
            Self::TooManyAtOnce { max } => words::at_once(*max),
            Self::BudgetExceeded(exceeded) => words::exceeded(exceeded),
            Self::TargetBudgetExceeded { budget } => words::target_exceeded(budget),
            Self::BudgetUnknown { budget } => words::unknown(budget),
            Self::BudgetCrowded { budget } => words::crowded(budget),
            Self::BudgetUnanswered { waited } => words::unanswered(*waited),
            Self::Unpriced { budget, model } => words::unpriced(budget, model),
            Self::Busy => "this node is serving as many requests as it may; try again".to_owned(),
            Self::NotCached => "the answer is not cached, and `only-if-cached` was asked".to_owned(),
            Self::Untranslatable { field, provider } => {
                format!("`{field}` cannot be said to provider `{provider}`, which speaks another dialect")
            }
            Self::Rejected { provider, fault } => format!("provider `{provider}`: {}", fault.message),
            Self::ContextLength { provider, fault } => {
                format!("provider `{provider}`: the conversation does not fit the model: {}", fault.message)
            }
            Self::ContentFilter { provider, fault } => {
                format!("provider `{provider}` filtered the prompt: {}", fault.message)
            }
            Self::UnknownUpstreamModel { provider, model, .. } => {
                format!(
                    "provider `{provider}` does not know model `{model}`, or its `base_url` lacks the API's path, such \
                     as `/v1`"
                )
            }
            Self::Throttled { provider, .. } => {
                format!("every target is throttled by its provider, `{provider}` last; try again later")
            }
            Self::Overloaded { provider, .. } => format!("provider `{provider}` is overloaded"),
            Self::Upstream { provider, what, .. } => format!("provider `{provider}` failed: {what}"),
            Self::ReplyTooLarge { provider, bytes_max } => {
                format!("the answer of provider `{provider}` is over {bytes_max} bytes, the most that is taken")
            }
            Self::UpstreamTimeout { provider, what } => format!("provider `{provider}` was too slow: {what}"),
            Self::CredentialsExhausted { provider, .. } => {
                format!("provider `{provider}` accepts none of the gateway's credentials")
            }
            Self::NoHealthyUpstream { route } => format!("no target of `{route}` is healthy"),
            Self::DeadlineExceeded { after } => format!("no answer within {after:?}"),
            Self::Cut { provider, what } => format!("the answer of provider `{provider}` was cut: {what}"),
            Self::ClusterUnavailable { why } => format!("this node {}; try again", why.words()),
            Self::Stopping => "this node is shutting down".to_owned(),
            Self::Internal => "internal error; the log has the details under the request id".to_owned(),
        }
    }

    fn param(&self) -> Option<String> {
        if let Self::Invalid(bad) = self {
            bad.param.clone()
        } else if let Self::Untranslatable { field, .. } = self {
            Some(field.clone())
        } else if let Self::Rejected { fault, .. } | Self::ContextLength { fault, .. } = self {
            fault.param.clone()
        } else if let Self::ModelNotAllowed { .. } | Self::UnknownModel { .. } = self {
            Some("model".to_owned())
        } else {
            None
        }
    }

    /// The provider's own status, for `x-lea-upstream-status`.
    pub fn upstream_status(&self) -> Option<u16> {
        if let Self::Rejected { fault, .. } | Self::ContextLength { fault, .. } | Self::ContentFilter { fault, .. } =
            self
        {
            fault.status
        } else if let Self::UnknownUpstreamModel { status, .. }
        | Self::Overloaded { status, .. }
        | Self::Upstream { status, .. }
        | Self::CredentialsExhausted { status, .. } = self
        {
            *status
        } else if let Self::Throttled { .. } = self {
            Some(429)
        } else {
            None
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        if let Self::RateLimited { retry_after, .. } | Self::TooFast { retry_after, .. } = self {
            Some(*retry_after)
        } else if let Self::Throttled { retry_after, .. } = self {
            Some(retry_after.unwrap_or(Duration::from_secs(1)))
        } else if let Self::Busy
        | Self::TooManyAtOnce { .. }
        | Self::Overloaded { .. }
        | Self::NoHealthyUpstream { .. }
        | Self::BudgetUnanswered { .. }
        | Self::ClusterUnavailable { .. }
        | Self::Stopping = self
        {
            Some(Duration::from_secs(1))
        } else {
            None
        }
    }

    /// Whether it says something against the provider, where it came from one.
    pub fn blames_provider(&self) -> bool {
        !matches!(
            self,
            Self::Rejected { .. }
                | Self::ContextLength { .. }
                | Self::ContentFilter { .. }
                | Self::Throttled { .. }
                | Self::CredentialsExhausted { .. }
                | Self::ReplyTooLarge { .. }
                | Self::BudgetExceeded(_)
                | Self::TargetBudgetExceeded { .. }
                | Self::BudgetUnknown { .. }
                | Self::BudgetCrowded { .. }
                | Self::BudgetUnanswered { .. }
                | Self::Unpriced { .. }
        )
    }

    /// Whether the connection is of no more use: the rest of the request was not read.
    fn closes(&self) -> bool {
        matches!(
            self,
            Self::BadHttp { .. }
                | Self::BodyTooLarge { .. }
                | Self::BodyTooSlow { .. }
                | Self::BodyBroken
                | Self::Stopping
        )
    }

    fn status(&self, dialect: Dialect) -> StatusCode {
        let status = match (self, dialect) {
            (Self::Overloaded { .. }, Dialect::AnthropicMessages) => 529,
            (_, Dialect::AnthropicMessages | Dialect::OpenAiChat) => self.row().status,
        };
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn body(&self, dialect: Dialect, request_id: &str) -> ErrorBody {
        let row = self.row();
        ErrorBody {
            status: self.status(dialect).as_u16(),
            error_type: row.error_type,
            code: Some(row.code),
            message: self.message(),
            param: self.param(),
            request_id: request_id.to_owned(),
        }
    }

    /// The whole answer in the shape of the API called; the caller adds the headers every answer has.
    pub fn answer(&self, dialect: Dialect, request_id: &str, http2: bool) -> Response<Body> {
        let bytes = dialect.encode_error(&self.body(dialect, request_id));
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = self.status(dialect);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after() {
            add_retry_after(headers, wait);
        }
        if let Some(status) = self.upstream_status() {
            headers.insert(HeaderName::from_static("x-lea-upstream-status"), HeaderValue::from(status));
        }
        if let Self::BudgetExceeded(_) | Self::TargetBudgetExceeded { .. } | Self::BudgetCrowded { .. } = self {
            // Official SDKs would try again, and pay for it with nothing but time.
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        if let Self::MethodNotAllowed { allow } = self {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.closes() && !http2 {
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The exact bytes that end a stream with this failure.
    pub fn in_stream(&self, dialect: Dialect, request_id: &str) -> Bytes {
        Bytes::from(dialect.encode_stream_error(&self.body(dialect, request_id)))
    }
}

/// What is said of budgets.
mod words {
    use std::time::Duration;

    use std::time::UNIX_EPOCH;

    use cluster::directory::budget::{Budget, Period, Unit};
    use cluster::ledger::accounts::USERS_MAX;

    use super::seconds_up;
    use crate::quota::{Ends, Exceeded};

    /// The last second that can be written in four digits of a year.
    const YEAR_9999: Duration = Duration::from_secs(253_402_300_799);

    pub fn unknown_model(model: &str) -> String {
        format!(
            "model `{model}` is neither a route, nor `provider/model` of a configured provider, nor a name that exactly one \
             provider has"
        )
    }

    pub fn rate(limit: u64, what: &str, time: &str, retry_after: Duration) -> String {
        format!("over the key's limit of {limit} {what} a {time}; try again in {} s", seconds_up(retry_after))
    }

    pub fn at_once(max: u32) -> String {
        format!("over the key's limit of {max} requests at once; try again when one has ended")
    }

    /// «$50 a month, resets 2026-12-01T00:00:00Z».
    fn terms(exceeded: &Exceeded) -> String {
        let Budget { limit, period, each, .. } = &*exceeded.budget;
        let window = match period {
            Period::Total => "in total".to_owned(),
            Period::Minute | Period::Hour | Period::Day | Period::Week | Period::Month => {
                format!("{} {}", if *period == Period::Hour { "an" } else { "a" }, period.name())
            }
        };
        let each = if *each { " for each end user" } else { "" };
        let resets = match exceeded.ends {
            Some(Ends::At(at)) => {
                format!(", resets {}", humantime::format_rfc3339_seconds(UNIX_EPOCH + at.min(YEAR_9999)))
            }
            Some(Ends::Never) => ", resets never".to_owned(),
            None => String::new(),
        };
        format!("{} {window}{each}{resets}", limit.unit.show(exceeded.limit))
    }

    pub fn exceeded(exceeded: &Exceeded) -> String {
        let Budget { name, limit, period, .. } = &*exceeded.budget;
        let (terms, needed, left) = (terms(exceeded), limit.unit.show(exceeded.needed), limit.unit.show(exceeded.left));
        let has = if exceeded.limit == 0 {
            format!("the budget `{name}` ({terms}) has room for nothing")
        } else if exceeded.left == 0 {
            format!("the budget `{name}` ({terms}) is used up")
        } else if exceeded.lost > 0 {
            let lost = limit.unit.show(exceeded.lost.min(exceeded.left));
            format!(
                "the budget `{name}` ({terms}) has {left} left, of which nodes that do not answer hold {lost}; this request may \
                 cost {needed}"
            )
        } else if exceeded.left < exceeded.needed {
            format!("the budget `{name}` ({terms}) has {left} left, and this request may cost {needed}")
        } else {
            format!(
                "the budget `{name}` ({terms}) has {left} left, which calls under way hold; this one may cost {needed}"
            )
        };
        let shorter = match limit.unit {
            Unit::NanoUsd | Unit::Tokens if exceeded.left == 0 => "",
            Unit::NanoUsd | Unit::Tokens if *period == Period::Total => "ask for a shorter answer (`max_tokens`), or ",
            Unit::NanoUsd | Unit::Tokens => "ask for a shorter answer (`max_tokens`), ",
            Unit::Requests => "",
        };
        // Of a limit of nothing the next window has room for nothing, too.
        let later = if *period == Period::Total || exceeded.limit == 0 { "" } else { "wait for the next window, or " };
        format!("{has}; {shorter}{later}have the limit raised")
    }

    pub fn target_exceeded(budget: &str) -> String {
        format!(
            "less is left of the budget `{budget}`, of the provider or the model, than this request may cost; ask for a shorter \
             answer (`max_tokens`) or another model, or tell the operator"
        )
    }

    pub fn unknown(budget: &str) -> String {
        format!("this request is to fit in the budget `{budget}`, which this node does not know; tell the operator")
    }

    pub fn crowded(budget: &str) -> String {
        format!(
            "{USERS_MAX} end users have spent of the budget `{budget}` in this window, or many of others; no more are taken"
        )
    }

    pub fn unanswered(waited: Duration) -> String {
        format!("no majority of the cluster answered for the budget within {waited:.1?}; try again")
    }

    pub fn unpriced(budget: &str, model: &str) -> String {
        format!("the budget `{budget}` is in US dollars, and `{model}` has no price")
    }
}

fn seconds_up(wait: Duration) -> u64 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    seconds.clamp(1, RETRY_AFTER_MAX.as_secs())
}

/// Whole seconds, rounded up so that who waits that long has waited long enough; and milliseconds.
fn add_retry_after(headers: &mut HeaderMap, wait: Duration) {
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds_up(wait)));
    let milliseconds =
        wait.min(RETRY_AFTER_MAX).as_millis() + u128::from(!wait.subsec_nanos().is_multiple_of(1_000_000));
    let milliseconds = u64::try_from(milliseconds).unwrap_or(60_000).clamp(1, 60_000);
    headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from(milliseconds));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster::directory::budget::{Amount, Budget, BudgetSpec, LimitText, Period};

    use super::*;
    use crate::quota::Ends;

    #[test]
    fn every_code_stands_once_in_the_table() {
        let mut codes: Vec<_> = table().iter().map(|row| row.code).collect();
        codes.sort_unstable();
        let count = codes.len();
        codes.dedup();
        assert_eq!(codes.len(), count);
    }

    #[test]
    fn a_wait_is_rounded_up_and_capped() {
        assert_eq!(seconds_up(Duration::from_millis(1)), 1);
        assert_eq!(seconds_up(Duration::from_millis(1_001)), 2);
        assert_eq!(seconds_up(Duration::from_hours(1)), 60);
    }

    /// An SDK tries again by itself, at a node that may be in touch.
    #[test]
    fn a_closed_gate_asks_to_be_tried_again() {
        let failure = Failure::ClusterUnavailable { why: gate::Closed::Stale };

        for dialect in [Dialect::OpenAiChat, Dialect::AnthropicMessages] {
            let answer = failure.answer(dialect, "r", false);

            assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &HeaderValue::from(1)));
            assert!(!answer.headers().contains_key("x-should-retry"));
        }
    }

    /// Which budget, how much, and when there is more: nobody but the operator can ask for that.
    #[test]
    fn who_is_over_a_budget_is_told_of_it() {
        let told = |limit: &str, period, each, (left, lost, needed), ends| {
            let limit: Amount = limit.parse().unwrap();
            let budget =
                BudgetSpec { limit: Some(LimitText(limit.to_string())), window: Some(period), ..BudgetSpec::default() };
            let budget = Arc::new(Budget { each, ..budget.read("b").unwrap() });
            let failure =
                Failure::BudgetExceeded(Box::new(Exceeded { budget, limit: limit.amount, left, lost, needed, ends }));
            for dialect in [Dialect::OpenAiChat, Dialect::AnthropicMessages] {
                let answer = failure.answer(dialect, "r", false);
                assert_eq!(
                    (answer.status().as_u16(), answer.headers()["x-should-retry"].as_bytes()),
                    (429, &b"false"[..])
                );
                assert!(!answer.headers().contains_key(RETRY_AFTER));
            }
            failure.message()
        };
        let month = Some(Ends::At(Duration::from_hours(498_912)));

        assert_eq!(
            told("$50", Period::Month, false, (200_000_000, 0, 400_000_000), month),
            "the budget `b` ($50 a month, resets 2026-12-01T00:00:00Z) has $0.2 left, and this request may cost $0.4; ask for \
             a shorter answer (`max_tokens`), wait for the next window, or have the limit raised"
        );
        assert_eq!(
            told("9 tokens", Period::Total, true, (10, 0, 10), Some(Ends::Never)),
            "the budget `b` (9 tokens in total for each end user, resets never) has 10 tokens left, which calls under way \
             hold; this one may cost 10 tokens; ask for a shorter answer (`max_tokens`), or have the limit raised"
        );
        assert_eq!(
            told("9 requests", Period::Hour, false, (0, 0, 1), None),
            "the budget `b` (9 requests an hour) is used up; wait for the next window, or have the limit raised"
        );
        assert_eq!(
            told("9 requests", Period::Hour, false, (5, 4, 2), None),
            "the budget `b` (9 requests an hour) has 5 requests left, of which nodes that do not answer hold 4 requests; this \
             request may cost 2 requests; wait for the next window, or have the limit raised"
        );
        assert_eq!(
            told("0 requests", Period::Hour, false, (0, 0, 1), None),
            "the budget `b` (0 requests an hour) has room for nothing; have the limit raised"
        );
        assert!(told("$1", Period::Day, false, (0, 0, 1), Some(Ends::At(Duration::MAX))).contains("resets 9999-12-31"));
    }

    /// It may be other tenants' too: callers learn that it is short, and no more.
    #[test]
    fn how_a_budget_of_the_provider_stands_is_told_to_no_caller() {
        let failure = Failure::TargetBudgetExceeded { budget: "upstream".into() };
        let answer = failure.answer(Dialect::OpenAiChat, "r", false);

        assert_eq!((answer.status().as_u16(), answer.headers()["x-should-retry"].as_bytes()), (429, &b"false"[..]));
        assert!(
            failure.message().contains("`upstream`, of the provider or the model") && !failure.message().contains('$')
        );
        assert!(failure.tells_of_payer());
    }

    #[test]
    fn an_overloaded_provider_is_529_for_anthropic_only() {
        let failure = Failure::Overloaded { provider: "p".into(), status: Some(503) };
        assert_eq!(failure.answer(Dialect::AnthropicMessages, "r", false).status().as_u16(), 529);
        assert_eq!(failure.answer(Dialect::OpenAiChat, "r", false).status().as_u16(), 503);
    }
}
