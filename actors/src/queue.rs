//! Rate limits and concurrency → [`Turn`].
//!
//! Each key's requests a second, its requests and tokens within any 60 seconds and its requests at once, and how many
//! requests the node works on at a time. With others, who lacks leave waits for the limit's owner, a moment at most
//! ([`shared`], [`slots`], [`pace`]). Who has no turn is told when to come back, and coming back then succeeds unless
//! others of the same key were faster.

mod by_key;
pub mod metrics;
mod pace;
pub mod shared;
mod slots;
mod window;

use crate::metrics::KeptCounter;
use ::metrics::Gauge;
use cluster::clock;
use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use pace::Paces;
use shared::{Asked, Counted, Owners};
use slots::{Slot, Slots};
use window::{SPAN, Window};

/// How many requests are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Requests this node works on at a time, streams included. More are refused with 503.
    pub requests_max: NonZeroU32,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { requests_max: NonZeroU32::MIN.saturating_add(4095) }
    }
}

pub struct Queue {
    born: Instant,
    places: Arc<Semaphore>,
    places_max: usize,
    keys: RwLock<Keys>,
    /// Of limits that are shared with other nodes; never set where there are none.
    owners: OnceLock<Arc<dyn Owners>>,
    slots: Slots,
    paces: Paces,
    metrics: Arc<Metrics>,
}

/// What the keys used that called in the last minute; the rest is forgotten, so this is bounded by the directory.
struct Keys {
    by_id: HashMap<u64, Arc<Mutex<Used>>>,
    pruned: Duration,
}

#[derive(Default)]
struct Used {
    requests: Counted,
    tokens: Counted,
    last: Duration,
    /// As they were last, where they are shared.
    limits: Option<Limits>,
    asked: Asked,
}

/// What one key may do within a second, within any 60 seconds, and at once. A limit is never 0: the directory refuses that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Stable for a key.
    pub key_id: u64,
    pub rps: Option<u32>,
    pub rpm: Option<u32>,
    pub tpm: Option<u64>,
    pub max_parallel: Option<u32>,
}

/// What a turn holds while it lasts.
struct Held {
    _place: OwnedSemaphorePermit,
    _slot: Option<Slot>,
}

impl Queue {
    /// `now` is the beginning of time here.
    pub fn new(config: &QueueConfig, now: Instant) -> Self {
        let places = usize::try_from(config.requests_max.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            born: now,
            places: Arc::new(Semaphore::new(places)),
            places_max: places,
            keys: RwLock::new(Keys { by_id: HashMap::new(), pruned: Duration::ZERO }),
            owners: OnceLock::new(),
            slots: Slots::new(),
            paces: Paces::default(),
            metrics: Arc::new(Metrics::new()),
        }
    }

    /// A turn, or why not. `tokens` is an estimate; [`Turn::used`] corrects it. A request that is larger than its key's
    /// limit gets a turn when nothing else counts. Who is refused for one of its limits has counted for none of them.
    pub async fn enter(&self, limits: &Limits, tokens: u64, now: Instant) -> Result<Turn, QueueError> {
        let place = self.place()?;
        let slot = match limits.max_parallel {
            Some(max) => Some(self.slot(limits.key_id, max, now).await.inspect_err(|error| self.count(error))?),
            None => None,
        };
        // It may have waited.
        let now = if slot.is_some() { now.max(clock::now()) } else { now };
        if let Some(per_second) = limits.rps {
            // Who is refused in any case is counted nowhere.
            self.is_due(limits.key_id, per_second).inspect_err(|error| self.count(error))?;
        }
        let held = Held { _place: place, _slot: slot };
        let turn = match self.owners.get() {
            Some(owners) if limits.rpm.is_some() || limits.tpm.is_some() => {
                self.enter_shared(owners.as_ref(), limits, tokens, now, held).await?
            }
            Some(_) | None => self.enter_alone(limits, tokens, now, held)?,
        };
        let Some(per_second) = limits.rps else { return Ok(turn) };
        // Last, so that leave is used as soon as it is taken. Who is refused, or leaves meanwhile, was not let in.
        let unless_passed = Undo(Some(turn));
        self.pass(limits.key_id, per_second).await.inspect_err(|error| self.count(error))?;
        Ok(unless_passed.keep())
    }

