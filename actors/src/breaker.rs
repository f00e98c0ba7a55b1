//! The circuit breaker of one provider.
//!
//! Owns       its [`Machine`]; nobody else writes it.
//! Told by    ingress: one [`Verdict`] for each finished call; [`shared`]: what other nodes say, as [`Advice`].
//! Publishes  the [`State`]; the pipeline reads it, without sending a message, and hands routing what it needs.
//! Restarts   closed: a crash may forget failures, it may not blackhole a provider.

pub mod marks;
pub mod metrics;
pub mod shared;
pub mod state;

pub use state::{Advice, Ground, Policy, Standing, State, Verdict};

use crate::metrics::KeptCounter;
use crate::supervisor::{Child, ChildKey, Mailbox, Place, StartError, Supervisor};
use ::metrics::Gauge;
use arc_swap::ArcSwap;
use marks::Key;
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use shared::Ear;
use state::Machine;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

/// Places in the mailbox. A verdict dropped delays a trip by one call; a mailbox without a bound can end the process.
const MAILBOX_MAX: usize = 1024;

pub enum Message {
    /// A call ended. Dropping the message gives its place and its probe back.
    Ended { verdict: Verdict, ground: Ground, at: Instant, place: Place, probe: Option<OwnedSemaphorePermit> },
    /// What follows from what other nodes say. Lost, it is said again.
    Advised { advice: Advice, at: Instant, place: Place },
}

/// What the rest of the node holds. Cheap to clone; outlives the actor's restarts.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    child: Child<Message>,
    mailbox: Mailbox,
    /// One permit: at most one probe at a time.
    probes: Arc<Semaphore>,
    board: Arc<Board>,
}

/// What the actor and its readers share: the actor writes the state, a reload the policy.
struct Board {
    provider: Arc<str>,
    /// What other nodes call it by.
    key: Key,
    calls: LastCall,
    /// Told when other nodes should hear of a change at once.
    news: Arc<Notify>,
    state: ArcSwap<State>,
    policy: ArcSwap<Policy>,
    metrics: Metrics,
}

impl Handle {
    /// Whether the provider may be called now. Never waits.
    pub fn admit(&self, now: Instant) -> Option<Admission> {
        let (ground, probe) = match self.standing(now) {
            Standing::Closed => (Ground::Closed, None),
            Standing::HalfOpen => (Ground::Probe, Some(self.probe(now)?)),
            Standing::Open { .. } | Standing::Throttled { .. } => return None,
        };
        self.0.board.calls.at(now);
        Some(Admission { breaker: self.clone(), ground, probe })
    }

    /// For routing and for what people see.
    pub fn standing(&self, now: Instant) -> Standing {
        self.0.board.state.load().at(now)
    }

    /// The last probe's permit comes back after its verdict was published, so who gets it looks again.
    fn probe(&self, now: Instant) -> Option<OwnedSemaphorePermit> {
        let probe = Arc::clone(&self.0.probes).try_acquire_owned().ok()?;
        if self.standing(now) != Standing::HalfOpen {
            return None;
        }
        self.0.board.metrics.half_opened();
        self.0.board.news.notify_one();
        Some(probe)
    }
}

/// Leave to call the provider once. Dropped unfinished, it says nothing about the provider.
#[must_use]
pub struct Admission {
    breaker: Handle,
    ground: Ground,
    probe: Option<OwnedSemaphorePermit>,
}

impl Admission {
    /// Leave for the one attempt that is made when no candidate is usable.
    pub fn last_resort(breaker: &Handle) -> Self {
        breaker.0.board.calls.at(cluster::clock::now());
        Self { breaker: breaker.clone(), ground: Ground::LastResort, probe: None }
    }

    pub fn ground(&self) -> Ground {
        self.ground
    }

