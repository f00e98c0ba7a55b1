use std::collections::BTreeSet;
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
pub(in crate::quota) struct Books(Arc<Mutex<Accounts>>, Arc<Mutex<BTreeSet<NodeId>>>);

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

    fn lost(&self, places: &[Place]) -> Vec<u64> {
        let (accounts, lost) = (self.books.0.lock(), self.books.1.lock());
        places.iter().map(|place| accounts.book(*place).map_or(0, |book| book.held_by(&lost))).collect()
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

/// Budgets of these limits, and where each is spent.
pub(in crate::quota) fn accounts(limits: &[u64]) -> (Accounts, Vec<Place>) {
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
    (accounts, ids.into_iter().map(|budget| Place::new(budget, 0)).collect())
}

impl Books {
    pub(in crate::quota) fn new(limits: &[u64]) -> (Self, Vec<Place>) {
        let (accounts, places) = accounts(limits);
        (Self(Arc::new(Mutex::new(accounts)), Arc::default()), places)
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
            escrow.look(false, |place| Some(self.0.lock().told(place, life)));
        }
    }

    /// This node is not heard of any more.
    pub(in crate::quota) fn lose(&self, number: u64) {
        self.1.lock().insert(NodeId::new(number));
    }

    fn held(&self, place: Place) -> u64 {
        self.0.lock().window(place).unwrap().book.held()
    }

    fn used(&self, place: Place) -> u64 {
        self.0.lock().window(place).unwrap().book.used()
    }
}

fn demand(place: Place, amount: u64) -> Arc<[Demand]> {
    Arc::new([Demand { place, unit: Unit::Tokens, amount, overdraft: 0 }])
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
    hold.settle([600]);
    let refused = escrow.reserve(demand(places[0], 600), long(), soon()).await.err();

    assert!(matches!(refused, Some(NotReserved::Refused(Refused::Exceeded { amount: 600, .. }))), "{refused:?}");
    escrow.reserve(demand(places[0], 400), long(), soon()).await.unwrap().settle([400]);
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

    first.settle([10]);

    assert_eq!(second.join_all().await, [Ok(())]);
}

