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

/// The windows in which budgets are spent now, by the budgets' names, and in what each is counted: a name may have come to
/// mean another budget since a request read what it must fit in. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<HashMap<Arc<str>, (Place, Unit), RandomState>>);

impl FromIterator<(Arc<str>, (Place, Unit))> for Places {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, (Place, Unit))>>(places: I) -> Self {
        Self(Arc::new(places.into_iter().collect()))
    }
}

impl Places {
    /// Where this budget is spent now, by this end user where each has his own. `None` where it has just been made, and is
    /// counted in what it was.
    pub fn of(&self, budget: &Budget, user: UserId) -> Option<Place> {
        let (place, unit) = self.0.get(&budget.name)?;
        let place = if budget.each { place.of(user) } else { *place };
        (*unit == budget.limit.unit).then_some(place)
    }

    fn has(&self, window: Place) -> bool {
        self.0.values().any(|(place, _unit)| *place == window)
    }
}

struct Inner {
    held: Mutex<Held>,
    ledger: Arc<dyn Ledger>,
    places: watch::Sender<Places>,
    say: Notify,
    mark: Notify,
}

/// Rights that were taken. Dropped, they come back; so whoever uses them settles before.
#[must_use]
pub struct Hold {
    escrow: Escrow,
    demands: Arc<[Demand]>,
    open: bool,
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

    /// All of the demands if they are here and nobody waits for them; otherwise nothing has changed.
    pub fn take_at_once(&self, demands: Arc<[Demand]>, now: Instant) -> Option<Hold> {
        let todo = self.0.held.lock().take_at_once(&demands, now)?;
        self.heed(todo);
        Some(self.hold(demands))
    }

