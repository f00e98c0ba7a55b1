//! Reserving out of what the ledger granted this node: one short critical section, no await in it.
//!
//! Owns       what this node holds of every budget ([`Held`]).
//! Told by    attempts: reserve, settle, release.
//! Tells      the ledger what was used and wanted, and the disk how far this life may go before anything goes that far.
//! Restarts   nothing is forgotten that the disk does not know: what was granted to the life before is given back by the
//!            next one, as far as its marks prove it unspent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::directory::budget::{Budget, Unit};
use cluster::ledger::accounts::{Place, Told, UserId};
use cluster::ledger::book::Statement;
use cluster::ledger::lease::Mark;
use foldhash::fast::RandomState;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, watch};
use tracing::{error, warn};

use super::Ends;
use super::held::{Demand, Held, Patience, Refused, Reserved, Todo};
use super::metrics;

/// The ledger is spoken to at least so often while anything is to be said.
const EVERY: Duration = Duration::from_millis(250);

/// And so often while anyone stands in line.
const EVERY_WAITED_FOR: Duration = Duration::from_millis(50);

/// What is to be said within so long of the last time is said together: each time costs an entry of the log.
const GATHER: Duration = Duration::from_millis(15);

/// How long an attempt waits for an answer of the ledger.
pub const WAIT_MAX: Duration = Duration::from_secs(3);

/// A ledger that was spoken to so long ago and has not answered is not waited for by who has an overdraft.
const SILENT_AFTER: Duration = Duration::from_millis(2_500);

/// Statements in one command.
const STATEMENTS_MAX: usize = cluster::register::QUOTA_MAX;

/// Where grants come from.
pub trait Ledger: Send + Sync + 'static {
    /// One answer for each statement, in their order, once all of it is applied. An error: nothing is known of it.
    fn say(&self, said: Vec<(Place, Statement)>) -> BoxFuture<'static, Result<Vec<Told>, String>>;

    /// What earlier lives of this node may have spent of a place on credit, as far as this node has applied the ledger.
    /// `None`: nobody can tell.
    fn debts(&self, place: Place) -> Option<u64>;

    /// Held in each place by lives of nodes that are not heard of, and not proved spent: nobody can count on it before they
    /// are back.
    fn lost(&self, places: &[Place]) -> Vec<u64>;
}

/// The disk, or what stands for it.
pub trait Marks: Send + Sync + 'static {
    /// Durable when it returns.
    fn write(&self, marks: Vec<(Place, Mark)>) -> BoxFuture<'static, Result<(), String>>;
}

/// Why an attempt may not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReserved {
    #[error(transparent)]
    Refused(Refused),
    /// Nobody said no: it may be tried again.
    #[error("the ledger did not answer within {waited:?}")]
    Unanswered { waited: Duration },
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Escrow(Arc<Inner>);

/// The windows in which budgets are spent now, by the budgets' names. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<HashMap<Arc<str>, Now, RandomState>>);

/// Where a budget is spent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub place: Place,
    /// In what it is counted: a name may have come to mean another budget since a request read what it must fit in.
    pub unit: Unit,
    /// Of the window, since 1970. `None`: never.
    pub ends: Option<Duration>,
}

impl FromIterator<(Arc<str>, Now)> for Places {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Now)>>(places: I) -> Self {
        Self(Arc::new(places.into_iter().collect()))
    }
}

impl Places {
    /// Where this budget is spent now, by this end user where each has his own. `None` where it has just been made, and is
    /// counted in what it was.
    pub fn of(&self, budget: &Budget, user: UserId) -> Option<Place> {
        let Now { place, unit, .. } = self.0.get(&budget.name)?;
        let place = if budget.each { place.of(user) } else { *place };
        (*unit == budget.limit.unit).then_some(place)
    }

    /// When this window of the budget is over. `None`: it is not where the budget is spent now.
    fn ends(&self, budget: &Budget, place: Place) -> Option<Ends> {
        let now = self.0.get(&budget.name).filter(|now| now.place == place.of(UserId::NOBODY))?;
        Some(now.ends.map_or(Ends::Never, Ends::At))
    }

    fn has(&self, window: Place) -> bool {
        self.0.values().any(|now| now.place == window)
    }
}

