//! What an attempt may cost, and what it did: [`Reservation`] → [`Charge`] → [`Bill`].
//!
//! Each attempt has its own. Before dispatch a reservation that is dropped is released; after it a charge that is
//! dropped costs the full bound. So an attempt is charged exactly once, and never less than the provider bills.

pub mod cap;
pub mod escrow;
pub mod held;
pub mod metrics;
pub mod shared;

use crate::metrics::KeptCounter;
use cluster::directory::budget::Budget;
use cluster::directory::price::{Price, TokenCounts};
use cluster::ledger::accounts::{Place, USERS_MAX, UserId};
use cluster::ledger::money::NanoUsd;
use foldhash::fast::RandomState;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::warn;

use self::cap::{Asked, Rights};
use self::escrow::{Escrow, NotReserved};
use self::held::{Demand, Refused};

/// Output tokens a provider may bill beyond those that were seen when a call is cut.
pub const CANCEL_SLACK: u64 = 256;

/// Accounts whose counters are kept at hand. Beyond it all are looked up anew; nothing is lost.
const ACCOUNTS_MAX: usize = 10_000;

/// Reserves for every attempt of this node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Quota(Arc<Shared>);

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    accounts: RwLock<HashMap<Account, Arc<Counters>, RandomState>>,
    /// `None`: there are no budgets.
    escrow: Option<Escrow>,
    /// Of budgets that denied something.
    denied: metrics::Names,
}

impl Shared {
    /// Where nobody said which budget it was, it counts for each of them.
    fn count_denied(&self, error: &QuotaError, budgets: &[Arc<Budget>]) {
        let (budget, reason) = match error {
            QuotaError::Exceeded(exceeded) => (Some(&exceeded.budget.name), "exceeded"),
            QuotaError::Unpriced { budget } => (Some(budget), "unpriced"),
            QuotaError::Crowded { budget } => (Some(budget), "crowded"),
            QuotaError::Unanswered { .. } => (None, "unanswered"),
            QuotaError::Full => (None, "full"),
        };
        match budget {
            Some(budget) => metrics::denied(&self.denied, budget, reason),
            None => budgets.iter().for_each(|budget| metrics::denied(&self.denied, &budget.name, reason)),
        }
    }
}

/// Why an attempt may not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// The ledger's word.
    #[error("less is left of the budget `{}`", .0.budget.name)]
    Exceeded(Box<Exceeded>),
    #[error("the budget `{budget}` is in US dollars, and the target has no price")]
    Unpriced { budget: Arc<str> },
    #[error("the budget `{budget}` has {USERS_MAX} end users, or all have many, and no account for another")]
    Crowded { budget: Arc<str> },
    /// It may be tried again.
    #[error("the ledger did not answer within {waited:?}")]
    Unanswered { waited: Duration },
    /// It may be tried again.
    #[error("too many wait for budgets")]
    Full,
}

/// What an attempt did not fit in, and how far this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// One of those that the attempt must fit in.
    pub budget: Arc<Budget>,
    /// As the ledger says it; in the budget's unit.
    pub limit: u64,
    /// Neither spent nor burned, whoever holds it, as the ledger said it; in the budget's unit.
    pub left: u64,
    /// Held of that by nodes that are not heard of; in the budget's unit.
    pub lost: u64,
    /// What the attempt may have come to, with as short an answer as it could be capped to; in the budget's unit.
    pub needed: u64,
    /// `None`: the window is over already.
    pub ends: Option<Ends>,
}

/// When a window is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Since 1970.
    At(Duration),
    Never,
}

impl Quota {
    /// Without budgets.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(escrow: Escrow) -> Self {
        Self(Arc::new(Shared { escrow: Some(escrow), ..Shared::default() }))
    }

    /// Sets the bound aside at this target's price, in all of the payer's budgets or in none; waits for the ledger where this
    /// node holds too little, no longer than it `waits`. Without a price the attempt is metered, and its cost unknown: no
    /// budget in money takes that.
    pub async fn reserve(
        &self,
        payer: Payer<'_>,
        bound: Bound,
        price: Option<Arc<Price>>,
        waits: Waits,
    ) -> Result<Reservation, QuotaError> {
        let Payer { account, budgets, end_user } = payer;
        let seq = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (rights, cap) = match &self.0.escrow {
            Some(escrow) if !budgets.is_empty() => {
                let user = end_user.filter(|_| budgets.iter().any(|budget| budget.each)).map(UserId::of);
                let user = user.unwrap_or_default();
                let taken = Asked { escrow, budgets, user, bound, price: price.as_deref(), waits }.take().await;
                let (rights, cap) = taken.inspect_err(|error| self.0.count_denied(error, budgets))?;
                (Some(rights), cap)
            }
            Some(_) | None => (None, None),
        };
        let bound = cap.map_or(bound, |each| bound.capped(each));
        let counters = self.counters(account);
        Ok(Reservation { attempt: Attempt { stage: Stage::Reserved, seq, bound, price, rights, counters }, cap })
    }

    /// What this node holds of budgets.
    pub fn escrow(&self) -> Option<&Escrow> {
        self.0.escrow.as_ref()
    }

    /// Of an attempt that costs nothing.
    pub fn free(&self, account: &Account) -> Reservation {
        let seq = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (bound, counters) = (Bound::default(), self.counters(account));
        Reservation {
            attempt: Attempt { stage: Stage::Reserved, seq, bound, price: None, rights: None, counters },
            cap: None,
        }
    }

    fn counters(&self, account: &Account) -> Arc<Counters> {
        if let Some(known) = self.0.accounts.read().get(account) {
            return Arc::clone(known);
        }
        let mut accounts = self.0.accounts.write();
        if accounts.len() >= ACCOUNTS_MAX {
            accounts.clear();
        }
        Arc::clone(accounts.entry(account.clone()).or_insert_with(|| Arc::new(Counters::new(account))))
    }
}

