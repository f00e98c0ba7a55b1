use super::*;
use crate::supervisor::{RestartPolicy, Tasks};
use std::num::NonZeroU32;
use std::time::Duration;

const POLICY: Policy = Policy {
    failures_max: NonZeroU32::new(2).expect("not zero"),
    failure_share: 50,
    window: Duration::from_secs(30),
    requests_min: NonZeroU32::new(20).expect("not zero"),
    open_for: Duration::from_secs(10),
};

async fn breakers(names: &[&str]) -> Breakers {
    let supervisor = Supervisor::start(RestartPolicy::default(), &Tasks::new()).await.expect("it starts");
    Breakers::start(&supervisor, list(names)).await.expect("they start")
}

fn list(names: &[&str]) -> Vec<(Arc<str>, Policy)> {
    names.iter().map(|name| (Arc::from(*name), POLICY)).collect()
}

/// Waits until the actor handled all it was told. The mailbox is then empty; time stands still.
async fn settled(handle: &Handle) {
    while handle.0.mailbox.free() < MAILBOX_MAX {
        tokio::task::yield_now().await;
    }
}

async fn opened(handle: &Handle, now: Instant) {
    for _ in 0..2 {
        handle.admit(now).expect("closed").finish(Verdict::Failure, now);
    }
    settled(handle).await;
    assert_eq!(handle.standing(now), Standing::Open { until: now + POLICY.open_for });
}

#[tokio::test]
async fn it_opens_admits_one_probe_and_closes() {
    let breakers = breakers(&["a"]).await;
    let handle = breakers.get("a").expect("it is known");
    let now = cluster::clock::now();
    opened(&handle, now).await;
    assert!(handle.admit(now).is_none());

    let later = now + POLICY.open_for;
    let probe = handle.admit(later).expect("one probe");
    assert!(handle.admit(later).is_none(), "never two probes at once");
    probe.finish(Verdict::Success, later);
    settled(&handle).await;

    assert_eq!(handle.standing(later), Standing::Closed);
    assert!(handle.admit(later).is_some());
}

#[tokio::test]
async fn closed_lets_everything_through() {
    let breakers = breakers(&["a"]).await;
    let handle = breakers.get("a").expect("it is known");
    let now = cluster::clock::now();

    let admitted: Vec<_> = (0..10_000).map_while(|_| handle.admit(now)).collect();

    assert_eq!(admitted.len(), 10_000);
}

#[tokio::test]
async fn threads_that_race_for_the_probe_get_one() {
    let breakers = breakers(&["a"]).await;
    let handle = breakers.get("a").expect("it is known");
    let now = cluster::clock::now();
    opened(&handle, now).await;
    let later = now + POLICY.open_for;

    let start = std::sync::Barrier::new(8);
    let race = || {
        start.wait();
        (0..1_000).filter_map(|_| handle.admit(later)).collect::<Vec<_>>()
    };
    let probes: Vec<Admission> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
        racers.into_iter().flat_map(|racer| racer.join().expect("it does not panic")).collect()
    });

    assert_eq!(probes.len(), 1);
}

#[tokio::test]
async fn a_probe_dropped_or_neutral_frees_its_place_for_the_next() {
    let breakers = breakers(&["a"]).await;
    let handle = breakers.get("a").expect("it is known");
    let now = cluster::clock::now();
    opened(&handle, now).await;
    let later = now + POLICY.open_for;

    drop(handle.admit(later).expect("one probe"));
    handle.admit(later).expect("the dropped one is free again").finish(Verdict::Neutral, later);
    settled(&handle).await;

    assert!(handle.admit(later).is_some());
}

#[tokio::test]
async fn a_throttled_provider_is_left_alone_until_it_said() {
    let breakers = breakers(&["a"]).await;
    let handle = breakers.get("a").expect("it is known");
    let now = cluster::clock::now();
    let until = now + Duration::from_secs(7);

    handle.admit(now).expect("closed").finish(Verdict::Throttled { for_: Duration::from_secs(7) }, now);
    settled(&handle).await;

    assert_eq!(handle.standing(now), Standing::Throttled { until });
    assert!(handle.admit(now).is_none());
    assert!(handle.admit(until).is_some());
}

#[tokio::test]
async fn a_last_resort_passes_an_open_breaker_and_may_close_it() {
    let breakers = breakers(&["a"]).await;
    let handle = breakers.get("a").expect("it is known");
    let now = cluster::clock::now();
    opened(&handle, now).await;

    Admission::last_resort(&handle).finish(Verdict::Success, now);
    settled(&handle).await;

    assert_eq!(handle.standing(now), Standing::Closed);
}

#[tokio::test]
async fn a_full_mailbox_drops_the_verdict_and_frees_the_probe() {
    let breakers = breakers(&["a"]).await;
    let handle = breakers.get("a").expect("it is known");
    let now = cluster::clock::now();
    opened(&handle, now).await;
    let later = now + POLICY.open_for;
    let places: Vec<_> = std::iter::from_fn(|| handle.0.mailbox.place()).collect();
    assert_eq!(places.len(), MAILBOX_MAX);

    handle.admit(later).expect("one probe").finish(Verdict::Success, later);

    assert_eq!(handle.standing(later), Standing::HalfOpen);
    assert!(handle.admit(later).is_some(), "the probe is free again");
}

/// A crash may forget failures, it may not blackhole a provider.
#[tokio::test(start_paused = true)]
async fn a_breaker_that_panics_restarts_closed() {
    let breakers = breakers(&["a", "b"]).await;
    let handle = breakers.get("a").expect("it is known");
    let sibling = breakers.get("b").expect("it is known");
    let now = cluster::clock::now();
    opened(&handle, now).await;
    opened(&sibling, now).await;

    // A clock at the end of time: adding to it panics inside the actor.
    let mut end_of_time = now;
    for bit in (0..63).rev() {
        end_of_time = end_of_time.checked_add(Duration::from_secs(1 << bit)).unwrap_or(end_of_time);
    }
    Admission::last_resort(&handle).finish(Verdict::Throttled { for_: Duration::from_mins(1) }, end_of_time);
    while handle.standing(now) != Standing::Closed {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    opened(&handle, now).await;
    assert!(matches!(sibling.standing(now), Standing::Open { .. }), "the sibling kept its state");
}

#[tokio::test]
async fn a_reload_keeps_what_stays_adds_what_is_new_and_applies_policies() {
    let breakers = breakers(&["stays", "goes"]).await;
    let stays = breakers.get("stays").expect("it is known");
    let now = cluster::clock::now();
    opened(&stays, now).await;
    let strict = Policy { failures_max: NonZeroU32::MIN, ..POLICY };

    let wanted = [("stays".into(), strict), ("new".into(), strict)];
    breakers.reconcile(wanted).await.expect("they start");

    assert!(breakers.get("goes").is_none());
    assert_eq!(breakers.standings(now).len(), 2);
    let stays = breakers.get("stays").expect("it is known");
    assert!(matches!(stays.standing(now), Standing::Open { .. }), "it kept its state");
    Admission::last_resort(&stays).finish(Verdict::Success, now);
    Admission::last_resort(&stays).finish(Verdict::Failure, now);
    settled(&stays).await;
    assert!(matches!(stays.standing(now), Standing::Open { .. }), "one failure is enough now");
}
