use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use cluster::limits::pace::Pacer;
use cluster::limits::slots::{Lent, Told};
use cluster::limits::{Answer, Report};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use super::*;
use crate::queue::{Held, Limits, QueueConfig, Turn};

const KEY: u64 = 7;

/// One owner for some queues, each of which is a node.
#[derive(Default)]
struct Owner {
    pacer: Mutex<Pacer>,
    asked: AtomicU32,
}

/// How one node reaches it.
struct Reach {
    owner: Option<Arc<Owner>>,
    born: Instant,
    part: u64,
}

impl Owners for Reach {
    fn ask(&self, _key: u64, _reports: Vec<Report>) -> BoxFuture<'static, Option<Answer>> {
        std::future::ready(None).boxed()
    }

    fn ask_slots(&self, _told: Told) -> BoxFuture<'static, Option<Lent>> {
        std::future::ready(None).boxed()
    }

    fn ask_pace(&self, ask: Ask) -> BoxFuture<'static, Option<Given>> {
        let (owner, born) = (self.owner.clone(), self.born);
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let owner = owner?;
            owner.asked.fetch_add(1, Ordering::Relaxed);
            let now = now().saturating_duration_since(born);
            Some(owner.pacer.lock().give(&ask, now))
        }
        .boxed()
    }

    fn part(&self, _key: u64, _limit: u64) -> u64 {
        self.part
    }
}

fn queue() -> Queue {
    let config = QueueConfig { requests_max: NonZeroU32::new(10_000).expect("not zero") };
    Queue::new(&config, now())
}

fn nodes(owner: Option<&Arc<Owner>>, part: u64) -> [Queue; 3] {
    let born = now();
    [(); 3].map(|()| {
        let queue = queue();
        queue.share(Arc::new(Reach { owner: owner.cloned(), born, part }));
        queue
    })
}

fn limits(rps: u32) -> Limits {
    Limits { key_id: KEY, rps: Some(rps), rpm: None, tpm: None, max_parallel: None }
}

async fn enter(queue: &Queue, rps: u32) -> Result<Turn, QueueError> {
    queue.enter(&limits(rps), 0, now()).await
}

fn wait_of(refused: Result<Turn, QueueError>) -> Duration {
    match refused.err() {
        Some(QueueError::TooFast { retry_after, .. }) => retry_after,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_keeps_the_pace_itself() {
    let queue = queue();
    for _ in 0..3 {
        assert!(enter(&queue, 3).await.is_ok());
    }

    let wait = wait_of(enter(&queue, 3).await);

    assert_eq!(wait, Duration::from_secs(1));
    tokio::time::advance(wait).await;
    assert!(enter(&queue, 3).await.is_ok(), "who waits as long as he is told succeeds");
}

/// Whoever asks where, five times as fast as they may.
#[tokio::test(start_paused = true)]
async fn nodes_let_through_together_what_one_may() {
    const RPS: u32 = 50;
    const SECONDS: u32 = 20;
    let owner = Arc::default();
    let nodes = Arc::new(nodes(Some(&owner), 0));
    let passed = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for number in 0..3 {
        let (nodes, passed) = (Arc::clone(&nodes), Arc::clone(&passed));
        clients.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(3) / (5 * RPS));
            for _ in 0..5 * RPS * SECONDS / 3 {
                ticks.tick().await;
                let turn = enter(&nodes[number], RPS).await;
                passed.fetch_add(u32::from(turn.is_ok()), Ordering::Relaxed);
            }
        });
    }
    clients.join_all().await;

    let passed = passed.load(Ordering::Relaxed);
    assert!(passed <= RPS * (SECONDS + 1) + RPS / 4 + 1, "{passed}");
    assert!(passed >= RPS * SECONDS * 95 / 100, "{passed}");
}

