//! Who answers what between nodes. A number, once given, keeps its meaning: nodes of two versions talk to each other.

use super::Service;

impl Service {
    pub const RAFT_APPEND: Self = Self(1);
    pub const RAFT_VOTE: Self = Self(2);
    pub const RAFT_SNAPSHOT: Self = Self(3);
    /// A command for the leader to propose.
    pub const PROPOSE: Self = Self(4);
    /// Up to where the leader, confirmed by a quorum, has committed.
    pub const READ_INDEX: Self = Self(5);
    /// To return once every member publishes an entry, or serves no more.
    pub const BARRIER: Self = Self(6);
    /// To return once the asked node publishes an entry.
    pub const PUBLISHED: Self = Self(7);
    /// To admit, demote or remove a member.
    pub const MEMBERSHIP: Self = Self(8);
    /// Who are you, and do you know a cluster? Asked by who belongs to none yet.
    pub const HELLO: Self = Self(9);
    /// To promise the right to initialise.
    pub const PROMISE: Self = Self(10);
    /// What operators ask of another node: to drain.
    pub const DRAIN: Self = Self(11);
    /// What the asking node used and wants of limits that the asked one owns.
    pub const RATES: Self = Self(12);
    /// What the asking node uses and wants of slots that the asked one lends.
    pub const SLOTS: Self = Self(13);
    /// Leave for requests a second of keys that the asked node owns.
    pub const PACE: Self = Self(14);
}
