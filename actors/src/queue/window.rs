//! How much was used in the last 60 seconds. Pure: times in, sums out.
//!
//! Sixty one-second buckets and the one that is filling. A bucket counts until 60 s after the last use in it, so the
//! sum is never below what any 60 s saw, and no wait is longer than 60 s.

use std::time::Duration;

/// How far back is looked.
pub const SPAN: Duration = Duration::from_mins(1);

/// Sixty whole seconds may lie between the two partial ones at the ends.
const BUCKETS: usize = 61;

/// Times are since some moment fixed by the caller. A time before the latest one counts as the latest.
#[derive(Clone, Debug)]
pub struct Window {
    counts: [u64; BUCKETS],
    /// Nanoseconds into its second of the last use in each bucket.
    last_nanos: [u32; BUCKETS],
    sum: u64,
    /// The second of the oldest bucket that may still count.
    oldest: u64,
    latest: Duration,
}

impl Default for Window {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], last_nanos: [0; BUCKETS], sum: 0, oldest: 0, latest: Duration::ZERO }
    }
}

impl Window {
    /// The time as which something at `now` counts.
    pub fn at(&self, now: Duration) -> Duration {
        self.latest.max(now)
    }

    /// What counts at `now`.
    pub fn used(&mut self, now: Duration) -> u64 {
        self.forget(now);
        self.sum
    }

    /// How long until `wanted` more fits under `limit`, if nothing else is used meanwhile; zero when it fits now.
    /// `wanted` must not exceed `limit`.
    pub fn wait(&mut self, now: Duration, wanted: u64, limit: u64) -> Duration {
        self.forget(now);
        let mut left = self.sum;
        let mut wait = Duration::ZERO;
        let mut second = self.oldest;
        while left.saturating_add(wanted) > limit && second <= self.latest.as_secs() {
            left = left.saturating_sub(self.counts[index(second)]);
            wait = self.ends(second).saturating_sub(self.latest);
            second += 1;
        }
        wait
    }

    pub fn add(&mut self, now: Duration, amount: u64) {
        self.forget(now);
        let bucket = index(self.latest.as_secs());
        self.counts[bucket] = self.counts[bucket].saturating_add(amount);
        self.last_nanos[bucket] = self.latest.subsec_nanos();
        self.sum = self.sum.saturating_add(amount);
    }

    /// Takes back what was added within `second`, if that still counts.
    pub fn take_back(&mut self, second: u64, amount: u64) {
        if (self.oldest..=self.latest.as_secs()).contains(&second) {
            let count = &mut self.counts[index(second)];
            let taken = amount.min(*count);
            *count -= taken;
            self.sum = self.sum.saturating_sub(taken);
        }
    }

    /// How long until nothing counts any more, if nothing else is used meanwhile.
    pub fn reset(&mut self, now: Duration) -> Duration {
        self.forget(now);
        let newest = (self.oldest..=self.latest.as_secs()).rev().find(|second| self.counts[index(*second)] > 0);
        newest.map_or(Duration::ZERO, |second| self.ends(second).saturating_sub(self.latest))
    }

    /// What counts, by how long it still does: the soonest first.
    pub fn falls(&mut self, now: Duration) -> Vec<(Duration, u64)> {
        self.forget(now);
        let counts = (self.oldest..=self.latest.as_secs()).map(|second| (second, self.counts[index(second)]));
        let counts = counts.filter(|(_second, count)| *count > 0);
        counts.map(|(second, count)| (self.ends(second).saturating_sub(self.latest), count)).collect()
    }

    fn forget(&mut self, now: Duration) {
        self.latest = self.at(now);
        let second = self.latest.as_secs();
        if second - self.oldest >= 2 * BUCKETS as u64 {
            *self = Self { oldest: second, latest: self.latest, ..Self::default() };
        }
        while self.oldest < second {
            let bucket = index(self.oldest);
            if self.counts[bucket] > 0 && self.ends(self.oldest) > self.latest {
                break;
            }
            self.sum = self.sum.saturating_sub(self.counts[bucket]);
            self.counts[bucket] = 0;
            self.oldest += 1;
        }
    }

    /// When the bucket of `second` stops counting.
    fn ends(&self, second: u64) -> Duration {
        Duration::new(second, self.last_nanos[index(second)]) + SPAN
    }
}