    fn enter_alone(&self, limits: &Limits, tokens: u64, now: Instant, held: Held) -> Result<Turn, QueueError> {
        if limits.rpm.is_none() && limits.tpm.is_none() {
            return Ok(self.turn(None, Standing::default(), held));
        }
        let now = self.time(now);
        let used = self.used(limits.key_id, now);
        let entered = used.lock().enter(limits, tokens, now).inspect_err(|error| self.count(error));
        let Entered { estimate, standing, second } = entered?;
        Ok(self.turn(Some(Entry { used, estimate, second, born: self.born }), standing, held))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, QueueError> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_none| {
            self.metrics.full.increment(1);
            QueueError::Full
        })
    }

    fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }

    fn turn(&self, entry: Option<Entry>, standing: Standing, held: Held) -> Turn {
        self.metrics.in_flight.increment(1.0);
        Turn { entry, standing, metrics: Arc::clone(&self.metrics), _held: held }
    }

    /// Requests being worked on.
    pub fn in_flight(&self) -> u64 {
        u64::try_from(self.places_max - self.places.available_permits()).unwrap_or(u64::MAX)
    }

    fn used(&self, key_id: u64, now: Duration) -> Arc<Mutex<Used>> {
        if let Some(known) = self.keys.read().by_id.get(&key_id) {
            return Arc::clone(known);
        }
        let mut keys = self.keys.write();
        if now.saturating_sub(keys.pruned) >= SPAN {
            keys.pruned = now;
            keys.by_id.retain(|_, used| !is_idle(used, now));
        }
        let fresh = || Arc::new(Mutex::new(Used { last: now, ..Used::default() }));
        Arc::clone(keys.by_id.entry(key_id).or_insert_with(fresh))
    }

    fn count(&self, error: &QueueError) {
        match error {
            QueueError::RateLimited { limit: Limit::Requests, .. } => self.metrics.requests.increment(1),
            QueueError::RateLimited { limit: Limit::Tokens, .. } => self.metrics.tokens.increment(1),
            QueueError::TooFast { .. } => self.metrics.per_second.increment(1),
            QueueError::TooManyAtOnce { .. } => self.metrics.parallel.increment(1),
            QueueError::Full => self.metrics.full.increment(1),
        }
    }
}

/// Nobody holds a turn on it, nothing it knows counts any more, and no owner need hear of it.
fn is_idle(used: &Arc<Mutex<Used>>, now: Duration) -> bool {
    let is_over = |used: &Used| now.saturating_sub(used.last) > SPAN && !used.is_live(now);
    Arc::strong_count(used) == 1 && is_over(&used.lock())
}

impl Used {
    /// The time as which something at `now` counts: requests take the time before they take the lock.
    fn at(&self, now: Duration) -> Duration {
        self.requests.window.at(self.tokens.window.at(now))
    }

    /// Counts a request and its tokens, both or neither.
    fn enter(&mut self, limits: &Limits, tokens: u64, now: Duration) -> Result<Entered, QueueError> {
        let now = self.at(now);
        let request = limits.rpm.map(|rpm| (1, u64::from(rpm)));
        let tokens = limits.tpm.map(|tpm| (tokens.min(tpm), tpm));
        let wait = |window: &mut Window, wanted: Option<(u64, u64)>| {
            wanted.map_or(Duration::ZERO, |(wanted, limit)| window.wait(now, wanted, limit))
        };
        let (for_request, for_tokens) =
            (wait(&mut self.requests.window, request), wait(&mut self.tokens.window, tokens));
        let longest = for_request.max(for_tokens);
        if !longest.is_zero() {
            let limit = if for_request >= for_tokens { Limit::Requests } else { Limit::Tokens };
            let standing = self.standing(limits, now);
            return Err(QueueError::RateLimited { limit, retry_after: whole_seconds(longest), standing });
        }
        let estimate = tokens.map_or(0, |(wanted, _)| wanted);
        if request.is_some() {
            self.requests.window.add(now, 1);
        }
        if tokens.is_some() {
            self.tokens.window.add(now, estimate);
        }
        self.last = self.last.max(now);
        Ok(Entered { estimate, standing: self.standing(limits, now), second: now.as_secs() })
    }

    fn standing(&mut self, limits: &Limits, now: Duration) -> Standing {
        let level = |window: &mut Window, limit: u64| Level {
            limit,
            remaining: limit.saturating_sub(window.used(now)),
            reset: window.reset(now),
        };
        Standing {
            requests: limits.rpm.map(|rpm| level(&mut self.requests.window, u64::from(rpm))),
            tokens: limits.tpm.map(|tpm| level(&mut self.tokens.window, tpm)),
        }
    }