struct Inner {
    held: Mutex<Held>,
    ledger: Arc<dyn Ledger>,
    places: watch::Sender<Places>,
    say: Notify,
    mark: Notify,
    last_word: watch::Sender<Spoken>,
}

/// What became of what was said to the ledger last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Spoken {
    #[default]
    Answered,
    UnderWay,
    /// It may have been heard, or may be yet.
    Unanswered,
}

/// Rights that were taken. Dropped, they come back; so whoever uses them settles before.
#[must_use]
pub struct Hold {
    escrow: Escrow,
    /// `None` once it is settled.
    demands: Option<Arc<[Demand]>>,
}

impl Escrow {
    /// The handle, and the two loops to run.
    pub fn new(
        ledger: Arc<dyn Ledger>,
        marks: Arc<dyn Marks>,
    ) -> (Self, impl Future<Output = ()> + Send, impl Future<Output = ()> + Send) {
        let escrow = Self(Arc::new(Inner {
            held: Mutex::default(),
            ledger,
            places: watch::Sender::default(),
            say: Notify::new(),
            mark: Notify::new(),
            last_word: watch::Sender::default(),
        }));
        let (says, marking) = (escrow.clone().says(), escrow.clone().marking(marks));
        (escrow, says, marking)
    }

    /// Windows have begun, or budgets have come or gone.
    pub fn publish(&self, places: Places) {
        self.0.places.send_replace(places);
    }

    /// What is found in the places of now.
    pub fn find_now<T>(&self, find: impl Fn(&Places) -> Option<T>) -> Option<T> {
        find(&self.0.places.borrow())
    }

    /// When this window of the budget is over. `None`: it is already, or another budget has the name.
    pub fn ends(&self, budget: &Budget, place: Place) -> Option<Ends> {
        self.find_now(|places| places.ends(budget, place))
    }

    /// All of the demands if they are here and nobody waits for them; otherwise nothing has changed.
    pub fn take_at_once(&self, demands: Arc<[Demand]>, now: Instant) -> Option<Hold> {
        let todo = self.0.held.lock().take_at_once(&demands, now)?;
        self.heed(todo);
        Some(self.hold(demands))
    }

    /// Something comes back. Who stood in line for one budget may then stand in that of another, where only the disk has to
    /// hear of it.
    fn free(&self, come_back: impl FnOnce(&mut Held)) {
        let unmarked = {
            let mut held = self.0.held.lock();
            come_back(&mut held);
            held.take_unmarked()
        };
        if unmarked {
            self.0.mark.notify_one();
        }
    }

    fn heed(&self, todo: Todo) {
        if todo.say {
            self.0.say.notify_one();
        }
        if todo.mark {
            self.0.mark.notify_one();
        }
    }

    /// What is found in the places of now, or of what they come to be before `until`.
    pub async fn find<T>(&self, find: impl Fn(&Places) -> Option<T>, until: Instant) -> Result<T, NotReserved> {
        match self.find_now(&find) {
            Some(found) => Ok(found),
            None => self.wait_for(until, find).await,
        }
    }

    /// Returns when this window is not where anything is spent now.
    pub async fn next_after(&self, place: Place, until: Instant) -> Result<(), NotReserved> {
        let window = place.of(UserId::NOBODY);
        self.wait_for(until, |places| (!places.has(window)).then_some(())).await
    }

    async fn wait_for<T>(&self, until: Instant, find: impl Fn(&Places) -> Option<T>) -> Result<T, NotReserved> {
        let began = now();
        let until = until.min(began + WAIT_MAX);
        let mut places = self.0.places.subscribe();
        let wait = async {
            loop {
                if let Some(found) = find(&places.borrow_and_update()) {
                    return Some(found);
                }
                places.changed().await.ok()?;
            }
        };
        let found = tokio::time::timeout_at(until.into(), wait).await.ok().flatten();
        found.ok_or_else(|| NotReserved::Unanswered { waited: now() - began })
    }