    /// Something comes back. Who stood in line for one budget may then stand in that of another, where only the disk has to
    /// hear of it.
    fn free(&self, come_back: impl FnOnce(&mut Held)) {
        let is_waited_for = {
            let mut held = self.0.held.lock();
            come_back(&mut held);
            held.is_waited_for()
        };
        if is_waited_for {
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
        let mut line = Line { escrow: self, demands: &demands, waiting };
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
    pub fn most(&self, places: &[Place]) -> SmallVec<[Option<u64>; 8]> {
        let held = self.0.held.lock();
        places.iter().map(|place| held.most(*place)).collect()
    }

    fn hold(&self, demands: Arc<[Demand]>) -> Hold {
        Hold { escrow: self.clone(), demands, open: true }
    }

    /// Reserves nothing any more. What the final settlement says of this life: how far it went, and may still go with
    /// calls that are under way.
    pub fn close(&self) -> Vec<(Place, Mark)> {
        self.0.held.lock().close()
    }

    /// Something was applied: `ledger` says what it is with a place now.
    pub fn look(&self, ledger: impl Fn(Place) -> Option<Told>) {
        if self.0.held.lock().look(ledger) {
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
            let said = self.0.held.lock().statements(said_at, STATEMENTS_MAX);
            if said.is_empty() {
                continue;
            }
            spoken = said_at.into();
            let places: Vec<Place> = said.iter().map(|(place, _)| *place).collect();
            match self.0.ledger.say(said).await {
                Ok(told) => {
                    let told_at = now();
                    ::metrics::histogram!(metrics::REFILL).record(told_at - said_at);
                    let mut held = self.0.held.lock();
                    for (place, told) in places.into_iter().zip(told) {
                        held.told(place, told, said_at, told_at);
                    }
                    drop(held);
                    self.0.mark.notify_one();
                }
                Err(why) => {
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
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.waiting.close();
        let served = matches!(self.waiting.try_recv(), Ok(Ok(())));
        self.escrow.free(|held| if served { held.release(self.demands) } else { held.gone(self.demands) });
    }
}

impl Hold {
    pub fn demands(&self) -> &[Demand] {
        &self.demands
    }

    /// This much of each was used, in the order of the demands; the rest comes back.
    pub fn settle(mut self, used: &[u64]) {
        self.open = false;
        self.escrow.free(|held| held.settle(&self.demands, used));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.open {
            self.escrow.free(|held| held.release(&self.demands));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use cluster::directory::budget::{Mode, Period};
    use cluster::id::{Incarnation, NodeId};
    use cluster::ledger::accounts::{Accounts, Declared, Roll};
    use futures_util::FutureExt;
    use tokio::task::JoinSet;

    use super::super::held::DOUBT_MAX;
    use super::*;

    const LIFE: Incarnation = Incarnation::new(1);

    /// One ledger for several nodes, in this process.
    #[derive(Clone)]
    pub(in crate::quota) struct Books(Arc<Mutex<Accounts>>);

    struct Node {
        books: Books,
        number: u64,
        answers: Arc<AtomicBool>,
    }

    impl Ledger for Node {
        fn say(&self, said: Vec<(Place, Statement)>) -> BoxFuture<'static, Result<Vec<Told>, String>> {
            let (books, number, answers) = (self.books.clone(), self.number, Arc::clone(&self.answers));
            async move {
                // A round through the log.
                tokio::time::sleep(Duration::from_millis(5)).await;
                if !answers.load(Ordering::Relaxed) {
                    return Err("nobody leads".to_owned());
                }
                let mut books = books.0.lock();
                let (life, node) = (Incarnation::new(LIFE.get() + number), NodeId::new(number));
                Ok(said.into_iter().map(|(place, said)| books.state(place, life, node, said, false)).collect())
            }
            .boxed()
        }

        fn debts(&self, place: Place) -> Option<u64> {
            let (life, node) = (Incarnation::new(LIFE.get() + self.number), NodeId::new(self.number));
            self.books.0.lock().debts(place, node, life)
        }
    }

    #[derive(Default)]
    struct Disk(Arc<AtomicU64>);

    impl Marks for Disk {
        fn write(&self, marks: Vec<(Place, Mark)>) -> BoxFuture<'static, Result<(), String>> {
            let writes = Arc::clone(&self.0);
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                writes.fetch_add(marks.len() as u64, Ordering::Relaxed);
                Ok(())
            }
            .boxed()
        }
    }

    impl Books {
        pub(in crate::quota) fn new(limits: &[u64]) -> (Self, Vec<Place>) {
            let mut accounts = Accounts::default();
            let declared = |(number, limit): (usize, &u64)| Declared {
                name: format!("b{number}"),
                terms: String::new(),
                limit: *limit,
                each: false,
            };
            let declared: Vec<Declared> = limits.iter().enumerate().map(declared).collect();
            accounts.align(&declared);
            let ids: Vec<_> = accounts.iter().map(|(id, _)| id).collect();
            for budget in &ids {
                accounts.roll(&Roll { budget: *budget, after: None, starts: Duration::ZERO, ends: None });
            }
            let places = ids.into_iter().map(|budget| Place::new(budget, 0)).collect();
            (Self(Arc::new(Mutex::new(accounts))), places)
        }

        pub(in crate::quota) fn node(&self, number: u64) -> (Escrow, Arc<AtomicBool>) {
            let answers = Arc::new(AtomicBool::new(true));
            let ledger = Node { books: self.clone(), number, answers: Arc::clone(&answers) };
            let (escrow, says, marking) = Escrow::new(Arc::new(ledger), Arc::new(Disk::default()));
            let mut loops = JoinSet::new();
            loops.spawn(says);
            loops.spawn(marking);
            loops.spawn(self.clone().heeded(escrow.clone(), Incarnation::new(LIFE.get() + number)));
            loops.detach_all();
            (escrow, answers)
        }

        /// As a node sees in its register what others lack.
        async fn heeded(self, escrow: Escrow, life: Incarnation) {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                escrow.look(|place| Some(self.0.lock().told(place, life)));
            }
        }

        fn held(&self, place: Place) -> u64 {
            self.0.lock().window(place).unwrap().book.held()
        }

        fn used(&self, place: Place) -> u64 {
            self.0.lock().window(place).unwrap().book.used()
        }
    }

    fn demand(place: Place, amount: u64) -> Arc<[Demand]> {
        Arc::new([Demand { place, amount, overdraft: 0 }])
    }

    fn long() -> Patience {
        Patience::all(DOUBT_MAX)
    }

    fn soon() -> Instant {
        now() + Duration::from_mins(1)
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_ledger_has_is_taken_and_what_it_has_not_is_refused() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, _) = books.node(0);

        let hold = escrow.reserve(demand(places[0], 600), long(), soon()).await.unwrap();
        hold.settle(&[600]);
        let refused = escrow.reserve(demand(places[0], 600), long(), soon()).await.err();

        assert!(matches!(refused, Some(NotReserved::Refused(Refused::Exceeded { amount: 600, .. }))), "{refused:?}");
        escrow.reserve(demand(places[0], 400), long(), soon()).await.unwrap().settle(&[400]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!((books.used(places[0]), books.held(places[0])), (1_000, 1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_takes_of_all_its_budgets_or_of_none() {
        let (books, places) = Books::new(&[1_000, 10]);
        let (escrow, _) = books.node(0);
        let both: Arc<[Demand]> = demand(places[0], 100).iter().chain(demand(places[1], 50).iter()).copied().collect();

        let refused = escrow.reserve(both, long(), soon()).await.err();

        assert!(matches!(refused, Some(NotReserved::Refused(Refused::Exceeded { amount: 50, .. }))), "{refused:?}");
        assert_eq!(escrow.lease(places[0]).unwrap().reserved(), 0);
    }

    /// The «no» of a budget whose calls are under way is doubted: they may use less than was set aside for them.
    #[tokio::test(start_paused = true)]
    async fn who_comes_when_all_is_set_aside_waits_for_what_comes_back() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, _) = books.node(0);
        let first = escrow.reserve(demand(places[0], 900), long(), soon()).await.unwrap();
        let other = escrow.clone();
        let place = places[0];
        let mut second = JoinSet::new();
        second.spawn(async move { other.reserve(demand(place, 500), long(), soon()).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(second.try_join_next().is_none());

        first.settle(&[10]);

        assert_eq!(second.join_all().await, [Ok(())]);
    }

    /// Of one of its budgets there is nothing to say for long: the ledger answers all the same.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_one_budget_is_not_told_that_nobody_answers_of_another() {
        let (books, places) = Books::new(&[1_000, 1_000]);
        let (escrow, _) = books.node(0);
        let both: Arc<[Demand]> = places.iter().flat_map(|place| demand(*place, 500).to_vec()).collect();
        escrow.reserve(demand(places[1], 500), long(), soon()).await.unwrap().settle(&[1]);
        let first = escrow.reserve(demand(places[0], 900), long(), soon()).await.unwrap();
        let mut second = JoinSet::new();
        let other = escrow.clone();
        second.spawn(async move { other.reserve(both, long(), soon()).await.map(drop) });
        tokio::time::sleep(Duration::from_secs(6)).await;

        first.settle(&[10]);

        assert_eq!(second.join_all().await, [Ok(())]);
    }

    /// What is here is for who stands before: that is no silence of the ledger.
    #[tokio::test(start_paused = true)]
    async fn who_can_do_with_less_does_not_stand_behind_who_waits_for_more() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, _) = books.node(0);
        drop(escrow.reserve(demand(places[0], 1_000), long(), soon()).await.unwrap());
        let _under_way = escrow.reserve(demand(places[0], 600), long(), soon()).await.unwrap();
        assert_eq!(escrow.lease(places[0]).unwrap().idle(), 400, "all of it is here");
        let mut first = JoinSet::new();
        let other = escrow.clone();
        let place = places[0];
        first.spawn(async move { other.reserve(demand(place, 500), long(), soon()).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(100)).await;

        let behind = escrow.reserve(demand(places[0], 100), Patience::or_less(DOUBT_MAX), soon()).await.map(drop);

        assert!(matches!(behind, Err(NotReserved::Refused(Refused::Exceeded { .. }))), "{behind:?}");
        let refused = first.join_all().await;
        assert!(matches!(refused[..], [Err(NotReserved::Refused(Refused::Exceeded { .. }))]), "{refused:?}");
        assert_eq!(escrow.reserve(demand(places[0], 100), long(), soon()).await.map(drop), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ledger_that_does_not_answer_says_no_to_nobody() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, answers) = books.node(0);
        answers.store(false, Ordering::Relaxed);

        let refused = escrow.reserve(demand(places[0], 10), long(), soon()).await.err();

        assert!(matches!(refused, Some(NotReserved::Unanswered { .. })), "{refused:?}");
    }

    /// No ledger answers who wants more than is here; who wants less does not stand behind him for ever.
    #[tokio::test(start_paused = true)]
    async fn who_left_the_line_is_in_nobodys_way() {
        let (books, places) = Books::new(&[100]);
        let (escrow, answers) = books.node(0);
        drop(escrow.reserve(demand(places[0], 100), long(), soon()).await.unwrap());
        answers.store(false, Ordering::Relaxed);
        let much = escrow.reserve(demand(places[0], 101), long(), soon());
        let little = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            escrow.reserve(demand(places[0], 5), long(), soon()).await.map(drop)
        };

        let (much, behind) = tokio::join!(much, little);

        assert!(matches!(much.map(drop), Err(NotReserved::Unanswered { .. })));
        assert_eq!(behind, Ok(()), "once that one had left");
        assert_eq!(escrow.reserve(demand(places[0], 5), long(), soon()).await.map(drop), Ok(()));
    }

    /// What one node has and does not use goes to the one that waits for it.
    #[tokio::test(start_paused = true)]
    async fn idle_rights_are_recalled() {
        let (books, places) = Books::new(&[1_000]);
        let (one, _) = books.node(0);
        let (other, _) = books.node(1);
        one.reserve(demand(places[0], 400), long(), soon()).await.unwrap().settle(&[100]);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(one.lease(places[0]).unwrap().idle() > 200, "fetched ahead");

        let got = other.reserve(demand(places[0], 850), long(), soon()).await.map(drop);

        assert_eq!(got, Ok(()));
    }

    /// Two hundred at once of a cent each, on a dollar, over three nodes: a hundred pass.
    #[tokio::test(start_paused = true)]
    async fn as_many_pass_as_there_is_money_for() {
        const CENT: u64 = 10_000_000;
        let (books, places) = Books::new(&[100 * CENT]);
        let nodes: Vec<Escrow> = (0..3).map(|number| books.node(number).0).collect();
        let mut calls = JoinSet::new();
        for number in 0..200 {
            let (escrow, place) = (nodes[number % 3].clone(), places[0]);
            calls.spawn(async move {
                let hold = escrow.reserve(demand(place, CENT), long(), soon()).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
                hold.settle(&[CENT]);
                Ok::<(), NotReserved>(())
            });
        }

        let ends = calls.join_all().await;

        let passed = ends.iter().filter(|end| end.is_ok()).count();
        assert_eq!(passed, 100, "{:?}", ends.iter().filter(|end| end.is_err()).take(3).collect::<Vec<_>>());
        assert!(ends.iter().all(|end| matches!(end, Ok(()) | Err(NotReserved::Refused(Refused::Exceeded { .. })))));
    }

    /// What nobody answered may not have been heard: it is said again, though nothing has been used since.
    #[tokio::test(start_paused = true)]
    async fn a_report_that_nobody_answered_is_made_again() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, answers) = books.node(0);
        escrow.reserve(demand(places[0], 100), long(), soon()).await.unwrap().settle(&[100]);
        let hold = escrow.reserve(demand(places[0], 50), long(), soon()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(books.used(places[0]), 100);

        answers.store(false, Ordering::Relaxed);
        hold.settle(&[50]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        answers.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(3)).await;

        assert_eq!(books.used(places[0]), 150);
    }

    /// While nobody answers, a node spends what it holds and then its overdraft; what comes after pays it first. Without an
    /// overdraft nobody is served, and nobody told no.
    #[tokio::test(start_paused = true)]
    async fn an_overdraft_is_spent_while_the_ledger_is_silent_and_paid_when_it_answers() {
        let (books, places) = Books::new(&[100, 100]);
        let (escrow, answers) = books.node(0);
        let credit = |amount| -> Arc<[Demand]> { Arc::new([Demand { place: places[0], amount, overdraft: 30 }]) };
        let reserve = |demands| escrow.reserve(demands, long(), soon());
        reserve(credit(100)).await.unwrap().settle(&[100]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(matches!(reserve(credit(1)).await, Err(NotReserved::Refused(Refused::Exceeded { .. }))), "it answers");
        assert!(reserve(demand(places[1], 90)).await.is_ok());

        answers.store(false, Ordering::Relaxed);
        reserve(credit(20)).await.unwrap().settle(&[20]);
        let began = now();
        reserve(credit(10)).await.unwrap().settle(&[10]);
        assert!(now() - began < Duration::from_secs(1), "that nobody answers is known by now");
        assert!(matches!(reserve(credit(1)).await, Err(NotReserved::Unanswered { .. })), "the overdraft is spent");
        assert!(matches!(reserve(demand(places[1], 100)).await, Err(NotReserved::Unanswered { .. })));

        answers.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!((books.used(places[0]), books.held(places[0])), (130, 130));
        books.0.lock().align(&[("b0", 140), ("b1", 100)].map(|(name, limit)| Declared {
            name: name.to_owned(),
            terms: String::new(),
            limit,
            each: false,
        }));
        assert!(matches!(reserve(credit(11)).await, Err(NotReserved::Refused(Refused::Exceeded { .. }))));
        reserve(credit(10)).await.unwrap().settle(&[10]);
        assert_eq!(escrow.lease(places[0]).unwrap().debt(), 0);
    }

    /// A soft budget, or a bound that was none: the mark comes after what was used, so that the next life can prove the rest.
    #[tokio::test(start_paused = true)]
    async fn what_was_used_beyond_what_was_set_aside_is_marked_too() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, _) = books.node(0);

        escrow.reserve(demand(places[0], 100), long(), soon()).await.unwrap().settle(&[1_500]);
        tokio::time::sleep(Duration::from_secs(3)).await;

        let lease = escrow.lease(places[0]).unwrap();
        assert_eq!((books.used(places[0]), lease.used()), (1_500, 1_500));
        assert!(lease.mark().reach >= 1_500, "{lease:?}");
    }

    /// Who has left is not waited for: others need not give back what they hold for him.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_called_back_for_who_has_left() {
        let (books, places) = Books::new(&[1_000]);
        let (one, _) = books.node(0);
        let (other, _) = books.node(1);
        let recalled = || matches!(books.0.lock().told(places[0], LIFE), Told::Standing(standing) if standing.recall);
        let _hold = one.reserve(demand(places[0], 900), long(), soon()).await.unwrap();

        let waits = other.reserve(demand(places[0], 500), long(), soon());
        assert!(tokio::time::timeout(Duration::from_secs(1), waits).await.is_err());
        assert!(recalled(), "he waited");
        tokio::time::sleep(Duration::from_secs(2)).await;

        assert!(!recalled());
    }

