use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

/// An actor that does as it is told, badly.
struct Victim;

enum Order {
    Panic,
    Fail,
    Stop,
    /// Hold the place until released.
    Wait {
        _place: Place,
        until: oneshot::Receiver<()>,
    },
    Echo {
        reply: oneshot::Sender<u32>,
    },
}

/// Which incarnation this is, and how many of the next ones fail to start.
#[derive(Clone, Default)]
struct Fate {
    incarnation: Arc<AtomicU32>,
    start_failures: Arc<AtomicU32>,
    start_panics: Arc<AtomicU32>,
}

fn take_one(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Actor for Victim {
    type Msg = Order;
    type State = u32;
    type Arguments = Fate;

    async fn pre_start(&self, _me: ActorRef<Order>, fate: Fate) -> Result<u32, ActorProcessingErr> {
        let incarnation = fate.incarnation.fetch_add(1, Ordering::SeqCst);
        assert!(!take_one(&fate.start_panics), "cannot start");
        if take_one(&fate.start_failures) {
            return Err("will not start".into());
        }
        Ok(incarnation)
    }

    async fn handle(&self, me: ActorRef<Order>, order: Order, incarnation: &mut u32) -> Result<(), ActorProcessingErr> {
        match order {
            Order::Panic => panic!("as ordered"),
            Order::Fail => Err("as ordered".into()),
            Order::Stop => {
                me.stop(None);
                Ok(())
            }
            Order::Wait { until, _place } => {
                until.await.expect("the test releases it");
                Ok(())
            }
            Order::Echo { reply } => {
                reply.send(*incarnation).expect("the test listens");
                Ok(())
            }
        }
    }
}

const FEW: RestartPolicy = RestartPolicy {
    restarts_max: 3,
    within: Duration::from_mins(1),
    pause: Duration::from_millis(10),
    pause_max: Duration::from_millis(100),
};

async fn victim(supervisor: &Supervisor, fate: &Fate) -> Child<Order> {
    let fate = fate.clone();
    supervisor.child("test", "victim".into(), move || (Victim, fate.clone())).await.expect("it starts")
}

async fn echo(address: &Address<Order>) -> Option<u32> {
    let (reply, answer) = oneshot::channel();
    address.cast(Order::Echo { reply }).ok()?;
    answer.await.ok()
}

/// Asks until an incarnation answers. Time is paused, so this waits for no clock.
async fn echo_eventually(address: &Address<Order>) -> u32 {
    for _ in 0..10_000 {
        if let Some(incarnation) = echo(address).await {
            return incarnation;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the actor never came back");
}

#[tokio::test(start_paused = true)]
async fn an_address_outlives_every_kind_of_death() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let child = victim(&supervisor, &Fate::default()).await;
    assert_eq!(echo(&child.address).await, Some(0));

    for (incarnation, order) in [(1, Order::Panic), (2, Order::Fail), (3, Order::Stop)] {
        child.address.cast(order).expect("it is running");
        assert_eq!(echo_eventually(&child.address).await, incarnation);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_fails_or_panics_is_tried_again() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let fate = Fate::default();
    let child = victim(&supervisor, &fate).await;
    fate.start_failures.store(1, Ordering::SeqCst);
    fate.start_panics.store(1, Ordering::SeqCst);

    child.address.cast(Order::Panic).expect("it is running");

    assert_eq!(echo_eventually(&child.address).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_maker_that_panics_costs_a_restart_and_not_the_supervisor() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let makes = AtomicU32::new(0);
    let made = supervisor.child("test", "made".into(), move || {
        assert!(makes.fetch_add(1, Ordering::SeqCst) != 1, "the second making fails");
        (Victim, Fate::default())
    });
    let child = made.await.expect("it starts");

    child.address.cast(Order::Panic).expect("it is running");

    assert_eq!(echo_eventually(&child.address).await, 0);
}

#[tokio::test(start_paused = true)]
async fn while_it_restarts_a_message_is_refused_and_its_place_returned() {
    let patient = RestartPolicy { pause: Duration::from_hours(1), pause_max: Duration::from_hours(1), ..FEW };
    let tasks = Tasks::new();
    let supervisor = Supervisor::start(patient, &tasks).await.expect("it starts");
    let child = victim(&supervisor, &Fate::default()).await;
    let mailbox = Mailbox::new("test", 2);
    let (_release, until) = oneshot::channel();
    let (_release_too, until_too) = oneshot::channel();
    child.address.cast(Order::Panic).expect("it is running");
    // Behind the panic: it dies with the actor, unhandled.
    child.address.cast(Order::Wait { _place: mailbox.place().expect("a place"), until }).expect("still queued");

    while !tasks.running().contains_key("restart") {
        tokio::task::yield_now().await;
    }

    let order = Order::Wait { _place: mailbox.place().expect("a place"), until: until_too };
    assert_eq!(child.address.cast(order), Err(Gone));
    assert_eq!(mailbox.free(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_refuses_until_a_message_was_handled() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let child = victim(&supervisor, &Fate::default()).await;
    let mailbox = Mailbox::new("test", 1);
    let (release, until) = oneshot::channel();
    child.address.cast(Order::Wait { _place: mailbox.place().expect("a place"), until }).expect("it is running");
    assert!(mailbox.place().is_none());

    release.send(()).expect("it waits");
    assert_eq!(echo(&child.address).await, Some(0));

    assert!(mailbox.place().is_some());
}

#[tokio::test(start_paused = true)]
async fn too_many_deaths_escalate_with_the_reason() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let child = victim(&supervisor, &Fate::default()).await;

    for death in 1..=FEW.restarts_max {
        child.address.cast(Order::Panic).expect("it is running");
        echo_eventually(&child.address).await;
        assert!(
            matches!(*supervisor.standing.borrow(), Standing::Running),
            "death {death} is still answered with a restart"
        );
    }
    child.address.cast(Order::Fail).expect("it is running");

    let failure = supervisor.failed().await;
    let Failure::TooManyRestarts { room, child: name, deaths, cause, .. } = failure else { panic!("{failure}") };
    assert_eq!((room, &*name, deaths, cause.as_str()), ("test", "victim", 4, "as ordered"));
    supervisor.stop(Duration::from_secs(5)).await.expect("it stops by itself");
    assert_eq!(child.address.cast(Order::Panic), Err(Gone));
}

#[tokio::test(start_paused = true)]
async fn one_that_never_starts_again_escalates_too() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let fate = Fate::default();
    let child = victim(&supervisor, &fate).await;
    fate.start_failures.store(u32::MAX, Ordering::SeqCst);

    child.address.cast(Order::Panic).expect("it is running");

    let failure = supervisor.failed().await;
    let Failure::TooManyRestarts { deaths, cause, .. } = failure else { panic!("{failure}") };
    assert_eq!(deaths, 4);
    assert!(cause.contains("will not start"), "{cause}");
}

/// A panic costs at most what the actor itself held.
#[tokio::test(start_paused = true)]
async fn siblings_are_untouched() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let unlucky = victim(&supervisor, &Fate::default()).await;
    let sibling = victim(&supervisor, &Fate::default()).await;

    for _ in 0..FEW.restarts_max {
        unlucky.address.cast(Order::Panic).expect("it is running");
        echo_eventually(&unlucky.address).await;
    }

    assert_eq!(echo(&sibling.address).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_first_start_that_fails_is_told_to_the_caller() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let fate = Fate::default();
    fate.start_failures.store(1, Ordering::SeqCst);

    let started = supervisor.child("test", "victim".into(), move || (Victim, fate.clone())).await;

    assert!(matches!(started, Err(StartError::Refused { room: "test", .. })));
    assert!(matches!(*supervisor.standing.borrow(), Standing::Running));
}

#[tokio::test(start_paused = true)]
async fn a_retired_child_handles_what_it_has_and_stays_away() {
    let tasks = Tasks::new();
    let supervisor = Supervisor::start(FEW, &tasks).await.expect("it starts");
    let child = victim(&supervisor, &Fate::default()).await;
    let other = victim(&supervisor, &Fate::default()).await;
    let (reply, answer) = oneshot::channel();
    child.address.cast(Order::Echo { reply }).expect("it is running");

    supervisor.retire(child.key);

    assert_eq!(answer.await, Ok(0));
    while child.address.cast(Order::Panic).is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(echo(&other.address).await, Some(0));
    assert!(tasks.running().is_empty(), "no restart is planned");
}

#[tokio::test(start_paused = true)]
async fn stop_lets_children_finish_and_is_no_failure() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let child = victim(&supervisor, &Fate::default()).await;
    let (reply, answer) = oneshot::channel();
    child.address.cast(Order::Echo { reply }).expect("it is running");

    supervisor.stop(Duration::from_secs(5)).await.expect("it stops in time");

    assert_eq!(answer.await, Ok(0));
    assert_eq!(child.address.cast(Order::Panic), Err(Gone));
    let failed = tokio::time::timeout(Duration::from_secs(5), supervisor.failed()).await;
    assert!(failed.is_err(), "an orderly stop is no failure, but: {failed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_child_that_will_not_end_is_reported_and_killed() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");
    let child = victim(&supervisor, &Fate::default()).await;
    let mailbox = Mailbox::new("test", 1);
    let (release, until) = oneshot::channel();
    child.address.cast(Order::Wait { _place: mailbox.place().expect("a place"), until }).expect("it is running");

    let stopped = supervisor.stop(Duration::from_secs(5)).await;

    assert!(stopped.is_err());
    supervisor.root.wait(None).await.expect("it ends once the child is killed");
    assert!(release.is_closed(), "the killed child holds nothing");
    assert_eq!(mailbox.free(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_supervisor_is_a_failure() {
    let supervisor = Supervisor::start(FEW, &Tasks::new()).await.expect("it starts");

    supervisor.root.kill();

    assert_eq!(supervisor.failed().await, Failure::SupervisorDied);
}

#[test]
fn the_pause_doubles_up_to_its_limit_and_old_deaths_are_forgotten() {
    let policy = RestartPolicy { restarts_max: 6, ..FEW };
    let born = cluster::clock::now();
    let mut deaths = VecDeque::new();
    let mut pause_at = |seconds| match after_death(&mut deaths, born + Duration::from_secs(seconds), &policy) {
        Answer::Restart { pause } => pause.as_millis(),
        Answer::Fail { deaths } => panic!("failed after {deaths} deaths"),
    };

    assert_eq!([0, 1, 2, 3, 4, 5].map(&mut pause_at), [10, 20, 40, 80, 100, 100]);
    assert_eq!(pause_at(65), 10);
}
