//! How old what this node knows can be (P-REVOKE).
//!
//! A node is fresh from the instant it **sent** a question that the leader, confirmed by a quorum, answered, provided it
//! publishes what the answer named. It serves for `stale_max` from that instant and no longer. The leader notes each
//! question as a *grant* before it takes the index, so it knows until when any node may serve what it knew.
//!
//! Appends and gossip are no evidence: a leader that was cut off goes on talking to those cut off with it.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::id::NodeId;

/// How much longer than `stale_max` a grant is held to run, in percent: clocks of two machines differ in speed.
const DRIFT_PERCENT: u32 = 1;

/// How often a node asks while its freshness runs.
pub const ROUNDS_IN_STALE_MAX: u32 = 12;

/// Until when nodes may serve what they know, as the leader counts it. All times by the leader's own clock.
#[derive(Debug)]
pub struct Grants {
    stale_max: Duration,
    inner: Mutex<Granted>,
}

#[derive(Debug, Default)]
struct Granted {
    /// When each node last asked.
    last: HashMap<NodeId, Duration>,
    /// When this node began to lead; what was granted before, others granted.
    leading: Option<Leading>,
    /// Members on their way out get nothing more.
    leaving: Vec<NodeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leading {
    term: u64,
    since: Duration,
}

/// Why a question got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    #[error("this node does not lead")]
    NotLeading,
    #[error("the member is being removed")]
    Leaving,
}

impl Grants {
    pub fn new(stale_max: Duration) -> Self {
        Self { stale_max, inner: Mutex::default() }
    }

    /// Tells what this node leads: `Some(term)` or nothing. A new term, and a new life, start anew: who granted before
    /// granted up to `now`.
    pub fn leads(&self, term: Option<u64>, now: Duration) {
        let mut inner = self.inner.lock();
        match term {
            None => inner.leading = None,
            Some(term) if inner.leading.is_some_and(|leading| leading.term == term) => {}
            Some(term) => {
                inner.leading = Some(Leading { term, since: now });
                // Who was to leave in an earlier lead may have left, returned and stayed.
                inner.leaving.clear();
            }
        }
    }

    /// Notes a question of `node`. To be called **before** the index is taken.
    pub fn note(&self, node: NodeId, now: Duration) -> Result<(), NotGranted> {
        let mut inner = self.inner.lock();
        if inner.leading.is_none() {
            return Err(NotGranted::NotLeading);
        }
        if inner.leaving.contains(&node) {
            return Err(NotGranted::Leaving);
        }
        inner.last.insert(node, now);
        Ok(())
    }

    /// From when on `node` serves nothing of the past, unless it asks again. `None` while this node does not lead, or has
    /// not heard yet that it leads in `term` or later: what it knew of an earlier lead says nothing of who led in between.
    pub fn expires(&self, node: NodeId, term: u64) -> Option<Duration> {
        let inner = self.inner.lock();
        let leading = inner.leading.filter(|leading| leading.term >= term)?;
        let granted = inner.last.get(&node).copied().unwrap_or_default().max(leading.since);
        Some(granted + self.held())
    }

    /// From now on `node` gets no grant, until [`stays`](Self::stays).
    pub fn leaves(&self, node: NodeId) {
        let mut inner = self.inner.lock();
        if !inner.leaving.contains(&node) {
            inner.leaving.push(node);
        }
    }

    pub fn stays(&self, node: NodeId) {
        self.inner.lock().leaving.retain(|leaving| *leaving != node);
    }

    /// Forgets nodes that are no members any more and whose grants have run out.
    pub fn forget(&self, members: &dyn Fn(NodeId) -> bool, now: Duration) {
        let held = self.held();
        self.inner.lock().last.retain(|node, at| members(*node) || now < *at + held);
    }

    fn held(&self) -> Duration {
        self.stale_max + self.stale_max * DRIFT_PERCENT / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE_MAX: Duration = Duration::from_secs(100);
    const HELD: Duration = Duration::from_secs(101);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn node(id: u64) -> NodeId {
        NodeId::new(id)
    }

    #[test]
    fn only_who_leads_grants() {
        let grants = Grants::new(STALE_MAX);
        assert_eq!(grants.note(node(1), at(1)), Err(NotGranted::NotLeading));
        assert_eq!(grants.expires(node(1), 1), None);

        grants.leads(Some(1), at(2));
        assert_eq!(grants.note(node(1), at(3)), Ok(()));

        grants.leads(None, at(4));
        assert_eq!(grants.note(node(1), at(5)), Err(NotGranted::NotLeading));
    }

    /// Who starts to lead does not know what was granted before: it waits once in full.
    #[test]
    fn a_new_leader_assumes_that_everyone_was_just_granted() {
        let grants = Grants::new(STALE_MAX);
        grants.leads(Some(1), at(10));

        assert_eq!(grants.expires(node(7), 1), Some(at(10) + HELD));

        grants.leads(Some(1), at(50));
        assert_eq!(grants.expires(node(7), 1), Some(at(10) + HELD), "the same term is the same lead");
        grants.leads(Some(3), at(60));
        assert_eq!(grants.expires(node(7), 1), Some(at(60) + HELD));
        assert_eq!(grants.expires(node(7), 4), None, "it leads in term 4 and has not heard it");
        grants.leads(None, at(70));
        grants.leads(Some(3), at(80));
        assert_eq!(grants.expires(node(7), 1), Some(at(80) + HELD), "in between someone else may have led");
    }

    #[test]
    fn a_question_extends_what_its_node_may_serve() {
        let grants = Grants::new(STALE_MAX);
        grants.leads(Some(1), at(0));

        grants.note(node(1), at(30)).unwrap();

        assert_eq!(grants.expires(node(1), 1), Some(at(30) + HELD));
        assert_eq!(grants.expires(node(2), 1), Some(HELD));
    }

    #[test]
    fn who_leaves_gets_nothing_more_until_it_stays() {
        let grants = Grants::new(STALE_MAX);
        grants.leads(Some(1), at(0));
        grants.note(node(1), at(5)).unwrap();

        grants.leaves(node(1));
        assert_eq!(grants.note(node(1), at(6)), Err(NotGranted::Leaving));
        assert_eq!(grants.expires(node(1), 1), Some(at(5) + HELD));

        grants.stays(node(1));
        assert_eq!(grants.note(node(1), at(7)), Ok(()));
    }

    /// A removal of an earlier lead may be long over: its member may have returned.
    #[test]
    fn nobody_leaves_any_more_in_a_new_lead() {
        let grants = Grants::new(STALE_MAX);
        grants.leads(Some(1), at(0));
        grants.leaves(node(1));

        grants.leads(None, at(1));
        grants.leads(Some(3), at(2));

        assert_eq!(grants.note(node(1), at(3)), Ok(()));
    }

    #[test]
    fn a_grant_is_remembered_as_long_as_it_runs_even_of_who_is_gone() {
        let grants = Grants::new(STALE_MAX);
        grants.leads(Some(1), at(0));
        grants.note(node(1), at(50)).unwrap();

        grants.forget(&|_| false, at(150));
        assert_eq!(grants.expires(node(1), 1), Some(at(50) + HELD));
        grants.forget(&|_| false, at(151));
        assert_eq!(grants.expires(node(1), 1), Some(HELD), "as any unknown node");
    }
}