    /// A request that began before a budget was made anew in another unit must not be counted in the wrong one.
    #[tokio::test(start_paused = true)]
    async fn a_budget_counted_in_something_else_is_another_one() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, _) = books.node(0);
        let budget = |limit: &str| {
            let (name, limit) = ("b".into(), limit.parse().unwrap());
            Budget {
                name,
                limit,
                period: Period::Total,
                timezone: None,
                mode: Mode::Hard,
                overdraft: 0,
                each: false,
                assumed: None,
            }
        };
        escrow.publish([("b".into(), (places[0], Unit::Tokens))].into_iter().collect());
        let find = |budget: Budget| escrow.find(move |places| places.of(&budget, UserId::NOBODY), soon());

        assert_eq!(find(budget("9 tokens")).await, Ok(places[0]));
        let old = find(budget("$9")).await;

        assert!(matches!(old, Err(NotReserved::Unanswered { .. })), "{old:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_takes_nothing_along() {
        let (books, places) = Books::new(&[1_000]);
        let (escrow, answers) = books.node(0);
        answers.store(false, Ordering::Relaxed);
        let waits = escrow.reserve(demand(places[0], 10), long(), soon());
        assert!(tokio::time::timeout(Duration::from_millis(10), waits).await.is_err());
        answers.store(true, Ordering::Relaxed);

        escrow.reserve(demand(places[0], 20), long(), soon()).await.unwrap().settle(&[20]);

        assert_eq!(escrow.lease(places[0]).unwrap().busy(), 20);
    }
}