    /// Less than estimated is taken back where it was counted. More was spent just now, and counts from now.
    fn correct(&mut self, estimate: u64, second: u64, actual: u64, now: Duration) {
        if actual <= estimate {
            self.tokens.window.take_back(second, estimate - actual);
        } else {
            self.tokens.window.add(now, actual - estimate);
            self.last = self.last.max(now);
        }
    }
}

/// Whole seconds, from 1 to 60, rounded up.
fn whole_seconds(wait: Duration) -> Duration {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Duration::from_secs(seconds.max(1))
}

/// Leave to be worked on. Dropped, it makes room for the next; its tokens stay as estimated.
#[must_use]
pub struct Turn {
    entry: Option<Entry>,
    standing: Standing,
    metrics: Arc<Metrics>,
    _held: Held,
}

/// Dropped, nothing of the turn counts.
struct Undo(Option<Turn>);

impl Undo {
    fn keep(mut self) -> Turn {
        match self.0.take() {
            Some(turn) => turn,
            None => unreachable!("only this and the drop take it"),
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(turn) = self.0.take() {
            turn.undo();
        }
    }
}

/// What was counted: so many tokens, in that second of the windows.
struct Entered {
    estimate: u64,
    standing: Standing,
    second: u64,
}

/// Where that was.
struct Entry {
    used: Arc<Mutex<Used>>,
    estimate: u64,
    second: u64,
    born: Instant,
}

impl Turn {
    /// Where the key stood when the turn was given.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The request was not let in after all: nothing of it counts.
    fn undo(self) {
        if let Some(Entry { used, estimate, second, .. }) = &self.entry {
            let mut used = used.lock();
            used.requests.window.take_back(*second, 1);
            used.tokens.window.take_back(*second, *estimate);
        }
    }

    /// The request is over and used this many tokens.
    pub fn used(self, tokens: u64, now: Instant) {
        if let Some(Entry { used, estimate, second, born }) = &self.entry {
            used.lock().correct(*estimate, *second, tokens, now.saturating_duration_since(*born));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.metrics.in_flight.decrement(1.0);
    }
}

/// What is left of a key's limits; `None` where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub requests: Option<Level>,
    pub tokens: Option<Level>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of the limit is there again, if nothing is used meanwhile.
    pub reset: Duration,
}

/// Why there is no turn. Nothing was counted; the same request may be sent again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    #[error("the key's {limit} per minute are used up; try again in {}s", .retry_after.as_secs())]
    RateLimited {
        limit: Limit,
        /// Whole seconds, at most 60.
        retry_after: Duration,
        standing: Standing,
    },

    #[error("the key's {per_second} requests per second are used up; try again in {}s", .retry_after.as_secs())]
    TooFast {
        per_second: u32,
        /// Whole seconds.
        retry_after: Duration,
    },

    /// The next may be let in whenever one of them ends.
    #[error("the key has {max} requests under way, as many as it may at once")]
    TooManyAtOnce { max: u32 },

    #[error("this node works on as many requests as it may")]
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Requests,
    Tokens,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        })
    }
}

struct Metrics {
    in_flight: Gauge,
    requests: KeptCounter,
    tokens: KeptCounter,
    per_second: KeptCounter,
    parallel: KeptCounter,
    full: KeptCounter,
    rates_asked: Asks,
    slots_asked: Asks,
    pace_asked: Asks,
}

/// Of one kind of limit.
struct Asks {
    answered: KeptCounter,
    unanswered: KeptCounter,
}

impl Asks {
    fn new(limit: &'static str) -> Self {
        let asked = |answered| {
            KeptCounter::new(::metrics::counter!(metrics::OWNER_ASKED, "limit" => limit, "answered" => answered))
        };
        Self { answered: asked("yes"), unanswered: asked("no") }
    }

    fn count(&self, answered: bool) {
        if answered { self.answered.increment(1) } else { self.unanswered.increment(1) }
    }
}

impl Metrics {
    fn new() -> Self {
        let refused =
            |reason: &'static str| KeptCounter::new(::metrics::counter!(metrics::REFUSED, "reason" => reason));
        Self {
            in_flight: ::metrics::gauge!(metrics::IN_FLIGHT),
            requests: refused("requests"),
            tokens: refused("tokens"),
            per_second: refused("per_second"),
            parallel: refused("parallel"),
            full: refused("full"),
            rates_asked: Asks::new("rates"),
            slots_asked: Asks::new("slots"),
            pace_asked: Asks::new("pace"),
        }
    }
}

#[cfg(test)]
mod tests;
