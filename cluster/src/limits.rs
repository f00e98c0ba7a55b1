//! Limits of requests and tokens a minute that hold for all nodes together: which node owns a limit, what it gives the
//! others leave to use, and what a node makes of the answer. Pure: time is an argument, nothing is sent here.
//!
//! Each node counts its own last 60 s. The owner of a limit tells each node a **cap** on that count, and what it keeps
//! is an invariant: *the caps that may be in force come to the limit at most*. So do the counts, at any instant, and
//! thereby what was used in any 60 s, wherever it was used and whatever messages were lost or late. A ratio of the limit
//! would not do that: when shares change, who had the larger one before has used it already, and for a minute the sum
//! is more than the limit. Therefore a cap is never lower, for its owner, than what the node has used or may still
//! believe: it is lowered by telling, and only counted as lowered once the node has said that it knows.
//!
//! A cap is what was used and some of what is free, shared out by demand. Not more than half of what is left goes out
//! ahead of use; who lacks asks, and the last ones are given one by one. Limits of less than [`SMALL_PER_NODE`] for each
//! node are only given by asking.
//!
//! A cap holds for [`SILENT_MAX`] from when its node asked. Then the node goes by its even part of the limit. What is
//! not bounded by the limit: nodes that cannot reach the owner, or a majority, add at most their even parts; and for a minute after the
//! owner changed, what the old one used itself and what others had leave for that have not told the new one yet.

pub mod holding;
pub mod pace;
pub mod slots;
pub mod table;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// How far back counts look.
pub const SPAN: Duration = Duration::from_mins(1);

/// How often a node tells each owner what it used and wants.
pub const FRAME_EVERY: Duration = Duration::from_millis(250);

/// How long a cap holds. Older ones are in force nowhere.
pub const SILENT_MAX: Duration = Duration::from_secs(2);

/// How long a request waits for one answer of an owner.
pub const ASK_WITHIN: Duration = Duration::from_millis(250);

/// Smaller limits are given to each request by its own.
pub const SMALL_PER_NODE: u64 = 4;

/// Reports in one frame. More go in further frames.
pub const REPORTS_MAX: usize = 1024;

/// Steps in which a count is told to fall. More are told as fewer, later ones.
pub const STEPS_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Unit {
    Requests,
    Tokens,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LimitId {
    /// The same for the same key on every node.
    pub key: u64,
    pub unit: Unit,
}

/// What a node tells the owner of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub limit: LimitId,
    pub per_minute: u64,
    /// Grows. Of two reports that overtake one another the older one says nothing.
    pub sequence: u64,
    /// In its last 60 s.
    pub used: u64,
    /// What it goes by now.
    pub cap: u64,
    /// The owner's life, and the number of its latest answer that is in force here.
    pub answered: (u64, u64),
    /// What its clients wanted of late, refused or not; it fades.
    pub demand: u64,
    /// What one of them waits for; 0 for none.
    pub wanted: u64,
    pub falls: Vec<Step>,
}

/// So much of a count is over by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub within_ms: u32,
    pub amount: u64,
}

/// What the owner answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub limit: LimitId,
    pub number: u64,
    pub cap: u64,
    /// By all the others, in their last 60 s.
    pub others_used: u64,
    pub others_fall: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Another for each life of the node's process.
    pub life: u64,
    pub reports: Vec<Report>,
}

/// Limits that the asked node does not own are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub life: u64,
    pub shares: Vec<Share>,
}

/// Who is there, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub me: NodeId,
    /// Who may own limits.
    pub ready: Vec<NodeId>,
    /// Who may use them: all that are alive, and as many as belong to the cluster at least.
    pub members: u64,
    /// A majority of those who vote is not there: others may be sharing out the same limits.
    pub cut_off: bool,
}

impl View {
    /// The same at every node that sees the same. Of the limits of others, none changes hands when a node comes or goes.
    pub fn owner(&self, key: u64) -> Option<NodeId> {
        self.ready.iter().copied().max_by_key(|node| (weight(key, *node), *node))
    }

    /// This node's even part of a limit while its owner is silent. All parts come to the limit: what does not divide goes
    /// to some, for each key to others.
    pub fn part(&self, key: u64, per_minute: u64) -> u64 {
        let members = self.members.max(1);
        let own = (weight(key, self.me), self.me);
        let before = self.ready.iter().filter(|node| (weight(key, **node), **node) > own).count() as u64;
        per_minute / members + u64::from(before < per_minute % members)
    }

    /// What the owner may share out of a limit: all of it, or the even parts of those that are there.
    pub fn leave(&self, limit: u64) -> u64 {
        if !self.cut_off {
            return limit;
        }
        let there = u128::try_from(self.ready.len()).unwrap_or(u128::MAX).min(self.members.into());
        u64::try_from(u128::from(limit) * there / u128::from(self.members.max(1))).unwrap_or(limit)
    }

    fn is_small(&self, per_minute: u64) -> bool {
        per_minute < SMALL_PER_NODE.saturating_mul(self.members)
    }
}

/// Rendezvous: the node that weighs most owns the limit.
fn weight(key: u64, node: NodeId) -> u64 {
    mix(key ^ mix(node.get()))
}

/// The finaliser of `SplitMix64`.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// At most [`STEPS_MAX`], in order: the first as it is, others joined and told as late as the latest of them.
pub fn steps(mut falls: Vec<(Duration, u64)>) -> Vec<Step> {
    falls.sort_unstable();
    let step = |falls: &[(Duration, u64)]| {
        let (within, _) = falls.last()?;
        let within_ms = u32::try_from(within.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        Some(Step { within_ms, amount: falls.iter().fold(0, |sum, (_, amount)| sum.saturating_add(*amount)) })
    };
    let Some((first, rest)) = falls.split_first() else { return Vec::new() };
    let together = rest.len().div_ceil(STEPS_MAX - 1).max(1);
    std::iter::once(std::slice::from_ref(first)).chain(rest.chunks(together)).filter_map(step).collect()
}

/// How long until `wanted` fits under the limit, when nothing else is used meanwhile and `falls`, in any order, is all
/// that is `used`. Zero when it fits now.
pub fn fits_in(used: u64, wanted: u64, per_minute: u64, mut falls: Vec<(Duration, u64)>) -> Duration {
    falls.sort_unstable();
    let mut over = used.saturating_add(wanted).saturating_sub(per_minute);
    let mut wait = Duration::ZERO;
    for (within, amount) in falls {
        if over == 0 {
            break;
        }
        over = over.saturating_sub(amount);
        wait = within;
    }
    if over == 0 { wait } else { SPAN }
}

#[cfg(test)]
mod tests;
