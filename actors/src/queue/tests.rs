use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn queue(requests_max: u32) -> (Queue, Instant) {
    let born = cluster::clock::now();
    (Queue::new(&QueueConfig { requests_max: NonZeroU32::new(requests_max).expect("not zero") }, born), born)
}

impl Queue {
    /// As on a node that is alone, without waiting.
    fn enter_at_once(&self, limits: &Limits, tokens: u64, now: Instant) -> Result<Turn, QueueError> {
        let held = Held { _place: self.place()?, _slot: None };
        self.enter_alone(limits, tokens, now, held)
    }
}

fn limits(rpm: Option<u32>, tpm: Option<u64>) -> Limits {
    Limits { key_id: 7, rps: None, rpm, tpm, max_parallel: None }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_burst_up_to_the_limit_passes_and_the_next_is_told_when() {
    let (queue, now) = queue(100);
    let limits = limits(Some(3), None);
    for remaining in [2, 1, 0] {
        let turn = queue.enter_at_once(&limits, 0, now).expect("within the limit");
        assert_eq!(turn.standing().requests, Some(Level { limit: 3, remaining, reset: seconds(60) }));
        assert_eq!(turn.standing().tokens, None);
    }

    let refused = queue.enter_at_once(&limits, 0, now + seconds(20)).err();

    let requests = Some(Level { limit: 3, remaining: 0, reset: seconds(40) });
    let standing = Standing { requests, tokens: None };
    assert_eq!(refused, Some(QueueError::RateLimited { limit: Limit::Requests, retry_after: seconds(40), standing }));
    assert!(queue.enter_at_once(&limits, 0, now + seconds(60)).is_ok());
}

#[test]
fn keys_do_not_share_and_a_key_without_limits_has_none() {
    let (queue, now) = queue(100);
    let first = limits(Some(1), None);
    drop(queue.enter_at_once(&first, 0, now).expect("its first"));

    assert!(queue.enter_at_once(&first, 0, now).is_err());
    assert!(queue.enter_at_once(&Limits { key_id: 8, ..first }, 0, now).is_ok());
    for _ in 0..50 {
        let turn = queue.enter_at_once(&limits(None, None), u64::MAX, now).expect("no limit");
        assert_eq!(turn.standing(), Standing::default());
    }
}

#[test]
fn tokens_are_corrected_to_what_was_used() {
    let (queue, now) = queue(100);
    let limits = limits(None, Some(1_000));
    let turn = queue.enter_at_once(&limits, 900, now).expect("within the limit");
    assert!(queue.enter_at_once(&limits, 200, now).is_err());

    turn.used(100, now + seconds(1));

    let turn = queue.enter_at_once(&limits, 900, now + seconds(1)).expect("900 are left");
    assert_eq!(turn.standing().tokens.map(|level| level.remaining), Some(0));
    turn.used(2_000, now + seconds(2));
    let Err(QueueError::RateLimited { limit, retry_after, .. }) = queue.enter_at_once(&limits, 1, now + seconds(2))
    else {
        panic!("more was used than allowed")
    };
    assert_eq!((limit, retry_after), (Limit::Tokens, seconds(60)));
}

/// Threads take the time before they take the lock.
#[test]
fn what_was_counted_a_second_late_is_taken_back_all_the_same() {
    let (queue, now) = queue(100);
    let limits = limits(None, Some(1_000));
    let _first = queue.enter_at_once(&limits, 100, now + Duration::from_millis(5_001)).expect("within the limit");
    let overtaken = queue.enter_at_once(&limits, 900, now + Duration::from_millis(4_999)).expect("within the limit");

    overtaken.used(0, now + seconds(6));

    assert!(queue.enter_at_once(&limits, 900, now + seconds(6)).is_ok());
}

/// What was spent counts from when it was, even if what was estimated is long forgotten.
#[test]
fn a_long_stream_counts_at_its_end() {
    let (queue, now) = queue(100);
    let limits = limits(None, Some(1_000));
    let turn = queue.enter_at_once(&limits, 10, now).expect("within the limit");

    turn.used(1_000, now + seconds(300));

    assert!(queue.enter_at_once(&limits, 11, now + seconds(301)).is_err());
    assert!(queue.enter_at_once(&limits, 10, now + seconds(301)).is_ok());
}

#[test]
fn a_turn_dropped_keeps_its_estimate() {
    let (queue, now) = queue(100);
    let limits = limits(None, Some(1_000));

    drop(queue.enter_at_once(&limits, 900, now).expect("within the limit"));

    assert!(queue.enter_at_once(&limits, 200, now).is_err());
}

#[test]
fn a_request_larger_than_its_limit_passes_alone() {
    let (queue, now) = queue(100);
    let limits = limits(None, Some(1_000));

    drop(queue.enter_at_once(&limits, 5_000, now).expect("nothing else counts"));

    assert!(queue.enter_at_once(&limits, 1, now).is_err());
    assert!(queue.enter_at_once(&limits, 5_000, now + seconds(60)).is_ok());
}

/// A request refused for its tokens has not used up one of its requests.
#[test]
fn refused_for_one_limit_counts_for_neither() {
    let (queue, now) = queue(100);
    let limits = limits(Some(2), Some(100));
    drop(queue.enter_at_once(&limits, 90, now).expect("within both"));
    assert!(queue.enter_at_once(&limits, 50, now).is_err());

    let turn = queue.enter_at_once(&limits, 10, now).expect("one request and ten tokens are left");

    assert_eq!(turn.standing().requests.map(|level| level.remaining), Some(0));
}

#[test]
fn a_full_node_refuses_until_a_turn_ends() {
    let (queue, now) = queue(2);
    let unlimited = limits(None, None);
    let first = queue.enter_at_once(&unlimited, 0, now).expect("room");
    let _second = queue.enter_at_once(&unlimited, 0, now).expect("room");
    assert_eq!(queue.enter_at_once(&unlimited, 0, now).err(), Some(QueueError::Full));

    drop(first);

    assert!(queue.enter_at_once(&unlimited, 0, now).is_ok());
}

#[test]
fn who_is_refused_takes_no_room() {
    let (queue, now) = queue(1);
    let limits = limits(Some(1), None);
    drop(queue.enter_at_once(&limits, 0, now).expect("room"));

    assert!(matches!(queue.enter_at_once(&limits, 0, now), Err(QueueError::RateLimited { .. })));
    assert!(matches!(queue.enter_at_once(&limits, 0, now), Err(QueueError::RateLimited { .. })));
}

#[test]
fn keys_that_are_idle_are_forgotten_but_not_while_a_turn_is_held() {
    let (queue, now) = queue(1_000);
    for key_id in 0..500 {
        drop(
            queue
                .enter_at_once(&Limits { key_id, rps: None, rpm: Some(1), tpm: None, max_parallel: None }, 0, now)
                .expect("its first"),
        );
    }
    let held = queue
        .enter_at_once(&Limits { key_id: 500, rps: None, rpm: None, tpm: Some(10), max_parallel: None }, 1, now)
        .expect("room");

    drop(
        queue
            .enter_at_once(
                &Limits { key_id: 501, rps: None, rpm: Some(1), tpm: None, max_parallel: None },
                0,
                now + seconds(61),
            )
            .expect("its first"),
    );

    let mut kept: Vec<u64> = queue.keys.read().by_id.keys().copied().collect();
    kept.sort_unstable();
    assert_eq!(kept, [500, 501]);
    held.used(10, now + seconds(62));
    assert!(
        queue
            .enter_at_once(
                &Limits { key_id: 500, rps: None, rpm: None, tpm: Some(10), max_parallel: None },
                2,
                now + seconds(62)
            )
            .is_err()
    );
}

proptest! {
    /// In any 60 seconds, at most as many as the limit; and whoever waits as told gets a turn.
    #[test]
    fn never_more_than_the_limit_in_any_sixty_seconds(
        rpm in 1..20u32,
        tpm in 1..500u64,
        requests in vec((0..8_000u64, 0..200u64, any::<bool>()), 1..150),
    ) {
        let (queue, born) = queue(1_000);
        let limits = limits(Some(rpm), Some(tpm));
        let mut now = Duration::ZERO;
        let mut admitted: Vec<(Duration, u64)> = Vec::new();
        for (pause, tokens, patient) in requests {
            now += Duration::from_millis(pause);
            match queue.enter_at_once(&limits, tokens, born + now) {
                Ok(_kept_as_estimated) => admitted.push((now, tokens.min(tpm))),
                Err(QueueError::RateLimited { retry_after, .. }) => {
                    prop_assert!((seconds(1)..=seconds(60)).contains(&retry_after));
                    if patient {
                        now += retry_after;
                        prop_assert!(queue.enter_at_once(&limits, tokens, born + now).is_ok(), "waited {retry_after:?} in vain");
                        admitted.push((now, tokens.min(tpm)));
                    }
                }
                Err(QueueError::Full | QueueError::TooFast { .. } | QueueError::TooManyAtOnce { .. }) => {
                    prop_assert!(false, "nobody holds a turn, and no second has a limit");
                }
            }
        }
        for (index, (start, _)) in admitted.iter().enumerate() {
            let within: Vec<_> = admitted[index..].iter().take_while(|(at, _)| *at < *start + seconds(60)).collect();
            prop_assert!(within.len() as u64 <= u64::from(rpm));
            prop_assert!(within.iter().map(|(_, tokens)| tokens).sum::<u64>() <= tpm);
        }
    }

    /// A request is refused only if the 61 s before it really were full: being careful costs at most one second.
    #[test]
    fn nobody_is_refused_for_nothing(rpm in 1..20u32, pauses in vec(0..8_000u64, 1..150)) {
        let (queue, born) = queue(1_000);
        let limits = limits(Some(rpm), None);
        let mut now = Duration::ZERO;
        let mut admitted: Vec<Duration> = Vec::new();
        for pause in pauses {
            now += Duration::from_millis(pause);
            if queue.enter_at_once(&limits, 0, born + now).is_ok() {
                admitted.push(now);
            } else {
                let recent = admitted.iter().filter(|at| **at + seconds(61) > now).count() as u64;
                prop_assert!(recent >= u64::from(rpm), "refused with {recent} of {rpm} used");
            }
        }
    }
}