    /// All of the demands, or none. Waits for the ledger where this node has too little, not beyond `until`; its «no» is
    /// doubted as `patience` says. Where the ledger has not answered for [`SILENT_AFTER`], what is missing is taken on credit, as
    /// far as the demands have any.
    pub async fn reserve(
        &self,
        demands: Arc<[Demand]>,
        patience: Patience,
        until: Instant,
    ) -> Result<Hold, NotReserved> {
        let began = now();
        let reserved = self.0.held.lock().reserve(&demands, patience, began).map_err(NotReserved::Refused)?;
        let (waiting, todo) = match reserved {
            Reserved::Taken(todo) => (None, todo),
            Reserved::Waits(waiting, todo) => (Some(waiting), todo),
        };
        self.heed(todo);
        let Some(waiting) = waiting else { return Ok(self.hold(demands)) };
        let mut last = until.min(began + patience.doubt() + WAIT_MAX);
        let mut lent = self.lend(&demands);
        let mut line = Line { escrow: self, demands: &demands, waiting, answered: false };
        let answered = loop {
            let look = last.min(now() + WAIT_MAX);
            match tokio::time::timeout_at(look.into(), &mut line.waiting).await {
                Ok(answered) => break answered.ok(),
                // The disk may still have to hear of it.
                Err(_elapsed) if !lent && self.lend(&demands) => {
                    lent = true;
                    last = until.min(now() + WAIT_MAX);
                }
                // The ledger answers, and what it says is not enough yet.
                Err(_elapsed) if now() < last && self.0.held.lock().is_answered(now(), WAIT_MAX) => {}
                Err(_elapsed) => break None,
            }
        };
        line.answered = answered.is_some();
        drop(line);
        match answered {
            Some(Ok(())) => Ok(self.hold(demands)),
            Some(Err(refused)) => Err(NotReserved::Refused(refused)),
            None => Err(NotReserved::Unanswered { waited: now() - began }),
        }
    }

    /// Whether the ledger is silent, and there is credit for the demands.
    pub(super) fn lend(&self, demands: &[Demand]) -> bool {
        if demands.iter().all(|demand| demand.overdraft == 0) || !self.0.held.lock().is_silent(now(), SILENT_AFTER) {
            return false;
        }
        let credit = |demand: &Demand| {
            let debts = if demand.overdraft == 0 { None } else { self.0.ledger.debts(demand.place) };
            debts.map(|debts| (demand.place, demand.overdraft.saturating_sub(debts)))
        };
        // Outside of the lock: it is the register that is asked.
        let credits: Vec<(Place, u64)> = demands.iter().filter_map(credit).collect();
        let mut held = self.0.held.lock();
        // It may have answered meanwhile.
        if !held.is_silent(now(), SILENT_AFTER) {
            return false;
        }
        for (place, credit) in &credits {
            held.lend(*place, *credit);
        }
        drop(held);
        self.0.mark.notify_one();
        !credits.is_empty()
    }

    /// What could be taken of each place if nobody else did, as far as the ledger has said.
    pub fn left(&self, places: &[Place]) -> Vec<u64> {
        let held = self.0.held.lock();
        places.iter().map(|place| held.left(*place).unwrap_or_default()).collect()
    }

    /// What could be taken of each place if nobody used anything that he holds; `None` where the ledger has said nothing.
    pub fn most(&self, places: impl IntoIterator<Item = Place>) -> SmallVec<[Option<u64>; 8]> {
        let held = self.0.held.lock();
        places.into_iter().map(|place| held.most(place)).collect()
    }

    fn hold(&self, demands: Arc<[Demand]>) -> Hold {
        Hold { escrow: self.clone(), demands: Some(demands) }
    }

    /// Reserves nothing any more. What the final settlement says of this life: how far it went, and may still go with
    /// calls that are under way.
    pub fn close(&self) -> Vec<(Place, Mark)> {
        self.0.held.lock().close()
    }

    /// Whether the ledger has answered all that was said to it; waits for an answer under way no longer than `within`. Else it
    /// may grant something yet, of which nobody here will hear.
    pub async fn has_heard_all(&self, within: Duration) -> bool {
        let mut word = self.0.last_word.subscribe();
        let ended = tokio::time::timeout(within, word.wait_for(|word| *word != Spoken::UnderWay)).await;
        ended.is_ok_and(|ended| ended.is_ok_and(|word| *word == Spoken::Answered))
    }

