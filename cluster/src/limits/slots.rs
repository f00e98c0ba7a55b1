//! How many requests of a key are worked on at once, on all nodes together: the owner of the key lends slots, one for each
//! request. Pure: time is an argument, nothing is sent here.
//!
//! What is kept is an invariant: *the owner takes a node to use at least as many slots as it does*. A node only uses what
//! it was lent, or what it uses already; each of its messages says how many, so the newest one that arrives sets what
//! the owner believes, and an answer that was lost costs nothing but until the next message. Messages are numbered per
//! life of a node, and one that was overtaken says nothing. A node has one question a key under way, for all its
//! requests that wait; what it tells meanwhile counts what it asked for as used.
//!
//! Slots that nobody uses are given back at once. A new owner lends nothing of a key until every node that is alive has
//! told all it uses, going by the same members, or until [`SETTLES_IN`] is over.

pub mod borrower;
pub mod lender;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::View;
use crate::id::NodeId;

/// How long a new owner waits for those who do not tell what they use: by then they are dead, or cut off.
pub const SETTLES_IN: Duration = Duration::from_secs(3);

/// So often a node tells each owner all it uses, even if that is nothing: whatever an owner believes beyond it is over.
pub const ALL_EVERY: Duration = Duration::from_secs(5);

/// Keys in one frame. Of a node that uses slots of more keys of one owner, the rest is told with later changes, and a new
/// owner waits [`SETTLES_IN`].
pub const TOLD_MAX: usize = 16_384;

/// What a node tells of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub key: u64,
    /// Slots there are, as the node knows the key.
    pub max: u32,
    /// Grows with everything this life of the node tells.
    pub sequence: u64,
    /// By its requests, and what it has asked for and not heard of.
    pub used: u32,
    /// By requests that wait.
    pub wanted: u32,
}

/// What the owner answers to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    pub key: u64,
    pub lent: u32,
    /// `false` while the owner does not know yet what others use.
    pub settled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Another for each life of the node's process.
    pub life: u64,
    /// [`Roll::stamp`] of what it goes by.
    pub stamp: u64,
    /// Smaller than that of all it tells.
    pub sequence: u64,
    /// What is not told of is not used.
    pub all: bool,
    pub told: Vec<Told>,
}

/// Keys that the asked node does not own, and messages that were overtaken, are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub stamp: u64,
    pub lent: Vec<Lent>,
}

/// Who is there, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    pub view: View,
    /// Of those that are ready: which life of theirs.
    pub lives: Vec<u64>,
    /// All that are, ready or not: they may use slots.
    pub alive: Vec<NodeId>,
}

impl Roll {
    /// The same for two nodes that take the same lives for the owners.
    pub fn stamp(&self) -> u64 {
        let ready = self.view.ready.iter().zip(&self.lives);
        ready.fold(0, |stamp, (node, life)| super::mix(super::mix(stamp ^ node.get()) ^ life))
    }

    /// How many slots this node uses where the owner is silent.
    pub fn part(&self, key: u64, max: u32) -> u32 {
        u32::try_from(self.view.part(key, max.into())).unwrap_or(max)
    }
}

#[cfg(test)]
mod tests;