/// Of one of its budgets there is nothing to say for long: the ledger answers all the same.
#[tokio::test(start_paused = true)]
async fn who_waits_for_one_budget_is_not_told_that_nobody_answers_of_another() {
    let (books, places) = Books::new(&[1_000, 1_000]);
    let (escrow, _) = books.node(0);
    let both: Arc<[Demand]> = places.iter().flat_map(|place| demand(*place, 500).to_vec()).collect();
    escrow.reserve(demand(places[1], 500), long(), soon()).await.unwrap().settle([1]);
    let first = escrow.reserve(demand(places[0], 900), long(), soon()).await.unwrap();
    let mut second = JoinSet::new();
    let other = escrow.clone();
    second.spawn(async move { other.reserve(both, long(), soon()).await.map(drop) });
    tokio::time::sleep(Duration::from_secs(6)).await;

    first.settle([10]);

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
    one.reserve(demand(places[0], 400), long(), soon()).await.unwrap().settle([100]);
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
            hold.settle([CENT]);
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
    escrow.reserve(demand(places[0], 100), long(), soon()).await.unwrap().settle([100]);
    let hold = escrow.reserve(demand(places[0], 50), long(), soon()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(books.used(places[0]), 100);

    answers.store(false, Ordering::Relaxed);
    hold.settle([50]);
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
    let credit = |amount| -> Arc<[Demand]> {
        Arc::new([Demand { place: places[0], unit: Unit::Tokens, amount, overdraft: 30 }])
    };
    let reserve = |demands| escrow.reserve(demands, long(), soon());
    reserve(credit(100)).await.unwrap().settle([100]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(matches!(reserve(credit(1)).await, Err(NotReserved::Refused(Refused::Exceeded { .. }))), "it answers");
    assert!(reserve(demand(places[1], 90)).await.is_ok());

    answers.store(false, Ordering::Relaxed);
    reserve(credit(20)).await.unwrap().settle([20]);
    let began = now();
    reserve(credit(10)).await.unwrap().settle([10]);
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
    reserve(credit(10)).await.unwrap().settle([10]);
    assert_eq!(escrow.lease(places[0]).unwrap().debt(), 0);
}

/// A soft budget, or a bound that was none: the mark comes after what was used, so that the next life can prove the rest.
#[tokio::test(start_paused = true)]
async fn what_was_used_beyond_what_was_set_aside_is_marked_too() {
    let (books, places) = Books::new(&[1_000]);
    let (escrow, _) = books.node(0);

    escrow.reserve(demand(places[0], 100), long(), soon()).await.unwrap().settle([1_500]);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let lease = escrow.lease(places[0]).unwrap();
    assert_eq!((books.used(places[0]), lease.used()), (1_500, 1_500));
    assert!(lease.mark().reach >= 1_500, "{lease:?}");
}

/// It may yet grant what was asked for: a life that ends is not to forget what it could prove of that.
#[tokio::test(start_paused = true)]
async fn a_ledger_that_did_not_answer_may_grant_something_yet() {
    let (books, places) = Books::new(&[1_000]);
    let (escrow, answers) = books.node(0);
    let within = Duration::from_secs(1);
    assert!(escrow.has_heard_all(within).await, "nothing was said");

    answers.store(false, Ordering::Relaxed);
    let _waits = tokio::time::timeout(within, escrow.reserve(demand(places[0], 100), long(), soon())).await;
    escrow.close();
    assert!(!escrow.has_heard_all(within).await);

    let (other, _) = books.node(1);
    drop(other.reserve(demand(places[0], 100), long(), soon()).await.unwrap());
    other.close();
    assert!(other.has_heard_all(within).await);
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
    escrow.publish([("b".into(), Now { place: places[0], unit: Unit::Tokens, ends: None })].into_iter().collect());
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

    escrow.reserve(demand(places[0], 20), long(), soon()).await.unwrap().settle([20]);

    assert_eq!(escrow.lease(places[0]).unwrap().busy(), 20);
}

/// Each time costs an entry of the log: what many ask for within a moment is asked for together.
#[tokio::test(start_paused = true)]
async fn what_is_said_within_a_moment_is_said_together() {
    const ATTEMPTS: u32 = 150;

    struct Counted(Node, Arc<AtomicU64>);

    impl Ledger for Counted {
        fn say(&self, said: Vec<(Place, Statement)>) -> BoxFuture<'static, Result<Vec<Told>, String>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.say(said)
        }

        fn debts(&self, place: Place) -> Option<u64> {
            self.0.debts(place)
        }

        fn lost(&self, places: &[Place]) -> Vec<u64> {
            self.0.lost(places)
        }
    }

    let (books, places) = Books::new(&vec![10; ATTEMPTS as usize]);
    let said = Arc::new(AtomicU64::new(0));
    let node = Node { books: books.clone(), number: 0, answers: Arc::new(AtomicBool::new(true)) };
    let (escrow, says, marking) = Escrow::new(Arc::new(Counted(node, Arc::clone(&said))), Arc::new(Disk::default()));
    let mut loops = JoinSet::new();
    loops.spawn(says);
    loops.spawn(marking);
    let mut attempts = JoinSet::new();
    let began = now();

    for place in places {
        let escrow = escrow.clone();
        attempts.spawn(async move { escrow.reserve(demand(place, 1), long(), soon()).await.unwrap().settle([1]) });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    attempts.join_all().await;

    let times = u64::try_from((now() - began).as_millis() / GATHER.as_millis()).unwrap() + 1;
    let said = said.load(Ordering::Relaxed);
    assert!(said <= times && said > 1, "{said} times, and {times} would do");
}
