//! What consensus shows.

use metrics::Unit;

use crate::metrics::{Described, Kind};

pub const PROPOSALS: &str = "lea_raft_proposals_total";
pub const BATCH_COMMANDS: &str = "lea_raft_batch_commands";
pub const TERM: &str = "lea_raft_term";
pub const LEADS: &str = "lea_raft_leader";
pub const LAG: &str = "lea_raft_lag_entries";
pub const APPLIED: &str = "lea_raft_applied_index";
pub const VOTERS: &str = "lea_raft_voters";
pub const ELECTIONS: &str = "lea_raft_leader_changes_total";

const fn plain(name: &'static str, kind: Kind, help: &'static str) -> Described {
    Described { name, kind, unit: Unit::Count, labels: &[], help }
}

pub const METRICS: &[Described] = &[
    plain(PROPOSALS, Kind::Counter, "Commands proposed at this node while it led."),
    plain(BATCH_COMMANDS, Kind::Histogram, "Commands that shared one log entry."),
    plain(TERM, Kind::Gauge, "The current term."),
    plain(LEADS, Kind::Gauge, "1 on the node that leads, else 0."),
    plain(LAG, Kind::Gauge, "Entries of the log that this node has and has not applied yet."),
    plain(APPLIED, Kind::Gauge, "Log index of the last entry in force on this node."),
    plain(VOTERS, Kind::Gauge, "Members that vote."),
    plain(ELECTIONS, Kind::Counter, "Changes of leader or term that this node saw."),
];