    /// Never waits; when the mailbox is full the verdict is dropped and counted.
    pub fn finish(self, verdict: Verdict, at: Instant) {
        let Some(place) = self.breaker.0.mailbox.place() else { return };
        let ended = Message::Ended { verdict, ground: self.ground, at, place, probe: self.probe };
        // Between two incarnations a verdict is lost: the next one starts closed anyway.
        let _gone = self.breaker.0.child.address.cast(ended);
    }
}

/// The breakers of all providers, found by name.
pub struct Breakers {
    supervisor: Supervisor,
    by_provider: ArcSwap<HashMap<Arc<str>, Handle>>,
    ear: Mutex<Ear>,
    news: Arc<Notify>,
}

impl Breakers {
    pub async fn start(
        supervisor: &Supervisor,
        providers: impl IntoIterator<Item = (Arc<str>, Policy)>,
    ) -> Result<Self, StartError> {
        let breakers = Self {
            supervisor: supervisor.clone(),
            by_provider: ArcSwap::default(),
            ear: Mutex::default(),
            news: Arc::default(),
        };
        breakers.reconcile(providers).await?;
        Ok(breakers)
    }

    pub fn get(&self, provider: &str) -> Option<Handle> {
        self.by_provider.load().get(provider).cloned()
    }

    /// Every provider's standing, for status pages. Unordered.
    pub fn standings(&self, now: Instant) -> Vec<(Arc<str>, Standing)> {
        self.by_provider.load().iter().map(|(name, handle)| (Arc::clone(name), handle.standing(now))).collect()
    }

    /// After a reload: breakers for new providers, none for those that went, and new policies where they changed. What
    /// stays keeps its state. On an error nothing has changed. Not to be called twice at a time.
    pub async fn reconcile(&self, providers: impl IntoIterator<Item = (Arc<str>, Policy)>) -> Result<(), StartError> {
        let known = self.by_provider.load_full();
        let mut next = HashMap::new();
        let mut policies = Vec::new();
        let mut started: Vec<ChildKey> = Vec::new();
        for (provider, policy) in providers {
            let handle = match known.get(&provider) {
                Some(handle) => handle.clone(),
                None => match start(&self.supervisor, &provider, policy, Arc::clone(&self.news)).await {
                    Ok(handle) => {
                        started.push(handle.0.child.key);
                        handle
                    }
                    Err(error) => {
                        for child in started {
                            self.supervisor.retire(child);
                        }
                        return Err(error);
                    }
                },
            };
            policies.push((handle.clone(), policy));
            next.insert(provider, handle);
        }
        for (handle, policy) in policies {
            handle.0.board.policy.store(Arc::new(policy));
        }
        for (_provider, gone) in known.iter().filter(|(provider, _)| !next.contains_key(*provider)) {
            self.supervisor.retire(gone.0.child.key);
        }
        self.by_provider.store(Arc::new(next));
        Ok(())
    }
}

async fn start(
    supervisor: &Supervisor,
    provider: &Arc<str>,
    policy: Policy,
    news: Arc<Notify>,
) -> Result<Handle, StartError> {
    let board = Arc::new(Board {
        provider: Arc::clone(provider),
        key: Key::of(provider),
        calls: LastCall::never(cluster::clock::now()),
        news,
        state: ArcSwap::default(),
        policy: ArcSwap::from_pointee(policy),
        metrics: Metrics::new(provider),
    });
    let shown = Arc::clone(&board);
    let child = supervisor.child("breaker", Arc::clone(provider), move || (Breaker, Arc::clone(&shown))).await?;
    let mailbox = Mailbox::new("breaker", MAILBOX_MAX);
    Ok(Handle(Arc::new(Shared { child, mailbox, probes: Arc::new(Semaphore::new(1)), board })))
}

/// Behaviour. Everything that changes is in [`Owned`].
struct Breaker;

struct Owned {
    machine: Machine,
    board: Arc<Board>,
}

impl Actor for Breaker {
    type Msg = Message;
    type State = Owned;
    type Arguments = Arc<Board>;