/// Below the limit nobody is refused, and of many requests few ask.
#[tokio::test(start_paused = true)]
async fn where_requests_come_fast_few_of_them_ask() {
    const RPS: u32 = 1_000;
    let owner = Arc::default();
    let nodes = nodes(Some(&owner), 0);
    let mut ticks = tokio::time::interval(Duration::from_millis(2));

    for _ in 0..5_000 {
        ticks.tick().await;
        assert!(enter(&nodes[0], RPS).await.is_ok());
    }

    let asked = owner.asked.load(Ordering::Relaxed);
    assert!(asked < 250, "{asked} of 5,000");
}

/// Many at the same moment: one asks for all of them.
#[tokio::test(start_paused = true)]
async fn those_that_come_together_ask_once_or_twice() {
    let owner = Arc::default();
    let nodes = Arc::new(nodes(Some(&owner), 0));
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        let nodes = Arc::clone(&nodes);
        clients.spawn(async move { enter(&nodes[0], 30).await.map(drop) });
    }

    let ends = clients.join_all().await;

    assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 30);
    assert!(owner.asked.load(Ordering::Relaxed) <= 2);
}

/// Nobody answers: each node goes by its even part, and one that has none refuses.
#[tokio::test(start_paused = true)]
async fn without_an_owner_a_node_goes_by_its_even_part() {
    let nodes = nodes(None, 4);
    let began = now();
    let mut passed = 0;
    while now() - began < Duration::from_secs(10) {
        passed += u32::from(enter(&nodes[0], 12).await.is_ok());
        tokio::time::advance(Duration::from_millis(20)).await;
    }

    assert!((36..=44).contains(&passed), "{passed}");
    let none = self::nodes(None, 0);
    assert_eq!(wait_of(enter(&none[0], 2).await), Duration::from_secs(1));
}

/// Whoever is refused for one limit has used nothing of the other, and asks no owner for it.
#[tokio::test(start_paused = true)]
async fn who_is_refused_for_one_limit_has_used_nothing_of_the_other() {
    let alone = queue();
    let both = Limits { rpm: Some(3), ..limits(2) };
    for passes in [true, true, false, false, false, false] {
        assert_eq!(alone.enter(&both, 0, now()).await.is_ok(), passes);
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(alone.enter(&both, 0, now()).await.is_ok(), "one of the minute's three was left");
    assert!(matches!(alone.enter(&both, 0, now()).await.err(), Some(QueueError::RateLimited { .. })));
    assert!(enter(&alone, 2).await.is_ok(), "one of the second's two was left");

    let owner: Arc<Owner> = Arc::default();
    let nodes = nodes(Some(&owner), 0);
    // Of requests a minute no owner says anything here.
    assert!(matches!(nodes[0].enter(&both, 0, now()).await.err(), Some(QueueError::RateLimited { .. })));
    assert_eq!(owner.asked.load(Ordering::Relaxed), 0);
}

/// It was let in by its minute and not by its second, which the owner said when it had been counted.
#[tokio::test(start_paused = true)]
async fn who_is_refused_when_it_was_counted_is_counted_no_more() {
    let owner: Arc<Owner> = Arc::default();
    let nodes = nodes(Some(&owner), 0);
    let both = Limits { rpm: Some(9), tpm: Some(90), ..limits(2) };
    let entered = nodes[0].enter_alone(&both, 10, now(), Held { _place: nodes[0].place().unwrap(), _slot: None });
    let turn = entered.unwrap();
    assert_eq!(turn.standing().tokens.unwrap().remaining, 80);

    turn.undo();

    let entered = nodes[0].enter_alone(&both, 10, now(), Held { _place: nodes[0].place().unwrap(), _slot: None });
    let standing = entered.unwrap().standing();
    assert_eq!((standing.requests.unwrap().remaining, standing.tokens.unwrap().remaining), (8, 80));
}

/// One that leaves while it waits leaves nothing behind that others would wait for.
#[tokio::test(start_paused = true)]
async fn who_stops_asking_lets_others_ask() {
    let owner = Arc::default();
    let nodes = nodes(Some(&owner), 0);

    assert!(enter(&nodes[0], 5).now_or_never().is_none(), "it asks");

    assert!(enter(&nodes[0], 5).await.is_ok());
    assert!(!nodes[0].paces.key(KEY, Duration::ZERO).state.lock().asking);
}