/// `demands` are those of the budgets, as far as there are any yet.
fn unreserved(error: &NotReserved, demands: &[Demand], budgets: &[Arc<Budget>], escrow: &Escrow) -> QuotaError {
    let named = |place: &Place| demands.iter().zip(budgets).find(|(at, _)| at.place == *place);
    match error {
        NotReserved::Refused(Refused::Exceeded { place, amount, standing, lost }) => {
            let Some((_, budget)) = named(place) else { return QuotaError::Full };
            let ends = escrow.ends(budget, *place);
            let (limit, left, lost) = (standing.limit, standing.unused(), *lost);
            let (budget, needed) = (Arc::clone(budget), *amount);
            QuotaError::Exceeded(Box::new(Exceeded { budget, limit, left, lost, needed, ends }))
        }
        NotReserved::Refused(Refused::Crowded { place }) => match named(place) {
            Some((_, budget)) => QuotaError::Crowded { budget: Arc::clone(&budget.name) },
            None => QuotaError::Full,
        },
        // What is begun anew has not been refused by anyone.
        NotReserved::Refused(Refused::Over { .. }) => QuotaError::Unanswered { waited: Duration::ZERO },
        NotReserved::Refused(Refused::Full) => QuotaError::Full,
        NotReserved::Unanswered { waited } => QuotaError::Unanswered { waited: *waited },
    }
}

fn tokens_of(counts: TokenCounts) -> u64 {
    counts.input.saturating_add(counts.output)
}

/// How long an attempt may wait for rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Not beyond.
    pub until: Instant,
    /// So long the ledger's «no» is doubted: calls under way may leave enough. What one attempt of a request has doubted,
    /// the next does not doubt again.
    pub doubt: Duration,
}

impl Waits {
    /// Of a request that has not waited yet.
    pub fn new(until: Instant) -> Self {
        Self { until, doubt: held::DOUBT_MAX }
    }

    /// So much of it was waited.
    #[must_use]
    pub fn less(self, waited: Duration) -> Self {
        Self { doubt: self.doubt.saturating_sub(waited), ..self }
    }
}

/// In whose name an attempt is made. All three are names from the configuration, so their number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    pub tenant: Arc<str>,
    pub provider: Arc<str>,
    /// The route's label.
    pub route: Arc<str>,
}

/// Who pays for an attempt.
#[derive(Clone, Copy)]
pub struct Payer<'a> {
    pub account: &'a Account,
    /// It must fit in all of them.
    pub budgets: &'a [Arc<Budget>],
    /// As the request names him.
    pub end_user: Option<&'a str>,
}

/// The most an attempt can use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    pub tokens: TokenCounts,
    /// The provider bills reasoning it does not show, so what was seen says nothing about what is billed.
    pub hidden_reasoning: bool,
    /// Answers to be written, where the client said nothing of their length: then each may be capped. 0: it may not be.
    pub may_cap: u64,
}

/// Leave to spend up to the bound. Dropped, it is released.
#[must_use]
pub struct Reservation {
    attempt: Attempt,
    cap: Option<u64>,
}

impl Reservation {
    /// Which attempt of this node it is; never the client's request id.
    pub fn seq(&self) -> u64 {
        self.attempt.seq
    }

    /// Tokens each answer is to be capped at, where the budgets have no room for the longest there may be.
    pub fn cap(&self) -> Option<u64> {
        self.cap
    }

    /// The call is about to be written. From here on the attempt is charged, whatever happens.
    pub fn dispatch(mut self) -> Charge {
        self.attempt.stage = Stage::Dispatched;
        Charge(self.attempt)
    }
}

/// An attempt under way. Dropped, it costs its full bound.
#[must_use]
pub struct Charge(Attempt);

impl Charge {
    /// The provider said what was used. Images and calls are those of the bound: no provider reports them.
    pub fn settle(mut self, used: TokenCounts) -> Bill {
        let TokenCounts { images, calls, .. } = self.0.bound.tokens;
        self.0.close(Ending::Used(TokenCounts { images, calls, ..used }))
    }

    /// Nothing was written to the socket, or the provider refused without naming a usage.
    pub fn void(mut self) -> Bill {
        self.0.close(Ending::Nothing)
    }

