use std::num::NonZeroU32;

use cluster::id::NodeId;
use cluster::limits::pace;
use cluster::limits::slots::lender::Lender;
use cluster::limits::slots::{Frame, Roll, SETTLES_IN};
use cluster::limits::{Answer, Report, View};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::queue::{Limits, QueueConfig, Turn};

const KEY: u64 = 7;

/// One owner for all queues, each of which is a node; `None` where none answers.
struct From {
    owner: Option<Arc<Mutex<Lender>>>,
    me: NodeId,
}

impl Owners for From {
    fn ask(&self, _key: u64, _reports: Vec<Report>) -> BoxFuture<'static, Option<Answer>> {
        std::future::ready(None).boxed()
    }

    fn ask_slots(&self, told: Told) -> BoxFuture<'static, Option<Lent>> {
        let frame = Frame { life: 1, stamp: 0, sequence: 0, all: false, told: vec![told] };
        let answer = self.owner.as_ref().map(|owner| owner.lock().hear(self.me, &frame, SETTLES_IN));
        // As if it had been sent: who asks may be gone before the answer.
        async move {
            tokio::task::yield_now().await;
            answer?.lent.first().copied()
        }
        .boxed()
    }

    fn ask_pace(&self, _ask: pace::Ask) -> BoxFuture<'static, Option<pace::Given>> {
        std::future::ready(None).boxed()
    }

    fn part(&self, _key: u64, per_minute: u64) -> u64 {
        per_minute / 3
    }
}

fn lender() -> Arc<Mutex<Lender>> {
    let me = NodeId::new(1);
    let view = View { me, ready: vec![me], members: 3, cut_off: false };
    let roll = Roll { view, lives: vec![1], alive: [1, 2, 3].map(NodeId::new).to_vec() };
    let mut lender = Lender::default();
    lender.see(&roll, Duration::ZERO);
    Arc::new(Mutex::new(lender))
}

fn queue() -> Queue {
    let config = QueueConfig { requests_max: NonZeroU32::new(100).expect("not zero") };
    Queue::new(&config, clock::now())
}

fn nodes(owner: Option<&Arc<Mutex<Lender>>>) -> [Queue; 3] {
    [1, 2, 3].map(|me| {
        let queue = queue();
        queue.share(Arc::new(From { owner: owner.cloned(), me: NodeId::new(me) }));
        queue
    })
}

fn limits(max: u32, rpm: Option<u32>) -> Limits {
    Limits { key_id: KEY, rps: None, rpm, tpm: None, max_parallel: Some(max) }
}

async fn enter(queue: &Queue, max: u32) -> Result<Turn, QueueError> {
    queue.enter(&limits(max, None), 0, clock::now()).await
}

/// What the node tells its owner all the time.
fn tell(queue: &Queue, owner: &Mutex<Lender>, me: u64) {
    let (sequence, told) = queue.tell_slots(true, clock::now());
    let frame = Frame { life: 1, stamp: 0, sequence, all: false, told };
    let answer = owner.lock().hear(NodeId::new(me), &frame, SETTLES_IN);
    queue.hear_slots(&frame.told, Some(&answer.lent), clock::now());
}

#[tokio::test]
async fn a_node_that_is_alone_lets_in_as_many_as_there_are() {
    let queue = queue();
    let first = enter(&queue, 2).await.expect("the first");
    let _second = enter(&queue, 2).await.expect("the second");
    assert_eq!(enter(&queue, 2).await.err(), Some(QueueError::TooManyAtOnce { max: 2 }));

    drop(first);

    assert!(enter(&queue, 2).await.is_ok());
    assert!(enter(&queue, 2).await.is_ok(), "one that was dropped at once holds nothing");
    assert_eq!(queue.in_flight(), 1);
}

#[tokio::test]
async fn five_are_five_on_three_nodes() {
    let owner = lender();
    let nodes = nodes(Some(&owner));
    let mut held = Vec::new();
    for number in 0..5 {
        held.push(enter(&nodes[number % 3], 5).await.expect("there are five"));
    }
    for queue in &nodes {
        assert!(enter(queue, 5).await.is_err());
    }

    drop(held.remove(0));
    tell(&nodes[0], &owner, 1);

    assert!(enter(&nodes[1], 5).await.is_ok());
}

/// Who is told that its answer is over asks again at once, elsewhere: it finds the slot that is about to be free.
#[tokio::test]
async fn a_slot_that_is_given_back_meanwhile_is_waited_for() {
    let owner = lender();
    let nodes = nodes(Some(&owner));
    let held = enter(&nodes[0], 1).await.expect("the only one");

    let (next, ()) = tokio::join!(enter(&nodes[1], 1), async {
        tokio::task::yield_now().await;
        drop(held);
        nodes[0].spare_slots().await;
        tell(&nodes[0], &owner, 1);
    });

    assert!(next.is_ok());
}

/// A client that hangs up while its node asks: what was lent for it goes back.
#[tokio::test]
async fn who_leaves_while_asking_leaves_nothing_behind() {
    let owner = lender();
    let nodes = nodes(Some(&owner));
    assert!(enter(&nodes[0], 1).now_or_never().is_none());
    assert_eq!(owner.lock().used(KEY), 1);

    nodes[0].spare_slots().await;
    tell(&nodes[0], &owner, 1);

    assert_eq!(owner.lock().used(KEY), 0);
    assert!(enter(&nodes[2], 1).await.is_ok());
}

/// Refused by one limit, a request has used nothing of the other.
#[tokio::test]
async fn refused_for_one_limit_leaves_the_other() {
    let queue = queue();
    let limits = limits(1, Some(2));
    let first = queue.enter(&limits, 0, clock::now()).await.expect("within both");
    assert!(matches!(queue.enter(&limits, 0, clock::now()).await, Err(QueueError::TooManyAtOnce { max: 1 })));
    drop(first);

    let second = queue.enter(&limits, 0, clock::now()).await.expect("one a minute is left");
    drop(second);
    for _ in 0..3 {
        let refused = queue.enter(&limits, 0, clock::now()).await;
        assert!(matches!(refused, Err(QueueError::RateLimited { .. })), "not for a slot that was kept");
    }
}

/// Many at once of one key are asked for together.
#[tokio::test]
async fn many_at_once_each_hold_one() {
    let owner = lender();
    let nodes = nodes(Some(&owner));

    let all = (0..20).map(|_| enter(&nodes[1], 12));
    let held: Vec<Turn> = futures_util::future::join_all(all).await.into_iter().flatten().collect();

    assert_eq!((held.len(), owner.lock().used(KEY)), (12, 12));
}

/// A key that nobody uses any more is forgotten, and only then.
#[tokio::test]
async fn keys_without_requests_are_forgotten() {
    let owner = lender();
    let nodes = nodes(Some(&owner));
    let held = enter(&nodes[0], 3).await.expect("the first");
    tell(&nodes[0], &owner, 1);
    assert_eq!(nodes[0].slots.keys.lock().len(), 1);

    drop(held);
    tell(&nodes[0], &owner, 1);
    let (_sequence, told) = nodes[0].tell_slots(false, clock::now());

    assert_eq!((told.len(), nodes[0].slots.keys.lock().len()), (0, 0));
}