    /// Publishes the initial state, so a restart heals every reader.
    async fn pre_start(&self, _me: ActorRef<Message>, board: Arc<Board>) -> Result<Owned, ActorProcessingErr> {
        board.state.store(Arc::new(State::default()));
        board.metrics.state.set(CLOSED);
        Ok(Owned { machine: Machine::closed(cluster::clock::now()), board })
    }

    async fn handle(
        &self,
        _me: ActorRef<Message>,
        message: Message,
        owned: &mut Owned,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Ended { verdict, ground, at, place: _place, probe: _probe } => {
                owned.change(|machine, policy| machine.take(verdict, ground, at, policy));
            }
            Message::Advised { advice, at, place: _place } => {
                owned.change(|machine, _policy| machine.heed(&advice, at));
            }
        }
        Ok(())
    }
}

impl Owned {
    fn change(&mut self, change: impl FnOnce(&mut Machine, &Policy)) {
        let before = self.machine.state();
        change(&mut self.machine, &self.board.policy.load());
        let after = self.machine.state();
        if after != before {
            self.board.state.store(Arc::new(after));
            self.board.changed(before, after);
            if (before.open_until, before.throttled_until, before.closed_at)
                != (after.open_until, after.throttled_until, after.closed_at)
            {
                self.board.news.notify_one();
            }
        }
    }
}

impl Board {
    fn called_within(&self, time: Duration, now: Instant) -> bool {
        self.calls.last().is_some_and(|at| now.saturating_duration_since(at) < time)
    }

    fn changed(&self, before: State, after: State) {
        let provider = &*self.provider;
        match (before.open(), after.open()) {
            (Some(_), None) => {
                info!(provider, "breaker closed");
                self.metrics.closed.increment(1);
                self.metrics.state.set(CLOSED);
            }
            (was, Some(_)) if was != after.open() => {
                warn!(provider, followed = after.open_until.is_none(), "breaker opened");
                self.metrics.opened.increment(1);
                self.metrics.state.set(OPEN);
            }
            _ => {}
        }
        if after.throttled_until.is_some() && after.throttled_until != before.throttled_until {
            warn!(provider, "provider throttled us");
            self.metrics.throttled.increment(1);
        }
    }
}

/// When the provider was called last, to about a second: most calls only look.
struct LastCall {
    born: Instant,
    /// Milliseconds since `born`, and one. Nothing: never.
    at: AtomicU64,
}

impl LastCall {
    const GRAIN: u64 = 1_000;

    fn never(born: Instant) -> Self {
        Self { born, at: AtomicU64::new(0) }
    }

    fn at(&self, now: Instant) {
        let at = u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let known = self.at.load(Ordering::Relaxed);
        if known == 0 || at > known.saturating_add(Self::GRAIN) {
            self.at.store(at, Ordering::Relaxed);
        }
    }

    fn last(&self) -> Option<Instant> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        self.born.checked_add(Duration::from_millis(at))
    }
}

const CLOSED: f64 = 0.0;
const HALF_OPEN: f64 = 1.0;
const OPEN: f64 = 2.0;

/// Handles made once for each provider: looking one up costs more than the rest of a verdict.
struct Metrics {
    state: Gauge,
    opened: KeptCounter,
    closed: KeptCounter,
    half_opened: KeptCounter,
    throttled: KeptCounter,
}

impl Metrics {
    fn new(provider: &Arc<str>) -> Self {
        let to = |to: &'static str| {
            KeptCounter::new(::metrics::counter!(metrics::TRANSITIONS, "provider" => Arc::clone(provider), "to" => to))
        };
        Self {
            state: ::metrics::gauge!(metrics::STATE, "provider" => Arc::clone(provider)),
            opened: to("open"),
            closed: to("closed"),
            half_opened: to("half_open"),
            throttled: to("throttled"),
        }
    }

    fn half_opened(&self) {
        self.half_opened.increment(1);
        self.state.set(HALF_OPEN);
    }
}

#[cfg(test)]
mod tests;