    /// Something was applied: `ledger` says what it is with a place now. As [`Held::look`].
    pub fn look(&self, everywhere: bool, ledger: impl Fn(Place) -> Option<Told>) {
        if self.0.held.lock().look(everywhere, ledger) {
            self.0.say.notify_one();
        }
    }

    /// What is set aside of a window, for all its end users.
    pub fn reserved(&self, window: Place) -> u64 {
        self.0.held.lock().reserved(window)
    }

    /// What this node holds of one budget.
    pub fn lease(&self, place: Place) -> Option<cluster::ledger::lease::Lease> {
        self.0.held.lock().lease(place).cloned()
    }

    async fn says(self) {
        let mut spoken = tokio::time::Instant::now();
        loop {
            let every = if self.0.held.lock().is_waited_for() { EVERY_WAITED_FOR } else { EVERY };
            // Whether asked to or not: reports are due, too.
            let _asked = tokio::time::timeout(every, self.0.say.notified()).await.is_ok();
            tokio::time::sleep_until(spoken + GATHER).await;
            let said_at = now();
            let said = {
                let places = self.0.places.borrow().clone();
                let mut held = self.0.held.lock();
                held.forget(said_at, |place| places.has(place.of(UserId::NOBODY)));
                let said = held.statements(said_at, STATEMENTS_MAX);
                if !said.is_empty() {
                    // Before anyone can close it, and ask.
                    self.0.last_word.send_replace(Spoken::UnderWay);
                }
                said
            };
            if said.is_empty() {
                continue;
            }
            spoken = said_at.into();
            let places: Vec<Place> = said.iter().map(|(place, _)| *place).collect();
            match self.0.ledger.say(said).await {
                Ok(told) => {
                    self.0.last_word.send_replace(Spoken::Answered);
                    let told_at = now();
                    ::metrics::histogram!(metrics::REFILL).record(told_at - said_at);
                    // Outside of the lock: it is the register that is asked.
                    let lost = self.0.ledger.lost(&places);
                    let mut held = self.0.held.lock();
                    for ((place, told), lost) in places.into_iter().zip(told).zip(lost) {
                        held.lost(place, lost);
                        held.told(place, told, said_at, told_at);
                    }
                    drop(held);
                    self.0.mark.notify_one();
                }
                Err(why) => {
                    self.0.last_word.send_replace(Spoken::Unanswered);
                    warn!(why, "the ledger did not answer");
                    self.0.held.lock().unanswered(&places);
                    tokio::time::sleep(EVERY).await;
                }
            }
        }
    }

    async fn marking(self, marks: Arc<dyn Marks>) {
        loop {
            self.0.mark.notified().await;
            loop {
                let wanted = self.0.held.lock().marks(now());
                if wanted.is_empty() {
                    break;
                }
                let written = marks.write(wanted.clone()).await;
                if let Err(why) = &written {
                    error!(why, "how far this node may spend could not be written down; it stops there");
                    tokio::time::sleep(EVERY).await;
                }
                self.0.held.lock().marked(&wanted, written.is_ok());
            }
        }
    }
}

/// By the runtime's clock, as its timeouts are.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Someone who waits. If it leaves when it has just been served, what it was given is released.
struct Line<'a> {
    escrow: &'a Escrow,
    demands: &'a [Demand],
    waiting: tokio::sync::oneshot::Receiver<Result<(), Refused>>,
    answered: bool,
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.waiting.close();
        let served = matches!(self.waiting.try_recv(), Ok(Ok(())));
        self.escrow.free(|held| if served { held.release(self.demands) } else { held.gone(self.demands) });
    }
}

impl Hold {
    /// This much of each was used, in the order of the demands; the rest comes back.
    pub fn settle(mut self, used: impl IntoIterator<Item = u64>) {
        if let Some(demands) = self.demands.take() {
            self.escrow.free(|held| held.settle(&demands, used));
        }
    }

    /// The same, where it stands; once, whatever is called after it.
    pub(super) fn settle_each(&mut self, used: impl Fn((usize, &Demand)) -> u64) {
        if let Some(demands) = self.demands.take() {
            self.escrow.free(|held| held.settle(&demands, demands.iter().enumerate().map(used)));
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(demands) = self.demands.take() {
            self.escrow.free(|held| held.release(&demands));
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
