//! Which targets a request tries, in which order, and what follows a failure.
//!
//! [`choose`] and [`after`] are pure; [`Routing`] adds what they cannot have: whose turn it is, chance, and the share
//! of traffic that may be retries.

mod budget;
pub mod metrics;
mod strategy;
mod table;

pub use budget::RetryBudget;
pub use table::{FailureClass, Following, Next, Situation, after, backoff};

use crate::metrics::KeptCounter;
use cluster::directory::route::{Route, Strategy, Target};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Orders a route's targets: the usable ones by the route's strategy, the others behind them as configured.
///
/// `turn` counts the route's requests, `random` is any number.
pub fn choose<'a>(route: &'a Route, turn: u64, random: u64, health: &Health) -> Plan<'a> {
    let takes_part = |target: &&Target| route.strategy != Strategy::Weighted || target.weight > 0;
    let (usable, others): (Vec<&Target>, Vec<&Target>) =
        route.targets.iter().filter(takes_part).partition(|target| health.usable(&target.provider));
    let usable = strategy::order(route, usable, turn, random);
    let candidate = |usable| move |target| Candidate { target, usable };
    Plan {
        candidates: usable.into_iter().map(candidate(true)).chain(others.into_iter().map(candidate(false))).collect(),
    }
}

/// Targets in the order they are to be tried. None where the route has none: its providers are switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<'a> {
    pub candidates: Vec<Candidate<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub target: &'a Target,
    /// Its provider may be called. Where none may, the first is called all the same, once: the last resort.
    pub usable: bool,
}

impl Plan<'_> {
    /// What comes after the candidate at `index`.
    pub fn following(&self, index: usize) -> Following {
        match (self.candidates.get(index), self.candidates.get(index + 1)) {
            (Some(this), Some(next)) if this.target.provider == next.target.provider => Following::SameProvider,
            (_, Some(_)) => Following::OtherProvider,
            (_, None) => Following::Nothing,
        }
    }

    pub fn any_usable(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.usable)
    }
}

/// Which of a route's providers may not be called now. Usually none, and then it holds nothing.
#[derive(Clone, Debug, Default)]
pub struct Health {
    unusable: Vec<Arc<str>>,
}

impl Health {
    /// Asks once for each of the route's providers.
    pub fn of(route: &Route, usable: impl Fn(&str) -> bool) -> Self {
        let providers = route.targets.iter().map(|target| &target.provider);
        Self { unusable: providers.filter(|provider| !usable(provider)).cloned().collect() }
    }

    pub fn usable(&self, provider: &str) -> bool {
        !self.unusable.iter().any(|unusable| **unusable == *provider)
    }
}

/// Routes whose turns are kept. Beyond it they all begin anew, which a client cannot notice.
const TURNS_MAX: usize = 10_000;

/// What routing remembers on this node.
pub struct Routing {
    turns: RwLock<HashMap<Arc<str>, AtomicU64>>,
    random: AtomicU64,
    budget: RetryBudget,
    retries: HashMap<FailureClass, KeptCounter>,
    refused: KeptCounter,
}

impl Routing {
    /// `seed` is any number; two nodes should not have the same.
    pub fn new(seed: u64, now: Instant) -> Self {
        let counter = |class: FailureClass| {
            (class, KeptCounter::new(::metrics::counter!(metrics::RETRIES, "class" => class.name())))
        };
        Self {
            turns: RwLock::default(),
            random: AtomicU64::new(seed),
            budget: RetryBudget::new(now),
            retries: FailureClass::ALL.map(counter).into(),
            refused: KeptCounter::new(::metrics::counter!(metrics::RETRIES_REFUSED)),
        }
    }

    /// The plan of one request. To be called once for each: it counts as a request in the retry budget.
    pub fn plan<'a>(&self, route: &'a Route, health: &Health, now: Instant) -> Plan<'a> {
        self.budget.request(now);
        let turn = if route.strategy == Strategy::RoundRobin { self.turn(&route.name) } else { 0 };
        choose(route, turn, self.random(), health)
    }

    /// As [`after`], within the retry budget.
    pub fn next(&self, class: FailureClass, situation: &Situation, now: Instant) -> Next {
        let next = after(class, situation);
        if next == Next::GiveUp {
            return next;
        }
        if !self.budget.retry(now) {
            self.refused.increment(1);
            return Next::GiveUp;
        }
        if let Some(retries) = self.retries.get(&class) {
            retries.increment(1);
        }
        next
    }

    /// An even number; each call gives another.
    pub fn random(&self) -> u64 {
        strategy::mix(self.random.fetch_add(strategy::GOLDEN, Ordering::Relaxed))
    }

    /// Each route has its own count: two routes called alternately must not always meet the same targets.
    fn turn(&self, route: &Arc<str>) -> u64 {
        if let Some(turn) = self.turns.read().get(route) {
            return turn.fetch_add(1, Ordering::Relaxed);
        }
        let mut turns = self.turns.write();
        if turns.len() >= TURNS_MAX {
            turns.clear();
        }
        turns.entry(Arc::clone(route)).or_default().fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
