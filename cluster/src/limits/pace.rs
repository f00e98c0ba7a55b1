//! Requests a second of a key, by the generic cell rate algorithm in its form of virtual scheduling (ITU-T I.371, annex
//! A): one number says when the next request would be due if all came evenly, and up to a second's worth may come early.
//!
//! The key's owner keeps that number. Nodes ask it for leave, some of it ahead of use where requests come fast, and what
//! is not used within [`LEAVE_FOR`] is void. So in any span of time all nodes together let through no more than the limit
//! times the span and [`LEAVE_FOR`], and a second's worth at once, whatever messages are lost: leave whose message is lost
//! is used by nobody. What comes on top: an owner that is new knows nothing of the one before, which is a second's worth
//! at most; and nodes that cannot reach the owner go by their even parts.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Leave holds so long, from when it was asked for.
pub const LEAVE_FOR: Duration = Duration::from_millis(250);

/// A node asks for what it will need within so long.
pub const AHEAD: Duration = Duration::from_millis(100);

/// Asks in one frame.
pub const ASKS_MAX: usize = 1024;

/// Keys that are remembered before it is looked which of them need not be.
const KEYS_FEW: usize = 1024;

const SECOND: Duration = Duration::from_secs(1);

/// What a node asks of the owner of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The same for the same key on every node.
    pub key: u64,
    /// 0 gives nothing.
    pub per_second: u32,
    /// At least 1.
    pub wanted: u32,
}

/// What it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Up to what was wanted.
    pub amount: u32,
    /// How long until there is leave for one more, if nobody else takes it.
    pub next_in_ms: u32,
}

/// In a frame from one node to another: keys of which the asked one is the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub asks: Vec<Ask>,
}

/// One for each ask, in their order; `None` where the asked node is not the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub given: Vec<Option<Given>>,
}

/// When the next request is due. Times are since some moment fixed by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gcra {
    due: Duration,
}

impl Gcra {
    /// Takes up to `wanted`, and says how long it is until one more could be taken.
    pub fn take(&mut self, per_second: u32, wanted: u32, now: Duration) -> (u32, Duration) {
        let each = each(per_second);
        let early = each.saturating_mul(per_second.max(1));
        let due = self.due.max(now);
        let room = early.saturating_sub(due.saturating_sub(now)).as_nanos() / each.as_nanos();
        let amount = u32::try_from(room).unwrap_or(u32::MAX).min(wanted);
        self.due = due.saturating_add(each.saturating_mul(amount));
        let next = self.due.saturating_add(each).saturating_sub(early);
        (amount, next.saturating_sub(now))
    }

    /// It is as if nobody had ever taken anything.
    pub fn is_idle(&self, now: Duration) -> bool {
        self.due <= now
    }
}

/// Between two that come evenly. Rounded up, so that the rate is never above the limit.
fn each(per_second: u32) -> Duration {
    let nanos = SECOND.as_nanos().div_ceil(u128::from(per_second.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The keys one node owns, as far as they were asked for of late.
#[derive(Debug, Default)]
pub struct Pacer {
    keys: HashMap<u64, Gcra>,
    /// Before there are more, it is looked which are idle.
    look_at: usize,
}

impl Pacer {
    pub fn give(&mut self, ask: &Ask, now: Duration) -> Given {
        if self.keys.len() >= self.look_at.max(KEYS_FEW) {
            self.keys.retain(|_key, gcra| !gcra.is_idle(now));
            self.look_at = self.keys.len().saturating_mul(2);
        }
        if ask.per_second == 0 {
            return Given { amount: 0, next_in_ms: 1_000 };
        }
        let (amount, next_in) = self.keys.entry(ask.key).or_default().take(ask.per_second, ask.wanted, now);
        let nanos_in_ms = Duration::from_millis(1).as_nanos();
        Given { amount, next_in_ms: u32::try_from(next_in.as_nanos().div_ceil(nanos_in_ms)).unwrap_or(u32::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_seconds_worth_may_come_at_once_and_then_one_after_the_other() {
        let mut gcra = Gcra::default();

        assert_eq!(gcra.take(10, 4, at(5_000)), (4, Duration::ZERO));
        assert_eq!(gcra.take(10, 9, at(5_000)), (6, at(100)));
        assert_eq!(gcra.take(10, 1, at(5_099)), (0, at(1)));
        assert_eq!(gcra.take(10, 1, at(5_100)), (1, at(100)));
        assert_eq!(gcra.take(10, 99, at(5_600)), (5, at(100)));
        assert!(!gcra.is_idle(at(6_599)) && gcra.is_idle(at(6_600)));
    }

    #[test]
    fn a_limit_that_is_lowered_lets_nobody_wait_for_longer_than_a_second() {
        let mut gcra = Gcra::default();
        assert_eq!(gcra.take(1_000, 1_000, at(0)).0, 1_000);

        let (none, next_in) = gcra.take(1, 1, at(0));

        assert_eq!(none, 0);
        assert!(next_in <= SECOND, "{next_in:?}");
    }

    #[test]
    fn keys_that_are_idle_are_forgotten() {
        let mut pacer = Pacer::default();
        for key in 0..10 * KEYS_FEW as u64 {
            pacer.give(&Ask { key, per_second: 1, wanted: 1 }, at(key * 2));
        }

        assert!(pacer.keys.len() <= 2 * KEYS_FEW, "{}", pacer.keys.len());
    }

    proptest! {
        /// Between any two moments no more is given than the limit for that long and a second's worth, and who waits as
        /// long as he is told is given one.
        #[test]
        fn never_more_than_the_rate_and_a_seconds_worth(
            per_second in 1_u32..2_000,
            asks in vec((0_u64..400, 1_u32..300), 1..200),
        ) {
            let mut gcra = Gcra::default();
            let (mut now, mut given) = (at(0), Vec::new());
            for (later, wanted) in asks {
                now += at(later);
                let (amount, next_in) = gcra.take(per_second, wanted, now);
                prop_assert!(amount <= wanted);
                prop_assert!(amount == wanted || !next_in.is_zero());
                let mut patient = gcra;
                prop_assert_eq!(patient.take(per_second, 1, now + next_in).0, 1);
                given.push((now, u64::from(amount)));
            }
            for first in 0..given.len() {
                let mut sum = 0;
                for (at, amount) in &given[first..] {
                    sum += amount;
                    let span = at.saturating_sub(given[first].0).as_nanos() * u128::from(per_second);
                    prop_assert!(u128::from(sum - u64::from(per_second).min(sum)) * SECOND.as_nanos() <= span);
                }
            }
        }
    }
}
