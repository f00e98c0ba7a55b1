//! Who votes. Pure: what is known of the members in, the next single change out; the leader carries it out.
//!
//! Up to [`VOTERS_MAX`] members vote, an odd number, spread over zones; the others learn. A learner is promoted when it
//! has kept up for a while; a voter that stays dead is replaced when someone can take its place; a learner that stays
//! silent is removed. A voter is never given up if those left alive would be no majority.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::NodeId;

/// More voters would cost every commit more and buy little: five survive the loss of two.
pub const VOTERS_MAX: usize = 5;

/// Entries a learner may be behind and still count as having caught up.
pub const LAG_MAX: u64 = 100;

/// When a change is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long a learner must have kept up before it votes.
    pub caught_up_for: Duration,
    /// How long a voter may be dead before it is replaced.
    pub dead_for: Duration,
    /// How long a learner may be silent before it is removed.
    pub silent_for: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            caught_up_for: Duration::from_secs(10),
            dead_for: Duration::from_mins(10),
            silent_for: Duration::from_mins(10),
        }
    }
}

/// What the leader knows of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub zone: Option<String>,
    /// How long it has been within [`LAG_MAX`]; `None` while it is not.
    pub caught_up_for: Option<Duration>,
    /// How long nothing was heard of it; `None` while it is alive.
    pub dead_for: Option<Duration>,
    /// It was told to leave.
    pub draining: bool,
}

impl Known {
    fn alive(&self) -> bool {
        self.dead_for.is_none()
    }

    fn may_vote(&self, patience: &Patience) -> bool {
        self.alive() && !self.draining && self.caught_up_for.is_some_and(|time| time >= patience.caught_up_for)
    }
}

/// All members, and which of them vote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub me: NodeId,
    pub voters: BTreeSet<NodeId>,
    pub members: BTreeMap<NodeId, Known>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These vote from now on; who voted before and is not among them learns.
    Vote(BTreeSet<NodeId>),
    /// A learner is no member any more.
    Remove(NodeId),
}

/// Why a member cannot go.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum CannotGo {
    #[error("node {node} is no member")]
    Unknown { node: NodeId },
    #[error("without node {node}, {alive} of {voters} voters would be alive, which is no majority")]
    Majority { node: NodeId, alive: usize, voters: usize },
    #[error("node {node} is the only voter; add another node and wait until it votes, or stop this one for good")]
    LastVoter { node: NodeId },
}

/// The next thing to do, if any.
pub fn plan(view: &View, patience: &Patience) -> Option<Step> {
    replace_dead(view, patience)
        .or_else(|| demote_surplus(view, patience))
        .or_else(|| promote(view, patience))
        .or_else(|| remove_silent(view, patience))
}

/// The voters without `node`, or why not. With someone to take its place, the number stays.
pub fn without(view: &View, node: NodeId, patience: &Patience) -> Result<BTreeSet<NodeId>, CannotGo> {
    if !view.members.contains_key(&node) {
        return Err(CannotGo::Unknown { node });
    }
    let mut voters = view.voters.clone();
    if !voters.remove(&node) {
        return Ok(voters);
    }
    voters.extend(candidates(view, &voters, patience).into_iter().find(|candidate| *candidate != node));
    if voters.is_empty() {
        return Err(CannotGo::LastVoter { node });
    }
    let alive = alive(view, &voters);
    if has_majority(alive, voters.len()) {
        Ok(voters)
    } else {
        Err(CannotGo::Majority { node, alive, voters: voters.len() })
    }
}

fn replace_dead(view: &View, patience: &Patience) -> Option<Step> {
    let dead = view.voters.iter().find(|voter| match view.members.get(voter) {
        Some(known) => known.draining || known.dead_for.is_some_and(|time| time >= patience.dead_for),
        None => true,
    })?;
    let mut voters = view.voters.clone();
    voters.remove(dead);
    let substitute = candidates(view, &voters, patience).into_iter().next()?;
    voters.insert(substitute);
    has_majority(alive(view, &voters), voters.len()).then_some(Step::Vote(voters))
}

fn demote_surplus(view: &View, _patience: &Patience) -> Option<Step> {
    if view.voters.len() <= wanted(view) {
        return None;
    }
    // The one that is missed least: dead or leaving first, this node last.
    let rank = |voter: &NodeId| {
        let known = view.members.get(voter);
        let useless = known.is_none_or(|known| known.draining || !known.alive());
        (!useless, *voter == view.me, std::cmp::Reverse(*voter))
    };
    let surplus = *view.voters.iter().min_by_key(|voter| rank(voter))?;
    let mut voters = view.voters.clone();
    voters.remove(&surplus);
    has_majority(alive(view, &voters), voters.len()).then_some(Step::Vote(voters))
}

/// As many as lead to an odd number, at once: with an even number one more loss is not survived, only more needed.
fn promote(view: &View, patience: &Patience) -> Option<Step> {
    let missing = wanted(view).checked_sub(view.voters.len()).filter(|missing| *missing > 0)?;
    let step = if view.voters.len() % 2 == 1 { 2 } else { 1 };
    if missing < step {
        return None;
    }
    let mut voters = view.voters.clone();
    for _ in 0..step {
        let candidate = candidates(view, &voters, patience).into_iter().next()?;
        voters.insert(candidate);
    }
    Some(Step::Vote(voters))
}

fn remove_silent(view: &View, patience: &Patience) -> Option<Step> {
    let silent = view.members.iter().find(|(node, known)| {
        !view.voters.contains(node) && known.dead_for.is_some_and(|time| time >= patience.silent_for)
    });
    silent.map(|(node, _known)| Step::Remove(*node))
}

/// The largest odd number that the members allow.
fn wanted(view: &View) -> usize {
    let staying = view.members.values().filter(|known| !known.draining).count().min(VOTERS_MAX);
    if staying % 2 == 0 { staying.saturating_sub(1).max(1) } else { staying }
}

/// Who could vote besides `voters`; those of the zones with the fewest voters first.
fn candidates(view: &View, voters: &BTreeSet<NodeId>, patience: &Patience) -> Vec<NodeId> {
    let in_zone = |zone: &Option<String>| {
        voters.iter().filter(|voter| view.members.get(voter).is_some_and(|known| known.zone == *zone)).count()
    };
    let mut fit: Vec<_> = view
        .members
        .iter()
        .filter(|(node, known)| !voters.contains(node) && !view.voters.contains(node) && known.may_vote(patience))
        .map(|(node, known)| (in_zone(&known.zone), *node))
        .collect();
    fit.sort_unstable();
    fit.into_iter().map(|(_voters, node)| node).collect()
}

fn alive(view: &View, voters: &BTreeSet<NodeId>) -> usize {
    voters.iter().filter(|voter| view.members.get(voter).is_some_and(Known::alive)).count()
}

fn has_majority(alive: usize, of: usize) -> bool {
    alive > of / 2
}

#[cfg(test)]
mod tests;
