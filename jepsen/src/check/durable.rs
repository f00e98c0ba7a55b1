//! P-DURABLE: what was acknowledged is there; what certainly failed is not; every node has the same.

use std::collections::BTreeSet;

use crate::history::{Event, Operation, Outcome};

/// Compares the history with the keys that all nodes ended with. Every broken promise, in words.
pub fn check(events: &[Event], keys: &BTreeSet<String>, revoked: &BTreeSet<String>) -> Vec<String> {
    let mut broken = Vec::new();
    for event in events {
        match (&event.operation, &event.outcome) {
            (Operation::Create { key }, Outcome::Ok) if !keys.contains(key) => {
                broken.push(format!("`{key}` was acknowledged ({}) and is gone", event.words));
            }
            (Operation::Create { key }, Outcome::Fail) if keys.contains(key) => {
                broken.push(format!("`{key}` was said to have failed ({}) and is there", event.words));
            }
            (Operation::Revoke { key }, Outcome::Ok) if !revoked.contains(key) => {
                broken.push(format!("`{key}` was revoked and is accepted again"));
            }
            (
                Operation::Create { .. } | Operation::Revoke { .. } | Operation::Spend | Operation::Budget,
                Outcome::Ok | Outcome::Fail | Outcome::Info,
            ) => {}
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn event(operation: Operation, outcome: Outcome) -> Event {
        Event { at: Duration::ZERO, node: 0, operation, outcome, words: String::new() }
    }

    fn create(outcome: Outcome) -> Vec<Event> {
        vec![event(Operation::Create { key: "k".to_owned() }, outcome)]
    }

    #[test]
    fn lost_acknowledgements_and_false_failures_are_found() {
        let (none, one) = (BTreeSet::new(), BTreeSet::from(["k".to_owned()]));
        assert_eq!(check(&create(Outcome::Ok), &none, &none).len(), 1);
        assert_eq!(check(&create(Outcome::Fail), &one, &none).len(), 1);
        assert!(check(&create(Outcome::Ok), &one, &none).is_empty());
        assert!(check(&create(Outcome::Fail), &none, &none).is_empty());
    }

    #[test]
    fn what_may_have_happened_counts_as_neither() {
        let (none, one) = (BTreeSet::new(), BTreeSet::from(["k".to_owned()]));
        assert!(check(&create(Outcome::Info), &none, &none).is_empty());
        assert!(check(&create(Outcome::Info), &one, &none).is_empty());
    }

    #[test]
    fn a_revocation_that_did_not_last_is_found() {
        let revoke = vec![event(Operation::Revoke { key: "k".to_owned() }, Outcome::Ok)];
        let one = BTreeSet::from(["k".to_owned()]);
        assert_eq!(check(&revoke, &one, &BTreeSet::new()).len(), 1);
        assert!(check(&revoke, &one, &one).is_empty());
    }
}
