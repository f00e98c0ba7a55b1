//! What was asked for and what came of it. *Info is never fail*: what may have happened counts as neither.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes a key of this name.
    Create { key: String },
    /// Revokes it, and waits for the barrier.
    Revoke { key: String },
    /// Calls a provider, within its budgets.
    Spend,
    /// Makes, changes or deletes a budget.
    Budget,
}

impl Operation {
    fn is_about_keys(&self) -> bool {
        match self {
            Self::Create { .. } | Self::Revoke { .. } => true,
            Self::Spend | Self::Budget => false,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Certainly nothing happened.
    Fail,
    /// Something may have happened, or may still.
    Info,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub at: Duration,
    /// The node asked.
    pub node: usize,
    pub operation: Operation,
    pub outcome: Outcome,
    pub words: String,
}

/// All of one run. Cheap to clone; clones are the same history.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Event>>>);

impl History {
    pub fn add(&self, event: Event) {
        self.0.lock().push(event);
    }

    pub fn events(&self) -> Vec<Event> {
        self.0.lock().clone()
    }

    /// Of keys that were made and revoked.
    pub fn count(&self, outcome: &Outcome) -> usize {
        let events = self.0.lock();
        events.iter().filter(|event| event.operation.is_about_keys() && event.outcome == *outcome).count()
    }
}
