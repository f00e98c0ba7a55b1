use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::id::NodeId;
use cluster::limits::View;
use cluster::limits::table::Table;
use futures_util::FutureExt;

use super::*;
use crate::queue::QueueConfig;

/// One owner for some queues, each of which is a node.
struct Owner {
    table: Mutex<Table>,
    born: Instant,
    asked: AtomicU64,
}

/// How one node reaches it.
struct From {
    owner: Option<Arc<Owner>>,
    view: View,
}

const LIFE: u64 = 5;

impl Owner {
    fn answer(&self, view: &View, reports: &[Report]) -> Answer {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let now = clock::now().saturating_duration_since(self.born) + Duration::from_secs(10);
        let mut table = self.table.lock();
        let shares = reports.iter().filter_map(|report| table.hear((view.me, 1), report, view, now));
        Answer { life: LIFE, shares: shares.collect() }
    }
}

impl Owners for From {
    fn ask(&self, _key: u64, reports: Vec<Report>) -> BoxFuture<'static, Option<Answer>> {
        let answer = self.owner.as_ref().map(|owner| owner.answer(&self.view, &reports));
        std::future::ready(answer).boxed()
    }

    fn ask_slots(&self, _told: Told) -> BoxFuture<'static, Option<Lent>> {
        std::future::ready(None).boxed()
    }

    fn ask_pace(&self, _ask: pace::Ask) -> BoxFuture<'static, Option<pace::Given>> {
        std::future::ready(None).boxed()
    }

    fn part(&self, key: u64, per_minute: u64) -> u64 {
        self.view.part(key, per_minute)
    }
}

fn nodes(owner: Option<&Arc<Owner>>) -> [Queue; 3] {
    [1, 2, 3].map(|me| {
        let config = QueueConfig { requests_max: NonZeroU32::new(1_000).expect("not zero") };
        let queue = Queue::new(&config, clock::now());
        let ready = vec![NodeId::new(1), NodeId::new(2), NodeId::new(3)];
        let view = View { me: NodeId::new(me), ready, members: 3, cut_off: false };
        queue.share(Arc::new(From { owner: owner.cloned(), view }));
        queue
    })
}

/// Each node tells the owner once what it used.
async fn tell(nodes: &[Queue; 3]) {
    for queue in nodes {
        let sent = clock::now();
        let reports = queue.reports(sent);
        let answer = queue.owners.get().expect("shared").ask(7, reports.clone()).await;
        queue.hear(&reports, answer.as_ref(), sent, clock::now());
    }
}

/// What `work` comes to while the nodes go on telling, as they do all the time.
async fn telling<T>(nodes: &[Queue; 3], work: impl Future<Output = T>) -> T {
    let go_on = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            tell(nodes).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = go_on => unreachable!("it goes on for ever"),
    }
}

fn owner() -> Arc<Owner> {
    Arc::new(Owner { table: Mutex::new(Table::new(LIFE)), born: clock::now(), asked: AtomicU64::new(0) })
}

fn limits(rpm: Option<u32>, tpm: Option<u64>) -> Limits {
    Limits { key_id: 7, rps: None, rpm, tpm, max_parallel: None }
}

async fn passes(queue: &Queue, limits: &Limits, tokens: u64) -> bool {
    queue.enter(limits, tokens, clock::now()).await.is_ok()
}

#[tokio::test]
async fn a_limit_is_used_once_however_it_is_spread() {
    let owner = owner();
    let nodes = nodes(Some(&owner));
    let limits = limits(Some(60), None);

    let mut passed = 0;
    for number in 0..45 {
        passed += u32::from(passes(&nodes[number % 3], &limits, 0).await);
    }
    let asked = owner.asked.load(Ordering::Relaxed);
    assert!(asked < 30, "most need not ask: {asked}");
    for number in 0..100 {
        passed += u32::from(telling(&nodes, passes(&nodes[number % 3], &limits, 0)).await);
    }

    assert_eq!(passed, 60);
    let Err(QueueError::RateLimited { limit, retry_after, standing }) = nodes[0].enter(&limits, 0, clock::now()).await
    else {
        panic!("all is used")
    };
    assert_eq!(limit, Limit::Requests);
    assert!(retry_after >= Duration::from_secs(58), "{retry_after:?}");
    assert_eq!(standing.requests.map(|level| (level.limit, level.remaining)), Some((60, 0)));
}

#[tokio::test]
async fn two_a_minute_are_two_on_three_nodes() {
    let nodes = nodes(Some(&owner()));
    let limits = limits(Some(2), None);

    let mut passed = Vec::new();
    for number in [2, 0, 1, 2, 0, 1] {
        passed.push(passes(&nodes[number], &limits, 0).await);
    }

    assert_eq!(passed, [true, true, false, false, false, false]);
}

