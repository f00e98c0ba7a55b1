//! The connection to one node on one lane: absent, being made, up, or resting after a failure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tracing::{debug, info};

use super::connect::Sender;
use super::{ClientLimits, Shared};
use crate::clock;
use crate::id::NodeId;
use crate::peer::{CallError, Lane};

pub(super) struct Link {
    node: NodeId,
    lane: Lane,
    /// Places for open calls.
    pub calls: Semaphore,
    state: watch::Sender<State>,
}

enum State {
    Absent {
        failures: u32,
    },
    Connecting {
        failures: u32,
    },
    Up {
        sender: Sender,
        since: Instant,
        /// Before this connection was made.
        failures: u32,
    },
    /// Calls fail with `why` until `until`; then the next one tries again.
    Resting {
        until: Instant,
        failures: u32,
        why: CallError,
    },
}

/// What a call finds.
enum Found {
    Sender(Sender),
    Wait,
    /// This call is the one that has to start an attempt.
    Start {
        failures: u32,
    },
    Fail(CallError),
}

impl Link {
    pub fn new(node: NodeId, lane: Lane, calls_max: usize) -> Self {
        let (state, _) = watch::channel(State::Absent { failures: 0 });
        Self { node, lane, calls: Semaphore::new(calls_max), state }
    }

    /// Waits for a connection where one is being made; whoever calls bounds the wait.
    pub async fn sender(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<Sender, CallError> {
        let mut changes = self.state.subscribe();
        loop {
            changes.mark_unchanged();
            match self.look(&shared.limits) {
                Found::Sender(sender) => return Ok(sender),
                Found::Fail(why) => return Err(why),
                Found::Start { failures } => {
                    let (link, shared) = (Arc::clone(self), Arc::clone(shared));
                    shared.tasks.clone().spawn("peer connect", async move { link.connect(&shared, failures).await });
                }
                Found::Wait => {}
            }
            // The state outlives the receiver, so this fails never; were it to, the call had nothing to wait for.
            if changes.changed().await.is_err() {
                return Err(CallError::Broken { why: "the client ended".to_owned() });
            }
        }
    }

    /// One call finds `Start`, the others wait for what becomes of it.
    fn look(&self, limits: &ClientLimits) -> Found {
        let (mut found, now) = (Found::Wait, clock::now());
        self.state.send_if_modified(|state| {
            if let State::Up { sender, since, failures } = state
                && sender.is_closed()
                && now < *since + limits.retry_max
            {
                let failures = failures.saturating_add(1);
                let why = "the connection closed as soon as it was made".to_owned();
                let why = CallError::Unreachable { address: self.node.to_string(), why };
                *state = State::Resting { until: now + rest(limits, failures), failures, why };
            }
            found = match state {
                State::Up { sender, .. } if !sender.is_closed() => Found::Sender(sender.clone()),
                State::Up { .. } => Found::Start { failures: 0 },
                State::Connecting { .. } => Found::Wait,
                State::Resting { until, why, .. } if now < *until => Found::Fail(why.clone()),
                State::Absent { failures } | State::Resting { failures, .. } => Found::Start { failures: *failures },
            };
            if let Found::Start { failures } = found {
                *state = State::Connecting { failures };
            }
            false
        });
        found
    }

    /// Whatever happens, also a stop in between, leaves a state from which the next call goes on.
    async fn connect(self: Arc<Self>, shared: &Arc<Shared>, failures: u32) {
        let unfinished = Unfinished(Arc::clone(&self));
        let outcome = self.try_connect(shared).await;
        let next = match outcome {
            Ok(sender) => State::Up { sender, since: clock::now(), failures },
            Err(why) => {
                let failures = failures.saturating_add(1);
                if failures == 1 {
                    info!(node = %self.node, lane = self.lane.name(), %why, "a node cannot be reached");
                } else {
                    debug!(node = %self.node, lane = self.lane.name(), failures, %why, "a node cannot be reached");
                }
                State::Resting { until: clock::now() + rest(&shared.limits, failures), failures, why }
            }
        };
        self.state.send_replace(next);
        drop(unfinished);
    }

    async fn try_connect(&self, shared: &Shared) -> Result<Sender, CallError> {
        let address = shared.book.get(self.node).ok_or(CallError::NoAddress { node: self.node })?;
        match shared.connector.connect(&address, self.lane).await {
            Ok((found, sender)) if found == self.node => Ok(sender),
            // Dropped unused, with its connection.
            Ok((found, _sender)) => Err(CallError::WrongNode { address, wanted: self.node, found }),
            Err(cause) => Err(CallError::Unreachable { address, why: cause.to_string() }),
        }
    }
}

/// Sets the link free when its attempt is dropped or panics.
struct Unfinished(Arc<Link>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            if let State::Connecting { failures } = *state {
                *state = State::Absent { failures };
                return true;
            }
            false
        });
    }
}

/// Half of it is chance: nodes that lost the same peer do not all return at once.
fn rest(limits: &ClientLimits, failures: u32) -> Duration {
    let doubled = limits.retry_min.saturating_mul(1 << (failures.saturating_sub(1)).min(16));
    let full = doubled.min(limits.retry_max);
    let mut random = [0; 4];
    // Without randomness the rest is merely the longest.
    let chance = getrandom::fill(&mut random).map_or(u32::MAX, |()| u32::from_le_bytes(random));
    full / 2 + (full / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A node that is away for long is still tried twice a second.
        #[test]
        fn rests_grow_and_stay_bounded(failures in 1..u32::MAX) {
            let limits = ClientLimits::default();

            let rest = rest(&limits, failures);

            prop_assert!(rest >= limits.retry_min / 2 && rest <= limits.retry_max);
            prop_assert!(failures < 10 || rest >= limits.retry_max / 2);
        }
    }
}
