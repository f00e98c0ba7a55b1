//! How much of the traffic may be retries: a provider in trouble is not buried under everyone's second attempts.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Retries per hundred requests.
const SHARE_PERCENT: u64 = 20;

/// Retries allowed whatever the traffic, so that few requests can be retried too.
const FLOOR: u64 = 10;

/// How far back is looked, in parts of one second.
const WINDOW: usize = 10;

/// Counts requests and retries of the last ten seconds. The lock is held for a few additions.
pub struct RetryBudget {
    born: Instant,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    newest: u64,
    seconds: [Second; WINDOW],
}

#[derive(Clone, Copy, Default)]
struct Second {
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    /// `now` is the beginning of time here.
    pub fn new(now: Instant) -> Self {
        Self { born: now, counts: Mutex::new(Counts::default()) }
    }

    /// A request came. Its retries are not requests.
    pub fn request(&self, now: Instant) {
        let since = now.saturating_duration_since(self.born);
        self.counts.lock().at(since).requests += 1;
    }

    /// Whether one more retry may be made; if so it is counted.
    #[must_use]
    pub fn retry(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.born);
        let mut counts = self.counts.lock();
        counts.at(since);
        let (requests, retries) = counts
            .seconds
            .iter()
            .fold((0, 0), |(requests, retries), second| (requests + second.requests, retries + second.retries));
        let allowed = retries < FLOOR.max(requests * SHARE_PERCENT / 100);
        counts.at(since).retries += u64::from(allowed);
        allowed
    }
}

impl Counts {
    /// The counts of that second, or of the newest where that is later; seconds that left the window are emptied.
    fn at(&mut self, since: Duration) -> &mut Second {
        let second = since.as_secs().max(self.newest);
        for stale in (self.newest + 1..=second).take(WINDOW) {
            self.seconds[index(stale)] = Second::default();
        }
        if second - self.newest > WINDOW as u64 {
            self.seconds = Default::default();
        }
        self.newest = second;
        &mut self.seconds[index(second)]
    }
}

fn index(second: u64) -> usize {
    usize::try_from(second % WINDOW as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn low_traffic_may_retry() {
        let now = cluster::clock::now();
        let budget = RetryBudget::new(now);

        let allowed = (0..20).filter(|_| budget.retry(now)).count();

        assert_eq!(allowed as u64, FLOOR);
        assert!(budget.retry(now + Duration::from_secs(WINDOW as u64)), "the window has passed");
    }

    #[test]
    fn a_fifth_of_the_traffic_may_be_retries() {
        let now = cluster::clock::now();
        let budget = RetryBudget::new(now);
        (0..1_000).for_each(|_| budget.request(now));

        let allowed = (0..1_000).filter(|_| budget.retry(now)).count();

        assert_eq!(allowed, 200);
    }

    proptest! {
        /// It agrees with a list of everything that happened.
        #[test]
        fn retries_stay_a_share_of_requests(steps in vec((0..3_000u64, 0..30u8, 0..10u8), 1..100)) {
            let born = cluster::clock::now();
            let budget = RetryBudget::new(born);
            let mut since = Duration::ZERO;
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (pause, more_requests, more_retries) in steps {
                since += Duration::from_millis(pause);
                let second = since.as_secs();
                for _ in 0..more_requests {
                    budget.request(born + since);
                    requests.push(second);
                }
                let within = |list: &Vec<u64>| list.iter().filter(|at| **at + WINDOW as u64 > second).count() as u64;
                for _ in 0..more_retries {
                    let expected = within(&retries) < FLOOR.max(within(&requests) * SHARE_PERCENT / 100);
                    prop_assert_eq!(budget.retry(born + since), expected);
                    if expected {
                        retries.push(second);
                    }
                }
            }
        }
    }
}