/// Tokens that were estimated and not used are free for the other nodes, once the owner was told.
#[tokio::test]
async fn tokens_are_corrected_for_all_nodes() {
    let nodes = nodes(Some(&owner()));
    let limits = limits(None, Some(1_000));
    let turn = nodes[0].enter(&limits, 1_000, clock::now()).await.expect("nothing else counts");
    assert!(!passes(&nodes[1], &limits, 500).await);

    turn.used(100, clock::now());
    tell(&nodes).await;

    let other = telling(&nodes, nodes[2].enter(&limits, 500, clock::now())).await.expect("900 are free");
    assert_eq!(other.standing().tokens.map(|level| level.remaining), Some(400));
}

/// Refused for its tokens, a request has used up none of its requests.
#[tokio::test]
async fn refused_for_one_shared_limit_counts_for_neither() {
    let nodes = nodes(Some(&owner()));
    let limits = limits(Some(20), Some(100));
    assert!(passes(&nodes[0], &limits, 90).await);
    assert!(!passes(&nodes[1], &limits, 50).await);

    // The «no» before keeps the node from asking again at once.
    let turn = telling(&nodes, async {
        loop {
            if let Ok(turn) = nodes[1].enter(&limits, 10, clock::now()).await {
                break turn;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    assert_eq!(turn.standing().requests.map(|level| level.remaining), Some(18));
}

/// A moment's silence is no silence: nobody is let in before two seconds of it.
#[tokio::test]
async fn without_an_owner_a_node_gives_its_even_part() {
    let nodes = nodes(None);
    let limits = limits(Some(30), None);
    assert!(!passes(&nodes[0], &limits, 0).await);
    let all = nodes.iter().map(async |queue| {
        let (mut passed, began) = (0, clock::now());
        // Its part may have been given when it is refused again: the last ones are asked for one by one.
        for _ in 0..60 {
            passed += u32::from(passes(queue, &limits, 0).await);
            if clock::now() - began > Duration::from_secs(5) {
                break;
            }
        }
        passed
    });

    assert_eq!(futures_util::future::join_all(all).await, [10, 10, 10]);
}

/// A lowered limit holds for the next request.
#[tokio::test]
async fn a_limit_that_is_lowered_holds_at_once() {
    let nodes = nodes(Some(&owner()));
    for queue in &nodes {
        assert!(passes(queue, &limits(Some(600), None), 0).await);
    }

    let lowered = limits(Some(6), None);
    let mut passed = 0;
    for number in 0..60 {
        passed += u32::from(passes(&nodes[number % 3], &lowered, 0).await);
    }

    assert!(passed <= 3, "{passed}, and three before");
}

/// Whoever waits has a place of the node: one key does not take those of all.
#[tokio::test]
async fn requests_of_one_key_that_wait_leave_places_for_others() {
    let nodes = nodes(None);
    let limits = limits(Some(30), None);
    let all = (0..990).map(|_| passes(&nodes[0], &limits, 0));
    let other = async {
        tokio::task::yield_now().await;
        let known = Limits { key_id: 8, rps: None, rpm: None, tpm: None, max_parallel: None };
        (nodes[0].in_flight(), nodes[0].enter(&known, 0, clock::now()).await.is_ok())
    };

    let (_all, (waiting, passed)) = tokio::join!(futures_util::future::join_all(all), other);

    assert!(waiting <= 250, "{waiting}");
    assert!(passed);
}

/// Who asks at the same time as another of its key waits for that answer, and asks only if it does not do.
#[tokio::test]
async fn many_at_once_ask_a_few_times() {
    let owner = owner();
    let nodes = nodes(Some(&owner));
    let limits = limits(Some(600), None);

    let all = (0..600).map(|_| passes(&nodes[0], &limits, 0));
    let passed = futures_util::future::join_all(all).await.into_iter().filter(|passed| *passed).count();

    assert_eq!(passed, 600);
    let asked = owner.asked.load(Ordering::Relaxed);
    assert!(asked < 30, "{asked}");
}

/// Who is in the smaller part of a network can have that part's leave, and is told so.
#[tokio::test]
async fn what_is_left_to_who_cannot_be_asked_is_not_promised() {
    let queue = Queue::new(&QueueConfig::default(), clock::now());
    let view = View { me: NodeId::new(1), ready: vec![NodeId::new(1)], members: 3, cut_off: true };
    queue.share(Arc::new(From { owner: Some(owner()), view }));
    let limits = limits(None, Some(300));
    let refused = async |tokens| match queue.enter(&limits, tokens, clock::now()).await {
        Err(QueueError::RateLimited { retry_after, standing, .. }) => {
            (retry_after, standing.tokens.map(|left| left.remaining))
        }
        Ok(_) | Err(_) => panic!("it is too much"),
    };

    assert!(passes(&queue, &limits, 60).await);
    let (retry_after, left) = refused(60).await;
    assert!(retry_after >= Duration::from_secs(58) && left == Some(40), "{retry_after:?}, {left:?}");
    assert_eq!(refused(150).await, (RETRY_AFTER_MAX, Some(40)));
}
