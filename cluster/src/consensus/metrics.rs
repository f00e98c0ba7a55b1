//! What consensus counts.

/// Counter: commands proposed at this node while it led.
pub const PROPOSALS: &str = "lea_raft_proposals_total";
/// Histogram: commands that shared one log entry.
pub const BATCH_COMMANDS: &str = "lea_raft_batch_commands";
/// Gauge: the current term.
pub const TERM: &str = "lea_raft_term";
/// Gauge: 1 on the node that leads.
pub const LEADS: &str = "lea_raft_leader";
/// Gauge: entries of the log this node has not applied yet.
pub const LAG: &str = "lea_raft_lag_entries";
/// Gauge: log index of the last applied entry.
pub const APPLIED: &str = "lea_raft_applied_index";
/// Gauge: members that vote.
pub const VOTERS: &str = "lea_raft_voters";
/// Counter: changes of leadership seen by this node.
pub const ELECTIONS: &str = "lea_raft_leader_changes_total";
