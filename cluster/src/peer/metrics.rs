//! What calls between nodes show.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const CALLS: &str = "lea_peer_calls_total";
pub const CALL_DURATION: &str = "lea_peer_call_duration_seconds";
pub const CONNECTS: &str = "lea_peer_connects_total";
pub const CONNECTIONS: &str = "lea_peer_connections";
pub const GARBAGE: &str = "lea_peer_garbage_total";
pub const REFUSED: &str = "lea_peer_refused_total";

pub const METRICS: &[Described] = &[
    Described {
        name: CALLS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["lane", "outcome"],
        help: "Calls this node made to others, by lane and by how they ended.",
    },
    Described {
        name: CALL_DURATION,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &["lane"],
        help: "How long calls to other nodes took that were answered.",
    },
    Described {
        name: CONNECTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["lane", "outcome"],
        help: "Attempts to connect to another node, by lane and by how they ended.",
    },
    Described {
        name: CONNECTIONS,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Connections of other nodes to this one that are open.",
    },
    Described {
        name: GARBAGE,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["reason"],
        help: "What came to the peer port and was no call of a node: connections without proof, bytes without sense.",
    },
    Described {
        name: REFUSED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["reason"],
        help: "Calls of other nodes that were refused before or by their handler.",
    },
];
