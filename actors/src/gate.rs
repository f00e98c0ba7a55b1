//! Whether this node may serve at all: only while what it knows of the cluster is fresh (P-REVOKE).
//!
//! A node that is cut off does not hear of a revoked key. So what it may serve on runs out: whoever confirms that the
//! node is up to date moves the time on, and every request looks at it once, when it arrives. A request that arrived
//! in time may wait and be dispatched later: the promise is about requests that arrive after «revoke» returned.
//!
//! Restarts   closed, as not ready: a node that has just started has not yet confirmed anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Before the first confirmation.
const NOT_READY: u64 = 0;

/// Fresh without end.
const ALWAYS: u64 = u64::MAX;

/// The time until which the node may serve. Cheap to clone; all clones are one gate.
///
/// Times are since the machine started, sleep included (`clock::since_boot`): a clock that stands still while a machine
/// is suspended would keep the gate open over it. One writer.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Nanoseconds, so that a look is one load.
    fresh_until: Arc<AtomicU64>,
}

/// Whether requests are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    Closed { why: Closed },
}

/// Why nobody is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// This node has not caught up with its cluster since it started.
    NotReady,
    /// No quorum has confirmed for too long that what this node knows is current.
    Stale,
}

impl Closed {
    pub fn words(self) -> &'static str {
        match self {
            Self::NotReady => "has not caught up with its cluster yet",
            Self::Stale => "has lost touch with its cluster, and what it knows of keys may be out of date",
        }
    }
}

impl Gate {
    /// Closed until the first confirmation.
    pub fn closed() -> Self {
        Self { fresh_until: Arc::new(AtomicU64::new(NOT_READY)) }
    }

    /// Never closes: for a node that has nobody to be out of touch with.
    pub fn always_open() -> Self {
        Self { fresh_until: Arc::new(AtomicU64::new(ALWAYS)) }
    }

    /// What the node knows is confirmed, and may be served on until then.
    pub fn fresh_until(&self, until: Duration) {
        // One less than `ALWAYS` and one more than `NOT_READY` are as far away as makes no difference.
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(ALWAYS).clamp(NOT_READY + 1, ALWAYS - 1);
        self.fresh_until.store(nanos, Ordering::Release);
    }

    /// Nothing is served until the next confirmation: the node was removed, or must catch up first.
    pub fn close(&self) {
        self.fresh_until.store(NOT_READY, Ordering::Release);
    }

    pub fn open(&self, now: Duration) -> bool {
        self.standing(now) == Standing::Open
    }

    pub fn standing(&self, now: Duration) -> Standing {
        match self.fresh_until.load(Ordering::Acquire) {
            ALWAYS => Standing::Open,
            NOT_READY => Standing::Closed { why: Closed::NotReady },
            until if now.as_nanos() < u128::from(until) => Standing::Open,
            _over => Standing::Closed { why: Closed::Stale },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_hours(5);

    #[test]
    fn nobody_is_let_in_before_the_first_confirmation() {
        let gate = Gate::closed();
        assert_eq!(gate.standing(NOW), Standing::Closed { why: Closed::NotReady });

        gate.fresh_until(NOW + Duration::from_mins(1));

        assert_eq!(gate.standing(NOW), Standing::Open);
    }

    #[test]
    fn it_closes_by_itself_and_a_confirmation_opens_it_again() {
        let gate = Gate::closed();
        let until = NOW + Duration::from_mins(1);
        gate.fresh_until(until);

        assert!(gate.open(until.saturating_sub(Duration::from_nanos(1))));
        assert_eq!(gate.standing(until), Standing::Closed { why: Closed::Stale });
        gate.clone().fresh_until(until + Duration::from_mins(1));

        assert!(gate.open(until));
    }

    #[test]
    fn a_closed_gate_is_not_ready_again() {
        let gate = Gate::closed();
        gate.fresh_until(NOW + Duration::from_mins(1));

        gate.close();

        assert_eq!(gate.standing(NOW), Standing::Closed { why: Closed::NotReady });
    }

    #[test]
    fn one_that_never_closes_does_not() {
        assert!(Gate::always_open().open(Duration::MAX));
    }

    proptest! {
        /// A confirmation never opens the gate for longer than it says.
        #[test]
        fn never_open_beyond_what_was_confirmed(until in any::<u64>(), now in any::<u64>()) {
            let gate = Gate::closed();
            gate.fresh_until(Duration::from_nanos(until));
            prop_assert_eq!(gate.open(Duration::from_nanos(now)), now < until.clamp(1, u64::MAX - 1));
        }
    }
}