    /// The answer was cut after content; `output` tokens of it were seen.
    pub fn cut(mut self, output: u64) -> Bill {
        self.0.close(Ending::Cut { output })
    }
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bill {
    /// `None` where the model has no price.
    pub cost: Option<NanoUsd>,
    pub tokens: TokenCounts,
    /// Not the provider's own count but an upper bound of it.
    pub estimated: bool,
}

#[derive(Clone, Copy)]
enum Ending {
    Used(TokenCounts),
    Nothing,
    Cut { output: u64 },
    Unknown,
}

/// What the receipts hold. Its drop is where the rules are.
struct Attempt {
    stage: Stage,
    seq: u64,
    bound: Bound,
    price: Option<Arc<Price>>,
    /// Dropped with it before the dispatch, which gives them back.
    rights: Option<Rights>,
    counters: Arc<Counters>,
}

#[derive(Clone, Copy)]
enum Stage {
    Reserved,
    Dispatched,
    Closed,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        match self.stage {
            Stage::Reserved => self.counters.released.increment(1),
            Stage::Dispatched => {
                self.close(Ending::Unknown);
            }
            Stage::Closed => {}
        }
    }
}

impl Attempt {
    fn close(&mut self, ending: Ending) -> Bill {
        let bill = self.bill(ending);
        self.stage = Stage::Closed;
        self.counters.count(&bill);
        if let Some(rights) = &mut self.rights {
            rights.settle(&bill, u64::from(!matches!(ending, Ending::Nothing)));
        }
        bill
    }

    fn bill(&self, ending: Ending) -> Bill {
        let bound = self.bound.tokens;
        let (tokens, estimated) = match ending {
            Ending::Used(used) => (used, false),
            Ending::Nothing => (TokenCounts::default(), false),
            Ending::Unknown => (bound, true),
            Ending::Cut { .. } if self.bound.hidden_reasoning => (bound, true),
            Ending::Cut { output } => {
                (TokenCounts { output: bound.output.min(output.saturating_add(CANCEL_SLACK)), ..bound }, true)
            }
        };
        let cost =
            self.price.as_deref().map(|price| if estimated { dearest(price, tokens) } else { price.cost(tokens) });
        let most = self.price.as_deref().map(|price| dearest(price, bound));
        if cost > most || tokens_of(tokens) > tokens_of(bound) {
            self.counters.bound_exceeded.increment(1);
            warn!(seq = self.seq, ?bound, ?tokens, "a call used more than the bound reserved for it");
        }
        Bill { cost, tokens, estimated }
    }
}

/// The cost when every token is of the dearest sort: what was read from or written to a cache, and what was reasoning,
/// is not known before the provider says it.
fn dearest(price: &Price, tokens: TokenCounts) -> NanoUsd {
    let input = price.input.max(price.cached_input).max(price.cache_write);
    let output = price.output.max(price.reasoning);
    let plain = TokenCounts { cached_input: 0, cache_write: 0, reasoning: 0, ..tokens };
    Price { input, output, ..*price }.cost(plain)
}

/// Handles made once for each account: looking one up by its labels costs more than the rest of a bill.
struct Counters {
    exact: Basis,
    estimated: Basis,
    released: KeptCounter,
    bound_exceeded: KeptCounter,
}

struct Basis {
    charges: KeptCounter,
    cost: KeptCounter,
    input: KeptCounter,
    output: KeptCounter,
}

impl Counters {
    fn new(account: &Account) -> Self {
        Self {
            exact: Basis::new(account, "exact"),
            estimated: Basis::new(account, "estimated"),
            released: KeptCounter::new(::metrics::counter!(metrics::RELEASED)),
            bound_exceeded: KeptCounter::new(::metrics::counter!(metrics::BOUND_EXCEEDED)),
        }
    }

    fn count(&self, bill: &Bill) {
        let basis = if bill.estimated { &self.estimated } else { &self.exact };
        basis.charges.increment(1);
        basis.cost.increment(bill.cost.map_or(0, |cost| cost.0));
        basis.input.increment(bill.tokens.input);
        basis.output.increment(bill.tokens.output);
    }
}

impl Basis {
    fn new(account: &Account, basis: &'static str) -> Self {
        let counter = |name: &'static str, direction: Option<&'static str>| {
            let mut labels = vec![
                ::metrics::Label::new("tenant", Arc::clone(&account.tenant)),
                ::metrics::Label::new("provider", Arc::clone(&account.provider)),
                ::metrics::Label::new("route", Arc::clone(&account.route)),
                ::metrics::Label::new("basis", basis),
            ];
            labels.extend(direction.map(|direction| ::metrics::Label::new("direction", direction)));
            KeptCounter::new(::metrics::counter!(name, labels))
        };
        Self {
            charges: counter(metrics::CHARGES, None),
            cost: counter(metrics::COST, None),
            input: counter(metrics::TOKENS, Some("input")),
            output: counter(metrics::TOKENS, Some("output")),
        }
    }
}

#[cfg(test)]
mod tests;
