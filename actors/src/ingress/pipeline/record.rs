//! What is known of a request when it ends: one line in the log, and the metrics. Told on drop, however it ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::clock;
use cluster::ledger::money::NanoUsd;
use llm::dialect::Dialect;
use llm::usage::Usage;
use tracing::info;

use super::metrics;
use crate::cache::flight::Source;
use crate::ingress::error::Failure;
use crate::queue::{Standing, Turn};

/// Where the answer came from, as `x-lea-cache` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    Hit,
    Miss,
    Bypass,
    Coalesced,
}

impl Cached {
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Miss => "MISS",
            Self::Bypass => "BYPASS",
            Self::Coalesced => "COALESCED",
        }
    }
}

/// How the request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Failed {
        case: &'static str,
        status: u16,
    },
    /// A typed error ended a stream that had begun.
    Cut {
        case: &'static str,
    },
}

/// One request, as the log and the metrics will tell it.
pub struct Record {
    pub request_id: Arc<str>,
    pub dialect: Dialect,
    pub operation: &'static str,
    pub started: Instant,
    pub key: Option<Arc<cluster::directory::key::Key>>,
    /// The configured name, for metrics.
    pub route: Option<Arc<str>>,
    pub route_name: Option<Arc<str>>,
    pub model: Option<String>,
    pub source: Option<Source>,
    pub cached: Option<Cached>,
    pub why_bypassed: Option<&'static str>,
    pub stream: bool,
    pub usage: Option<Usage>,
    pub cost: Option<NanoUsd>,
    /// Time spent waiting for providers, which is not ours.
    pub waited: Duration,
    pub first_content: Option<Instant>,
    pub turn: Option<Turn>,
    pub standing: Option<Standing>,
    outcome: Option<Outcome>,
    /// Why it failed, in the words of the error.
    cause: Option<String>,
    /// Until the first byte of the answer was ready.
    head: Option<Duration>,
}

impl Record {
    pub fn new(request_id: Arc<str>, dialect: Dialect, operation: &'static str, started: Instant) -> Self {
        Self {
            request_id,
            dialect,
            operation,
            started,
            key: None,
            route: None,
            route_name: None,
            model: None,
            source: None,
            cached: None,
            why_bypassed: None,
            stream: false,
            usage: None,
            cost: None,
            waited: Duration::ZERO,
            first_content: None,
            turn: None,
            standing: None,
            outcome: None,
            cause: None,
            head: None,
        }
    }

    /// What this gateway added until now: the time since the request arrived that was not spent on a provider.
    pub fn overhead(&mut self, now: Instant) -> Duration {
        let overhead = now.saturating_duration_since(self.started).saturating_sub(self.waited);
        self.head.get_or_insert(overhead);
        overhead
    }

    pub fn answered(&mut self) {
        self.outcome = Some(Outcome::Answered);
    }

    pub fn failed(&mut self, failure: &Failure, status: u16) {
        self.outcome = Some(Outcome::Failed { case: failure.row().case, status });
        self.cause = Some(failure.message());
    }

    pub fn cut(&mut self, failure: &Failure) {
        self.outcome = Some(Outcome::Cut { case: failure.row().case });
        self.cause = Some(failure.message());
    }

    fn status(&self) -> (u16, &'static str) {
        match self.outcome {
            Some(Outcome::Answered) => (200, "ok"),
            Some(Outcome::Failed { case, status }) => (status, case),
            Some(Outcome::Cut { case }) => (200, case),
            None => (499, "client_closed"),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = clock::now();
        if let Some(turn) = self.turn.take()
            && let Some(used) = self.tokens_used()
        {
            turn.used(used, now);
        }
        let took = now.saturating_duration_since(self.started);
        let (status, case) = self.status();
        metrics::request(&metrics::Ended {
            dialect: self.dialect.name(),
            operation: self.operation,
            route: self.route.as_deref().unwrap_or("none"),
            provider: self.source.as_ref().map_or("none", |source| &source.provider),
            case,
            status,
            cached: self.cached.map_or("NONE", Cached::name),
            took,
            overhead: self.head,
            first_content: self.first_content.map(|at| at.saturating_duration_since(self.started)),
        });
        self.log(status, case, took);
    }
}

impl Record {
    /// What the limit on tokens should count: nothing for an answer no provider was asked for.
    fn tokens_used(&self) -> Option<u64> {
        match self.cached {
            Some(Cached::Hit | Cached::Coalesced) => Some(0),
            Some(Cached::Miss | Cached::Bypass) | None => self.usage.map(|usage| usage.total()),
        }
    }

    fn log(&self, status: u16, case: &str, took: Duration) {
        let usage = self.usage.unwrap_or_default();
        let (provider, target) = self.source.as_ref().map_or(("", ""), |source| (&source.provider, &source.model));
        info!(
            request_id = %self.request_id,
            dialect = self.dialect.name(),
            operation = self.operation,
            status,
            case,
            key = self.key.as_ref().map_or("", |key| &key.name),
            tenant = self.key.as_ref().map_or("", |key| &key.tenant),
            model = self.model.as_deref().unwrap_or(""),
            provider,
            target,
            attempts = self.source.as_ref().map_or(0, |source| source.attempts),
            cache = self.cached.map_or("", Cached::name),
            why_bypassed = self.why_bypassed.unwrap_or(""),
            stream = self.stream,
            input_tokens = usage.input,
            output_tokens = usage.output,
            cost = %self.cost.unwrap_or_default(),
            took_ms = took.as_secs_f64() * 1e3,
            cause = self.cause.as_deref().unwrap_or(""),
            "{}",
            if self.cause.is_some() { "request failed" } else { "request" }
        );
    }
}