fn index(second: u64) -> usize {
    usize::try_from(second % BUCKETS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Keeps everything, and sums by the definition: a use counts until 60 s after the last use in its second.
    #[derive(Default)]
    struct Model(Vec<(Duration, u64)>);

    impl Model {
        fn used(&self, now: Duration) -> u64 {
            self.0.iter().filter(|(at, _)| self.last_in(at.as_secs()) + SPAN > now).map(|(_, amount)| amount).sum()
        }

        fn last_in(&self, second: u64) -> Duration {
            self.0.iter().map(|(at, _)| *at).filter(|at| at.as_secs() == second).max().unwrap_or_default()
        }
    }

    /// Mostly short pauses, with some of about and well over the span.
    fn pauses() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(0..2_000_000_000u64),
            Just(2_000_000_000..20_000_000_000),
            Just(58_000_000_000..63_000_000_000),
            Just(63_000_000_000..400_000_000_000),
        ]
        .prop_flat_map(|nanos| nanos)
        .prop_map(Duration::from_nanos)
    }

    #[test]
    fn one_use_counts_for_exactly_sixty_seconds() {
        let mut window = Window::default();
        let at = Duration::from_millis(1_700);
        window.add(at, 5);

        assert_eq!(window.used(at + SPAN.saturating_sub(Duration::from_nanos(1))), 5);
        assert_eq!(window.used(at + SPAN), 0);
    }

    #[test]
    fn what_is_taken_back_no_longer_counts() {
        let mut window = Window::default();
        window.add(Duration::from_secs(3), 10);

        window.take_back(3, 4);
        assert_eq!(window.used(Duration::from_secs(4)), 6);
        window.take_back(3, 400);
        assert_eq!(window.used(Duration::from_secs(4)), 0);
        assert_eq!(window.reset(Duration::from_secs(4)), Duration::ZERO);
    }

    #[test]
    fn what_is_taken_back_too_late_changes_nothing() {
        let mut window = Window::default();
        window.add(Duration::from_secs(3), 10);
        window.add(Duration::from_secs(64), 7);

        window.take_back(3, 10);

        assert_eq!(window.used(Duration::from_secs(64)), 7);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_everything(uses in vec((pauses(), 0..100u64), 1..50)) {
            let mut window = Window::default();
            let mut model = Model::default();
            let mut now = Duration::ZERO;
            for (pause, amount) in uses {
                now += pause;
                prop_assert_eq!(window.used(now), model.used(now));
                window.add(now, amount);
                model.0.push((now, amount));
                prop_assert_eq!(window.used(now), model.used(now));
            }
        }

        /// Who waits that long finds room, and not a nanosecond earlier; nobody waits longer than the span.
        #[test]
        fn a_wait_is_true(uses in vec((pauses(), 1..100u64), 1..150), limit in 1..500u64, wanted in 1..500u64) {
            let wanted = wanted.min(limit);
            let mut window = Window::default();
            let mut now = Duration::ZERO;
            for (pause, amount) in uses {
                now += pause;
                window.add(now, amount);
            }
            let wait = window.wait(now, wanted, limit);
            prop_assert!(wait <= SPAN);
            if let Some(before) = wait.checked_sub(Duration::from_nanos(1)) {
                prop_assert!(window.clone().used(now + before) + wanted > limit);
            }
            prop_assert!(window.used(now + wait) + wanted <= limit);
        }

        #[test]
        fn after_the_reset_nothing_counts(uses in vec((pauses(), 1..100u64), 1..100)) {
            let mut window = Window::default();
            let mut now = Duration::ZERO;
            for (pause, amount) in uses {
                now += pause;
                window.add(now, amount);
            }
            let reset = window.reset(now);
            prop_assert_eq!(window.clone().used(now + reset), 0);
            prop_assert!(window.used(now + reset.saturating_sub(Duration::from_nanos(1))) > 0);
        }

        /// All that counts is said to fall, each part when it does.
        #[test]
        fn it_falls_as_it_says(uses in vec((pauses(), 1..100u64), 1..100)) {
            let mut window = Window::default();
            let mut now = Duration::ZERO;
            for (pause, amount) in uses {
                now += pause;
                window.add(now, amount);
            }
            let mut left = window.used(now);
            for (within, amount) in window.falls(now) {
                prop_assert_eq!(window.clone().used(now + within.saturating_sub(Duration::from_nanos(1))), left);
                left -= amount;
                prop_assert_eq!(window.used(now + within), left);
            }
            prop_assert_eq!(left, 0);
        }

        /// Threads take the time before they take the lock: a little out of order must do no harm.
        #[test]
        fn times_out_of_order_count_as_the_latest(times in vec(0..200_000u64, 1..100)) {
            let mut window = Window::default();
            for millis in &times {
                window.add(Duration::from_millis(*millis), 1);
            }
            let latest = Duration::from_millis(times.iter().copied().max().unwrap_or_default());
            prop_assert!(window.used(latest) >= 1);
            prop_assert_eq!(window.used(latest + SPAN), 0);
        }
    }
}
