//! What the queue shows.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const IN_FLIGHT: &str = "lea_requests_in_flight";
pub const REFUSED: &str = "lea_queue_refused_total";

pub const METRICS: &[Described] = &[
    Described {
        name: IN_FLIGHT,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Requests that hold a turn now.",
    },
    Described {
        name: REFUSED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["reason"],
        help: "Requests that got no turn: the key's `requests` or `tokens` a minute were used up, or the node was `full`.",
    },
];
