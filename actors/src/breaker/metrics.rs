//! What the breakers show.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const STATE: &str = "lea_breaker_state";
pub const TRANSITIONS: &str = "lea_breaker_transitions_total";

pub const METRICS: &[Described] = &[
    Described {
        name: STATE,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["provider"],
        help: "State of the provider's breaker: 0 closed (traffic flows), 1 half-open (a probe is under way), 2 open.",
    },
    Described {
        name: TRANSITIONS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["provider", "to"],
        help: "Changes of the provider's breaker to `closed`, `half_open`, `open` or `throttled`.",
    },
];
