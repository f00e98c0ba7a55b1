//! What is counted of every request.

use std::time::Duration;

use ::metrics::Unit;

use crate::metrics::{Described, Kind};

pub const REQUESTS: &str = "lea_requests_total";
pub const DURATION: &str = "lea_request_duration_seconds";
pub const FIRST_CONTENT: &str = "lea_time_to_first_token_seconds";
pub const OVERHEAD: &str = "lea_overhead_seconds";
pub const CACHE: &str = "lea_cache_requests_total";

const fn described(
    name: &'static str,
    kind: Kind,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Described {
    Described { name, kind, unit, labels, help }
}

pub const METRICS: &[Described] = &[
    described(
        REQUESTS,
        Kind::Counter,
        Unit::Count,
        &["dialect", "operation", "route", "status", "case"],
        "Requests that ended, by how; `case` is `ok`, `client_closed` or a code of the error reference.",
    ),
    described(
        DURATION,
        Kind::Histogram,
        Unit::Seconds,
        &["dialect", "operation", "route"],
        "From the request's head to the last byte of its answer.",
    ),
    described(
        FIRST_CONTENT,
        Kind::Histogram,
        Unit::Seconds,
        &["route", "provider"],
        "From the request's head to the first content of its answer, for streams.",
    ),
    described(
        OVERHEAD,
        Kind::Histogram,
        Unit::Seconds,
        &["operation"],
        "What this gateway added before the first byte of the answer: all time that was not spent waiting for a provider.",
    ),
    described(
        CACHE,
        Kind::Counter,
        Unit::Count,
        &["route", "result"],
        "Requests by what the cache said: `HIT`, `MISS`, `BYPASS` or `COALESCED`.",
    ),
];

/// What a request was, when it has ended.
pub struct Ended<'a> {
    pub dialect: &'static str,
    pub operation: &'static str,
    pub route: &'a str,
    pub provider: &'a str,
    pub case: &'static str,
    pub status: u16,
    pub cached: &'static str,
    pub took: Duration,
    pub overhead: Option<Duration>,
    pub first_content: Option<Duration>,
}

pub fn request(ended: &Ended<'_>) {
    let route = ended.route.to_owned();
    let (dialect, operation) = (ended.dialect, ended.operation);
    let status = status_text(ended.status);
    ::metrics::counter!(REQUESTS, "dialect" => dialect, "operation" => operation, "route" => route.clone(),
        "status" => status, "case" => ended.case)
    .increment(1);
    ::metrics::histogram!(DURATION, "dialect" => dialect, "operation" => operation, "route" => route.clone())
        .record(ended.took);
    if let Some(overhead) = ended.overhead {
        ::metrics::histogram!(OVERHEAD, "operation" => operation).record(overhead);
    }
    if let Some(first) = ended.first_content {
        let provider = ended.provider.to_owned();
        ::metrics::histogram!(FIRST_CONTENT, "route" => route.clone(), "provider" => provider).record(first);
    }
    if ended.cached != "NONE" {
        ::metrics::counter!(CACHE, "route" => route.clone(), "result" => ended.cached).increment(1);
    }
}

/// Our own statuses, without an allocation for each request.
fn status_text(status: u16) -> &'static str {
    match status {
        200 => "200",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        413 => "413",
        415 => "415",
        429 => "429",
        499 => "499",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        529 => "529",
        _ => "other",
    }
}
