//! What the queue shows.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const IN_FLIGHT: &str = "lea_requests_in_flight";
pub const SLOTS_IN_USE: &str = "lea_key_slots_in_use";
pub const OWNER_ASKED: &str = "lea_limit_owner_asked_total";
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
        name: SLOTS_IN_USE,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Requests here that hold one of their key's `max_parallel`.",
    },
    Described {
        name: REFUSED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["reason"],
        help: "Requests that got no turn: the key's `requests` or `tokens` a minute or its requests `per_second` were used up, as \
               many of it were under way in `parallel` as may be, or the node was `full`.",
    },
    Described {
        name: OWNER_ASKED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["limit", "answered"],
        help: "Times a request waited for what the owner of its key said: of its `rates` a minute, its `slots` or its `pace` a \
               second; and whether there was an answer.",
    },
];
